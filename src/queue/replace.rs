//! Replacing a document, if the one it was made of still stands there.
//!
//! The script compares the texts; a document too large for the script interpreter is compared piece by
//! piece, under `WATCH`. The key of a large RedisJSON document is watched from its load on, so that it is
//! compared only if somebody has touched it.

use redis::{Cmd, Connection, RedisError, RedisResult, Value};

use super::claim::{INLINE_LIMIT, texts};
use super::documents::check_length;
use super::round_trip::{Request, executed, round_trip};
use super::{Kind, Queue, QueueError};
use crate::vcon::VconId;

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
pub(super) fn replacing<'a>(draft: &str, kind: Kind, text: &'a str, call: &Cmd) -> Request<'a> {
    let mut begin = redis::pipe();
    begin.cmd("MULTI");
    let mut end = redis::pipe();
    let mut request = match kind {
        Kind::Json => {
            // A plain string may be left there from an attempt before.
            begin.cmd("DEL").arg(draft);
            end.cmd("EXPIRE").arg(draft).arg(DRAFT_EXPIRY);
            Request::of(&begin).command(&["JSON.SET", draft, "$"], text, &[])
        }
        Kind::Text => {
            let expiry = DRAFT_EXPIRY.to_string();
            Request::of(&begin).command(&["SET", draft], text, &["EX", &expiry])
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
