//! How a vCon is finished. One step replaces its document, announces it on the egress lists, queues it for
//! the storages that failed, ends the claim, and may claim the next entry.
//!
//! The step replaces the document only if the one that this lane loaded or wrote last still stands there,
//! so no change of anyone else is lost. If it is too large for the script interpreter, the lane compares it
//! before (see `documents.rs`) and writes the new text under a key of its own.
//!
//! Several lanes of a worker share one call (`finish_and_claim_many.lua`) if there is nothing unusual about
//! their vCons. Texts that replace others do not go through that script, but stand under keys of their own.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::claim::Claimed;
use super::documents::{Comparison, Replacement, replacing, watched};
use super::keys::ComparedKeys;
use super::requests::{Arguments, LaneRequest, LaneScript, SharedCall, is_missing};
use super::{Claim, DocumentFormat, Queue, QueueError, Reason, keys};
use crate::config::ListName;
use crate::vcon::VconId;

/// How long a text stays in Redis to be compared with a document, or to replace it, in milliseconds. The script
/// that does that goes with it, and leaves none.
const COMPARED_FOR: &[u8] = b"10000";

/// What to do at the end of a vCon.
#[derive(Debug, Clone)]
pub struct Finish<'a> {
    /// The vCon to announce: the claimed one, or the one that a link returned in its place.
    pub id: &'a VconId,
    /// Which document must stand under its key, and which replaces it; `None` to leave the key alone.
    pub document: Option<Replacement<'a>>,
    /// A time to live for its key, in seconds.
    pub expire: Option<u64>,
    /// The lists to announce it on.
    pub egress: &'a [ListName],
    /// What links announce besides.
    pub routes: &'a [Announcement],
    /// The context that goes with it to these lists, a JSON text; `None` if it is the one that came with the claim.
    pub context: Option<&'a [u8]>,
    /// The storages that failed to save it.
    pub failed_storages: &'a [FailedStorage],
}

/// A vCon that a link announces on a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The list.
    pub list: ListName,
    /// The vCon: the claimed one, or one that a link returned in its place.
    pub id: VconId,
}

/// A storage that failed to save a vCon, which goes to the storage's dead letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStorage {
    /// The storage's name in `config.yml`.
    pub storage: String,
    /// Why the storage refuses the vCon, as JSON; `None` if the vCon waits for an unavailable storage.
    pub reason: Option<String>,
}

impl FailedStorage {
    /// A storage that refuses the vCon for good.
    pub fn refused(storage: &str, reason: &Reason<'_>) -> Self {
        Self {
            storage: storage.to_owned(),
            // Text and numbers are always JSON.
            reason: reason.to_json().ok(),
        }
    }

    /// A storage that is unavailable: the vCon waits for it.
    pub fn deferred(storage: &str) -> Self {
        Self {
            storage: storage.to_owned(),
            reason: None,
        }
    }
}

/// The result of a finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It is done.
    Done,
    /// It is done, but somebody had deleted the document, which was not written again.
    Deleted,
    /// The lane no longer held the claim: an earlier call whose reply was lost ended it, or somebody who
    /// took this daemon for dead returned it.
    NotOurs,
    /// Nothing was done: another document stands under the vCon's key.
    Changed,
    /// Nothing was done: the key of a list to announce on holds another type.
    Refused {
        /// The key.
        list: String,
        /// The type that it holds.
        holds: String,
    },
}

/// The part of a shared call that stays the same as long as these lists do.
pub(super) struct SharedHead {
    lists: Vec<ListName>,
    egress: Vec<ListName>,
    arguments: Arc<Arguments>,
}

