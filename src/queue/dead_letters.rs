//! Dead letter queues for operators: list, retry, discard; and the lock under which the entries of a
//! storage's queue are saved again.
//!
//! Each ingress list has one, `DLQ:<list>`, and so has each storage, `DLQ:storage:<name>`. A queue is a list
//! of bare entries, which others write too, and a hash of reasons, which only daemons write. An entry of a
//! storage's queue without a reason is backlog: the storage was unavailable.
//!
//! One script makes each move, so an entry is in exactly one list whenever the program dies.

use std::collections::BTreeSet;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use redis::Value;
use serde::Deserialize;

use super::dead_letter_groups::{DeadLetterGroups, GroupLimits, GroupedQueue};
use super::keys::STORAGE_PREFIX;
use super::release::Reason;
use super::requests::{
    Call, OperatorScripts, Script, read_members_script, replay_lock_script, scan_keys_script,
};
use super::{QueueError, Raw, RedisConnection, Server, StoredDocument, is_wrong_type, keys};
use crate::config::Plan;
use crate::vcon::VconId;

/// The keys of dead letter lists begin with this.
const PREFIX: &[u8] = b"DLQ:";

/// Keys looked at with one `SCAN`.
const SCAN_COUNT: usize = 1000;

/// How many bytes of an entry are shown. A user could not type longer ones: Linux takes no argument above
/// 128 KiB, and an escaped byte has up to six characters.
const MOST_SHOWN: usize = 16 << 10;

/// How many bytes of a reason are read. Those of daemons are shorter: they hold at most 64 KiB of what a server
/// or a program says, and JSON makes that six times as long at most.
pub(super) const MOST_OF_REASON: usize = 512 << 10;

/// Bytes by which one reason is told from another.
pub const KNOWN_OF_REASON: usize = 4096;

/// An entry of a dead letter queue.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The ingress list it failed in.
    pub list: Raw,
    /// The entry: a UUID, or whatever was in the list.
    pub entry: Raw,
    /// Why it is there; `None` if whoever put it there did not say.
    pub reason: Option<StoredReason>,
}

/// The reason that Redis holds for a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredReason {
    /// In the form that daemons write.
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
    /// In any other form, as text.
    Other(String),
}

impl DeadLetter {
    fn new(list: &Raw, entry: RawDeadLetter) -> Self {
        Self {
            list: list.clone(),
            entry: entry.entry,
            reason: entry.reason.map(|bytes| StoredReason::read(&bytes)),
        }
    }
}

impl StoredReason {
    /// Reads a reason as Redis holds it.
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
            Err(_) => {
                let mut text = String::from_utf8_lossy(bytes).into_owned();
                if bytes.len() > MOST_OF_REASON {
                    text.push('…');
                }
                Self::Other(text)
            }
        }
    }
}

/// Whose dead letters a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An ingress list: the vCon failed in its chain.
    List,
    /// A storage: everything else about the vCon is done.
    Storage,
}

/// The storage whose queue this is; `None` for that of an ingress list, which may have such a name too.
pub fn storage_of_queue(list: &Raw, plan: Option<&Plan>) -> Option<String> {
    let name = list.as_bytes().strip_prefix(STORAGE_PREFIX.as_bytes())?;
    let chains = plan.map_or(&[][..], |plan| &plan.chains);
    let mut ingress = chains.iter().flat_map(|chain| &chain.ingress_lists);
    let is_list = ingress.any(|it| it.as_str().as_bytes() == list.as_bytes());
    (!is_list).then(|| String::from_utf8_lossy(name).into_owned())
}

/// Whether the queue may hold a backlog, as that of a storage with `on_outage: defer`.
pub fn may_hold_backlog(list: &Raw, plan: Option<&Plan>) -> bool {
    let storage = storage_of_queue(list, plan);
    let deferring = plan.map_or(&[][..], |plan| &plan.deferring);
    storage.is_some_and(|name| deferring.contains(&name))
}

/// An entry of a dead letter queue, with its reason as Redis holds it. Anybody may have written them: both are
/// cut if they are too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDeadLetter {
    /// The entry.
    pub entry: Raw,
    /// The bytes of its reason.
    pub reason: Option<Vec<u8>>,
}

impl RawDeadLetter {
    /// Whether the entry in the queue is longer than this, so that no command can name it.
    pub fn is_cut(&self) -> bool {
        self.entry.as_bytes().len() > MOST_SHOWN
    }
}

/// Whether the result of a replay of one entry was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// It was.
    Done,
    /// The entry is no longer in the queue.
    Gone,
    /// This process no longer holds the replay lock. Nothing was changed.
    Lost,
}

