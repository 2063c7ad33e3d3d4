//! One worker process: its lanes and the drain.
//!
//! ```text
//! main thread ── shows that the worker is alive, renews the lease if the monitor does not, recycles
//!   │            the worker, ends the waits of idle lanes in a drain
//!   ├─ signals ── SIGTERM or SIGINT drops the drain channel's sender
//!   ├─ lane 1 ┐ claim ─► load ─► links ─► storages ─► finish, until the drain
//!   │    │    │   └─ nothing there: BLPOP on the wake list, to which the monitor adds
//!   │    └─ store-… ── save beside it, one for each storage but one
//!   └─ lane N ┘
//! ```
//!
//! To follow one vCon: `lane` claims it and waits when there is nothing; `pipeline` takes it through
//! its `links` and `storages` and finishes it, with the `job` that holds its document and its `progress`;
//! `release` says how a claim ends that did not get there. Beside that way stand the pauses and
//! attempts (`retry`), the backends that fail (`circuit_breaker`) or refuse (`refusals`), the suspects (`quarantine`) and
//! the time of a chain (`clock`).

mod circuit_breaker;
mod clock;
mod current;
mod fault;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod household;
mod job;
mod lane;
mod links;
mod meters;
mod modules;
mod next_claim;
mod pipeline;
mod progress;
mod quarantine;
mod recover;
mod refusals;
mod release;
mod renewal;
mod retry;
mod shared;
mod storages;
mod wakeup;

use std::process;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;

pub use meters::count_poison;
pub use recover::{report as report_recovered, run as recover};
pub use retry::Backoff;

use crate::child::{Child, Leftover};
use crate::config::Config;
use crate::exit::Exit;
use crate::queue::{
    Expiry, LaneId, NameLease, Queue, QueueError, RecoveredClaim, RequestBatcher, Server,
};
use crate::scoreboard::Slot;
use crate::settings::Settings;
use clock::Clock;
use lane::Lane;
use meters::Meters;
use renewal::Renewal;
use shared::Shared;
use wakeup::Wakeup;

/// What a worker is to do.
#[derive(Debug, Clone)]
pub struct Duty {
    /// Its number, and what the last worker of that number left behind.
    pub predecessor: Leftover,
    /// Whether it also returns the claims of workers with higher numbers than this.
    pub sweep_above: Option<u32>,
    /// The number of the configuration it begins with.
    pub config_generation: u64,
}

/// Does a worker's whole work in this process: returns when it has drained.
pub fn run(
    child: Child,
    duty: Duty,
    settings: Settings,
    config: Arc<Config>,
    lease: NameLease,
) -> Exit {
    let name = child.name.clone();
    let Some(slot) = child.slot.clone() else {
        log::error!("{name} has no slot on the scoreboard");
        return Exit::Internal;
    };
    match start_lanes(child, duty, settings, config, slot, lease) {
        Ok(true) => Exit::Ok,
        Ok(false) => Exit::ClaimsLeft,
        Err(error) => {
            log::error!("{name} could not start: {error}");
            Exit::Internal
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Works until the drain. False where a claim may be left that no lane knows of.
fn start_lanes(
    child: Child,
    duty: Duty,
    settings: Settings,
    config: Arc<Config>,
    slot: Slot,
    lease: NameLease,
) -> Result<bool, StartError> {
    crate::link::appoint_warden();
    let server = Server::new(&settings.redis_url).map_err(QueueError::from)?;
    let expiry = Expiry::of(&settings);
    // What a single lane asks has nobody to wait for.
    let exchange = (settings.concurrency > 1).then(|| Arc::new(RequestBatcher::default()));
    let queue = |lane| {
        let seat = LaneId {
            instance: settings.instance.clone(),
            worker: duty.predecessor.worker,
            lane,
        };
        let queue = Queue::new(server.clone(), seat, expiry, lease.clone());
        match &exchange {
            Some(exchange) => queue.sharing(Arc::clone(exchange)),
            None => queue,
        }
    };
    let draining = child.draining.clone();
    let mut first = queue(1);
    let clock = Clock::idle(&draining, None);
    let tell = |claim: &RecoveredClaim| {
        recover::report(claim);
        count_poison(&slot, &config.chains, std::slice::from_ref(claim));
    };
    let recovered = household::beating(&slot, &settings, || {
        recover::recover(
            &mut first,
            &duty.predecessor,
            duty.sweep_above,
            &settings,
            &clock,
            &tell,
        )
    })?;
    if !recovered {
        return Ok(true);
    }
    slot.note_recovered();
    let mut queues = vec![first];
    queues.extend((2..=settings.concurrency).map(queue));
    let renewal = Renewal::new(slot.clone(), queue(0), settings.heartbeat_ttl);

    let wakeup = Wakeup::new(&settings, slot.clone(), server.clone());
    let shared = Arc::new(Shared::new(child, duty, settings, config, slot, wakeup));
    let (done, all_done) = bounded::<()>(0);
    let mut lanes = Vec::new();
    for (queue, number) in queues.into_iter().zip(1u32..) {
        let lane = Lane::new(Arc::clone(&shared), queue, lanes.len(), draining.clone());
        let done = done.clone();
        let thread = thread::Builder::new().name(format!("lane-{number}"));
        lanes.push(thread.spawn(move || {
            // A lane that ends otherwise than by the drain takes its worker along: a fresh
            // worker is better than one with fewer lanes than it was asked for.
            let abort = AbortOnPanic;
            crate::sys::seed_random();
            let nothing_left = lane.run();
            std::mem::forget(abort);
            drop(done);
            nothing_left
        })?);
    }
    drop(done);
    household::keep(&shared, renewal, &draining, &all_done);
    let mut nothing_left = true;
    for (number, lane) in lanes.into_iter().enumerate() {
        // One that waits for a server which does not answer holds nothing, and ends with the process.
        if !shared.wakeup.is_waiting(number) {
            // A lane does not panic past its guard.
            nothing_left &= lane.join().unwrap_or(false);
        }
    }
    crate::link::dismiss_warden();
    Ok(nothing_left)
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        log::error!("a lane ended by a panic outside any vCon's work; the worker ends with it");
        process::exit(Exit::Internal.code());
    }
}
