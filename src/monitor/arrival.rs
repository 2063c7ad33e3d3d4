//! The first look at Redis after the start of the daemon: whether it is one that can be worked with.
//!
//! A server that is unavailable is waited for, and so are rights, of which the log says what is lacking. What
//! a server refuses of `REDIS_URL`, and a Redis Cluster, end the daemon: somebody has to change something,
//! and sees it at once. A password that changes later is waited for.

use std::time::Duration;

use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{
    ConnectError, Fitness, QueueError, Refusal, Server, cluster_refusal, needed_keys,
};
use crate::scoreboard::Slot;
use crate::settings::RedisUrl;

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
    url: &RedisUrl,
    slot: Option<&Slot>,
    limit: Duration,
) -> Result<Option<Unfit>, QueueError> {
    let lease = match server.connect_for("conserver:preflight", limit) {
        Ok(lease) => lease,
        Err(error) => {
            return match refused(&error, url) {
                Some(unfit) => Ok(Some(unfit)),
                None => Err(error.into()),
            };
        }
    };
    let plan = slot.and_then(|slot| Plan::load(slot.config_path()).ok());
    let needed = plan.map(|plan| needed_by(&plan)).unwrap_or_default();
    match lease.preflight(&needed)? {
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

/// The keys that a configuration needs.
fn needed_by(plan: &Plan) -> Vec<String> {
    let lists = plan.ingress_lists();
    let chains = plan.chains.iter().filter(|chain| chain.enabled);
    let egress = chains.flat_map(|chain| &chain.egress_lists);
    let storages = plan.storages.iter().map(String::as_str);
    needed_keys(lists.iter(), egress.chain(&plan.routes), storages)
}

/// What a server does not accept of its URL.
pub fn refused(error: &ConnectError, url: &RedisUrl) -> Option<Unfit> {
    let (why, exit) = match error.refusal()? {
        Refusal::Login if url.has_one_word() => (url.login_advice().to_owned(), Exit::Config),
        Refusal::Login => (url.login_advice().to_owned(), Exit::Unavailable),
        Refusal::Database => (
            "the server does not have this database".to_owned(),
            Exit::Unavailable,
        ),
        Refusal::Cluster => (
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
