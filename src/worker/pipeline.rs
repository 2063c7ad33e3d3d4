//! One vCon through its chain, from its claim to its finish.
//!
//! ```text
//! load ─► link … link ─► storage ∥ storage ─► finish ─► done
//!   │       │       ▲           │               │
//!   │       │       └── merge ◄─┼───────────────┤ another document stands there
//!   └───────┴───────────────────┴───────────────┴─ fails ─► release
//! ```
//!
//! The document in Redis is replaced only if it is the one that was loaded, or the one that this lane
//! wrote last: its *base*. If somebody else has written another one meanwhile, what the chain made of
//! the base is laid over that, and the storages get the result.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::circuit_breaker::{MOST_FAILURES, defers, hold};
use super::clock::Clock;
use super::fault::{Ending, Fault, Stage, failed};
use super::job::{Content, Job};
use super::modules::Modules;
use super::next_claim::NextClaim;
use super::progress::Progress;
use super::retry::{Outage, Retry};
use super::shared::Shared;
use crate::config::{Chain, Config};
use crate::failure::Failure;
use crate::link::{Context, LinkError, Next};
use crate::queue::{
    Claim, Document, Finish, Finished, Kind, Queue, QueueError, Reason, Replaced, Replacement,
    StorageLetter,
};
use crate::scoreboard::{Event, Outcome};
use crate::storage::fanout::{self, Crew};
use crate::vcon::{self, Merged, Outgoing, VconId};

/// A changed document of more bytes than this is let go before the next vCon is asked for, so that
/// a lane does not hold both.
const LARGE: usize = 4 << 20;

/// How much of the drain timeout links get to finish: what is put back after it is put back in
/// order, while at the end of the timeout the whole worker is killed.
const FINISHING_SHARE: f64 = 0.8;

/// A lane's work on one claim.
pub(super) struct Pipeline<'a, 'scope, 'env> {
    pub shared: &'a Arc<Shared>,
    pub queue: &'a mut Queue,
    pub modules: &'a mut Modules,
    pub writers: &'a mut Crew<'scope, 'env>,
    pub outage: &'a mut Outage,
    pub clock: &'a Clock<'a>,
    pub chain: &'a Chain,
    pub claim: &'a Claim,
    /// Whether the claim is one of a storage's own queue.
    pub is_backlog: bool,
    /// The request for the next claim, to go with the finish of this one.
    pub next: NextClaim<'a>,
}

