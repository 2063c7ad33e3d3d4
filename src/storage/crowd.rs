//! Whether any process of this daemon lately wanted a connection that its server had no room for.
//!
//! Connections are not told apart across processes: who has some to spare closes them while this is so.
//! The worker hands the time to the others of the daemon, and brings theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys;

/// Who is refused tries again before this is over.
const FRESH: Duration = Duration::from_secs(4);

/// When that last happened, as far as this process knows, in monotonic milliseconds; 0: never.
static LAST: AtomicU64 = AtomicU64::new(0);

/// This process was refused a connection, because there are too many.
pub(super) fn note_refused() {
    exchange(sys::monotonic_ms());
}

/// Takes over when another process was last refused, and returns the latest time that is known.
pub fn exchange(known_elsewhere: u64) -> u64 {
    LAST.fetch_max(known_elsewhere, Ordering::Relaxed)
        .max(known_elsewhere)
}

/// Whether somebody wants what this process has to spare.
pub(super) fn is_crowded() -> bool {
    is_fresh(LAST.load(Ordering::Relaxed), sys::monotonic_ms())
}

fn is_fresh(last: u64, now: u64) -> bool {
    last > 0 && Duration::from_millis(now.saturating_sub(last)) < FRESH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_for_some_seconds() {
        let fresh = u64::try_from(FRESH.as_millis()).unwrap_or_default();
        for (last, now, expected) in [
            (0, 0, false),
            (0, 1, false),
            (10_000, 10_000, true),
            (10_000, 9_990, true),
            (10_000, 10_000 + fresh - 1, true),
            (10_000, 10_000 + fresh, false),
        ] {
            assert_eq!(is_fresh(last, now), expected, "{last} {now}");
        }
    }

    #[test]
    fn the_latest_time_of_all_processes_counts() {
        let known = exchange(1);
        assert!(known >= 1);
        note_refused();
        let ours = exchange(0);
        assert!(ours > known || ours >= 1);
        assert_eq!(exchange(ours + 5), ours + 5);
        assert_eq!(exchange(ours), ours + 5);
    }
}
