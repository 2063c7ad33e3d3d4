//! One worker process: its lanes and the drain.
//!
//! ```text
//! main thread ── beats, renews the lease if the monitor does not, recycles the worker, ends the waits
//!   │            of idle lanes in a drain (housekeeping)
//!   ├─ signals ── SIGTERM or SIGINT drops the drain channel's sender
//!   ├─ lane 1 ┐ claim ─► load ─► links ─► storages ─► finish, until the drain
//!   │    │    │   └─ nothing there: BLPOP on the wake list, to which the monitor pushes (wakeup)
//!   │    └─ store-… ── save beside it, one for each storage but one
//!   └─ lane N ┘
//! ```
//!
//! To follow one vCon: `lane` claims it, `pipeline` takes it through its chain and finishes it, with the
//! `job` that holds its document and its progress, on the open links and storages in `modules`. If it does
//! not get to the finish, `release` decides how its claim ends.
//!
//! Beside that way: `retry` waits and tries again, `circuit_breaker` puts chains on hold,
//! `backend_health` tells a bad vCon from a bad backend, `quarantine` isolates suspects. A worker knows
//! nothing of other processes but what the scoreboard and Redis show.

mod backend_health;
mod budget;
mod circuit_breaker;
mod hooks;
mod housekeeping;
mod job;
mod lane;
mod links;
mod modules;
mod permits;
mod pipeline;
mod prober;
mod quarantine;
mod release;
mod retry;
mod shared;
mod storages;
mod trial;
mod wakeup;

use std::cell::LazyCell;
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

#[cfg(any(test, fuzzing))]
pub(crate) use job::fuzz;

use crate::backoff::Backoff;
use crate::child::{Child, OrphanedClaims, WorkerTask};
use crate::config::{Chain, Config};
use crate::exit::Exit;
use crate::queue::{
    Expiry, LaneId, NameLease, Pauses, Queue, QueueError, RecoveredClaim, RequestBatcher, Server,
};
use crate::scoreboard::{Event, SeriesKind, Slot};
use crate::settings::Settings;
use housekeeping::LeaseRenewal;
use lane::Lane;
use retry::{LaneClock, Outage, SharedOutage};
use shared::{OwnLook, SharedState};
use wakeup::Wakeup;

/// How long the end of a worker waits at most for the collector of spans, and for a reply of Redis on its budgets.
const FAREWELL: Duration = Duration::from_millis(700);

