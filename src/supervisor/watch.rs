//! The supervisor's own clock: when to look after everything, and when it stood still itself.

use std::time::{Duration, Instant};

use crate::sys;

/// How many standstills are remembered.
const REMEMBERED: usize = 16;

/// The supervisor's own clock.
pub(super) struct Watch {
    every: Duration,
    beat: Duration,
    due: Instant,
    standstills: Standstills,
}

/// Times in which the supervisor did not run, and so, it must be assumed, nobody of its group
/// did: stopped by a debugger, by a frozen control group, by a machine without a breath.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standstills(Vec<(u64, Duration)>);

impl Standstills {
    /// How much of the time since `then`, in monotonic milliseconds, nobody is to be blamed for.
    pub fn since(&self, then: u64) -> Duration {
        let later = self.0.iter().filter(|(at, _)| *at >= then);
        later.map(|(_, length)| *length).sum()
    }

    /// Notes one that has just ended.
    pub fn note(&mut self, now: u64, length: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push((now, length));
    }
}

impl Watch {
    /// Looks once in `every`; children are expected to show themselves once in `beat`.
    pub fn every(every: Duration, beat: Duration) -> Self {
        Self {
            every,
            beat,
            due: Instant::now() + every,
            standstills: Standstills::default(),
        }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Begins a look. One that comes much too late was held up together with everyone else.
    pub fn begin(&mut self) {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.due);
        if late > self.beat {
            self.standstills.note(sys::monotonic_ms(), late);
        }
        self.due = now + self.every;
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

    pub fn standstills(&self) -> &Standstills {
        &self.standstills
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_look_that_comes_late_notes_a_standstill() {
        let (every, beat) = (Duration::from_millis(20), Duration::from_millis(20));
        let mut watch = Watch::every(every, beat);
        watch.begin();
        assert_eq!(watch.standstills().since(0), Duration::ZERO);
        std::thread::sleep(every + beat + Duration::from_millis(20));
        assert!(watch.is_due());
        watch.begin();
        assert!(watch.standstills().since(0) >= beat);
    }

    #[test]
    fn standstills_count_for_what_began_before_them() {
        let mut standstills = Standstills::default();
        standstills.note(1_000, Duration::from_secs(1));
        standstills.note(5_000, Duration::from_secs(2));
        let since = |then| standstills.since(then).as_secs();
        assert_eq!([since(500), since(2_000), since(5_001)], [3, 2, 0]);
        for at in 0..100 {
            standstills.note(10_000 + at, Duration::from_secs(1));
        }
        assert_eq!(standstills.since(0).as_secs(), REMEMBERED as u64);
    }
}
