//! How a claim ends before its vCon is finished: released, postponed, or dead-lettered.
//!
//! ```text
//!        release   ──► head of the list      the lane drains, or holds: anyone may claim it at once
//! claim ─postpone  ──► tail of the list      a reachable backend fails for it: another round later
//!        dead_letter ► dead letter queue     it failed for good
//! ```
//!
//! Each records how far the vCon has come, so that its next claim goes on from there. Counts rounds of
//! failed attempts; the lane decides what they mean.

use std::time::Duration;

use redis::Value;
use serde::Serialize;

use super::requests::{Call, round_trip};
use super::{Claim, Queue, QueueError, dead_letter_list, dead_letter_reasons, keys, now};
use crate::config::ListName;
use crate::redis_server::Connection;
use crate::vcon::VconId;

/// A longer document is not compared with what stands under its key; the same number stands in
/// `progress.lua`.
const LONGEST_COMPARED: usize = 1 << 20;

/// Why an entry is a dead letter, as Redis stores it beside the queue.
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
pub struct ProgressRecord {
    /// The vCon whose document holds the work of the links: the claimed one, or the one that a link
    /// returned in its place. The progress is void once another document stands under its key.
    pub id: VconId,
    /// What the lane records, as text on one line.
    pub text: String,
    /// The document as the lane knows it; `None` if it has been deleted.
    pub document: Option<String>,
}

impl ProgressRecord {
    /// No progress: the next claim of the vCon begins anew, whatever Redis holds.
    pub fn void(id: VconId) -> Self {
        Self {
            id,
            text: "!".to_owned(),
            document: None,
        }
    }
}

/// What a round of failed attempts says about its vCon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// How long before the failure the backend worked for another vCon; `None` if it did not, or if that
    /// does not count.
    pub worked: Option<Duration>,
    /// Rounds are too many only after the backend has failed for this vCon for at least this time.
    pub least: Duration,
    /// The vCon is given up once the backend has failed for it alone for this time; `None` if the backend
    /// fails for all others as well.
    pub longest: Option<Duration>,
    /// How long ago the failure was.
    pub since: Duration,
}

impl Evidence {
    /// A round that says nothing about the vCon.
    pub const NONE: Self = Self {
        worked: None,
        least: Duration::ZERO,
        longest: None,
        since: Duration::ZERO,
    };
}

/// Whether a call ended the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It did.
    Done,
    /// The lane no longer held the claim: an earlier call whose reply was lost ended it, or somebody who
    /// took this daemon for dead returned it.
    NotOurs,
    /// The lane still holds the claim: the key of the list holds another type. Names the key and the type.
    Refused(String),
    /// The lane still holds the claim: it has been postponed for this number of rounds, which is enough.
    Spent(u32),
    /// The lane still holds the claim: another document stands there than the progress was made with.
    Changed,
    /// The lane still holds the claim: the entry was a dead letter just before, this number of times in a
    /// row, and somebody put it back at once. It becomes a dead letter after a wait.
    Again(u32),
}

/// Records of rounds and of progress expire this many seconds after the last one.
pub(super) const RECORDS_EXPIRY: u64 = 604_800;

impl Queue {
    /// Moves the entry to the dead letter queue of its list, with the reason. A `progress` replaces the
    /// recorded one.
    pub fn dead_letter(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&ProgressRecord>,
    ) -> Result<Released, QueueError> {
        self.dead_letter_by(claim, reason, progress, true)
    }

    /// Like [`Queue::dead_letter`], but returns [`Released::Again`] if the entry was a dead letter just
    /// before.
    pub fn dead_letter_unless_again(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&ProgressRecord>,
    ) -> Result<Released, QueueError> {
        self.dead_letter_by(claim, reason, progress, false)
    }

    fn dead_letter_by(
        &mut self,
        claim: &Claim,
        reason: &Reason<'_>,
        progress: Option<&ProgressRecord>,
        at_once: bool,
    ) -> Result<Released, QueueError> {
        let json = reason.to_json()?;
        let key = claim.id().map(|id| id.key());
        self.with(|connection, scripts, lane_id, expiry| {
            let mut call = scripts.dead_letter.key(lane_id.claims_key());
            call.key(keys::DEATHS);
            call.key(dead_letter_list(&claim.list))
                .key(dead_letter_reasons(&claim.list));
            call.arg(lane_id.lane)
                .arg(&claim.token)
                .arg(&claim.entry)
                .arg(json);
            call.arg(key.unwrap_or_default()).arg(expiry.dead_letter);
            add_progress(&mut call, claim, progress);
            call.arg(RECORDS_EXPIRY).arg(u8::from(at_once));
            released(call.invoke::<Value>(connection)?)
        })
    }