/// The result of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// This number of entries was moved.
    Some(u64),
    /// None, because a key holds another type. In the server's words, and so of any bytes.
    Refused(String),
}

/// Access to the dead letter queues.
pub struct DeadLetters {
    connection: RedisConnection,
    scripts: OperatorScripts,
    least_ttl: u64,
}

impl DeadLetters {
    /// Access over this connection. The document of a vCon that is put back on a list lives for at least
    /// `least_ttl` seconds.
    pub fn new(connection: RedisConnection, least_ttl: u64) -> Self {
        Self {
            connection,
            scripts: OperatorScripts::new(),
            least_ttl,
        }
    }

    /// The time by Redis' clock, in seconds since 1970.
    pub fn now(&mut self) -> Result<f64, QueueError> {
        super::now(&mut self.connection)
    }

    /// The ingress lists for which a daemon has ever written dead letters, in the order of their names.
    /// They may have none now. Queues that only others have written to are not among them.
    pub fn recorded(&mut self) -> Result<BTreeSet<Raw>, QueueError> {
        let mut call = read_members_script().key(keys::DEAD_LETTER_LISTS);
        let recorded: Vec<Vec<u8>> = call.arg(MOST_SHOWN).invoke(&mut *self.connection)?;
        let named = |key: Vec<u8>| key.strip_prefix(PREFIX).map(Raw::new);
        Ok(recorded.into_iter().filter_map(named).collect())
    }

    /// The ingress lists that have dead letters, whoever wrote them, in the order of their names. Looks at
    /// every key in Redis.
    pub fn lists(&mut self) -> Result<BTreeSet<Raw>, QueueError> {
        let keys = scan(&mut self.connection, b"DLQ:*", "list")?;
        let named = |key: Vec<u8>| key.strip_prefix(PREFIX).map(Raw::new);
        Ok(keys.into_iter().filter_map(named).collect())
    }

