//! Documents in Redis: for a lane, and for whoever looks at one or removes it.

use super::dead_letters::Kept;
use super::round_trip::transaction;
use super::{Lease, Queue, QueueError, keys};
use crate::redis_server::{has_json, why_too_long};
use crate::vcon::VconId;

/// After a document of more bytes than this its connection is closed.
pub(super) const LARGE: usize = 4 << 20;

/// How a document is kept in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A RedisJSON document.
    Json,
    /// A plain string.
    Text,
}

impl Kind {
    /// As the scripts that read and write documents call it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }

    /// The command that puts a document of this kind, but for its text.
    pub(super) fn put(self, key: &str) -> redis::Cmd {
        match self {
            Self::Json => redis::cmd("JSON.SET").arg(key).arg("$").clone(),
            Self::Text => redis::cmd("SET").arg(key).clone(),
        }
    }
}

/// What Redis calls a RedisJSON document.
pub(super) const JSON: &str = "ReJSON-RL";

/// What stands under a vCon's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The document.
    Found(Kind, Vec<u8>),
    /// Nothing: it has expired, was evicted, or never came.
    Missing,
    /// The entry is not a UUID, so there is no such key.
    NotAnId,
    /// Something that cannot be a vCon; says what.
    Unusable(String),
}

impl Queue {
    /// Loads the document of a vCon.
    pub fn load(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let document = self.with(|connection, _, _, _| {
            let key = id.key();
            let kind: String = redis::cmd("TYPE").arg(&key).query(connection)?;
            let mut get = |command: &str, kind| {
                let text: Option<Vec<u8>> = redis::cmd(command).arg(&key).query(connection)?;
                Ok(text.map_or(Document::Missing, |text| Document::Found(kind, text)))
            };
            match kind.as_str() {
                "none" => Ok(Document::Missing),
                "string" => get("GET", Kind::Text),
                JSON => get("JSON.GET", Kind::Json),
                other => Ok(Document::Unusable(describe(other.as_bytes(), b""))),
            }
        })?;
        self.let_go_of_buffer(&document);
        Ok(document)
    }

    /// Loads a large RedisJSON document, over a connection that is closed then, and has the next one watch
    /// its key from before that on. As long as nobody touches it, the server need not write it out again to
    /// have it compared: that stops it for more than a second for 100 MB.
    pub(super) fn load_watched(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let mut watching = self.new_connection()?;
        let mut watch = redis::cmd("WATCH");
        watch.arg(id.key()).query::<()>(&mut *watching)?;
        let document = self.load(id)?;
        if matches!(document, Document::Found(Kind::Json, _)) {
            self.connected = Some(watching);
            self.watched = Some(id.clone());
        }
        Ok(document)
    }

    /// Ends the watch of a large document, which would refuse the next transaction once it is touched.
    pub(super) fn unwatch(&mut self) -> Result<(), QueueError> {
        if self.watched.take().is_none() {
            return Ok(());
        }
        self.with(|connection, _, _, _| Ok(redis::cmd("UNWATCH").query(connection)?))
    }

