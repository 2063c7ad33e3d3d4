//! Taking work: the next entry of the ingress lists, claimed and loaded in one round trip.

use std::sync::Arc;

use redis::{ScriptInvocation, Value};

use super::scripts::Scripts;
use super::{Expiry, NameLease, Queue, QueueError, Seat, Settled, keys};
use crate::config::ListName;
use crate::redis_server::has_json;
use crate::vcon::VconId;

/// A plain string document above this many bytes is fetched by a command of its own, so that the
/// server does not copy it through its script interpreter.
const INLINE_LIMIT: usize = 1 << 20;

/// After a document of more bytes than this its connection is closed: the client library keeps a
/// buffer as large as the longest answer for as long as the connection lives.
const LARGE: usize = 4 << 20;

/// So many characters of an entry are shown.
const SHOWN: usize = 120;

/// An entry this lane holds. It stays in Redis until it is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The record in the claims hash: proof, at every later step, that the claim is still ours.
    pub(super) record: Vec<u8>,
    /// The list it was taken from.
    pub list: ListName,
    /// The entry as it stood in the list.
    pub entry: Vec<u8>,
    /// The context that came with it, a JSON text; empty where there was none.
    pub context: Vec<u8>,
    /// How many workers have died while they were at work on it.
    pub deaths: u32,
}

impl Claim {
    /// The entry as an identity; `None` where it is none.
    pub fn id(&self) -> Option<VconId> {
        std::str::from_utf8(&self.entry).ok()?.parse().ok()
    }

    /// The entry for messages.
    pub fn shown(&self) -> String {
        shown(&self.entry)
    }
}

/// What stands in Redis, for messages: anyone may have put it there, so what could end a line or
/// steer a terminal is escaped, and a long one is cut.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.escape_debug().take(SHOWN).collect()
}

/// How a document is kept in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A RedisJSON document.
    Json,
    /// A plain string.
    Text,
}

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

/// The outcome of asking for work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The claim with its document; `None` where all lists are empty.
    pub work: Option<(Claim, Document)>,
    /// An ingress list that is no list, with the server's words.
    pub fault: Option<String>,
}

impl Queue {
    /// Claims the first entry of the first list that has one, and loads its document.
    ///
    /// A claim this lane still holds is handed over again: sending the same request twice never
    /// takes two entries. A lease on our name that has run out is taken in passing.
    ///
    /// # Errors
    /// [`QueueError::InUse`] where another daemon has our name by now.
    pub fn claim(&mut self, lists: &[ListName]) -> Result<Claimed, QueueError> {
        let lease = Arc::clone(&self.lease);
        let reply = self.with(|connection, scripts, seat, expiry| {
            let call = claim_call(scripts, seat, expiry, &lease, lists);
            Ok(call.invoke::<Value>(connection)?)
        })?;
        self.claimed(reply, lists)
    }

    /// What the script has answered; a claim that is none of ours is put back, and the next one
    /// asked for.
    pub(super) fn claimed(
        &mut self,
        reply: Value,
        lists: &[ListName],
    ) -> Result<Claimed, QueueError> {
        let mut fields = texts(reply).ok_or(QueueError::Answer("claim"))?.into_iter();
        let mut next = || fields.next().ok_or(QueueError::Answer("claim"));
        let (record, list, entry, context) = (next()?, next()?, next()?, next()?);
        let (kind, text, fault, deaths) = (next()?, next()?, next()?, next()?);
        if kind == b"not-ours" {
            return Err(self.lease.lost_to(&text));
        }
        let fault = (!fault.is_empty()).then(|| String::from_utf8_lossy(&fault).into_owned());
        if record.is_empty() {
            return Ok(Claimed { work: None, fault });
        }
        let Some(list) = String::from_utf8(list)
            .ok()
            .and_then(|list| list.parse().ok())
        else {
            self.set_aside(&record)?;
            return self.claim(lists);
        };
        let claim = Claim {
            record,
            list,
            entry,
            context,
            deaths: String::from_utf8_lossy(&deaths).parse().unwrap_or(0),
        };
        if kind == b"left-behind" {
            // Somebody else had our name for a time, and may be at work on it.
            if let Settled::Refused(_) = self.give_back(&claim)? {
                self.set_aside(&claim.record)?;
            }
            return self.claim(lists);
        }
        let document = match kind.as_slice() {
            b"ReJSON-RL" => Document::Found(Kind::Json, text),
            b"string" => Document::Found(Kind::Text, text),
            b"string-large" => self.load_text(&claim)?,
            b"none" => Document::Missing,
            b"not-a-uuid" => Document::NotAnId,
            other => Document::Unusable(describe(other, &text)),
        };
        self.let_go_of_buffer(&document);
        Ok(Claimed {
            work: Some((claim, document)),
            fault,
        })
    }

    fn let_go_of_buffer(&mut self, document: &Document) {
        if matches!(document, Document::Found(_, text) if text.len() > LARGE) {
            self.connected = None;
        }
    }

    /// Sets a record aside that names no list: it is not of our making.
    fn set_aside(&mut self, record: &[u8]) -> Result<(), QueueError> {
        self.with(|connection, scripts, seat, _| {
            let mut call = scripts.set_aside.key(seat.claims_key());
            call.arg(seat.lane).arg(record);
            Ok(call.invoke::<()>(connection)?)
        })
    }

