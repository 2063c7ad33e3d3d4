//! One worker process: its lanes, the doorbell, and the drain.
//!
//! ```text
//! main thread ── keeps house: shows that the worker is alive, renews the lease if the monitor does
//!   │            not, and recycles the worker
//!   ├─ signals ── SIGTERM or SIGINT drops the drain channel's sender
//!   ├─ lane 1 ┐ claim ─► load ─► links ─► storages ─► finish, until the drain
//!   │    └─ store-… ── save beside it, one for each storage but one
//!   ├─ lane N ┘     ▲ ring
//!   └─ doorbell ────┘ waits for work while a lane is idle
//! ```

mod ahead;
mod backoff;
mod company;
mod current;
mod doorbell;
mod fault;
mod health;
mod holds;
mod household;
mod kit;
mod lane;
mod loader;
mod meters;
mod outage;
mod recover;
mod renewal;
mod retry;
mod shared;
mod stage;
mod turn;
mod visit;

use std::process;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;

pub use backoff::Backoff;
pub use meters::count_poison;
pub use recover::{report as report_recovered, run as recover};

use crate::child::{Child, Leftover};
use crate::config::Config;
use crate::exit::Exit;
use crate::queue::{Expiry, NameLease, Queue, QueueError, Recovered, Seat, Server};
use crate::scoreboard::Slot;
use crate::settings::Settings;
use current::Current;
use doorbell::Doorbell;
use health::Health;
use holds::Holds;
use lane::Lane;
use meters::Meters;
use outage::{Absence, Outage};
use renewal::Renewal;
use retry::Retry;
use shared::Shared;
use stage::Stage;
use turn::Turn;

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
    let queue = |lane| {
        let seat = Seat {
            instance: settings.instance.clone(),
            worker: duty.predecessor.worker,
            lane,
        };
        Queue::new(server.clone(), seat, expiry, lease.clone())
    };
    let draining = child.draining.clone();
    let mut first = queue(1);
    let turn = Turn::idle(&draining, None);
    let tell = |claim: &Recovered| {
        recover::report(claim);
        count_poison(&slot, &config.chains, std::slice::from_ref(claim));
    };
    let recovered = household::beating(&slot, &settings, || {
        recover::recover(
            &mut first,
            &duty.predecessor,
            duty.sweep_above,
            &settings,
            &turn,
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

    let shared = Arc::new(Shared::new(child, duty, settings, config, slot.clone()));
    let door = Doorbell::start(&shared)?;
    let (done, all_done) = bounded::<()>(0);
    let mut lanes = Vec::new();
    for (queue, number) in queues.into_iter().zip(1u32..) {
        let cell = slot.lane(lanes.len());
        let (door, draining) = (door.clone(), draining.clone());
        let lane = Lane::new(Arc::clone(&shared), queue, door, draining, cell);
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
    household::keep(&shared, &all_done, renewal);
    // A lane does not panic past its guard.
    let mut nothing_left = true;
    for lane in lanes {
        nothing_left &= lane.join().unwrap_or(false);
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
