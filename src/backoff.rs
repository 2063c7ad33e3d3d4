//! The pause between attempts: it doubles with each failure, up to a longest one, and is spread at random.
//!
//! Everything that tries again after a failure waits by this: lanes, probes and replays, the monitor's
//! watch of the ingress lists, its HTTP address and its followers, restarts of workers, refused
//! connections to PostgreSQL. What merely polls for an event that it expects does not.

use std::time::Duration;

/// Doubling pauses between a first and a longest one. Each lasts at least half of that time and is
/// otherwise random, so that many who fail together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts with `first`, never above `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The same after this many failures.
    pub fn after(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// Counts a failure, and returns how long to wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        self.next_wait_with(fastrand::f64())
    }

    /// The same with a given `jitter` from 0 (half of the pause) to 1 (the whole of it).
    pub fn next_wait_with(&mut self, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.longest).mul_f64(0.5 + jitter / 2.0)
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
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
            let expected = Duration::from_millis(expected);
            let wait = |jitter| {
                let mut backoff = Backoff::new(first, longest).after(failures);
                backoff.next_wait_with(jitter)
            };
            assert_eq!([wait(0.0), wait(1.0)], [expected / 2, expected]);
        }
    }

    #[test]
    fn those_that_wait_as_often_do_not_come_back_together() {
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
}
