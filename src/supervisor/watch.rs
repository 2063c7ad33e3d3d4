//! The supervisor's own clock: when to look after everything, and how long it stood still.

use std::time::{Duration, Instant};

/// The supervisor's own clock.
pub(super) struct Watch {
    every: Duration,
    beat: Duration,
    last: Instant,
    due: Instant,
    excused: Duration,
}

impl Watch {
    /// Looks once in `every`; children are expected to show themselves once in `beat`.
    pub fn every(every: Duration, beat: Duration) -> Self {
        let now = Instant::now();
        Self {
            every,
            beat,
            last: now,
            due: now + every,
            excused: Duration::ZERO,
        }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Begins a look, and answers for how much time children are not to be blamed: a supervisor
    /// that was itself stopped, with its machine or its group of processes, must not kill
    /// healthy workers for it. They have until the next look to show themselves.
    pub fn begin(&mut self) -> Duration {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.due);
        self.excused = if late > self.beat {
            now.saturating_duration_since(self.last)
        } else {
            Duration::ZERO
        };
        self.last = now;
        self.due = now + self.every;
        self.excused
    }

    /// Looks earlier than usual, where something is due then.
    pub fn no_later_than(&mut self, due: Instant) {
        self.due = self.due.min(due);
    }

    pub fn beat(&self) -> Duration {
        self.beat
    }

    pub fn interval(&self) -> Duration {
        self.every
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_in_time_excuses_nobody_and_a_late_one_everybody() {
        let (every, beat) = (Duration::from_millis(20), Duration::from_millis(20));
        let mut watch = Watch::every(every, beat);
        assert_eq!(watch.begin(), Duration::ZERO);
        std::thread::sleep(every + beat + Duration::from_millis(20));
        assert!(watch.is_due());
        assert!(watch.begin() >= every + beat);
    }
}
