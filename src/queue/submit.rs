//! Handing vCons in, as the API server does: the document, the sorted set, the ingress list.

use redis::Value;

use super::dead_letters::is_wrong_type;
use super::documents::JSON;
use super::round_trip::round_trip;
use super::{Kind, Lease, QueueError};
use crate::config::ListName;
use crate::redis_server::why_too_long;
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
        let kind = kind_of_new(&mut lease, format, &sorted_set)?;
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
        let mut refusals = vec![None; vcons.len()];
        let (mut documents, mut places) = (redis::pipe(), Vec::new());
        for (place, found) in types(&mut self.lease, &keys)?.into_iter().enumerate() {
            let kind = match found.as_str() {
                "none" => self.kind,
                "string" => Kind::Text,
                JSON => Kind::Json,
                other => {
                    refusals[place] = Some(format!("its key holds a {other}, not a document"));
                    continue;
                }
            };
            let vcon = &vcons[place];
            if let Some(why) = why_too_long(&mut self.lease, vcon.json.len())? {
                refusals[place] = Some(why);
                continue;
            }
            documents.add_command(kind.put(&vcon.id.key()).arg(&vcon.json).clone());
            places.push(place);
        }
        if !places.is_empty() {
            let answers = round_trip(&mut self.lease, &documents)?;
            for (place, answer) in places.into_iter().zip(answers) {
                refusals[place] = refusal(answer)?;
            }
        }
        let mut entries = redis::pipe();
        for (vcon, refusal) in vcons.iter().zip(&refusals) {
            if refusal.is_none() {
                self.add_entry(&mut entries, vcon);
            }
        }
        if refusals.iter().any(Option::is_none) {
            for answer in round_trip(&mut self.lease, &entries)? {
                answer.extract_error()?;
            }
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

/// How a document is kept whose key is new.
pub(super) fn kind_of_new(
    lease: &mut Lease,
    format: RedisFormat,
    sorted_set: &str,
) -> Result<Kind, QueueError> {
    let is_json = match format {
        RedisFormat::Plain => false,
        RedisFormat::Json => lease.has_json()?,
        RedisFormat::Auto => lease.has_json()? && keeps_json(lease, sorted_set)?,
    };
    Ok(if is_json { Kind::Json } else { Kind::Text })
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
    let answer = answers.pop().unwrap_or(Value::Nil);
    let keys = match answer.extract_error() {
        Ok(found) => redis::from_redis_value::<Vec<Vec<u8>>>(found)
            .map_err(|_| QueueError::Answer("asking for the newest vCons"))?,
        // What is no sorted set tells of no vCon.
        Err(error) if is_wrong_type(&error) => Vec::new(),
        // Nothing is guessed, or every vCon would be kept in the wrong way from here on.
        Err(error) => return Err(error.into()),
    };
    let types = types(lease, &keys)?;
    Ok(types.iter().any(|found| found == JSON))
}

/// What Redis calls that which stands under each of these keys.
fn types<K: redis::ToRedisArgs>(lease: &mut Lease, keys: &[K]) -> Result<Vec<String>, QueueError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut steps = redis::pipe();
    for key in keys {
        steps.cmd("TYPE").arg(key);
    }
    let mut types = Vec::new();
    for answer in round_trip(lease, &steps)? {
        let answer = answer.extract_error()?;
        types.push(redis::from_redis_value(answer).map_err(redis::RedisError::from)?);
    }
    Ok(types)
}

/// Why Redis refused this document, where it did.
fn refusal(answer: Value) -> Result<Option<String>, QueueError> {
    match answer.extract_error().map_err(QueueError::of_write) {
        Ok(_) => Ok(None),
        Err(QueueError::Document(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}
