//! When each link and storage last did its work, as all lanes of a worker have seen it.
//!
//! This tells a backend that refuses everything from one that refuses a certain vCon.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::circuit_breaker::MOST_FAILURES;
use super::fault::Stage;
use super::refusals::{Blame, Letter, Refusals};
use crate::failure::Failure;
use crate::vcon::VconId;

/// Failed attempts at one stage are told at most so often.
const PAUSE: Duration = Duration::from_secs(10);

/// What a failure is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failing {
    /// Whether it did its work the last time before that.
    pub is_first: bool,
    /// For how many different vCons it has failed in a row; not counted beyond
    /// [`MOST_FAILURES`].
    pub in_a_row: usize,
}

/// What is known of each link and storage.
#[derive(Default)]
pub(super) struct Health {
    stages: Mutex<HashMap<Stage, Record>>,
}

#[derive(Default)]
struct Record {
    worked: Option<Instant>,
    /// Different vCons for which all attempts have failed since.
    failed: Vec<VconId>,
    /// When a failed attempt was last told.
    told: Option<Instant>,
    /// What it has refused since.
    refusals: Refusals,
}

impl Health {
    /// It has done its work. Returns whether it had failed before.
    pub fn note_success(&self, stage: &Stage) -> bool {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Some(Instant::now());
        let Some(record) = stages.get_mut(stage) else {
            let record = Record {
                worked: now,
                ..Record::default()
            };
            stages.insert(stage.clone(), record);
            return false;
        };
        record.worked = now;
        record.refusals.end();
        let has_failed = !record.failed.is_empty();
        if has_failed {
            record.failed.clear();
            log::info!("{stage} works again");
        }
        has_failed
    }

    /// An attempt has failed, and there will be another. Told now and then, as long as it goes on.
    pub fn note_attempt(&self, stage: &Stage, attempt: u32, failure: &Failure) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.entry(stage.clone()).or_default();
        let due = record.told.is_none_or(|told| told.elapsed() >= PAUSE);
        if due {
            record.told = Some(Instant::now());
        }
        drop(stages);
        let level = if due { Level::Info } else { Level::Debug };
        log::log!(level, "{stage} has failed in attempt {attempt}: {failure}");
    }

    /// It is reachable, but has failed in all attempts for this vCon.
    pub fn note_failure(&self, stage: &Stage, id: &VconId) -> Failing {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.entry(stage.clone()).or_default();
        let is_first = record.failed.is_empty();
        if record.failed.len() < MOST_FAILURES && !record.failed.contains(id) {
            record.failed.push(id.clone());
        }
        Failing {
            is_first,
            in_a_row: record.failed.len(),
        }
    }

    /// It has refused this vCon. If it is to blame itself, it has failed for all that it refused alike.
    pub fn judge(&self, stage: &Stage, id: &VconId, message: &str, was_refused: bool) -> Blame {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.entry(stage.clone()).or_default();
        let blame = record.refusals.judge(id, message, was_refused);
        if matches!(blame, Blame::Place { .. }) {
            for other in record.refusals.some_like(id) {
                if record.failed.len() < MOST_FAILURES && !record.failed.contains(other) {
                    record.failed.push(other.clone());
                }
            }
        }
        blame
    }

    /// A vCon that it has refused is a dead letter.
    pub fn note_letter(&self, stage: &Stage, id: &VconId, letter: Letter) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = stages.get_mut(stage) {
            record.refusals.note_letter(id, letter);
        }
    }

    /// The dead letters that were its own fault, as it turned out.
    pub fn take_letters(&self, stage: &Stage) -> Vec<Letter> {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.get_mut(stage);
        record.map_or_else(Vec::new, |record| record.refusals.take_letters())
    }

    /// One of these could not be brought back. Returns false if it is to blame after all.
    pub fn put_back_letter(&self, stage: &Stage, letter: Letter) -> bool {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.get_mut(stage);
        record.is_some_and(|record| record.refusals.put_back(letter))
    }

    /// How long ago all of these have done their work; nothing if one of them never has.
    pub fn since_success(&self, needed: &[Stage]) -> Option<Duration> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = |stage| stages.get(stage).and_then(|record| record.worked);
        let all: Option<Vec<Instant>> = needed.iter().map(worked).collect();
        all?.into_iter().min().map(|oldest| oldest.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_worked_longest_ago_counts_and_one_that_never_did() {
        let health = Health::default();
        let [a, b] = ["a", "b"].map(|name| Stage::Storage(name.to_owned()));
        health.note_success(&a);
        assert!(health.since_success(std::slice::from_ref(&a)).is_some());
        assert_eq!(health.since_success(&[a.clone(), b.clone()]), None);
        health.note_success(&b);
        let oldest = health.since_success(std::slice::from_ref(&a));
        assert!(health.since_success(&[a, b]) >= oldest);
    }

    #[test]
    fn a_stage_that_refuses_everything_has_failed_for_all_of_them() {
        let health = Health::default();
        let stage = Stage::Storage("s".to_owned());
        let ids = [(); 3].map(|()| VconId::random());
        let blames = [0, 1, 2].map(|number: usize| health.judge(&stage, &ids[number], "no", false));
        let news = Blame::Place { is_news: true };
        assert_eq!(blames, [Blame::VCon, Blame::VCon, news]);
        health.note_letter(
            &stage,
            &ids[0],
            Letter::OfStorage("s".to_owned(), ids[0].clone()),
        );
        assert_eq!(health.take_letters(&stage).len(), 1);
        assert_eq!(health.take_letters(&Stage::Link("l".to_owned())), []);
        assert_eq!(health.note_failure(&stage, &ids[2]).in_a_row, 3);
        assert!(health.note_success(&stage));
        assert_eq!(health.judge(&stage, &ids[2], "no", false), Blame::VCon);
        assert_eq!(health.note_failure(&stage, &ids[2]).in_a_row, 1);
    }

    #[test]
    fn different_vcons_in_a_row_count_and_a_success_ends_the_row() {
        let health = Health::default();
        let stage = Stage::Link("l".to_owned());
        let ids = [(); 5].map(|()| VconId::random());
        let fail = |id: &VconId| {
            let failing = health.note_failure(&stage, id);
            (failing.is_first, failing.in_a_row)
        };
        let rows = [0, 0, 1, 1, 2, 3, 4].map(|number| fail(&ids[number]));
        let expected = [
            (true, 1),
            (false, 1),
            (false, 2),
            (false, 2),
            (false, 3),
            (false, 3),
            (false, 3),
        ];
        assert_eq!(rows, expected);
        assert!(health.note_success(&stage));
        assert!(!health.note_success(&stage));
        assert_eq!(fail(&ids[0]), (true, 1));
    }
}
