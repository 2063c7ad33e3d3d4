//! Finishing a vCon: its new document, its announcements, what a storage could not take, and letting
//! go of its claim, in one step; and asking for the next vCon in the same step.
//!
//! The document is replaced only if the one that was loaded, or that this lane wrote last, still
//! stands there: whoever wrote another one meanwhile does not lose it. The script compares the
//! texts; a document too large for the script interpreter is compared piece by piece, under `WATCH`,
//! and its new text is written under a key of its own before.

use redis::{Cmd, Value};

use super::claim::Claimed;
use super::documents::{Comparison, Replacement, replacing, watched};
use super::requests::{Arguments, LaneRequest, LaneScript, SharedCall};
use super::{Claim, Kind, Queue, QueueError, Reason, keys};
use crate::config::ListName;
use crate::vcon::VconId;

/// What is to be done when a vCon is finished.
#[derive(Debug, Clone)]
pub struct Finish<'a> {
    /// The vCon to announce: the claimed one, or the one a link went over to.
    pub id: &'a VconId,
    /// What must stand under its key, and what is to stand there; `None` to do neither.
    pub document: Option<Replacement<'a>>,
    /// A time to live for its key, in seconds.
    pub expire: Option<u64>,
    /// Where to announce it.
    pub egress: &'a [ListName],
    /// What links want announced besides.
    pub routes: &'a [Route],
    /// The storages that do not have it.
    pub letters: &'a [StorageLetter],
}

/// A vCon and a list on which to announce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The list.
    pub list: ListName,
    /// The vCon: the claimed one, or one that a link went over to or has left.
    pub id: VconId,
}

/// A vCon that one storage alone does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageLetter {
    /// The storage's name in `config.yml`.
    pub storage: String,
    /// Why the storage refuses it, as JSON; `None` if it waits for the storage to come back.
    pub reason: Option<String>,
}

impl StorageLetter {
    /// A vCon that the storage refuses for good.
    pub fn refused(storage: &str, reason: &Reason<'_>) -> Self {
        Self {
            storage: storage.to_owned(),
            // Text and numbers are always JSON.
            reason: reason.to_json().ok(),
        }
    }

    /// A vCon that waits for the storage.
    pub fn deferred(storage: &str) -> Self {
        Self {
            storage: storage.to_owned(),
            reason: None,
        }
    }
}

/// What became of a finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It is done.
    Done,
    /// It is done, but the document had been deleted meanwhile: it was not brought back.
    Deleted,
    /// The claim was gone already: let go by an earlier call whose answer was lost, or returned by
    /// somebody who took us for dead.
    NotOurs,
    /// Nothing is done: another document stands under the vCon's key.
    Changed,
    /// Nothing is done: a key to push to is no list.
    Refused {
        /// The key.
        list: String,
        /// What it holds.
        holds: String,
    },
}

