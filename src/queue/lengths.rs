//! How long lists are, and how many fields hashes have.

use std::time::Duration;

use redis::Value;

use super::round_trip::round_trip;
use super::{Lease, QueueError, Server};

/// The lengths of lists, and those of hashes.
type Counts = (Vec<Option<u64>>, Vec<Option<u64>>);

/// Asks for the lengths of lists, over one connection that is kept from question to question.
pub struct Lengths {
    server: Server,
    limit: Duration,
    connected: Option<Lease>,
}

impl Lengths {
    /// Neither connecting nor an answer may take longer than `limit`.
    pub fn new(server: Server, limit: Duration) -> Self {
        Self {
            server,
            limit,
            connected: None,
        }
    }

    /// The lengths of the lists of these names, and how many fields the hashes of those names have.
    /// What is not a list, or not a hash, has none. Without names, this asks only whether the server
    /// is there.
    ///
    /// # Errors
    /// The server cannot be reached, or does not serve at present.
    pub fn ask(&mut self, lists: &[String], hashes: &[String]) -> Result<Counts, QueueError> {
        let mut lease = match self.connected.take() {
            Some(lease) => lease,
            None => self.server.connect_for("conserver:lengths", self.limit)?,
        };
        let mut asked = redis::pipe();
        asked.cmd("PING");
        for name in lists {
            asked.cmd("LLEN").arg(name);
        }
        for name in hashes {
            asked.cmd("HLEN").arg(name);
        }
        let mut answers = round_trip(&mut lease, &asked)?.into_iter();
        match answers.next().unwrap_or(Value::Nil).extract_error() {
            // This user may not ask, but it was answered.
            Err(error) if error.code() != Some("NOPERM") => return Err(error.into()),
            _ => {}
        }
        self.connected = Some(lease);
        let length = |answer: Value| redis::from_redis_value(answer).ok();
        let mut counts: Vec<_> = answers.map(length).collect();
        let of_hashes = counts.split_off(lists.len().min(counts.len()));
        Ok((counts, of_hashes))
    }
}
