//! Waking idle lanes without taking work.
//!
//! `BLPOP` on an ingress list takes the entry out of Redis before anyone holds a claim on it: a
//! worker killed, or a connection cut, between the server's answer and the next command loses the
//! vCon. So an idle lane blocks in `BLPOP` on its instance's *wake list*, in which there are
//! tokens, and then claims. A token is worth nothing: one that is lost, or one too many, costs
//! time and never a vCon.
//!
//! ```text
//! ingress lists ──changed──► monitor ──one token for each entry──► wake list ──BLPOP──► idle lane ──► claim
//! ```
//!
//! The monitor learns of changes by server-assisted client-side caching (`CLIENT TRACKING`,
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>): reading the lengths of
//! the lists arms it, and the server tells of the next change of any of them at once.

use std::time::Duration;

use redis::Value;

use super::round_trip::round_trip;
use super::script::Script;
use super::{Lease, NameLease, Queue, QueueError, Server, keys};
use crate::config::ListName;

/// So many tokens are put into the list at one look. Those that take them change the ingress
/// lists, which leads to the next look.
const MOST_TOKENS: u64 = 512;

/// How a lane's wait has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// By a token, or the time was over.
    Woken,
    /// The server did not let it wait; says why.
    Refused(String),
}

/// What a look at the ingress lists has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// How many entries wait in them.
    pub waiting: u64,
    /// Whether there were tokens left that no lane has taken: all are at work.
    pub has_tokens_left: bool,
}

/// Looks at the ingress lists, and has idle lanes woken for what waits there.
pub struct Lookout {
    connected: Lease,
    script: Script,
    lease: NameLease,
}

impl Lookout {
    /// One that can only look; `name` tells it from the other connections of the instance. Neither
    /// connecting nor an answer may take longer than `limit`.
    pub fn connect(
        server: &Server,
        name: &str,
        lease: NameLease,
        limit: Duration,
    ) -> Result<Self, QueueError> {
        let name = keys::client_name(&lease.instance, name);
        Ok(Self {
            connected: server.connect_for(&name, limit)?,
            script: Script::new(include_str!("scripts/wake.lua")),
            lease,
        })
    }

    /// One that can also wait for a change; `server` must be one [`Server::with_pushes`]. The wait
    /// may not take longer than `limit` either.
    pub fn tracking(
        server: &Server,
        name: &str,
        lease: NameLease,
        limit: Duration,
    ) -> Result<Self, QueueError> {
        let mut this = Self::connect(server, name, lease, limit)?;
        redis::cmd("CLIENT")
            .arg(&["TRACKING", "ON"])
            .query::<()>(&mut *this.connected)?;
        Ok(this)
    }

    /// Looks at the lists, and puts as many tokens into the wake list as there are entries in
    /// them, but not more than `lanes`. After an error this lookout is not to be used again.
    pub fn look(&mut self, lists: &[ListName], lanes: u64) -> Result<Watched, QueueError> {
        let instance = &self.lease.instance;
        let mut call = self.script.key(keys::instance_key(instance));
        for list in lists {
            call.key(list.as_str());
        }
        call.arg(&self.lease.record).arg(lanes.min(MOST_TOKENS));
        call.arg(keys::wake_key(instance));
        let (waiting, left): (u64, u64) = call.invoke(&mut *self.connected)?;
        Ok(Watched {
            waiting,
            has_tokens_left: left > 0,
        })
    }

    /// Waits for a change of what was looked at last, or of the lease on the instance's name: as
    /// this is renewed all the time, a server that tells of nothing is not heard any more. After
    /// an error this lookout is not to be used again.
    pub fn wait(&mut self) -> Result<(), QueueError> {
        // What is told before the answer to a look is older than that look, and the client library
        // passes it over.
        match self.connected.recv_response()? {
            Value::Push { .. } => Ok(()),
            _ => Err(QueueError::Answer("nothing")),
        }
    }
}

/// Ends the waits of lanes.
pub struct Waker {
    server: Server,
    key: String,
    connected: Option<Lease>,
}

impl Waker {
    /// How long connecting, or one answer, may take.
    const LIMIT: Duration = Duration::from_secs(1);

    /// One for the lanes of an instance; connects when first used.
    pub fn new(server: Server, instance: &str) -> Self {
        Self {
            server,
            key: keys::wake_key(instance),
            connected: None,
        }
    }

    /// Ends the waits of these lanes, by what the server calls their connections. For each that is
    /// not known, or not for us to end, there is a token instead: another lane may take it.
    pub fn wake(&mut self, clients: &[i64]) -> Result<(), QueueError> {
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.server.connect_for("conserver:waker", Self::LIMIT)?,
        };
        let mut unblock = redis::pipe();
        let known: Vec<&i64> = clients.iter().filter(|client| **client != 0).collect();
        for client in &known {
            unblock.cmd("CLIENT").arg("UNBLOCK").arg(**client);
        }
        let answers = round_trip(&mut connected, &unblock)?;
        let refused = answers
            .iter()
            .filter(|it| matches!(it, Value::ServerError(_)));
        let tokens = vec![""; clients.len() - known.len() + refused.count()];
        if !tokens.is_empty() {
            redis::cmd("RPUSH")
                .arg(&self.key)
                .arg(tokens)
                .query::<()>(&mut *connected)?;
        }
        self.connected = Some(connected);
        Ok(())
    }
}

impl Queue {
    /// What the server calls this connection; 0 if it does not tell.
    pub fn client_id(&mut self) -> Result<i64, QueueError> {
        self.connect()?;
        let Some(connected) = self.connected.as_mut() else {
            return Err(QueueError::Closed);
        };
        let id = connected.client_id();
        id.map_err(|error| self.noting(error.into()))
    }

    /// Waits for a token, and for `time` at the longest.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn wait_for_token(&mut self, time: Duration) -> Result<Waited, QueueError> {
        let key = keys::wake_key(&self.seat.instance);
        let waited = self.with(|connection, _, _, _| {
            let popped = redis::cmd("BLPOP")
                .arg(key)
                .arg(seconds(time))
                .query::<Value>(connection);
            Ok(popped?)
        });
        match waited {
            Ok(_) => Ok(Waited::Woken),
            // By somebody else, or because the server is no master any more.
            Err(QueueError::Command(error)) if error.code() == Some("UNBLOCKED") => {
                Ok(Waited::Woken)
            }
            Err(error) if error.breaks_connection() => Err(error),
            Err(error) => Ok(Waited::Refused(error.to_string())),
        }
    }
}

/// A time as `BLPOP` takes it: before Redis 6 in whole seconds only.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{:.3}", time.as_secs_f64().max(0.001)),
        whole => whole.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_a_second_or_more_is_told_in_whole_seconds() {
        for (ms, expected) in [
            (0, "0.001"),
            (1, "0.001"),
            (100, "0.100"),
            (999, "0.999"),
            (1000, "1"),
            (2500, "2"),
            (20_000, "20"),
        ] {
            // 0 would be without end.
            assert_eq!(seconds(Duration::from_millis(ms)), expected);
        }
    }
}
