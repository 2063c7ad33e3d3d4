//! The links of a chain, run on a vCon one after another.

use std::mem;
use std::time::Instant;

use super::fault::{Ending, Fault, Stage};
use super::job::Job;
use super::pipeline::Pipeline;
use super::retry::Retry;
use crate::link::{Context, LinkError, Next};
use crate::queue::Overwritten;
use crate::scoreboard::Event;
use crate::settings::Critical;
use crate::vcon::{self, VconId};

/// How much of the drain timeout links get to finish: what is put back after it is put back in
/// order, while at the end of the timeout the whole worker is killed.
const FINISHING_SHARE: f64 = 0.8;

impl Pipeline<'_, '_, '_> {
    /// Runs the links that have not been run, in order.
    pub(super) fn run_links(&mut self, job: &mut Job) -> Result<(), Ending> {
        let chain = self.chain;
        for name in chain.links.iter().skip(job.progress.links_done()) {
            if job.progress.is_halted() {
                return Ok(());
            }
            let next = if self.is_left_alone(name, job)? {
                Next::Continue
            } else if self.modules.works_in_redis(name) {
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

    /// Whether the vCon passes by a link that would change it: who does not know what it says must be
    /// known, may break it.
    ///
    /// # Errors
    /// It is to be refused there.
    fn is_left_alone(&mut self, link: &str, job: &mut Job) -> Result<bool, Ending> {
        if !self.modules.rewrites(link) {
            return Ok(false);
        }
        let Some(extensions) = job.open_vcon()?.unknown_extensions() else {
            return Ok(false);
        };
        if self.shared.settings.critical == Critical::Refuse {
            let error = Context::refusal(&extensions);
            return Err(Ending::Failed(Fault::at(
                &Stage::Link(link.to_owned()),
                &error,
                1,
            )));
        }
        self.tell_critical(job, &extensions);
        Ok(true)
    }

    /// Tells once for each vCon that links do not change it.
    fn tell_critical(&self, job: &mut Job, extensions: &str) {
        if !mem::replace(&mut job.is_critical_told, true) {
            let (id, chain) = (job.id(), &self.chain.name);
            log::warn!(
                vcon_id = id.as_str(), chain_name = chain.as_str();
                "{id} is passed on as it is, links of chain {chain} do not change it: its `critical` names {extensions}"
            );
        }
    }

    /// Runs a link that reads and writes the vCon in Redis by itself. What others write there
    /// meanwhile it may write over: that is laid under what it has left.
    fn run_foreign_link(&mut self, name: &str, job: &mut Job) -> Result<Next, Ending> {
        self.write(job)?;
        let id = job.id().clone();
        self.insist(|queue| queue.begin_direct_write(&id))?;
        let next = self.run_link(name, job);
        let Some(overwritten) = self.insist(|queue| queue.end_direct_write(&id))? else {
            if next == Ok(Next::Continue) {
                self.read_again(job)?;
            }
            return next;
        };
        let laid = self.lay_under(job, overwritten, next.is_ok());
        // This worker has to end before that is done: recovery does it.
        if let Err(ending @ (Ending::Interrupted | Ending::ClaimLeft)) = laid {
            return Err(ending);
        }
        if let Err(Ending::Failed(fault) | Ending::Unavailable(fault)) = &laid {
            Overwritten::log_lost(&id, &fault.error);
        }
        self.insist(|queue| queue.forget_overwritten(&id))?;
        // If the link has failed itself, the vCon ends by that.
        let next = next?;
        laid.map(|()| next)
    }

    /// Lays the texts of others under what a link has left in Redis.
    fn lay_under(
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
                    // What stands in Redis is what the link has left.
                    merged.vcon.note_changed();
                    self.adopt(job, merged);
                }
                Err(error) => Overwritten::log_lost(&id, &format!("the text {error}")),
            }
        }
        // The rest of the chain may take long, and this worker may die in it.
        self.write(job)
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
            context.critical = settings.critical;
            let modules = &mut *self.modules;
            let ran = self.clock.timed(
                |deadline| {
                    context.deadline = deadline;
                    modules.run_link(name, vcon, &mut context)
                },
                |ran| matches!(ran, Err(LinkError::Failed(failure)) if failure.is_transient()),
            );
            let (expire, routes, left_alone) = (context.expire, context.routes, context.left_alone);
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
                    if let Some(extensions) = left_alone {
                        self.tell_critical(job, &extensions);
                    }
                    return Ok(next);
                }
                Err(LinkError::Interrupted) => return Err(Ending::Interrupted),
                Err(LinkError::Failed(failure)) => {
                    let fault = Fault::at(&stage, &failure, retry.attempt());
                    if !failure.is_transient() && self.is_the_vcons(&stage, job.id(), &failure) {
                        return Err(Ending::Failed(fault));
                    }
                    let health = &self.shared.health;
                    health.note_attempt(&stage, retry.attempt(), &failure);
                    // What others are refused for as well does not change from one moment to the next.
                    if !failure.is_transient() || !self.again(&mut retry)? {
                        return Err(Ending::Unavailable(fault));
                    }
                    meter.count(Event::Retried);
                    self.count(Event::Retried);
                }
            }
        }
    }

    /// Reads the document again after a link that has written it in Redis.
    fn read_again(&mut self, job: &mut Job) -> Result<(), Ending> {
        let id = job.id().clone();
        let document = self.insist(|queue| queue.load(&id))?;
        let (kind, text) = self.found(&id, document)?;
        let bodies = self.shared.settings.json_bodies;
        let opened = Job::open(id, kind, text, bodies, job.progress.clone())?;
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
        let bodies = self.shared.settings.json_bodies;
        *job = Job::open(id, kind, text, bodies, job.progress.clone())?;
        Ok(())
    }
}
