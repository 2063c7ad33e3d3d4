//! The lease on the instance's name, renewed by a worker if the monitor does not.
//!
//! The monitor renews the lease every third of its time to live, and shows that on the scoreboard.
//! If it is frozen, dead or busy, the first worker that notices renews the lease over a connection
//! of its own, which it closes as soon as somebody else does it again: so a frozen monitor costs
//! nothing as long as a worker lives, and an idle daemon has no connection more for it.

use std::time::Duration;

use crate::queue::{Queue, QueueError};
use crate::scoreboard::Slot;
use crate::sys;

/// The longest that connecting, or one command, may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Renews the lease if nobody else does.
pub(super) struct Renewal {
    slot: Slot,
    queue: Queue,
    ttl: Duration,
    /// When this worker last renewed the lease, as long as nobody else has since then.
    own: Option<u64>,
    /// Whether the log says that this worker does it.
    told: bool,
}

/// What there is to do about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Somebody has renewed it in time.
    Wait,
    /// It is old: renew it.
    Renew,
    /// Somebody else has renewed it: leave it to them.
    Leave,
}

/// Decides at `now` about a lease that was renewed at `last`, by this worker if that is `own`.
fn step(last: u64, own: Option<u64>, now: u64, ttl: Duration) -> Step {
    // The monitor may be a little late.
    let due = match own {
        Some(_) => ttl / 3,
        None => ttl / 3 + ttl / 12,
    };
    if u128::from(now.saturating_sub(last)) > due.as_millis() {
        Step::Renew
    } else if own.is_some_and(|own| own != last) {
        Step::Leave
    } else {
        Step::Wait
    }
}

impl Renewal {
    /// Of a lease that lives so long without being renewed; `queue` is for this alone.
    pub fn new(slot: Slot, queue: Queue, ttl: Duration) -> Self {
        Self {
            slot,
            queue: queue.with_time_limit(LIMIT.min(ttl / 3)),
            ttl,
            own: None,
            told: false,
        }
    }

    /// How long to wait between two looks at most.
    pub fn interval(&self) -> Duration {
        self.ttl / 6
    }

    /// Whether the lease is to be renewed now; closes the connection if others have done it.
    pub fn is_due(&mut self) -> bool {
        let last = self.slot.lease_renewed();
        match step(last, self.own, sys::monotonic_ms(), self.ttl) {
            Step::Wait => false,
            Step::Renew => true,
            Step::Leave => {
                self.own = None;
                self.queue.disconnect();
                if std::mem::take(&mut self.told) {
                    log::info!("others renew the lease again, this worker stops doing it");
                }
                false
            }
        }
    }

    /// Renews the lease.
    pub fn renew(&mut self) {
        // Before the request: the server counts from later.
        let now = sys::monotonic_ms();
        let last = self.slot.lease_renewed();
        match self.queue.take_lease() {
            Ok(()) => {
                self.slot.note_lease(now);
                self.own = Some(now);
                // At the start, the monitor may only be slower than this worker.
                if last > 0 && !std::mem::replace(&mut self.told, true) {
                    let seconds = now.saturating_sub(last) as f64 / 1e3;
                    log::warn!(
                        "the monitor has not renewed the lease for {seconds:.1} s, this worker does"
                    );
                }
            }
            // The monitor ends the daemon if another one has its name, and says if Redis is away.
            Err(error) => {
                if !matches!(error, QueueError::InUse { .. }) {
                    self.queue.disconnect();
                }
                log::debug!("this worker could not renew the lease: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_renews_what_nobody_has_renewed_and_leaves_it_to_others_that_do() {
        let ttl = Duration::from_secs(12);
        for (last, own, now, expected) in [
            (10_000, None, 14_000, Step::Wait),
            (10_000, None, 15_000, Step::Wait),
            (10_000, None, 15_001, Step::Renew),
            (0, None, 100_000, Step::Renew),
            (10_000, Some(10_000), 14_000, Step::Wait),
            (10_000, Some(10_000), 14_001, Step::Renew),
            (12_000, Some(10_000), 14_001, Step::Leave),
            (12_000, Some(10_000), 16_001, Step::Renew),
            (20_000, None, 10_000, Step::Wait),
        ] {
            let found = step(last, own, now, ttl);
            assert_eq!(found, expected, "{last} {own:?} {now}");
        }
    }
}
