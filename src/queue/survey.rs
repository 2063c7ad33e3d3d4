//! What is in a Redis that another worker has served so far: what waits in its lists, and how its documents
//! are kept. Only reads, and only a part of a large server.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::Value;
use serde::Serialize;
use serde_json::Value as Json;

use super::documents::JSON;
use super::keys::{
    FOLLOWERS, INSTANCES, Raw, STORAGE_PREFIX, UNRETURNED, claims_key, dead_letter_list,
    follower_key, storage_letters_list, storage_replay_lock, workers_key,
};
use super::requests::round_trip;
use super::{QueueError, RedisConnection, Server, is_wrong_type};
use crate::config::ListName;
use crate::visible::printable;

/// How many keys one `SCAN` looks at, and how many of them are sent: 100,000 keys in all.
const SCAN_COUNT: usize = 1000;
const MOST_SCANS: usize = 100;

/// The most documents whose kind is asked for.
const MOST_KINDS: usize = 500;

/// The most documents that are read, and the most bytes of one.
const MOST_READ: usize = 50;
const LARGEST_READ: u64 = 256 << 10;

const DOCUMENT: &[u8] = b"vcon:";
const LETTERS: &[u8] = b"DLQ:";
const LOCK: &[u8] = b":replay-lock";

/// The lists and storages to look for.
#[derive(Debug, Clone, Default)]
pub struct SurveyLists {
    /// Where vCons wait for work.
    pub ingress: Vec<ListName>,
    /// Where they are announced.
    pub egress: Vec<ListName>,
    /// The names of the storages.
    pub storages: Vec<String>,
    /// The names of the followers.
    pub followers: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Every list that was looked for, and further dead letter queues and lists of followers that are there.
    pub queues: Vec<QueueLength>,
    /// The storages whose dead letters somebody replays, or has begun to.
    pub replay_locks: Vec<String>,
    /// How many claims daemons like this one have, by their instance.
    pub claims: Vec<(String, u64)>,
    /// Whether the server has RedisJSON and lets this user call it.
    pub has_json: bool,
    /// How documents are kept.
    pub documents: DocumentSample,
    /// Whether every key was looked at.
    pub is_complete: bool,
}

/// What a list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// vCons wait there for work.
    Ingress,
    /// They are announced there.
    Egress,
    /// Those that failed.
    DeadLetters,
    /// Those that a storage does not have.
    StorageDeadLetters,
    /// A follower took them off another server's list, and has not fetched their documents yet.
    Follower,
}

/// The length of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLength {
    /// The key.
    pub key: String,
    /// What it is for.
    pub kind: QueueKind,
    /// Whether the configuration names it.
    pub is_configured: bool,
    /// How many entries it has; `None` if the key holds another type.
    pub entries: Option<u64>,
}

/// How some documents are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DocumentSample {
    /// As plain strings.
    pub plain: usize,
    /// As RedisJSON.
    pub redis_json: usize,
    /// Keys of documents that hold something else.
    pub other: usize,
    /// Bodies of analysis and attachments that are JSON, written as text. Tags do not count, which every worker
    /// writes so.
    pub bodies_as_text: usize,
    /// The same, written as values.
    pub bodies_as_values: usize,
}

/// The names that a scan has found.
#[derive(Default)]
struct FoundKeys {
    documents: BTreeSet<Vec<u8>>,
    letters: BTreeSet<Vec<u8>>,
    locks: BTreeSet<Vec<u8>>,
    is_complete: bool,
}

