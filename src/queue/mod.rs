//! The work in Redis: ingress lists, claims, egress lists, dead letter queues.
//!
//! Every step in the life of a vCon is one atomic script on the server. Every script first checks that
//! the lane still holds the claim, so a step whose reply was lost can be sent again. At any instant a
//! UUID is in exactly one of these:
//!
//! ```text
//! ingress list ──claim──► claims hash ──finish──► egress lists, and the queue of each storage that
//!      ▲                     │   │                failed to save the vCon
//!      └──release, postpone──┘   └─dead-letter───► dead letter queue
//! ```
//!
//! | To find | look in |
//! |---|---|
//! | how vCons come in: `conserver submit`, followers | `intake.rs` |
//! | what wakes an idle lane | `wake_list.rs` |
//! | how a lane gets an entry and its document | `claim.rs`, `documents.rs` |
//! | how a claim ends | `finish.rs`, `release.rs` |
//! | what becomes of the claims of a dead worker or a dead daemon | `recovery.rs`, `lease.rs` |
//! | dead letters, and how they are retried | `dead_letters.rs` |
//! | dead letters that failed alike | `dead_letter_groups.rs` |
//! | where one vCon is | `find.rs` |
//! | links that write their vCon by themselves | `direct_writes.rs` |
//! | how often servers may be asked | `budget.rs` |
//! | what keeps waiting documents from expiring | `housekeeping.rs` |
//! | what operators have paused | `pauses.rs` |
//! | vCons that are in no list | `audit.rs` |
//! | what another worker has left | `survey.rs` |
//! | whether a server and its user's rights suffice | `preflight.rs` |
//! | the names of keys | `keys.rs` |
//! | how scripts are sent, and lanes share a request | `requests.rs`, `scripts/*.lua` |
//!
//! The claims of a daemon are stored under its instance name, on which it holds a lease. A daemon that
//! does not hold the name claims nothing, and returns no worker's claims.
//!
//! This module knows Redis and its keys, nothing of links or storages.

mod audit;
mod budget;
mod claim;
mod dead_letter_groups;
mod dead_letters;
mod direct_writes;
mod documents;
mod find;
mod finish;
mod housekeeping;
mod intake;
mod keys;
mod lease;
mod pauses;
mod preflight;
mod recovery;
mod release;
mod requests;
mod survey;
mod wake_list;

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use audit::{Audit, AuditLists, Lengths, Location, Whereabouts};
pub use budget::{BudgetClient, BudgetRequest, Granted, Token, most_in_hand};
#[cfg(any(test, fuzzing))]
pub(crate) use claim::fuzz;
pub use claim::{Claim, Claimed};
pub use dead_letter_groups::{
    DeadLetterGroup, DeadLetterGroups, GroupLimits, GroupedQueue, error_pattern,
};
pub use dead_letters::{
    DeadLetter, DeadLetters, HeldLock, KNOWN_OF_REASON, Moved, Owner, RawDeadLetter, ReplayLock,
    ReplayOutcome, ReplayStart, StoredReason, may_hold_backlog, storage_of_queue,
};
pub use direct_writes::Overwritten;
pub use documents::{
    Document, DocumentFormat, Documents, Removed, Replaced, Replacement, StoredDocument,
};
pub use find::{
    FindLists, FoundClaim, FoundDocument, FoundLetter, FoundProgress, ListPosition, Rounds,
    VconFinder, VconPlaces, VconQueues,
};
pub use finish::{Announcement, FailedStorage, Finish, Finished};
pub use housekeeping::{Chore, Housekeeper, HousekeepingLease, Pace};
pub use intake::{FollowerQueue, PulledVcon, SubmitOutcome, Submitter, left_by_followers};
pub use keys::{
    LaneId, Raw, STORAGE_PREFIX, dead_letter_list, dead_letter_reasons, storage_letters_list,
    storage_letters_reasons, storage_queue, storage_replay_lock,
};
pub use lease::{Holder, NameLease};
pub use pauses::{Confirmation, PauseRecord, PauseTable, PauseTarget, Pauses, is_of_the_key};
pub use preflight::{
    ConfiguredWork, Fitness, Needs, RehearsalError, Shortage, cluster_refusal, rehearse,
};
pub use recovery::{ENDED_BEFORE_START, EndedWorker, MAX_LAPSES, Pause, RecoveredClaim, Suspects};
pub use release::{Evidence, ProgressRecord, Reason, Released};
pub use requests::RequestBatcher;
pub use survey::{DocumentSample, QueueKind, QueueLength, Survey, SurveyLists};
pub use wake_list::{IngressWatcher, LaneWaker, Waited, Watched};

pub use crate::redis_server::{ConnectError, RedisConnection, RefusedUrlPart, Server};

