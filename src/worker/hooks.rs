//! The hooks and tracers of the deployment, called around the chain and its links.
//!
//! ```text
//! before_processing ─► tracers (-1) ─► link 0 ─► after_link ─► tracers (0) ─► link 1 … ─► storages
//!   └─ says no: the vCon is done, without storages and egress                  ─► finish ─► after_processing
//! ```
//!
//! They read the vCon in Redis, so what links have done is written there before each call. None of them may
//! lose a vCon: an error of `after_link`, `after_processing` or a tracer is logged, and the chain goes on. A
//! tracer with `dlq_vcon_on_error` and `before_processing` are parts of the chain, as links are: a vCon fails
//! for an error that they raise, and waits if the host cannot run, or a server that they need is away.

use std::sync::Arc;
use std::time::Duration;

use super::job::Job;
use super::modules::Stage;
use super::pipeline::{FINISHING_SHARE, Pipeline};
use super::release::{ChainFailure, Ending};
use super::retry::Attempts;
use crate::config::Tracer;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::link::Next;
use crate::program::{Clock, ProgramError};
use crate::python::{AfterLink, LinkStatus, Trace};
use crate::vcon::VconId;

/// What is known before a link, for those who are told after it.
pub(super) struct BeforeLink {
    id: VconId,
    parties: Vec<String>,
}

impl Pipeline<'_, '_, '_> {
    /// Asks the hook whether the vCon is to be processed, and tells the tracers that it begins; once for each
    /// time that it was pushed.
    pub(super) fn announce(&mut self, job: &mut Job) -> Result<(), Ending> {
        let has_tracers = self.has_tracers();
        let has_hook = self.modules.hooks().before_processing && !self.is_backlog;
        if job.progress.is_begun() || !(has_hook || has_tracers) {
            return Ok(());
        }
        if has_hook && !self.before_processing(job)? {
            log::info!(
                vcon_id = job.id().as_str(), chain_name = self.chain.name.as_str();
                "The hook before_processing passes over {}", job.id()
            );
            job.progress.note_halt();
            return Ok(());
        }
        if has_tracers {
            let id = job.id().clone();
            self.trace(&id, &id, -1)?;
        }
        job.progress.note_announced();
        Ok(())
    }

    /// What has to be known before a link; nothing where nobody is told.
    pub(super) fn before_link(&self, job: &mut Job) -> Result<Option<BeforeLink>, Ending> {
        if !self.modules.hooks().after_link && !self.has_tracers() {
            return Ok(None);
        }
        let parties = match self.modules.hooks().after_link {
            true => job.open_vcon()?.contacts(),
            false => Vec::new(),
        };
        Ok(Some(BeforeLink {
            id: job.id().clone(),
            parties,
        }))
    }

    /// Tells the hook and the tracers how a link has ended. A link that will be tried again has not ended.
    pub(super) fn after_link(
        &mut self,
        job: &mut Job,
        name: &str,
        index: usize,
        before: Option<BeforeLink>,
        ran: &Result<Next, Ending>,
    ) -> Result<(), Ending> {
        let Some(before) = before else {
            return Ok(());
        };
        let status = match ran {
            Ok(_) => LinkStatus::Success,
            Err(Ending::Failed(failure)) => LinkStatus::Error(&failure.error),
            Err(_) => return Ok(()),
        };
        if ran.is_ok() {
            self.write(job)?;
        }
        if self.modules.hooks().after_link {
            self.after_link_hook(name, &before, status);
        }
        let Ok(next) = ran else {
            return Ok(());
        };
        let inward = match next {
            Next::Switch(other) => other,
            Next::Continue | Next::Halt => &before.id,
        };
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        self.trace(inward, &before.id, index)
    }

    /// Tells the hook that the vCon is done, or why it is a dead letter.
    pub(super) fn after_processing(&self, job: Option<&Job>, error: Option<&str>) {
        if !self.modules.hooks().after_processing || self.is_backlog {
            return;
        }
        let id = job.map(|job| job.id().clone()).or_else(|| self.claim.id());
        let Some(id) = id else {
            return;
        };
        let told = self.modules.host().after_processing(
            &id,
            &self.chain.details,
            &self.hook_context(),
            error,
            || self.python_clock(),
        );
        log_failure("hook after_processing", &id, told);
    }

    fn before_processing(&mut self, job: &Job) -> Result<bool, Ending> {
        let id = job.id().clone();
        let context = self.hook_context();
        self.insist("hook before_processing", |this| {
            let clock = || this.python_clock();
            let details = &this.chain.details;
            let host = this.modules.host();
            host.before_processing(&id, details, &context, clock)
        })
    }

    fn after_link_hook(&self, name: &str, before: &BeforeLink, status: LinkStatus<'_>) {
        let Some(link) = self.modules.config().links.get(name) else {
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
        let told = self
            .modules
            .host()
            .after_link(&told, || self.python_clock());
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
        let config = Arc::clone(self.modules.config());
        let links = &self.chain.links;
        let told = Trace {
            inward,
            outward,
            links,
            index,
        };
        for Tracer { module, fails_vcon } in &config.tracers {
            let name = format!("tracer {}", module.entry);
            let call = |this: &mut Self| {
                let clock = || this.python_clock_of(module.timeout);
                this.modules.host().trace(module, told, clock)
            };
            if *fails_vcon {
                self.insist(&name, call)?;
            } else {
                log_failure(&name, outward, call(self));
            }
        }
        Ok(())
    }

    /// Makes a call that the vCon cannot do without, and makes it again if it fails in ways that pass.
    fn insist<T>(
        &mut self,
        what: &str,
        mut call: impl FnMut(&mut Self) -> Result<T, ProgramError>,
    ) -> Result<T, Ending> {
        let stage = Stage::Python(what.to_owned());
        let mut attempts = Attempts::new(&self.shared.settings);
        loop {
            let failure = match call(self) {
                Ok(done) => {
                    self.note_success(&stage);
                    return Ok(done);
                }
                Err(ProgramError::Interrupted) => return Err(Ending::Interrupted),
                Err(ProgramError::Failed(failure) | ProgramError::TimedOut(failure)) => failure,
            };
            let number = attempts.number();
            let chain_failure = ChainFailure::at(&stage, &failure, number);
            if !failure.is_transient() {
                return Err(Ending::Failed(chain_failure));
            }
            self.shared.health.note_attempt(&stage, number, &failure);
            if !self.next_attempt(&mut attempts)? {
                return Err(Ending::Unavailable(chain_failure));
            }
        }
    }

    fn python_clock(&self) -> Clock<'_> {
        self.python_clock_of(None)
    }

    /// The time limit of a call that takes `own` at most, or as the settings say. It is no part of the
    /// chain's timeout.
    fn python_clock_of(&self, own: Option<Duration>) -> Clock<'_> {
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