impl Survey {
    /// Looks at the server. Neither connecting nor a reply may take longer than `limit`.
    ///
    /// # Errors
    /// The server cannot be reached, or does not serve at present.
    pub fn take(server: &Server, lists: &SurveyLists, limit: Duration) -> Result<Self, QueueError> {
        let mut connection = server.connect_for("conserver:migrate", limit)?;
        ping(&mut connection)?;
        let has_json = connection.has_json()?;
        let found = FoundKeys::scan(&mut connection)?;
        let mut queues = named(lists);
        let is_known = |queues: &[QueueLength], key: &str| queues.iter().any(|it| it.key == key);
        for key in &found.letters {
            let key = Raw::new(key.clone()).to_string();
            if !is_known(&queues, &key) {
                let kind = kind_of_letters(&key);
                queues.push(QueueLength::new(key, kind, false));
            }
        }
        for follower in members(&mut connection, FOLLOWERS)? {
            let key = follower_key(&follower);
            if !is_known(&queues, &key) {
                queues.push(QueueLength::new(key, QueueKind::Follower, false));
            }
        }
        measure(&mut connection, &mut queues)?;
        // A key of another type says nothing if the configuration does not name it, nor does a former follower
        // of which nothing is left.
        queues.retain(|queue| {
            let least = u64::from(queue.kind == QueueKind::Follower);
            queue.is_configured || queue.entries >= Some(least)
        });
        Ok(Self {
            queues,
            replay_locks: replay_locks(&mut connection, lists, &found)?,
            claims: claims(&mut connection)?,
            has_json,
            documents: DocumentSample::read(&mut connection, &found.documents)?,
            is_complete: found.is_complete,
        })
    }
}

impl QueueLength {
    fn new(key: String, kind: QueueKind, is_configured: bool) -> Self {
        Self {
            key,
            kind,
            is_configured,
            entries: None,
        }
    }
}

/// The lists that the configuration names, each once.
fn named(lists: &SurveyLists) -> Vec<QueueLength> {
    let ingress = lists.ingress.iter();
    let ingress = ingress.map(|list| (list.to_string(), QueueKind::Ingress));
    let egress = lists.egress.iter();
    let egress = egress.map(|list| (list.to_string(), QueueKind::Egress));
    let letters = lists.ingress.iter();
    let letters = letters.map(|list| (dead_letter_list(list), QueueKind::DeadLetters));
    let storages = lists.storages.iter();
    let storages = storages.map(|it| (storage_letters_list(it), QueueKind::StorageDeadLetters));
    let followers = lists.followers.iter();
    let followers = followers.map(|it| (follower_key(it), QueueKind::Follower));
    let lists = ingress.chain(egress).chain(letters);
    let mut queues: Vec<QueueLength> = Vec::new();
    for (key, kind) in lists.chain(storages).chain(followers) {
        if !queues.iter().any(|queue| queue.key == key) {
            queues.push(QueueLength::new(key, kind, true));
        }
    }
    queues
}

fn kind_of_letters(key: &str) -> QueueKind {
    let queue = key.strip_prefix("DLQ:").unwrap_or(key);
    match queue.starts_with(STORAGE_PREFIX) {
        true => QueueKind::StorageDeadLetters,
        false => QueueKind::DeadLetters,
    }
}

/// Fails if the server does not serve at present.
fn ping(connection: &mut RedisConnection) -> Result<(), QueueError> {
    match redis::cmd("PING").query::<Value>(connection) {
        // The user may not send PING, but the server replied.
        Err(error) if error.code() != Some("NOPERM") => Err(error.into()),
        _ => Ok(()),
    }
}

/// The number that the server replies; 0 if it refuses the command.
fn number(connection: &mut RedisConnection, command: &redis::Cmd) -> Result<u64, QueueError> {
    match command.query::<u64>(connection) {
        Err(error) if error.code().is_some() => Ok(0),
        number => Ok(number?),
    }
}

