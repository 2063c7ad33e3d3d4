//! The hooks and tracers of the deployment, called around the chain and its links.
//!
//! ```text
//! before_processing ─► tracers (-1) ─► link 0 ─► after_link ─► tracers (0) ─► link 1 … ─► storages
//!   └─ says no: the vCon is done, without storages and egress                  ─► finish ─► after_processing
//! ```
//!
//! They read and write the vCon in Redis, so what links have done is written there before each call, and the
//! document is read again after it. None of them may lose a vCon: an error of `after_link`,
//! `after_processing` or a tracer is logged, and the chain goes on. A tracer with `dlq_vcon_on_error` and
//! `before_processing` are parts of the chain, as links are: a vCon fails for an error that they raise, and
//! waits if the host cannot run, a server that they need is away, or they raise it for all vCons.

use std::sync::Arc;
use std::time::Duration;

use super::job::Job;
use super::modules::Stage;
use super::pipeline::{FINISHING_SHARE, Pipeline};
use super::release::{ChainFailure, Ending, NotNow};
use super::retry::Attempts;
use crate::config::Tracer;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::program::{Clock, ProgramError};
use crate::python::{AfterLink, LinkStatus, Trace};
use crate::queue::Document;
use crate::vcon::VconId;

/// What is known before a link, for those who are told after it.
pub(super) struct BeforeLink {
    id: VconId,
    parties: Vec<String>,
}

impl BeforeLink {
    /// What is known now.
    fn now(job: &mut Job) -> Result<Self, Ending> {
        Ok(Self {
            id: job.id().clone(),
            parties: job.open_vcon()?.contacts(),
        })
    }
}

