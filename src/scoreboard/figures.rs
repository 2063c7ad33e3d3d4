//! The figures: what all workers count for each chain, link and storage (a *series*).
//!
//! The supervisor writes the names; all workers count with a [`Meter`] in the same words; readers take a
//! copy of them as a [`Series`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::histogram::{BUCKETS, Histogram, bucket_of};
use super::layout::{METER, NAME, Shape, WORD, meter, state};
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
    /// An ingress list: the vCons that came from it. This one and the next are there only if metrics are sent to a
    /// collector.
    List,
    /// A link in one chain, by [`chain_link_name`].
    ChainLink,
    /// The failed attempts at a storage alone.
    StorageFailure,
}

impl SeriesKind {
    const ALL: &'static [Self] = &[
        Self::Chain,
        Self::Link,
        Self::Storage,
        Self::List,
        Self::ChainLink,
        Self::StorageFailure,
    ];
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

/// The name of the series of a link in one chain: both names as JSON.
pub fn chain_link_name(chain: &str, link: &str) -> String {
    serde_json::json!([chain, link]).to_string()
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
    /// A request that the budget of a link or storage allows.
    Permitted,
    /// A vCon that waits for the budget of a link or storage, or until its server wants to be asked again.
    Waited,
}

impl Event {
    /// Every event, in the order of their counters.
    pub const ALL: [Self; 9] = [
        Self::Received,
        Self::Done,
        Self::Halted,
        Self::Failed,
        Self::DeadLettered,
        Self::Retried,
        Self::Returned,
        Self::Permitted,
        Self::Waited,
    ];
}

/// Counters and times of one series, which all workers add to; cheap to clone. Written without locks
/// and without system calls.
#[derive(Clone)]
pub struct Meter(Option<(Arc<SharedWords>, usize)>);

impl Meter {
    /// One that counts nothing: there was no room for its series.
    pub const SILENT: &'static Self = &Self(None);

    pub(super) fn at(words: &Arc<SharedWords>, start: usize) -> Self {
        Self(Some((Arc::clone(words), start)))
    }

    /// Whether it counts nothing.
    pub fn is_silent(&self) -> bool {
        self.0.is_none()
    }

    /// Counts an event.
    pub fn count(&self, event: Event) {
        self.add(meter::COUNTS + event as usize, 1);
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        // Rounded, or the mean of short times would be too small.
        let microseconds = (time.as_nanos() + 500) / 1_000;
        self.add(meter::SUM, u64::try_from(microseconds).unwrap_or(u64::MAX));
        self.add(meter::BUCKETS + bucket_of(time), 1);
    }

    fn add(&self, word: usize, more: u64) {
        if let Self(Some((words, start))) = self {
            words.words()[start + word].fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What all workers together, and their predecessors, have counted for one chain, link or storage.
/// No count ever decreases while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// What it is about.
    pub kind: SeriesKind,
    /// Its name in the configuration.
    pub name: String,
    counts: [u64; Event::ALL.len()],
    /// The observed times.
    pub times: Histogram,
}

impl Series {
    /// How often this has happened.
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize]
    }

    /// The chain and the link of a [`SeriesKind::ChainLink`]; `None` for others, and for names that were cut.
    pub fn chain_and_link(&self) -> Option<(String, String)> {
        let is_one = self.kind == SeriesKind::ChainLink;
        is_one.then(|| serde_json::from_str(&self.name).ok())?
    }

    fn of((kind, name): (SeriesKind, String), meter: &[u64; METER]) -> Self {
        Self {
            kind,
            name,
            counts: std::array::from_fn(|event| meter[meter::COUNTS + event]),
            times: times_of(meter),
        }
    }
}

/// The times that a meter has observed.
fn times_of(meter: &[u64; METER]) -> Histogram {
    let buckets = &meter[meter::BUCKETS..meter::BUCKETS + BUCKETS];
    Histogram::of(meter[meter::SUM], buckets.iter().copied())
}

/// The times of the meter that begins with this word of the file.
pub(super) fn read_times(file: &File, start: usize) -> io::Result<Histogram> {
    words(file, start).map(|meter| times_of(&meter))
}

/// Reads the figures of the first `series` names, one after the other: there may be many thousands.
pub(super) fn read_series(file: &File, shape: Shape, series: usize) -> io::Result<Vec<Series>> {
    let mut all = Vec::new();
    for number in 0..series.min(shape.series) {
        let name = words::<NAME>(file, shape.name_start(number))?;
        if let Some(name) = read_name(&name) {
            let meter = words::<METER>(file, shape.meter_start(number))?;
            all.push(Series::of(name, &meter));
        }
    }
    Ok(all)
}

fn words<const COUNT: usize>(file: &File, start: usize) -> io::Result<[u64; COUNT]> {
    let mut bytes = [[0; WORD]; COUNT];
    file.read_exact_at(bytes.as_flattened_mut(), (start * WORD) as u64)?;
    Ok(bytes.map(u64::from_ne_bytes))
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
