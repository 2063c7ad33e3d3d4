//! A reader's side of the figures: those of all workers together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{self, METER, NAME, Shape, WORD, meter};
use super::meter::{BOUNDS_US, Event};
use super::series::{self, SeriesKind};

/// How many buckets times are counted in.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// What all workers together, and those before them, have counted for one chain, link or storage.
/// None of it ever gets less while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// What it is about.
    pub kind: SeriesKind,
    /// Its name in the configuration.
    pub name: String,
    counts: [u64; Event::ALL.len()],
    /// All observed times together, in microseconds.
    pub sum_us: u64,
    /// How many times fell into each bucket, each for itself; see [`BOUNDS_US`].
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
pub(super) fn read(
    file: &File,
    shape: Shape,
    slots: usize,
    series: usize,
) -> io::Result<Vec<Series>> {
    let series = series.min(shape.series);
    let names = words(file, shape.name_start(0), series * NAME)?;
    let mut all: Vec<Option<Series>> = names
        .as_chunks::<NAME>()
        .0
        .iter()
        .map(|words| {
            series::read(words).map(|(kind, name)| Series {
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
        let meters = words(file, start, series * METER)?;
        for (series, meter) in all.iter_mut().zip(meters.chunks_exact(METER)) {
            if let Some(series) = series {
                series.add(meter);
            }
        }
    }
    Ok(all.into_iter().flatten().collect())
}

fn words(file: &File, start: usize, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * WORD];
    file.read_exact_at(&mut bytes, (start * WORD) as u64)?;
    let words = bytes.as_chunks::<WORD>().0.iter();
    Ok(words.map(|word| u64::from_ne_bytes(*word)).collect())
}
