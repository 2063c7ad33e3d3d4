//! The figures: what all workers count for each chain, link and storage (a *series*).
//!
//! The supervisor writes the names; each worker counts with a [`Meter`] in a part of the file of its
//! own; readers add the parts up to a [`Series`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{self, METER, NAME, Shape, WORD, meter, state};
use crate::sys::SharedWords;
use crate::visible::printable;

/// What a series is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeriesKind {
    /// A chain: the whole work on its vCons.
    Chain = 1,
    /// A link, in whatever chain.
    Link,
    /// A storage, likewise.
    Storage,
}

impl SeriesKind {
    const ALL: &'static [Self] = &[Self::Chain, Self::Link, Self::Storage];
}

/// The longest name, in bytes; a longer one is cut.
const LONGEST: usize = (NAME - 1) * WORD;

/// A name as words. Names that begin with the same 128 bytes share a series.
pub(super) fn name_words(kind: SeriesKind, name: &str) -> [u64; NAME] {
    let name = &name[..name.floor_char_boundary(LONGEST)];
    let mut words = [0; NAME];
    words[0] = (kind as u64) << 32 | name.len() as u64;
    for (word, bytes) in words[1..].iter_mut().zip(name.as_bytes().chunks(WORD)) {
        let mut padded = [0; WORD];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(padded);
    }
    words
}

/// The name that stands in these words, if it is one.
fn read_name(words: &[u64; NAME]) -> Option<(SeriesKind, String)> {
    let kind = state(SeriesKind::ALL, words[0] >> 32)?;
    let length = usize::try_from(words[0] & u64::from(u32::MAX)).ok()?;
    let bytes: Vec<u8> = words[1..].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let name = std::str::from_utf8(bytes.get(..length)?).ok()?;
    Some((kind, printable(name).into_owned()))
}

/// A name as readers of the scoreboard see it: cut, and made printable.
pub fn shown_name(name: &str) -> String {
    printable(&name[..name.floor_char_boundary(LONGEST)]).into_owned()
}

/// What is counted. A chain counts vCons; a link or storage counts what it is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Taken from a list; handed to a link or storage.
    Received,
    /// Stored and announced; done.
    Done,
    /// Ended early by a link; the link ended a chain.
    Halted,
    /// A chain: failed in all attempts, or for good. A link or storage: one failed attempt.
    Failed,
    /// Went to the dead letter queue; because of this link or storage.
    DeadLettered,
    /// One more attempt at a link or storage.
    Retried,
    /// Went back to its list.
    Returned,
}

impl Event {
    /// Every event, in the order of their counters.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Done,
        Self::Halted,
        Self::Failed,
        Self::DeadLettered,
        Self::Retried,
        Self::Returned,
    ];
}

/// The upper bounds of the histogram's buckets in microseconds, each inclusive; one more bucket counts
/// longer times.
pub const BOUNDS_US: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Counters and times of one series in one worker's slot; cheap to clone. Written without locks
/// and without system calls.
#[derive(Clone)]
pub struct Meter(Option<(Arc<SharedWords>, usize)>);

impl Meter {
    /// One that counts nothing: there was no room for its series.
    pub const SILENT: &'static Self = &Self(None);

    pub(super) fn at(words: &Arc<SharedWords>, start: usize) -> Self {
        Self(Some((Arc::clone(words), start)))
    }

    /// Counts an event.
    pub fn count(&self, event: Event) {
        self.add(meter::COUNTS + event as usize, 1);
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.add(meter::SUM, time);
        let bucket = BOUNDS_US.iter().take_while(|bound| time > **bound).count();
        self.add(meter::BUCKETS + bucket, 1);
    }

    fn add(&self, word: usize, more: u64) {
        if let Self(Some((words, start))) = self {
            words.words()[start + word].fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// How many buckets the histogram has.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// What all workers together, and their predecessors, have counted for one chain, link or storage.
/// No count ever decreases while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// What it is about.
    pub kind: SeriesKind,
    /// Its name in the configuration.
    pub name: String,
    counts: [u64; Event::ALL.len()],
    /// The sum of all observed times, in microseconds.
    pub sum_us: u64,
    /// How many times fell into each bucket (not cumulative); see [`BOUNDS_US`].
    pub buckets: [u64; BUCKETS],
}

impl Series {
    /// How often this has happened.
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize]
    }

    /// How many times were observed.
    pub fn observed(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }

    fn add(&mut self, words: &[u64]) {
        let sums = self.counts.iter_mut().zip(&words[meter::COUNTS..]);
        let buckets = self.buckets.iter_mut().zip(&words[meter::BUCKETS..]);
        for (sum, word) in sums.chain(buckets) {
            *sum = sum.wrapping_add(*word);
        }
        self.sum_us = self.sum_us.wrapping_add(words[meter::SUM]);
    }
}

/// Reads the figures of the first `series` names from the first `slots` slots.
pub(super) fn read_series(
    file: &File,
    shape: Shape,
    slots: usize,
    series: usize,
) -> io::Result<Vec<Series>> {
    let series = series.min(shape.series);
    let names = words_at(file, shape.name_start(0), series * NAME)?;
    let mut all: Vec<Option<Series>> = names
        .as_chunks::<NAME>()
        .0
        .iter()
        .map(|words| {
            read_name(words).map(|(kind, name)| Series {
                kind,
                name,
                counts: [0; Event::ALL.len()],
                sum_us: 0,
                buckets: [0; BUCKETS],
            })
        })
        .collect();
    for number in 0..slots.min(layout::SLOTS) {
        let start = shape.meter_start(number, 0);
        let meters = words_at(file, start, series * METER)?;
        for (series, meter) in all.iter_mut().zip(meters.chunks_exact(METER)) {
            if let Some(series) = series {
                series.add(meter);
            }
        }
    }
    Ok(all.into_iter().flatten().collect())
}

/// Reads words of the file.
pub(super) fn words_at(file: &File, start: usize, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * WORD];
    file.read_exact_at(&mut bytes, (start * WORD) as u64)?;
    let words = bytes.as_chunks::<WORD>().0.iter();
    Ok(words.map(|word| u64::from_ne_bytes(*word)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_cut_between_letters() {
        for name in ["", "main", "Zoë", &"x".repeat(LONGEST)] {
            let words = name_words(SeriesKind::Link, name);
            assert_eq!(read_name(&words), Some((SeriesKind::Link, name.to_owned())));
        }
        let long = "x".repeat(LONGEST - 1) + "ë";
        let (_, cut) = read_name(&name_words(SeriesKind::Chain, &long)).unwrap();
        assert_eq!(cut, "x".repeat(LONGEST - 1));
        assert_eq!(cut, shown_name(&long));
    }

    #[test]
    fn words_that_are_no_name_are_none() {
        assert_eq!(read_name(&[0; NAME]), None);
        assert_eq!(read_name(&[u64::MAX; NAME]), None);
        let mut words = name_words(SeriesKind::Storage, "name");
        words[1] = u64::MAX;
        assert_eq!(read_name(&words), None);
    }
}
