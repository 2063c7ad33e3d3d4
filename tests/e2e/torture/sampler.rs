//! The sampler: looks all the time whether every vCon is in exactly one place.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisResult;

use super::run::Run;
use crate::harness::Redis;

/// The hash of announced UUIDs: how often each was.
pub const ANNOUNCED: &str = "torture:announced";

/// One atomic script, sent as text: a flush of the scripts must not disturb it.
const SNAPSHOT: &str = include_str!("snapshot.lua");

const PAUSE: Duration = Duration::from_millis(25);

/// After so many looks, it is told how far the run is.
const LOOKS_BETWEEN_WORDS: usize = 400;

/// How many vCons are where.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    pub journalled: usize,
    pub waiting: usize,
    pub claimed: usize,
    pub dead: usize,
    pub announced: usize,
}

impl Snapshot {
    /// Whether all that was pushed is worked off.
    pub fn is_settled(&self) -> bool {
        self.waiting + self.claimed == 0 && self.announced + self.dead == self.journalled
    }
}

/// What the sampler has seen.
#[derive(Default)]
pub struct Sampler {
    latest: Mutex<(usize, Snapshot)>,
}

impl Sampler {
    /// How often it has looked, and what it saw last.
    pub fn latest(&self) -> (usize, Snapshot) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
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
        for fault in faults.iter().take(50) {
            let id = fault.split(' ').next().unwrap_or_default();
            run.fault_of(id, fault.as_str());
        }
        if snapshot.dead > before.dead {
            let reasons: RedisResult<Vec<String>> =
                redis.try_ask(&["HGETALL", "conserver:dlq:default"]);
            run.fault(format!("dead letters: {:?}", reasons.unwrap_or_default()));
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
    type Answer = (usize, usize, usize, usize, usize, Vec<String>);
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(redis.try_connect()?),
    };
    let mut ask = redis::cmd("EVAL");
    ask.arg(SNAPSHOT).arg(0).arg(instances);
    let (journalled, waiting, claimed, dead, announced, faults): Answer = ask.query(connection)?;
    let snapshot = Snapshot {
        journalled,
        waiting,
        claimed,
        dead,
        announced,
    };
    Ok((snapshot, faults))
}
