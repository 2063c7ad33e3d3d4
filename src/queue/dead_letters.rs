//! Dead letter queues from the operator's side: look, try again, drop.
//!
//! There is one for each ingress list, `DLQ:<list>`, and one for each storage, named as that of an
//! ingress list `storage:<name>` would be. An entry of a storage's queue that has no reason is
//! backlog: the storage was unavailable when its turn came.
//!
//! A dead letter queue is a list of bare entries, `DLQ:<list>`, that others write too, and a hash
//! of reasons beside it that only we write. Whatever moves is moved by one script: an entry is in
//! one place whenever the program that asked for the move dies.

use std::collections::BTreeSet;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use redis::Value;
use serde::Deserialize;

use super::release::Reason;
use super::requests::{AdminScripts, replay_lock};
use super::{Kept, Lease, QueueError, Raw, Server, is_wrong_type, keys};
use crate::vcon::VconId;

/// The keys of dead letter lists begin with this.
const PREFIX: &[u8] = b"DLQ:";

/// Keys looked at with one `SCAN`.
const SCAN_COUNT: usize = 1000;

/// The most bytes of an entry that are shown. Longer ones could not be named on a command line: Linux takes no
/// argument above 128 KiB, and an escaped byte takes up to six.
const MOST_SHOWN: usize = 16 << 10;

/// An entry of a dead letter queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// The ingress list it failed in.
    pub list: Raw,
    /// The entry: a UUID, or whatever was in the list.
    pub entry: Raw,
    /// Why it is there; `None` where whoever buried it did not say.
    pub reason: Option<KeptReason>,
}

/// What is kept beside a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub enum KeptReason {
    /// As we write it.
    Known {
        /// The step that failed.
        stage: String,
        /// What went wrong.
        error: String,
        /// How often that step was tried.
        attempts: u64,
        /// The worker that gave up.
        worker: String,
        /// When, in seconds since 1970 by Redis' clock.
        at: f64,
    },
    /// Something else, as text.
    Other(String),
}

impl Letter {
    fn new(list: &Raw, entry: Entry) -> Self {
        Self {
            list: list.clone(),
            entry: entry.entry,
            reason: entry.reason.map(|bytes| KeptReason::read(&bytes)),
        }
    }
}

impl KeptReason {
    /// Reads a reason as it is kept.
    pub fn read(bytes: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Record {
            stage: String,
            error: String,
            attempts: u64,
            worker: String,
            at: f64,
        }
        match serde_json::from_slice(bytes) {
            Ok(Record {
                stage,
                error,
                attempts,
                worker,
                at,
            }) => Self::Known {
                stage,
                error,
                attempts,
                worker,
                at,
            },
            Err(_) => Self::Other(String::from_utf8_lossy(bytes).into_owned()),
        }
    }
}

/// Whose dead letters a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An ingress list's: the whole work on the vCon failed.
    List,
    /// A storage's: all else is done.
    Storage,
}

/// An entry of a dead letter queue, with its reason as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry.
    pub entry: Raw,
    /// The bytes of its reason.
    pub reason: Option<Vec<u8>>,
}

/// Whether the result of saving an entry was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settling {
    /// It was.
    Done,
    /// The entry is not in the queue any more.
    Gone,
    /// The lock is not ours any more. Nothing was changed.
    Lost,
}

/// Whether a move was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// So many entries were moved.
    Some(u64),
    /// None: a key is not the list it should be. In the server's words, and so of any bytes.
    Refused(String),
}

/// Access to the dead letter queues.
pub struct DeadLetters {
    lease: Lease,
    scripts: AdminScripts,
    least_ttl: u64,
}

impl DeadLetters {
    /// Over this connection. A document that has to wait again lives at least `least_ttl` seconds.
    pub fn new(lease: Lease, least_ttl: u64) -> Self {
        Self {
            lease,
            scripts: AdminScripts::new(),
            least_ttl,
        }
    }

