//! When a worker that died is started again.

use std::time::Duration;

use crate::backoff::Backoff;

/// A worker that lived this long is taken for healthy: its next death counts as the first.
const HEALTHY: Duration = Duration::from_secs(5);

/// The wait before the second start in a row; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The quick deaths of one worker in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restarts {
    has_died: bool,
    backoff: Backoff,
}

/// A worker's life, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// How long it was.
    pub lived: Duration,
    /// Whether it got anything done: then a short life is no sign that the next will be too.
    pub useful: bool,
}

impl Restarts {
    /// None yet; no wait will be longer than `longest`, nor longer than half a minute.
    pub fn none(longest: Duration) -> Self {
        Self {
            has_died: false,
            backoff: Backoff::new(FIRST_WAIT, longest.min(LONGEST_WAIT)),
        }
    }

    /// Notes a death, and answers how long to wait before the next start: nothing the first time,
    /// then doubling times while the worker keeps dying young with nothing done. `jitter`,
    /// between 0 and 1, spreads the waits over their upper half.
    pub fn after_death(&mut self, life: Life, jitter: f64) -> Duration {
        if life.lived >= HEALTHY || life.useful {
            self.has_died = false;
            self.backoff.reset();
        }
        if std::mem::replace(&mut self.has_died, true) {
            self.backoff.next_wait_with(jitter)
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(lives: &[(f64, bool)]) -> Vec<u128> {
        waits_up_to(Duration::MAX, lives, 1.0)
    }

    fn waits_up_to(longest: Duration, lives: &[(f64, bool)], jitter: f64) -> Vec<u128> {
        let mut restarts = Restarts::none(longest);
        let wait = |(lived, useful): &(f64, bool)| {
            let life = Life {
                lived: Duration::from_secs_f64(*lived),
                useful: *useful,
            };
            restarts.after_death(life, jitter)
        };
        lives
            .iter()
            .map(wait)
            .map(|wait| wait.as_millis())
            .collect()
    }

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_is_slowed_down() {
        assert_eq!(waits(&[(0.0, false); 5]), [0, 100, 200, 400, 800]);
        assert_eq!(waits(&[(0.1, false); 40])[39], 30_000);
    }

    #[test]
    fn jitter_takes_away_up_to_half_of_a_wait() {
        let duds = [(0.0, false); 5];
        for (jitter, expected) in [(0.0, [0, 50, 100, 200, 400]), (0.5, [0, 75, 150, 300, 600])] {
            assert_eq!(waits_up_to(Duration::MAX, &duds, jitter), expected);
        }
    }

    #[test]
    fn no_wait_is_longer_than_this_child_may_be_missing() {
        let waits = waits_up_to(Duration::from_secs(1), &[(0.0, false); 40], 1.0);
        assert_eq!(waits[..6], [0, 100, 200, 400, 800, 1000]);
        assert_eq!(waits[39], 1000);
    }

    #[test]
    fn a_worker_that_stayed_up_or_did_its_work_is_restarted_at_once_again() {
        let (dud, stayed, worked) = ((0.0, false), (6.0, false), (0.1, true));
        assert_eq!(waits(&[dud, dud, dud, stayed, dud]), [0, 100, 200, 0, 100]);
        assert_eq!(waits(&[dud, dud, worked, worked, dud]), [0, 100, 0, 0, 100]);
    }
}
