//! Documents in Redis: load, compare, replace, restore, delete.
//!
//! A document is replaced only if the one it was made of still stands under its key. A script compares
//! the texts. A document that is too large for the script interpreter is compared piece by piece, under
//! `WATCH`; the key of a large RedisJSON document is watched from its load on, so that it is compared
//! only if somebody touched it.
//!
//! Knows how documents are stored, not what is in them.

use redis::{Cmd, Connection, RedisError, RedisResult, Value};

use super::claim::{INLINE_LIMIT, texts};
use super::requests::{Commands, executed, round_trip, transaction};
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
        let (found, ttl): (String, i64) = ask.query(&mut **lease)?;
        Ok(Self {
            document: read_document(lease, &key, &found)?,
            ttl: u64::try_from(ttl).ok(),
        })
    }
}

/// Reads what stands under a key, of which Redis has just told the type.
fn read_document(connection: &mut Connection, key: &str, found: &str) -> RedisResult<Document> {
    let mut get = |command: &str, kind| {
        let text: Option<Vec<u8>> = redis::cmd(command).arg(key).query(connection)?;
        Ok(text.map_or(Document::Missing, |text| Document::Found(kind, text)))
    };
    match found {
        "none" => Ok(Document::Missing),
        "string" => get("GET", Kind::Text),
        JSON => get("JSON.GET", Kind::Json),
        other => Ok(Document::Unusable(describe(other.as_bytes(), b""))),
    }
}

impl Queue {
    /// Loads the document of a vCon.
    pub fn load(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let document = self.with(|connection, _, _, _| {
            let key = id.key();
            let found: String = redis::cmd("TYPE").arg(&key).query(connection)?;
            Ok(read_document(connection, &key, &found)?)
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

/// A large document is compared in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// A draft that its lane did not live to use is forgotten after this many seconds.
const DRAFT_EXPIRY: u64 = 60;

/// A document in the place of another one.
#[derive(Debug, Clone, Copy)]
pub struct Replacement<'a> {
    /// How it is kept.
    pub kind: Kind,
    /// The text that was loaded, or written last.
    pub base: &'a str,
    /// The new text; `None` only to make sure that the old one stands there.
    pub text: Option<&'a str>,
}

/// Whether a document was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// It was.
    Done,
    /// Another one stands there.
    Changed,
    /// It has been deleted, and is not brought back.
    Deleted,
}

/// What stands under the key of a large document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Same,
    /// The new text, by an earlier try that was refused further on, or whose answer was lost.
    Written,
    Changed,
    Deleted,
}

impl Replacement<'_> {
    /// Whether it is too large for the script interpreter.
    pub(super) fn is_large(&self) -> bool {
        self.base.len().max(self.text.map_or(0, str::len)) > INLINE_LIMIT
    }
}

impl Queue {
    /// Looks whether the base of a large document still stands under its key, and has the server
    /// watch the key from before the look on.
    ///
    /// # Errors
    /// [`QueueError::Document`] if the new text is too long for the server.
    pub(super) fn compare(
        &mut self,
        id: &VconId,
        document: Replacement<'_>,
    ) -> Result<Comparison, QueueError> {
        let key = id.key();
        let (base, text) = (document.base, document.text);
        let is_watched = self.watches(id);
        self.with(|connection, _, _, _| {
            if let Some(text) = text {
                check_length(connection, text)?;
            }
            if is_watched {
                // With a new text, the transaction that writes it finds out.
                if text.is_some() || is_untouched(connection)? {
                    return Ok(Comparison::Same);
                }
            }
            redis::cmd("WATCH").arg(&key).query::<()>(connection)?;
            let compared = match document.kind {
                Kind::Text => compare_text(connection, &key, base, text),
                Kind::Json => compare_json(connection, &key, base, text),
            };
            let compared = match compared {
                // What is no document any more is another one.
                Err(error) if is_of_another_kind(&error) => Comparison::Changed,
                compared => compared?,
            };
            if compared != Comparison::Same || text.is_none() {
                redis::cmd("UNWATCH").query::<()>(connection)?;
            }
            Ok(compared)
        })
        .inspect(|_| self.watched = None)
    }

    /// Whether the key of this vCon is watched since its document was loaded.
    pub(super) fn watches(&self, id: &VconId) -> bool {
        self.connected.is_some() && self.watched.as_ref() == Some(id)
    }