use crate::config::ListName;
use crate::redis_server::{Connection, in_its_words, needs_another};
use crate::settings::Settings;
use crate::vcon::VconId;
use finish::SharedHead;
use keys::LaneKeys;
use redis::{Cmd, RedisError, ServerError, Value};
use requests::{LaneRequest, LaneScript, LaneScripts, ask_alone, is_missing};

/// How long the keys live that this module writes, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// A vCon put back into Redis from a storage.
    pub document: u64,
    /// A `context:` key.
    pub context: u64,
    /// A vCon that enters a dead letter queue; 0 leaves its time to live unchanged.
    pub dead_letter: u64,
}

impl Expiry {
    /// The times in the settings.
    pub fn of(settings: &Settings) -> Self {
        Self {
            document: settings.redis_expiry,
            context: settings.context_expiry,
            dead_letter: settings.dlq_expiry.unwrap_or(0),
        }
    }
}

/// One lane's access to the work: its own connection, and the lane's id, under which its claims stand.
pub struct Queue {
    server: Server,
    connected: Option<RedisConnection>,
    /// The vCon whose key the connection has watched since before its document was loaded.
    watched: Option<VconId>,
    scripts: LaneScripts,
    /// The scripts that have replaced a large document, so the server knows them.
    replaced_by: HashSet<LaneScript>,
    lane_id: LaneId,
    lane_keys: LaneKeys,
    expiry: Expiry,
    lease: Arc<NameLease>,
    limit: Option<Duration>,
    /// All ingress lists of the configuration, a line each.
    ingress: String,
    /// Sends requests together with those of the worker's other lanes.
    batcher: Option<Arc<RequestBatcher>>,
    /// The time of the last request for work, in microseconds.
    last_time: u128,
    /// Whether the last document was one that a shared call returns: a string that is not large.
    was_small_string: bool,
    /// False once the server has refused the `SORT` that gets documents.
    can_sort: bool,
    /// False once the server has refused the commands that compare documents outside scripts.
    can_compare: bool,
    /// The beginning of the last shared call.
    shared_head: Option<SharedHead>,
}

impl Queue {
    /// A queue that connects when first used.
    pub fn new(server: Server, lane_id: LaneId, expiry: Expiry, lease: NameLease) -> Self {
        Self {
            server,
            connected: None,
            watched: None,
            scripts: LaneScripts::new(),
            replaced_by: HashSet::new(),
            lane_keys: LaneKeys::of(&lane_id),
            lane_id,
            expiry,
            lease: Arc::new(lease),
            limit: None,
            ingress: String::new(),
            batcher: None,
            last_time: 0,
            was_small_string: true,
            can_sort: true,
            can_compare: true,
            shared_head: None,
        }
    }

    /// The same with a time limit: neither connecting nor a request may take longer.
    pub fn with_time_limit(self, limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// The same, but it sends requests together with the other lanes that use this `batcher`.
    pub fn sharing(self, batcher: Arc<RequestBatcher>) -> Self {
        Self {
            batcher: Some(batcher),
            ..self
        }
    }

    /// Sets all ingress lists of the configuration: progress may be recorded for a vCon in each of them.
    pub fn set_ingress<'a>(&mut self, lists: impl Iterator<Item = &'a ListName>) {
        let names: Vec<&str> = lists.map(ListName::as_str).collect();
        self.ingress = names.join("\n");
    }

    /// The beginning of a call of a script with this number of keys.
    fn call(&self, script: LaneScript, keys: usize) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&**self.scripts.of(script).hash()).arg(keys);
        call
    }

    /// Sends a call of a script, and returns its reply. An error that the server replies is an error.
    fn ask(&mut self, script: LaneScript, call: &Cmd) -> Result<Value, QueueError> {
        self.send(script, LaneRequest::Alone(call.get_packed_command()))
    }

    /// Sends a call of a script, together with the requests of other lanes.
    fn send(&mut self, script: LaneScript, request: LaneRequest) -> Result<Value, QueueError> {
        let batcher = self.batcher.clone();
        let reply = self.with(|connection, scripts, _, _| {
            let (reply, request) = match batcher {
                Some(batcher) => batcher.ask(connection, request),
                None => (ask_alone(connection, &request), request),
            };
            let reply = reply?;
            match reply.value.extract_error() {
                Err(error) if is_missing(&error) => {
                    let request = request.in_full(scripts.of(script));
                    let reply = ask_alone(connection, &request)?;
                    Ok((reply.value.extract_error()?, reply.is_large))
                }
                value => Ok((value?, reply.is_large)),
            }
        });
        let (value, is_large) = reply?;
        if is_large {
            self.connected = None;
        }
        Ok(value)
    }

    /// Connects, if there is no connection.
    pub fn connect(&mut self) -> Result<(), QueueError> {
        if self.connected.is_none() {
            self.watched = None;
            self.connected = Some(self.new_connection()?);
        }
        Ok(())
    }

    fn new_connection(&self) -> Result<RedisConnection, ConnectError> {
        let name = self.lane_id.client_name();
        match self.limit {
            Some(limit) => self.server.connect_for(&name, limit),
            None => self.server.connect(&name),
        }
    }

    /// Runs `work` on the connection. Drops the connection if `work` fails in a way that breaks it: a
    /// reply may still arrive.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection, &LaneScripts, &LaneId, Expiry) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        self.connect()?;
        let Some(connected) = self.connected.as_mut() else {
            return Err(QueueError::Closed);
        };
        let result = work(connected, &self.scripts, &self.lane_id, self.expiry);
        result.map_err(|error| self.on_error(error))
    }

    /// Drops the connection if the error breaks it. Returns the error.
    fn on_error(&mut self, error: QueueError) -> QueueError {
        if error.breaks_connection() {
            self.connected = None;
        }
        error
    }
}

