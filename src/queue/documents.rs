//! Documents in Redis: load, compare, replace, restore, delete.
//!
//! A document is replaced only if the one it was made of still stands under its key. A script compares
//! the texts, or has the server compare them. The key of a document that is too large for the script
//! interpreter is watched (`WATCH`) from its load on, so that it is compared only if somebody touched it, or the
//! connection is another one by then: piece by piece, while the key is watched.
//!
//! Knows how documents are stored, not what is in them.

use redis::{Cmd, RedisError, RedisResult, Value};

use super::claim::{INLINE_LIMIT, JSON_INLINE_LIMIT, texts};
use super::requests::{Commands, executed, round_trip, transaction};
use super::{Queue, QueueError, RedisConnection, keys};
use crate::redis_server::{Connection, has_json, why_too_long};
use crate::vcon::VconId;

/// A connection that keeps its buffers is closed after it has read a document of more bytes.
pub(super) const LARGE: usize = 4 << 20;

/// How Redis stores a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentFormat {
    /// A RedisJSON document.
    Json,
    /// A plain string.
    Text,
}

impl DocumentFormat {
    /// Its name in the scripts that read and write documents.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }

    /// The command that loads a document of this kind.
    fn get(self, key: &str) -> redis::Cmd {
        match self {
            Self::Json => redis::cmd("JSON.GET").arg(key).clone(),
            Self::Text => redis::cmd("GET").arg(key).clone(),
        }
    }

    /// The command that stores a document of this kind, without its text.
    pub(super) fn put(self, key: &str) -> redis::Cmd {
        match self {
            Self::Json => redis::cmd("JSON.SET").arg(key).arg("$").clone(),
            Self::Text => redis::cmd("SET").arg(key).clone(),
        }
    }
}

/// The type that Redis names for the key of a RedisJSON document.
pub(super) const JSON: &str = "ReJSON-RL";

/// What the key of a vCon holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A document.
    Found(DocumentFormat, Vec<u8>),
    /// Nothing: the document expired, was evicted, or never came.
    Missing,
    /// Nothing, because the entry is not a UUID.
    NotAnId,
    /// Something that cannot be a vCon. Describes what.
    Unusable(String),
}

/// What the key of a vCon holds, and its time to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// What the key holds.
    pub document: Document,
    /// Seconds until it expires; `None` if it does not expire, or does not exist.
    pub ttl: Option<u64>,
}

impl StoredDocument {
    pub(super) fn read(connection: &mut RedisConnection, id: &VconId) -> Result<Self, QueueError> {
        let key = id.key();
        let mut ask = redis::pipe();
        ask.cmd("TYPE").arg(&key).cmd("TTL").arg(&key);
        let (found, ttl): (String, i64) = ask.query(&mut **connection)?;
        Ok(Self {
            document: read_document(connection, &key, &found)?,
            ttl: u64::try_from(ttl).ok(),
        })
    }
}