    /// The time by Redis' clock, in seconds since 1970.
    pub fn now(&mut self) -> Result<f64, QueueError> {
        super::now(&mut self.lease)
    }

    /// The ingress lists that a daemon has ever had dead letters of, in the order of their names. They
    /// need not have any now, and those that only others have written to are not among them.
    pub fn recorded(&mut self) -> Result<BTreeSet<Raw>, QueueError> {
        let recorded = redis::cmd("SMEMBERS")
            .arg(keys::LETTERS)
            .query::<Vec<Vec<u8>>>(&mut *self.lease);
        let recorded = match recorded {
            Err(error) if is_wrong_type(&error) => Vec::new(),
            recorded => recorded?,
        };
        let named = |key: Vec<u8>| key.strip_prefix(PREFIX).map(Raw::new);
        Ok(recorded.into_iter().filter_map(named).collect())
    }

    /// The ingress lists that have dead letters, whoever wrote them, in the order of their names. This
    /// looks at every key that Redis has.
    pub fn lists(&mut self) -> Result<BTreeSet<Raw>, QueueError> {
        let keys = scan(&mut self.lease, b"DLQ:*", "list")?;
        let named = |key: Vec<u8>| key.strip_prefix(PREFIX).map(Raw::new);
        Ok(keys.into_iter().filter_map(named).collect())
    }

