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

use std::cell::Cell;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Granting, Hand, NoToken, begin_request};
use super::circuit_breaker::defers;
use super::job::{ChainProgress, Content, Job};
use super::lane::NextClaim;
use super::modules::{LaneModules, Stage};
use super::prober::Diagnosis;
use super::release::{ChainFailure, Ending, NotNow, Until};
use super::retry::{Attempts, LaneClock, Outage};
use super::shared::SharedState;
use crate::config::{Budget, Chain};
use crate::failure::Failure;
use crate::link::{Context, LinkError, Next, Permit};
use crate::queue::{
    Claim, Document, DocumentFormat, FailedStorage, Finish, Finished, Overwritten, Queue,
    QueueError, Reason, Replaced, Replacement,
};
use crate::scoreboard::{Event, LaneStep, Meter, Outcome};
use crate::settings::{Critical, RedisFormat};
use crate::storage::fan_out::{self, WriterPool};
use crate::telemetry::VconTrace;
use crate::vcon::{self, Leaving, Merged, VconId};

/// The part of the drain timeout that links get to finish. The rest is for the orderly release of claims: at
/// the end of the timeout, the worker is killed.
pub(super) const FINISHING_SHARE: f64 = 0.8;

/// The finish of a changed document of more bytes than this does not claim the next vCon, so that the lane
/// does not hold both.
const LARGE: usize = 4 << 20;

