//! Letting go of a claim that is not finished: released, postponed or dead-lettered. How far its vCon
//! has come is kept for its next claim.

use std::time::Duration;

use redis::{Connection, Value};
use serde::Serialize;

use super::claim::INLINE_LIMIT;
use super::requests::{Call, round_trip};
use super::{Claim, Queue, QueueError, dead_letter_list, dead_letter_reasons, keys, now};
use crate::config::ListName;
use crate::vcon::VconId;

/// Why an entry is a dead letter, as it is kept beside the queue.
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

/// How far a vCon has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The vCon whose document has what the links have done: the claimed one, or the one a link went
    /// over to. Once that document is another one, the progress is void.
    pub id: VconId,
    /// What the lane says of it, as text on one line.
    pub text: String,
    /// The document that has it, as far as the lane knows; `None` if that has been deleted.
    pub document: Option<String>,
}

impl Progress {
    /// Nothing: the next claim of the vCon begins anew, whatever is kept of it.
    pub fn void(id: VconId) -> Self {
        Self {
            id,
            text: "!".to_owned(),
            document: None,
        }
    }
}

/// What a round of failed attempts says of its vCon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// How long before the failure the backend did its work for another vCon; `None` if it did not, or
    /// that says nothing.
    pub worked: Option<Duration>,
    /// How long it must have failed for this vCon, besides, until such rounds are too many.
    pub least: Duration,
    /// How long it must have failed for this vCon alone, until that is too long; `None` if all
    /// others fail as well.
    pub longest: Option<Duration>,
    /// How long ago the failure was.
    pub since: Duration,
}

impl Evidence {
    /// Nothing.
    pub const NONE: Self = Self {
        worked: None,
        least: Duration::ZERO,
        longest: None,
        since: Duration::ZERO,
    };
}

/// Whether a claim was let go by this call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It was.
    Done,
    /// It was gone already: let go by an earlier call whose answer was lost, or returned by
    /// somebody who took us for dead.
    NotOurs,
    /// It is still held: the key that is to take the UUID is no list. Says which, and what it is.
    Refused(String),
    /// It is still held: it has been postponed often enough. These are the rounds.
    Spent(u32),
    /// It is still held: another document stands there than the progress was made with.
    Changed,
    /// It is still held: it has been a dead letter just before, so many times in a row, and somebody has
    /// put it back at once. It goes there after a wait.
    Again(u32),
}

/// What is kept of rounds and of progress is forgotten after this many seconds without anything new.
pub(super) const NOTES_EXPIRY: u64 = 604_800;

impl Queue {
    /// Moves the entry to the dead letter queue of its list, with the reason. `progress`, if any,
    /// takes the place of what was kept of it.
    pub fn dead_letter(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&Progress>,
    ) -> Result<Released, QueueError> {
        self.dead_letter_by(claim, reason, progress, true)
    }

    /// Does what [`Queue::dead_letter`] does, unless the entry was a dead letter just before: that is
    /// [`Released::Again`].
    pub fn dead_letter_unless_again(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&Progress>,
    ) -> Result<Released, QueueError> {
        self.dead_letter_by(claim, reason, progress, false)
    }

