//! Documents in Redis, for whoever looks at one or removes it.

use super::dead_letters::Kept;
use super::round_trip::transaction;
use super::{Lease, QueueError};
use crate::vcon::VconId;

/// Access to the documents.
pub struct Documents {
    lease: Lease,
}

/// What of a vCon was in Redis, and has been removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Its document.
    pub document: bool,
    /// Its entry in the sorted set.
    pub entry: bool,
}

impl Documents {
    /// Over this connection.
    pub fn new(lease: Lease) -> Self {
        Self { lease }
    }

    /// The document of a vCon.
    pub fn get(&mut self, id: &VconId) -> Result<Kept, QueueError> {
        Kept::read(&mut self.lease, id)
    }

    /// Removes the document of a vCon, and its entry in the sorted set of this name.
    pub fn delete(&mut self, id: &VconId, sorted_set: &str) -> Result<Removed, QueueError> {
        let key = id.key();
        let mut steps = redis::pipe();
        steps.cmd("DEL").arg(&key);
        steps.cmd("ZREM").arg(sorted_set).arg(&key);
        let mut answers = Vec::new();
        for answer in transaction(&mut self.lease, &steps)? {
            let answer = answer.extract_error()?;
            answers.push(redis::from_redis_value::<u64>(answer).map_err(redis::RedisError::from)?);
        }
        match answers[..] {
            [document, entry] => Ok(Removed {
                document: document > 0,
                entry: entry > 0,
            }),
            _ => Err(QueueError::Answer("deleting a document")),
        }
    }
}
