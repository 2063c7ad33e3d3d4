//! Letting go of a claim that is not finished: given back, postponed or buried.

use std::time::Duration;

use redis::Value;
use serde::Serialize;

use super::{Claim, Queue, QueueError, dead_letter_list, dead_letter_reasons, keys};

/// Why an entry is buried, as it is kept beside the dead letter queue.
#[derive(Debug, Clone, Serialize)]
pub struct Reason<'a> {
    /// The step that failed: `queue`, `parse`, `link <name>`, `storage <name>`, `egress`.
    pub stage: &'a str,
    /// What went wrong.
    pub error: &'a str,
    /// How often that step was tried.
    pub attempts: u32,
    /// The worker that gave up.
    pub worker: &'a str,
}

/// Whether a claim was let go by this call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It was.
    Done,
    /// It was gone already: settled by an earlier call whose answer was lost, or recovered from
    /// us by someone who took us for dead.
    NotOurs,
    /// It is still held: a key that is to take the UUID is no list. Says which, and what it is.
    Refused(String),
}

/// Whether a claim was postponed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postponed {
    /// It is at the end of its list.
    Done,
    /// It was gone already, as in [`Settled::NotOurs`].
    NotOurs,
    /// It is still held: it has been postponed often enough. These are the rounds.
    Spent(u32),
}

/// The rounds of a vCon are forgotten after this many seconds without another one of any.
const TRIES_EXPIRY: u64 = 604_800;

impl Queue {
    /// Moves the entry to the dead letter queue of its list, with the reason.
    pub fn bury(&mut self, claim: &Claim, reason: &Reason<'_>) -> Result<Settled, QueueError> {
        let json = serde_json::to_string(reason).map_err(|_| QueueError::Answer("bury"))?;
        let key = claim.id().map(|id| id.key());
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.bury.key(seat.claims_key());
            call.key(keys::DEATHS);
            call.key(dead_letter_list(&claim.list))
                .key(dead_letter_reasons(&claim.list));
            call.arg(seat.lane)
                .arg(&claim.record)
                .arg(&claim.entry)
                .arg(json);
            call.arg(key.unwrap_or_default()).arg(expiry.dead_letter);
            settled(call.invoke::<Value>(connection)?)
        })
    }

    /// Puts the entry at the end of its list, because a backend that answers has failed for it in
    /// all attempts at `stage`; `worked` is the time since that backend last did its work, `None`
    /// where the failures say nothing of the vCon. Counts the rounds between which it has worked
    /// for others; the last of `most_rounds` (0: without limit) is not postponed.
    pub fn postpone(
        &mut self,
        claim: &Claim,
        worked: Option<Duration>,
        most_rounds: u32,
        stage: &str,
    ) -> Result<Postponed, QueueError> {
        let worked = worked.map_or(String::new(), |time| time.as_secs_f64().to_string());
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.postpone.key(seat.claims_key());
            call.key(keys::TRIES).key(claim.list.as_str());
            call.arg(seat.lane).arg(&claim.record).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(most_rounds).arg(worked).arg(TRIES_EXPIRY);
            call.arg(expiry.document).arg(stage);
            match call.invoke::<Value>(connection)? {
                Value::Int(1) => Ok(Postponed::Done),
                Value::Int(0) => Ok(Postponed::NotOurs),
                Value::BulkString(rounds) => {
                    let rounds = String::from_utf8_lossy(&rounds).parse();
                    Ok(Postponed::Spent(rounds.unwrap_or(most_rounds)))
                }
                _ => Err(QueueError::Answer("postponing a claim")),
            }
        })
    }

    /// Puts the entry back at the head of its list, to be taken by anyone.
    pub fn give_back(&mut self, claim: &Claim) -> Result<Settled, QueueError> {
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.give_back.key(seat.claims_key());
            call.key(claim.list.as_str());
            call.arg(seat.lane).arg(&claim.record).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(expiry.document);
            settled(call.invoke::<Value>(connection)?)
        })
    }
}

/// What a script that lets go of a claim answers.
pub(super) fn settled(answer: Value) -> Result<Settled, QueueError> {
    match answer {
        Value::Int(1) => Ok(Settled::Done),
        Value::Int(0) => Ok(Settled::NotOurs),
        Value::BulkString(why) => Ok(Settled::Refused(String::from_utf8_lossy(&why).into_owned())),
        _ => Err(QueueError::Answer("settling a claim")),
    }
}
