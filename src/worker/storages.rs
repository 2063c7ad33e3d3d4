//! The storages of a chain, each given the vCon until it has it, refuses it, or is to get it later.

use std::mem;
use std::sync::Arc;

use super::circuit_breaker::{defers, hold};
use super::fault::{Ending, Fault, Stage};
use super::job::Job;
use super::pipeline::Pipeline;
use super::retry::Retry;
use crate::failure::{Failure, FailureKind};
use crate::queue::{FailedStorage, Reason};
use crate::scoreboard::Event;
use crate::storage::fanout;
use crate::vcon::{Leaving, VconId};

impl Pipeline<'_, '_, '_> {
    /// Saves the vCon to the chain's storages that do not have it yet.
    pub(super) fn save(&mut self, job: &mut Job) -> Result<(), Ending> {
        let chain = self.chain;
        if job.progress.is_halted() || chain.storages.is_empty() {
            return Ok(());
        }
        let version = self.shared.settings.egress_version;
        if self.may_be_in_other_hands() {
            // Before the storages get it: one that changes nothing stores what stands in Redis, and
            // sees at its finish whether that is another one by now.
            self.write(job)?;
        }
        let mut leaving = job.leave(version)?;
        job.was_given = true;
        let config = Arc::clone(self.modules.config());
        for name in job.progress.missing(&chain.storages) {
            let stage = Stage::Storage(name.clone());
            let is_away = !self.is_backlog
                && defers(&name, &config)
                && self.shared.breakers.is_open(&stage, &config);
            if is_away {
                job.progress.note_deferred(&name);
            } else {
                self.modules.meters().storage(&name).count(Event::Received);
            }
        }
        let mut retry = Retry::new(&self.shared.settings);
        loop {
            let missing = job.progress.missing(&chain.storages);
            if missing.is_empty() {
                break;
            }
            let away = self.try_to_save(job, &leaving, &missing, retry.attempt());
            // Not `away`: a storage that was not asked does not count as saved to.
            if job.progress.missing(&chain.storages).is_empty() {
                break;
            }
            // Other storages may have it already, and this may take long: whoever stores what stands
            // in Redis meanwhile is to store this.
            self.write(job)?;
            let before = mem::replace(&mut leaving, job.leave(version)?);
            if !Arc::ptr_eq(&before.current, &leaving.current) {
                // It was merged with another one: all storages are to be given it.
                continue;
            }
            // What others are refused for as well does not change from one moment to the next.
            let passes = away.iter().any(|(_, failure)| failure.is_transient());
            if !passes || !self.again(&mut retry)? {
                self.give_up(job, &away, retry.attempt())?;
                break;
            }
            for (name, _) in &away {
                self.modules.meters().storage(name).count(Event::Retried);
            }
            self.count(Event::Retried);
        }
        match job.progress.refused_by_all() {
            Some(failures) => Err(Ending::Failed(Fault::at_storages(
                &failures,
                retry.attempt(),
            ))),
            None => Ok(()),
        }
    }

    /// Whether another chain, or the backlog of a storage, may have the vCon in work at the same time
    /// and save it to the same storages.
    fn may_be_in_other_hands(&self) -> bool {
        let config = self.modules.config();
        let storages = &self.chain.storages;
        let mut others = config.chains.iter().filter(|it| it.name != self.chain.name);
        others.any(|other| other.storages.iter().any(|it| storages.contains(it)))
            || storages.iter().any(|name| defers(name, config))
    }

    /// One attempt at each of these storages. Returns those that failed in ways that pass, or are to
    /// blame for what they refuse.
    fn try_to_save(
        &mut self,
        job: &mut Job,
        leaving: &Leaving,
        missing: &[String],
        attempt: u32,
    ) -> Vec<(String, Failure)> {
        let backends = self.modules.lend(missing);
        let parallel = self.shared.settings.parallel_storage;
        let writers = &mut *self.writers;
        let outcomes = self.clock.timed(
            |deadline| writers.save_all(backends, leaving, deadline, parallel),
            |outcomes| {
                let failed =
                    |it: &fanout::Outcome| it.result.as_ref().is_err_and(Failure::is_transient);
                outcomes.iter().any(failed)
            },
        );
        let mut away = Vec::new();
        for outcome in outcomes {
            self.modules.take_back(&outcome.name, outcome.storage);
            let (name, seconds) = (&*outcome.name, outcome.took.as_secs_f64());
            let stage = Stage::Storage(name.to_owned());
            let meter = self.modules.meters().storage(name);
            meter.observe(outcome.took);
            meter.count(match outcome.result {
                Ok(()) => Event::Done,
                Err(_) => Event::Failed,
            });
            match outcome.result {
                Ok(()) => {
                    let (id, chain) = (&leaving.current.id, &self.chain.name);
                    log::info!(
                        vcon_id = id.as_str(), chain_name = chain.as_str(),
                        storage_name = name, storage_processing_time = seconds;
                        "Stored {id} in {name} in {seconds:.4} s"
                    );
                    job.progress.note_stored(name);
                    self.note_success(&stage);
                }
                Err(failure) if failure.is_transient() => {
                    self.shared.health.note_attempt(&stage, attempt, &failure);
                    away.push((name.to_owned(), failure));
                }
                Err(failure) if self.is_the_vcons(&stage, &leaving.current.id, &failure) => {
                    job.progress.note_refused(name, failure, attempt);
                }
                Err(failure) => {
                    self.shared.health.note_attempt(&stage, attempt, &failure);
                    away.push((name.to_owned(), failure));
                }
            }
        }
        away
    }

    /// All attempts have failed at these storages. Those that defer get the vCon later; the others
    /// hold it up.
    fn give_up(
        &mut self,
        job: &mut Job,
        away: &[(String, Failure)],
        attempts: u32,
    ) -> Result<(), Ending> {
        let config = Arc::clone(self.modules.config());
        let defers = |name: &str| !self.is_backlog && defers(name, &config);
        let (later, needed): (Vec<_>, Vec<_>) =
            away.iter().cloned().partition(|(name, _)| defers(name));
        for (name, failure) in &later {
            let stage = Stage::Storage(name.clone());
            let probed = self.modules.probe(&stage, self.clock.drain());
            match seen(failure, &probed) {
                Seen::Away => {
                    let (drain, prober) = (self.clock.drain(), self.modules.prober(&stage));
                    let why = &failure.message;
                    hold(self.shared, &config, &stage, why, drain, prober);
                }
                Seen::Failing => {
                    self.note_failing(&stage, job.id(), &failure.message, &config);
                }
                Seen::Crowded => {}
            }
            job.progress.note_deferred(name);
        }
        if needed.is_empty() && job.progress.missing(&self.chain.storages).is_empty() {
            return Ok(());
        }
        Err(Ending::Unavailable(Fault::at_storages(&needed, attempts)))
    }

    /// What the storages that do not have the vCon are told.
    pub(super) fn letters(&self, job: &Job, id: &VconId) -> Vec<FailedStorage> {
        let mut letters = Vec::new();
        for (storage, error, attempts) in job.progress.refused() {
            let stage = format!("storage {storage}");
            log::error!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str(), storage_name = storage;
                "{id} went to DLQ:storage:{storage} from chain {}: {error}", self.chain.name
            );
            let meter = self.modules.meters().storage(storage);
            meter.count(Event::DeadLettered);
            let reason = Reason {
                stage: &stage,
                error,
                attempts,
                worker: &self.shared.name,
            };
            letters.push(FailedStorage::refused(storage, &reason));
        }
        for storage in job.progress.deferred() {
            log::debug!(
                vcon_id = id.as_str(), storage_name = storage;
                "{id} waits in DLQ:storage:{storage}"
            );
            letters.push(FailedStorage::deferred(storage));
        }
        letters
    }
}

