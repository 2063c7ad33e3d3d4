//! When a worker that died is started again.

use std::time::Duration;

/// A worker that lived this long is taken for healthy: its next death counts as the first.
const HEALTHY: Duration = Duration::from_secs(5);

/// The wait before the second start in a row; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The quick deaths of one worker in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Restarts {
    quick_deaths: u32,
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
    /// Notes a death, and answers how long to wait before the next start: nothing the first time,
    /// then doubling times while the worker keeps dying young with nothing done. `jitter`,
    /// between 0 and 1, spreads the waits over their upper half.
    pub fn after_death(&mut self, life: Life, jitter: f64) -> Duration {
        if life.lived >= HEALTHY || life.useful {
            self.quick_deaths = 0;
        }
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        match self.quick_deaths {
            1 => Duration::ZERO,
            deaths => FIRST_WAIT
                .saturating_mul(1 << (deaths - 2).min(20))
                .min(LONGEST_WAIT)
                .mul_f64(0.5 + jitter / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(lives: &[(f64, bool)]) -> Vec<u128> {
        let mut restarts = Restarts::default();
        let wait = |(lived, useful): &(f64, bool)| {
            let life = Life {
                lived: Duration::from_secs_f64(*lived),
                useful: *useful,
            };
            restarts.after_death(life, 1.0)
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
    fn a_worker_that_stayed_up_or_did_its_work_is_restarted_at_once_again() {
        let (dud, stayed, worked) = ((0.0, false), (6.0, false), (0.1, true));
        assert_eq!(waits(&[dud, dud, dud, stayed, dud]), [0, 100, 200, 0, 100]);
        assert_eq!(waits(&[dud, dud, worked, worked, dud]), [0, 100, 0, 0, 100]);
    }
}