    /// How many dead letters the list has; `None` where something else has its key.
    pub fn length(&mut self, list: &Raw) -> Result<Option<u64>, QueueError> {
        let key = letters_key(list);
        let length = redis::cmd("LLEN").arg(key).query(&mut *self.lease);
        match length {
            Ok(length) => Ok(Some(length)),
            Err(error) if is_wrong_type(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Up to `count` dead letters of the list from number `start` on, counted from 0, the oldest
    /// first, with their reasons. An entry that is longer than 16 KiB is cut to a byte more.
    pub fn page(&mut self, list: &Raw, start: u64, count: u64) -> Result<Vec<Letter>, QueueError> {
        let mut call = self.scripts.letters.key(letters_key(list));
        call.arg(start).arg(last(start, count)).arg(MOST_SHOWN + 1);
        let entries = call.invoke(&mut *self.lease)?;
        let entries = self.with_reasons(list, entries)?.into_iter();
        Ok(entries.map(|entry| Letter::new(list, entry)).collect())
    }

    /// The same as [`DeadLetters::page`], with entries and reasons as they are kept.
    pub fn entries(
        &mut self,
        list: &Raw,
        start: u64,
        count: u64,
    ) -> Result<Vec<Entry>, QueueError> {
        let mut range = redis::cmd("LRANGE");
        range
            .arg(letters_key(list))
            .arg(start)
            .arg(last(start, count));
        let entries = range.query(&mut *self.lease)?;
        self.with_reasons(list, entries)
    }

    fn with_reasons(
        &mut self,
        list: &Raw,
        entries: Vec<Vec<u8>>,
    ) -> Result<Vec<Entry>, QueueError> {
        let reasons = self.reasons(list, &entries)?;
        let entries = entries.into_iter().map(Raw::new).zip(reasons);
        Ok(entries
            .map(|(entry, reason)| Entry { entry, reason })
            .collect())
    }

    /// How many entries of the list have a reason.
    pub fn reasoned(&mut self, list: &Raw) -> Result<u64, QueueError> {
        let count = redis::cmd("HLEN")
            .arg(reasons_key(list))
            .query(&mut *self.lease);
        match count {
            Err(error) if is_wrong_type(&error) => Ok(0),
            count => Ok(count?),
        }
    }

    /// What is kept of these vCons as dead letters of the list, whether or not they are in its queue
    /// still.
    pub fn known_of(&mut self, list: &Raw, ids: &[VconId]) -> Result<Vec<Letter>, QueueError> {
        let entries: Vec<Vec<u8>> = ids.iter().map(|id| id.as_str().into()).collect();
        let reasons = self.reasons(list, &entries)?;
        let known = entries.into_iter().map(Raw::new).zip(reasons);
        let known = known.filter(|(_, reason)| reason.is_some());
        let letter = |(entry, reason)| Letter::new(list, Entry { entry, reason });
        Ok(known.map(letter).collect())
    }

    /// The reasons of these entries, in their order.
    fn reasons(
        &mut self,
        list: &Raw,
        entries: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, QueueError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut get = redis::cmd("HMGET");
        get.arg(reasons_key(list));
        for entry in entries {
            get.arg(entry);
        }
        match get.query(&mut *self.lease) {
            Ok(kept) => Ok(kept),
            Err(error) if is_wrong_type(&error) => Ok(vec![None; entries.len()]),
            Err(error) => Err(error.into()),
        }
    }

    /// The entry as a dead letter of the list, with its place in it, counted from 0; `None` where
    /// it is not there.
    pub fn find(&mut self, list: &Raw, entry: &Raw) -> Result<Option<(u64, Letter)>, QueueError> {
        let mut find = redis::cmd("LPOS");
        find.arg(letters_key(list)).arg(entry.as_bytes());
        let place = match find.query::<Option<u64>>(&mut *self.lease) {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(None),
            Err(error) if is_wrong_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let reason = self.reasons(list, &[entry.as_bytes().to_vec()])?;
        let entry = Entry {
            entry: entry.clone(),
            reason: reason.into_iter().next().flatten(),
        };
        Ok(Some((place, Letter::new(list, entry))))
    }

    /// Moves up to `count` of the oldest dead letters to the tail of their ingress list, in one
    /// step.
    pub fn retry_oldest(&mut self, list: &Raw, count: u64) -> Result<Moved, QueueError> {
        self.retry(list, count, None)
    }

    /// Moves one dead letter to the tail of its ingress list, in one step. One that stood in the
    /// queue more than once stands in the list once.
    pub fn retry_one(&mut self, list: &Raw, entry: &Raw) -> Result<Moved, QueueError> {
        self.retry(list, 1, Some(entry))
    }

    fn retry(&mut self, list: &Raw, count: u64, entry: Option<&Raw>) -> Result<Moved, QueueError> {
        let mut call = self.scripts.retry.key(letters_key(list));
        call.key(reasons_key(list))
            .key(list.as_bytes())
            .key(keys::DEATHS)
            .key(keys::TRIES)
            .key(keys::LAPSES);
        call.arg(count).arg(self.least_ttl);
        if let Some(entry) = entry {
            call.arg(entry.as_bytes());
        }
        moved(call.invoke(&mut *self.lease)?, "retrying dead letters")
    }

    /// Drops a dead letter in one step, and with `document` its document.
    pub fn drop_one(
        &mut self,
        owner: Owner,
        list: &Raw,
        entry: &Raw,
        document: bool,
    ) -> Result<Moved, QueueError> {
        let mut call = self.scripts.drop.key(letters_key(list));
        call.key(reasons_key(list));
        if owner == Owner::List {
            // A storage's entry says nothing of work that the same vCon may be in.
            call.key(keys::DEATHS).key(keys::TRIES).key(keys::LAPSES);
        }
        let key = entry.id().filter(|_| document).map(|id| id.key());
        call.arg(entry.as_bytes()).arg(key.unwrap_or_default());
        moved(call.invoke(&mut *self.lease)?, "dropping a dead letter")
    }

    /// Takes an entry out of the queue of a storage that has its vCon now, in one step. One that
    /// stands there more than once is taken once.
    pub fn saved(
        &mut self,
        lock: &ReplayLock,
        list: &Raw,
        entry: &Entry,
    ) -> Result<Settling, QueueError> {
        let mut call = self.scripts.saved.key(letters_key(list));
        call.key(reasons_key(list)).key(lock.key());
        call.arg(entry.entry.as_bytes());
        call.arg(entry.reason.as_deref().unwrap_or_default());
        call.arg(lock.value());
        settling(&call.invoke(&mut *self.lease)?)
    }

    /// Keeps a new reason for an entry that has to stay in the queue of a storage.
    pub fn refused(
        &mut self,
        lock: &ReplayLock,
        list: &Raw,
        entry: &Raw,
        reason: &Reason<'_>,
    ) -> Result<Settling, QueueError> {
        let json = serde_json::to_string(reason).map_err(|_| QueueError::Answer("a reason"))?;
        let mut call = self.scripts.refused.key(letters_key(list));
        call.key(reasons_key(list)).key(lock.key());
        call.arg(entry.as_bytes()).arg(json).arg(lock.value());
        settling(&call.invoke(&mut *self.lease)?)
    }

    /// Who saves the dead letters of this storage at present, if anybody does.
    pub fn replay_lock(&mut self, storage: &str) -> Result<Option<HeldLock>, QueueError> {
        look(&mut self.lease, storage)
    }

    /// The document of a vCon.
    pub fn document(&mut self, id: &VconId) -> Result<Kept, QueueError> {
        Kept::read(&mut self.lease, id)
    }
}

/// The last of `count` entries from number `start` on, as `LRANGE` has it.
fn last(start: u64, count: u64) -> u64 {
    start.saturating_add(count).saturating_sub(1)
}

/// The list of dead letters of an ingress list of any name.
pub(super) fn letters_key(list: &Raw) -> Vec<u8> {
    [PREFIX, list.as_bytes()].concat()
}

fn reasons_key(list: &Raw) -> Vec<u8> {
    [b"conserver:dlq:", list.as_bytes()].concat()
}

/// The keys like `pattern` that hold a value of this type.
pub(super) fn scan(
    lease: &mut Lease,
    pattern: &[u8],
    kind: &str,
) -> Result<BTreeSet<Vec<u8>>, QueueError> {
    let (mut cursor, mut keys) = (0u64, BTreeSet::new());
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern);
        scan.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg(kind);
        let found: Vec<Vec<u8>>;
        (cursor, found) = scan.query(&mut **lease)?;
        keys.extend(found);
        if cursor == 0 {
            return Ok(keys);
        }
    }
}

fn settling(answer: &Value) -> Result<Settling, QueueError> {
    match answer {
        Value::Int(0) => Ok(Settling::Gone),
        Value::Int(_) => Ok(Settling::Done),
        Value::BulkString(why) if why == b"lost" => Ok(Settling::Lost),
        _ => Err(QueueError::Answer("saving a dead letter")),
    }
}

fn moved(answer: Value, what: &'static str) -> Result<Moved, QueueError> {
    match answer {
        Value::Int(count) => Ok(Moved::Some(u64::try_from(count).unwrap_or(0))),
        Value::BulkString(why) => Ok(Moved::Refused(String::from_utf8_lossy(&why).into_owned())),
        _ => Err(QueueError::Answer(what)),
    }
}

/// How long the lock outlives a process that does not renew it, in milliseconds.
const TTL_MS: u64 = 60_000;

/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(15);

/// A command on the lock's own connection may take this long.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of asking for the lock.
pub enum ReplayStart {
    /// We hold it.
    Ours(ReplayLock),
    /// Somebody else holds it.
    Held(HeldLock),
}

/// A replay lock that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Its key.
    pub key: String,
    /// Its value, where it has one.
    pub by: Option<Raw>,
    /// Whether it expires by itself.
    pub expires: bool,
}

/// A replay lock of ours. It is released when this is dropped.
pub struct ReplayLock {
    key: String,
    value: String,
    /// Ends the thread that renews the lock when it is dropped.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl ReplayLock {
    /// Takes the lock of this storage, if nobody has it.
    ///
    /// # Errors
    /// Redis failed, or the system has no thread to give.
    pub fn take(server: &Server, storage: &str) -> Result<ReplayStart, QueueError> {
        let mut lease = server.connect_for("conserver:replay", LIMIT)?;
        let key = keys::storage_replay_lock(storage);
        let value = value();
        if !run(&mut lease, "take", &key, &value)? {
            return Ok(ReplayStart::Held(holder(&mut lease, key)?));
        }
        let (stop, stopped) = bounded(0);
        let mut renewal = Renewal {
            server: server.clone(),
            connected: Some(lease),
            key: key.clone(),
            value: value.clone(),
        };
        let thread = thread::Builder::new().name("replay-lock".to_owned());
        let thread = thread.spawn(move || renewal.keep(&stopped));
        Ok(ReplayStart::Ours(Self {
            key,
            value,
            stop: Some(stop),
            renewal: Some(thread.map_err(QueueError::Thread)?),
        }))
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }
}

impl Drop for ReplayLock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.renewal.take() {
            // It does not panic, and the lock expires in any case.
            let _ = thread.join();
        }
    }
}