/// Why a step on the queue failed, and what that means for the connection.
///
/// Every error may pass, so the lane tries the same step again until it is done. Each step is safe to
/// repeat, whether or not the server did it before.
///
/// | What happened | The connection |
/// |---|---|
/// | It was cut or reset, timed out, was interrupted, or brought a reply that cannot be read | dropped: a reply may still arrive |
/// | `READONLY`, `MASTERDOWN`: this server is no longer the master | dropped: the next one is made to the present master |
/// | `NOAUTH`, `WRONGPASS`: the server's users have changed | dropped: the next one logs in again |
/// | `max number of clients reached` | dropped: the server has closed it |
/// | `LOADING`, `BUSY`: the server will reply soon | kept |
/// | `OOM`, `MISCONF`, `NOREPLICAS`: the server takes no writes for now | kept |
/// | `NOSCRIPT` | kept: the script is sent in full, at once |
/// | `EXECABORT` | as for the error that aborted the transaction |
/// | Any other error that the server replies, such as `NOPERM` or `WRONGTYPE` | kept |
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A command failed.
    #[error("Redis: {}", in_its_words(.0))]
    Command(#[from] RedisError),
    /// A script replied in a form that it never should.
    #[error("Redis: unexpected answer to {0}")]
    UnexpectedReply(&'static str),
    /// Another daemon holds our instance name.
    #[error(
        "the instance name {instance:?} is in use by {by}; \
         set CONSERVER_INSTANCE to another name here"
    )]
    InUse {
        /// Our name.
        instance: String,
        /// Who holds it.
        by: String,
    },
    /// This daemon does not hold the lease on its instance name.
    #[error("the lease on the instance name {0:?} has run out or is contended")]
    Lapsed(String),
    /// The server refuses this document for good.
    #[error("Redis refuses the document: {0}")]
    Document(String),
    /// The operating system refused a thread.
    #[error("could not start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The connection is gone.
    #[error("Redis: the connection is closed")]
    Closed,
}

impl QueueError {
    /// What is wrong, for a sentence that names Redis already.
    pub fn without_redis(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("Redis: ").unwrap_or(&text).to_owned()
    }

    /// Whether a signal interrupted the call and Redis is well: a process that is stopped and continued
    /// ends a read that has a time limit (signal(7)).
    pub fn is_interruption(&self) -> bool {
        let (Self::Command(error) | Self::Connect(ConnectError::Unreachable { cause: error, .. })) =
            self
        else {
            return false;
        };
        // The client library keeps the system's error in a shared box.
        error
            .source()
            .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>())
            .and_then(|shared| shared.downcast_ref::<io::Error>())
            .is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
    }

    /// Whether Redis is well and this daemon does not hold its instance name at the moment.
    pub fn is_about_the_lease(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Lapsed(_))
    }

    /// The error of a command that wrote a document. If the server refused it for a reason that does not
    /// pass, the error is about the document.
    fn of_write(error: RedisError) -> Self {
        let refused = error.clone().into_server_errors();
        if refused.is_some_and(|errors| !errors.iter().any(|(_, error)| passes(error))) {
            Self::Document(in_its_words(&error))
        } else {
            Self::Command(error)
        }
    }

    /// The error of a script that wrote a document, by the text that the server replied to it.
    fn of_refusal(said: &str) -> Self {
        let said = said.trim_start_matches('-');
        let (code, detail) = said.split_once(' ').unwrap_or((said, ""));
        let error = redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
        Self::of_write(error)
    }

    /// Whether the connection cannot be used after this error, by the table above.
    pub(crate) fn breaks_connection(&self) -> bool {
        match self {
            Self::Command(error) => match error.clone().into_server_errors() {
                Some(errors) => errors.iter().any(|(_, error)| needs_another(error)),
                None => true,
            },
            Self::Connect(_) | Self::UnexpectedReply(_) | Self::Closed => true,
            Self::InUse { .. } | Self::Lapsed(_) | Self::Document(_) | Self::Thread(_) => false,
        }
    }
}