    /// How many dead letters the list has; `None` if the key of the queue holds another type.
    pub fn length(&mut self, list: &Raw) -> Result<Option<u64>, QueueError> {
        let key = letters_key(list);
        let length = redis::cmd("LLEN").arg(key).query(&mut *self.connection);
        match length {
            Ok(length) => Ok(Some(length)),
            Err(error) if is_wrong_type(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Up to `count` dead letters of the list with their reasons, from index `start` on, the oldest first.
    /// Cuts an entry of more than 16 KiB to that and one byte.
    pub fn page(
        &mut self,
        list: &Raw,
        start: u64,
        count: u64,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        let entries = self.entries(list, start, count)?.into_iter();
        Ok(entries.map(|entry| DeadLetter::new(list, entry)).collect())
    }

    /// Like [`DeadLetters::page`], with reasons as Redis holds them.
    pub fn entries(
        &mut self,
        list: &Raw,
        start: u64,
        count: u64,
    ) -> Result<Vec<RawDeadLetter>, QueueError> {
        let mut call = self.scripts.read_list.key(letters_key(list));
        call.arg(start).arg(last(start, count)).arg(MOST_SHOWN + 1);
        let entries: Vec<Vec<u8>> = call.invoke(&mut *self.connection)?;
        let reasons = self.reasons(list, &entries)?;
        let entries = entries.into_iter().map(Raw::new).zip(reasons);
        Ok(entries
            .map(|(entry, reason)| RawDeadLetter { entry, reason })
            .collect())
    }

    /// How many entries of the list have a reason.
    pub fn reasoned(&mut self, list: &Raw) -> Result<u64, QueueError> {
        let count = redis::cmd("HLEN")
            .arg(reasons_key(list))
            .query(&mut *self.connection);
        match count {
            Err(error) if is_wrong_type(&error) => Ok(0),
            count => Ok(count?),
        }
    }

    /// The recorded reasons of these vCons as dead letters of the list, whether or not they still are.
    pub fn known_of(&mut self, list: &Raw, ids: &[VconId]) -> Result<Vec<DeadLetter>, QueueError> {
        let entries: Vec<Vec<u8>> = ids.iter().map(|id| id.as_str().into()).collect();
        let reasons = self.reasons(list, &entries)?;
        let known = entries.into_iter().map(Raw::new).zip(reasons);
        let known = known.filter(|(_, reason)| reason.is_some());
        let letter = |(entry, reason)| DeadLetter::new(list, RawDeadLetter { entry, reason });
        Ok(known.map(letter).collect())
    }

    /// The reasons of these entries, in their order. Cuts a reason of more than [`MOST_OF_REASON`] bytes to that
    /// and one byte.
    fn reasons(
        &mut self,
        list: &Raw,
        entries: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, QueueError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = self.scripts.read_reasons.key(reasons_key(list));
        call.arg(MOST_OF_REASON + 1).arg(entries);
        let mut kept: Vec<Option<Vec<u8>>> = call.invoke(&mut *self.connection)?;
        kept.resize(entries.len(), None);
        Ok(kept)
    }

    /// The dead letters of these queues in groups, as far as the limits allow.
    pub fn groups(
        &mut self,
        queues: &[GroupedQueue],
        limits: &GroupLimits,
    ) -> Result<DeadLetterGroups, QueueError> {
        DeadLetterGroups::read(&mut self.connection, queues, limits)
    }

    /// The entry as a dead letter of the list, with its index in the queue; `None` if it is not there.
    pub fn find(
        &mut self,
        list: &Raw,
        entry: &Raw,
    ) -> Result<Option<(u64, DeadLetter)>, QueueError> {
        let mut find = redis::cmd("LPOS");
        find.arg(letters_key(list)).arg(entry.as_bytes());
        let index = match find.query::<Option<u64>>(&mut *self.connection) {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(None),
            Err(error) if is_wrong_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let reason = self.reasons(list, &[entry.as_bytes().to_vec()])?;
        let entry = RawDeadLetter {
            entry: entry.clone(),
            reason: reason.into_iter().next().flatten(),
        };
        Ok(Some((index, DeadLetter::new(list, entry))))
    }

    /// Moves up to `count` of the oldest dead letters to the tail of their ingress list, in one
    /// step.
    pub fn retry_oldest(&mut self, list: &Raw, count: u64) -> Result<Moved, QueueError> {
        self.retry(list, count, None)
    }

    /// Moves one dead letter to the tail of its ingress list, in one step. An entry that was several times
    /// in the queue is put on the list once.
    pub fn retry_one(&mut self, list: &Raw, entry: &Raw) -> Result<Moved, QueueError> {
        self.retry(list, 1, Some(entry))
    }

    fn retry(&mut self, list: &Raw, count: u64, entry: Option<&Raw>) -> Result<Moved, QueueError> {
        let mut call = self.scripts.retry_dead_letters.key(letters_key(list));
        call.key(reasons_key(list))
            .key(list.as_bytes())
            .key(keys::DEATHS)
            .key(keys::ROUNDS)
            .key(keys::LAPSES);
        call.arg(count).arg(self.least_ttl);
        if let Some(entry) = entry {
            call.arg(entry.as_bytes());
        }
        moved(call.invoke(&mut *self.connection)?, "retrying dead letters")
    }

    /// Discards a dead letter in one step, and with `document` its document.
    pub fn drop_one(
        &mut self,
        owner: Owner,
        list: &Raw,
        entry: &Raw,
        document: bool,
    ) -> Result<Moved, QueueError> {
        let mut call = dropping(&self.scripts.drop_dead_letters, owner, list, document);
        call.arg("this").arg(entry.as_bytes());
        moved(
            call.invoke(&mut *self.connection)?,
            "discarding a dead letter",
        )
    }

    /// Discards a dead letter in one step, unless it has failed for another reason meanwhile, or only waits for its
    /// storage now. Its document stays. Reasons are the same if their first [`KNOWN_OF_REASON`] bytes are.
    pub fn drop_known(
        &mut self,
        owner: Owner,
        list: &Raw,
        letter: &RawDeadLetter,
    ) -> Result<Moved, QueueError> {
        let reason = letter.reason.as_deref().unwrap_or_default();
        let mut call = dropping(&self.scripts.drop_dead_letters, owner, list, false);
        call.arg("this").arg(letter.entry.as_bytes());
        call.arg(&reason[..reason.len().min(KNOWN_OF_REASON)]);
        call.arg(KNOWN_OF_REASON);
        moved(
            call.invoke(&mut *self.connection)?,
            "discarding a dead letter",
        )
    }

    /// Discards up to `count` of the oldest dead letters in one step, and with `documents` their documents.
    pub fn drop_oldest(
        &mut self,
        owner: Owner,
        list: &Raw,
        count: u64,
        documents: bool,
    ) -> Result<Moved, QueueError> {
        let mut call = dropping(&self.scripts.drop_dead_letters, owner, list, documents);
        call.arg(count);
        moved(
            call.invoke(&mut *self.connection)?,
            "discarding dead letters",
        )
    }

    /// Removes an entry from the queue of a storage that has saved its vCon now, in one step. Removes one
    /// copy of an entry that is several times in the queue.
    pub fn saved(
        &mut self,
        lock: &ReplayLock,
        list: &Raw,
        entry: &RawDeadLetter,
    ) -> Result<ReplayOutcome, QueueError> {
        let mut call = self.scripts.replay_saved.key(letters_key(list));
        call.key(reasons_key(list)).key(lock.key());
        call.arg(entry.entry.as_bytes());
        call.arg(entry.reason.as_deref().unwrap_or_default());
        call.arg(lock.value()).arg(MOST_OF_REASON + 1);
        settling(&call.invoke(&mut *self.connection)?)
    }

    /// Records a new reason for an entry that stays in the queue of a storage.
    pub fn refused(
        &mut self,
        lock: &ReplayLock,
        list: &Raw,
        entry: &Raw,
        reason: &Reason<'_>,
    ) -> Result<ReplayOutcome, QueueError> {
        let mut call = self.scripts.replay_refused.key(letters_key(list));
        call.key(reasons_key(list)).key(lock.key());
        call.arg(entry.as_bytes()).arg(reason.to_json()?);
        call.arg(lock.value());
        settling(&call.invoke(&mut *self.connection)?)
    }

    /// Who holds the replay lock of this storage, if anybody does.
    pub fn replay_lock(&mut self, storage: &str) -> Result<Option<HeldLock>, QueueError> {
        find_lock(&mut self.connection, storage)
    }

    /// The document of a vCon.
    pub fn document(&mut self, id: &VconId) -> Result<StoredDocument, QueueError> {
        StoredDocument::read(&mut self.connection, id)
    }
}

/// A call that discards dead letters, and with `documents` their documents.
fn dropping<'a>(script: &'a Script, owner: Owner, list: &Raw, documents: bool) -> Call<'a> {
    let mut call = script.key(letters_key(list));
    call.key(reasons_key(list));
    if owner == Owner::List {
        // The vCon of a storage's entry may be in work: these counts belong to that.
        call.key(keys::DEATHS).key(keys::ROUNDS).key(keys::LAPSES);
    }
    call.arg(if documents { "1" } else { "" });
    call
}

/// The index of the last of `count` entries from `start` on, for `LRANGE`.
fn last(start: u64, count: u64) -> u64 {
    start.saturating_add(count).saturating_sub(1)
}

/// The dead letter queue of an ingress list with any name.
pub(super) fn letters_key(list: &Raw) -> Vec<u8> {
    [PREFIX, list.as_bytes()].concat()
}

/// The reasons of its entries.
pub(super) fn reasons_key(list: &Raw) -> Vec<u8> {
    [b"conserver:dlq:", list.as_bytes()].concat()
}

/// The keys that match `pattern` and hold this type, except those whose names are too long for any command.
pub(super) fn scan(
    connection: &mut RedisConnection,
    pattern: &[u8],
    kind: &str,
) -> Result<BTreeSet<Vec<u8>>, QueueError> {
    let (script, mut cursor, mut keys) = (scan_keys_script(), 0, BTreeSet::new());
    loop {
        let found;
        (cursor, found) = scan_some(connection, &script, cursor, pattern, kind)?;
        keys.extend(found);
        if cursor == 0 {
            return Ok(keys);
        }
    }
}

/// Some of those keys from a cursor on, found by the script that scans keys. Returns the next cursor, 0 at the
/// end.
pub(super) fn scan_some(
    connection: &mut RedisConnection,
    script: &Script,
    cursor: u64,
    pattern: &[u8],
    kind: &str,
) -> Result<(u64, Vec<Vec<u8>>), QueueError> {
    let mut call = script.call();
    call.arg(cursor)
        .arg(pattern)
        .arg(SCAN_COUNT)
        .arg(kind)
        .arg(MOST_SHOWN);
    cursor_and_items(call.invoke(&mut **connection)?)
}

/// Splits the reply of a script that returns the next cursor, and then what it has found.
pub(super) fn cursor_and_items(reply: Vec<Vec<u8>>) -> Result<(u64, Vec<Vec<u8>>), QueueError> {
    let mut items = reply.into_iter();
    let cursor = items
        .next()
        .and_then(|text| String::from_utf8(text).ok()?.parse().ok());
    let cursor = cursor.ok_or(QueueError::UnexpectedReply("a scan"))?;
    Ok((cursor, items.collect()))
}

fn settling(reply: &Value) -> Result<ReplayOutcome, QueueError> {
    match reply {
        Value::Int(0) => Ok(ReplayOutcome::Gone),
        Value::Int(_) => Ok(ReplayOutcome::Done),
        Value::BulkString(why) if why == b"lost" => Ok(ReplayOutcome::Lost),
        _ => Err(QueueError::UnexpectedReply("saving a dead letter")),
    }
}

fn moved(reply: Value, what: &'static str) -> Result<Moved, QueueError> {
    match reply {
        Value::Int(count) => Ok(Moved::Some(u64::try_from(count).unwrap_or(0))),
        Value::BulkString(why) => Ok(Moved::Refused(String::from_utf8_lossy(&why).into_owned())),
        _ => Err(QueueError::UnexpectedReply(what)),
    }
}

/// How long the replay lock outlives a process that does not renew it, in milliseconds.
const TTL_MS: u64 = 60_000;

/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(15);

/// How many bytes of somebody else's lock are shown. This program's have some hundred.
const MOST_OF_LOCK: usize = 1000;

/// How long a command on the lock's own connection may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of an attempt to take a replay lock.
pub enum ReplayStart {
    /// This process holds it.
    Ours(ReplayLock),
    /// Somebody else holds it.
    Held(HeldLock),
}

/// A replay lock that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Its key.
    pub key: String,
    /// Its value, if it is a string.
    pub by: Option<Raw>,
    /// Whether it expires by itself.
    pub expires: bool,
}

/// The lock under which this process saves the dead letters of a storage. Dropping it releases the lock.
///
/// The deployment's API server holds the same key while it replays, without a time to live, and checks only
/// whether the key exists. This lock has a time to live, which a thread renews: however this process ends,
/// the key is gone soon after.
pub struct ReplayLock {
    key: String,
    value: String,
    /// Ends the thread that renews the lock when it is dropped.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl ReplayLock {
    /// Takes the lock of this storage, if nobody holds it.
    ///
    /// # Errors
    /// Redis failed, or the operating system refused a thread.
    pub fn take(server: &Server, storage: &str) -> Result<ReplayStart, QueueError> {
        let mut connection = server.connect_for("conserver:replay", LIMIT)?;
        let key = keys::storage_replay_lock(storage);
        let value = lock_value();
        if !change_lock(&mut connection, "take", &key, &value)? {
            return Ok(ReplayStart::Held(holder(&mut connection, key)?));
        }
        let (stop, stopped) = bounded(0);
        let mut renewal = Renewal {
            server: server.clone(),
            connected: Some(connection),
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
            // The thread does not panic, and the lock expires in any case.
            let _ = thread.join();
        }
    }
}

/// The thread that renews a lock, and releases it at the end.
struct Renewal {
    server: Server,
    connected: Option<RedisConnection>,
    key: String,
    value: String,
}

impl Renewal {
    fn keep(&mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
            // Each step on the queue checks the lock, so a lost lock ends the replay there.
            let _ = self.run("renew");
        }
        // If Redis is unavailable, the lock expires.
        let _ = self.run("release");
    }

