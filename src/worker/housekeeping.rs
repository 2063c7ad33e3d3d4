//! What a worker's main thread does while the lanes work.
//!
//! It beats on the scoreboard, wakes idle lanes in a drain or when the monitor stops watching the
//! ingress lists for them, recycles a worker that has grown too large, and renews the lease on the
//! instance's name when the monitor does not.
//!
//! The monitor renews that lease every third of its time to live, and shows it on the scoreboard. If
//! it is frozen, dead or busy, the first worker that notices renews the lease over a connection of its own,
//! and closes that as soon as somebody else renews it again. So a frozen monitor costs nothing as long as a
//! worker lives.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use super::shared::{SharedState, spread};
use crate::procfs;
use crate::queue::{Queue, QueueError};
use crate::scoreboard::Slot;
use crate::settings::Settings;
use crate::storage::share_latest_refusal;
use crate::sys;

/// The longest that connecting, or one command, may take for the lease.
const LEASE_LIMIT: Duration = Duration::from_secs(1);

/// How often the main thread checks whether the monitor watches the ingress lists.
const LOOK: Duration = Duration::from_millis(200);

/// How often a drain wakes the lanes that wait: one may have been about to wait.
const WAKE_PAUSE: Duration = Duration::from_millis(20);

/// How long lanes get to end their wait in a drain.
const WAKE_TIME: Duration = Duration::from_secs(1);

/// Does the main thread's work until all lanes have ended or, in a drain, only wait.
pub(super) fn run(
    shared: &SharedState,
    renewal: LeaseRenewal,
    draining: &Receiver<()>,
    all_done: &Receiver<()>,
) {
    let mut housekeeping = Housekeeping::new(shared, renewal);
    loop {
        select! {
            recv(all_done) -> _ => return,
            recv(draining) -> _ => break,
            default(LOOK.min(housekeeping.heartbeat.every)) => housekeeping.do_what_is_due(),
        }
    }
    let (begun, mut waker) = (Instant::now(), shared.wakeup.waker());
    loop {
        if begun.elapsed() < WAKE_TIME {
            shared.wakeup.wake_all_with(&mut waker);
        } else if shared.wakeup.all_wait_or_have_ended() {
            return;
        }
        if all_done.recv_timeout(WAKE_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        housekeeping.do_what_is_due();
    }
}

/// A timer for something that is done at intervals.
struct Due {
    every: Duration,
    last: Instant,
}

impl Due {
    fn every(every: Duration) -> Self {
        let last = Instant::now();
        Self { every, last }
    }

    /// Whether it is due; if so, the interval starts again.
    fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= self.every;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

/// What the main thread does at intervals.
struct Housekeeping<'a> {
    shared: &'a SharedState,
    /// The most memory that the worker may use.
    max_rss: Option<u64>,
    heartbeat: Due,
    renewal: LeaseRenewal,
    lease: Due,
    was_watched: bool,
    /// The version of the pauses in force.
    pauses: u64,
}

impl<'a> Housekeeping<'a> {
    fn new(shared: &'a SharedState, renewal: LeaseRenewal) -> Self {
        Self {
            max_rss: shared.settings.worker_max_rss.map(spread),
            heartbeat: Due::every(shared.settings.beat()),
            lease: Due::every(renewal.interval()),
            renewal,
            was_watched: false,
            pauses: shared.pauses.version(),
            shared,
        }
    }

    fn do_what_is_due(&mut self) {
        let shared = self.shared;
        let is_watched = shared.wakeup.is_watched();
        if std::mem::replace(&mut self.was_watched, is_watched) && !is_watched {
            log::debug!("the monitor does not watch the ingress lists, idle lanes look themselves");
            shared.wakeup.wake_all();
        }
        // After a resume: nobody watches the queues of storages, whose backlog may be claimed again. Before the first
        // version, the lanes have read the pauses themselves.
        let pauses = shared.pauses.version();
        if std::mem::replace(&mut self.pauses, pauses) != pauses && pauses > 1 {
            shared.wakeup.wake_all();
        }
        // Storages that have connections to spare learn that other processes want some.
        share_latest_refusal(shared.slot.exchange_refusal(share_latest_refusal(0)));
        // This takes far less time than the supervisor allows a worker to be silent.
        if self.lease.is_due() && self.renewal.is_due() {
            self.renewal.renew();
        }
        if !self.heartbeat.is_due() {
            return;
        }
        shared.slot.beat();
        let size = self.max_rss.and_then(|_| procfs::own_resident_set_size());
        if let (Some(most), Some(size)) = (self.max_rss, size)
            && size > most
        {
            let megabytes = size >> 20;
            shared.recycle(&format!("it uses {megabytes} MB of memory"));
        }
    }
}

/// Beats on the scoreboard while `work` runs, which may have to wait for a server.
pub(super) fn with_heartbeat<T>(
    slot: &Slot,
    settings: &Settings,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    let (done, is_done) = bounded::<()>(0);
    let beat: Duration = settings.beat();
    thread::scope(|scope| {
        let beat_on = move || {
            while is_done.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                slot.beat();
            }
        };
        thread::Builder::new().spawn_scoped(scope, beat_on)?;
        let result = work();
        drop(done);
        Ok(result)
    })
}

