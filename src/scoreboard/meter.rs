//! A worker's side of the figures: counters and times of one chain, link or storage.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::meter;
use crate::sys::SharedWords;

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

/// The upper bounds of the buckets that times are counted in, in microseconds, each included; one
/// more bucket takes what is above the last.
pub const BOUNDS_US: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Counters and times of one series in one worker's slot; cheap to clone. Written without locks
/// and without system calls.
#[derive(Clone)]
pub struct Meter(Option<(Arc<SharedWords>, usize)>);

impl Meter {
    /// One that keeps nothing: there was no room for its series.
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
