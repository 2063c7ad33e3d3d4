//! The monitor: a child process that holds the instance's name, returns the claims of other
//! instances that are dead, watches the ingress lists for the idle lanes, pulls vCons from other servers,
//! and answers by HTTP.

pub mod arrival;
pub mod followers;
pub mod http;
mod keep;
mod wakeup;

/// What fuzzers run.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::followers::fuzz::answer as follower;
    pub use super::http::fuzz::request as http_request;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use crate::child::Child;
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{
    Expiry, LaneId, MAX_LAPSES, NameLease, Queue, QueueError, RecoveredClaim, Server,
};
use crate::scoreboard::Slot;
use crate::settings::Settings;
use crate::sys;
use crate::worker::{count_poison, report_recovered};
use followers::Tallies;

/// A command that takes longer than this, or than a third of the lease's time to live, has missed the
/// monitor's time.
const LIMIT: Duration = Duration::from_secs(5);

/// So many dead instances are seen to at one beat, so that the next is in time.
const AT_ONCE: usize = 20;

/// Does the monitor's whole work: returns when it is told to end, when another daemon has the
/// instance's name, or when Redis is none that can be worked with.
pub fn run(child: &Child, settings: &Settings, lease: NameLease) -> Exit {
    let server = match Server::new(&settings.redis_url) {
        Ok(server) => server,
        Err(error) => {
            log::error!("{} could not start: {error}", child.name);
            return Exit::Unavailable;
        }
    };
    let started = keep::start(child, settings, &server).and_then(|keeping| {
        wakeup::start(child, settings, &server, &lease)?;
        Ok(keeping)
    });
    let keeping = match started {
        Ok(keeping) => keeping,
        Err(error) => {
            log::error!("{} could not start a thread: {error}", child.name);
            return Exit::Internal;
        }
    };
    let tallies = Tallies::default();
    let followers = match followers::start(child, settings, &server, &tallies) {
        Ok(followers) => followers,
        Err(error) => {
            log::error!("{} could not start a thread: {error}", child.name);
            return Exit::Internal;
        }
    };
    let shows_itself = Arc::new(AtomicBool::new(false));
    let http = child.slot.as_ref().map(|slot| {
        let shows_itself = Arc::clone(&shows_itself);
        http::start(slot, settings, &server, shows_itself, tallies.clone())
    });
    let http = http.transpose().unwrap_or_else(|error| {
        log::error!("the monitor could not start its HTTP: {error}");
        None
    });
    let seat = LaneId {
        instance: settings.instance.clone(),
        worker: 0,
        lane: 0,
    };
    let limit = LIMIT.min(settings.heartbeat_ttl / 3);
    let mut queue =
        Queue::new(server.clone(), seat, Expiry::of(settings), lease).with_time_limit(limit);
    child.readiness().notify();
    let mut away = false;
    let shows = || {
        if let Some(slot) = &child.slot {
            slot.beat();
        }
    };
    let shows_away = |is_away| {
        if let Some(slot) = &child.slot {
            slot.set_redis_away(is_away);
        }
    };
    // Once the lease has been held, the server is known; its rights may change.
    let mut is_known = child
        .slot
        .as_ref()
        .is_some_and(|slot| slot.lease_renewed() > 0);
    loop {
        shows();
        let slot = child.slot.as_ref();
        let arrived = if is_known {
            Ok(None)
        } else {
            arrival::look(&server, settings, slot, limit)
        };
        is_known |= arrived.is_ok();
        let beaten = match arrived {
            Ok(Some(unfit)) => {
                log::error!("{}", unfit.why);
                followers.close();
                return match unfit.exit {
                    Exit::Config => Exit::Config,
                    _ => Exit::Barred,
                };
            }
            Ok(None) => beat(&mut queue, settings, &shows, slot),
            Err(error) => Err(error),
        };
        match beaten {
            Ok(()) => {
                shows_itself.store(true, Ordering::Relaxed);
                shows_away(false);
                if std::mem::take(&mut away) {
                    log::info!("this instance shows again that it is alive");
                }
            }
            Err(error @ QueueError::InUse { .. }) => {
                log::error!("{error}");
                followers.close();
                return Exit::Barred;
            }
            Err(error) if error.is_interruption() => continue,
            Err(error) => {
                shows_itself.store(false, Ordering::Relaxed);
                shows_away(!error.is_about_the_lease());
                if !std::mem::replace(&mut away, true) {
                    log::warn!("this instance cannot show that it is alive: {error}");
                }
            }
        }
        if child.draining.recv_timeout(pause(settings)) != Err(RecvTimeoutError::Timeout) {
            // First: a server that hangs may keep us until we are killed.
            followers.close();
            if let Some(http) = http.flatten() {
                http.close();
            }
            keeping.close();
            if let Err(error) = queue.release_lease() {
                log::debug!("the lease will run out by itself: {error}");
            }
            return Exit::Ok;
        }
    }
}

/// The pause between two renewals of the lease.
fn pause(settings: &Settings) -> Duration {
    settings.beat().min(settings.heartbeat_ttl / 3)
}

/// Renews the lease, and shows that to the workers, which do it if this one does not.
fn renew(queue: &mut Queue, slot: Option<&Slot>) -> Result<(), QueueError> {
    // Before the request: the server counts from later.
    let now = sys::monotonic_ms();
    queue.take_lease()?;
    if let Some(slot) = slot {
        slot.note_lease(now);
    }
    Ok(())
}

/// Renews the lease, then sees to the instances that have let theirs run out; shows in between that
/// the monitor is alive.
fn beat(
    queue: &mut Queue,
    settings: &Settings,
    shows: &dyn Fn(),
    slot: Option<&Slot>,
) -> Result<(), QueueError> {
    renew(queue, slot)?;
    let mut pause = |queue: &mut Queue| {
        shows();
        renew(queue, slot)
    };
    let kept = queue.recover_unreturned(&mut pause)?;
    kept.iter().for_each(report_recovered);
    for instance in queue.dead_instances()?.iter().take(AT_ONCE) {
        pause(queue)?;
        // Who wants no vCon to be poison for deaths wants none for lapses.
        let most = if settings.max_deaths == 0 {
            0
        } else {
            MAX_LAPSES
        };
        let (recovered, forgotten) = queue.recover_instance(instance, most, &mut pause)?;
        recovered.iter().for_each(report_recovered);
        if let Some(slot) = slot
            && recovered.iter().any(RecoveredClaim::is_poison)
            && let Ok(plan) = Plan::load_kept(slot.config_path())
        {
            count_poison(slot, &plan.chains, &recovered);
        }
        if forgotten || !recovered.is_empty() {
            let count = recovered.len();
            log::warn!(
                "the instance {instance:?} has stopped showing itself, its claims were returned: {count}"
            );
        }
    }
    Ok(())
}