/// The thread that keeps a lock, and releases it at the end.
struct Renewal {
    server: Server,
    connected: Option<Lease>,
    key: String,
    value: String,
}

impl Renewal {
    fn keep(&mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
            // Each step on the queue checks the lock: one that is lost ends the replay there.
            let _ = self.run("renew");
        }
        // If Redis is away, the lock expires.
        let _ = self.run("release");
    }

    fn run(&mut self, step: &str) -> Result<(), QueueError> {
        let mut lease = match self.connected.take() {
            Some(lease) => lease,
            None => self.server.connect_for("conserver:replay", LIMIT)?,
        };
        run(&mut lease, step, &self.key, &self.value)?;
        self.connected = Some(lease);
        Ok(())
    }
}

/// Takes, renews or releases the lock; whether it is, or was, ours.
fn run(lease: &mut Lease, step: &str, key: &str, value: &str) -> Result<bool, QueueError> {
    let script = replay_lock();
    let mut call = script.key(key);
    call.arg(step).arg(value).arg(TTL_MS);
    Ok(call.invoke::<i64>(&mut **lease)? == 1)
}

/// Who holds the lock of this storage, if anybody does.
pub(super) fn look(lease: &mut Lease, storage: &str) -> Result<Option<HeldLock>, QueueError> {
    let key = keys::storage_replay_lock(storage);
    let exists: bool = redis::cmd("EXISTS").arg(&key).query(&mut **lease)?;
    exists.then(|| holder(lease, key)).transpose()
}

