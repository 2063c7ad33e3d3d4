//! How a lane gets work: it claims the next entry of its lists and loads the document in one round trip.
//!
//! Knows the form of a claim and of the replies of `claim.lua`, not what a lane does with a claim.

use std::time::{SystemTime, UNIX_EPOCH};

use redis::{Cmd, Value};

use super::documents::{LARGE, describe};
use super::release::Released;
use super::requests::LaneScript;
use super::{Document, DocumentFormat, Queue, QueueError, RedisConnection, keys};
use crate::config::ListName;
use crate::vcon::VconId;
use crate::visible::printable;

/// A document of more bytes is fetched by a command of its own, so that the server does not copy it through
/// its script interpreter.
pub(super) const INLINE_LIMIT: usize = 64 << 10;

/// The same for RedisJSON, of which the server tells the memory, a few times the text; the same number stands in
/// `claim_limits.lua`. To compare it outside a script, the server writes it out once more.
pub(super) const JSON_INLINE_LIMIT: usize = 1 << 20;

/// An entry of more bytes is no UUID; the same number stands in `claim_limits.lua`.
const MOST_OF_ENTRY: usize = 1024;

/// The same limit for the context of an entry.
const MOST_OF_CONTEXT: usize = 64 << 10;

/// How many characters of an entry messages show.
const SHOWN: usize = 120;

/// An entry that this lane holds. Its record stays in the claims hash until the claim ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The beginning of the record in the claims hash, which no other claim has. Every later step checks it
    /// to see whether the lane still holds the claim.
    pub(super) token: Vec<u8>,
    /// The list it was taken from.
    pub list: ListName,
    /// The entry as it stood in the list.
    pub entry: Vec<u8>,
    /// The context that came with it, a JSON text; empty if there was none.
    pub context: Vec<u8>,
    /// How many workers have died while they worked on it.
    pub deaths: u32,
    /// How far an earlier claim of it has come, as its lane wrote it.
    pub progress: Option<Vec<u8>>,
    /// Whether Redis holds deaths, lapses, rounds or progress of the entry.
    pub(super) is_noted: bool,
}

impl Claim {
    /// The entry as the id of a vCon; `None` if it is not one.
    pub fn id(&self) -> Option<VconId> {
        std::str::from_utf8(&self.entry).ok()?.parse().ok()
    }

    /// The entry for messages.
    pub fn shown(&self) -> String {
        shown(&self.entry)
    }

    /// Its field in the hash `conserver:progress`.
    pub(super) fn progress_field(&self) -> Vec<u8> {
        [self.list.as_str().as_bytes(), b"\n", &self.entry].concat()
    }
}

/// Bytes from Redis, for messages. Anyone may have put them there, so line ends and control characters are
/// escaped, and a long text is cut.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    printable(&text).chars().take(SHOWN).collect()
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The claim with its document; `None` if all lists are empty.
    pub work: Option<(Claim, Document)>,
    /// A list whose key holds another type, with the server's error.
    pub fault: Option<String>,
}

/// What `claim.lua` returns, in its order.
type ClaimFields = [Vec<u8>; 9];

impl Queue {
    /// Claims the first entry of the first list that has one, and loads its document.
    ///
    /// If the lane still holds a claim, it gets that claim again: sending the same request twice never
    /// takes two entries. Takes the lease on the instance name if it has run out.
    ///
    /// # Errors
    /// [`QueueError::InUse`] if another daemon holds the name by now.
    pub fn claim(&mut self, lists: &[ListName]) -> Result<Claimed, QueueError> {
        self.claim_by(LaneScript::Claim, lists)
    }

    /// Claims the oldest entry of the first of these storages' queues that has backlog; otherwise like
    /// [`Queue::claim`].
    ///
    /// # Errors
    /// As [`Queue::claim`].
    pub fn claim_backlog(&mut self, queues: &[ListName]) -> Result<Claimed, QueueError> {
        self.claim_by(LaneScript::ClaimBacklog, queues)
    }

