//! What a worker's main thread does while the lanes work.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use super::Renewal;
use super::shared::{Shared, spread};
use crate::procfs;
use crate::scoreboard::Slot;
use crate::settings::Settings;
use crate::storage::share_latest_refusal;

/// How often it is looked whether the ingress lists are watched for the lanes that wait.
const GLANCE: Duration = Duration::from_millis(200);

/// How often lanes that wait are woken in a drain: one may have been about to wait.
const REPEAT: Duration = Duration::from_millis(20);

/// How long lanes are given to end their wait in a drain.
const GRACE: Duration = Duration::from_secs(1);

/// Shows that the worker is alive, renews the lease if the monitor does not, recycles the worker when
/// it has grown too large, and sees to it that lanes do not wait in vain; until all lanes have ended
/// or, in a drain, only wait.
pub(super) fn keep(
    shared: &Shared,
    renewal: Renewal,
    draining: &Receiver<()>,
    all_done: &Receiver<()>,
) {
    let mut house = House::of(shared, renewal);
    loop {
        select! {
            recv(all_done) -> _ => return,
            recv(draining) -> _ => break,
            default(GLANCE.min(house.beat.every)) => house.keep(),
        }
    }
    let (begun, mut waker) = (Instant::now(), shared.wakeup.waker());
    loop {
        if begun.elapsed() < GRACE {
            shared.wakeup.wake_over(&mut waker);
        } else if shared.wakeup.all_wait_or_have_ended() {
            return;
        }
        if all_done.recv_timeout(REPEAT) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        house.keep();
    }
}

/// When something that is done again and again is due.
struct Due {
    every: Duration,
    last: Instant,
}

impl Due {
    fn every(every: Duration) -> Self {
        let last = Instant::now();
        Self { every, last }
    }

    /// Whether it is due; if so, the time begins again.
    fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= self.every;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

/// What the main thread looks after.
struct House<'a> {
    shared: &'a Shared,
    most: Option<u64>,
    beat: Due,
    renewal: Renewal,
    lease: Due,
    was_watched: bool,
}

impl<'a> House<'a> {
    fn of(shared: &'a Shared, renewal: Renewal) -> Self {
        Self {
            most: shared.settings.worker_max_rss.map(spread),
            beat: Due::every(shared.settings.beat()),
            lease: Due::every(renewal.interval()),
            renewal,
            was_watched: false,
            shared,
        }
    }

    fn keep(&mut self) {
        let shared = self.shared;
        let is_watched = shared.wakeup.is_watched();
        if std::mem::replace(&mut self.was_watched, is_watched) && !is_watched {
            log::debug!("nobody watches the ingress lists, idle lanes look by themselves");
            shared.wakeup.wake_all();
        }
        // Who has connections to spare is to know that others want them, in whichever process.
        share_latest_refusal(shared.slot.exchange_refusal(share_latest_refusal(0)));
        // Its requests have a limit well below the time that a worker may be silent.
        if self.lease.is_due() && self.renewal.is_due() {
            self.renewal.renew();
        }
        if !self.beat.is_due() {
            return;
        }
        shared.slot.beat();
        let size = self.most.and_then(|_| procfs::own_resident_set_size());
        if let (Some(most), Some(size)) = (self.most, size)
            && size > most
        {
            let megabytes = size >> 20;
            shared.recycle(&format!("it uses {megabytes} MB of memory"));
        }
    }
}

/// Shows that the worker is alive while `work`, which may have to wait for a server, goes on.
pub(super) fn beating<T>(
    slot: &Slot,
    settings: &Settings,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    let (done, is_done) = bounded::<()>(0);
    let beat: Duration = settings.beat();
    thread::scope(|scope| {
        let beating = move || {
            while is_done.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                slot.beat();
            }
        };
        thread::Builder::new().spawn_scoped(scope, beating)?;
        let result = work();
        drop(done);
        Ok(result)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_due_once_in_its_time() {
        let mut due = Due::every(Duration::from_secs(3600));
        assert!(!due.is_due());
        due.every = Duration::from_millis(1);
        thread::sleep(due.every);
        assert!(due.is_due());
        due.every = Duration::from_secs(3600);
        assert!(!due.is_due());
    }
}
