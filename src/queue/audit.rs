//! Where vCons are: finds vCons that are in no list, locates one vCon, counts entries.
//!
//! Daemons work on during an audit, and vCons move: from the ingress list into a claim, from there to an
//! egress list or a dead letter queue. So an audit reads the keys of the documents first, and then the lists
//! in that order: it meets a vCon that moves on later. A vCon that moves back (a claim that is released)
//! is found by a second look, in the end by one atomic script.
//!
//! Reads keys and lists in pages, so that it never blocks the server for long.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::NaiveDate;
use redis::Value;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::dead_letter_groups::{DeadLetterGroups, GroupLimits, GroupedQueue};
use super::dead_letters::{letters_key, scan};
use super::keys::{STORAGE_PREFIX, storage_letters_list};
use super::requests::{OperatorScripts, round_trip};
use super::{QueueError, Raw, RedisConnection, Server, StoredDocument, is_wrong_type, keys};
use crate::config::ListName;
use crate::vcon::{CreatedAt, VconId};

/// How many keys one `SCAN` looks at.
const SCAN_COUNT: u64 = 500;

/// How many entries of a list are read at once.
const PAGE: i64 = 2000;

/// How many entries at both ends of each list the last look at a vCon covers: those that have come since the
/// list was read as a whole.
const ENDS: u64 = 10_000;

/// How many documents are asked for their dates at once.
const DATES: usize = 500;

/// How many bytes a UUID has; entries may have any number.
const LONGEST_ID: usize = 36;

/// The most memory of a date in a RedisJSON document. None takes as much.
const LARGEST_DATE: i64 = 200;

/// The last byte of a document that is read for its date, which vCon libraries write before the parts.
const BEGINNING: usize = 1023;

const CLAIMS: &[u8] = b"conserver:claims:";
const WORKERS: &[u8] = b"conserver:workers:";

/// The lists of a deployment.
#[derive(Debug, Clone, Default)]
pub struct AuditLists {
    /// Where vCons wait for work.
    pub ingress: Vec<ListName>,
    /// Where they are announced.
    pub egress: Vec<ListName>,
    /// The names of the storages in whose dead letter queues they may be.
    pub storages: Vec<String>,
}

/// Where the last look found a vCon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// Its document is no longer in Redis.
    Gone,
    /// In one of the lists.
    List,
    /// In a claim of a worker.
    Claim,
    /// Nowhere.
    Nowhere,
    /// It was nowhere, and has been put on the list.
    Requeued,
}

/// Which queues one vCon is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The ingress lists it waits in.
    pub waiting: Vec<Raw>,
    /// Whether a worker holds a claim on it.
    pub is_claimed: bool,
    /// The ingress lists in whose dead letter queues it is, and `storage:<name>` for those of
    /// storages.
    pub dead: Vec<Raw>,
}

/// A walk through the documents in Redis.
pub struct Audit {
    connection: RedisConnection,
    scripts: OperatorScripts,
    least_ttl: u64,
    cursor: Option<u64>,
    /// The lists in which vCons wait.
    waiting: Vec<Vec<u8>>,
    /// The egress lists and the dead letter queues.
    done: Vec<Vec<u8>>,
    /// The claims hashes that were there at the beginning.
    claims: Vec<Vec<u8>>,
}

impl Audit {
    /// Prepares a walk. The document of a vCon that is put back on a list lives for at least `least_ttl`
    /// seconds.
    pub fn new(
        connection: RedisConnection,
        lists: &AuditLists,
        least_ttl: u64,
    ) -> Result<Self, QueueError> {
        let name = |list: &ListName| list.as_str().as_bytes().to_vec();
        let mut audit = Self {
            connection,
            scripts: OperatorScripts::new(),
            least_ttl,
            cursor: Some(0),
            waiting: lists.ingress.iter().map(name).collect(),
            done: lists.egress.iter().map(name).collect(),
            claims: Vec::new(),
        };
        let letters = scan(&mut audit.connection, b"DLQ:*", "list")?;
        audit
            .waiting
            .extend(letters.iter().filter_map(|key| ingress_of(key)));
        let own = |list: &ListName| letters_key(&Raw::new(list.as_str()));
        audit.done.extend(lists.ingress.iter().map(own));
        let of_storages = lists.storages.iter().map(|name| storage_letters_list(name));
        audit.done.extend(of_storages.map(String::into_bytes));
        audit.done.extend(letters);
        for lists in [&mut audit.waiting, &mut audit.done] {
            lists.sort_unstable();
            lists.dedup();
        }
        // The claims hashes of living daemons come and go; the names of the instances lead to those.
        let claims = scan(&mut audit.connection, &[CLAIMS, b"*"].concat(), "hash")?;
        audit.claims = claims.into_iter().collect();
        Ok(audit)
    }