    /// Does what [`Queue::load`] does for a document that was a plain string a moment ago.
    pub(super) fn load_text(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let loaded = self.with(|connection, _, _, _| {
            match redis::cmd("GET").arg(id.key()).query(connection) {
                Ok(Some(text)) => Ok(Some(Document::Found(Kind::Text, text))),
                Ok(None) => Ok(Some(Document::Missing)),
                Err(error) if error.code() == Some("WRONGTYPE") => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        let Some(document) = loaded else {
            return self.load(id);
        };
        self.let_go_of_buffer(&document);
        Ok(document)
    }

    /// Sets a document's time to live, in seconds.
    pub fn expire(&mut self, id: &VconId, seconds: u64) -> Result<(), QueueError> {
        self.with(|connection, _, _, _| {
            Ok(redis::cmd("EXPIRE")
                .arg(id.key())
                .arg(seconds)
                .query::<()>(connection)?)
        })
    }

    /// Has a vCon wait in the queue of a storage.
    pub fn defer(&mut self, storage: &str, id: &VconId) -> Result<(), QueueError> {
        let list = keys::storage_letters_list(storage);
        let reasons = keys::storage_letters_reasons(storage);
        self.unwatch()?;
        self.with(|connection, _, _, _| {
            // What it was refused for before does not count any more.
            let mut steps = redis::pipe();
            steps.cmd("RPUSH").arg(&list).arg(id.as_str());
            steps.cmd("HDEL").arg(&reasons).arg(id.as_str());
            for answer in transaction(connection, &steps)? {
                answer.extract_error()?;
            }
            Ok(())
        })
    }

    /// Puts a vCon found in a storage back into Redis, for the time such copies live; as
    /// RedisJSON only if the server has it.
    pub fn restore(&mut self, id: &VconId, kind: Kind, json: &str) -> Result<Kind, QueueError> {
        self.with(|connection, _, _, expiry| {
            let key = id.key();
            let kind = put_new(connection, &key, kind, json)?;
            redis::cmd("EXPIRE")
                .arg(&key)
                .arg(expiry.document)
                .query::<()>(connection)?;
            Ok(kind)
        })
    }
}

/// Fails if the server cannot take the text in one value. To be called before it is sent.
///
/// # Errors
/// [`QueueError::Document`] if it is too long.
pub(super) fn check_length(
    connection: &mut redis::Connection,
    text: &str,
) -> Result<(), QueueError> {
    match why_too_long(connection, text.len())? {
        Some(why) => Err(QueueError::Document(why)),
        None => Ok(()),
    }
}

/// Writes a document under a key that may be new; as a plain string if the server has no RedisJSON.
///
/// The server is asked first: it repeats the beginning of a command it does not know, cut at some
/// byte, and a cut letter is more than the client library can read.
fn put_new(
    connection: &mut redis::Connection,
    key: &str,
    kind: Kind,
    json: &str,
) -> Result<Kind, QueueError> {
    check_length(connection, json)?;
    let kind = match kind {
        Kind::Json if has_json(connection)? => Kind::Json,
        Kind::Json | Kind::Text => Kind::Text,
    };
    kind.put(key)
        .arg(json)
        .query::<()>(connection)
        .map_err(QueueError::of_write)?;
    Ok(kind)
}

/// Why what stands under a key is no document.
pub(super) fn describe(kind: &[u8], detail: &[u8]) -> String {
    let detail = String::from_utf8_lossy(detail);
    match kind {
        b"unreadable" => format!("Redis cannot read the document: {detail}"),
        other => format!(
            "the key holds a {}, not a document",
            String::from_utf8_lossy(other)
        ),
    }
}

/// Access to the documents.
pub struct Documents {
    lease: Lease,
}

/// What of a vCon was in Redis, and has been removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Its document.
    pub document: bool,
    /// Its entry in the sorted set.
    pub entry: bool,
}

impl Documents {
    /// Over this connection.
    pub fn new(lease: Lease) -> Self {
        Self { lease }
    }

    /// The document of a vCon.
    pub fn get(&mut self, id: &VconId) -> Result<Kept, QueueError> {
        Kept::read(&mut self.lease, id)
    }

    /// Removes the document of a vCon, and its entry in the sorted set of this name.
    pub fn delete(&mut self, id: &VconId, sorted_set: &str) -> Result<Removed, QueueError> {
        let key = id.key();
        let mut steps = redis::pipe();
        steps.cmd("DEL").arg(&key);
        steps.cmd("ZREM").arg(sorted_set).arg(&key);
        let mut answers = Vec::new();
        for answer in transaction(&mut self.lease, &steps)? {
            let answer = answer.extract_error()?;
            answers.push(redis::from_redis_value::<u64>(answer).map_err(redis::RedisError::from)?);
        }
        match answers[..] {
            [document, entry] => Ok(Removed {
                document: document > 0,
                entry: entry > 0,
            }),
            _ => Err(QueueError::Answer("deleting a document")),
        }
    }
}