/// Runs a worker in this process until it has drained. `config` is the configuration of this `config_generation`.
pub fn run(
    child: Child,
    task: WorkerTask,
    settings: Settings,
    config: Arc<Config>,
    config_generation: u64,
    lease: NameLease,
) -> Exit {
    let name = child.name.clone();
    let Some(slot) = child.slot.clone() else {
        log::error!("{name} has no slot on the scoreboard");
        return Exit::Internal;
    };
    let config = (config, config_generation);
    match run_lanes(child, task, settings, config, slot, lease) {
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
    #[error("could not start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Returns the predecessor's claims, and runs the lanes until the drain. Returns false if Redis may still
/// have claims of this worker.
fn run_lanes(
    child: Child,
    task: WorkerTask,
    settings: Settings,
    (config, config_generation): (Arc<Config>, u64),
    slot: Slot,
    lease: NameLease,
) -> Result<bool, StartError> {
    crate::program::appoint_reaper();
    let server = Server::new(&settings.redis_url).map_err(QueueError::from)?;
    let expiry = Expiry::of(&settings);
    let exchange = settings
        .batches()
        .then(|| Arc::new(RequestBatcher::default()));
    let queue = |lane| {
        let seat = LaneId {
            instance: settings.instance.clone(),
            worker: task.predecessor.worker,
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
    let clock = LaneClock::idle(&draining, None);
    let first_look = housekeeping::with_heartbeat(&slot, &settings, || {
        recover_predecessor(&mut first, &task, &settings, &config.chains, &slot, &clock)
    })?;
    let Some(first_look) = first_look else {
        return Ok(true);
    };
    slot.note_recovered();
    let mut queues = vec![first];
    queues.extend((2..=settings.concurrency).map(queue));
    let renewal = LeaseRenewal::new(slot.clone(), queue(0), settings.heartbeat_ttl);

    let wakeup = Wakeup::new(&settings, slot.clone(), server.clone());
    let shared = Arc::new(SharedState::new(
        child,
        settings,
        (config, config_generation),
        first_look,
        slot,
        wakeup,
        &server,
    ));
    let (done, all_done) = bounded::<()>(0);
    let mut lanes = Vec::new();
    for (queue, number) in queues.into_iter().zip(1u32..) {
        let lane = Lane::new(Arc::clone(&shared), queue, lanes.len(), draining.clone());
        let done = done.clone();
        let thread = thread::Builder::new().name(format!("lane-{number}"));
        lanes.push(thread.spawn(move || {
            // If a lane ends but for the drain, the worker ends too: a fresh worker is better than one with
            // too few lanes.
            let abort = AbortOnPanic;
            crate::sys::seed_random();
            let is_released = lane.run();
            std::mem::forget(abort);
            drop(done);
            is_released
        })?);
    }
    drop(done);
    housekeeping::run(&shared, renewal, &draining, &all_done);
    let mut all_released = true;
    for (number, lane) in lanes.into_iter().enumerate() {
        // A lane that waits for a server that does not answer has no claim, and ends with the process.
        if !shared.wakeup.is_waiting(number) {
            // A lane that panics aborts the process before.
            all_released &= lane.join().unwrap_or(false);
        }
    }
    let farewell = FAREWELL.min(shared.settings.drain_timeout / 10);
    shared.budgets.close(farewell);
    if let Some(tracing) = &shared.tracing {
        tracing.close(farewell);
    }
    crate::program::dismiss_reaper();
    Ok(all_released)
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        log::error!("a lane panicked; the worker ends with it");
        process::exit(Exit::Internal.code());
    }
}

/// Returns the claims of a worker's predecessor, and those that its task names besides. Waits for Redis and
/// for the instance's name if need be. Returns a look at what is paused, or `None` if the worker drains before that.
fn recover_predecessor(
    queue: &mut Queue,
    task: &WorkerTask,
    settings: &Settings,
    chains: &[Chain],
    slot: &Slot,
    clock: &LaneClock<'_>,
) -> Option<(OwnLook, Option<Pauses>)> {
    let mut outage = Outage::new(settings, &Arc::new(SharedOutage::new(slot.clone())));
    let mut displaced = Backoff::new(settings.retry_first, settings.retry_max);
    loop {
        let waited = match try_to_recover(queue, task, settings.max_deaths, chains, slot) {
            Ok(look) => {
                outage.end();
                return Some(look);
            }
            // Another daemon has this instance's name: the monitor decides what follows.
            Err(error) if error.is_about_the_lease() => {
                outage.end();
                clock.wait(displaced.next_wait())
            }
            Err(error) => outage.wait(&error, clock),
        };
        if waited.is_err() {
            return None;
        }
    }
}

fn try_to_recover(
    queue: &mut Queue,
    task: &WorkerTask,
    max_deaths: u32,
    chains: &[Chain],
    slot: &Slot,
) -> Result<(OwnLook, Option<Pauses>), QueueError> {
    queue.take_lease()?;
    let recovered = queue.recover(task.predecessor.dead(), max_deaths)?;
    // Before the next step, which may fail.
    recovered.iter().for_each(report_recovered);
    count_poison(slot, chains, &recovered);
    if let Some(highest) = task.sweep_above {
        let recovered = queue.recover_above(highest, max_deaths)?;
        recovered.iter().for_each(report_recovered);
        count_poison(slot, chains, &recovered);
    }
    // The lanes follow the monitor, but it may not have looked at the pauses yet.
    OwnLook::take(slot, queue)
}

/// Runs a recovery process: returns the claims of workers that have no successor. Tries once; the supervisor
/// decides whether there is time for another try.
pub fn recover(
    child: &Child,
    orphaned: &[OrphanedClaims],
    settings: &Settings,
    lease: NameLease,
) -> Exit {
    let mut queue = match Server::new(&settings.redis_url) {
        Ok(server) => Queue::new(
            server,
            LaneId {
                instance: settings.instance.clone(),
                worker: 0,
                lane: 0,
            },
            Expiry::of(settings),
            lease,
        ),
        Err(error) => {
            log::error!("{} could not start: {error}", child.name);
            return Exit::Unavailable;
        }
    };
    for left in orphaned {
        let recovered = queue
            .take_lease()
            .and_then(|()| queue.retire_worker(left.dead(), settings.max_deaths));
        match recovered {
            Ok(recovered) => recovered.iter().for_each(report_recovered),
            Err(error) => {
                log::error!(
                    "could not return claims of Worker-{}; the next start will retry: {error}",
                    left.worker
                );
                return Exit::Unavailable;
            }
        }
    }
    Exit::Ok
}

/// Logs what became of a claim that a worker has left behind.
pub fn report_recovered(claim: &RecoveredClaim) {
    let (entry, list, deaths) = (&claim.entry, &claim.list, claim.deaths);
    let what = match claim.outcome.as_str() {
        "poison" => "went to the dead letter queue",
        "returned" => "is back in its list",
        "kept" => "is kept until its list is a list again",
        _ => "could not be read and was moved to conserver:unreadable",
    };
    let level = if claim.is_poison() {
        log::Level::Error
    } else {
        log::Level::Warn
    };
    if claim.lapses > 0 {
        let lapses = claim.lapses;
        log::log!(
            level, vcon_id = entry.as_str();
            "{entry}, claimed by a daemon whose lease ran out, {what} (list {list}, lapses: {lapses})"
        );
    } else {
        log::log!(
            level, vcon_id = entry.as_str();
            "{entry}, left behind by a worker that ended, {what} (list {list}, deaths: {deaths})"
        );
    }
}

/// Counts the vCons that are dead letters now as workers have died on them, each for its chain.
pub fn count_poison(slot: &Slot, chains: &[Chain], recovered: &[RecoveredClaim]) {
    // Read only if there is one, which is rare.
    let meters = LazyCell::new(|| slot.meters());
    for claim in recovered.iter().filter(|claim| claim.is_poison()) {
        slot.count_poison();
        let list = meters.of(SeriesKind::List, claim.list.as_str());
        list.count(Event::DeadLettered);
        let served = |chain: &&Chain| chain.ingress_lists.iter().any(|list| claim.is_of(list));
        if let Some(chain) = chains.iter().find(served) {
            let meter = meters.of(SeriesKind::Chain, &chain.name);
            meter.count(Event::Failed);
            meter.count(Event::DeadLettered);
        }
    }
}