    fn dead_letter_by(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&Progress>,
        at_once: bool,
    ) -> Result<Released, QueueError> {
        let json = reason.to_json()?;
        let key = claim.id().map(|id| id.key());
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.dead_letter.key(seat.claims_key());
            call.key(keys::DEATHS);
            call.key(dead_letter_list(&claim.list))
                .key(dead_letter_reasons(&claim.list));
            call.arg(seat.lane)
                .arg(&claim.token)
                .arg(&claim.entry)
                .arg(json);
            call.arg(key.unwrap_or_default()).arg(expiry.dead_letter);
            add_progress(&mut call, claim, progress);
            call.arg(NOTES_EXPIRY).arg(u8::from(at_once));
            released(call.invoke::<Value>(connection)?)
        })
    }

    /// Puts the entry at the end of its list, because a backend that is reachable has failed for it
    /// in all attempts at `stage`. Counts such rounds, as far as they say something of the vCon; the last
    /// of `most_rounds` (0: without limit) is not postponed.
    pub fn postpone(
        &mut self,
        claim: &Claim,
        evidence: &Evidence,
        most_rounds: u32,
        stage: &str,
        progress: Option<&Progress>,
    ) -> Result<Released, QueueError> {
        let seconds = |time: Option<Duration>| {
            time.map_or(String::new(), |time| time.as_secs_f64().to_string())
        };
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.postpone.key(seat.claims_key());
            call.key(keys::TRIES).key(claim.list.as_str());
            call.arg(seat.lane).arg(&claim.token).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(most_rounds).arg(seconds(evidence.worked));
            call.arg(NOTES_EXPIRY).arg(expiry.document).arg(stage);
            add_progress(&mut call, claim, progress);
            call.arg(evidence.least.as_secs_f64());
            call.arg(seconds(evidence.longest));
            call.arg(evidence.since.as_secs_f64());
            released(call.invoke::<Value>(connection)?)
        })
    }

    /// Puts a dead letter of the list back at its end, as if it had been postponed because of `stage`:
    /// what it failed for was not its own fault. Returns whether it was still there.
    pub fn take_back(
        &mut self,
        list: &ListName,
        entry: &[u8],
        stage: &str,
    ) -> Result<bool, QueueError> {
        self.with(|connection, scripts, _, expiry| {
            let mut call = scripts.retry.key(dead_letter_list(list));
            call.key(dead_letter_reasons(list)).key(list.as_str());
            call.key(keys::DEATHS).key(keys::TRIES).key(keys::LAPSES);
            call.arg(1).arg(expiry.document).arg(entry);
            call.arg(stage).arg(NOTES_EXPIRY);
            Ok(call.invoke::<Value>(connection)? == Value::Int(1))
        })
    }

    /// Has a dead letter of the storage wait in its queue, likewise. Returns whether it was one.
    pub fn wait_again(
        &mut self,
        storage: &str,
        id: &VconId,
        stage: &str,
    ) -> Result<bool, QueueError> {
        let reasons = keys::storage_letters_reasons(storage);
        let entry = id.as_str().as_bytes();
        self.with(|connection, _, _, _| {
            let mut forget = redis::cmd("HDEL");
            forget.arg(reasons).arg(entry);
            if forget.query::<u64>(connection)? == 0 {
                return Ok(false);
            }
            // Only a note: without it, other workers find out for themselves.
            if let Err(error) = note_round(connection, entry, stage) {
                log::debug!("it is not noted that {id} waits for {stage}: {error}");
            }
            Ok(true)
        })
    }

    /// How long ago the entry was last postponed because of `stage`, by whichever worker; `None` if
    /// it was not, or because of another one since.
    pub fn postponed(&mut self, entry: &[u8], stage: &str) -> Result<Option<Duration>, QueueError> {
        self.with(|connection, _, _, _| {
            let Some((at, _)) = note_of(connection, entry, stage)? else {
                return Ok(None);
            };
            Ok(Duration::try_from_secs_f64(now(connection)? - at).ok())
        })
    }

    /// How often in a row the entry was postponed because of `stage`, as far as that counts.
    pub fn rounds(&mut self, entry: &[u8], stage: &str) -> Result<u32, QueueError> {
        self.with(|connection, _, _, _| {
            let note = note_of(connection, entry, stage)?;
            Ok(note.map_or(0, |(_, rounds)| rounds))
        })
    }

    /// Whether anything waits in one of these lists, or in one of these queues of storages: there, dead
    /// letters do not count.
    pub fn has_work(
        &mut self,
        lists: &[ListName],
        backlogs: &[ListName],
    ) -> Result<bool, QueueError> {
        let names = || lists.iter().chain(backlogs).map(ListName::as_str);
        if names().next().is_none() {
            return Ok(false);
        }
        self.with(|connection, _, _, _| {
            let mut exists = redis::cmd("EXISTS");
            names().for_each(|list| {
                exists.arg(list);
            });
            if exists.query::<u64>(connection)? == 0 {
                return Ok(false);
            }
            let mut lengths = redis::pipe();
            for list in names() {
                lengths.cmd("LLEN").arg(list);
            }
            for queue in backlogs {
                lengths.cmd("HLEN").arg(keys::reasons_of_letters(queue));
            }
            let answers = round_trip(connection, &lengths)?.into_iter();
            // What is no list has nothing.
            let mut counts =
                answers.map(|answer| redis::from_redis_value::<u64>(answer).unwrap_or(0));
            let waits = counts.by_ref().take(lists.len()).any(|length| length > 0);
            let letters: Vec<u64> = counts.collect();
            let (all, dead) = letters.split_at(letters.len() - backlogs.len().min(letters.len()));
            Ok(waits || all.iter().zip(dead).any(|(all, dead)| all > dead))
        })
    }

    /// Puts the entry back at the head of its list, to be taken by anyone. `progress`, if any, takes
    /// the place of what was kept of it.
    pub fn release(
        &mut self,
        claim: &Claim,
        progress: Option<&Progress>,
    ) -> Result<Released, QueueError> {
        self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts.release.key(seat.claims_key());
            call.key(claim.list.as_str());
            call.arg(seat.lane).arg(&claim.token).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(expiry.document);
            add_progress(&mut call, claim, progress);
            call.arg(NOTES_EXPIRY);
            released(call.invoke::<Value>(connection)?)
        })
    }
}

