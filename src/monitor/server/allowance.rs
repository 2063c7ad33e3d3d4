//! How many connections may be taken in a time, so that whoever makes many costs the workers next
//! to nothing.

use std::time::{Duration, Instant};

/// Connections that may be taken in a second, one after the other,
const PER_SECOND: f64 = 500.0;

/// and at once, after some quiet: much fewer than there may be at a time, so that nobody loses a
/// place before there was time to ask something.
const AT_ONCE: f64 = 32.0;

/// So many are waited for, where there is none, so that nobody is woken for each.
const SOME: f64 = 8.0;

/// What is left to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE,
            at: now,
        }
    }

    /// Whether one may be taken now.
    pub fn has_one(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.left = (self.left + grown).min(AT_ONCE);
        self.at = now;
        self.left >= 1.0
    }

    /// Takes it.
    pub fn take_one(&mut self) {
        self.left -= 1.0;
    }

    /// When there are some again, at a time at which there is none.
    pub fn next(&self) -> Instant {
        let missing = (SOME - self.left).max(0.0);
        self.at + Duration::from_secs_f64(missing / PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_at_once_and_then_so_many_in_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut taken_at = |now| {
            let is_taken = |_: &i32| {
                let has_one = allowance.has_one(now);
                if has_one {
                    allowance.take_one();
                }
                has_one
            };
            (0..1000).filter(is_taken).count()
        };
        assert_eq!(taken_at(start), 32);
        assert_eq!(taken_at(start + Duration::from_millis(41)), 20);
        let later = start + Duration::from_secs(3600);
        assert_eq!(taken_at(later), 32);
        let next = allowance.next();
        assert!(next > later);
        assert!(allowance.has_one(next + Duration::from_micros(1)));
    }
}