fn holder(lease: &mut Lease, key: String) -> Result<HeldLock, QueueError> {
    let by = redis::cmd("GET")
        .arg(&key)
        .query::<Option<Vec<u8>>>(&mut **lease);
    let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut **lease)?;
    Ok(HeldLock {
        key,
        // What is no string has no value to show.
        by: by.ok().flatten().map(Raw::new),
        expires: ttl >= 0,
    })
}

/// Names this process, and is the value of no other lock.
fn value() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let (pid, nonce) = (std::process::id(), VconId::random());
    format!("conserver dlq retry, PID {pid} on {host}, {nonce}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_another_form_is_text() {
        let ours = br#"{"stage":"load","error":"e","attempts":1,"worker":"W","at":1.5}"#;
        assert_eq!(
            KeptReason::read(ours),
            KeptReason::Known {
                stage: "load".to_owned(),
                error: "e".to_owned(),
                attempts: 1,
                worker: "W".to_owned(),
                at: 1.5,
            }
        );
        for other in [
            &b""[..],
            b"because",
            b"[1]",
            b"\xff",
            br#"{"stage":"load","error":"e"}"#,
            br#"{"stage":"load","error":"e","attempts":-1,"worker":"W","at":1.5}"#,
        ] {
            let text = String::from_utf8_lossy(other).into_owned();
            assert_eq!(KeptReason::read(other), KeptReason::Other(text));
        }
    }
}