    fn claim_by(&mut self, script: LaneScript, lists: &[ListName]) -> Result<Claimed, QueueError> {
        let mut call = self.call(script, 4 + lists.len());
        self.add_claim(&mut call, lists, &[]);
        let reply = self.ask(script, &call)?;
        self.claimed(reply, script, lists)
    }

    /// Adds the keys and arguments of `claim.lua`; after its keys, the `pushes` of `finish.lua`.
    pub(super) fn add_claim(&mut self, call: &mut Cmd, lists: &[ListName], pushes: &[&ListName]) {
        let since = self.next_time();
        let Self {
            lane_keys: lane,
            lane_id,
            expiry,
            lease,
            ..
        } = self;
        call.arg(&lane.claims).arg(&lane.lease);
        call.arg(keys::INSTANCES).arg(&lane.workers);
        for list in lists.iter().chain(pushes.iter().copied()) {
            call.arg(list.as_str());
        }
        call.arg(lane_id.lane).arg(INLINE_LIMIT);
        call.arg(&lease.record).arg(lease.ttl);
        call.arg(&lease.instance).arg(lane_id.worker);
        call.arg(expiry.document).arg(&lease.mark);
        call.arg(since).arg(lists.len());
        for list in lists {
            // A string is always JSON.
            call.arg(serde_json::to_string(list.as_str()).unwrap_or_default());
        }
    }

