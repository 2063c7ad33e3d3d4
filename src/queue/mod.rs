//! The work in Redis: ingress lists, claims, egress lists, dead letter queues.
//!
//! Every step in the life of a vCon is one atomic script on the server, and every script first
//! checks that the claim it works on is still there. So a step whose answer was lost on the way
//! can be sent again, and a UUID is at any instant in exactly one place:
//!
//! ```text
//! ingress list ──claim──► claims hash ──finish──► egress lists, and the queue of a storage that
//!      ▲                     │   │                alone does not have it
//!      └──release, postpone──┘   └─dead-letter───► dead letter queue
//! ```
//!
//! The claims of a daemon are kept under its instance's name, on which it holds a lease: nothing
//! is claimed, and no worker's claims are returned, by a daemon that does not hold the name.
//!
//! A lane that finds nothing waits for a token in its instance's wake list (see [`Lookout`]).
//!
//! From the dead letter queue an operator puts entries back on the ingress list, or saves those of a
//! storage to it under a lock ([`DeadLetters`], [`ReplayLock`]);
//! [`Audit`] looks for vCons that are in none of these places; [`Documents`] gets and removes what
//! is kept of one.
//!
//! This module knows Redis and its keys, nothing of chains, links or storages.

mod audit;
mod claim;
mod dead_letters;
mod documents;
mod error;
mod exchange;
mod finish;
mod foreign;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keep;
mod keys;
mod lease;
mod lengths;
mod preflight;
mod pull;
mod raw;
mod recovery;
mod rehearsal;
mod release;
mod replace;
mod replay;
mod round_trip;
mod script;
mod scripts;
mod submit;
mod wakeup;

use std::sync::Arc;
use std::time::Duration;

pub use audit::{Audit, Lists, Place, Standing};
pub use claim::{Claim, Claimed};
pub use dead_letters::{DeadLetters, Entry, Kept, KeptReason, Letter, Moved, Owner, Settling};
pub use documents::{Document, Documents, Kind, Removed};
pub use error::QueueError;
pub use exchange::Exchange;
pub use finish::{Finish, Finished, Route, StorageLetter};
pub use foreign::Overwritten;
pub use keep::{Chore, Keeper, Pace, Taken};
pub use keys::{
    STORAGE_PREFIX, Seat, dead_letter_list, dead_letter_reasons, storage_letters_list,
    storage_letters_reasons, storage_replay_lock,
};
pub use lease::{Holder, NameLease};
pub use lengths::Lengths;
pub use preflight::{Fitness, Needs, Shortage, Work, cluster_refusal};
pub use pull::{HandedIn, Pulled, Pulls, left_by_followers};
pub use raw::Raw;
pub use recovery::{BEFORE_US, Blame, Dead, MAX_LAPSES, Pause, Recovered};
pub use rehearsal::{RehearsalError, rehearse};
pub use release::{Evidence, Progress, Reason, Released};
pub use replace::{Replaced, Replacement};
pub use replay::{HeldLock, ReplayLock, ReplayStart};
pub use submit::Submitter;
pub use wakeup::{Lookout, Waited, Waker, Watched};

pub use crate::redis_server::{ConnectError, Lease, Refusal, Server};

use crate::config::ListName;
use crate::settings::Settings;
use crate::vcon::VconId;
use exchange::{Request, ask_alone};
use keys::LaneKeys;
use redis::{Cmd, Value};
use script::is_missing;
use scripts::{Scripts, Step};

/// How long the keys live that this module writes, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// A vCon put back into Redis from a storage.
    pub document: u64,
    /// A `context:` key.
    pub context: u64,
    /// A vCon that enters a dead letter queue; 0 leaves it the time it has.
    pub dead_letter: u64,
}

impl Expiry {
    /// As the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self {
            document: settings.redis_expiry,
            context: settings.context_expiry,
            dead_letter: settings.dlq_expiry.unwrap_or(0),
        }
    }
}

