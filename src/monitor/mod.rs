//! The monitor: a child process that renews the lease on the instance's name (the heartbeat), and returns the claims
//! of instances that are dead.
//!
//! Its other duties have threads of their own: `ingress_watch` watches the ingress lists and wakes idle lanes, `ttl`
//! keeps waiting documents from expiring, `pauses` puts in force what operators have paused,
//! `followers` pulls vCons from other servers, `server` answers by HTTP, and `crate::telemetry` sends metrics to a
//! collector.
//!
//! Before its first heartbeat it checks whether Redis is fit for the work. It waits for a server that is
//! unavailable or lacks rights. A `REDIS_URL` that the server refuses, and a Redis Cluster, end the daemon: somebody
//! has to change something, and sees it at once. A password that changes later does not.

pub mod followers;
mod ingress_watch;
mod pauses;
pub mod server;
mod ttl;

/// What fuzzers run.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::followers::remote::fuzz::answer as follower;
    pub use super::server::request::fuzz::request as http_request;
}

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use crate::child::Child;
use crate::config::{Follower, Plan};
use crate::exit::Exit;
use crate::queue::{
    ConfiguredWork, ConnectError, Expiry, Fitness, LaneId, MAX_LAPSES, NameLease, Needs, Queue,
    QueueError, RecoveredClaim, RefusedUrlPart, Server, cluster_refusal,
};
use crate::scoreboard::Slot;
use crate::settings::{RedisUrl, Settings};
use crate::sys;
use crate::telemetry;
use crate::worker::{count_poison, report_recovered};
use followers::StatsByFollower;

/// The time limit of each command to Redis, unless a third of the lease's time to live is shorter.
const LIMIT: Duration = Duration::from_secs(5);

/// Dead instances that one heartbeat recovers, so that the next one is in time.
const AT_ONCE: usize = 20;

