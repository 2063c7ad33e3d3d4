//! The steps of a vCon's way, taken once for a vCon that nobody else sees.
//!
//! Lease, claim and finish are those of a lane, under an instance's name and on lists of their own. All of
//! it is removed at the end; what a sudden end leaves behind runs out.

use std::time::Duration;

use redis::Value;

use super::round_trip::round_trip;
use super::{
    Claimed, Document, Expiry, Finish, Finished, Holder, Kind, Lease, NameLease, Queue, QueueError,
    Replacement, Seat, Server, keys,
};
use crate::config::ListName;
use crate::settings::Settings;
use crate::vcon::VconId;

/// How long the keys live if nobody removes them. The lease outlives the claim, which so is gone before
/// another daemon would return it to its list.
const EXPIRY: u64 = 30;
const LEASE: Duration = Duration::from_secs(60);

const BEFORE: &str = r#"{"rehearsal":"before"}"#;
const AFTER: &str = r#"{"rehearsal":"after"}"#;

/// Why the steps could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// Redis refuses one.
    #[error("could not {step}: {cause}")]
    Refused {
        /// The step.
        step: &'static str,
        /// What it says.
        cause: QueueError,
    },
    /// A step had another result than it should.
    #[error("could not {0}: it had no effect")]
    NoEffect(&'static str),
}

/// What the steps work on.
struct Stage {
    queue: Queue,
    tools: Lease,
    seat: Seat,
    id: VconId,
    ingress: ListName,
    egress: ListName,
}

/// Takes all steps, each request within `limit`, and cleans up.
///
/// # Errors
/// The first step that failed.
pub fn rehearse(
    server: &Server,
    settings: &Settings,
    limit: Duration,
) -> Result<(), RehearsalError> {
    let mut stage =
        Stage::new(server, settings, limit).map_err(|cause| refused("connect", cause))?;
    let result = stage.steps();
    let cleaned = stage.clean_up();
    result?;
    cleaned.map_err(|cause| refused("remove the probe", cause))
}

fn refused(step: &'static str, cause: QueueError) -> RehearsalError {
    RehearsalError::Refused { step, cause }
}

impl Stage {
    fn new(server: &Server, settings: &Settings, limit: Duration) -> Result<Self, QueueError> {
        let id = VconId::random();
        let seat = Seat {
            instance: format!("check-{id}"),
            worker: 1,
            lane: 1,
        };
        let settings = Settings {
            instance: seat.instance.clone(),
            heartbeat_ttl: LEASE,
            ..settings.clone()
        };
        let list = |end: &str| {
            let name = format!("conserver:check:{id}:{end}");
            name.parse::<ListName>()
                .map_err(|_| QueueError::Answer("the name of a list"))
        };
        let lease = NameLease::new(&settings, Holder::this_process(fastrand::u64(1..)));
        let expiry = Expiry::of(&settings);
        Ok(Self {
            queue: Queue::new(server.clone(), seat.clone(), expiry, lease).within(limit),
            tools: server.connect_for("conserver:check", limit)?,
            ingress: list("in")?,
            egress: list("out")?,
            seat,
            id,
        })
    }

    fn steps(&mut self) -> Result<(), RehearsalError> {
        let leased = self.queue.take_lease();
        leased.map_err(|cause| refused("take the lease on a name", cause))?;

        let mut submit = redis::pipe();
        submit
            .cmd("SET")
            .arg(self.id.key())
            .arg(BEFORE)
            .arg("EX")
            .arg(EXPIRY);
        submit
            .cmd("RPUSH")
            .arg(self.ingress.as_str())
            .arg(self.id.as_str());
        submit.cmd("EXPIRE").arg(self.ingress.as_str()).arg(EXPIRY);
        submit
            .cmd("EXPIRE")
            .arg(keys::workers_key(&self.seat.instance))
            .arg(EXPIRY);
        self.run(&submit)
            .map_err(|cause| refused("submit a vCon", cause))?;

        let claimed = self.queue.claim(std::slice::from_ref(&self.ingress));
        let claimed = claimed.map_err(|cause| refused("claim a vCon", cause))?;
        let Claimed {
            work: Some((claim, Document::Found(Kind::Text, text))),
            ..
        } = claimed
        else {
            return Err(RehearsalError::NoEffect("claim a vCon"));
        };
        if text != BEFORE.as_bytes() {
            return Err(RehearsalError::NoEffect("load a vCon"));
        }
        let mut expire = redis::pipe();
        for key in [
            self.seat.claims_key(),
            keys::workers_key(&self.seat.instance),
        ] {
            expire.cmd("EXPIRE").arg(key).arg(EXPIRY);
        }
        self.run(&expire)
            .map_err(|cause| refused("have a claim expire", cause))?;

        let finish = Finish {
            id: &self.id,
            document: Some(Replacement {
                kind: Kind::Text,
                base: BEFORE,
                text: Some(AFTER),
            }),
            expire: Some(EXPIRY),
            egress: std::slice::from_ref(&self.egress),
            routes: &[],
            letters: &[],
        };
        let finished = self.queue.finish(&claim, &finish);
        match finished.map_err(|cause| refused("finish a vCon", cause))? {
            Finished::Done => {}
            _ => return Err(RehearsalError::NoEffect("finish a vCon")),
        }
        let mut look = redis::pipe();
        look.cmd("GET").arg(self.id.key());
        look.cmd("LRANGE").arg(self.egress.as_str()).arg(0).arg(-1);
        let found = self
            .run(&look)
            .map_err(|cause| refused("see the finish", cause))?;
        let bytes = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        if found == [bytes(AFTER), Value::Array(vec![bytes(self.id.as_str())])] {
            Ok(())
        } else {
            Err(RehearsalError::NoEffect("finish a vCon"))
        }
    }

    fn run(&mut self, commands: &redis::Pipeline) -> Result<Vec<Value>, QueueError> {
        let answers = round_trip(&mut self.tools, commands)?;
        let answers = answers.into_iter().map(Value::extract_error);
        Ok(answers.collect::<Result<_, _>>()?)
    }

    /// Removes what the steps have left, wherever they ended.
    fn clean_up(&mut self) -> Result<(), QueueError> {
        let instance = &self.seat.instance;
        let mut delete = redis::pipe();
        // One by one: the user may not have the right to each.
        for key in [
            self.seat.claims_key(),
            keys::workers_key(instance),
            keys::taken_key(instance, self.seat.worker),
            self.id.key(),
            self.ingress.as_str().to_owned(),
            self.egress.as_str().to_owned(),
            keys::instance_key(instance),
        ] {
            delete.cmd("DEL").arg(key);
        }
        // Last: others look after the claims of those who are in there.
        delete.cmd("SREM").arg(keys::INSTANCES).arg(instance);
        self.run(&delete).map(drop)
    }
}