/// Whether an error that the server replied is about its own state, which changes.
fn passes(error: &ServerError) -> bool {
    const CODES: [&str; 16] = [
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "EXECABORT",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    ];
    let details = error.details().unwrap_or_default();
    // Redis 6 wraps the error of a command into that of its script.
    let wrapped = |code: &&str| details.contains(&format!("-{code} "));
    CODES.contains(&error.code())
        || CODES.iter().any(wrapped)
        || details.starts_with("max number of clients")
        || details.starts_with("unknown command")
}

/// Whether the key of a command holds another type.
fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// The time by Redis' clock, in seconds since 1970.
fn now(connection: &mut Connection) -> Result<f64, QueueError> {
    let (seconds, microseconds): (f64, f64) = redis::cmd("TIME").query(connection)?;
    Ok(seconds + microseconds / 1e6)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    #[test]
    fn an_interrupted_read_is_told_from_a_fault_of_redis() {
        let command =
            |kind: io::ErrorKind| QueueError::from(RedisError::from(io::Error::from(kind)));
        assert!(command(io::ErrorKind::Interrupted).is_interruption());
        assert!(!command(io::ErrorKind::ConnectionReset).is_interruption());
        let unreachable = |kind: io::ErrorKind| {
            QueueError::from(ConnectError::Unreachable {
                server: "redis://localhost".to_owned(),
                cause: RedisError::from(io::Error::from(kind)),
            })
        };
        assert!(unreachable(io::ErrorKind::Interrupted).is_interruption());
        assert!(!unreachable(io::ErrorKind::ConnectionRefused).is_interruption());
    }

    /// The error of a command that the server answers with this line.
    fn answered(line: &str) -> QueueError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).err();
        QueueError::from(error.unwrap_or_else(|| panic!("{line} is no error")))
    }

    #[test]
    fn an_error_of_the_server_is_shown_as_it_was_worded() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(answered(line).to_string(), format!("Redis: {line}"));
        }
    }

    #[test]
    fn what_an_error_means_for_the_connection_is_as_the_table_says() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 123, on @user_script:1.",
            "ERR Error running script (call to f_123): @user_script:1: @user_script: 1: \
             -READONLY You can't write against a read only replica. ",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "ERR max number of clients reached",
        ] {
            assert!(answered(line).breaks_connection(), "{line}");
        }
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to",
            "NOREPLICAS Not enough good replicas to write.",
            "NOSCRIPT No matching script. Please use EVAL.",
            "NOPERM this user has no permissions to run the 'rpush' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR unknown command 'JSON.GET', with args beginning with: 'READONLY'",
        ] {
            assert!(!answered(line).breaks_connection(), "{line}");
        }
        for kind in [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::TimedOut,
            io::ErrorKind::Interrupted,
            io::ErrorKind::Other,
        ] {
            let error = QueueError::from(RedisError::from(io::Error::from(kind)));
            assert!(error.breaks_connection(), "{kind}");
        }
        assert!(QueueError::UnexpectedReply("claim").breaks_connection());
    }

    #[test]
    fn a_refusal_told_by_a_script_means_what_it_means_otherwise() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "NOPERM this user has no permissions to run the 'json.set' command",
            "-MISCONF Redis is configured to save RDB snapshots",
        ] {
            let error = QueueError::of_refusal(line);
            assert!(matches!(error, QueueError::Command(_)), "{line}: {error:?}");
            assert_eq!(
                error.breaks_connection(),
                line.starts_with("READONLY"),
                "{line}"
            );
        }
        for line in [
            "ERR recursion limit exceeded at line 1 column 128",
            "new objects must be created at the root",
            "",
        ] {
            let error = QueueError::of_refusal(line);
            assert!(
                matches!(error, QueueError::Document(_)),
                "{line}: {error:?}"
            );
        }
    }

    #[test]
    fn a_document_that_is_refused_is_told_from_a_server_that_takes_none() {
        let written = |line: &str| match answered(line) {
            QueueError::Command(error) => QueueError::of_write(error),
            other => other,
        };
        for line in [
            "ERR recursion limit exceeded at line 1 column 128",
            "recursion limit exceeded at line 1 column 128",
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "Existing key has wrong Redis type",
        ] {
            let error = written(line);
            assert!(
                matches!(error, QueueError::Document(_)),
                "{line}: {error:?}"
            );
            assert!(!error.breaks_connection(), "{line}");
        }
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "NOPERM this user has no permissions to run the 'json.set' command",
            "ERR unknown command 'JSON.SET', with args beginning with: 'vcon:1'",
            "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed ",
        ] {
            assert!(matches!(written(line), QueueError::Command(_)), "{line}");
        }
    }
}
