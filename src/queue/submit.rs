//! Handing vCons in, as the API server does: the document, the sorted set, the ingress list.

use redis::Value;

use super::round_trip::round_trip;
use super::{Kind, Lease, QueueError};
use crate::config::ListName;
use crate::vcon::Outgoing;

/// Where vCons are handed in, and how they are kept.
pub struct Submitter {
    lease: Lease,
    json: bool,
    list: ListName,
    sorted_set: String,
    expire: Option<u64>,
}

impl Submitter {
    /// Hands vCons in to `list`; `sorted_set` gets their keys by their time, and with `expire`
    /// their documents live so many seconds.
    pub fn new(
        mut lease: Lease,
        list: ListName,
        sorted_set: String,
        expire: Option<u64>,
    ) -> Result<Self, QueueError> {
        let json = kind_of_new(&mut lease)? == Kind::Json;
        Ok(Self {
            lease,
            json,
            list,
            sorted_set,
            expire,
        })
    }

    /// Hands in several vCons: first the documents, then, in a second round trip, the entries of
    /// those that Redis took. Answers for each of them nothing, or why Redis refused it.
    pub fn submit(&mut self, vcons: &[Outgoing]) -> Result<Vec<Option<String>>, QueueError> {
        let mut documents = redis::pipe();
        for vcon in vcons {
            self.add_document(&mut documents, vcon);
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

    fn add_document(&self, steps: &mut redis::Pipeline, vcon: &Outgoing) {
        let key = vcon.id.key();
        if self.json {
            steps.cmd("JSON.SET").arg(key).arg("$").arg(&vcon.json);
        } else {
            steps.cmd("SET").arg(key).arg(&vcon.json);
        }
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
pub(super) fn kind_of_new(lease: &mut Lease) -> Result<Kind, QueueError> {
    Ok(if lease.has_json()? {
        Kind::Json
    } else {
        Kind::Text
    })
}

/// Why Redis refused this document, where it did.
fn refusal(answer: Value) -> Result<Option<String>, QueueError> {
    match answer.extract_error().map_err(QueueError::of_write) {
        Ok(_) => Ok(None),
        Err(QueueError::Document(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}