impl Queue {
    /// Finishes a vCon and ends its claim.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn finish(&mut self, claim: &Claim, finish: &Finish<'_>) -> Result<Finished, QueueError> {
        let (finished, _) = self.finish_asking(claim, finish, None)?;
        Ok(finished)
    }

    /// Does what [`Queue::finish`] does, then what [`Queue::claim`] does, in one step. Claims nothing if the
    /// lane still holds the claim that it wanted to finish.
    ///
    /// # Errors
    /// After an error, each of the two may or may not have been done.
    pub fn finish_and_claim(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: &[ListName],
    ) -> Result<(Finished, Option<Result<Claimed, QueueError>>), QueueError> {
        if self.can_share_call(claim, finish) {
            let token = self.next_token();
            let call = self.shared_call(claim, finish, lists, &token);
            let reply = self.send(LaneScript::FinishAndClaimMany, LaneRequest::Shared(call))?;
            let [outcome, next, document] = of_lane(reply).ok_or_else(|| {
                self.on_error(QueueError::UnexpectedReply("finishing several vCons"))
            })?;
            let finished = shared_outcome(outcome, next).map_err(|error| self.on_error(error))?;
            if let SharedOutcome::Unusual { refusal: Some(why) } = &finished
                && lacks_a_right(why)
            {
                log::debug!(
                    "Redis refuses to compare documents, which its scripts do from now on: {why}"
                );
                self.can_compare = false;
            }
            if let SharedOutcome::Finished(finished, next) = finished {
                let next = next.map(|next| self.claimed_by_many(token, next, document, lists));
                return Ok((finished, next));
            }
        }
        let (finished, next) = self.finish_asking(claim, finish, Some(lists))?;
        let claimed = next.map(|reply| match reply.extract_error() {
            Ok(reply) => self.claimed(reply, LaneScript::Claim, lists),
            Err(error) => Err(self.on_error(error.into())),
        });
        Ok((finished, claimed))
    }

    /// Whether `finish_and_claim_many.lua` can do it: there is nothing unusual about the vCon.
    fn can_share_call(&self, claim: &Claim, finish: &Finish<'_>) -> bool {
        let is_small = |document: Replacement<'_>| {
            document.kind == DocumentFormat::Text && !document.is_large()
        };
        self.was_small_string
            && !claim.is_noted
            && claim.id().as_ref() == Some(finish.id)
            && finish.expire.is_none()
            && finish.routes.is_empty()
            && finish.failed_storages.is_empty()
            && finish.document.is_none_or(is_small)
    }

    /// This lane's part of a call of `finish_and_claim_many.lua`. `next` is the token of its next claim.
    fn shared_call(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: &[ListName],
        next: &[u8],
    ) -> SharedCall {
        let head = self.shared_head(lists, finish.egress);
        let mut own = Arguments::default();
        own.arg(self.lane_id.lane.to_string().as_bytes());
        // A UUID is always JSON. A context stands there as Redis has encoded it.
        let end: &[u8] = match claim.context.is_empty() {
            true => b"\"}",
            false => b"\",\"context\":",
        };
        let rest = [&*after_token(&claim.list), b"\"", &claim.entry, end].concat();
        own.arg(&[&*claim.token, &rest].concat()).arg(next);
        own.arg(finish.id.as_str().as_bytes());
        let mut before = Vec::new();
        match finish.document {
            None => {
                own.arg(b"no");
            }
            Some(Replacement {
                base,
                text: Some(text),
                ..
            }) if self.can_compare => {
                let keys = ComparedKeys::of(&self.lane_id, next);
                own.arg(b"swap").arg(base.len().to_string().as_bytes());
                for (key, text) in [(keys.base, base), (keys.draft, text)] {
                    own.arg(key.as_bytes());
                    let mut set = Arguments::default();
                    set.arg(b"SET").arg(key.as_bytes()).arg(text.as_bytes());
                    set.arg(b"PX").arg(COMPARED_FOR);
                    before.push(set);
                }
            }
            Some(Replacement { base, text, .. }) => {
                own.arg(if text.is_some() { b"put" } else { b"is" });
                for text in [Some(base), text].into_iter().flatten() {
                    own.arg(text.as_bytes());
                }
            }
        }
        let context = finish.context.unwrap_or(&claim.context);
        if !context.is_empty() && !finish.egress.is_empty() {
            own.arg(b"context").arg(context);
        }
        SharedCall {
            command: "EVALSHA",
            script: Arc::clone(self.scripts.of(LaneScript::FinishAndClaimMany).hash()),
            keys: 3 + lists.len() + finish.egress.len(),
            head,
            own,
            before,
            then: self.can_sort.then(|| Arc::clone(&self.lane_keys.get_taken)),
        }
    }

    /// What the lane's calls with these lists have in common: made once, as long as the lists stay the same.
    fn shared_head(&mut self, lists: &[ListName], egress: &[ListName]) -> Arc<Arguments> {
        if let Some(head) = &self.shared_head
            && head.lists == lists
            && head.egress == egress
        {
            return Arc::clone(&head.arguments);
        }
        let (lane, lease) = (&self.lane_keys, &self.lease);
        let mut head = Arguments::default();
        head.arg(lane.claims.as_bytes()).arg(lane.lease.as_bytes());
        head.arg(lane.taken.as_bytes());
        for list in lists.iter().chain(egress) {
            head.arg(list.as_str().as_bytes());
        }
        head.arg(lease.record.as_bytes());
        head.arg(self.expiry.document.to_string().as_bytes());
        head.arg(self.expiry.context.to_string().as_bytes());
        head.arg(lists.len().to_string().as_bytes());
        for list in lists {
            head.arg(&after_token(list));
        }
        let arguments = Arc::new(head);
        self.shared_head = Some(SharedHead {
            lists: lists.to_owned(),
            egress: egress.to_owned(),
            arguments: Arc::clone(&arguments),
        });
        arguments
    }

    /// Finishes. With `lists`, claims the next entry of these in the same step. Returns the outcome of the
    /// finish, and the reply of `claim.lua`.
    fn finish_asking(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
    ) -> Result<(Finished, Option<Value>), QueueError> {
        if let Some(document) = finish.document.filter(Replacement::is_large) {
            return self.finish_large(claim, finish, document, lists);
        }
        let (script, call) = self.finish_call(claim, finish, lists);
        let reply = self.ask(script, &call)?;
        match finish.document {
            Some(document) if is_large(&reply) => self.finish_large(claim, finish, document, lists),
            _ => outcome(reply).map_err(|error| self.on_error(error)),
        }
    }

    /// The same if a document is too large for the script interpreter.
    fn finish_large(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        document: Replacement<'_>,
        lists: Option<&[ListName]>,
    ) -> Result<(Finished, Option<Value>), QueueError> {
        let script = finishing(lists);
        let was_deleted = loop {
            let was_watched = self.watches(finish.id);
            match (self.compare(finish.id, document)?, document.text) {
                (Comparison::Changed, _) => return Ok((Finished::Changed, None)),
                (Comparison::Same, Some(text)) => {
                    let call = self.call_to_replace(script, claim, finish, lists);
                    match self.replace_large(document.kind, text, &call) {
                        Ok(Some(reply)) => {
                            self.replaced_by.insert(script);
                            return outcome(reply).map_err(|error| self.on_error(error));
                        }
                        // Perhaps only the time to live has changed: compare.
                        Ok(None) if was_watched => {}
                        Ok(None) => return Ok((Finished::Changed, None)),
                        // The server has forgotten the script. Nothing was replaced, and the watch is over.
                        Err(QueueError::Command(error))
                            if is_missing(&error) && self.replaced_by.remove(&script) => {}
                        Err(error) => return Err(error),
                    }
                }
                // There is nothing to write.
                (compared, _) => break compared == Comparison::Deleted,
            }
        };
        let finish = Finish {
            document: None,
            ..finish.clone()
        };
        let (script, call) = self.finish_call(claim, &finish, lists);
        let reply = self.ask(script, &call)?;
        match outcome(reply).map_err(|error| self.on_error(error))? {
            (Finished::Done, next) if was_deleted => Ok((Finished::Deleted, next)),
            finished => Ok(finished),
        }
    }

    fn finish_call(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
    ) -> (LaneScript, Cmd) {
        let script = finishing(lists);
        let (how, base, text) = match finish.document {
            None => ("", "", ""),
            Some(Replacement { kind, base, text }) => (kind.word(), base, text.unwrap_or_default()),
        };
        let call = self.call(script, keys_to_finish(finish, lists));
        let call = self.add_finish(call, claim, finish, lists, [how, base, text]);
        (script, call)
    }

    /// The same call for a transaction that has the new text under the key of the lane's draft. The script goes
    /// with it in full the first time: one that is missing in a transaction cannot be sent again.
    fn call_to_replace(
        &mut self,
        script: LaneScript,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
    ) -> Cmd {
        let keys = keys_to_finish(finish, lists);
        let call = if self.replaced_by.contains(&script) {
            self.call(script, keys)
        } else {
            self.scripts.of(script).in_full(keys)
        };
        let draft = self.lane_id.draft_key();
        self.add_finish(call, claim, finish, lists, ["draft", "", &draft])
    }

    /// Adds the keys and arguments of `finish.lua`, alone or before `claim.lua`. `document` is how it is
    /// compared, the text that must stand there, and the new text.
    fn add_finish(
        &mut self,
        mut call: Cmd,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
        document: [&str; 3],
    ) -> Cmd {
        let egress = finish.egress.iter().map(|list| (list, finish.id));
        let routes = finish.routes.iter().map(|route| (&route.list, &route.id));
        let (pushes, ids): (Vec<&ListName>, Vec<&VconId>) = egress.chain(routes).unzip();
        let lists = lists.unwrap_or_default();
        self.add_claim(&mut call, lists, &pushes);
        call.arg(&claim.token).arg(&claim.entry);
        call.arg(claim.progress_field());
        call.arg(finish.context.unwrap_or(&claim.context));
        call.arg(self.expiry.context);
        call.arg(u8::from(claim.is_noted));
        call.arg(finish.id.key());
        for part in document {
            call.arg(part);
        }
        let expire = finish.expire.map(|seconds| seconds.to_string());
        call.arg(expire.unwrap_or_default());
        call.arg(&self.ingress).arg(ids.len());
        for id in ids {
            call.arg(id.as_str());
        }
        call.arg(finish.failed_storages.len());
        call.arg(self.expiry.dead_letter);
        for letter in finish.failed_storages {
            call.arg(keys::storage_letters_list(&letter.storage));
            call.arg(keys::storage_letters_reasons(&letter.storage));
            call.arg(finish.id.as_str());
            call.arg(letter.reason.as_deref().unwrap_or_default());
        }
        call
    }

    /// Writes a large document, whose key the connection watches, and finishes by this call. Returns `None` if
    /// the key has changed since.
    fn replace_large(
        &mut self,
        kind: DocumentFormat,
        text: &str,
        call: &Cmd,
    ) -> Result<Option<Value>, QueueError> {
        self.with(|connection, _, lane_id, _| {
            let request = replacing(&lane_id.draft_key(), kind, text, call);
            watched(request.send(connection)?)
        })
    }
}

