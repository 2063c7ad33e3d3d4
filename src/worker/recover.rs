//! Returning the claims of workers that are gone.

use std::sync::Arc;

use crate::child::{Child, Leftover};
use crate::exit::Exit;
use crate::queue::{Expiry, LaneId, NameLease, Queue, RecoveredClaim, Server};
use crate::settings::Settings;

use super::clock::Clock;
use super::retry::{Backoff, Outage};

/// Returns a predecessor's claims to their lists, and with `sweep_above` those of every worker
/// with a higher number; waits for Redis, and for the instance's name, if need be. False when the
/// worker is to end before that. Tells of each claim, once.
pub(super) fn recover(
    queue: &mut Queue,
    predecessor: &Leftover,
    sweep_above: Option<u32>,
    settings: &Settings,
    clock: &Clock<'_>,
    tell: &dyn Fn(&RecoveredClaim),
) -> bool {
    let mut outage = Outage::new("Redis", settings, &Arc::default());
    let mut patience = Backoff::new(settings.retry_first, settings.retry_max);
    loop {
        let recovered = queue
            .take_lease()
            .and_then(|()| queue.recover(predecessor.dead(), settings.max_deaths))
            .and_then(|recovered| {
                // Told before the next step, which may fail.
                recovered.iter().for_each(tell);
                match sweep_above {
                    Some(highest) => queue.recover_above(highest, settings.max_deaths),
                    None => Ok(Vec::new()),
                }
            });
        match recovered {
            Ok(recovered) => {
                outage.over();
                recovered.iter().for_each(tell);
                return true;
            }
            // What is to be done about it is for the monitor to say.
            Err(error) if error.is_about_the_lease() => {
                outage.over();
                if clock.wait(patience.next_wait()).is_err() {
                    return false;
                }
            }
            Err(error) => {
                if outage.wait(&error, clock).is_err() {
                    return false;
                }
            }
        }
    }
}

/// Does a recovery process's whole work: returns the claims of workers that will have no
/// successor. Tries once; the supervisor decides whether there is time for more.
pub fn run(child: &Child, leftovers: &[Leftover], settings: &Settings, lease: NameLease) -> Exit {
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
    for left in leftovers {
        let recovered = queue
            .take_lease()
            .and_then(|()| queue.retire_worker(left.dead(), settings.max_deaths));
        match recovered {
            Ok(recovered) => recovered.iter().for_each(report),
            Err(error) => {
                log::error!(
                    "the claims of Worker-{} were not returned, the next start will: {error}",
                    left.worker
                );
                return Exit::Unavailable;
            }
        }
    }
    Exit::Ok
}

/// Logs what became of a claim that was left behind.
pub fn report(claim: &RecoveredClaim) {
    let (entry, list, deaths) = (&claim.entry, &claim.list, claim.deaths);
    let what = match claim.outcome.as_str() {
        "poison" => "went to the dead letter queue",
        "returned" => "is back in its list",
        "kept" => "is kept until its list is a list again",
        _ => "could not be read and was set aside in conserver:unreadable",
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
