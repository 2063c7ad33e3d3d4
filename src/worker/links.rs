//! The links of a chain, one after another, for one vCon.
//!
//! ```text
//! skipped? ─► permit or token ─► run ─┬─ Continue ─► the next one
//!                ▲                    ├─ Again ─► the document is written ─┐
//!                └────────────────────┼────────────────────────────────────┘
//!                                     ├─ Halt, Switch
//!                                     └─ fails ─► another attempt, or the ending of the claim
//! ```

use std::cell::Cell;
use std::mem;
use std::time::Instant;

use super::job::Job;
use super::modules::Stage;
use super::permits::permit;
use super::pipeline::{FINISHING_SHARE, Pipeline};
use super::release::{ChainFailure, Ending, NotNow};
use super::retry::Attempts;
use crate::link::{Context, LinkError, Next};
use crate::queue::{Document, Overwritten};
use crate::scoreboard::{Event, LaneStep};
use crate::settings::Critical;
use crate::vcon::{self, VconId};

impl Pipeline<'_, '_, '_> {
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
        let in_chain = self.modules.meters().chain_link(&self.chain.name, name);
        let in_chain = in_chain.clone();
        let mut is_received = false;
        let mut attempts = Attempts::new(settings);
        let budget = self.modules.budget_of(&stage);
        let counts_requests = self.modules.counts_requests(name);
        let note_returned = |is_received: bool| {
            if is_received {
                meter.count(Event::Returned);
            }
        };
        loop {
            if let Some(not_now) = self.is_left_alone(&stage) {
                note_returned(is_received);
                return Err(Ending::NotNow(vec![not_now]));
            }
            // Until the run has ended.
            let _token = match counts_requests {
                true => None,
                false => self
                    .token_for(&stage)
                    .inspect_err(|_| note_returned(is_received))?,
            };
            let start = Instant::now();
            if !counts_requests || budget.is_none() {
                self.receive(name, job, &mut is_received, start);
            }
            let refused = job.progress.take_parts();
            let vcon = job.open_vcon()?;
            let (was_changed, had_refused) = (vcon.is_changed(), refused.len());
            let unknown = Cell::new(None);
            let (shared, hand) = (self.shared, &self.hand);
            let permits = || permit(shared, hand, budget.as_ref(), &meter, &unknown);
            let mut context = Context::new(self.clock.drain(), settings.egress_version)
                .finishing_within(drain_time, self.clock.drain_end());
            if counts_requests && budget.is_some() {
                context = context.with_budget(&permits);
            }
            context.critical = settings.critical;
            context.refused = refused;
            let modules = &mut *self.modules;
            let ran = self.clock.timed(
                |deadline| {
                    context.deadline = deadline;
                    modules.run_link(name, vcon, &mut context)
                },
                |ran| matches!(ran, Err(LinkError::Failed(failure)) if failure.is_transient()),
            );
            let (expire, routes, left_alone) = (context.expire, context.routes, context.left_alone);
            let refused = context.refused;
            // What was only refused is no sign that the stage works.
            let has_worked = refused.len() == had_refused || (!was_changed && vcon.is_changed());
            // A run that has met a used-up budget has done nothing.
            if !matches!(ran, Err(LinkError::OverBudget(_))) {
                self.receive(name, job, &mut is_received, start);
            }
            let took = start.elapsed();
            meter.observe(took);
            in_chain.observe(took);
            // Whatever ends the claim before the link is done, the next one does not ask about these again. But a
            // link that has failed because of them is to try them again.
            if !matches!(&ran, Err(LinkError::Failed(failure)) if failure.kind.is_final()) {
                job.progress.note_parts(refused);
            }
            match &ran {
                Ok(Next::Again) => {}
                Ok(Next::Halt) => meter.count(Event::Halted),
                Ok(_) => meter.count(Event::Done),
                Err(LinkError::Interrupted | LinkError::OverBudget(_)) => {
                    note_returned(is_received);
                }
                Err(LinkError::Failed(_)) => meter.count(Event::Failed),
            }
            match ran {
                Ok(Next::Again) => {
                    let id = job.id().clone();
                    job.progress.note_requests(&id, expire, routes);
                    if has_worked {
                        self.note_success(&stage);
                    }
                    if let Some(extensions) = left_alone {
                        self.log_critical(job, &extensions);
                    }
                    self.keep_part(name, job)?;
                    attempts = Attempts::new(settings);
                }
                Ok(next) => {
                    let id = job.id().clone();
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
                    let id = job.id().clone();
                    let failure = self.judge_denial(&stage, &id, failure);
                    if let Some(not_now) = NotNow::of(&stage, &failure) {
                        return Err(Ending::NotNow(vec![not_now]));
                    }
                    let number = attempts.number();
                    let chain_failure = ChainFailure::at(&stage, &failure, number);
                    if let Some(trace) = &mut self.trace {
                        trace.note_failed_attempt(&failure, number);
                    }
                    if !failure.is_transient() && self.is_vcon_bad(&stage, &id, &failure) {
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

    /// The link has got the vCon, with a token if it needs one, and its run has begun at `start`: counted and traced
    /// once, however often it runs.
    fn receive(&mut self, name: &str, job: &Job, is_received: &mut bool, start: Instant) {
        if mem::replace(is_received, true) {
            return;
        }
        self.begin();
        self.modules.meters().link(name).count(Event::Received);
        if let Some(trace) = &mut self.trace {
            let (id, index) = (job.id().as_str(), job.progress.links_done());
            trace.begin_link(id, name, index, start);
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
}