/// Does the monitor's whole work. Returns when the monitor drains, when another daemon has the instance's name, or
/// when Redis is unfit.
pub fn run(child: &Child, settings: &Settings, lease: NameLease) -> Exit {
    let server = match Server::new(&settings.redis_url) {
        Ok(server) => server,
        Err(error) => {
            log::error!("{} could not start: {error}", child.name);
            return Exit::Unavailable;
        }
    };
    let stats = StatsByFollower::default();
    let started = ttl::start(child, settings, &server).and_then(|ttl| {
        pauses::start(child, settings, &server)?;
        ingress_watch::start(child, settings, &server, &lease)?;
        let followers = followers::start(child, settings, &server, &stats)?;
        let metrics = telemetry::start(child, settings, &server)?;
        Ok((ttl, followers, metrics))
    });
    let (ttl, followers, metrics) = match started {
        Ok(started) => started,
        Err(error) => {
            log::error!("{} could not start a thread: {error}", child.name);
            return Exit::Internal;
        }
    };
    let has_heartbeat = Arc::new(AtomicBool::new(false));
    let slot = child.slot.as_ref();
    let http = slot.map(|slot| {
        let has_heartbeat = Arc::clone(&has_heartbeat);
        server::start(slot, settings, &server, has_heartbeat, stats)
    });
    let http = http.transpose().unwrap_or_else(|error| {
        log::error!("could not start the monitor's HTTP server: {error}");
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
    let mut is_away = false;
    let show_redis_away = |error: Option<&QueueError>| {
        if let Some(slot) = slot {
            slot.show_redis_away(error.map(QueueError::without_redis).as_deref());
        }
    };
    // Once somebody has held the lease, Redis is known to be fit; its rights may change.
    let mut is_checked = slot.is_some_and(|slot| slot.lease_renewed() > 0);
    loop {
        show_alive(slot);
        let checked = if is_checked {
            Ok(None)
        } else {
            check_redis(&server, settings, slot, limit)
        };
        is_checked |= checked.is_ok();
        let beaten = match checked {
            Ok(Some(unfit)) => {
                log::error!("{}", unfit.why);
                followers.close();
                return match unfit.exit {
                    Exit::Config => Exit::Config,
                    _ => Exit::Barred,
                };
            }
            Ok(None) => beat(&mut queue, settings, slot),
            Err(error) => Err(error),
        };
        match beaten {
            Ok(()) => {
                has_heartbeat.store(true, Ordering::Relaxed);
                show_redis_away(None);
                if std::mem::take(&mut is_away) {
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
                has_heartbeat.store(false, Ordering::Relaxed);
                show_redis_away(Some(&error).filter(|error| !error.is_about_the_lease()));
                if !std::mem::replace(&mut is_away, true) {
                    log::warn!("this instance cannot show that it is alive: {error}");
                }
            }
        }
        if child.draining.recv_timeout(pause(settings)) != Err(RecvTimeoutError::Timeout) {
            // First: a server that hangs may keep this process until it is killed.
            followers.close();
            if let Some(http) = http.flatten() {
                http.close();
            }
            ttl.close();
            if let Some(metrics) = metrics {
                metrics.close();
            }
            followers.wait_for_release();
            if let Err(error) = queue.release_lease() {
                log::debug!("could not release the lease, it will expire: {error}");
            }
            return Exit::Ok;
        }
    }
}

/// Shows the supervisor that the monitor is alive.
fn show_alive(slot: Option<&Slot>) {
    if let Some(slot) = slot {
        slot.beat();
    }
}

/// The pause between two renewals of the lease.
fn pause(settings: &Settings) -> Duration {
    settings.beat().min(settings.heartbeat_ttl / 3)
}

/// Renews the lease, and notes that on the scoreboard: the workers renew it if the monitor does not.
fn renew(queue: &mut Queue, slot: Option<&Slot>) -> Result<(), QueueError> {
    // Before the request: the lease cannot expire earlier than counted from here.
    let now = sys::monotonic_ms();
    queue.take_lease()?;
    if let Some(slot) = slot {
        slot.note_lease(now);
    }
    Ok(())
}

/// One heartbeat: renews the lease, then returns the claims of instances whose lease has expired. Shows in between
/// that the monitor is alive.
fn beat(queue: &mut Queue, settings: &Settings, slot: Option<&Slot>) -> Result<(), QueueError> {
    renew(queue, slot)?;
    let mut pause = |queue: &mut Queue| {
        show_alive(slot);
        renew(queue, slot)
    };
    let kept = queue.recover_unreturned(&mut pause)?;
    kept.iter().for_each(report_recovered);
    for instance in queue.dead_instances()?.iter().take(AT_ONCE) {
        pause(queue)?;
        // A setting that counts no crashes against a vCon counts no lapses either.
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

/// Why the daemon cannot work with this Redis.
#[derive(Debug)]
pub struct UnfitRedis {
    /// A sentence for operators.
    pub why: String,
    /// The exit code of the daemon: [`Exit::Unavailable`] if the cause may go away by itself.
    pub exit: Exit,
}

/// Checks whether Redis is fit for the work, within `limit` for each step.
///
/// # Errors
/// Redis is unavailable.
fn check_redis(
    server: &Server,
    settings: &Settings,
    slot: Option<&Slot>,
    limit: Duration,
) -> Result<Option<UnfitRedis>, QueueError> {
    let url = &settings.redis_url;
    let lease = match server.connect_for("conserver:preflight", limit) {
        Ok(lease) => lease,
        Err(error) => {
            return match redis_refusal(&error, url) {
                Some(unfit) => Ok(Some(unfit)),
                None => Err(error.into()),
            };
        }
    };
    let needs = slot.map(|slot| needs_of(slot.config_path(), settings));
    match lease.preflight(&needs.unwrap_or_default())? {
        Fitness::Fit => {}
        Fitness::Cluster(words) => {
            return Ok(Some(UnfitRedis {
                why: format!("Redis at {url}: {}", cluster_refusal(&words)),
                exit: Exit::Config,
            }));
        }
        Fitness::Lacks(shortage) => {
            log::error!("Redis at {url} is not enough for the work: {shortage}")
        }
    }
    Ok(None)
}

/// The rights that the configuration at `path` needs, as far as the monitor can read it.
fn needs_of(path: &Path, settings: &Settings) -> Needs {
    let Ok(plan) = Plan::load_kept(path) else {
        return Needs::default();
    };
    let followers = Follower::load_all(path).unwrap_or_default();
    ConfiguredWork::planned(&plan, &followers).needs(settings)
}

/// What the server refuses of `REDIS_URL`, if the error is about that.
pub fn redis_refusal(error: &ConnectError, url: &RedisUrl) -> Option<UnfitRedis> {
    let (why, exit) = match error.refusal()? {
        RefusedUrlPart::Login if url.has_one_word() => {
            (url.login_advice().to_owned(), Exit::Config)
        }
        RefusedUrlPart::Login => (url.login_advice().to_owned(), Exit::Unavailable),
        RefusedUrlPart::Database => (
            "the server does not have this database".to_owned(),
            Exit::Unavailable,
        ),
        RefusedUrlPart::Cluster => (
            cluster_refusal("a cluster has one database alone"),
            Exit::Config,
        ),
    };
    let error = error.to_string();
    let error = error.trim_end_matches('.');
    Some(UnfitRedis {
        why: format!("REDIS_URL: {error}; {why}"),
        exit,
    })
}