/// Reads a key of which Redis has just named the type.
fn read_document(connection: &mut Connection, key: &str, found: &str) -> RedisResult<Document> {
    let mut get = |kind: DocumentFormat| {
        let text: Option<Vec<u8>> = kind.get(key).query(connection)?;
        Ok(text.map_or(Document::Missing, |text| Document::Found(kind, text)))
    };
    match found {
        "none" => Ok(Document::Missing),
        "string" => get(DocumentFormat::Text),
        JSON => get(DocumentFormat::Json),
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
        self.close_after_large(&document);
        Ok(document)
    }

    /// Loads a large document over the present connection, which watches the key from just before the load
    /// on. Unless somebody touches the key, the server need not send the document again to compare it, nor
    /// serialise it again, which blocks the server for over a second at 100 MB of RedisJSON.
    pub(super) fn load_watched(
        &mut self,
        id: &VconId,
        kind: DocumentFormat,
    ) -> Result<Document, QueueError> {
        self.connect()?;
        let keeps_buffers = |connected: &RedisConnection| connected.keeps_buffers();
        if kind == DocumentFormat::Json && self.connected.as_ref().is_some_and(keeps_buffers) {
            return self.load_watched_elsewhere(id);
        }
        let key = id.key();
        let replies = self.with(|connection, _, _, _| {
            let mut ask = redis::pipe();
            ask.cmd("WATCH").arg(&key);
            ask.add_command(kind.get(&key));
            Ok(round_trip(connection, &ask)?)
        })?;
        let Ok([watch, text]) = <[Value; 2]>::try_from(replies) else {
            return Err(self.on_error(QueueError::UnexpectedReply("loading a document")));
        };
        // If it is not watched, the finish compares.
        self.watched = watch.extract_error().is_ok().then(|| id.clone());
        match text {
            Value::BulkString(text) => Ok(Document::Found(kind, text)),
            // It is gone, or its key holds another type by now.
            _ => {
                self.unwatch()?;
                self.load(id)
            }
        }
    }

    /// The same where the connection keeps its buffers: it loads the document and is closed, and a new
    /// connection watches the key.
    fn load_watched_elsewhere(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let mut watching = self.new_connection()?;
        let mut watch = redis::cmd("WATCH");
        watch.arg(id.key()).query::<()>(&mut *watching)?;
        let document = self.load(id)?;
        if matches!(document, Document::Found(DocumentFormat::Json, _)) {
            self.connected = Some(watching);
            self.watched = Some(id.clone());
        }
        Ok(document)
    }

    /// Ends the watch of a large document. Otherwise the next transaction fails if somebody touches it.
    pub(super) fn unwatch(&mut self) -> Result<(), QueueError> {
        if self.watched.take().is_none() {
            return Ok(());
        }
        self.with(|connection, _, _, _| Ok(redis::cmd("UNWATCH").query(connection)?))
    }

    /// Like [`Queue::load`], for a document that was a plain string a moment ago.
    pub(super) fn load_text(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let loaded = self.with(|connection, _, _, _| {
            match redis::cmd("GET").arg(id.key()).query(connection) {
                Ok(Some(text)) => Ok(Some(Document::Found(DocumentFormat::Text, text))),
                Ok(None) => Ok(Some(Document::Missing)),
                Err(error) if error.code() == Some("WRONGTYPE") => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        let Some(document) = loaded else {
            return self.load(id);
        };
        self.close_after_large(&document);
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

    /// Adds a vCon to the backlog of a storage.
    pub fn defer(&mut self, storage: &str, id: &VconId) -> Result<(), QueueError> {
        let list = keys::storage_letters_list(storage);
        let reasons = keys::storage_letters_reasons(storage);
        self.unwatch()?;
        self.with(|connection, _, _, _| {
            // An earlier reason no longer counts: an entry without a reason is backlog.
            let mut steps = redis::pipe();
            steps.cmd("RPUSH").arg(&list).arg(id.as_str());
            steps.cmd("HDEL").arg(&reasons).arg(id.as_str());
            for reply in transaction(connection, &steps)? {
                reply.extract_error()?;
            }
            Ok(())
        })
    }

    /// Writes a vCon that was found in a storage back into Redis, with the time to live of such copies; as
    /// RedisJSON only if the server has the module.
    pub fn restore(
        &mut self,
        id: &VconId,
        kind: DocumentFormat,
        json: &str,
    ) -> Result<DocumentFormat, QueueError> {
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

/// Checks, before a text is sent, that the server takes a value of its length.
///
/// # Errors
/// [`QueueError::Document`] if it is too long.
pub(super) fn check_length(connection: &mut Connection, text: &str) -> Result<(), QueueError> {
    match why_too_long(connection, text.len())? {
        Some(why) => Err(QueueError::Document(why)),
        None => Ok(()),
    }
}

/// Writes a document under a key that may be new; as a plain string if the server has no RedisJSON.
///
/// Asks the server first whether it has the module. It would repeat the beginning of an unknown command,
/// cut at some byte, and the client library cannot read half a character.
fn put_new(
    connection: &mut Connection,
    key: &str,
    kind: DocumentFormat,
    json: &str,
) -> Result<DocumentFormat, QueueError> {
    check_length(connection, json)?;
    let kind = match kind {
        DocumentFormat::Json if has_json(connection)? => DocumentFormat::Json,
        DocumentFormat::Json | DocumentFormat::Text => DocumentFormat::Text,
    };
    kind.put(key)
        .arg(json)
        .query::<()>(connection)
        .map_err(QueueError::of_write)?;
    Ok(kind)
}

/// Says why the content of a key is no document.
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

/// Access to documents for the commands that look at one or remove it.
pub struct Documents {
    connection: RedisConnection,
}

/// Which parts of a vCon were in Redis and have been removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Its document.
    pub document: bool,
    /// Its entry in the sorted set.
    pub entry: bool,
}

impl Documents {
    /// Access over this connection.
    pub fn new(connection: RedisConnection) -> Self {
        Self { connection }
    }

    /// The document of a vCon.
    pub fn get(&mut self, id: &VconId) -> Result<StoredDocument, QueueError> {
        StoredDocument::read(&mut self.connection, id)
    }

    /// Removes the document of a vCon, and its entry in this sorted set.
    pub fn delete(&mut self, id: &VconId, sorted_set: &str) -> Result<Removed, QueueError> {
        let key = id.key();
        let mut steps = redis::pipe();
        steps.cmd("DEL").arg(&key);
        steps.cmd("ZREM").arg(sorted_set).arg(&key);
        let mut replies = Vec::new();
        for reply in transaction(&mut self.connection, &steps)? {
            let reply = reply.extract_error()?;
            replies.push(redis::from_redis_value::<u64>(reply).map_err(redis::RedisError::from)?);
        }
        match replies[..] {
            [document, entry] => Ok(Removed {
                document: document > 0,
                entry: entry > 0,
            }),
            _ => Err(QueueError::UnexpectedReply("deleting a document")),
        }
    }
}

/// A large document is compared in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// A draft expires after this many seconds, if its lane dies before it uses it.
const DRAFT_EXPIRY: u64 = 60;

/// A document, and the one that it was made of.
#[derive(Debug, Clone, Copy)]
pub struct Replacement<'a> {
    /// How it is stored.
    pub kind: DocumentFormat,
    /// The text that was loaded, or written last.
    pub base: &'a str,
    /// The new text; `None` only to check that the old one still stands there.
    pub text: Option<&'a str>,
}

/// The result of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// The document was replaced.
    Done,
    /// Nothing was done: another document stands there.
    Changed,
    /// Nothing was done: the document has been deleted.
    Deleted,
}

/// What the key of a large document holds, compared with a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The base.
    Same,
    /// The new text: an earlier try wrote it, and was refused later on or lost its reply.
    Written,
    /// Something else.
    Changed,
    /// Nothing.
    Deleted,
}

impl Replacement<'_> {
    /// Whether one of the texts is too large for the script interpreter.
    pub(super) fn is_large(&self) -> bool {
        let most = match self.kind {
            DocumentFormat::Text => INLINE_LIMIT,
            DocumentFormat::Json => JSON_INLINE_LIMIT,
        };
        self.base.len().max(self.text.map_or(0, str::len)) > most
    }
}

impl Queue {
    /// Compares a large document with its base. The connection watches the key from before the comparison
    /// on.
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
        if !is_watched {
            // The watch of another vCon, which a link has left for this one, would fail the transaction.
            self.unwatch()?;
        }
        // Whatever comes of it, the next try compares.
        self.watched = None;
        self.with(|connection, _, _, _| {
            if let Some(text) = text {
                check_length(connection, text)?;
            }
            if is_watched {
                // If there is a new text, the transaction that writes it finds out.
                if text.is_some() || is_untouched(connection)? {
                    return Ok(Comparison::Same);
                }
            }
            redis::cmd("WATCH").arg(&key).query::<()>(connection)?;
            let compared = match document.kind {
                DocumentFormat::Text => compare_text(connection, &key, base, text),
                DocumentFormat::Json => compare_json(connection, &key, base, text),
            };
            let compared = match compared {
                // A key of another type counts as another document.
                Err(error) if is_of_another_kind(&error) => Comparison::Changed,
                compared => compared?,
            };
            if compared != Comparison::Same || text.is_none() {
                redis::cmd("UNWATCH").query::<()>(connection)?;
            }
            Ok(compared)
        })
    }

    /// Whether the connection has watched the key of this vCon since the document was loaded.
    pub(super) fn watches(&self, id: &VconId) -> bool {
        self.connected.is_some() && self.watched.as_ref() == Some(id)
    }

    /// Replaces a document, if the base still stands under its key.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn replace(
        &mut self,
        id: &VconId,
        kind: DocumentFormat,
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
        let reply = self.with(|connection, scripts, _, _| {
            let mut call = scripts.replace_document.key(id.key());
            call.arg(kind.word()).arg(base).arg(text).arg(ingress);
            Ok(call.invoke::<Value>(connection)?)
        })?;
        let fields = texts(reply).ok_or(QueueError::UnexpectedReply("replacing a document"))?;
        let mut fields = fields.iter().map(|field| String::from_utf8_lossy(field));
        match fields.next().as_deref() {
            Some("1") => Ok(Replaced::Done),
            Some("2") => Ok(Replaced::Deleted),
            Some("changed") => Ok(Replaced::Changed),
            Some("large") => self.replace_watched(id, document, text),
            Some("unwritten") => Err(QueueError::of_refusal(&fields.next().unwrap_or_default())),
            _ => Err(QueueError::UnexpectedReply("replacing a document")),
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
                    // Perhaps only the time to live has changed: compare.
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

    /// Replaces a document whose key the connection watches by a draft.
    fn put_watched(
        &mut self,
        id: &VconId,
        kind: DocumentFormat,
        text: &str,
    ) -> Result<Replaced, QueueError> {
        let ingress = self.ingress.clone();
        self.with(|connection, scripts, lane_id, _| {
            let draft = lane_id.draft_key();
            // A script that is missing in a transaction cannot be sent again.
            let mut call = scripts.replace_large_document.in_full(2);
            call.arg(id.key()).arg(&draft).arg(ingress);
            let request = replacing(&draft, kind, text, &call);
            match watched(request.send(connection)?)? {
                Some(Value::Int(1)) => Ok(Replaced::Done),
                Some(Value::Int(2)) => Ok(Replaced::Deleted),
                None => Ok(Replaced::Changed),
                Some(_) => Err(QueueError::UnexpectedReply("replacing a large document")),
            }
        })
    }
}

/// The transaction that writes the draft and calls the script that moves it to its place.
pub(super) fn replacing<'a>(
    draft: &str,
    kind: DocumentFormat,
    text: &'a str,
    call: &Cmd,
) -> Commands<'a> {
    let mut begin = redis::pipe();
    begin.cmd("MULTI");
    let mut end = redis::pipe();
    let mut request = match kind {
        DocumentFormat::Json => {
            // An earlier attempt may have left a plain string there.
            begin.cmd("DEL").arg(draft);
            end.cmd("EXPIRE").arg(draft).arg(DRAFT_EXPIRY);
            Commands::of(&begin).command(&["JSON.SET", draft, "$"], text, &[])
        }
        DocumentFormat::Text => {
            let expiry = DRAFT_EXPIRY.to_string();
            Commands::of(&begin).command(&["SET", draft], text, &["EX", &expiry])
        }
    };
    end.add_command(call.clone());
    end.cmd("EXEC");
    request.add(&end);
    request
}

