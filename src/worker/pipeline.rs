//! One vCon through its chain, from its claim to its finish.
//!
//! ```text
//! load ─► link … link ─► storage ∥ storage ─► finish ─► done
//!   │       │       ▲           │               │
//!   │       │       └── merge ◄─┼───────────────┤ another document is there
//!   └───────┴───────────────────┴───────────────┴─ fails ─► release
//! ```
//!
//! The functions stand in this order. The document in Redis is replaced only if it is the one that was
//! loaded, or the one that this lane wrote last: its *base*. If somebody else has written another one
//! meanwhile, what the chain has made of the base is merged with that, and the storages get the result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Hand;
use super::job::{ChainProgress, Content, Job};
use super::lane::NextClaim;
use super::modules::LaneModules;
use super::release::{ChainFailure, Ending};
use super::retry::{Attempts, LaneClock, Outage};
use super::shared::SharedState;
use crate::config::Chain;
use crate::queue::{
    Claim, Document, DocumentFormat, FailedStorage, Finish, Finished, Queue, QueueError, Reason,
    Replaced, Replacement,
};
use crate::scoreboard::{Event, LaneStep, Outcome};
use crate::settings::RedisFormat;
use crate::storage::fan_out::WriterPool;
use crate::telemetry::VconTrace;
use crate::vcon::{self, Merged, VconId};

/// The part of the drain timeout that links get to finish. The rest is for the orderly release of claims: at
/// the end of the timeout, the worker is killed.
pub(super) const FINISHING_SHARE: f64 = 0.8;

/// The finish of a changed document of more bytes than this does not claim the next vCon, so that the lane
/// does not hold both.
const LARGE: usize = 4 << 20;

/// A lane's work on one claim.
pub(super) struct Pipeline<'a, 'scope, 'env> {
    pub shared: &'a Arc<SharedState>,
    pub queue: &'a mut Queue,
    pub modules: &'a mut LaneModules,
    pub writers: &'a mut WriterPool<'scope, 'env>,
    pub outage: &'a mut Outage,
    pub clock: &'a LaneClock<'a>,
    pub chain: &'a Chain,
    pub claim: &'a Claim,
    /// Whether the claim comes from the queue of a storage that defers.
    pub is_backlog: bool,
    /// Whether the vCon goes to the end of its list if a stage denies it: in a trial, or if others have got through
    /// there since it was denied before.
    pub is_last_if_denied: bool,
    /// The tokens with which it was claimed.
    pub hand: Hand<'a>,
    /// When it was claimed.
    pub start: Instant,
    /// Whether the claim counts as received: not before its first step may begin, so that no vCon that only meets a
    /// used-up budget is counted or traced.
    pub is_begun: bool,
    /// The spans of the work on it, while that goes on.
    pub trace: Option<VconTrace>,
    /// The request for the next vCon, to go with the finish of this one.
    pub next: NextClaim<'a>,
}

