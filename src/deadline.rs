//! The deadline of work on a vCon, and the time limit that it leaves for one call.
//!
//! A chain's `timeout` becomes a [`Deadline`] that is handed down to every link and storage. Each call
//! to a server or program gets the shorter of its own limit and what is left:
//!
//! ```text
//! chain    ├────────────── timeout ──────────────┤
//! calls    ├─ own limit ─┤ ├─ own limit ─┤ ├─────┤ what is left, but at least a second
//! ```
//!
//! A call that runs into the deadline is a transient failure of that server or program. No worker is killed
//! for it, and it does not count against the vCon.

use std::fmt;
use std::time::{Duration, Instant};

/// What a call gets even if nothing is left: a server that works answers within it.
const LEAST_PER_CALL: Duration = Duration::from_secs(1);

/// System calls take a limit of zero for no limit.
const SHORTEST: Duration = Duration::from_millis(1);

/// When work on a vCon must be done; never, if its chain has no `timeout`.
///
/// The time of a wait for a server does not count, not even of a wait inside a call. The lane's clock sees to
/// that: it notes what is left before a call, and after a transient failure (and after every pause) goes on
/// with [`Deadline::after`] of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NONE: Self = Self(None);

    /// The deadline at the end of this time; none without a limit.
    pub fn after(limit: Option<Duration>) -> Self {
        // A limit too long to be counted is none.
        Self(limit.and_then(|limit| Instant::now().checked_add(limit)))
    }

    /// A deadline at this instant, if there is one.
    pub const fn at(end: Option<Instant>) -> Self {
        Self(end)
    }

    /// The same, so much later.
    pub fn later_by(self, time: Duration) -> Self {
        Self(self.0.and_then(|end| end.checked_add(time)))
    }

    /// The time that is left; `None` without a deadline.
    pub fn left(self) -> Option<Duration> {
        let end = self.0?;
        Some(end.saturating_duration_since(Instant::now()))
    }

    /// The shorter of a call's own limit and what is left, at least one second.
    pub fn limit(self, own: Duration) -> Duration {
        self.begin(own).time()
    }

    /// The same for a call of several steps that begins now.
    pub fn begin(self, own: Duration) -> Limit {
        let left = self.left().map(|left| left.max(LEAST_PER_CALL));
        let chain = left.filter(|left| *left < own);
        Limit {
            begun: Instant::now(),
            time: chain.unwrap_or(own),
            is_the_chains: chain.is_some(),
        }
    }
}

/// The time limit of a call that has begun. Shown as the end of "no answer within".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    begun: Instant,
    time: Duration,
    is_the_chains: bool,
}

impl Limit {
    /// The limit of the whole call.
    pub fn time(self) -> Duration {
        self.time
    }

    /// What is left for the next step; never nothing.
    pub fn left(self) -> Duration {
        self.time.saturating_sub(self.begun.elapsed()).max(SHORTEST)
    }

    /// Whether nothing is left.
    pub fn is_over(self) -> bool {
        self.begun.elapsed() >= self.time
    }

    /// Whether the chain's timeout leaves the call less than its own limit.
    pub fn is_the_chains(self) -> bool {
        self.is_the_chains
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_the_chains {
            let time = self.time.as_secs_f64();
            write!(f, "{time:.1} s, what was left of the chain's timeout")
        } else {
            write!(f, "{:?}", self.time)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_call_gets_the_shorter_of_its_own_limit_and_what_is_left() {
        let long = Deadline::after(Some(60 * SECOND));
        assert_eq!(long.limit(30 * SECOND), 30 * SECOND);
        assert!(!long.begin(30 * SECOND).is_the_chains());
        let cut = long.limit(90 * SECOND);
        assert!(cut <= 60 * SECOND && cut > 50 * SECOND, "{cut:?}");
        assert!(long.begin(90 * SECOND).is_the_chains());
        assert_eq!(Deadline::NONE.limit(90 * SECOND), 90 * SECOND);
        assert_eq!(Deadline::NONE.left(), None);
        assert_eq!(Deadline::after(None), Deadline::NONE);
        assert_eq!(Deadline::after(Some(Duration::MAX)), Deadline::NONE);
    }

    #[test]
    fn a_deadline_that_has_passed_leaves_a_second() {
        let now = Instant::now();
        let passed = Deadline::at(Some(now));
        assert_eq!(passed.left(), Some(Duration::ZERO));
        assert_eq!(passed.limit(30 * SECOND), SECOND);
        // But no more than the call takes by itself.
        assert_eq!(passed.limit(SECOND / 10), SECOND / 10);
    }

    #[test]
    fn the_steps_of_a_call_share_its_limit() {
        let mut limit = Deadline::NONE.begin(30 * SECOND);
        assert!(limit.left() <= 30 * SECOND && limit.left() > 20 * SECOND);
        assert!(!limit.is_over());
        limit.time = Duration::ZERO;
        assert_eq!(limit.left(), SHORTEST);
        assert!(limit.is_over());
    }

    #[test]
    fn a_message_says_whose_limit_it_was() {
        let own = Deadline::NONE.begin(SECOND * 3 / 2).to_string();
        assert_eq!(own, "1.5s");
        let chain = Deadline::at(Some(Instant::now())).begin(30 * SECOND);
        assert_eq!(
            chain.to_string(),
            "1.0 s, what was left of the chain's timeout"
        );
    }
}
