//! Handing vCons in, as the API server does: the document, the sorted set, the ingress list.

use redis::Value;

use super::round_trip::round_trip;
use super::{Kind, Lease, QueueError};
use crate::config::ListName;
use crate::settings::RedisFormat;
use crate::vcon::Outgoing;

/// So many of the newest vCons tell how they are kept in this deployment.
const LOOKED_AT: i64 = 10;

/// Where vCons are handed in, and how they are kept.
pub struct Submitter {
    lease: Lease,
    /// How a document is kept whose key is new.
    kind: Kind,
    list: ListName,
    sorted_set: String,
    expire: Option<u64>,
}

impl Submitter {
    /// Hands vCons in to `list`; `sorted_set` gets their keys by their time, and with `expire`
    /// their documents live so many seconds. A key that is there keeps its kind, a new one is of this
    /// format.
    pub fn new(
        mut lease: Lease,
        list: ListName,
        sorted_set: String,
        expire: Option<u64>,
        format: RedisFormat,
    ) -> Result<Self, QueueError> {
        let is_json = match format {
            RedisFormat::Plain => false,
            RedisFormat::Json => lease.has_json()?,
            RedisFormat::Auto => lease.has_json()? && keeps_json(&mut lease, &sorted_set)?,
        };
        let kind = if is_json { Kind::Json } else { Kind::Text };
        Ok(Self {
            lease,
            kind,
            list,
            sorted_set,
            expire,
        })
    }

    /// Hands in several vCons: first the documents, then, in a second round trip, the entries of
    /// those that Redis took. Answers for each of them nothing, or why Redis refused it.
    pub fn submit(&mut self, vcons: &[Outgoing]) -> Result<Vec<Option<String>>, QueueError> {
        let keys: Vec<String> = vcons.iter().map(|vcon| vcon.id.key()).collect();
        let kinds = kinds(&mut self.lease, &keys)?;
        let mut documents = redis::pipe();
        for (vcon, kind) in vcons.iter().zip(kinds) {
            add_document(&mut documents, vcon, kind.unwrap_or(self.kind));
        }
        let answers = round_trip(&mut self.lease, &documents)?;
        let refusals = answers
            .into_iter()
            .map(refusal)
            .collect::<Result<Vec<_>, _>>()?;
        let mut entries = redis::pipe();
        for (vcon, refusal) in vcons.iter().zip(&refusals) {
            if refusal.is_none() {
                self.add_entry(&mut entries, vcon);
            }
        }
        for answer in round_trip(&mut self.lease, &entries)? {
            answer.extract_error()?;
        }
        Ok(refusals)
    }

    fn add_entry(&self, steps: &mut redis::Pipeline, vcon: &Outgoing) {
        let key = vcon.id.key();
        if let Some(seconds) = self.expire {
            steps.cmd("EXPIRE").arg(&key).arg(seconds).ignore();
        }
        let time = vcon.created_or_now().unix;
        steps
            .cmd("ZADD")
            .arg(&self.sorted_set)
            .arg(time)
            .arg(&key)
            .ignore();
        steps
            .cmd("RPUSH")
            .arg(self.list.as_str())
            .arg(vcon.id.as_str())
            .ignore();
    }
}

fn add_document(steps: &mut redis::Pipeline, vcon: &Outgoing, kind: Kind) {
    let key = vcon.id.key();
    match kind {
        Kind::Json => steps.cmd("JSON.SET").arg(key).arg("$").arg(&vcon.json),
        Kind::Text => steps.cmd("SET").arg(key).arg(&vcon.json),
    };
}

/// Whether any of the newest vCons is kept as RedisJSON.
fn keeps_json(lease: &mut Lease, sorted_set: &str) -> Result<bool, QueueError> {
    let mut newest = redis::pipe();
    newest
        .cmd("ZREVRANGE")
        .arg(sorted_set)
        .arg(0)
        .arg(LOOKED_AT - 1);
    let mut answers = round_trip(lease, &newest)?;
    // What is no sorted set tells of no vCon.
    let found = answers.pop().and_then(|answer| answer.extract_error().ok());
    let keys = found.and_then(|found| redis::from_redis_value::<Vec<String>>(found).ok());
    let kinds = kinds(lease, &keys.unwrap_or_default())?;
    Ok(kinds.contains(&Some(Kind::Json)))
}

/// How the documents under these keys are kept; `None` if there is none.
fn kinds(lease: &mut Lease, keys: &[String]) -> Result<Vec<Option<Kind>>, QueueError> {
    let mut types = redis::pipe();
    for key in keys {
        types.cmd("TYPE").arg(key);
    }
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut kinds = Vec::new();
    for answer in round_trip(lease, &types)? {
        let answer = answer.extract_error()?;
        let kind: String = redis::from_redis_value(answer).map_err(redis::RedisError::from)?;
        kinds.push(match kind.as_str() {
            "ReJSON-RL" => Some(Kind::Json),
            "string" => Some(Kind::Text),
            _ => None,
        });
    }
    Ok(kinds)
}

/// Why Redis refused this document, where it did.
fn refusal(answer: Value) -> Result<Option<String>, QueueError> {
    match answer.extract_error().map_err(QueueError::of_write) {
        Ok(_) => Ok(None),
        Err(QueueError::Document(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}
