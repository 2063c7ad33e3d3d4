//! When each link and storage last did its work, as all lanes of a worker have seen it.
//!
//! This tells a backend that refuses everything from one that refuses a certain vCon.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::Stage;
use crate::failure::Failure;

/// Failed attempts at one stage are told at most so often.
const PAUSE: Duration = Duration::from_secs(10);

/// What is known of each link and storage.
#[derive(Default)]
pub(super) struct Health {
    stages: Mutex<HashMap<Stage, Record>>,
}

#[derive(Default)]
struct Record {
    worked: Option<Instant>,
    failing: bool,
    /// When a failed attempt was last told.
    told: Option<Instant>,
}

impl Health {
    /// It has done its work.
    pub fn note_success(&self, stage: Stage) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.entry(stage.clone()).or_default();
        record.worked = Some(Instant::now());
        if std::mem::take(&mut record.failing) {
            log::info!("{stage} works again");
        }
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

    /// It answers, but has failed in all attempts for one vCon. Answers whether it did its work
    /// the last time before that.
    pub fn note_failure(&self, stage: &Stage) -> bool {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stages.entry(stage.clone()).or_default();
        !std::mem::replace(&mut record.failing, true)
    }

    /// How long ago all of these have done their work; nothing where one of them never has.
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
        health.note_success(a.clone());
        assert!(health.since_success(std::slice::from_ref(&a)).is_some());
        assert_eq!(health.since_success(&[a.clone(), b.clone()]), None);
        health.note_success(b.clone());
        let oldest = health.since_success(std::slice::from_ref(&a));
        assert!(health.since_success(&[a, b]) >= oldest);
    }

    #[test]
    fn only_the_first_failure_after_a_success_is_news() {
        let health = Health::default();
        let stage = Stage::Link("l".to_owned());
        let news = |_| health.note_failure(&stage);
        assert_eq!([(), (), ()].map(news), [true, false, false]);
        health.note_success(stage.clone());
        assert!(health.note_failure(&stage));
    }
}