    /// The time of a request, in seconds since 1970. No two requests of this lane have the same, so no two
    /// claims have one token.
    fn next_time(&mut self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_micros());
        self.last_time = now.max(self.last_time + 1);
        format!(
            "{}.{:06}",
            self.last_time / 1_000_000,
            self.last_time % 1_000_000
        )
    }

    /// The token of a claim that this lane requests now, as `claim_token.lua` makes it.
    pub(super) fn next_token(&mut self) -> Vec<u8> {
        let since = self.next_time();
        format!("{{\"since\":{since},\"by\":\"{}\"", self.lease.mark).into_bytes()
    }

    /// Reads the reply of `claim.lua`. Returns a claim that another daemon made to its list, and asks for
    /// the next one with `script`.
    pub(super) fn claimed(
        &mut self,
        reply: Value,
        script: LaneScript,
        lists: &[ListName],
    ) -> Result<Claimed, QueueError> {
        let fields = texts(reply).and_then(|fields| ClaimFields::try_from(fields).ok());
        let fields = fields.ok_or(QueueError::UnexpectedReply("claim"))?;
        self.read_claim(fields, script, lists)
    }

    /// Reads what `finish_and_claim_many.lua` returned about the claim with this token, and the reply of the
    /// `SORT` after it, which returned the entry and its document.
    pub(super) fn claimed_by_many(
        &mut self,
        token: Vec<u8>,
        reply: Value,
        sorted: Value,
        lists: &[ListName],
    ) -> Result<Claimed, QueueError> {
        let name = |index: usize| Some(lists.get(index)?.as_str().as_bytes().to_vec());
        let fields = match reply {
            Value::BulkString(entry) if entry.is_empty() => Some(ClaimFields::default()),
            Value::BulkString(entry) => name(0).map(|list| {
                let [context, text, fault, deaths, progress] = Default::default();
                let kind = b"string".to_vec();
                [
                    token, list, entry, context, kind, text, fault, deaths, progress,
                ]
            }),
            reply => claim_in_detail(reply).and_then(|detail| {
                let [number, entry, context, kind, fault, deaths] = detail;
                let number: usize = std::str::from_utf8(&number).ok()?.parse().ok()?;
                let (token, list) = match number.checked_sub(1) {
                    Some(index) => (token, name(index)?),
                    None => Default::default(),
                };
                let (text, progress) = Default::default();
                Some([
                    token, list, entry, context, kind, text, fault, deaths, progress,
                ])
            }),
        };
        let Some(mut fields) = fields else {
            return Err(self.on_error(QueueError::UnexpectedReply("finishing several vCons")));
        };
        if let Value::SimpleString(refusal) = &sorted {
            // The server may stop replying any other error.
            self.can_sort = !matches!(refusal.as_str(), "NOPERM" | "ERR" | "WRONGTYPE");
        }
        let [_, _, entry, _, kind, text, ..] = &mut fields;
        if kind == b"string" {
            match sorted_pair(sorted) {
                // Another entry if an earlier request of the worker arrived late.
                Some((of, Some(document))) if of == *entry => *text = document,
                // The document is gone, or its key holds another type.
                Some((of, None)) if of == *entry => *kind = b"look".to_vec(),
                _ => *kind = b"string-unsent".to_vec(),
            }
        }
        self.read_claim(fields, LaneScript::Claim, lists)
    }

    fn read_claim(
        &mut self,
        fields: ClaimFields,
        script: LaneScript,
        lists: &[ListName],
    ) -> Result<Claimed, QueueError> {
        let [
            token,
            list,
            entry,
            context,
            kind,
            text,
            fault,
            deaths,
            progress,
        ] = fields;
        if kind == b"not-ours" {
            return Err(self.lease.lost_to(&text));
        }
        let fault = (!fault.is_empty()).then(|| String::from_utf8_lossy(&fault).into_owned());
        if token.is_empty() {
            return Ok(Claimed { work: None, fault });
        }
        let Some(list) = String::from_utf8(list)
            .ok()
            .and_then(|list| list.parse().ok())
        else {
            self.discard_unreadable(&token)?;
            return self.claim_by(script, lists);
        };
        let claim = Claim {
            token,
            list,
            entry,
            context,
            deaths: String::from_utf8_lossy(&deaths).parse().unwrap_or(0),
            progress: (!progress.is_empty()).then_some(progress),
            is_noted: !deaths.is_empty(),
        };
        if kind == b"left-behind" {
            // Another daemon held our name for a time, and may still work on it.
            if let Released::Refused(_) = self.release(&claim, None)? {
                self.discard_unreadable(&claim.token)?;
            }
            return self.claim_by(script, lists);
        }
        if kind == b"look" {
            // The lane holds the claim, and gets it again with everything that Redis holds about it.
            return self.claim_by(script, lists);
        }
        self.unwatch()?;
        let document = match kind.as_slice() {
            b"entry-too-long" => Document::Unusable(format!(
                "the entry has more than {MOST_OF_ENTRY} bytes; the rest is cut off"
            )),
            b"context-too-long" => Document::Unusable(format!(
                "the context that came with it has more than {MOST_OF_CONTEXT} bytes"
            )),
            kind => match (claim.id(), kind) {
                (None, _) => Document::NotAnId,
                (_, b"ReJSON-RL") => Document::Found(DocumentFormat::Json, text),
                (_, b"string") => Document::Found(DocumentFormat::Text, text),
                (Some(id), b"string-unsent") => self.load_text(&id)?,
                (Some(id), b"string-large") => self.load_watched(&id, DocumentFormat::Text)?,
                (Some(id), b"json-large") => self.load_watched(&id, DocumentFormat::Json)?,
                (_, b"none") => Document::Missing,
                (_, other) => Document::Unusable(describe(other, &text)),
            },
        };
        // More large ones may follow; a shared call would fetch them for all lanes on one connection.
        self.was_small_string = matches!(&document, Document::Found(DocumentFormat::Text, text) if text.len() <= INLINE_LIMIT);
        // One that watches the key of a RedisJSON document is not the one that read it.
        if self.watched.is_none() || matches!(document, Document::Found(DocumentFormat::Text, _)) {
            self.close_after_large(&document);
        }
        Ok(Claimed {
            work: Some((claim, document)),
            fault,
        })
    }

    /// Closes the connection after a large document, if it keeps a buffer as large as the longest reply for
    /// as long as it lives.
    pub(super) fn close_after_large(&mut self, document: &Document) {
        let keeps_buffers = |connected: &RedisConnection| connected.keeps_buffers();
        if matches!(document, Document::Found(_, text) if text.len() > LARGE) {
            self.connected.take_if(|it| keeps_buffers(it));
        }
    }

    /// Moves a record that names no list, and so was not written by a daemon, to `conserver:unreadable`.
    fn discard_unreadable(&mut self, token: &[u8]) -> Result<(), QueueError> {
        self.with(|connection, scripts, lane_id, _| {
            let mut call = scripts.unreadable_claim.key(lane_id.claims_key());
            call.arg(lane_id.lane).arg(token);
            Ok(call.invoke::<()>(connection)?)
        })
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

/// What `finish_and_claim_many.lua` returns about a claim that is not quite usual, in its order.
fn claim_in_detail(reply: Value) -> Option<[Vec<u8>; 6]> {
    <[Vec<u8>; 6]>::try_from(texts(reply)?).ok()
}

/// What `SORT` returned for a lane: the entry, and its document if there is one.
fn sorted_pair(reply: Value) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let Value::Array(values) = reply else {
        return None;
    };
    match <[Value; 2]>::try_from(values).ok()? {
        [Value::BulkString(of), Value::BulkString(document)] => Some((of, Some(document))),
        [Value::BulkString(of), Value::Nil] => Some((of, None)),
        _ => None,
    }
}