    /// Looks for waiting vCons in these lists alone, not in those that dead letter queues suggest.
    pub fn wait_only_in(&mut self, ingress: &[ListName]) {
        self.waiting
            .retain(|list| ingress.iter().any(|it| it.as_str().as_bytes() == list));
    }

    /// Whether the document of a vCon is in Redis.
    pub fn has_document(&mut self, id: &VconId) -> Result<bool, QueueError> {
        Ok(redis::cmd("EXISTS")
            .arg(id.key())
            .query(&mut *self.connection)?)
    }

    /// About how many documents there are: the number of keys.
    pub fn estimate(&mut self) -> Result<u64, QueueError> {
        Ok(redis::cmd("DBSIZE").query(&mut *self.connection)?)
    }

    /// The ids of the next documents: at least `count` of them, fewer at the end of the walk, none after it.
    pub fn next(&mut self, count: usize) -> Result<HashSet<VconId>, QueueError> {
        let mut ids = HashSet::new();
        while let Some(cursor) = self.cursor
            && ids.len() < count
        {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("vcon:*");
            scan.arg("COUNT").arg(SCAN_COUNT);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query(&mut *self.connection)?;
            self.cursor = (next != 0).then_some(next);
            let id = |key: Vec<u8>| Raw::new(key.strip_prefix(b"vcon:")?).id();
            ids.extend(keys.into_iter().filter_map(id));
        }
        Ok(ids)
    }

    /// The days on which these vCons were made, if the beginnings of their documents say so.
    pub fn days(
        &mut self,
        ids: &HashSet<VconId>,
    ) -> Result<HashMap<VconId, NaiveDate>, QueueError> {
        let ids: Vec<&VconId> = ids.iter().collect();
        let mut days = HashMap::new();
        for some in ids.chunks(DATES) {
            let mut ask = redis::pipe();
            for id in some {
                ask.cmd("GETRANGE").arg(id.key()).arg(0).arg(BEGINNING);
            }
            let mut others = Vec::new();
            for (id, reply) in some.iter().zip(round_trip(&mut self.connection, &ask)?) {
                match reply {
                    Value::BulkString(text) => {
                        days.extend(day_in(&text).map(|day| ((*id).clone(), day)));
                    }
                    _ => others.push(*id),
                }
            }
            // These are not strings. Whoever reads one finds out if it is no document either.
            let mut ask = redis::pipe();
            for id in &others {
                ask.cmd("JSON.DEBUG").arg("MEMORY");
                ask.arg(id.key()).arg(".created_at");
            }
            // It may be something other than a date, of any length.
            let is_small = |size: &Value| matches!(size, Value::Int(size) if *size <= LARGEST_DATE);
            let sizes = round_trip(&mut self.connection, &ask)?;
            let sized = others.into_iter().zip(&sizes);
            let others: Vec<&VconId> = sized
                .filter(|(_, it)| is_small(it))
                .map(|(id, _)| id)
                .collect();
            let mut ask = redis::pipe();
            for id in &others {
                ask.cmd("JSON.GET").arg(id.key()).arg(".created_at");
            }
            for (id, reply) in others.iter().zip(round_trip(&mut self.connection, &ask)?) {
                if let Value::BulkString(date) = reply {
                    days.extend(day_of(&date).map(|day| ((*id).clone(), day)));
                }
            }
        }
        Ok(days)
    }

    /// Removes the vCons from `ids` that are in a list or a claim.
    pub fn strike_queued(&mut self, ids: &mut HashSet<VconId>) -> Result<(), QueueError> {
        for list in self.waiting.clone() {
            self.remove_listed(&list, ids)?;
        }
        self.remove_claimed(ids)?;
        for list in self.done.clone() {
            self.remove_listed(&list, ids)?;
        }
        Ok(())
    }

