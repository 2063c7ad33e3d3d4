//! The first look at Redis after the start of the daemon: whether it is one that can be worked with.
//!
//! A server that is unavailable is waited for, and so are rights, of which the log says what is lacking. What
//! a server refuses of `REDIS_URL`, and a Redis Cluster, end the daemon: somebody has to change something,
//! and sees it at once. A password that changes later is waited for.

use std::path::Path;
use std::time::Duration;

use crate::config::{Follower, Plan};
use crate::exit::Exit;
use crate::queue::{
    ConfiguredWork, ConnectError, Fitness, Needs, QueueError, RefusedUrlPart, Server,
    cluster_refusal,
};
use crate::scoreboard::Slot;
use crate::settings::{RedisUrl, Settings};

/// Why the daemon cannot work with this Redis.
#[derive(Debug)]
pub struct Unfit {
    /// In words for people.
    pub why: String,
    /// What the daemon ends with: [`Exit::Unavailable`] if the server may change its mind.
    pub exit: Exit,
}

/// Looks at the server, within `limit` for each step.
///
/// # Errors
/// It is unavailable.
pub(super) fn look(
    server: &Server,
    settings: &Settings,
    slot: Option<&Slot>,
    limit: Duration,
) -> Result<Option<Unfit>, QueueError> {
    let url = &settings.redis_url;
    let lease = match server.connect_for("conserver:preflight", limit) {
        Ok(lease) => lease,
        Err(error) => {
            return match refused(&error, url) {
                Some(unfit) => Ok(Some(unfit)),
                None => Err(error.into()),
            };
        }
    };
    let needs = slot.map(|slot| needs_of(slot.config_path(), settings));
    match lease.preflight(&needs.unwrap_or_default())? {
        Fitness::Fit => {}
        Fitness::Cluster(words) => {
            return Ok(Some(Unfit {
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

/// What the configuration at `path` needs, as far as it can be read here.
fn needs_of(path: &Path, settings: &Settings) -> Needs {
    let Ok(plan) = Plan::load_kept(path) else {
        return Needs::default();
    };
    let followers = Follower::load_all(path).unwrap_or_default();
    ConfiguredWork::planned(&plan, &followers).needs(settings)
}

/// What a server does not accept of its URL.
pub fn refused(error: &ConnectError, url: &RedisUrl) -> Option<Unfit> {
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
    Some(Unfit {
        why: format!("REDIS_URL: {error}; {why}"),
        exit,
    })
}