    fn run(&mut self, step: &str) -> Result<(), QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => self.server.connect_for("conserver:replay", LIMIT)?,
        };
        change_lock(&mut connection, step, &self.key, &self.value)?;
        self.connected = Some(connection);
        Ok(())
    }
}

/// Takes, renews or releases the lock. Returns whether it is, or was, held with this value.
fn change_lock(
    connection: &mut RedisConnection,
    step: &str,
    key: &str,
    value: &str,
) -> Result<bool, QueueError> {
    let script = replay_lock_script();
    let mut call = script.key(key);
    call.arg(step).arg(value).arg(TTL_MS);
    Ok(call.invoke::<i64>(&mut **connection)? == 1)
}

/// Who holds the lock of this storage, if anybody does.
fn find_lock(
    connection: &mut RedisConnection,
    storage: &str,
) -> Result<Option<HeldLock>, QueueError> {
    let key = keys::storage_replay_lock(storage);
    let exists: bool = redis::cmd("EXISTS").arg(&key).query(&mut **connection)?;
    exists.then(|| holder(connection, key)).transpose()
}

fn holder(connection: &mut RedisConnection, key: String) -> Result<HeldLock, QueueError> {
    let by = redis::cmd("GETRANGE")
        .arg(&key)
        .arg(0)
        .arg(MOST_OF_LOCK - 1)
        .query::<Option<Vec<u8>>>(&mut **connection);
    let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut **connection)?;
    Ok(HeldLock {
        key,
        // A key of another type has no value to show.
        by: by.ok().flatten().map(Raw::new),
        expires: ttl >= 0,
    })
}

/// A value that names this process and that no other lock has.
fn lock_value() -> String {
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
            StoredReason::read(ours),
            StoredReason::Known {
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
            assert_eq!(StoredReason::read(other), StoredReason::Other(text));
        }
    }
}
