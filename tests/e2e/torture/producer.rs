//! The producer: submits vCons all the time, as the API server does.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::{Connection, RedisResult};
use serde_json::json;

use super::books::has_tag;
use super::chains::{MAIN, ROUTED, SECOND};
use super::run::Run;
use crate::harness::{Redis, Sample, fresh};

/// The set of every UUID that was pushed. It is written in the same transaction as the pushes, so
/// that it tells of those too whose acknowledgement was lost.
pub const JOURNAL: &str = "torture:journal";

/// The set of those that the second chain is to send on.
pub const CHOSEN: &str = "torture:chosen";

/// The time between two vCons.
const PAUSE: Duration = Duration::from_millis(20);

/// No more are submitted while so many wait in a list: the chains of one vCon are to meet.
const MOST_WAITING: usize = 40;

/// What was submitted.
#[derive(Default)]
pub struct Submitted {
    /// Redis has acknowledged the push: none of these may be missing.
    pub acknowledged: BTreeSet<String>,
    /// It has not: these may have been pushed, or not.
    pub unacknowledged: BTreeSet<String>,
}

/// Submits vCons as long as things happen.
pub fn produce(run: &Run, redis: &Redis) -> Submitted {
    let mut random = run.random("producer");
    let large = fresh(20);
    let mut submitted = Submitted::default();
    let mut connection = None;
    while run.pause(PAUSE) {
        let sample = if random.u8(..20) == 0 {
            Sample::of(large[random.usize(..large.len())].document.clone())
        } else {
            small(&mut random)
        };
        match submit(&mut connection, redis, &sample) {
            Ok(waiting) => {
                submitted.acknowledged.insert(sample.id);
                while waiting > MOST_WAITING && run.pause(PAUSE) {
                    let lengths = [MAIN, SECOND].map(|chain| {
                        let length: RedisResult<usize> = redis.try_ask(&["LLEN", chain.list]);
                        length.unwrap_or(usize::MAX)
                    });
                    if lengths.iter().all(|length| *length < MOST_WAITING) {
                        break;
                    }
                }
            }
            Err(Step::Document) => connection = None,
            Err(Step::Push) => {
                connection = None;
                submitted.unacknowledged.insert(sample.id);
            }
        }
    }
    submitted
}

/// A vCon of some hundred bytes, with text of its own.
fn small(random: &mut fastrand::Rng) -> Sample {
    let mut sample = Sample::small();
    let words = random.usize(1..60);
    let text: String = (0..words).map(|_| random.alphabetic()).collect();
    sample.document["dialog"] = json!([{
        "type": "text", "start": "2024-03-16T16:09:20Z", "parties": [0],
        "mediatype": "text/plain", "body": text, "encoding": "none",
    }]);
    if is_chosen(random) {
        sample.document["attachments"] = json!([{
            "purpose": "tags", "encoding": "json", "body": format!("[\"{ROUTED}:{ROUTED}\"]"),
        }]);
    }
    sample
}

fn is_chosen(random: &mut fastrand::Rng) -> bool {
    random.u8(..3) == 0
}

/// The step of submitting that has failed.
enum Step {
    Document,
    Push,
}

/// Pushes it onto the lists of two chains. Returns how many vCons wait now in the longer one.
fn submit(
    connection: &mut Option<Connection>,
    redis: &Redis,
    sample: &Sample,
) -> Result<usize, Step> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(redis.try_connect().map_err(|_| Step::Document)?),
    };
    write(connection, redis, sample).map_err(|_| Step::Document)?;
    let mut steps = redis::pipe();
    steps.atomic();
    for chain in [MAIN, SECOND] {
        steps.cmd("RPUSH").arg(chain.list).arg(&sample.id);
    }
    steps.cmd("SADD").arg(JOURNAL).arg(&sample.id).ignore();
    if has_tag(&sample.document, ROUTED) {
        steps.cmd("SADD").arg(CHOSEN).arg(&sample.id).ignore();
    }
    let pushed: RedisResult<(usize, usize)> = steps.query(connection);
    let waiting = pushed.map(|(main, second)| main.max(second));
    waiting.map_err(|_| Step::Push)
}

/// The context that a vCon is submitted with, and announced with in the end.
pub fn context_of(id: &str) -> String {
    let trace = id.replace('-', "");
    json!({"trace_id": trace, "span_id": trace[..16], "trace_flags": 1}).to_string()
}

fn write(connection: &mut Connection, redis: &Redis, sample: &Sample) -> RedisResult<()> {
    let key = format!("vcon:{}", sample.id);
    let mut steps = redis::pipe();
    if redis.has_json() {
        let set = steps.cmd("JSON.SET").arg(&key).arg("$");
        set.arg(sample.text()).ignore();
    } else {
        steps.cmd("SET").arg(&key).arg(sample.text()).ignore();
    }
    for chain in [MAIN, SECOND] {
        let context = format!("context:{}:{}", chain.list, sample.id);
        let push = steps.cmd("RPUSH").arg(context);
        push.arg(context_of(&sample.id)).ignore();
    }
    let add = steps.cmd("ZADD").arg("vcons").arg(1_710_605_360);
    add.arg(&key).ignore();
    steps.query(connection)
}
