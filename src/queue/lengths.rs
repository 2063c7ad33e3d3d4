//! How long lists are.

use std::time::Duration;

use redis::Value;

use super::round_trip::round_trip;
use super::{Lease, QueueError, Server};

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

    /// The lengths of the lists of these names. What is not a list has none. Without names, this
    /// asks only whether the server is there.
    ///
    /// # Errors
    /// The server cannot be reached, or does not serve at present.
    pub fn ask(&mut self, names: &[String]) -> Result<Vec<Option<u64>>, QueueError> {
        let mut lease = match self.connected.take() {
            Some(lease) => lease,
            None => self.server.connect_for("conserver:lengths", self.limit)?,
        };
        let mut asked = redis::pipe();
        asked.cmd("PING");
        for name in names {
            asked.cmd("LLEN").arg(name);
        }
        let mut answers = round_trip(&mut lease, &asked)?.into_iter();
        match answers.next().unwrap_or(Value::Nil).extract_error() {
            // This user may not ask, but it was answered.
            Err(error) if error.code() != Some("NOPERM") => return Err(error.into()),
            _ => {}
        }
        self.connected = Some(lease);
        let length = |answer: Value| redis::from_redis_value(answer).ok();
        Ok(answers.map(length).collect())
    }
}