    /// Writes what the links of a vCon have done so far, if the base still stands there.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn replace(
        &mut self,
        id: &VconId,
        kind: Kind,
        base: &str,
        text: &str,
    ) -> Result<Replaced, QueueError> {
        let document = Replacement {
            kind,
            base,
            text: Some(text),
        };
        if document.is_large() {
            return self.replace_watched(id, document, text);
        }
        let ingress = self.ingress.clone();
        let answer = self.with(|connection, scripts, _, _| {
            let mut call = scripts.replace.key(id.key());
            call.arg(kind.word()).arg(base).arg(text).arg(ingress);
            Ok(call.invoke::<Value>(connection)?)
        })?;
        let fields = texts(answer).ok_or(QueueError::Answer("replacing a document"))?;
        let mut fields = fields.iter().map(|field| String::from_utf8_lossy(field));
        match fields.next().as_deref() {
            Some("1") => Ok(Replaced::Done),
            Some("2") => Ok(Replaced::Deleted),
            Some("changed") => Ok(Replaced::Changed),
            Some("large") => self.replace_watched(id, document, text),
            Some("unwritten") => Err(QueueError::of_refusal(&fields.next().unwrap_or_default())),
            _ => Err(QueueError::Answer("replacing a document")),
        }
    }

    /// Replaces a document that is too large for the script interpreter.
    fn replace_watched(
        &mut self,
        id: &VconId,
        document: Replacement<'_>,
        text: &str,
    ) -> Result<Replaced, QueueError> {
        loop {
            let was_watched = self.watches(id);
            match self.compare(id, document)? {
                Comparison::Same => {
                    let replaced = self.put_watched(id, document.kind, text)?;
                    // A new time to live touches a key, too.
                    if replaced != Replaced::Changed || !was_watched {
                        return Ok(replaced);
                    }
                }
                Comparison::Written => return Ok(Replaced::Done),
                Comparison::Changed => return Ok(Replaced::Changed),
                Comparison::Deleted => return Ok(Replaced::Deleted),
            }
        }
    }

    /// Has a draft take the place of a document that is watched.
    fn put_watched(&mut self, id: &VconId, kind: Kind, text: &str) -> Result<Replaced, QueueError> {
        let ingress = self.ingress.clone();
        self.with(|connection, scripts, seat, _| {
            let draft = seat.draft_key();
            // Within a transaction, a script that is missing cannot be sent again.
            let mut call = scripts.replace_large.in_full(2);
            call.arg(id.key()).arg(&draft).arg(ingress);
            let request = replacing(&draft, kind, text, &call);
            match watched(request.send(connection)?)? {
                Some(Value::Int(1)) => Ok(Replaced::Done),
                Some(Value::Int(2)) => Ok(Replaced::Deleted),
                None => Ok(Replaced::Changed),
                Some(_) => Err(QueueError::Answer("replacing a large document")),
            }
        })
    }
}

/// The transaction that writes the draft and has the script put it in its place.
pub(super) fn replacing<'a>(draft: &str, kind: Kind, text: &'a str, call: &Cmd) -> Commands<'a> {
    let mut begin = redis::pipe();
    begin.cmd("MULTI");
    let mut end = redis::pipe();
    let mut request = match kind {
        Kind::Json => {
            // A plain string may be left there from an attempt before.
            begin.cmd("DEL").arg(draft);
            end.cmd("EXPIRE").arg(draft).arg(DRAFT_EXPIRY);
            Commands::of(&begin).command(&["JSON.SET", draft, "$"], text, &[])
        }
        Kind::Text => {
            let expiry = DRAFT_EXPIRY.to_string();
            Commands::of(&begin).command(&["SET", draft], text, &["EX", &expiry])
        }
    };
    end.add_command(call.clone());
    end.cmd("EXEC");
    request.add(&end);
    request
}

/// Whether a command met something else than what it is for; RedisJSON says "Existing key has wrong Redis type".
fn is_of_another_kind(error: &RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | "Existing"))
}

/// Whether nobody has touched the keys that the connection watches; it watches none then.
fn is_untouched(connection: &mut Connection) -> RedisResult<bool> {
    let mut look = redis::pipe();
    look.cmd("MULTI").cmd("EXEC");
    let answers = round_trip(connection, &look)?;
    match answers.into_iter().last() {
        Some(Value::Nil) | None => Ok(false),
        Some(answer) => answer.extract_error().map(|_| true),
    }
}

/// Compares a plain string with the base, then with the new text.
fn compare_text(
    connection: &mut Connection,
    key: &str,
    base: &str,
    text: Option<&str>,
) -> RedisResult<Comparison> {
    let length: usize = redis::cmd("STRLEN").arg(key).query(connection)?;
    if length == 0 {
        return Ok(Comparison::Deleted);
    }
    if length == base.len() && is_in_pieces(connection, key, base)? {
        return Ok(Comparison::Same);
    }
    match text {
        Some(text) if length == text.len() && is_in_pieces(connection, key, text)? => {
            Ok(Comparison::Written)
        }
        _ => Ok(Comparison::Changed),
    }
}

/// Whether a string that is as long as this text is the text.
fn is_in_pieces(connection: &mut Connection, key: &str, text: &str) -> RedisResult<bool> {
    for (number, piece) in text.as_bytes().chunks(PIECE).enumerate() {
        let first = number * PIECE;
        let mut range = redis::cmd("GETRANGE");
        range.arg(key).arg(first).arg(first + piece.len() - 1);
        if range.query::<Vec<u8>>(connection)? != piece {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares a RedisJSON document with the base and the new text. The server writes it out once.
fn compare_json(
    connection: &mut Connection,
    key: &str,
    base: &str,
    text: Option<&str>,
) -> RedisResult<Comparison> {
    let found: Option<Vec<u8>> = redis::cmd("JSON.GET").arg(key).query(connection)?;
    Ok(match found {
        None => Comparison::Deleted,
        Some(found) if found == base.as_bytes() => Comparison::Same,
        Some(found) if text.is_some_and(|text| found == text.as_bytes()) => Comparison::Written,
        Some(_) => Comparison::Changed,
    })
}

/// The last answer of a transaction on watched keys; `None` if one of them has changed.
///
/// # Errors
/// The server refuses the document, or, for now, all of them.
pub(super) fn watched(answers: Vec<Value>) -> Result<Option<Value>, QueueError> {
    if matches!(answers.last(), Some(Value::Nil)) {
        return Ok(None);
    }
    let mut answers = executed(answers).map_err(QueueError::of_write)?;
    let last = answers.pop().unwrap_or(Value::Nil);
    for written in answers {
        written.extract_error().map_err(QueueError::of_write)?;
    }
    let last: Result<Value, RedisError> = last.extract_error();
    Ok(Some(last.map_err(QueueError::of_write)?))
}