/// The script that finishes, and claims the next entry if there are lists to claim from.
fn finishing(lists: Option<&[ListName]>) -> LaneScript {
    match lists {
        Some(_) => LaneScript::FinishAndClaim,
        None => LaneScript::Finish,
    }
}

/// How many keys the call of `finish.lua` has, alone or before `claim.lua`.
fn keys_to_finish(finish: &Finish<'_>, lists: Option<&[ListName]>) -> usize {
    4 + lists.map_or(0, <[_]>::len) + finish.egress.len() + finish.routes.len()
}

/// What stands between the token and the entry in the record of a claim.
fn after_token(list: &ListName) -> Vec<u8> {
    // A string is always JSON.
    let list = serde_json::to_vec(list.as_str()).unwrap_or_default();
    [b",\"list\":", &*list, b",\"uuid\":"].concat()
}

/// The outcome and the next claim that `finish_and_claim_many.lua` returned for a lane, and what `SORT`
/// returned for it.
fn of_lane(reply: Value) -> Option<[Value; 3]> {
    match reply {
        Value::Array(values) => values.try_into().ok(),
        _ => None,
    }
}

/// What `finish_and_claim_many.lua` has done for a lane.
enum SharedOutcome {
    /// It has finished the vCon, or has found that it cannot be; the next claim, if that was made.
    Finished(Finished, Option<Value>),
    /// Nothing: `finish.lua` has to do it. The server's error if it refused the way to compare the document.
    Unusual { refusal: Option<String> },
}

