//! One worker process: its lanes, the doorbell, and the drain.
//!
//! ```text
//! main thread ── signals: SIGTERM or SIGINT drops the drain channel's sender
//!   ├─ lane 1 ┐ claim ─► load ─► links ─► storages ─► finish, until the drain
//!   ├─ lane N ┘     ▲ ring
//!   └─ doorbell ────┘ waits for work while a lane is idle
//! ```

mod backoff;
mod current;
mod doorbell;
mod kit;
mod lane;
mod loader;
mod outage;

use std::process;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub use backoff::Backoff;

use crate::config::Config;
use crate::exit::Exit;
use crate::logging;
use crate::queue::{Expiry, Queue, QueueError, Seat, Server};
use crate::settings::Settings;
use crate::sys;
use current::Current;
use doorbell::Doorbell;
use lane::Lane;
use outage::Outage;

/// What the supervisor tells a new worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The worker's number, from 1.
    pub number: u32,
    /// Whether it also returns the claims of every worker with a higher number: those that an
    /// earlier start left behind.
    pub sweep: bool,
    /// The supervisor, without whom the worker ends.
    pub parent: Pid,
}

/// What all lanes of a worker share.
struct Shared {
    settings: Settings,
    current: Current,
    name: String,
}

/// Does a worker's whole work in this process: returns when it has drained.
pub fn run(assignment: &Assignment, settings: Settings, config: Arc<Config>) -> Exit {
    let name = format!("Worker-{}", assignment.number);
    logging::set_worker(&name);
    match sys::die_with_parent(assignment.parent) {
        Ok(true) => {}
        Ok(false) => return Exit::Internal,
        Err(error) => log::warn!("{name} would outlive its supervisor: {error}"),
    }
    let drain = match drain_on_signals() {
        Ok(drain) => drain,
        Err(error) => {
            log::error!("{name} could not take over its signals: {error}");
            return Exit::Internal;
        }
    };
    match start_lanes(assignment, name, settings, config, &drain) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            log::error!("could not start: {error}");
            Exit::Internal
        }
    }
}

/// A channel that is disconnected when the process is asked to end.
fn drain_on_signals() -> std::io::Result<Receiver<()>> {
    let (hold, drain) = bounded::<()>(0);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    sys::release_signals()?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut hold = Some(hold);
            for _ in signals.forever() {
                hold.take();
            }
        })?;
    Ok(drain)
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

fn start_lanes(
    assignment: &Assignment,
    name: String,
    settings: Settings,
    config: Arc<Config>,
    drain: &Receiver<()>,
) -> Result<(), StartError> {
    let server = Server::new(&settings.redis_url)?;
    let expiry = Expiry {
        document: settings.redis_expiry,
        context: settings.context_expiry,
        dead_letter: settings.dlq_expiry.unwrap_or(0),
    };
    let seat = |lane| Seat {
        instance: settings.instance.clone(),
        worker: assignment.number,
        lane,
    };
    let mut first = Queue::new(server.clone(), seat(1), expiry);
    if !recover(&mut first, assignment, &settings, drain) {
        return Ok(());
    }
    let mut queues = vec![first];
    queues.extend(
        (2..=settings.concurrency).map(|lane| Queue::new(server.clone(), seat(lane), expiry)),
    );

    let current = Current::new(config, settings.config_file.clone(), settings.tick);
    let shared = Arc::new(Shared {
        settings,
        current,
        name,
    });
    let door = Doorbell::start(&shared)?;
    let mut lanes = Vec::new();
    for (queue, number) in queues.into_iter().zip(1u32..) {
        let lane = Lane::new(Arc::clone(&shared), queue, door.clone(), drain.clone());
        let thread = thread::Builder::new().name(format!("lane-{number}"));
        lanes.push(thread.spawn(move || {
            // A lane that ends otherwise than by the drain takes its worker along: a fresh
            // worker is better than one with fewer lanes than it was asked for.
            let abort = AbortOnPanic;
            lane.run();
            std::mem::forget(abort);
        })?);
    }
    for lane in lanes {
        // A lane does not panic past its guard.
        let _ = lane.join();
    }
    Ok(())
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        log::error!("a lane ended by a panic outside any vCon's work; the worker ends with it");
        process::exit(Exit::Internal.code());
    }
}

/// Returns the predecessor's claims to their lists; waits for Redis if need be. False when the
/// worker is to end before that.
fn recover(
    queue: &mut Queue,
    assignment: &Assignment,
    settings: &Settings,
    drain: &Receiver<()>,
) -> bool {
    let mut outage = Outage::new("Redis", settings);
    loop {
        let recovered = queue
            .recover_own(settings.max_deaths)
            .and_then(|mut recovered| {
                if assignment.sweep {
                    let highest = settings.workers.max(assignment.number);
                    recovered.extend(queue.recover_above(highest, settings.max_deaths)?);
                }
                Ok(recovered)
            });
        match recovered {
            Ok(recovered) => {
                outage.over();
                for claim in recovered {
                    let (entry, list, deaths) = (&claim.entry, &claim.list, claim.deaths);
                    log::warn!(
                        vcon_id = entry.as_str();
                        "{entry}, left behind by a worker that died, {} (list {list}, deaths: {deaths})",
                        match claim.outcome.as_str() {
                            "poison" => "went to the dead letter queue",
                            "returned" => "is back in its list",
                            _ => "could not be read and was set aside in conserver:unreadable",
                        }
                    );
                }
                return true;
            }
            Err(error) => {
                if outage.wait(&error, drain).is_err() {
                    return false;
                }
            }
        }
    }
}