    /// Puts the entry at the tail of its list, because a reachable backend has failed for it in all attempts
    /// at `stage`. Counts the rounds that say something about the vCon. After `most_rounds` (0: no limit)
    /// the claim is kept instead: [`Released::Spent`].
    pub fn postpone(
        &mut self,
        claim: &Claim,
        evidence: &Evidence,
        most_rounds: u32,
        stage: &str,
        progress: Option<&ProgressRecord>,
    ) -> Result<Released, QueueError> {
        let seconds = |time: Option<Duration>| {
            time.map_or(String::new(), |time| time.as_secs_f64().to_string())
        };
        self.with(|connection, scripts, lane_id, expiry| {
            let mut call = scripts.postpone.key(lane_id.claims_key());
            call.key(keys::ROUNDS).key(claim.list.as_str());
            call.arg(lane_id.lane).arg(&claim.token).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(most_rounds).arg(seconds(evidence.worked));
            call.arg(RECORDS_EXPIRY).arg(expiry.document).arg(stage);
            add_progress(&mut call, claim, progress);
            call.arg(evidence.least.as_secs_f64());
            call.arg(seconds(evidence.longest));
            call.arg(evidence.since.as_secs_f64());
            released(call.invoke::<Value>(connection)?)
        })
    }

    /// Puts a dead letter of the list back at the list's tail, as if it had been postponed because of
    /// `stage`: it was not the reason of the failure. Returns whether it was still a dead letter.
    pub fn undo_dead_letter(
        &mut self,
        list: &ListName,
        entry: &[u8],
        stage: &str,
    ) -> Result<bool, QueueError> {
        self.with(|connection, scripts, _, expiry| {
            let mut call = scripts.retry_dead_letters.key(dead_letter_list(list));
            call.key(dead_letter_reasons(list)).key(list.as_str());
            call.key(keys::DEATHS).key(keys::ROUNDS).key(keys::LAPSES);
            call.arg(1).arg(expiry.document).arg(entry);
            call.arg(stage).arg(RECORDS_EXPIRY);
            Ok(call.invoke::<Value>(connection)? == Value::Int(1))
        })
    }

    /// Turns a dead letter of the storage into backlog, likewise. Returns whether it was a dead letter.
    pub fn undo_storage_dead_letter(
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
            // Without this record, other workers find out for themselves.
            if let Err(error) = record_round(connection, entry, stage) {
                log::debug!("could not record that {id} waits for {stage}: {error}");
            }
            Ok(true)
        })
    }

    /// How long ago any worker last postponed the entry because of `stage`; `None` if none did, or one has
    /// postponed it because of another stage since.
    pub fn postponed(&mut self, entry: &[u8], stage: &str) -> Result<Option<Duration>, QueueError> {
        self.with(|connection, _, _, _| {
            let Some((at, _)) = rounds_of(connection, entry, stage)? else {
                return Ok(None);
            };
            Ok(Duration::try_from_secs_f64(now(connection)? - at).ok())
        })
    }

    /// How often in a row the entry was postponed because of `stage`, in rounds that count.
    pub fn rounds(&mut self, entry: &[u8], stage: &str) -> Result<u32, QueueError> {
        self.with(|connection, _, _, _| {
            let known = rounds_of(connection, entry, stage)?;
            Ok(known.map_or(0, |(_, rounds)| rounds))
        })
    }

    /// Whether anything waits in one of these lists, or in the backlog of one of these queues of storages.
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
                lengths.cmd("HLEN").arg(keys::reasons_of_queue(queue));
            }
            let replies = round_trip(connection, &lengths)?.into_iter();
            // Nothing waits in a key of another type.
            let mut counts =
                replies.map(|reply| redis::from_redis_value::<u64>(reply).unwrap_or(0));
            let waits = counts.by_ref().take(lists.len()).any(|length| length > 0);
            let letters: Vec<u64> = counts.collect();
            let (all, dead) = letters.split_at(letters.len() - backlogs.len().min(letters.len()));
            Ok(waits || all.iter().zip(dead).any(|(all, dead)| all > dead))
        })
    }

    /// Puts the entry back at the head of its list, for anyone to claim. A `progress` replaces the recorded
    /// one.
    pub fn release(
        &mut self,
        claim: &Claim,
        progress: Option<&ProgressRecord>,
    ) -> Result<Released, QueueError> {
        self.with(|connection, scripts, lane_id, expiry| {
            let mut call = scripts.release.key(lane_id.claims_key());
            call.key(claim.list.as_str());
            call.arg(lane_id.lane).arg(&claim.token).arg(&claim.entry);
            call.arg(&claim.context).arg(expiry.context);
            call.arg(expiry.document);
            add_progress(&mut call, claim, progress);
            call.arg(RECORDS_EXPIRY);
            released(call.invoke::<Value>(connection)?)
        })
    }
}