/// Whether the server refuses a command to this user, or does not have it. Another refusal passes.
fn lacks_a_right(why: &str) -> bool {
    // Redis 6 and 7 word it differently, and again inside a script.
    let words = [
        "NOPERM",
        "no permissions",
        "user executing the script",
        "nknown ",
    ];
    words.iter().any(|word| why.contains(word))
}

/// Reads what `finish_and_claim_many.lua` returned for a lane.
fn shared_outcome(outcome: Value, next: Value) -> Result<SharedOutcome, QueueError> {
    if matches!(&outcome, Value::BulkString(it) if it == b"unusual") {
        let refusal = match next {
            Value::BulkString(error) => Some(String::from_utf8_lossy(&error).into_owned()),
            _ => None,
        };
        return Ok(SharedOutcome::Unusual { refusal });
    }
    let (finished, next) = self::outcome(Value::Array(vec![outcome, next]))?;
    let next = next.filter(|next| *next != Value::Nil);
    Ok(SharedOutcome::Finished(finished, next))
}

/// Whether `finish.lua` found a document that is too large for it.
fn is_large(reply: &Value) -> bool {
    let Value::Array(fields) = reply else {
        return false;
    };
    matches!(fields.first(), Some(Value::BulkString(what)) if what == b"large")
}

/// Reads what `finish.lua` returned, and what `claim.lua` returned after it.
fn outcome(reply: Value) -> Result<(Finished, Option<Value>), QueueError> {
    let Value::Array(fields) = reply.extract_error()? else {
        return Err(QueueError::UnexpectedReply("a finish"));
    };
    let mut fields = fields.into_iter();
    match (fields.next(), fields.next(), fields.next()) {
        (Some(Value::Int(1)), next, _) => Ok((Finished::Done, next)),
        (Some(Value::Int(2)), next, _) => Ok((Finished::Deleted, next)),
        (Some(Value::Int(0)), next, _) => Ok((Finished::NotOurs, next)),
        (Some(Value::BulkString(what)), first, second) => {
            let word = |value: Option<Value>| match value {
                Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
                Some(Value::SimpleString(text)) => text,
                _ => String::new(),
            };
            match what.as_slice() {
                b"changed" => Ok((Finished::Changed, None)),
                b"unwritten" => Err(QueueError::of_refusal(&word(first))),
                b"refused" => {
                    let (list, holds) = (word(first), word(second));
                    Ok((Finished::Refused { list, holds }, None))
                }
                _ => Err(QueueError::UnexpectedReply("a finish")),
            }
        }
        _ => Err(QueueError::UnexpectedReply("a finish")),
    }
}