    /// Removes the vCons from `ids` that wait in an ingress list or are claimed. The others are done,
    /// unless one has moved meanwhile.
    pub fn strike_in_work(&mut self, ids: &mut HashSet<VconId>) -> Result<(), QueueError> {
        for list in self.waiting.clone() {
            self.remove_listed(&list, ids)?;
        }
        self.remove_claimed(ids)
    }

    /// Whether one vCon is in an ingress list or a claim. Looks in one step on the server, so that nothing
    /// moves meanwhile.
    pub fn is_in_work(&mut self, id: &VconId) -> Result<bool, QueueError> {
        let place = self.ask(id, None, &self.waiting.clone())?;
        Ok(matches!(place, Location::List | Location::Claim))
    }

    /// Removes the entries of a list from `ids`. Reads from the tail to the head, so that no entry is missed
    /// if others are taken from the head meanwhile.
    fn remove_listed(&mut self, list: &[u8], ids: &mut HashSet<VconId>) -> Result<(), QueueError> {
        let mut end = -1;
        while !ids.is_empty() {
            let mut call = self.scripts.read_list.key(list);
            call.arg(end - PAGE + 1).arg(end).arg(LONGEST_ID + 1);
            let entries: Vec<Vec<u8>> = call.invoke(&mut *self.connection)?;
            if entries.is_empty() {
                break;
            }
            for id in entries.into_iter().filter_map(|entry| Raw::new(entry).id()) {
                ids.remove(&id);
            }
            end -= PAGE;
        }
        Ok(())
    }

    fn remove_claimed(&mut self, ids: &mut HashSet<VconId>) -> Result<(), QueueError> {
        #[derive(Deserialize)]
        struct Record {
            uuid: String,
        }
        let mut hashes = self.claims.clone();
        for instance in self.members(keys::INSTANCES.as_bytes())? {
            let workers = self.members(&[WORKERS, &instance].concat())?;
            let hash = |worker: Vec<u8>| [CLAIMS, &instance, b":", &worker].concat();
            hashes.extend(workers.into_iter().map(hash));
        }
        for hash in hashes {
            let mut values = redis::cmd("HVALS");
            let records: Vec<Vec<u8>> = match values.arg(hash).query(&mut *self.connection) {
                Err(error) if is_wrong_type(&error) => continue,
                records => records?,
            };
            for record in records {
                if let Ok(Record { uuid }) = serde_json::from_slice(&record)
                    && let Ok(id) = uuid.parse::<VconId>()
                {
                    ids.remove(&id);
                }
            }
        }
        Ok(())
    }

    fn members(&mut self, set: &[u8]) -> Result<Vec<Vec<u8>>, QueueError> {
        match redis::cmd("SMEMBERS").arg(set).query(&mut *self.connection) {
            Err(error) if is_wrong_type(&error) => Ok(Vec::new()),
            members => Ok(members?),
        }
    }

    /// Which queues one vCon is in, whether or not its document is in Redis.
    pub fn whereabouts(&mut self, id: &VconId) -> Result<Whereabouts, QueueError> {
        let mut waiting = self.among(&self.waiting.clone(), id)?;
        let mut ids = HashSet::from([id.clone()]);
        self.remove_claimed(&mut ids)?;
        let is_claimed = ids.is_empty();
        if waiting.is_empty() && !is_claimed {
            // A claim may have been released between the two looks.
            waiting = self.among(&self.waiting.clone(), id)?;
        }
        let done = self.among(&self.done.clone(), id)?;
        let letters = done.iter().map(Raw::as_bytes);
        let dead = letters.filter_map(|key| key.strip_prefix(b"DLQ:").map(Raw::new));
        Ok(Whereabouts {
            waiting,
            is_claimed,
            dead: dead.collect(),
        })
    }

