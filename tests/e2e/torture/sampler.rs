//! The sampler: looks all the time whether every vCon is in exactly one place for each of its pushes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisResult;
use serde_json::{Value, json};

use super::chains::{CHAINS, SECOND, STORAGES, THIRD};
use super::producer::{CHOSEN, JOURNAL};
use super::run::Run;
use super::victim::MOST_LANES;
use crate::harness::Redis;

/// The set of what [`SECOND`] has sent on to [`THIRD`].
pub const SENT_ON: &str = "torture:sent_on";

/// One atomic script, sent as text: a flush of the scripts must not disturb it.
const SNAPSHOT: &str = include_str!("snapshot.lua");

const PAUSE: Duration = Duration::from_millis(25);

/// After so many looks, it is told how far the run is.
const LOOKS_BETWEEN_WORDS: usize = 400;

/// How many vCons are where, each counted once for each of its pushes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    pub pushed: usize,
    pub waiting: usize,
    pub claimed: usize,
    pub dead: usize,
    pub announced: usize,
    /// Announced ones that wait for a storage.
    pub backlog: usize,
    /// Of how many it is kept how far they have come.
    pub progress: usize,
}

impl Snapshot {
    /// Whether all that was pushed is worked off.
    pub fn is_settled(&self) -> bool {
        let left = self.waiting + self.claimed + self.backlog;
        left == 0 && self.announced + self.dead == self.pushed
    }
}

/// What the sampler has seen.
#[derive(Default)]
pub struct Sampler {
    latest: Mutex<(usize, Snapshot)>,
    most: Mutex<Most>,
}

/// The most that was seen at one time.
#[derive(Default, Clone, Copy)]
pub struct Most {
    pub backlog: usize,
    pub progress: usize,
}

impl Sampler {
    /// How often it has looked, and what it saw last.
    pub fn latest(&self) -> (usize, Snapshot) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most that it saw at one time.
    pub fn most(&self) -> Most {
        *self.most.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until all is over.
    pub fn watch(&self, run: &Run, redis: &Redis, instances: &[&str]) {
        let mut connection = None;
        while run.pause_to_the_end(PAUSE) {
            let looked = look(&mut connection, redis, instances);
            let Ok((snapshot, faults)) = looked else {
                connection = None;
                continue;
            };
            self.note(run, redis, snapshot, &faults);
            if !faults.is_empty() {
                // One instant tells it all; the next would say the same.
                break;
            }
        }
        while run.pause_to_the_end(PAUSE) {
            if let Ok((snapshot, _)) = look(&mut connection, redis, instances) {
                self.note(run, redis, snapshot, &[]);
            } else {
                connection = None;
            }
        }
    }

    fn note(&self, run: &Run, redis: &Redis, snapshot: Snapshot, faults: &[String]) {
        let (looks, before) = self.latest();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (looks + 1, snapshot);
        drop(latest);
        let mut most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        most.backlog = most.backlog.max(snapshot.backlog);
        most.progress = most.progress.max(snapshot.progress);
        drop(most);
        for fault in faults.iter().take(50) {
            let id = fault.split(' ').next().unwrap_or_default();
            run.fault_of(id, fault.as_str());
        }
        if snapshot.dead > before.dead {
            let lists = CHAINS.iter().map(|chain| chain.list.to_owned());
            let storages = STORAGES.iter().map(|name| format!("storage:{name}"));
            for queue in lists.chain(storages) {
                let key = format!("conserver:dlq:{queue}");
                let reasons: RedisResult<Vec<String>> = redis.try_ask(&["HGETALL", &key]);
                run.fault(format!("DLQ:{queue}: {:?}", reasons.unwrap_or_default()));
            }
        }
        if looks % LOOKS_BETWEEN_WORDS == 0 {
            let (seconds, kills) = (run.elapsed().as_secs(), run.kills());
            let line = format!("{seconds} s, {kills} kills, {snapshot:?}");
            run.write(&line);
            println!("torture: {line}");
        }
    }
}

fn look(
    connection: &mut Option<redis::Connection>,
    redis: &Redis,
    instances: &[&str],
) -> RedisResult<(Snapshot, Vec<String>)> {
    type Answer = (usize, usize, usize, usize, usize, usize, usize, Vec<String>);
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(redis.try_connect()?),
    };
    let mut ask = redis::cmd("EVAL");
    ask.arg(SNAPSHOT).arg(0).arg(terms(instances).to_string());
    let answer: Answer = ask.query(connection)?;
    let (pushed, waiting, claimed, dead, announced, backlog, progress, faults) = answer;
    let snapshot = Snapshot {
        pushed,
        waiting,
        claimed,
        dead,
        announced,
        backlog,
        progress,
    };
    Ok((snapshot, faults))
}

/// What the script is to look at.
fn terms(instances: &[&str]) -> Value {
    let chains = CHAINS.map(|chain| {
        let pushed = if chain.list == THIRD.list {
            SENT_ON
        } else {
            JOURNAL
        };
        let mut terms = json!({"list": chain.list, "egress": chain.egress,
            "announced": chain.announced(), "pushed": pushed});
        if chain.list == SECOND.list {
            terms["chosen"] = CHOSEN.into();
            terms["chosen_are_pushed"] = SENT_ON.into();
        }
        terms
    });
    json!({"instances": instances, "most_tokens": MOST_LANES, "chains": chains,
        "storages": STORAGES})
}
