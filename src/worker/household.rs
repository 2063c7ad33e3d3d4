//! What a worker's main thread does while the lanes work.

use std::io;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::Shared;
use super::renewal::Renewal;
use super::shared::spread;
use crate::procfs;
use crate::scoreboard::Slot;
use crate::settings::Settings;

/// Shows that the worker is alive until all lanes have ended, renews the lease if the monitor does
/// not, and recycles the worker when it has grown too large.
pub(super) fn keep(shared: &Shared, all_done: &Receiver<()>, mut renewal: Renewal) {
    let pause = shared.settings.beat().min(renewal.interval());
    let most = shared.settings.worker_max_rss.map(spread);
    while all_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        shared.slot.beat();
        if renewal.is_due() {
            let renewed = beating(&shared.slot, &shared.settings, || renewal.renew());
            if let Err(error) = renewed {
                log::warn!("no thread could be started, so the lease is not renewed: {error}");
            }
        }
        let size = most.and_then(|_| procfs::own_resident_set_size());
        if let (Some(most), Some(size)) = (most, size)
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