    /// Those of the lists that hold the vCon.
    fn among(&mut self, lists: &[Vec<u8>], id: &VconId) -> Result<Vec<Raw>, QueueError> {
        let mut among = Vec::new();
        for list in lists {
            let mut find = redis::cmd("LPOS");
            find.arg(list).arg(id.as_str());
            match find.query::<Option<u64>>(&mut *self.connection) {
                Err(error) if is_wrong_type(&error) => {}
                index => among.extend(index?.map(|_| Raw::new(list.clone()))),
            }
        }
        Ok(among)
    }

    /// Looks for one vCon that was in no list when the lists were read as a whole. Looks in one step on the
    /// server, so that nothing moves meanwhile.
    pub fn locate(&mut self, id: &VconId) -> Result<Location, QueueError> {
        self.ask(id, None, &self.all_lists())
    }

    /// Looks for a vCon and puts it at the tail of `list` if it is nowhere, in one step.
    pub fn requeue(&mut self, id: &VconId, list: &ListName) -> Result<Location, QueueError> {
        self.ask(id, Some(list), &self.all_lists())
    }

    fn all_lists(&self) -> Vec<Vec<u8>> {
        self.waiting.iter().chain(&self.done).cloned().collect()
    }

    fn ask(
        &mut self,
        id: &VconId,
        list: Option<&ListName>,
        among: &[Vec<u8>],
    ) -> Result<Location, QueueError> {
        let mut call = self.scripts.locate_vcon.call();
        for key in among {
            call.key(key);
        }
        call.arg(id.as_str())
            .arg(ENDS)
            .arg(list.map_or("", ListName::as_str));
        call.arg(self.least_ttl).arg(&self.claims);
        match call.invoke::<Value>(&mut *self.connection)? {
            Value::BulkString(found) => match found.as_slice() {
                b"gone" => Ok(Location::Gone),
                b"list" => Ok(Location::List),
                b"claim" => Ok(Location::Claim),
                b"nowhere" => Ok(Location::Nowhere),
                b"requeued" => Ok(Location::Requeued),
                _ => Err(QueueError::UnexpectedReply("looking for a vCon")),
            },
            _ => Err(QueueError::UnexpectedReply("looking for a vCon")),
        }
    }

    /// The document of a vCon.
    pub fn document(&mut self, id: &VconId) -> Result<StoredDocument, QueueError> {
        StoredDocument::read(&mut self.connection, id)
    }
}

/// The ingress list to which a dead letter queue belongs, even if the configuration does not name it. The
/// queue of a storage belongs to none: only the configuration can name an ingress list `storage:...`.
fn ingress_of(letters: &[u8]) -> Option<Vec<u8>> {
    let list = letters.strip_prefix(b"DLQ:")?;
    (!list.starts_with(STORAGE_PREFIX.as_bytes())).then(|| list.to_vec())
}

/// The day of the first `created_at` in the beginning of a document. This is a hint: it may belong to a
/// part of the document.
fn day_in(text: &[u8]) -> Option<NaiveDate> {
    const KEY: &[u8] = b"\"created_at\"";
    let at = text.windows(KEY.len()).position(|some| some == KEY)?;
    let value = text[at + KEY.len()..].trim_ascii_start();
    let value = value.strip_prefix(b":")?.trim_ascii_start();
    let end = match value.strip_prefix(b"\"") {
        Some(rest) => rest.iter().position(|byte| *byte == b'"')? + 2,
        None => value.iter().position(|byte| b",} \n\r\t".contains(byte))?,
    };
    day_of(&value[..end])
}

/// The day of a `created_at`, as JSON.
fn day_of(date: &[u8]) -> Option<NaiveDate> {
    let date = serde_json::from_slice::<&RawValue>(date).ok()?;
    Some(CreatedAt::from_json(date)?.local.date())
}

/// The lengths of lists, and the numbers of fields of hashes.
type Counts = (Vec<Option<u64>>, Vec<Option<u64>>);

/// Asks for the lengths of lists, and for groups of dead letters, each time over the same connection.
pub struct Lengths {
    server: Server,
    limit: Duration,
    connected: Option<RedisConnection>,
}

impl Lengths {
    /// Connects when first used. Neither connecting nor a reply may take longer than `limit`.
    pub fn new(server: Server, limit: Duration) -> Self {
        Self {
            server,
            limit,
            connected: None,
        }
    }

