//! The storages of a chain, for one vCon: all that do not have it yet, at once, and again those that failed.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::circuit_breaker::defers;
use super::job::Job;
use super::modules::Stage;
use super::pipeline::Pipeline;
use super::prober::Diagnosis;
use super::release::{ChainFailure, Ending, NotNow};
use super::retry::Attempts;
use crate::failure::Failure;
use crate::queue::Document;
use crate::scoreboard::{Event, LaneStep};
use crate::storage::fan_out;
use crate::vcon::Leaving;

/// The storages that do not have a vCon after an attempt.
#[derive(Default)]
struct Unsaved {
    /// Those that have failed.
    failures: Vec<(String, Failure)>,
    /// Those that were not asked.
    not_now: Vec<(String, NotNow)>,
}

impl Pipeline<'_, '_, '_> {
    /// Saves the vCon to the chain's storages that do not have it yet.
    pub(super) fn save(&mut self, job: &mut Job) -> Result<(), Ending> {
        let chain = self.chain;
        if job.progress.is_halted() || chain.storages.is_empty() {
            return Ok(());
        }
        self.clock.show_step(LaneStep::Storages);
        let version = self.shared.settings.egress_version;
        if self.may_be_in_work_elsewhere() {
            // Before the storages get it: a claim that changes nothing stores what Redis has, and sees at
            // its finish whether that has changed since.
            self.write(job)?;
        }
        let mut leaving = job.leave(version)?;
        job.was_given = true;
        self.defer_what_is_open(job);
        for name in job.progress.missing(&chain.storages) {
            self.modules.meters().storage(&name).count(Event::Received);
        }
        let mut attempts = Attempts::new(&self.shared.settings);
        loop {
            let missing = job.progress.missing(&chain.storages);
            if missing.is_empty() {
                break;
            }
            let number = attempts.number();
            let unsaved = if self.modules.reads_redis(&missing) {
                self.save_with_python(job, &leaving, &missing, number)?
            } else {
                self.try_to_save(job, &leaving, &missing, number)?
            };
            let failures = self.defer_or_wait(job, unsaved)?;
            // Not `failures.is_empty()`: a storage that was not asked has not been saved to.
            if job.progress.missing(&chain.storages).is_empty() {
                break;
            }
            // Other storages may have it already, and this may take long: whoever stores what Redis has
            // meanwhile must store this version.
            self.write(job)?;
            let before = mem::replace(&mut leaving, job.leave(version)?);
            if !Arc::ptr_eq(&before.current, &leaving.current) {
                // It was merged with another version: all storages get it anew.
                self.defer_what_is_open(job);
                continue;
            }
            // A storage that refuses all vCons does not stop that within a moment.
            let may_pass = failures.iter().any(|(_, failure)| failure.is_transient());
            if !may_pass || !self.next_attempt(&mut attempts)? {
                self.defer_or_fail(job, &failures, attempts.number())?;
                break;
            }
            for (name, _) in &failures {
                self.modules.meters().storage(name).count(Event::Retried);
            }
            self.count(Event::Retried);
        }
        match job.progress.refused_by_all() {
            Some(failures) => Err(Ending::Failed(ChainFailure::at_storages(
                &failures,
                attempts.number(),
            ))),
            None => Ok(()),
        }
    }

    /// The vCon goes on without storages that defer and do not work at present.
    fn defer_what_is_open(&self, job: &mut Job) {
        let config = self.modules.config();
        let storages = job.progress.missing(&self.chain.storages).into_iter();
        for name in storages.filter(|name| !self.is_backlog && defers(name, config)) {
            let stage = Stage::Storage(name.clone());
            if self.shared.breakers.is_open(&stage, config) {
                job.progress.note_deferred(&name);
            }
        }
    }

    /// Of the storages that have failed, those wait that do nothing for any vCon at present: the vCon goes on without
    /// those that defer, and waits for the others. Returns the rest of the failures.
    ///
    /// # Errors
    /// The vCon waits. The others that have failed are tried again with its next claim: no lane sleeps with a
    /// vCon that waits for something else anyway.
    fn defer_or_wait(
        &self,
        job: &mut Job,
        mut unsaved: Unsaved,
    ) -> Result<Vec<(String, Failure)>, Ending> {
        let mut rest = Vec::new();
        for (name, failure) in unsaved.failures {
            match NotNow::of(&Stage::Storage(name.clone()), &failure) {
                Some(not_now) => unsaved.not_now.push((name, not_now)),
                None => rest.push((name, failure)),
            }
        }
        let mut waits = Vec::new();
        for (name, not_now) in unsaved.not_now {
            if !self.is_backlog && defers(&name, self.modules.config()) {
                self.wait_for(&not_now);
                job.progress.note_deferred(&name);
            } else {
                waits.push(not_now);
            }
        }
        if waits.is_empty() {
            Ok(rest)
        } else {
            Err(Ending::NotNow(waits))
        }
    }

    /// Whether another chain, or the backlog of a storage, may save the vCon to the same storages at the same
    /// time.
    fn may_be_in_work_elsewhere(&self) -> bool {
        let config = self.modules.config();
        let storages = &self.chain.storages;
        let mut others = config.chains.iter().filter(|it| it.name != self.chain.name);
        others.any(|other| other.storages.iter().any(|it| storages.contains(it)))
            || storages.iter().any(|name| defers(name, config))
    }

    /// The same as [`Self::try_to_save`] where Python modules are among the storages, which read the vCon in
    /// Redis and may write it. What they have left there by then is what the storages have.
    fn save_with_python(
        &mut self,
        job: &mut Job,
        leaving: &Leaving,
        missing: &[String],
        attempt: u32,
    ) -> Result<Unsaved, Ending> {
        let drain_end = self.clock.drain_end().get();
        self.modules.host().note_drain_end(drain_end);
        let unsaved = self.with_direct_writes(
            job,
            |_| false,
            |this, job| this.try_to_save(job, leaving, missing, attempt),
        )?;
        if job.base.is_some() {
            let id = job.id().clone();
            match self.with_redis(|queue| queue.load(&id))? {
                Document::Found(kind, bytes) => job.note_left(kind, bytes),
                Document::Missing => job.note_deleted(),
                // The finish says what is wrong with it.
                Document::NotAnId | Document::Unusable(_) => {}
            }
        }
        Ok(unsaved)
    }

    /// One attempt at each of these storages. Returns those that failed in ways that pass, or that refuse
    /// every vCon, and those that are not asked for now.
    fn try_to_save(
        &mut self,
        job: &mut Job,
        leaving: &Leaving,
        missing: &[String],
        attempt: u32,
    ) -> Result<Unsaved, Ending> {
        let mut unsaved = Unsaved::default();
        let stage = |name: &String| Stage::Storage(name.clone());
        let is_limited = missing
            .iter()
            .any(|name| self.modules.budget_of(&stage(name)).is_some());
        let at_once = self.shared.settings.parallel_storage && !self.modules.reads_redis(missing);
        // A token is for a request that begins soon, not after that to another storage.
        let groups: Vec<&[String]> = match is_limited && !at_once {
            true => missing.chunks(1).collect(),
            false => vec![missing],
        };
        for group in groups {
            let mut asked = Vec::new();
            for name in group {
                let stage = stage(name);
                if let Some(not_now) = self.is_left_alone(&stage) {
                    unsaved.not_now.push((name.clone(), not_now));
                    continue;
                }
                match self.token_for(&stage) {
                    Ok(token) => asked.push((name.clone(), token)),
                    Err(Ending::NotNow(stages)) => {
                        let stages = stages.into_iter();
                        unsaved.not_now.extend(stages.map(|it| (name.clone(), it)));
                    }
                    Err(ending) => return Err(ending),
                }
            }
            // The wait for a later one may have been long. The last has just begun.
            let last = asked.pop();
            let mut kept = Vec::new();
            for (name, mut token) in asked {
                match token.take_if(|token| !token.is_fresh()) {
                    Some(over) => {
                        over.forgo();
                        let not_now = NotNow::over_budget(&stage(&name), Instant::now());
                        unsaved.not_now.push((name, not_now));
                    }
                    None => kept.push((name, token)),
                }
            }
            kept.extend(last);
            // Until the requests have ended.
            let (names, _tokens): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
            if !names.is_empty() {
                let failures = self.save_to(job, leaving, &names, attempt);
                unsaved.failures.extend(failures);
            }
        }
        Ok(unsaved)
    }

    /// Saves the vCon to these storages, and returns those that failed in ways that pass, or that refuse every
    /// vCon.
    fn save_to(
        &mut self,
        job: &mut Job,
        leaving: &Leaving,
        names: &[String],
        attempt: u32,
    ) -> Vec<(String, Failure)> {
        self.begin();
        let backends = self.modules.lend(names);
        let parallel = self.shared.settings.parallel_storage;
        let writers = &mut *self.writers;
        let outcomes = self.clock.timed(
            |deadline| writers.save_all(backends, leaving, deadline, parallel),
            |outcomes| {
                let failed = |it: &fan_out::SaveOutcome| {
                    it.result.as_ref().is_err_and(Failure::is_transient)
                };
                outcomes.iter().any(failed)
            },
        );
        let mut failures = Vec::new();
        for outcome in outcomes {
            self.modules.return_storage(&outcome.name, outcome.storage);
            let (name, seconds) = (&*outcome.name, outcome.took.as_secs_f64());
            if let Some(trace) = &mut self.trace {
                let (id, time) = (&leaving.current.id, (outcome.started, outcome.took));
                trace.note_save(id.as_str(), name, time, &outcome.result, attempt);
            }
            let stage = Stage::Storage(name.to_owned());
            let meter = self.modules.meters().storage(name);
            meter.observe(outcome.took);
            if outcome.result.is_err() {
                let failures = self.modules.meters().storage_failures(name);
                failures.observe(outcome.took);
            }
            meter.count(match outcome.result {
                Ok(()) => Event::Done,
                Err(_) => Event::Failed,
            });
            let id = &leaving.current.id;
            let judge = |failure| self.judge_denial(&stage, id, failure);
            match outcome.result.map_err(judge) {
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
                    failures.push((name.to_owned(), failure));
                }
                Err(failure) if self.is_vcon_bad(&stage, id, &failure) => {
                    job.progress.note_refused(name, failure, attempt);
                }
                Err(failure) => {
                    self.shared.health.note_attempt(&stage, attempt, &failure);
                    failures.push((name.to_owned(), failure));
                }
            }
        }
        failures
    }

    /// All attempts have failed at these storages. The vCon waits in the queues of those that defer; the
    /// others hold it up.
    fn defer_or_fail(
        &mut self,
        job: &mut Job,
        failures: &[(String, Failure)],
        attempts: u32,
    ) -> Result<(), Ending> {
        let config = Arc::clone(self.modules.config());
        let defers = |name: &str| !self.is_backlog && defers(name, &config);
        let (deferred, needed): (Vec<_>, Vec<_>) =
            failures.iter().cloned().partition(|(name, _)| defers(name));
        for (name, failure) in &deferred {
            let stage = Stage::Storage(name.clone());
            match self.diagnose(&stage, failure.kind) {
                Diagnosis::Unavailable(probe) => {
                    self.hold(&stage, Some(&failure.message), &probe);
                }
                Diagnosis::Failing { .. } => {
                    self.note_failing(&stage, job.id(), &failure.message);
                }
                Diagnosis::Crowded => {}
            }
            job.progress.note_deferred(name);
        }
        if needed.is_empty() && job.progress.missing(&self.chain.storages).is_empty() {
            return Ok(());
        }
        let failure = ChainFailure::at_storages(&needed, attempts);
        Err(Ending::Unavailable(failure))
    }
}