impl Pipeline<'_, '_, '_> {
    /// Works on the claim, and lets go of it.
    ///
    /// Returns false if the claim may still be held: the worker drains, and Redis is away.
    pub fn run(&mut self, document: Document) -> bool {
        let start = Instant::now();
        self.count(Event::Received);
        let mut job = None;
        let ending = match self.process(document, &mut job) {
            Ok(took) => {
                self.tell_finished(job.as_ref(), took.duration_since(start));
                return true;
            }
            Err(ending) => ending,
        };
        // The chain is done with it, however long Redis takes.
        self.clock.end();
        self.release(job, ending, start)
    }

    /// From the document to the finish. Returns when the finish began.
    fn process(&mut self, document: Document, job: &mut Option<Job>) -> Result<Instant, Ending> {
        let loaded = self.load(document)?;
        let job = job.insert(loaded);
        self.run_links(job)?;
        loop {
            self.save(job)?;
            let finishing = Instant::now();
            self.clock.end();
            if self.finish(job)? {
                return Ok(finishing);
            }
            self.clock.begin_again();
            self.merge(job)?;
        }
    }

    /// Makes a job of what was found under the vCon's key, and goes on where an earlier claim of it
    /// has stopped.
    fn load(&mut self, document: Document) -> Result<Job, Ending> {
        let Some(id) = self.claim.id() else {
            let error = format!("the entry \"{}\" is not a UUID", self.claim.shown());
            return Err(Ending::Failed(Fault::of_queue("queue", error)));
        };
        let kept = self.claim.progress.as_deref();
        let kept = kept.and_then(|text| Progress::read(text, self.chain));
        let (id, document, progress) = match kept {
            Some(progress) if *progress.id() == id => (id, document, progress),
            Some(progress) => {
                let id = progress.id().clone();
                let document = self.insist(|queue| queue.load(&id))?;
                (id, document, progress)
            }
            None => (id.clone(), document, Progress::none(id)),
        };
        if progress.is_begun() {
            log::debug!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                "{id} goes on in chain {} after {progress}", self.chain.name
            );
        }
        let (kind, text) = self.found(&id, document)?;
        Job::open(id, kind, text, progress)
    }

    /// The text of a document, or, if there is none in Redis, the one that a storage has.
    pub(super) fn found(
        &mut self,
        id: &VconId,
        document: Document,
    ) -> Result<(Kind, String), Ending> {
        match document {
            Document::Found(kind, bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|error| unusable(format!("the document is not UTF-8: {error}")))?;
                Ok((kind, text))
            }
            Document::Missing => self.restore(id),
            Document::NotAnId => Err(unusable(format!("{id} is not a UUID"))),
            Document::Unusable(why) => Err(unusable(why)),
        }
    }

    /// Gets the document back from the first storage that has it.
    fn restore(&mut self, id: &VconId) -> Result<(Kind, String), Ending> {
        let missing = "there is no document under its key in Redis";
        if !self.shared.settings.storage_fallback {
            return Err(unusable(missing.to_owned()));
        }
        let mut retry = Retry::new(&self.shared.settings);
        loop {
            let modules = &mut *self.modules;
            match self
                .clock
                .timed(|deadline| modules.find(id, deadline), Result::is_err)
            {
                Ok(Some((storage, json))) => {
                    self.insist(|queue| queue.restore(id, &json))?;
                    log::info!(
                        vcon_id = id.as_str(), storage_name = storage.as_str();
                        "{id} had gone from Redis and was restored from storage {storage}"
                    );
                    // As Redis has it now.
                    return match self.insist(|queue| queue.load(id))? {
                        Document::Missing => Err(unusable(missing.to_owned())),
                        restored => self.found(id, restored),
                    };
                }
                Ok(None) => {
                    return Err(unusable(format!("{missing} and in none of the storages")));
                }
                Err((stage, failure)) => {
                    let attempts = retry.attempt();
                    log::debug!("{stage} may hold {id}, attempt {attempts}: {failure}");
                    if !self.again(&mut retry)? {
                        return Err(Ending::Unavailable(Fault {
                            stage: "load".to_owned(),
                            error: format!("{missing}, and {stage} may hold it: {failure}"),
                            stages: vec![stage],
                            attempts,
                            kind: failure.kind,
                        }));
                    }
                }
            }
        }
    }

    /// Runs the links that have not been run, in order.
    fn run_links(&mut self, job: &mut Job) -> Result<(), Ending> {
        let chain = self.chain;
        for name in chain.links.iter().skip(job.progress.links_done()) {
            if job.progress.is_halted() {
                return Ok(());
            }
            let next = if self.modules.works_in_redis(name) {
                self.run_foreign_link(name, job)?
            } else {
                self.run_link(name, job)?
            };
            match next {
                Next::Continue => {}
                Next::Halt => job.progress.note_halt(),
                Next::Switch(id) => self.switch_to(job, id)?,
            }
            job.progress.note_link();
        }
        Ok(())
    }

    /// Runs a link that reads and writes the vCon in Redis by itself. What others write there
    /// meanwhile it may write over: that is laid under what it has left.
    fn run_foreign_link(&mut self, name: &str, job: &mut Job) -> Result<Next, Ending> {
        self.write(job)?;
        let (id, before) = (job.id().clone(), job.base.clone());
        let begin = self.insist(|queue| queue.begin_foreign_write(&id))?;
        let next = self.run_link(name, job);
        let texts = self.insist(|queue| queue.end_foreign_write(&id, begin))?;
        if next == Ok(Next::Continue) || !texts.is_empty() {
            let read = self.read_again(job);
            if next.is_ok() {
                read?;
            }
        }
        let has_written_over = !texts.is_empty();
        let before = before.unwrap_or_default();
        let texts = texts.into_iter();
        for theirs in texts.filter_map(|text| String::from_utf8(text).ok()) {
            let vcon = job.open_vcon()?;
            match vcon::merge(&before, vcon, theirs) {
                Ok(mut merged) => {
                    // What stands in Redis is what the link has left.
                    merged.vcon.note_changed();
                    self.adopt(job, merged);
                }
                Err(error) => log::warn!("{id}: what was written meanwhile {error}"),
            }
        }
        if has_written_over {
            // The rest of the chain may take long, and this worker may die in it.
            self.write(job)?;
            self.insist(|queue| queue.forget_overwritten(&id))?;
        }
        next
    }

    /// Runs one link; one that fails in ways that pass is tried again.
    fn run_link(&mut self, name: &str, job: &mut Job) -> Result<Next, Ending> {
        let settings = &self.shared.settings;
        let drain_time = settings.drain_timeout.mul_f64(FINISHING_SHARE);
        let stage = Stage::Link(name.to_owned());
        let meter = self.modules.meters().link(name).clone();
        meter.count(Event::Received);
        let mut retry = Retry::new(settings);
        loop {
            let start = Instant::now();
            let vcon = job.open_vcon()?;
            let mut context = Context::new(self.clock.drain(), settings.egress_version)
                .finishing_within(drain_time, self.clock.drain_end());
            let modules = &mut *self.modules;
            let ran = self.clock.timed(
                |deadline| {
                    context.deadline = deadline;
                    modules.run_link(name, vcon, &mut context)
                },
                |ran| matches!(ran, Err(LinkError::Failed(failure)) if failure.is_transient()),
            );
            let (expire, routes) = (context.expire, context.routes);
            meter.observe(start.elapsed());
            meter.count(match &ran {
                Ok(Next::Halt) => Event::Halted,
                Ok(_) => Event::Done,
                Err(LinkError::Interrupted) => Event::Returned,
                Err(LinkError::Failed(_)) => Event::Failed,
            });
            match ran {
                Ok(next) => {
                    let id = vcon.id().clone();
                    job.progress.note_wishes(&id, expire, routes);
                    self.note_success(&stage);
                    return Ok(next);
                }
                Err(LinkError::Interrupted) => return Err(Ending::Interrupted),
                Err(LinkError::Failed(failure)) => {
                    let fault = Fault::at(&stage, &failure, retry.attempt());
                    if !failure.is_transient() {
                        return Err(Ending::Failed(fault));
                    }
                    let health = &self.shared.health;
                    health.note_attempt(&stage, retry.attempt(), &failure);
                    if !self.again(&mut retry)? {
                        return Err(Ending::Unavailable(fault));
                    }
                    meter.count(Event::Retried);
                    self.count(Event::Retried);
                }
            }
        }
    }

    /// Writes what the links have done so far, for a link that reads it in Redis, or for the next
    /// claim.
    pub(super) fn write(&mut self, job: &mut Job) -> Result<(), Ending> {
        while let (Some(text), Some(base)) = (job.changed_text(), job.base.clone()) {
            let (id, kind) = (job.id().clone(), job.kind);
            match self.insist(|queue| queue.replace(&id, kind, &base, &text))? {
                Replaced::Done => {
                    job.note_written(text.to_string());
                    return Ok(());
                }
                Replaced::Deleted => job.note_deleted(),
                Replaced::Changed => self.merge(job)?,
            }
        }
        Ok(())
    }

    /// Reads the document again after a link that has written it in Redis.
    fn read_again(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let document = self.insist(|queue| queue.load(&id))?;
        let (kind, text) = self.found(&id, document)?;
        let opened = Job::open(id, kind, text, job.progress.clone())?;
        (job.kind, job.base, job.content) = (opened.kind, opened.base, opened.content);
        job.origin = None;
        Ok(())
    }

    /// Finishes with the vCon of the job, and goes over to another one.
    fn switch_to(&mut self, job: &mut Job, id: VconId) -> Result<(), Ending> {
        self.write(job)?;
        if let Some(seconds) = job.progress.take_expire() {
            let left = job.id().clone();
            self.insist(|queue| queue.expire(&left, seconds))?;
        }
        let document = self.insist(|queue| queue.load(&id))?;
        let (kind, text) = self.found(&id, document)?;
        job.progress.note_switch(id.clone());
        *job = Job::open(id, kind, text, job.progress.clone())?;
        Ok(())
    }

    /// Lays what the chain has made of the base over what stands in Redis now.
    pub(super) fn merge(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let (kind, theirs) = match self.insist(|queue| queue.load(&id))? {
            Document::Found(kind, bytes) => match String::from_utf8(bytes) {
                Ok(text) => (kind, text),
                Err(error) => {
                    return Err(unusable(format!(
                        "what was written meanwhile is not UTF-8: {error}"
                    )));
                }
            },
            Document::Missing | Document::NotAnId => {
                job.note_deleted();
                return Ok(());
            }
            Document::Unusable(why) => return Err(unusable(why)),
        };
        let ours = job.chain_version()?;
        let over_itself = vcon::merge(&theirs, &ours, theirs.clone());
        if over_itself.is_ok_and(|merged| !merged.vcon.is_changed()) {
            // As RedisJSON writes it, whose text is another one for the same value.
            job.kind = kind;
            job.note_written(theirs);
            return Ok(());
        }
        let Some(base) = job.origin.as_deref().or(job.base.as_deref()) else {
            let error = "the document was deleted and stored again meanwhile";
            return Err(unusable(error.to_owned()));
        };
        let merged = vcon::merge(base, &ours, theirs.clone());
        let merged = merged
            .map_err(|error| failed("parse", format!("what was written meanwhile {error}")))?;
        job.kind = kind;
        job.base = Some(theirs);
        job.origin = None;
        self.adopt(job, merged);
        Ok(())
    }

    /// Goes on with what a merge has made.
    fn adopt(&self, job: &mut Job, merged: Merged) {
        let Merged { vcon, conflicts } = merged;
        let (id, chain) = (vcon.id().clone(), &self.chain.name);
        log::info!(
            vcon_id = id.as_str(), chain_name = chain.as_str();
            "{id} was changed while it was in work, both changes are kept"
        );
        for member in conflicts {
            log::warn!(
                vcon_id = id.as_str(), chain_name = chain.as_str();
                "{id}: `{member}` was changed in two ways, the value of chain {chain} stands"
            );
        }
        job.content = Content::Open(vcon);
        // They have the document as it was.
        job.progress.forget_storages();
    }

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
        let mut outgoing = job.leave(version)?;
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
            let away = self.try_to_save(job, &outgoing, &missing, retry.attempt());
            // Not `away`: a storage that was not asked does not count as saved to.
            if job.progress.missing(&chain.storages).is_empty() {
                break;
            }
            // Other storages may have it already, and this may take long: whoever stores what stands
            // in Redis meanwhile is to store this.
            self.write(job)?;
            let before = mem::replace(&mut outgoing, job.leave(version)?);
            if !Arc::ptr_eq(&before, &outgoing) {
                // It was merged with another one: all storages are to be given it.
                continue;
            }
            if !self.again(&mut retry)? {
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

    /// One attempt at each of these storages. Returns those that failed in ways that pass.
    fn try_to_save(
        &mut self,
        job: &mut Job,
        outgoing: &Arc<Outgoing>,
        missing: &[String],
        attempt: u32,
    ) -> Vec<(String, Failure)> {
        let backends = self.modules.lend(missing);
        let parallel = self.shared.settings.parallel_storage;
        let writers = &mut *self.writers;
        let outcomes = self.clock.timed(
            |deadline| writers.save_all(backends, outgoing, deadline, parallel),
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
                    let (id, chain) = (&outgoing.id, &self.chain.name);
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
                Err(failure) => job.progress.note_refused(name, failure, attempt),
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
            match self.modules.probe(&stage, self.clock.drain()) {
                Ok(()) => self.note_failing(&stage, job.id(), &failure.message, &config),
                Err(_) => {
                    let drain = self.clock.drain();
                    hold(self.shared, &config, &stage, &failure.message, drain);
                }
            }
            job.progress.note_deferred(name);
        }
        if needed.is_empty() && job.progress.missing(&self.chain.storages).is_empty() {
            return Ok(());
        }
        Err(Ending::Unavailable(Fault::at_storages(&needed, attempts)))
    }

    /// Writes the document if it changed, announces the vCon and lets go of the claim. Returns false
    /// if another document stands there by now, which is to be merged.
    fn finish(&mut self, job: &mut Job) -> Result<bool, Ending> {
        let changed = job.changed_text();
        let egress = if job.progress.is_halted() {
            &[][..]
        } else {
            &self.chain.egress_lists[..]
        };
        let id = job.id().clone();
        let routes = job.progress.routes_besides(&id, egress);
        let letters = self.letters(job, &id);
        // Storages that were given an old version last must get the new one.
        let is_looked_at = changed.is_some() || job.progress.is_stored();
        let document = job.base.as_deref().filter(|_| is_looked_at);
        let document = document.map(|base| Replacement {
            kind: job.kind,
            base,
            text: changed.as_ref().map(|text| text.as_str()),
        });
        let finish = Finish {
            id: &id,
            document,
            expire: job.progress.expire().filter(|_| job.base.is_some()),
            egress,
            routes: &routes,
            letters: &letters,
        };
        loop {
            match self.try_to_finish(&finish) {
                Ok(finished) => {
                    self.outage.over();
                    return self.note_finish(&id, finished);
                }
                Err(error @ QueueError::Document(_)) => {
                    self.outage.over();
                    return Err(failed("queue", error.to_string()));
                }
                Err(error) => {
                    let insisted = self.outage.insist(&error, self.clock);
                    insisted.map_err(|_| Ending::ClaimLeft)?;
                }
            }
        }
    }

    fn note_finish(&self, id: &VconId, finished: Finished) -> Result<bool, Ending> {
        match finished {
            Finished::Done => Ok(true),
            Finished::Deleted => {
                log::info!(
                    vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                    "{id} was deleted from Redis while it was in work, and is not brought back"
                );
                Ok(true)
            }
            Finished::NotOurs => Err(Ending::NotOurs),
            Finished::Changed => Ok(false),
            Finished::Refused { list, holds } => match list.parse() {
                Ok(list) => Err(Ending::Unavailable(Fault::at_list(&list, &holds))),
                Err(error) => Err(failed("egress", format!("{error}"))),
            },
        }
    }

    fn try_to_finish(&mut self, finish: &Finish<'_>) -> Result<Finished, QueueError> {
        let is_large =
            |document: &Replacement<'_>| document.text.unwrap_or(document.base).len() > LARGE;
        let config = self.modules.config();
        let lists = self.next.lists(self.shared, config, self.clock);
        let lists = lists.filter(|_| !finish.document.as_ref().is_some_and(is_large));
        let Some(lists) = lists else {
            return self.queue.finish(self.claim, finish);
        };
        self.next.note_sent();
        let (finished, next) = self.queue.finish_and_claim(self.claim, finish, lists)?;
        self.next.note_answer(next);
        Ok(finished)
    }

    /// What the storages that do not have the vCon are told.
    fn letters(&self, job: &Job, id: &VconId) -> Vec<StorageLetter> {
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
            letters.push(StorageLetter::refused(storage, &reason));
        }
        for storage in job.progress.deferred() {
            log::debug!(
                vcon_id = id.as_str(), storage_name = storage;
                "{id} waits in DLQ:storage:{storage}"
            );
            letters.push(StorageLetter::deferred(storage));
        }
        letters
    }

    fn tell_finished(&self, job: Option<&Job>, took: Duration) {
        let (entry, name, seconds) = (self.claim.shown(), &self.chain.name, took.as_secs_f64());
        if self.is_backlog {
            // It has been counted when it was finished without that storage.
            return log::info!(
                vcon_id = entry.as_str(), vcon_processing_time = seconds;
                "{entry} left the backlog of {name} in {seconds:.4} s"
            );
        }
        let halted = job.is_some_and(|job| job.progress.is_halted());
        let (outcome, event, done) = if halted {
            (Outcome::Halted, Event::Halted, "Halted")
        } else {
            (Outcome::Finished, Event::Done, "Finished")
        };
        self.shared.count(outcome);
        self.count(event);
        let meters = self.modules.meters();
        meters.chain(&self.chain.name).observe(took);
        log::info!(
            vcon_id = entry.as_str(), chain_name = name.as_str(), vcon_processing_time = seconds;
            "{done} {entry} in chain {name} in {seconds:.4} s"
        );
    }

    /// Counts an event of the chain.
    pub(super) fn count(&self, event: Event) {
        self.modules.meters().chain(&self.chain.name).count(event);
    }

    /// After a failed attempt: waits for the time of the next one; false if there is none.
    fn again(&self, retry: &mut Retry) -> Result<bool, Ending> {
        retry.again(self.clock).map_err(|_| Ending::Interrupted)
    }

    fn note_success(&self, stage: &Stage) {
        self.shared.health.note_success(stage);
        // Whether it had failed does not tell: a success may have been noted just before the breaker
        // was opened by another lane.
        if self
            .shared
            .breakers
            .note_success(stage, self.modules.config())
        {
            self.shared.wakeup.wake_all();
        }
    }

    /// A stage is reachable and has failed in all attempts for this vCon. After some different ones
    /// in a row, one at a time is tried.
    pub(super) fn note_failing(
        &self,
        stage: &Stage,
        id: &VconId,
        error: &str,
        config: &Arc<Config>,
    ) {
        let failing = self.shared.health.note_failure(stage, id);
        if failing.is_first {
            log::warn!("{stage} is reachable but fails, vCons are tried again later: {error}");
        }
        if failing.in_a_row >= MOST_FAILURES && self.shared.breakers.note_failing(stage, config) {
            let vcons = failing.in_a_row;
            log::warn!("{stage} has failed for {vcons} vCons in a row, one at a time is tried");
        }
    }

    /// Takes a step in Redis, and waits for Redis if need be.
    pub(super) fn insist<T>(
        &mut self,
        mut step: impl FnMut(&mut Queue) -> Result<T, QueueError>,
    ) -> Result<T, Ending> {
        loop {
            // What Redis takes is no time of the vCon's.
            self.clock.pause();
            let stepped = step(self.queue);
            self.clock.resume();
            match stepped {
                Ok(done) => {
                    self.outage.over();
                    return Ok(done);
                }
                Err(error @ QueueError::Document(_)) => {
                    return Err(failed("queue", error.to_string()));
                }
                Err(error) => self
                    .outage
                    .insist(&error, self.clock)
                    .map_err(|_| Ending::Interrupted)?,
            }
        }
    }
}

fn unusable(error: String) -> Ending {
    failed("load", error)
}