    /// The lengths of these lists, and the numbers of fields of these hashes; `None` for a key that holds
    /// another type. Without names, only checks that the server serves.
    ///
    /// # Errors
    /// The server cannot be reached, or does not serve at present.
    pub fn ask(&mut self, lists: &[String], hashes: &[String]) -> Result<Counts, QueueError> {
        let mut connection = self.connect()?;
        let mut asked = redis::pipe();
        asked.cmd("PING");
        for name in lists {
            asked.cmd("LLEN").arg(name);
        }
        for name in hashes {
            asked.cmd("HLEN").arg(name);
        }
        let mut replies = round_trip(&mut connection, &asked)?.into_iter();
        match replies.next().unwrap_or(Value::Nil).extract_error() {
            // The user may not send PING, but the server replied.
            Err(error) if error.code() != Some("NOPERM") => return Err(error.into()),
            _ => {}
        }
        self.connected = Some(connection);
        let length = |reply: Value| redis::from_redis_value(reply).ok();
        let mut counts: Vec<_> = replies.map(length).collect();
        let of_hashes = counts.split_off(lists.len().min(counts.len()));
        Ok((counts, of_hashes))
    }

    /// The memory that the server uses, in bytes; `None` if the user may not ask for it.
    ///
    /// # Errors
    /// The server cannot be reached, or does not serve at present.
    pub fn memory(&mut self) -> Result<Option<u64>, QueueError> {
        let mut connection = self.connect()?;
        let mut asked = redis::pipe();
        asked.cmd("INFO").arg("memory");
        let mut replies = round_trip(&mut connection, &asked)?.into_iter();
        self.connected = Some(connection);
        let reply = replies.next().unwrap_or(Value::Nil);
        let text: Option<String> = redis::from_redis_value(reply).ok();
        let text = text.unwrap_or_default();
        let mut used = text
            .lines()
            .filter_map(|it| it.strip_prefix("used_memory:"));
        Ok(used.next().and_then(|bytes| bytes.trim().parse().ok()))
    }

    /// The dead letters of these queues in groups, as far as the limits allow.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses a step.
    pub fn groups(
        &mut self,
        queues: &[GroupedQueue],
        limits: &GroupLimits,
    ) -> Result<DeadLetterGroups, QueueError> {
        let mut connection = self.connect()?;
        let groups = DeadLetterGroups::read(&mut connection, queues, limits);
        if !groups.as_ref().is_err_and(QueueError::breaks_connection) {
            self.connected = Some(connection);
        }
        groups
    }

    fn connect(&mut self) -> Result<RedisConnection, QueueError> {
        match self.connected.take() {
            Some(connection) => Ok(connection),
            None => Ok(self.server.connect_for("conserver:lengths", self.limit)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_document_tells_its_day() {
        for (text, day) in [
            (
                r#"{"uuid":"x","created_at":"2025-03-07T10:00:00Z","par"#,
                Some("2025-03-07"),
            ),
            (r#"{"created_at" : 1741341600, "#, Some("2025-03-07")),
            (r#"{"created_at":1741341600}"#, Some("2025-03-07")),
            // Cut off, or no date.
            (r#"{"created_at":"2025-03-0"#, None),
            (r#"{"created_at":17413416"#, None),
            (r#"{"created_at":null,"x":1}"#, None),
            (r#"{"created_at"#, None),
            (r#"{"created_at":{"a":1},"x":1}"#, None),
            ("", None),
        ] {
            let found = day_in(text.as_bytes());
            assert_eq!(found, day.and_then(|day| day.parse().ok()), "{text}");
        }
    }

    #[test]
    fn dead_letters_of_storages_tell_of_no_ingress_list() {
        for (key, list) in [
            ("DLQ:default", Some("default")),
            ("DLQ:storage", Some("storage")),
            ("DLQ:storages:pg", Some("storages:pg")),
            ("DLQ:DLQ:storage:pg", Some("DLQ:storage:pg")),
            ("DLQ:storage:pg", None),
            ("DLQ:storage:", None),
            ("other", None),
        ] {
            let found = ingress_of(key.as_bytes());
            assert_eq!(found.as_deref(), list.map(str::as_bytes), "{key}");
        }
    }
}