impl Queue {
    /// Does all that belongs to the finish, and lets go of the claim.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn finish(&mut self, claim: &Claim, finish: &Finish<'_>) -> Result<Finished, QueueError> {
        let (finished, _) = self.finish_asking(claim, finish, None)?;
        Ok(finished)
    }

    /// Does what [`Queue::finish`] does, then what [`Queue::claim`] does, in one step.
    ///
    /// There is no second answer if the claim that was to be finished is still held.
    ///
    /// # Errors
    /// The finish may have been done, and the next entry claimed, or not.
    pub fn finish_and_claim(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: &[ListName],
    ) -> Result<(Finished, Option<Result<Claimed, QueueError>>), QueueError> {
        if self.is_usual(claim, finish) {
            let call = self.shared_call(claim, finish, lists);
            let answer = self.send(LaneScript::FinishAndClaimMany, LaneRequest::Shared(call))?;
            let (answer, document) =
                pair(answer).ok_or_else(|| self.noting(QueueError::Answer("finishing several vCons")))?;
            if let Some((finished, next)) = outcome_of_many(answer).map_err(|error| self.noting(error))? {
                let next = next.map(|next| self.claimed_by_many(next, document, lists));
                return Ok((finished, next));
            }
        }
        let (finished, next) = self.finish_asking(claim, finish, Some(lists))?;
        let claimed = next.map(|answer| match answer.extract_error() {
            Ok(answer) => self.claimed(answer, LaneScript::Claim, lists),
            Err(error) => Err(self.noting(error.into())),
        });
        Ok((finished, claimed))
    }

    /// Whether `turn.lua` can do it.
    fn is_usual(&self, claim: &Claim, finish: &Finish<'_>) -> bool {
        let is_small =
            |document: Replacement<'_>| document.kind == Kind::Text && !document.is_large();
        self.is_usual
            && !claim.is_noted
            && claim.context.is_empty()
            && claim.id().as_ref() == Some(finish.id)
            && finish.expire.is_none()
            && finish.routes.is_empty()
            && finish.letters.is_empty()
            && finish.document.is_none_or(is_small)
    }

    /// The request to finish in the usual way, and to take the next entry.
    fn shared_call(&mut self, claim: &Claim, finish: &Finish<'_>, lists: &[ListName]) -> SharedCall {
        let since = self.next_time();
        let (lane, lease) = (&self.lane_keys, &self.lease);
        let mut head = Arguments::default();
        head.arg(lane.claims.as_bytes()).arg(lane.lease.as_bytes());
        head.arg(lane.taken.as_bytes());
        for list in lists.iter().chain(finish.egress) {
            head.arg(list.as_str().as_bytes());
        }
        head.arg(lease.record.as_bytes());
        head.arg(self.expiry.document.to_string().as_bytes());
        head.arg(lease.mark.as_bytes());
        head.arg(lists.len().to_string().as_bytes());
        for list in lists {
            // A string is always JSON.
            head.arg(&serde_json::to_vec(list.as_str()).unwrap_or_default());
        }
        let mut own = Arguments::default();
        own.arg(self.seat.lane.to_string().as_bytes());
        own.arg(since.as_bytes()).arg(&claim.token);
        own.arg(finish.id.as_str().as_bytes());
        match finish.document {
            None => own.arg(b"no"),
            Some(Replacement { base, text, .. }) => match text {
                None => own.arg(b"is").arg(base.as_bytes()),
                Some(text) => own.arg(b"put").arg(base.as_bytes()).arg(text.as_bytes()),
            },
        };
        SharedCall {
            command: "EVALSHA",
            script: self.scripts.step(LaneScript::FinishAndClaimMany).hash().to_owned(),
            keys: 3 + lists.len() + finish.egress.len(),
            head,
            own,
            behind: self.can_sort.then(|| lane.get_taken.clone()),
        }
    }

    /// The outcome of the finish, and the answer to the request for the next entry.
    fn finish_asking(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
    ) -> Result<(Finished, Option<Value>), QueueError> {
        if let Some(document) = finish.document.filter(Replacement::is_large) {
            return self.finish_large(claim, finish, document, lists);
        }
        let (step, call) = self.finish_call(claim, finish, lists);
        let answer = self.ask(step, &call)?;
        match finish.document {
            Some(document) if is_large(&answer) => {
                self.finish_large(claim, finish, document, lists)
            }
            _ => outcome(answer).map_err(|error| self.noting(error)),
        }
    }

    /// The same with a document that is too large for the script interpreter.
    fn finish_large(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        document: Replacement<'_>,
        lists: Option<&[ListName]>,
    ) -> Result<(Finished, Option<Value>), QueueError> {
        let was_deleted = loop {
            let was_watched = self.watches(finish.id);
            match (self.compare(finish.id, document)?, document.text) {
                (Comparison::Changed, _) => return Ok((Finished::Changed, None)),
                (Comparison::Same, Some(text)) => {
                    match self.replace_large(claim, finish, document, text)? {
                        Some(answer) => {
                            return outcome(answer).map_err(|error| self.noting(error));
                        }
                        // A new time to live touches a key, too.
                        None if was_watched => {}
                        None => return Ok((Finished::Changed, None)),
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
        let (step, call) = self.finish_call(claim, &finish, lists);
        let answer = self.ask(step, &call)?;
        match outcome(answer).map_err(|error| self.noting(error))? {
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
        let step = match lists {
            Some(_) => LaneScript::FinishAndClaim,
            None => LaneScript::Finish,
        };
        let (how, base, text) = match finish.document {
            None => ("", "", ""),
            Some(Replacement { kind, base, text }) => (kind.word(), base, text.unwrap_or_default()),
        };
        let call = self.call_to_finish(step, claim, finish, lists, [how, base, text]);
        (step, call)
    }

    /// The call of `finish.lua`, alone or before `claim.lua`; `document` is how it is looked at, the
    /// text that must stand there, and the new one.
    fn call_to_finish(
        &mut self,
        step: LaneScript,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
        document: [&str; 3],
    ) -> Cmd {
        let egress = finish.egress.iter().map(|list| (list, finish.id));
        let routes = finish.routes.iter().map(|route| (&route.list, &route.id));
        let (pushes, ids): (Vec<&ListName>, Vec<&VconId>) = egress.chain(routes).unzip();
        let lists = lists.unwrap_or_default();
        let keys = 4 + lists.len() + pushes.len();
        let mut call = if document[0] == "draft" {
            // Within a transaction, a script that is missing cannot be sent again.
            self.scripts.step(step).in_full(keys)
        } else {
            self.call(step, keys)
        };
        self.add_claim(&mut call, lists, &pushes);
        call.arg(&claim.token).arg(&claim.entry);
        call.arg(claim.progress_field());
        call.arg(&claim.context).arg(self.expiry.context);
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
        call.arg(finish.letters.len());
        call.arg(self.expiry.dead_letter);
        for letter in finish.letters {
            call.arg(keys::storage_letters_list(&letter.storage));
            call.arg(keys::storage_letters_reasons(&letter.storage));
            call.arg(finish.id.as_str());
            call.arg(letter.reason.as_deref().unwrap_or_default());
        }
        call
    }

    /// Finishes with a large document, whose key is watched: `None` if it has changed since.
    fn replace_large(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        document: Replacement<'_>,
        text: &str,
    ) -> Result<Option<Value>, QueueError> {
        let draft = self.seat.draft_key();
        let how = ["draft", "", &draft];
        let call = self.call_to_finish(LaneScript::Finish, claim, finish, None, how);
        self.with(|connection, _, _, _| {
            let request = replacing(&draft, document.kind, text, &call);
            watched(request.send(connection)?)
        })
    }
}

/// What `turn.lua` returned for a lane, and what `SORT` got for it.
fn pair(answer: Value) -> Option<(Value, Value)> {
    let Value::Array(values) = answer else {
        return None;
    };
    let [answer, document] = <[Value; 2]>::try_from(values).ok()?;
    Some((answer, document))
}

/// What `turn.lua` returned for a lane; `None` if it has left that to the other scripts.
fn outcome_of_many(answer: Value) -> Result<Option<(Finished, Option<Value>)>, QueueError> {
    let is_unusual = |first: &Value| matches!(first, Value::BulkString(it) if it == b"unusual");
    match &answer {
        Value::Array(fields) if fields.first().is_some_and(is_unusual) => Ok(None),
        _ => outcome(answer).map(Some),
    }
}

/// Whether `finish.lua` has left a document to the client that is too large for it.
fn is_large(answer: &Value) -> bool {
    let Value::Array(fields) = answer else {
        return false;
    };
    matches!(fields.first(), Some(Value::BulkString(what)) if what == b"large")
}

/// What `finish.lua` returned, and what `claim.lua` returned behind it.
fn outcome(answer: Value) -> Result<(Finished, Option<Value>), QueueError> {
    let Value::Array(fields) = answer.extract_error()? else {
        return Err(QueueError::Answer("a finish"));
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
                _ => Err(QueueError::Answer("a finish")),
            }
        }
        _ => Err(QueueError::Answer("a finish")),
    }
}