/// What a fuzzer runs on the bytes that Redis may hold.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod fuzz {
    use std::cell::RefCell;

    use redis::Value;

    use super::super::requests::LaneScript;
    use super::super::{
        Expiry, Holder, LaneId, NameLease, Queue, QueueError, Server, StoredReason,
    };
    use super::{shown, texts};
    use crate::settings::Settings;

    /// Reads the bytes as the fields of a claim, a line each, as `claim.lua` returns them; then as a reply
    /// of Redis, as a lease record and as the reason of a dead letter.
    pub fn answer(data: &[u8]) {
        let cut = shown(data);
        assert!(
            cut.chars().count() <= 120 && !cut.chars().any(char::is_control),
            "{cut:?}"
        );
        if let StoredReason::Known {
            stage,
            worker,
            error,
            ..
        } = StoredReason::read(data)
        {
            assert!(stage.len() + worker.len() + error.len() <= data.len());
        }
        if let Ok(value) = redis::parse_redis_value(data) {
            claimed(value);
        }
        let fields = data.split(|byte| *byte == b'\n').take(9);
        claimed(Value::Array(
            fields
                .map(|field| Value::BulkString(field.to_vec()))
                .collect(),
        ));
        if let Ok(holder) = serde_json::from_slice::<Holder>(data) {
            let text = serde_json::to_string(&holder).unwrap();
            let again: Holder = serde_json::from_str(&text).unwrap();
            assert_eq!(again.host, holder.host);
        }
    }

    /// The reply to a claim is a claim from a list, or an error, whoever wrote the record.
    fn claimed(value: Value) {
        thread_local! {
            static QUEUE: RefCell<Queue> = RefCell::new(unreachable());
        }
        let fields = texts(value.clone());
        let result = QUEUE.with_borrow_mut(|queue| queue.claimed(value, LaneScript::Claim, &[]));
        let Some(fields) = fields.filter(|fields| fields.len() == 9) else {
            return assert!(
                matches!(result, Err(QueueError::UnexpectedReply(_))),
                "{result:?}"
            );
        };
        let Ok(claimed) = result else {
            return;
        };
        let Some((claim, _)) = claimed.work else {
            return assert!(fields[0].is_empty());
        };
        assert_eq!((&claim.token, &claim.entry), (&fields[0], &fields[2]));
        assert_eq!(claim.list.as_str().as_bytes(), fields[1]);
        if let Some(id) = claim.id() {
            assert_eq!(id.as_str().as_bytes(), claim.entry);
        }
    }

    /// A queue without a server: every request fails at once.
    fn unreachable() -> Queue {
        let settings =
            |name: &str| (name == "REDIS_URL").then(|| "unix:///nowhere/redis.sock".into());
        let settings = Settings::from_lookup(&settings).unwrap();
        let lane_id = LaneId {
            instance: "fuzz".to_owned(),
            worker: 1,
            lane: 1,
        };
        let lease = NameLease::new(&settings, Holder::this_process(1));
        let server = Server::new(&settings.redis_url).unwrap();
        Queue::new(server, lane_id, Expiry::of(&settings), lease)
    }
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