/// The lease on the instance's name, which this worker renews if nobody else does.
pub(super) struct LeaseRenewal {
    slot: Slot,
    queue: Queue,
    ttl: Duration,
    /// When this worker last renewed the lease, as long as nobody else has since then.
    own: Option<u64>,
    /// Whether the log says that this worker renews it.
    is_logged: bool,
}

/// What to do about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseStep {
    /// Nothing: it was renewed in time.
    Wait,
    /// Renew it: nobody has.
    Renew,
    /// Stop renewing it: somebody else has.
    Leave,
}

/// Decides at `now` about a lease that was renewed at `last`, by this worker if `own` is the same.
fn lease_step(last: u64, own: Option<u64>, now: u64, ttl: Duration) -> LeaseStep {
    // The monitor may be a little late.
    let due = match own {
        Some(_) => ttl / 3,
        None => ttl / 3 + ttl / 12,
    };
    if u128::from(now.saturating_sub(last)) > due.as_millis() {
        LeaseStep::Renew
    } else if own.is_some_and(|own| own != last) {
        LeaseStep::Leave
    } else {
        LeaseStep::Wait
    }
}

impl LeaseRenewal {
    /// Watches a lease that expires after `ttl`; nothing else uses `queue`.
    pub fn new(slot: Slot, queue: Queue, ttl: Duration) -> Self {
        Self {
            slot,
            queue: queue.with_time_limit(LEASE_LIMIT.min(ttl / 3)),
            ttl,
            own: None,
            is_logged: false,
        }
    }

    /// The longest time between two calls of [`LeaseRenewal::is_due`].
    fn interval(&self) -> Duration {
        self.ttl / 6
    }

    /// Whether this worker must renew the lease now. Closes the connection if others renew it.
    fn is_due(&mut self) -> bool {
        let last = self.slot.lease_renewed();
        match lease_step(last, self.own, sys::monotonic_ms(), self.ttl) {
            LeaseStep::Wait => false,
            LeaseStep::Renew => true,
            LeaseStep::Leave => {
                self.own = None;
                self.queue.disconnect();
                if std::mem::take(&mut self.is_logged) {
                    log::info!("others renew the lease again, this worker stops renewing it");
                }
                false
            }
        }
    }

    /// Renews the lease.
    fn renew(&mut self) {
        // Before the request: the server counts from later.
        let now = sys::monotonic_ms();
        let last = self.slot.lease_renewed();
        match self.queue.take_lease() {
            Ok(()) => {
                self.slot.note_lease(now);
                self.own = Some(now);
                // At the start, the monitor may only be slower than this worker.
                if last > 0 && !std::mem::replace(&mut self.is_logged, true) {
                    let seconds = now.saturating_sub(last) as f64 / 1e3;
                    log::warn!(
                        "the monitor has not renewed the lease for {seconds:.1} s, this worker renews it"
                    );
                }
            }
            // The monitor ends the daemon if another one has its name, and logs if Redis is unavailable.
            Err(error) => {
                if !matches!(error, QueueError::InUse { .. }) {
                    self.queue.disconnect();
                }
                log::debug!("could not renew the lease: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_due_once_in_each_interval() {
        let mut due = Due::every(Duration::from_secs(3600));
        assert!(!due.is_due());
        due.every = Duration::from_millis(1);
        thread::sleep(due.every);
        assert!(due.is_due());
        due.every = Duration::from_secs(3600);
        assert!(!due.is_due());
    }

    #[test]
    fn a_worker_renews_what_nobody_has_renewed_and_leaves_it_to_others_that_do() {
        let ttl = Duration::from_secs(12);
        for (last, own, now, expected) in [
            (10_000, None, 14_000, LeaseStep::Wait),
            (10_000, None, 15_000, LeaseStep::Wait),
            (10_000, None, 15_001, LeaseStep::Renew),
            (0, None, 100_000, LeaseStep::Renew),
            (10_000, Some(10_000), 14_000, LeaseStep::Wait),
            (10_000, Some(10_000), 14_001, LeaseStep::Renew),
            (12_000, Some(10_000), 14_001, LeaseStep::Leave),
            (12_000, Some(10_000), 16_001, LeaseStep::Renew),
            (20_000, None, 10_000, LeaseStep::Wait),
        ] {
            let found = lease_step(last, own, now, ttl);
            assert_eq!(found, expected, "{last} {own:?} {now}");
        }
    }
}
