//! Finishing a vCon: its new document, its announcements, and letting go of its claim, in one
//! transaction; and asking for the next vCon in the same round trip.
//!
//! The requests go out one behind the other, and the server answers them in that order. Each is
//! guarded as it is alone: where the finish was not done, the lane still holds its claim, and the
//! second request hands over that one.

use std::sync::Arc;

use redis::{Connection, Pipeline, Value};

use super::claim::{Claimed, claim_call};
use super::round_trip::{Request, executed};
use super::scripts::is_missing;
use super::settle::settled;
use super::{Claim, Expiry, Kind, Queue, QueueError, Seat, Settled, keys};
use crate::config::ListName;
use crate::vcon::VconId;

/// A draft that its lane did not live to use is forgotten after this many seconds.
const DRAFT_EXPIRY: u64 = 60;

/// What is to be written when a vCon is finished.
#[derive(Debug, Clone)]
pub struct Finish<'a> {
    /// The vCon to announce: the claimed one, or the one a link went over to.
    pub id: &'a VconId,
    /// Its new text and how it is kept, where a link changed it.
    pub document: Option<(Kind, &'a str)>,
    /// A time to live for its key, in seconds.
    pub expire: Option<u64>,
    /// Where to announce it.
    pub egress: &'a [ListName],
    /// What links want announced besides.
    pub routes: &'a [Route],
}

/// A vCon and a list on which to announce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The list.
    pub list: ListName,
    /// The vCon: the claimed one, or one that a link went over to or has left.
    pub id: VconId,
}

impl Queue {
    /// Writes the changed document, announces the vCon and lets go of the claim, in one
    /// transaction.
    pub fn finish(&mut self, claim: &Claim, finish: &Finish<'_>) -> Result<Settled, QueueError> {
        let (settled, _) = self.finish_asking(claim, finish, None)?;
        Ok(settled)
    }

    /// Does what [`Queue::finish`] does, then what [`Queue::claim`] does, in one round trip.
    ///
    /// There is no second answer where the claim that was to be finished is still held.
    ///
    /// # Errors
    /// The finish may have been done, and the next entry claimed, or not.
    pub fn finish_and_claim(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: &[ListName],
    ) -> Result<(Settled, Option<Result<Claimed, QueueError>>), QueueError> {
        let (settled, answer) = self.finish_asking(claim, finish, Some(lists))?;
        let next = match settled {
            Settled::Done | Settled::NotOurs => answer,
            Settled::Refused(_) => None,
        };
        let claimed = match next.map(Value::extract_error) {
            None => None,
            Some(Ok(answer)) => Some(self.claimed(answer, lists)),
            Some(Err(error)) if is_missing(&error) => None,
            Some(Err(error)) => Some(Err(self.noting(error.into()))),
        };
        Ok((settled, claimed))
    }

    /// The answer to the finish, and to the request for the next entry where there was one.
    fn finish_asking(
        &mut self,
        claim: &Claim,
        finish: &Finish<'_>,
        lists: Option<&[ListName]>,
    ) -> Result<(Settled, Option<Value>), QueueError> {
        let lease = Arc::clone(&self.lease);
        self.with(|connection, scripts, seat, expiry| {
            let call = finish_call(&scripts.finish, seat, expiry, claim, finish);
            let mut request = match finish.document {
                Some((kind, text)) => replacing(&seat.draft_key(), kind, text, &call),
                None => Request::of(&script(&call)),
            };
            let own = request.answers();
            if let Some(lists) = lists {
                request.add(&script(&claim_call(scripts, seat, expiry, &lease, lists)));
            }
            let mut answers = request.send(connection)?;
            let mut next = answers.split_off(own).pop();
            let mut finished = outcome(answers, finish)?;
            if finished.as_ref().is_err_and(is_missing) {
                // Then the claim was still held when the next was asked for.
                next = None;
                scripts.finish.load(connection)?;
                finished = again(connection, seat, &call, finish)?;
            }
            Ok((settled(finished?)?, next))
        })
    }
}

fn again(
    connection: &mut Connection,
    seat: &Seat,
    call: &redis::ScriptInvocation<'_>,
    finish: &Finish<'_>,
) -> Result<redis::RedisResult<Value>, QueueError> {
    let request = match finish.document {
        Some((kind, text)) => replacing(&seat.draft_key(), kind, text, call),
        None => Request::of(&script(call)),
    };
    outcome(request.send(connection)?, finish)
}

/// What the script answered. Fails where the document was not written; what the script is refused
/// has nothing to do with the document.
fn outcome(
    mut answers: Vec<Value>,
    finish: &Finish<'_>,
) -> Result<redis::RedisResult<Value>, QueueError> {
    if finish.document.is_none() {
        return Ok(answers.pop().unwrap_or(Value::Nil).extract_error());
    }
    let mut answers = executed(answers).map_err(QueueError::of_write)?;
    let announced = answers.pop().unwrap_or(Value::Nil);
    for written in answers {
        written.extract_error().map_err(QueueError::of_write)?;
    }
    Ok(announced.extract_error())
}

fn finish_call<'a>(
    script: &'a redis::Script,
    seat: &Seat,
    expiry: Expiry,
    claim: &Claim,
    finish: &Finish<'_>,
) -> redis::ScriptInvocation<'a> {
    let mut call = script.key(seat.claims_key());
    call.key(keys::DEATHS)
        .key(finish.id.key())
        .key(seat.draft_key());
    let egress = finish.egress.iter().map(|list| (list, finish.id));
    let routes = finish.routes.iter().map(|route| (&route.list, &route.id));
    let announced: Vec<(&ListName, &VconId)> = egress.chain(routes).collect();
    for (list, _) in &announced {
        call.key(list.as_str());
    }
    call.arg(seat.lane).arg(&claim.record);
    call.arg(&claim.entry)
        .arg(&claim.context)
        .arg(expiry.context);
    call.arg(u8::from(finish.document.is_some()));
    let expire = finish.expire.map(|seconds| seconds.to_string());
    call.arg(expire.unwrap_or_default());
    call.arg(expiry.document);
    for (_, id) in &announced {
        call.arg(id.as_str());
    }
    call
}

fn script(call: &redis::ScriptInvocation<'_>) -> Pipeline {
    let mut steps = redis::pipe();
    steps.invoke_script(call);
    steps
}

/// The transaction that writes the draft and has the script put it in its place.
fn replacing<'a>(
    draft: &str,
    kind: Kind,
    text: &'a str,
    call: &redis::ScriptInvocation<'_>,
) -> Request<'a> {
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
    end.invoke_script(call);
    end.cmd("EXEC");
    request.add(&end);
    request
}