impl Reason<'_> {
    /// As JSON.
    pub(super) fn to_json(&self) -> Result<String, QueueError> {
        serde_json::to_string(self).map_err(|_| QueueError::Answer("a reason"))
    }
}

/// Notes a first round of failed attempts at a stage, as `postpone` does.
fn note_round(connection: &mut Connection, entry: &[u8], stage: &str) -> Result<(), QueueError> {
    let note = format!("1 {:.6} 0.0 1 {stage}", now(connection)?);
    let mut set = redis::cmd("HSET");
    set.arg(keys::TRIES).arg(entry).arg(note);
    set.query::<()>(connection)?;
    let mut expire = redis::cmd("EXPIRE");
    Ok(expire
        .arg(keys::TRIES)
        .arg(NOTES_EXPIRY)
        .query(connection)?)
}

/// When the entry was last postponed because of `stage`, and how often in a row; `None` if it was not, or
/// because of another one since.
fn note_of(
    connection: &mut Connection,
    entry: &[u8],
    stage: &str,
) -> Result<Option<(f64, u32)>, QueueError> {
    let mut get = redis::cmd("HGET");
    get.arg(keys::TRIES).arg(entry);
    let note = get.query::<Option<String>>(connection)?;
    Ok(note.and_then(|note| parse_note(&note, stage)))
}

fn parse_note(note: &str, stage: &str) -> Option<(f64, u32)> {
    let mut words = note.splitn(5, ' ');
    let at = words.nth(1)?.parse().ok()?;
    let rounds = words.nth(1)?.parse().ok()?;
    (words.next() == Some(stage)).then_some((at, rounds))
}

fn add_progress(call: &mut Call<'_>, claim: &Claim, progress: Option<&Progress>) {
    call.arg(claim.progress_field());
    call.arg(
        progress
            .map(|progress| progress.id.key())
            .unwrap_or_default(),
    );
    call.arg(progress.map_or("", |progress| &progress.text));
    let document = progress.and_then(|progress| progress.document.as_deref());
    call.arg(match document {
        // No other document of that length is told from it, and a shorter one is another one.
        Some(text) if text.len() > INLINE_LIMIT => "?",
        text => text.unwrap_or_default(),
    });
    call.arg(claim.progress.as_deref().unwrap_or_default());
}

/// What a script that lets go of a claim returns.
fn released(answer: Value) -> Result<Released, QueueError> {
    match answer {
        Value::Int(1) => Ok(Released::Done),
        Value::Int(0) => Ok(Released::NotOurs),
        Value::BulkString(why) => {
            let why = String::from_utf8_lossy(&why).into_owned();
            if why == "changed" {
                return Ok(Released::Changed);
            }
            let again = why.strip_prefix("again ").map(str::parse);
            Ok(match (again, why.parse()) {
                (Some(Ok(times)), _) => Released::Again(times),
                (_, Ok(rounds)) => Released::Spent(rounds),
                (_, Err(_)) => Released::Refused(why),
            })
        }
        _ => Err(QueueError::Answer("letting go of a claim")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_note_counts_for_the_stage_that_it_names() {
        let note = "2 1700000000.250000 61.500000 7 storage pg 1";
        let known = Some((1_700_000_000.25, 7));
        assert_eq!(parse_note(note, "storage pg 1"), known);
        assert_eq!(parse_note(note, "storage pg"), None);
        for other in ["", "1 2", "1 1700000000.5 storage pg", "x y z 1 storage pg"] {
            assert_eq!(parse_note(other, "storage pg"), None, "{other}");
        }
    }

    #[test]
    fn what_a_script_returns_says_what_became_of_the_claim() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        for (answer, expected) in [
            (Value::Int(1), Released::Done),
            (Value::Int(0), Released::NotOurs),
            (text("changed"), Released::Changed),
            (text("3"), Released::Spent(3)),
            (text("again 2"), Released::Again(2)),
            (
                text("again holds a set"),
                Released::Refused("again holds a set".to_owned()),
            ),
            (
                text("in holds a set"),
                Released::Refused("in holds a set".to_owned()),
            ),
        ] {
            assert_eq!(released(answer).unwrap(), expected);
        }
        for answer in [Value::Nil, Value::Int(2)] {
            assert!(released(answer).is_err());
        }
    }
}
