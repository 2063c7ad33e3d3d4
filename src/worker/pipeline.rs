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

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::circuit_breaker::{MOST_FAILURES, defers};
use super::clock::Clock;
use super::fault::{Ending, Fault, Stage, failed};
use super::job::{Content, Job};
use super::modules::Modules;
use super::next_claim::NextClaim;
use super::progress::Progress;
use super::refusals::{Blame, Letter};
use super::retry::{Outage, Retry};
use super::shared::Shared;
use crate::config::{Chain, Config};
use crate::failure::{Failure, FailureKind};
use crate::queue::{
    Claim, Document, Finish, Finished, Kind, Queue, QueueError, Replaced, Replacement,
};
use crate::scoreboard::{Event, Outcome};
use crate::settings::RedisFormat;
use crate::storage::fanout::Crew;
use crate::vcon::{self, Merged, VconId};

/// A changed document of more bytes than this is let go before the next vCon is asked for, so that
/// a lane does not hold both.
const LARGE: usize = 4 << 20;

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
                self.note_letters(job.as_ref());
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
            let error = match document {
                Document::Unusable(why) => why,
                _ => format!("the entry \"{}\" is not a UUID", self.claim.shown()),
            };
            return Err(Ending::Failed(Fault::of_queue("queue", error)));
        };
        let kept = self.claim.progress.as_deref();
        let kept = kept.and_then(|text| Progress::read(text, self.chain));
        let other = match &kept {
            Some(progress) if *progress.id() != id => {
                Some(self.insist(|queue| queue.load(progress.id()))?)
            }
            _ => None,
        };
        let kept = kept.filter(|progress| progress.is_of(other.as_ref().unwrap_or(&document)));
        let (id, document, progress) = match kept {
            Some(progress) => (progress.id().clone(), other.unwrap_or(document), progress),
            None => (id.clone(), document, Progress::none(id)),
        };
        if progress.is_begun() {
            log::debug!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                "{id} goes on in chain {} after {progress}", self.chain.name
            );
        }
        let (kind, text) = self.found(&id, document)?;
        Job::open(id, kind, text, self.shared.settings.json_bodies, progress)
    }

    /// The text of a document, or, if there is none in Redis, the one that a storage has.
    pub(super) fn found(
        &mut self,
        id: &VconId,
        document: Document,
    ) -> Result<(Kind, String), Ending> {
        match document {
            Document::Found(kind, bytes) => {
                if kind == Kind::Json {
                    self.shared.slot.note_json();
                }
                let text = vcon::decode(bytes);
                let text = text.map_err(|error| unusable(format!("the document {error}")))?;
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
                    let kind = self.kind_of_new();
                    self.insist(|queue| queue.restore(id, kind, &json))?;
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
                Err((stage, failure)) if failure.kind.is_final() => {
                    return Err(unusable(format!(
                        "{missing}, and {stage} cannot give it: {failure}"
                    )));
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

    /// How a vCon is to be kept that Redis does not have.
    fn kind_of_new(&self) -> Kind {
        match self.shared.settings.redis_format {
            RedisFormat::Json => Kind::Json,
            RedisFormat::Auto if self.shared.slot.has_seen_json() => Kind::Json,
            RedisFormat::Auto | RedisFormat::Plain => Kind::Text,
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

    /// Lays what the chain has made of the base over what stands in Redis now.
    pub(super) fn merge(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let (kind, theirs) = match self.insist(|queue| queue.load(&id))? {
            Document::Found(kind, bytes) => {
                let text = vcon::decode(bytes)
                    .map_err(|error| unusable(format!("what was written meanwhile {error}")))?;
                (kind, text)
            }
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
    pub(super) fn adopt(&self, job: &mut Job, merged: Merged) {
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
            failed_storages: &letters,
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
    pub(super) fn again(&self, retry: &mut Retry) -> Result<bool, Ending> {
        retry.again(self.clock).map_err(|_| Ending::Interrupted)
    }

    pub(super) fn note_success(&self, stage: &Stage) {
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
    /// in a row, one at a time is tried; then this returns true.
    pub(super) fn note_failing(
        &self,
        stage: &Stage,
        id: &VconId,
        error: &str,
        config: &Arc<Config>,
    ) -> bool {
        let failing = self.shared.health.note_failure(stage, id);
        if failing.is_first {
            log::warn!("{stage} is reachable but fails, vCons are tried again later: {error}");
        }
        if failing.in_a_row >= MOST_FAILURES && self.shared.breakers.note_failing(stage, config) {
            let vcons = failing.in_a_row;
            log::warn!("{stage} has failed for {vcons} vCons in a row, one at a time is tried");
        }
        failing.in_a_row >= MOST_FAILURES
    }

    /// Whether the vCon is to blame for a failure that does not pass by itself; else it waits, and those
    /// that were taken for bad before it are taken back.
    pub(super) fn is_the_vcons(&mut self, stage: &Stage, id: &VconId, failure: &Failure) -> bool {
        if failure.kind != FailureKind::Refused {
            return failure.kind == FailureKind::Permanent;
        }
        let was_refused = self.was_refused(stage);
        match self
            .shared
            .health
            .judge(stage, id, &failure.message, was_refused)
        {
            Blame::VCon => true,
            Blame::Place { is_news } => {
                if is_news {
                    log::warn!(
                        "{stage} refuses one vCon after the other for the same reason, they wait until \
                         it takes one: {failure}"
                    );
                }
                self.take_back(stage);
                false
            }
        }
    }

    /// Whether a worker has let the vCon wait because the stage refused it like others, and it has taken
    /// one of ours since.
    fn was_refused(&mut self, stage: &Stage) -> bool {
        let Some(worked) = self
            .shared
            .health
            .since_success(std::slice::from_ref(stage))
        else {
            return false;
        };
        match self
            .queue
            .postponed(&self.claim.entry, &refused_by(&stage.to_string()))
        {
            Ok(postponed) => postponed.is_some_and(|postponed| worked < postponed),
            Err(error) => {
                log::debug!("what is known of {}: {error}", self.claim.shown());
                false
            }
        }
    }

    /// Takes dead letters back that the stage is to blame for, as far as is known by now.
    pub(super) fn take_back(&mut self, stage: &Stage) {
        let why = refused_by(&stage.to_string());
        for letter in self.shared.health.take_letters(stage) {
            let (taken, what) = match &letter {
                Letter::OfList(list, entry) => {
                    let what = String::from_utf8_lossy(entry).into_owned();
                    (self.queue.undo_dead_letter(list, entry, &why), what)
                }
                Letter::OfStorage(storage, id) if defers(storage, self.modules.config()) => (
                    self.queue.undo_storage_dead_letter(storage, id, &why),
                    id.to_string(),
                ),
                // The other storages have it, and it is announced: nobody here saves it again.
                Letter::OfStorage(..) => continue,
            };
            match taken {
                Ok(true) => log::info!("{what} is no dead letter any more, {stage} refuses all"),
                Ok(false) => {}
                Err(error) if self.shared.health.put_back_letter(stage, letter) => {
                    log::debug!(
                        "{what} is still a dead letter, and is brought back later: {error}"
                    );
                }
                Err(error) => {
                    log::warn!("{what} remains a dead letter, to be tried again: {error}");
                }
            }
        }
    }

    /// The vCon is done, but storages may have refused it.
    fn note_letters(&mut self, job: Option<&Job>) {
        let Some(job) = job else { return };
        for (storage, ..) in job.progress.refused() {
            let stage = Stage::Storage(storage.to_owned());
            let letter = Letter::OfStorage(storage.to_owned(), job.id().clone());
            self.shared.health.note_letter(&stage, job.id(), letter);
            self.take_back(&stage);
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

/// What is noted of a vCon that waits because all are refused there.
pub(super) fn refused_by(stage: &str) -> String {
    format!("refused by {stage}")
}

fn unusable(error: String) -> Ending {
    failed("load", error)
}