impl Reason<'_> {
    /// As JSON.
    pub(super) fn to_json(&self) -> Result<String, QueueError> {
        serde_json::to_string(self).map_err(|_| QueueError::UnexpectedReply("a reason"))
    }
}

/// Records a first round of failed attempts at a stage, as `postpone` does.
fn record_round(connection: &mut Connection, entry: &[u8], stage: &str) -> Result<(), QueueError> {
    let record = format!("1 {:.6} 0.0 1 {stage}", now(connection)?);
    let mut set = redis::cmd("HSET");
    set.arg(keys::ROUNDS).arg(entry).arg(record);
    set.query::<()>(connection)?;
    let mut expire = redis::cmd("EXPIRE");
    Ok(expire
        .arg(keys::ROUNDS)
        .arg(RECORDS_EXPIRY)
        .query(connection)?)
}

/// When the entry was last postponed because of `stage`, and how often in a row; `None` if it was not, or
/// has been postponed because of another stage since.
fn rounds_of(
    connection: &mut Connection,
    entry: &[u8],
    stage: &str,
) -> Result<Option<(f64, u32)>, QueueError> {
    let mut get = redis::cmd("HGET");
    get.arg(keys::ROUNDS).arg(entry);
    let record = get.query::<Option<String>>(connection)?;
    Ok(record.and_then(|record| parse_rounds(&record, stage)))
}

fn parse_rounds(record: &str, stage: &str) -> Option<(f64, u32)> {
    let mut words = record.splitn(5, ' ');
    let at = words.nth(1)?.parse().ok()?;
    let rounds = words.nth(1)?.parse().ok()?;
    (words.next() == Some(stage)).then_some((at, rounds))
}

fn add_progress(call: &mut Call<'_>, claim: &Claim, progress: Option<&ProgressRecord>) {
    call.arg(claim.progress_field());
    call.arg(
        progress
            .map(|progress| progress.id.key())
            .unwrap_or_default(),
    );
    call.arg(progress.map_or("", |progress| &progress.text));
    let document = progress.and_then(|progress| progress.document.as_deref());
    call.arg(match document {
        // The script does not compare long documents; a shorter one differs.
        Some(text) if text.len() > LONGEST_COMPARED => "?",
        text => text.unwrap_or_default(),
    });
    call.arg(claim.progress.as_deref().unwrap_or_default());
}

/// Reads the reply of a script that ends a claim.
fn released(reply: Value) -> Result<Released, QueueError> {
    match reply {
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
        _ => Err(QueueError::UnexpectedReply("letting go of a claim")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rounds_count_for_the_stage_that_their_record_names() {
        let record = "2 1700000000.250000 61.500000 7 storage pg 1";
        let known = Some((1_700_000_000.25, 7));
        assert_eq!(parse_rounds(record, "storage pg 1"), known);
        assert_eq!(parse_rounds(record, "storage pg"), None);
        for other in ["", "1 2", "1 1700000000.5 storage pg", "x y z 1 storage pg"] {
            assert_eq!(parse_rounds(other, "storage pg"), None, "{other}");
        }
    }

    #[test]
    fn what_a_script_returns_says_what_became_of_the_claim() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        for (reply, expected) in [
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
            assert_eq!(released(reply).unwrap(), expected);
        }
        for reply in [Value::Nil, Value::Int(2)] {
            assert!(released(reply).is_err());
        }
    }
}