/// Whether the key of a command holds another type. RedisJSON replies "Existing key has wrong Redis type".
fn is_of_another_kind(error: &RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | "Existing"))
}

/// Whether nobody has touched the keys that the connection watches. Ends the watch.
fn is_untouched(connection: &mut Connection) -> RedisResult<bool> {
    let mut look = redis::pipe();
    look.cmd("MULTI").cmd("EXEC");
    let replies = round_trip(connection, &look)?;
    match replies.into_iter().last() {
        Some(Value::Nil) | None => Ok(false),
        Some(reply) => reply.extract_error().map(|_| true),
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
    if length == base.len() && equals_in_pieces(connection, key, base)? {
        return Ok(Comparison::Same);
    }
    match text {
        Some(text) if length == text.len() && equals_in_pieces(connection, key, text)? => {
            Ok(Comparison::Written)
        }
        _ => Ok(Comparison::Changed),
    }
}

/// Compares a string that has the length of this text with the text, piece by piece.
fn equals_in_pieces(connection: &mut Connection, key: &str, text: &str) -> RedisResult<bool> {
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

/// Compares a RedisJSON document with the base and the new text. The server serialises it once.
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

/// The last reply of a transaction on watched keys; `None` if one of the keys has changed.
///
/// # Errors
/// The server refuses the document, or every document for now.
pub(super) fn watched(replies: Vec<Value>) -> Result<Option<Value>, QueueError> {
    if matches!(replies.last(), Some(Value::Nil)) {
        return Ok(None);
    }
    let mut replies = executed(replies).map_err(QueueError::of_write)?;
    let last = replies.pop().unwrap_or(Value::Nil);
    for written in replies {
        written.extract_error().map_err(QueueError::of_write)?;
    }
    let last: Result<Value, RedisError> = last.extract_error();
    Ok(Some(last.map_err(QueueError::of_write)?))
}