/// What is seen of a storage at which all attempts have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It does not answer.
    Away,
    /// It answers, and fails for the vCon.
    Failing,
    /// It is well, and its connections are in use: by others, or by this worker's own lanes.
    Crowded,
}

/// What this failure and a probe after it say.
fn seen(failure: &Failure, probed: &Result<(), Failure>) -> Seen {
    match probed {
        Err(probed) if probed.kind != FailureKind::Crowded => Seen::Away,
        // A probe that is one too many has met a server that is there.
        _ if failure.kind == FailureKind::Crowded => Seen::Crowded,
        _ => Seen::Failing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_whose_connections_are_in_use_does_not_count_as_failing() {
        let (crowded, slow) = (Failure::crowded("too many"), Failure::slow("too long"));
        let away = || Err(Failure::transient("nobody listens"));
        for (failure, probed, expected) in [
            (&crowded, Ok(()), Seen::Crowded),
            (&crowded, Err(crowded.clone()), Seen::Crowded),
            (&crowded, away(), Seen::Away),
            (&slow, Ok(()), Seen::Failing),
            (&slow, Err(crowded.clone()), Seen::Failing),
            (&slow, away(), Seen::Away),
        ] {
            assert_eq!(seen(failure, &probed), expected, "{failure:?} {probed:?}");
        }
    }
}