    /// Loads the document of another vCon, for a chain that goes on with that one.
    pub fn load(&mut self, id: &VconId) -> Result<Document, QueueError> {
        let document = self.with(|connection, _, _, _| {
            let key = id.key();
            let kind: String = redis::cmd("TYPE").arg(&key).query(connection)?;
            match kind.as_str() {
                "none" => Ok(Document::Missing),
                "string" => get_text(connection, &key),
                "ReJSON-RL" => {
                    let text: Option<Vec<u8>> =
                        redis::cmd("JSON.GET").arg(&key).query(connection)?;
                    Ok(text.map_or(Document::Missing, |text| Document::Found(Kind::Json, text)))
                }
                other => Ok(Document::Unusable(describe(other.as_bytes(), b""))),
            }
        })?;
        self.let_go_of_buffer(&document);
        Ok(document)
    }

    fn load_text(&mut self, claim: &Claim) -> Result<Document, QueueError> {
        let Some(id) = claim.id() else {
            return Ok(Document::NotAnId);
        };
        self.with(|connection, _, _, _| get_text(connection, &id.key()))
    }

    /// Writes a document in the way it is kept; its time to live stays.
    pub fn put(&mut self, id: &VconId, kind: Kind, json: &str) -> Result<(), QueueError> {
        self.with(|connection, _, _, _| {
            let mut steps = redis::pipe();
            put_existing(&mut steps, &id.key(), kind, json);
            steps.query::<()>(connection).map_err(QueueError::of_write)
        })
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

    /// Puts a vCon found in a storage back into Redis, for the time such copies live; as
    /// RedisJSON where the server has it.
    pub fn restore(&mut self, id: &VconId, json: &str) -> Result<Kind, QueueError> {
        self.with(|connection, _, _, expiry| {
            let key = id.key();
            let kind = put_new(connection, &key, json)?;
            redis::cmd("EXPIRE")
                .arg(&key)
                .arg(expiry.document)
                .query::<()>(connection)?;
            Ok(kind)
        })
    }
}

/// The request for the next entry.
pub(super) fn claim_call<'a>(
    scripts: &'a Scripts,
    seat: &Seat,
    expiry: Expiry,
    lease: &NameLease,
    lists: &[ListName],
) -> ScriptInvocation<'a> {
    let mut call = scripts.claim.key(seat.claims_key());
    call.key(keys::instance_key(&lease.instance))
        .key(keys::INSTANCES)
        .key(keys::workers_key(&lease.instance));
    for list in lists {
        call.key(list.as_str());
    }
    call.arg(seat.lane).arg(INLINE_LIMIT);
    call.arg(&lease.record).arg(lease.ttl);
    call.arg(&lease.instance).arg(seat.worker);
    call.arg(expiry.document);
    call
}

/// Adds the command that replaces a document; RedisJSON keeps a key's time to live by itself.
pub(super) fn put_existing(steps: &mut redis::Pipeline, key: &str, kind: Kind, json: &str) {
    match kind {
        Kind::Json => steps.cmd("JSON.SET").arg(key).arg("$").arg(json).ignore(),
        Kind::Text => steps.cmd("SET").arg(key).arg(json).arg("KEEPTTL").ignore(),
    };
}

/// Writes a document under a key that may be new: RedisJSON where the server has it, else a
/// plain string.
///
/// The server is asked first: it repeats the beginning of a command it does not know, cut at some
/// byte, and a cut letter is more than the client library can read.
fn put_new(connection: &mut redis::Connection, key: &str, json: &str) -> Result<Kind, QueueError> {
    let kind = if has_json(connection)? {
        Kind::Json
    } else {
        Kind::Text
    };
    let mut put = match kind {
        Kind::Json => redis::cmd("JSON.SET").arg(key).arg("$").clone(),
        Kind::Text => redis::cmd("SET").arg(key).clone(),
    };
    put.arg(json)
        .query::<()>(connection)
        .map_err(QueueError::of_write)?;
    Ok(kind)
}

fn get_text(connection: &mut redis::Connection, key: &str) -> Result<Document, QueueError> {
    let text: Option<Vec<u8>> = redis::cmd("GET").arg(key).query(connection)?;
    Ok(text.map_or(Document::Missing, |text| Document::Found(Kind::Text, text)))
}

fn describe(kind: &[u8], detail: &[u8]) -> String {
    let detail = String::from_utf8_lossy(detail);
    match kind {
        b"unreadable" => format!("Redis cannot read the document: {detail}"),
        other => format!(
            "the key holds a {}, not a document",
            String::from_utf8_lossy(other)
        ),
    }
}

/// The bulk strings of an array reply.
pub(super) fn texts(reply: Value) -> Option<Vec<Vec<u8>>> {
    let Value::Array(values) = reply else {
        return None;
    };
    values
        .into_iter()
        .map(|value| match value {
            Value::BulkString(bytes) => Some(bytes),
            Value::SimpleString(text) => Some(text.into_bytes()),
            Value::Int(number) => Some(number.to_string().into_bytes()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_cannot_make_lines_or_steer_a_terminal() {
        let text = shown(b"x\n2026 [INFO] Finished\x1b[2J\xc2\x9b\xe2\x80\xae\xff");
        assert_eq!(
            text,
            "x\\n2026 [INFO] Finished\\u{1b}[2J\\u{9b}\\u{202e}\u{fffd}"
        );
        assert_eq!(shown(&b"\n".repeat(1000)).len(), SHOWN);
        assert_eq!(shown("Zoë".as_bytes()), "Zoë");
    }
}