impl Pipeline<'_, '_, '_> {
    /// Asks the hook whether the vCon is to be processed; once for each time that it was pushed.
    pub(super) fn announce(&mut self, job: &mut Job) -> Result<(), Ending> {
        let has_hook = self.modules.hooks().before_processing && !self.is_backlog;
        let has_tracers = self.has_tracers();
        if job.progress.is_begun() || !(has_hook || has_tracers) {
            return Ok(());
        }
        let is_processed = !has_hook || self.before_processing(job)?;
        job.progress.note_announced();
        if is_processed {
            job.progress.note_untold(has_tracers);
            return Ok(());
        }
        log::info!(
            vcon_id = job.id().as_str(), chain_name = self.chain.name.as_str();
            "The hook before_processing passes over {}", job.id()
        );
        job.progress.note_halt();
        Ok(())
    }

    /// What has to be known before a link; nothing where nobody is told.
    pub(super) fn before_link(&self, job: &mut Job) -> Result<Option<BeforeLink>, Ending> {
        if !self.modules.hooks().after_link && !self.has_tracers() {
            return Ok(None);
        }
        BeforeLink::now(job).map(Some)
    }

    /// Tells the hook and the tracers of the last link, or the tracers of the beginning, if that is still to be
    /// done. What was known `before` the link is lost if that was in an earlier claim.
    pub(super) fn tell(&mut self, job: &mut Job, before: Option<BeforeLink>) -> Result<(), Ending> {
        if !job.progress.is_untold() {
            return Ok(());
        }
        let before = match before {
            Some(before) => before,
            None => BeforeLink::now(job)?,
        };
        let chain = self.chain;
        let done = job.progress.links_done();
        let link = done.checked_sub(1).and_then(|last| chain.links.get(last));
        let index = i64::try_from(done).unwrap_or(i64::MAX) - 1;
        self.with_direct_writes(
            job,
            |()| false,
            |this, job| {
                if let Some(link) = link {
                    this.after_link_hook(link, &before, LinkStatus::Success);
                }
                let inward = job.id().clone();
                this.trace(&inward, &before.id, index)
            },
        )?;
        job.progress.note_untold(false);
        self.follow(job)
    }

    /// Reads the document again if hook or tracers have written it.
    fn follow(&mut self, job: &mut Job) -> Result<(), Ending> {
        let Some(base) = job.base.clone() else {
            return Ok(());
        };
        let id = job.id().clone();
        match self.with_redis(|queue| queue.load(&id))? {
            Document::Found(_, text) if text == base.as_bytes() => Ok(()),
            _ => self.read_again(job),
        }
    }

    /// Tells the hook that a link has failed for good. A link that will be tried again has not ended.
    pub(super) fn tell_failure(&self, link: &str, before: Option<&BeforeLink>, ending: &Ending) {
        if let (Some(before), Ending::Failed(failure)) = (before, ending) {
            self.after_link_hook(link, before, LinkStatus::Error(&failure.error));
        }
    }

    /// Tells the hook that the vCon is done, or why it is a dead letter. It belongs to nobody here by then: what
    /// the hook writes is not merged with what others write.
    pub(super) fn after_processing(&self, job: Option<&Job>, error: Option<&str>) {
        if !self.modules.hooks().after_processing || self.is_backlog {
            return;
        }
        let claimed = self.claim.id();
        let id = job.map(|job| job.id().clone()).or_else(|| claimed.clone());
        let (Some(id), Some(claimed)) = (id, claimed) else {
            return;
        };
        let (details, context) = (&self.chain.details, self.hook_context());
        let host = self.modules.host();
        let told = host.after_processing(&id, &claimed, details, &context, error, || {
            self.python_clock(None)
        });
        log_failure("hook after_processing", &id, told);
    }

    fn before_processing(&mut self, job: &mut Job) -> Result<bool, Ending> {
        let id = job.id().clone();
        let context = self.hook_context();
        let is_processed = self.with_direct_writes(
            job,
            |_| false,
            |this, _| {
                this.insist(&Stage::Hook("before_processing"), &id, |this| {
                    let clock = || this.python_clock(None);
                    let details = &this.chain.details;
                    let host = this.modules.host();
                    host.before_processing(&id, details, &context, clock)
                })
            },
        )?;
        self.follow(job)?;
        Ok(is_processed)
    }

    fn after_link_hook(&self, name: &str, before: &BeforeLink, status: LinkStatus<'_>) {
        let link = self.modules.config().links.get(name);
        let Some(link) = link.filter(|_| self.modules.hooks().after_link) else {
            return;
        };
        let options = link.options_as_json();
        let told = AfterLink {
            id: &before.id,
            link: name,
            module: &link.module,
            python: link.python().map(|module| &**module),
            options: options.as_deref(),
            status,
            parties: &before.parties,
        };
        self.clock.pause();
        let host = self.modules.host();
        let told = host.after_link(&told, || self.python_clock(None));
        self.clock.resume();
        log_failure("hook after_link", &before.id, told);
    }

    /// Whether there are tracers, and this is the way of a vCon through a chain.
    fn has_tracers(&self) -> bool {
        // A chain without links is not traced.
        let has_links = !self.chain.links.is_empty();
        has_links && !self.modules.config().tracers.is_empty() && !self.is_backlog
    }

    /// Calls the tracers in the order of the file.
    fn trace(&mut self, inward: &VconId, outward: &VconId, index: i64) -> Result<(), Ending> {
        if !self.has_tracers() {
            return Ok(());
        }
        let config = Arc::clone(self.modules.config());
        let told = Trace {
            inward,
            outward,
            links: &self.chain.links,
            index,
        };
        for Tracer { module, fails_vcon } in &config.tracers {
            let stage = Stage::Tracer(module.entry.clone());
            let call = |this: &mut Self| {
                let clock = || this.python_clock(module.timeout);
                this.modules.host().trace(module, told, clock)
            };
            if *fails_vcon {
                self.insist(&stage, outward, call)?;
            } else {
                self.clock.pause();
                let told = call(self);
                self.clock.resume();
                log_failure(&stage.to_string(), outward, told);
            }
        }
        Ok(())
    }

    /// Makes a call that the vCon cannot do without, and makes it again if it fails in ways that pass. Its time
    /// is no part of the chain's timeout.
    fn insist<T>(
        &mut self,
        stage: &Stage,
        id: &VconId,
        mut call: impl FnMut(&mut Self) -> Result<T, ProgramError>,
    ) -> Result<T, Ending> {
        let mut attempts = Attempts::new(&self.shared.settings);
        loop {
            self.clock.pause();
            let called = call(self);
            self.clock.resume();
            let failure = match called {
                Ok(done) => {
                    self.note_success(stage);
                    return Ok(done);
                }
                Err(ProgramError::Interrupted) => return Err(Ending::Interrupted),
                Err(ProgramError::TimedOut(failure)) => Failure::slow(failure.message),
                // All vCons may meet the same error.
                Err(ProgramError::Failed(failure)) if !failure.is_transient() => {
                    Failure::refused(failure.message)
                }
                Err(ProgramError::Failed(failure)) => failure,
            };
            if let Some(not_now) = NotNow::of(stage, &failure) {
                return Err(Ending::NotNow(vec![not_now]));
            }
            let number = attempts.number();
            let chain_failure = ChainFailure::at(stage, &failure, number);
            if !failure.is_transient() && self.is_vcon_bad(stage, id, &failure) {
                return Err(Ending::Failed(chain_failure));
            }
            self.shared.health.note_attempt(stage, number, &failure);
            if !failure.is_transient() || !self.next_attempt(&mut attempts)? {
                return Err(Ending::Unavailable(chain_failure));
            }
        }
    }

    /// The time limit of a call that takes `own` at most, or as the settings say.
    fn python_clock(&self, own: Option<Duration>) -> Clock<'_> {
        let own = own.unwrap_or(self.shared.settings.python.timeout);
        let drain_time = self.shared.settings.drain_timeout.mul_f64(FINISHING_SHARE);
        let clock = Clock::new(Deadline::NONE.begin(own));
        clock.draining(self.clock.drain(), drain_time, Some(self.clock.drain_end()))
    }

    /// What hooks are told besides: the context that came with the vCon, and its list.
    fn hook_context(&self) -> String {
        let context = serde_json::from_slice(&self.claim.context);
        let mut context: serde_json::Map<String, serde_json::Value> = context.unwrap_or_default();
        let list = self.claim.list.to_string();
        context.insert("ingress_list".to_owned(), list.into());
        serde_json::Value::Object(context).to_string()
    }
}

fn log_failure(what: &str, id: &VconId, told: Result<(), ProgramError>) {
    let failure = match told {
        Ok(()) => return,
        Err(ProgramError::Failed(failure) | ProgramError::TimedOut(failure)) => failure,
        Err(ProgramError::Interrupted) => Failure::transient("the worker drains"),
    };
    log::error!(vcon_id = id.as_str(); "{what} failed for {id}: {failure}");
}