/// The storages that do not have a vCon after an attempt.
#[derive(Default)]
struct Unsaved {
    /// Those that have failed.
    failures: Vec<(String, Failure)>,
    /// Those that were not asked.
    not_now: Vec<(String, NotNow)>,
}

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
    /// The tokens with which it was claimed.
    pub hand: Hand,
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
        let start = Instant::now();
        self.count(Event::Received);
        let list = self.modules.meters().list(&self.claim.list);
        list.count(Event::Received);
        self.begin_trace();
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

    /// Puts back the tokens with which the vCon was claimed and that its next step does not need: others can use
    /// them.
    fn put_back_tokens(&mut self, job: &Job) {
        let hand = self.hand.get_mut();
        if hand.is_empty() {
            return;
        }
        let next = match self.chain.links.get(job.progress.links_done()) {
            Some(link) => vec![Stage::Link(link.clone())],
            None => {
                let storages = job.progress.missing(&self.chain.storages).into_iter();
                storages.map(Stage::Storage).collect()
            }
        };
        let needed = next
            .iter()
            .filter_map(|stage| self.modules.budget_of(stage));
        let needed: Vec<_> = needed.collect();
        hand.retain(|it| needed.iter().any(|(budget, _)| it.is_of(budget)));
    }

    /// A token for a request to this stage, which begins now; nothing if the stage has no budget. Waits for
    /// Redis, but not for a token.
    fn token_for(&mut self, stage: &Stage) -> Result<Option<Granting>, Ending> {
        let Some((budget, longest)) = self.modules.budget_of(stage) else {
            return Ok(None);
        };
        loop {
            match begin_request(self.shared, &self.hand, &budget, longest) {
                Ok(granting) => {
                    if let Some(meter) = self.modules.meters().stage(stage) {
                        meter.count(Event::Permitted);
                    }
                    return Ok(Some(granting));
                }
                Err(NoToken::Due(due)) => {
                    return Err(Ending::NotNow(vec![NotNow::over_budget(stage, due)]));
                }
                Err(NoToken::Redis(error)) => self.wait_for_redis(&error)?,
            }
        }
    }

    fn wait_for_redis(&mut self, error: &QueueError) -> Result<(), Ending> {
        let waited = self.outage.wait_anyway(error, self.clock);
        waited.map_err(|_| Ending::Interrupted)
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

    /// Runs the links that have not run yet, in order.
    pub(super) fn run_links(&mut self, job: &mut Job) -> Result<(), Ending> {
        let chain = self.chain;
        self.tell(job, None)?;
        for name in chain.links.iter().skip(job.progress.links_done()) {
            if job.progress.is_halted() {
                return Ok(());
            }
            if let Some(position) = self.modules.config().links.get_index_of(name) {
                self.clock.show_step(LaneStep::Link(position));
            }
            let before = self.before_link(job)?;
            let ran = if self.is_skipped(name, job)? {
                Ok(Next::Continue)
            } else if self.modules.works_in_redis(name) {
                self.run_foreign_link(name, job)
            } else {
                self.run_link(name, job)
            };
            self.end_link_span(&ran);
            match ran {
                Ok(Next::Continue | Next::Again) => {}
                Ok(Next::Halt) => job.progress.note_halt(),
                Ok(Next::Switch(id)) => {
                    let switched = self.switch_to(job, id.clone());
                    if let Err(Ending::Unavailable(_) | Ending::NotNow(_) | Ending::Interrupted) =
                        switched
                    {
                        // The link has run: the next claim goes on with the vCon that it has named.
                        job.progress.note_switch(id);
                        job.progress.note_link();
                        job.progress.note_untold(before.is_some());
                    }
                    switched?;
                }
                Err(ending) => {
                    self.tell_failure(name, before.as_ref(), &ending);
                    return Err(ending);
                }
            }
            // Before anybody is told: whatever becomes of that, the link has run.
            job.progress.note_link();
            job.progress.note_untold(before.is_some());
            self.tell(job, before)?;
        }
        Ok(())
    }

    /// Whether a link that would change the vCon is skipped, as `critical` names extensions that this daemon
    /// does not know: a change could break them.
    ///
    /// # Errors
    /// By the settings, such a vCon fails instead.
    fn is_skipped(&mut self, link: &str, job: &mut Job) -> Result<bool, Ending> {
        if !self.modules.rewrites(link) {
            return Ok(false);
        }
        let Some(extensions) = job.open_vcon()?.unknown_extensions() else {
            return Ok(false);
        };
        if self.shared.settings.critical == Critical::Refuse {
            let error = Context::refusal(&extensions);
            let stage = Stage::Link(link.to_owned());
            return Err(Ending::Failed(ChainFailure::at(&stage, &error, 1)));
        }
        self.log_critical(job, &extensions);
        Ok(true)
    }

    /// Logs once for each vCon that links do not change it.
    fn log_critical(&self, job: &mut Job, extensions: &str) {
        if !mem::replace(&mut job.is_critical_logged, true) {
            let (id, chain) = (job.id(), &self.chain.name);
            log::warn!(
                vcon_id = id.as_str(), chain_name = chain.as_str();
                "{id} is passed on as it is, links of chain {chain} do not change it: its `critical` names {extensions}"
            );
        }
    }

    /// Runs one link, and tries it again if it fails in ways that pass.
    fn run_link(&mut self, name: &str, job: &mut Job) -> Result<Next, Ending> {
        let settings = &self.shared.settings;
        let drain_time = settings.drain_timeout.mul_f64(FINISHING_SHARE);
        let stage = Stage::Link(name.to_owned());
        let meter = self.modules.meters().link(name).clone();
        meter.count(Event::Received);
        let in_chain = self.modules.meters().chain_link(&self.chain.name, name);
        let in_chain = in_chain.clone();
        if let Some(trace) = &mut self.trace {
            trace.begin_link(job.id().as_str(), name, job.progress.links_done());
        }
        let mut attempts = Attempts::new(settings);
        let mut refused = Vec::new();
        let budget = self.modules.budget_of(&stage);
        let counts_requests = self.modules.counts_requests(name);
        loop {
            if let Some(not_now) = self.is_left_alone(&stage) {
                meter.count(Event::Returned);
                return Err(Ending::NotNow(vec![not_now]));
            }
            // Until the run has ended.
            let _token = match counts_requests {
                true => None,
                false => self.token_for(&stage)?,
            };
            let start = Instant::now();
            let vcon = job.open_vcon()?;
            let unknown = Cell::new(None);
            let (shared, hand) = (self.shared, &self.hand);
            let permits = || permit(shared, hand, budget.as_ref(), &meter, &unknown);
            let mut context = Context::new(self.clock.drain(), settings.egress_version)
                .finishing_within(drain_time, self.clock.drain_end());
            if counts_requests && budget.is_some() {
                context = context.with_budget(&permits);
            }
            context.critical = settings.critical;
            context.refused = mem::take(&mut refused);
            let modules = &mut *self.modules;
            let ran = self.clock.timed(
                |deadline| {
                    context.deadline = deadline;
                    modules.run_link(name, vcon, &mut context)
                },
                |ran| matches!(ran, Err(LinkError::Failed(failure)) if failure.is_transient()),
            );
            let (expire, routes, left_alone) = (context.expire, context.routes, context.left_alone);
            refused = context.refused;
            let took = start.elapsed();
            meter.observe(took);
            in_chain.observe(took);
            match &ran {
                Ok(Next::Again) => {}
                Ok(Next::Halt) => meter.count(Event::Halted),
                Ok(_) => meter.count(Event::Done),
                Err(LinkError::Interrupted | LinkError::OverBudget(_)) => {
                    meter.count(Event::Returned)
                }
                Err(LinkError::Failed(_)) => meter.count(Event::Failed),
            }
            match ran {
                Ok(Next::Again) => {
                    let id = vcon.id().clone();
                    job.progress.note_requests(&id, expire, routes);
                    self.note_success(&stage);
                    if let Some(extensions) = left_alone {
                        self.log_critical(job, &extensions);
                    }
                    self.keep_part(name, job)?;
                    attempts = Attempts::new(settings);
                }
                Ok(next) => {
                    let id = vcon.id().clone();
                    job.progress.note_requests(&id, expire, routes);
                    self.note_success(&stage);
                    if let Some(extensions) = left_alone {
                        self.log_critical(job, &extensions);
                    }
                    return Ok(next);
                }
                Err(LinkError::Interrupted) => return Err(Ending::Interrupted),
                Err(LinkError::OverBudget(due)) => match unknown.take() {
                    Some(error) => self.wait_for_redis(&error)?,
                    None => return Err(Ending::NotNow(vec![NotNow::over_budget(&stage, due)])),
                },
                Err(LinkError::Failed(failure)) => {
                    if let Some(not_now) = NotNow::of(&stage, &failure) {
                        return Err(Ending::NotNow(vec![not_now]));
                    }
                    let number = attempts.number();
                    let chain_failure = ChainFailure::at(&stage, &failure, number);
                    if let Some(trace) = &mut self.trace {
                        trace.note_failed_attempt(&failure, number);
                    }
                    if !failure.is_transient() && self.is_vcon_bad(&stage, job.id(), &failure) {
                        return Err(Ending::Failed(chain_failure));
                    }
                    let health = &self.shared.health;
                    health.note_attempt(&stage, number, &failure);
                    // A stage that refuses all vCons does not stop that within a moment.
                    if !failure.is_transient() || !self.next_attempt(&mut attempts)? {
                        return Err(Ending::Unavailable(chain_failure));
                    }
                    meter.count(Event::Retried);
                    self.count(Event::Retried);
                }
            }
        }
    }

    /// A link has done a part of its step, and runs again for the rest: what it has done is written at once, and
    /// the lane shows that it still moves. Does not keep a worker that drains.
    fn keep_part(&mut self, link: &str, job: &mut Job) -> Result<(), Ending> {
        if self.modules.works_in_redis(link) {
            self.read_again(job)?;
        } else {
            self.write(job)?;
        }
        if self.clock.is_draining() {
            return Err(Ending::Interrupted);
        }
        self.clock.pause();
        self.clock.resume();
        Ok(())
    }

    /// Runs a link that reads and writes the vCon in Redis by itself. It may overwrite what others write there
    /// meanwhile: those texts are merged with what it leaves.
    fn run_foreign_link(&mut self, name: &str, job: &mut Job) -> Result<Next, Ending> {
        let goes_on = |next: &Next| *next == Next::Continue;
        self.with_direct_writes(job, goes_on, |this, job| this.run_link(name, job))
    }

    /// Makes a call of something that reads and writes the vCon in Redis by itself, and reads the document
    /// again if it `is_read` after that.
    pub(super) fn with_direct_writes<T>(
        &mut self,
        job: &mut Job,
        is_read: impl FnOnce(&T) -> bool,
        call: impl FnOnce(&mut Self, &mut Job) -> Result<T, Ending>,
    ) -> Result<T, Ending> {
        self.write(job)?;
        let id = job.id().clone();
        self.with_redis(|queue| queue.begin_direct_write(&id))?;
        let called = call(self, job);
        let Some(overwritten) = self.with_redis(|queue| queue.end_direct_write(&id))? else {
            if called.as_ref().is_ok_and(is_read) {
                self.read_again(job)?;
            }
            return called;
        };
        let merged = self.merge_overwritten(job, overwritten, called.is_ok());
        // This worker has to end before that is done: recovery does it.
        if let Err(ending @ (Ending::Interrupted | Ending::ClaimLeft)) = merged {
            return Err(ending);
        }
        if let Err(Ending::Failed(failure) | Ending::Unavailable(failure)) = &merged {
            Overwritten::log_lost(&id, &failure.error);
        }
        self.with_redis(|queue| queue.forget_overwritten(&id))?;
        // If the call itself has failed, that is how the vCon ends.
        let done = called?;
        merged.map(|()| done)
    }

    /// Merges what a link has left in Redis with the texts of others that it has overwritten.
    fn merge_overwritten(
        &mut self,
        job: &mut Job,
        overwritten: Overwritten,
        is_done: bool,
    ) -> Result<(), Ending> {
        let read = self.read_again(job);
        if is_done {
            read?;
        }
        let id = job.id().clone();
        for theirs in overwritten.texts {
            let vcon = job.open_vcon()?;
            match vcon::merge(&overwritten.base, vcon, theirs) {
                Ok(mut merged) => {
                    // Redis has what the link left, not what the merge made.
                    merged.vcon.note_changed();
                    self.adopt(job, merged);
                }
                Err(error) => Overwritten::log_lost(&id, &format!("the text {error}")),
            }
        }
        // The rest of the chain may take long, and this worker may die in it.
        self.write(job)
    }

    /// Reads the document again after a link that has written it in Redis.
    pub(super) fn read_again(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let document = self.with_redis(|queue| queue.load(&id))?;
        if document == Document::Missing {
            // Somebody has deleted it while it was in work: it is not brought back.
            job.note_deleted();
            return Ok(());
        }
        let (kind, text) = self.document_text(&id, document)?;
        let bodies = self.shared.settings.json_bodies;
        let opened = Job::open(id, kind, text, bodies, job.progress.clone())?;
        (job.kind, job.base, job.content) = (opened.kind, opened.base, opened.content);
        job.origin = None;
        Ok(())
    }

    /// Writes the job's vCon, and goes on with the one that a link names.
    fn switch_to(&mut self, job: &mut Job, id: VconId) -> Result<(), Ending> {
        self.write(job)?;
        if let Some(seconds) = job.progress.take_expire() {
            let left = job.id().clone();
            self.with_redis(|queue| queue.expire(&left, seconds))?;
        }
        let document = self.with_redis(|queue| queue.load(&id))?;
        let (kind, text) = self.document_text(&id, document)?;
        job.progress.note_switch(id.clone());
        let bodies = self.shared.settings.json_bodies;
        *job = Job::open(id, kind, text, bodies, job.progress.clone())?;
        Ok(())
    }

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

    /// Says that a stage wants to be left alone for now, as another lane has been told.
    fn is_left_alone(&self, stage: &Stage) -> Option<NotNow> {
        let breakers = &self.shared.breakers;
        breakers.follow_waits(self.modules.config());
        let wait = breakers.wait_of(stage, self.modules.config());
        wait.map(|(time, error)| NotNow {
            stage: stage.clone(),
            until: Until::Asked(time),
            error,
        })
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
            let (mut asked, mut tokens) = (Vec::new(), Vec::new());
            for name in group {
                if let Some(not_now) = self.is_left_alone(&stage(name)) {
                    unsaved.not_now.push((name.clone(), not_now));
                    continue;
                }
                match self.token_for(&stage(name)) {
                    Ok(token) => {
                        tokens.extend(token);
                        asked.push(name.clone());
                    }
                    Err(Ending::NotNow(stages)) => {
                        let stages = stages.into_iter();
                        unsaved.not_now.extend(stages.map(|it| (name.clone(), it)));
                    }
                    Err(ending) => return Err(ending),
                }
            }
            if !asked.is_empty() {
                let failures = self.save_to(job, leaving, &asked, attempt);
                unsaved.failures.extend(failures);
            }
            drop(tokens);
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
                    failures.push((name.to_owned(), failure));
                }
                Err(failure) if self.is_vcon_bad(&stage, &leaving.current.id, &failure) => {
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
        let context = self.trace.as_ref().map(|it| it.context().to_vec());
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
        // The storages have the former version.
        job.progress.forget_storages();
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
                Err(error) => self
                    .outage
                    .wait_anyway(&error, self.clock)
                    .map_err(|_| Ending::Interrupted)?,
            }
        }
    }

    /// Begins the spans of the work on the vCon, if anybody wants them.
    fn begin_trace(&mut self) {
        self.trace = self.shared.tracing.as_ref().map(|tracing| {
            let (entry, context) = (self.claim.shown(), &self.claim.context);
            tracing.begin(&entry, &self.chain.name, context)
        });
    }

    /// Ends the span of the link that has run, if any has.
    fn end_link_span(&mut self, ran: &Result<Next, Ending>) {
        if let Some(trace) = &mut self.trace {
            trace.end_link(match ran {
                Err(Ending::Failed(failure) | Ending::Unavailable(failure)) => Some(&failure.error),
                Err(Ending::NotNow(stages)) => stages.iter().find_map(NotNow::refusal),
                _ => None,
            });
        }
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

/// A permit for one request of a link, whose budget this is. If Redis does not tell, says why in `unknown`.
fn permit(
    shared: &SharedState,
    hand: &Hand,
    budget: Option<&(Arc<Budget>, Duration)>,
    meter: &Meter,
    unknown: &Cell<Option<QueueError>>,
) -> Result<Permit, LinkError> {
    let Some((budget, longest)) = budget else {
        return Ok(Permit::default());
    };
    match begin_request(shared, hand, budget, *longest) {
        Ok(granting) => {
            meter.count(Event::Permitted);
            Ok(Permit::holding(granting))
        }
        Err(NoToken::Due(due)) => Err(LinkError::OverBudget(due)),
        Err(NoToken::Redis(error)) => {
            unknown.set(Some(error));
            Err(LinkError::OverBudget(Instant::now()))
        }
    }
}

fn unusable(error: String) -> Ending {
    Ending::failed("load", error)
}
