//! Handing vCons in, as the API server does: the document, the sorted set, the ingress list.

use super::round_trip::round_trip;
use super::{Lease, QueueError};
use crate::config::ListName;
use crate::vcon::{Outgoing, VconId};

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
        let json = lease.has_json()?;
        Ok(Self {
            lease,
            json,
            list,
            sorted_set,
            expire,
        })
    }

    /// Hands in several vCons in one round trip. Each one's document is there before its UUID is
    /// in the list.
    pub fn submit(&mut self, vcons: &[Outgoing]) -> Result<(), QueueError> {
        let mut steps = redis::pipe();
        for vcon in vcons {
            self.add(&mut steps, &vcon.id, vcon);
        }
        for answer in round_trip(&mut self.lease, &steps)? {
            answer.extract_error()?;
        }
        Ok(())
    }

    fn add(&self, steps: &mut redis::Pipeline, id: &VconId, vcon: &Outgoing) {
        let key = id.key();
        if self.json {
            steps
                .cmd("JSON.SET")
                .arg(&key)
                .arg("$")
                .arg(&vcon.json)
                .ignore();
        } else {
            steps.cmd("SET").arg(&key).arg(&vcon.json).ignore();
        }
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
            .arg(id.as_str())
            .ignore();
    }
}
