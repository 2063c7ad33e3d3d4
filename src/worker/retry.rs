//! Trying again: pauses that grow, attempts that end, and a Redis that is waited for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Clock;
use crate::queue::QueueError;
use crate::settings::Settings;

/// How long a backend must have given up at a vCon, in longest pauses between attempts, before that is the
/// vCon's fault: ten minutes with the default pause. Until then it may be a lock that others hold.
pub(super) const SLOW: u32 = 600;

/// The same where the backend was asked for no other vCon since: an hour.
pub(super) const SLOW_ALONE: u32 = 3_600;

/// How long a program must have crashed with a vCon, in the same unit, before that is the vCon's fault: five
/// minutes. Until then a machine may be short of memory, or the program be replaced.
pub(super) const CRASHED: u32 = 300;

/// How long a backend that answers must have failed for a vCon while it was asked for no other, or said
/// that it is busy, in the same unit: a day. No outage is to become a dead letter.
pub(super) const ALONE: u32 = 86_400;

/// The longest pause between two rounds, in the same unit: a minute.
pub(super) const ROUND_PAUSE: u32 = 60;

/// The worker drains; there is no time to wait.
#[derive(Debug)]
pub(super) struct Draining;

/// Doubling waits between a first and a longest one, each with jitter so that many lanes do not
/// come back at the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts with `first`, never above `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The same after so many failures.
    pub fn after(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// The next wait: between half and the whole of the doubled time.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        doubled
            .min(self.longest)
            .mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Failures so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Attempts with growing pauses, and an end.
pub(super) struct Retry {
    backoff: Backoff,
    most: u32,
}

impl Retry {
    /// No attempt yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            most: settings.retry_attempts,
        }
    }

    /// The number of the present attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.backoff.failures().saturating_add(1)
    }

    /// After a failed attempt: waits for the time of the next one; false if there is none.
    pub fn again(&mut self, clock: &Clock<'_>) -> Result<bool, Draining> {
        if self.attempt() >= self.most {
            return Ok(false);
        }
        clock.wait(self.backoff.next_wait())?;
        Ok(true)
    }
}

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
    pub fn wait(&mut self, why: &QueueError, clock: &Clock<'_>) -> Result<(), Draining> {
        clock.wait(self.failed(why))
    }

    /// Notes a failure and waits before the next try. A worker that drains makes some tries more,
    /// then there is none.
    pub fn insist(&mut self, why: &QueueError, clock: &Clock<'_>) -> Result<(), Draining> {
        let pause = self.failed(why);
        if clock.is_draining() {
            self.late += 1;
        }
        if self.late > self.most_late {
            return Err(Draining);
        }
        clock.insist(pause);
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
    fn waits_double_up_to_the_longest_and_start_over_after_a_success() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.next_wait();
            let expected = Duration::from_millis(expected);
            assert!(
                wait <= expected && wait >= expected / 2,
                "{wait:?} for {expected:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() <= first);
        for (failures, expected) in [(0, 100), (2, 400), (u32::MAX, 5000)] {
            let wait = Backoff::new(first, longest).after(failures).next_wait();
            let expected = Duration::from_millis(expected);
            assert!(wait <= expected && wait >= expected / 2, "{wait:?}");
        }
    }

    #[test]
    fn lanes_that_wait_as_often_do_not_come_back_together() {
        let waits: Vec<f64> = (0..1000)
            .map(|_| {
                let second = Duration::from_secs(1);
                Backoff::new(second, second).next_wait().as_secs_f64()
            })
            .collect();
        // Anywhere between half of the time and the whole.
        for tenth in 5..10 {
            let from = f64::from(tenth) / 10.0;
            let is_there = |wait: &f64| (from..from + 0.1).contains(wait);
            let count = waits.iter().filter(|wait| is_there(wait)).count();
            assert!(count > 100, "{count} of 1000 from {from} s on");
        }
    }

    #[test]
    fn a_very_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
        for _ in 0..100_000 {
            assert!(backoff.next_wait() <= Duration::from_secs(1));
        }
    }

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

    #[test]
    fn a_worker_that_drains_makes_so_many_tries_more_and_no_other() {
        let set = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_ATTEMPTS", "3"),
        ];
        let settings = super::super::shared::tests::settings(&set);
        let mut outage = Outage::new("Redis", &settings, &Arc::default());
        let (hold, drain) = crossbeam_channel::bounded(0);
        let clock = Clock::idle(&drain, None);
        let mut insists = || outage.insist(&QueueError::Closed, &clock).is_ok();
        assert!([(); 5].map(|()| insists()).iter().all(|more| *more));
        drop(hold);
        assert_eq!(
            [(); 5].map(|()| insists()),
            [true, true, true, false, false]
        );
    }

    #[test]
    fn attempts_are_counted_from_one_and_end_with_the_last() {
        let set = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_ATTEMPTS", "3"),
        ];
        let mut retry = Retry::new(&super::super::shared::tests::settings(&set));
        let drain = crossbeam_channel::never();
        let clock = Clock::idle(&drain, None);
        for (attempt, more) in [(1, true), (2, true), (3, false), (3, false)] {
            assert_eq!(retry.attempt(), attempt);
            assert_eq!(retry.again(&clock).ok(), Some(more), "{attempt}");
        }
        let (hold, drain) = crossbeam_channel::bounded(0);
        drop(hold);
        let mut retry = Retry::new(&super::super::shared::tests::settings(&set));
        assert!(retry.again(&Clock::idle(&drain, None)).is_err());
    }
}
