//! Waiting longer after each failure in a row.

use std::time::Duration;

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
    }

    #[test]
    fn a_very_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
        for _ in 0..100_000 {
            assert!(backoff.next_wait() <= Duration::from_secs(1));
        }
    }
}
