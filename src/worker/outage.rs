//! A Redis that is away: waited for with back-off, and reported once when it goes and once when it
//! is back, however many threads of the worker find it so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Backoff, Turn};
use crate::queue::QueueError;
use crate::settings::Settings;

/// Which threads of a worker find the server away.
#[derive(Default)]
pub(super) struct Absence {
    state: Mutex<(usize, Option<Instant>)>,
}

impl Absence {
    /// One thread more finds it away; answers whether it is the first.
    fn begin(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (threads, since) = &mut *state;
        *threads += 1;
        since.get_or_insert_with(Instant::now);
        *threads == 1
    }

    /// One of these threads has had an answer; for the last, the time that all of this took.
    fn end(&self) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (threads, since) = &mut *state;
        *threads = threads.saturating_sub(1);
        since
            .take_if(|_| *threads == 0)
            .map(|since| since.elapsed())
    }
}

/// The server's absence, as one thread sees it.
pub(super) struct Outage {
    what: &'static str,
    backoff: Backoff,
    /// Tries since the worker began to drain, and how many are made.
    late: u32,
    most_late: u32,
    away: bool,
    absence: Arc<Absence>,
}

/// The worker drains; there is no time to wait.
#[derive(Debug)]
pub(super) struct Draining;

impl Outage {
    /// No absence yet of `what`.
    pub fn new(what: &'static str, settings: &Settings, absence: &Arc<Absence>) -> Self {
        Self {
            what,
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            late: 0,
            most_late: settings.retry_attempts,
            away: false,
            absence: Arc::clone(absence),
        }
    }

    /// Notes a failure and waits before the next try; ends early when the worker drains.
    pub fn wait(&mut self, why: &QueueError, turn: &Turn<'_>) -> Result<(), Draining> {
        turn.wait(self.failed(why))
    }

    /// Notes a failure and waits before the next try. A worker that drains makes some tries more,
    /// then there is none.
    pub fn insist(&mut self, why: &QueueError, turn: &Turn<'_>) -> Result<(), Draining> {
        let pause = self.failed(why);
        if turn.is_draining() {
            self.late += 1;
        }
        if self.late > self.most_late {
            return Err(Draining);
        }
        turn.insist(pause);
        Ok(())
    }

    /// How long to wait; not at all where this process was stopped and goes on, and nothing is
    /// wrong with the server.
    fn failed(&mut self, why: &QueueError) -> Duration {
        if why.is_interruption() {
            return Duration::ZERO;
        }
        let what = self.what;
        if !std::mem::replace(&mut self.away, true) && self.absence.begin() {
            log::warn!("{what} is away, trying again until it is back: {why}");
        } else {
            log::debug!("{what} is still away: {why}");
        }
        self.backoff.next_wait()
    }

    /// The server has answered.
    pub fn over(&mut self) {
        if std::mem::take(&mut self.away) {
            self.backoff.reset();
            if let Some(time) = self.absence.end() {
                log::info!("{} is back after {:.1} s", self.what, time.as_secs_f64());
            }
        }
    }
}

impl Drop for Outage {
    /// A thread that ends does not wait any more.
    fn drop(&mut self) {
        if self.away {
            self.absence.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_to_notice_and_the_last_to_be_answered_are_news() {
        let absence = Absence::default();
        assert!(absence.begin());
        assert!(!absence.begin());
        assert_eq!(absence.end(), None);
        assert!(!absence.begin());
        assert_eq!(absence.end(), None);
        assert!(absence.end().is_some());
        assert!(absence.begin());
    }
}
