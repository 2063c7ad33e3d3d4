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

use redis::Value;
use serde::Deserialize;

use super::documents::JSON;
use super::release::Reason;
use super::replay::{HeldLock, ReplayLock, look};
use super::script::{Call, Script};
use super::scripts::{self, Care};
use super::{Document, Kind, Lease, QueueError, Raw, keys};
use crate::vcon::VconId;

/// The keys of dead letter lists begin with this.
const PREFIX: &[u8] = b"DLQ:";

/// Keys looked at with one `SCAN`.
const SCAN_COUNT: usize = 1000;

/// The most bytes of an entry that are shown. Longer ones could not be named on a command line: Linux takes no
/// argument above 128 KiB, and an escaped byte takes up to six.
const MOST_SHOWN: usize = 16 << 10;

/// The most bytes of a reason that are read. Ours are shorter: of what servers and programs say, at most 64 KiB become a
/// part of one, and JSON makes it six times as long at most.
const MOST_OF_REASON: usize = 512 << 10;

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
    /// An ingress list's: the whole work on the vCon failed.
    List,
    /// A storage's: all else is done.
    Storage,
}

/// An entry of a dead letter queue, with its reason as it is kept, each up to a length: anybody may have written them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry.
    pub entry: Raw,
    /// The bytes of its reason.
    pub reason: Option<Vec<u8>>,
}

impl Entry {
    /// Whether there is more of it in the queue, where it cannot be named.
    pub fn is_cut(&self) -> bool {
        self.entry.as_bytes().len() > MOST_SHOWN
    }
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
    scripts: Care,
    least_ttl: u64,
}

impl DeadLetters {
    /// Over this connection. A document that has to wait again lives at least `least_ttl` seconds.
    pub fn new(lease: Lease, least_ttl: u64) -> Self {
        Self {
            lease,
            scripts: Care::new(),
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
        let mut call = self.scripts.members.key(keys::LETTERS);
        let recorded: Vec<Vec<u8>> = call.arg(MOST_SHOWN).invoke(&mut *self.lease)?;
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
        let entries = self.entries(list, start, count)?.into_iter();
        Ok(entries.map(|entry| Letter::new(list, entry)).collect())
    }

    /// The same as [`DeadLetters::page`], with reasons as they are kept.
    pub fn entries(
        &mut self,
        list: &Raw,
        start: u64,
        count: u64,
    ) -> Result<Vec<Entry>, QueueError> {
        let mut call = self.scripts.letters.key(letters_key(list));
        call.arg(start).arg(last(start, count)).arg(MOST_SHOWN + 1);
        let entries: Vec<Vec<u8>> = call.invoke(&mut *self.lease)?;
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

    /// The reasons of these entries, in their order; of one that is too long, a byte more than it may have.
    fn reasons(
        &mut self,
        list: &Raw,
        entries: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, QueueError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = self.scripts.reasons.key(reasons_key(list));
        call.arg(MOST_OF_REASON + 1).arg(entries);
        let mut kept: Vec<Option<Vec<u8>>> = call.invoke(&mut *self.lease)?;
        kept.resize(entries.len(), None);
        Ok(kept)
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
        let mut call = dropping(&self.scripts.drop, owner, list, document);
        call.arg("this").arg(entry.as_bytes());
        moved(call.invoke(&mut *self.lease)?, "dropping a dead letter")
    }

    /// Drops up to `count` of the oldest entries in one step, and with `documents` their documents.
    pub fn drop_oldest(
        &mut self,
        owner: Owner,
        list: &Raw,
        count: u64,
        documents: bool,
    ) -> Result<Moved, QueueError> {
        let mut call = dropping(&self.scripts.drop, owner, list, documents);
        call.arg(count);
        moved(call.invoke(&mut *self.lease)?, "dropping dead letters")
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
        call.arg(lock.value()).arg(MOST_OF_REASON + 1);
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

/// A document in Redis, and how long it still lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What stands under its key.
    pub document: Document,
    /// Seconds until it expires; `None` where it does not, or is not there.
    pub ttl: Option<u64>,
}

impl Kept {
    pub(super) fn read(lease: &mut Lease, id: &VconId) -> Result<Self, QueueError> {
        let key = id.key();
        let mut ask = redis::pipe();
        ask.cmd("TYPE").arg(&key).cmd("TTL").arg(&key);
        let (kind, ttl): (String, i64) = ask.query(&mut **lease)?;
        let mut get = |command: &str, kind| {
            let text: Option<Vec<u8>> = redis::cmd(command).arg(&key).query(&mut **lease)?;
            Ok::<_, QueueError>(text.map_or(Document::Missing, |text| Document::Found(kind, text)))
        };
        let document = match kind.as_str() {
            "none" => Document::Missing,
            "string" => get("GET", Kind::Text)?,
            JSON => get("JSON.GET", Kind::Json)?,
            other => Document::Unusable(format!("its key holds a {other}, not a document")),
        };
        Ok(Self {
            document,
            ttl: u64::try_from(ttl).ok(),
        })
    }
}

/// A call that drops entries, and with `documents` their documents.
fn dropping<'a>(script: &'a Script, owner: Owner, list: &Raw, documents: bool) -> Call<'a> {
    let mut call = script.key(letters_key(list));
    call.key(reasons_key(list));
    if owner == Owner::List {
        // A storage's entry says nothing of work that the same vCon may be in.
        call.key(keys::DEATHS).key(keys::TRIES).key(keys::LAPSES);
    }
    call.arg(if documents { "1" } else { "" });
    call
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

/// The keys like `pattern` that hold a value of this type, without those whose names are too long to be named.
pub(super) fn scan(
    lease: &mut Lease,
    pattern: &[u8],
    kind: &str,
) -> Result<BTreeSet<Vec<u8>>, QueueError> {
    let (script, mut cursor, mut keys) = (scripts::scan(), 0, BTreeSet::new());
    loop {
        let found;
        (cursor, found) = scan_some(lease, &script, cursor, pattern, kind)?;
        keys.extend(found);
        if cursor == 0 {
            return Ok(keys);
        }
    }
}

/// Some of those from a cursor on; returns where it goes on, and 0 at the end.
pub(super) fn scan_some(
    lease: &mut Lease,
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
    cursor_and_items(call.invoke(&mut **lease)?)
}

/// The answer of a script that returns where it goes on, and what it has found.
pub(super) fn cursor_and_items(answer: Vec<Vec<u8>>) -> Result<(u64, Vec<Vec<u8>>), QueueError> {
    let mut items = answer.into_iter();
    let cursor = items
        .next()
        .and_then(|text| String::from_utf8(text).ok()?.parse().ok());
    let cursor = cursor.ok_or(QueueError::Answer("a scan"))?;
    Ok((cursor, items.collect()))
}

pub(super) fn is_wrong_type(error: &redis::RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
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