fn measure(connection: &mut RedisConnection, queues: &mut [QueueLength]) -> Result<(), QueueError> {
    let mut asked = redis::pipe();
    for queue in queues.iter() {
        asked.cmd("LLEN").arg(&queue.key);
    }
    let replies = round_trip(connection, &asked)?;
    for (queue, reply) in queues.iter_mut().zip(replies) {
        queue.entries = match reply.extract_error() {
            Ok(length) => redis::from_redis_value(length).ok(),
            Err(error) if is_wrong_type(&error) || !queue.is_configured => None,
            // The user lacks the right, which it will need.
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

/// The storages whose lock is there, those that the configuration does not name among them.
fn replay_locks(
    connection: &mut RedisConnection,
    lists: &SurveyLists,
    found: &FoundKeys,
) -> Result<Vec<String>, QueueError> {
    let mut locks = Vec::new();
    for storage in &lists.storages {
        let key = storage_replay_lock(storage);
        if number(connection, redis::cmd("EXISTS").arg(key))? > 0 {
            locks.push(storage.clone());
        }
    }
    for key in &found.locks {
        let key = Raw::new(key.clone()).to_string();
        let storage = key.strip_prefix("DLQ:storage:").unwrap_or(&key);
        let storage = storage.strip_suffix(":replay-lock").unwrap_or(storage);
        if !locks.iter().any(|known| known == storage) {
            locks.push(storage.to_owned());
        }
    }
    Ok(locks)
}

/// The claims of all instances that have any.
fn claims(connection: &mut RedisConnection) -> Result<Vec<(String, u64)>, QueueError> {
    let mut claims = Vec::new();
    for instance in members(connection, INSTANCES)? {
        let workers = members(connection, &workers_key(&instance))?;
        let workers = workers.iter().filter_map(|number| number.parse().ok());
        let mut count = 0;
        for worker in workers.chain([UNRETURNED]) {
            let key = claims_key(&instance, worker);
            count += number(connection, redis::cmd("HLEN").arg(key))?;
        }
        if count > 0 {
            claims.push((printable(&instance).into_owned(), count));
        }
    }
    Ok(claims)
}

/// The members of a set that are text; none if the server refuses the command.
fn members(connection: &mut RedisConnection, key: &str) -> Result<Vec<String>, QueueError> {
    match redis::cmd("SMEMBERS")
        .arg(key)
        .query::<Vec<Vec<u8>>>(connection)
    {
        Err(error) if error.code().is_some() => Ok(Vec::new()),
        members => {
            let members = members?.into_iter();
            Ok(members
                .filter_map(|it| String::from_utf8(it).ok())
                .collect())
        }
    }
}

impl FoundKeys {
    /// Looks at the names of keys, but not at all of a large server.
    fn scan(connection: &mut RedisConnection) -> Result<Self, QueueError> {
        let (mut found, mut cursor) = (Self::default(), 0u64);
        for _ in 0..MOST_SCANS {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(SCAN_COUNT);
            let keys: Vec<Vec<u8>>;
            (cursor, keys) = match scan.query(connection) {
                // The user may not see other keys than those that it names.
                Err(error) if error.code() == Some("NOPERM") => return Ok(found),
                page => page?,
            };
            for key in keys {
                found.add(key);
            }
            if cursor == 0 {
                found.is_complete = true;
                break;
            }
        }
        Ok(found)
    }

    fn add(&mut self, key: Vec<u8>) {
        if key.starts_with(DOCUMENT) {
            if self.documents.len() < MOST_KINDS {
                self.documents.insert(key);
            }
        } else if key.starts_with(LETTERS) && key.ends_with(LOCK) {
            self.locks.insert(key);
        } else if key.starts_with(LETTERS) {
            self.letters.insert(key);
        }
    }
}

impl DocumentSample {
    fn read(
        connection: &mut RedisConnection,
        keys: &BTreeSet<Vec<u8>>,
    ) -> Result<Self, QueueError> {
        let mut sample = Self::default();
        let mut asked = redis::pipe();
        for key in keys {
            asked.cmd("TYPE").arg(key);
        }
        let kinds = round_trip(connection, &asked)?;
        let (mut sizes, mut gets) = (redis::pipe(), Vec::new());
        for (key, kind) in keys.iter().zip(kinds) {
            let kind: String = redis::from_redis_value(kind).unwrap_or_default();
            let (size, get) = match kind.as_str() {
                // It has gone meanwhile, or this user may not see it.
                "none" | "" => continue,
                "string" => {
                    sample.plain += 1;
                    (redis::cmd("STRLEN"), "GET")
                }
                JSON => {
                    sample.redis_json += 1;
                    (
                        redis::cmd("JSON.DEBUG").arg("MEMORY").to_owned(),
                        "JSON.GET",
                    )
                }
                _ => {
                    sample.other += 1;
                    continue;
                }
            };
            if gets.len() < MOST_READ {
                sizes.add_command(size.clone().arg(key).to_owned());
                gets.push(redis::cmd(get).arg(key).to_owned());
            }
        }
        let sizes = round_trip(connection, &sizes)?;
        for (get, size) in gets.into_iter().zip(sizes) {
            let size = redis::from_redis_value::<u64>(size).unwrap_or(u64::MAX);
            if size > LARGEST_READ {
                continue;
            }
            match get.query::<Option<Vec<u8>>>(connection) {
                Err(error) if error.code().is_none() => return Err(error.into()),
                Ok(Some(text)) => sample.count_bodies(&text),
                _ => {}
            }
        }
        Ok(sample)
    }

    fn count_bodies(&mut self, text: &[u8]) {
        let Ok(Json::Object(document)) = serde_json::from_slice(text) else {
            return;
        };
        let parts = ["analysis", "attachments"].map(|name| document.get(name));
        let parts = parts.into_iter().flatten().filter_map(Json::as_array);
        for part in parts.flatten() {
            let is = |key: &str, value: &str| part.get(key).and_then(Json::as_str) == Some(value);
            if is("purpose", "tags") || is("type", "tags") {
                continue;
            }
            match part.get("body") {
                Some(Json::Object(_) | Json::Array(_)) => self.bodies_as_values += 1,
                Some(Json::String(_)) if is("encoding", "json") => self.bodies_as_text += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(name: &str) -> ListName {
        name.parse().unwrap()
    }

    #[test]
    fn a_list_is_counted_once_even_if_one_chain_feeds_another() {
        let lists = SurveyLists {
            ingress: vec![list("a"), list("b")],
            egress: vec![list("b"), list("done"), list("done")],
            storages: vec!["pg".to_owned()],
            followers: vec!["far".to_owned()],
        };
        let keys: Vec<(String, QueueKind)> = (named(&lists).into_iter())
            .map(|queue| (queue.key, queue.kind))
            .collect();
        let expected = [
            ("a", QueueKind::Ingress),
            ("b", QueueKind::Ingress),
            ("done", QueueKind::Egress),
            ("DLQ:a", QueueKind::DeadLetters),
            ("DLQ:b", QueueKind::DeadLetters),
            ("DLQ:storage:pg", QueueKind::StorageDeadLetters),
            ("conserver:follower:far", QueueKind::Follower),
        ];
        assert_eq!(keys, expected.map(|(key, kind)| (key.to_owned(), kind)));
    }

    #[test]
    fn keys_are_told_apart_by_their_names() {
        let mut found = FoundKeys::default();
        for key in [
            "vcon:1",
            "DLQ:a",
            "DLQ:storage:pg",
            "DLQ:storage:pg:replay-lock",
            "conserver:claims:here:1",
            "conserver:instances",
            "vcons",
            "DLQ",
        ] {
            found.add(key.into());
        }
        let count = |keys: &BTreeSet<Vec<u8>>| keys.len();
        assert_eq!(
            [&found.documents, &found.letters, &found.locks].map(count),
            [1, 2, 1]
        );
        assert_eq!(kind_of_letters("DLQ:a"), QueueKind::DeadLetters);
        assert_eq!(
            kind_of_letters("DLQ:storage:pg"),
            QueueKind::StorageDeadLetters
        );
    }

    #[test]
    fn bodies_tell_how_json_is_written_but_tags_do_not() {
        let mut sample = DocumentSample::default();
        sample.count_bodies(
            br#"{"analysis": [{"body": {"a": 1}, "encoding": "json"}, {"body": "{}", "encoding": "json"},
                {"body": "text", "encoding": "none"}, 7],
                "attachments": [{"purpose": "tags", "body": "[]", "encoding": "json"},
                {"type": "tags", "body": []}, {"body": [1]}, {}]}"#,
        );
        sample.count_bodies(b"[1]");
        sample.count_bodies(b"{\"analysis\": {}, \"attachments\": null}");
        sample.count_bodies(b"\xff");
        assert_eq!((sample.bodies_as_text, sample.bodies_as_values), (1, 2));
    }
}