impl Pipeline<'_, '_, '_> {
    /// Works on the claim, and releases it.
    ///
    /// Returns false if it may still be claimed: the worker drains, and Redis is unavailable.
    pub fn run(&mut self, document: Document) -> bool {
        let start = self.start;
        let mut job = None;
        let ending = match self.process(document, &mut job) {
            Ok(took) => {
                if let Some(trace) = self.trace.take() {
                    trace.end();
                }
                self.log_finished(job.as_ref(), took.duration_since(start));
                self.note_storage_letters(job.as_ref());
                self.after_processing(job.as_ref(), None);
                return true;
            }
            Err(ending) => ending,
        };
        // However long Redis takes now, the chain is done.
        self.clock.end();
        if !ending.is_bounce() {
            self.begin();
        }
        self.end_trace(&ending);
        self.release(job, ending, start)
    }

    /// From the document to the finish. Returns when the finish began.
    fn process(&mut self, document: Document, job: &mut Option<Job>) -> Result<Instant, Ending> {
        let loaded = self.load(document)?;
        let job = job.insert(loaded);
        self.put_back_tokens(job);
        self.announce(job)?;
        self.run_links(job)?;
        loop {
            self.save(job)?;
            self.begin();
            let finishing = Instant::now();
            self.clock.show_step(LaneStep::Finish);
            self.clock.end();
            if self.finish(job)? {
                return Ok(finishing);
            }
            self.clock.reopen();
            self.merge(job)?;
        }
    }

    /// Makes a job of the document, which goes on where an earlier claim of the entry has stopped.
    fn load(&mut self, document: Document) -> Result<Job, Ending> {
        let Some(id) = self.claim.id() else {
            let error = match document {
                Document::Unusable(why) => why,
                _ => format!("the entry \"{}\" is not a UUID", self.claim.shown()),
            };
            return Err(Ending::failed("queue", error));
        };
        let kept = self.claim.progress.as_deref();
        let kept = kept.and_then(|text| ChainProgress::read(text, self.chain));
        let other = match &kept {
            Some(progress) if *progress.id() != id => {
                Some(self.with_redis(|queue| queue.load(progress.id()))?)
            }
            _ => None,
        };
        let kept = kept.filter(|progress| progress.fits(other.as_ref().unwrap_or(&document)));
        let (id, document, progress) = match kept {
            Some(progress) => (progress.id().clone(), other.unwrap_or(document), progress),
            None => (id.clone(), document, ChainProgress::none(id)),
        };
        if progress.is_begun() {
            log::debug!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                "{id} goes on in chain {} after {progress}", self.chain.name
            );
        }
        let (kind, text) = self.document_text(&id, document)?;
        Job::open(id, kind, text, self.shared.settings.json_bodies, progress)
    }

    /// Returns the text of a document that Redis has, else of the one that a storage has.
    pub(super) fn document_text(
        &mut self,
        id: &VconId,
        document: Document,
    ) -> Result<(DocumentFormat, String), Ending> {
        match document {
            Document::Found(kind, bytes) => {
                if kind == DocumentFormat::Json {
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

    /// Copies the document back to Redis from the first storage that has it.
    fn restore(&mut self, id: &VconId) -> Result<(DocumentFormat, String), Ending> {
        let missing = "there is no document under its key in Redis";
        if !self.shared.settings.storage_fallback {
            return Err(unusable(missing.to_owned()));
        }
        let mut attempts = Attempts::new(&self.shared.settings);
        loop {
            let modules = &mut *self.modules;
            match self
                .clock
                .timed(|deadline| modules.find(id, deadline), Result::is_err)
            {
                Ok(Some((storage, json))) => {
                    let kind = self.kind_of_new();
                    self.with_redis(|queue| queue.restore(id, kind, &json))?;
                    log::info!(
                        vcon_id = id.as_str(), storage_name = storage.as_str();
                        "{id} had gone from Redis and was restored from storage {storage}"
                    );
                    // Read again: this is the text to compare with at the finish.
                    return match self.with_redis(|queue| queue.load(id))? {
                        Document::Missing => Err(unusable(missing.to_owned())),
                        restored => self.document_text(id, restored),
                    };
                }
                Ok(None) => {
                    return Err(unusable(format!("{missing} and in none of the storages")));
                }
                Err((stage, failure)) if failure.kind.is_final() => {
                    return Err(unusable(format!(
                        "{missing}, and {stage} cannot return it: {failure}"
                    )));
                }
                Err((stage, failure)) => {
                    let number = attempts.number();
                    log::debug!("{stage} may hold {id}, attempt {number}: {failure}");
                    if !self.next_attempt(&mut attempts)? {
                        return Err(Ending::Unavailable(ChainFailure {
                            stage: "load".to_owned(),
                            error: format!("{missing}, and {stage} may hold it: {failure}"),
                            stages: vec![stage],
                            attempts: number,
                            kind: failure.kind,
                        }));
                    }
                }
            }
        }
    }

    /// The format in which a new vCon is written to Redis.
    fn kind_of_new(&self) -> DocumentFormat {
        match self.shared.settings.redis_format {
            RedisFormat::Json => DocumentFormat::Json,
            RedisFormat::Auto if self.shared.slot.has_seen_json() => DocumentFormat::Json,
            RedisFormat::Auto | RedisFormat::Plain => DocumentFormat::Text,
        }
    }

    /// Writes the document if it changed, announces the vCon and releases the claim, in one step. Returns
    /// false if Redis has another document by now, which must be merged.
    fn finish(&mut self, job: &mut Job) -> Result<bool, Ending> {
        let changed = job.last_text()?;
        let egress = if job.progress.is_halted() {
            &[][..]
        } else {
            &self.chain.egress_lists[..]
        };
        let id = job.id().clone();
        let routes = job.progress.routes_besides(&id, egress);
        let letters = self.storage_letters(job, &id);
        let context = self.trace.as_ref().and_then(|it| it.context());
        let context = context.map(<[u8]>::to_vec);
        // Even if nothing changed: storages that were given an old version must get the new one.
        let is_compared = changed.is_some() || job.progress.is_stored();
        let document = job.base.as_deref().filter(|_| is_compared);
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
            context: context.as_deref(),
            failed_storages: &letters,
        };
        loop {
            match self.try_to_finish(&finish) {
                Ok(finished) => {
                    self.outage.end();
                    return self.note_finish(&id, finished);
                }
                Err(error @ QueueError::Document(_)) => {
                    self.outage.end();
                    return Err(Ending::failed("queue", error.to_string()));
                }
                Err(error) => {
                    let waited = self.outage.wait_anyway(&error, self.clock);
                    waited.map_err(|_| Ending::ClaimLeft)?;
                }
            }
        }
    }

    /// Sends the finish, with the request for the next vCon if the lane would claim one now.
    fn try_to_finish(&mut self, finish: &Finish<'_>) -> Result<Finished, QueueError> {
        let is_large =
            |document: &Replacement<'_>| document.text.unwrap_or(document.base).len() > LARGE;
        let config = self.modules.config();
        // The next vCon does not wait for a hook.
        let may = !finish.document.as_ref().is_some_and(is_large)
            && !self.modules.hooks().after_processing;
        let lists = may.then(|| self.next.lists(self.shared, config, self.clock));
        let Some(lists) = lists.flatten() else {
            return self.queue.finish(self.claim, finish);
        };
        self.next.note_sent();
        let (finished, next) = self.queue.finish_and_claim(self.claim, finish, lists)?;
        self.next.note_reply(next);
        Ok(finished)
    }

    /// Says what the reply to a finish means. Returns false if the document must be merged first.
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
                Ok(list) => Err(Ending::Unavailable(ChainFailure::at_list(&list, &holds))),
                Err(error) => Err(Ending::failed("egress", format!("{error}"))),
            },
        }
    }

    /// The entries for the queues of storages that have refused the vCon or get it later.
    fn storage_letters(&self, job: &Job, id: &VconId) -> Vec<FailedStorage> {
        let mut letters = Vec::new();
        for (storage, error, attempts) in job.progress.refused() {
            let stage = format!("storage {storage}");
            log::error!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str(), storage_name = storage;
                "{id} went to DLQ:storage:{storage} from chain {}: {error}", self.chain.name
            );
            let meter = self.modules.meters().storage(storage);
            meter.count(Event::DeadLettered);
            let failures = self.modules.meters().storage_failures(storage);
            failures.count(Event::DeadLettered);
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

    /// Counts and logs a vCon that is done.
    fn log_finished(&self, job: Option<&Job>, took: Duration) {
        let (entry, name, seconds) = (self.claim.shown(), &self.chain.name, took.as_secs_f64());
        if self.is_backlog {
            // It was counted when it was finished without that storage.
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

    /// Merges what the chain has made of the base with the document that Redis has now.
    pub(super) fn merge(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let (kind, theirs) = match self.with_redis(|queue| queue.load(&id))? {
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
            // The same value in another text, as RedisJSON writes it.
            job.kind = kind;
            job.note_written(theirs);
            return Ok(());
        }
        let Some(base) = job.origin.as_deref().or(job.base.as_deref()) else {
            let error = "the document was deleted and stored again meanwhile";
            return Err(unusable(error.to_owned()));
        };
        let merged = vcon::merge(base, &ours, theirs.clone());
        let merged = merged.map_err(|error| {
            Ending::failed("parse", format!("what was written meanwhile {error}"))
        })?;
        job.kind = kind;
        job.base = Some(theirs);
        job.origin = None;
        self.adopt(job, merged);
        Ok(())
    }

    /// Goes on with the result of a merge, and logs what could not be merged.
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
        // The storages have the former version.
        job.progress.forget_storages();
        // The same number may be that of another part by now.
        job.progress.forget_parts();
    }

    /// Writes to Redis what the links have done so far: for a link that reads it there, or for the next claim.
    pub(super) fn write(&mut self, job: &mut Job) -> Result<(), Ending> {
        while let (Some(text), Some(base)) = (job.changed_text(), job.base.clone()) {
            let (id, kind) = (job.id().clone(), job.kind);
            match self.with_redis(|queue| queue.replace(&id, kind, &base, &text))? {
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

    /// After a failed attempt: waits for the next one. Returns false if it was the last.
    pub(super) fn next_attempt(&self, attempts: &mut Attempts) -> Result<bool, Ending> {
        let waited = attempts.wait_for_next(self.clock);
        waited.map_err(|_| Ending::Interrupted)
    }

    /// Takes a step in Redis, and tries it again until Redis answers.
    pub(super) fn with_redis<T>(
        &mut self,
        mut step: impl FnMut(&mut Queue) -> Result<T, QueueError>,
    ) -> Result<T, Ending> {
        loop {
            // The time that Redis takes does not count.
            self.clock.pause();
            let stepped = step(self.queue);
            self.clock.resume();
            match stepped {
                Ok(done) => {
                    self.outage.end();
                    return Ok(done);
                }
                Err(error @ QueueError::Document(_)) => {
                    return Err(Ending::failed("queue", error.to_string()));
                }
                Err(error) => self.wait_for_redis(&error)?,
            }
        }
    }

    /// The first step begins: counts the claim, and begins its spans if anybody wants them. Once for each claim.
    pub(super) fn begin(&mut self) {
        if std::mem::replace(&mut self.is_begun, true) {
            return;
        }
        self.count(Event::Received);
        let list = self.modules.meters().list(&self.claim.list);
        list.count(Event::Received);
        self.trace = self.shared.tracing.as_ref().map(|tracing| {
            let (entry, context) = (self.claim.shown(), &self.claim.context);
            tracing.begin(&entry, &self.chain.name, context, self.start)
        });
    }

    /// Ends the spans of a vCon that has not got to the end of its chain.
    fn end_trace(&mut self, ending: &Ending) {
        let Some(trace) = self.trace.take() else {
            return;
        };
        match ending {
            Ending::Failed(failure) | Ending::Unavailable(failure) => {
                trace.fail(
                    failure.kind,
                    &format!("{}: {}", failure.stage, failure.error),
                );
            }
            Ending::Interrupted | Ending::ClaimLeft => trace.give_back("the worker drains"),
            Ending::NotOurs => trace.give_back("another worker has it"),
            Ending::NotNow(_) => trace.give_back("a server or a budget wants it to wait"),
        }
    }

    /// Counts an event of the chain.
    pub(super) fn count(&self, event: Event) {
        self.modules.meters().chain(&self.chain.name).count(event);
    }
}

fn unusable(error: String) -> Ending {
    Ending::failed("load", error)
}