/// One lane's access to the work: a connection of its own and the seat it sits on.
pub struct Queue {
    server: Server,
    connected: Option<Lease>,
    /// The vCon whose key the connection watches since before its document was loaded.
    watched: Option<VconId>,
    scripts: Scripts,
    seat: Seat,
    lane_keys: LaneKeys,
    expiry: Expiry,
    lease: Arc<NameLease>,
    limit: Option<Duration>,
    /// All ingress lists of the configuration, a line each.
    ingress: String,
    /// Where the lanes of a worker meet to ask together.
    exchange: Option<Arc<Exchange>>,
    /// The time of the last request for work, in microseconds.
    last_time: u128,
    /// Whether the last document was one that `turn.lua` hands over.
    is_usual: bool,
    /// Whether the server is not known to refuse the `SORT` that gets documents.
    can_sort: bool,
}

impl Queue {
    /// A queue that connects when first used.
    pub fn new(server: Server, seat: Seat, expiry: Expiry, lease: NameLease) -> Self {
        Self {
            server,
            connected: None,
            watched: None,
            scripts: Scripts::new(),
            lane_keys: LaneKeys::of(&seat),
            seat,
            expiry,
            lease: Arc::new(lease),
            limit: None,
            ingress: String::new(),
            exchange: None,
            last_time: 0,
            is_usual: true,
            can_sort: true,
        }
    }

    /// The same, but nothing on its connection may take longer than `limit`.
    pub fn within(self, limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// The same, but it asks together with others that share the exchange.
    pub fn sharing(self, exchange: Arc<Exchange>) -> Self {
        Self {
            exchange: Some(exchange),
            ..self
        }
    }

    /// Names all ingress lists there are: a vCon may have made progress on each of them.
    pub fn set_ingress<'a>(&mut self, lists: impl Iterator<Item = &'a ListName>) {
        let names: Vec<&str> = lists.map(ListName::as_str).collect();
        self.ingress = names.join("\n");
    }

    /// The beginning of a call of a step's script with so many keys.
    fn call(&self, step: Step, keys: usize) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.scripts.step(step).hash()).arg(keys);
        call
    }

    /// Calls the script of a step, and returns what it returned, errors included.
    fn ask(&mut self, step: Step, call: &Cmd) -> Result<Value, QueueError> {
        self.send(step, Request::Alone(call.get_packed_command()))
    }

    /// Sends the call of a step's script, together with those of other lanes.
    fn send(&mut self, step: Step, request: Request) -> Result<Value, QueueError> {
        let exchange = self.exchange.clone();
        let answer = self.with(|connection, scripts, _, _| {
            let answer = match exchange {
                Some(exchange) => exchange.ask(connection, request.clone())?,
                None => ask_alone(connection, &request)?,
            };
            match answer.value.extract_error() {
                Err(error) if is_missing(&error) => {
                    let request = request.in_full(scripts.step(step));
                    let answer = ask_alone(connection, &request)?;
                    Ok((answer.value.extract_error()?, answer.is_large))
                }
                value => Ok((value?, answer.is_large)),
            }
        });
        let (value, is_large) = answer?;
        if is_large {
            self.connected = None;
        }
        Ok(value)
    }

    /// Makes sure there is a living connection.
    pub fn connect(&mut self) -> Result<(), QueueError> {
        if self.connected.is_none() {
            self.watched = None;
            self.connected = Some(self.new_connection()?);
        }
        Ok(())
    }

    fn new_connection(&self) -> Result<Lease, ConnectError> {
        let name = self.seat.client_name();
        match self.limit {
            Some(limit) => self.server.connect_for(&name, limit),
            None => self.server.connect(&name),
        }
    }

    /// Runs `work` on the connection; after a fault of the connection it is dropped, because an
    /// answer may still be on its way.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut redis::Connection, &Scripts, &Seat, Expiry) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        self.connect()?;
        let Some(connected) = self.connected.as_mut() else {
            return Err(QueueError::Closed);
        };
        let result = work(connected, &self.scripts, &self.seat, self.expiry);
        result.map_err(|error| self.noting(error))
    }

    /// The same error; where it says that the connection is of no use any more, that is dropped.
    fn noting(&mut self, error: QueueError) -> QueueError {
        if error.breaks_connection() {
            self.connected = None;
        }
        error
    }
}

/// The time by Redis' clock, in seconds since 1970.
fn now(connection: &mut redis::Connection) -> Result<f64, QueueError> {
    let (seconds, microseconds): (f64, f64) = redis::cmd("TIME").query(connection)?;
    Ok(seconds + microseconds / 1e6)
}
