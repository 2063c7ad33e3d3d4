//! What an unavailable stage says to probes: one right after its failure, then a thread of its own until it is
//! back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::circuit_breaker::{BreakerState, ProbeError, is_deferring};
use super::modules::{Stage, begin_host, not_a_list};
use super::pipeline::Pipeline;
use super::shared::SharedState;
use crate::backoff::Backoff;
use crate::config::Config;
use crate::failure::{Failure, FailureKind, pattern};
use crate::queue::{Lengths, Server};
use crate::storage::Storage;

/// How long Redis may take to tell whether a key is a list.
const LIST_PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What a probe tells of a stage at which all attempts for a vCon have failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Diagnosis {
    /// It does not answer, for this reason.
    Unavailable(Failure),
    /// It is reachable, and fails for the vCon.
    Failing {
        /// Whether all its connections were in use when it was probed.
        is_probe_crowded: bool,
    },
    /// It works, but all its connections are in use: by others, or by this worker's own lanes.
    Crowded,
}

/// Says what the kind of failure and the probe after it tell.
fn diagnose(kind: FailureKind, probed: Result<(), Failure>) -> Diagnosis {
    match probed {
        Err(probe) if probe.kind != FailureKind::Crowded => Diagnosis::Unavailable(probe),
        // Whoever has no room for one more is reachable.
        _ if kind == FailureKind::Crowded => Diagnosis::Crowded,
        probed => Diagnosis::Failing {
            is_probe_crowded: probed.is_err(),
        },
    }
}

impl Pipeline<'_, '_, '_> {
    /// Probes a stage at which all attempts have failed in this way.
    pub(super) fn diagnose(&mut self, stage: &Stage, kind: FailureKind) -> Diagnosis {
        diagnose(kind, self.modules.probe(stage, self.clock.drain()))
    }

    /// Opens the breaker of a stage until a probe of it succeeds. A thread of its own probes it. The stage has
    /// failed with the error `attempted`, if that is its own alone, and then in a `probe`.
    pub(super) fn hold(&self, stage: &Stage, attempted: Option<&str>, probe: &Failure) {
        let (shared, config) = (self.shared, self.modules.config());
        let why = &match (stage, attempted) {
            // The probe knows no more.
            (Stage::List(_), Some(attempted)) => attempted.to_owned(),
            _ => reason(attempted, &probe.message),
        };
        let state = BreakerState::Unavailable;
        if !shared.breakers.open_breaker(stage, config, state, why) {
            return;
        }
        if shared.slot.begin_outage(format_args!("{stage} {AWAY}")) {
            log_away(stage, config, why);
        } else {
            log::debug!("{} finds {stage} unavailable as well: {why}", shared.name);
        }
        let prober = Prober {
            shared: Arc::clone(shared),
            config: Arc::clone(config),
            stage: stage.clone(),
            error: probe.message.clone(),
            is_denied: probe.kind == FailureKind::Denied,
            drain: self.clock.drain().clone(),
            storage: self.modules.prober(stage),
        };
        let thread = thread::Builder::new().name("prober".to_owned());
        if let Err(error) = thread.spawn(|| prober.run()) {
            log::error!(
                "could not start a prober of {stage}; trying its vCons again at once: {error}"
            );
            shared.breakers.close(stage, config);
            shared.slot.leave_outage(format_args!("{stage} {AWAY}"));
        }
    }

    /// Logs that the stage is back, if the log has that it is away and no worker finds it so any more: the
    /// worker that did has ended.
    pub(super) fn settle_outage(&self, stage: &Stage) {
        let settled = self
            .shared
            .slot
            .settle_outage(format_args!("{stage} {AWAY}"));
        if let Some(time) = settled {
            log_back(stage, self.modules.config(), time);
        }
    }
}

/// The name of an outage for the log: of a stage that does not answer.
const AWAY: &str = "is away";

fn log_away(stage: &Stage, config: &Arc<Config>, why: &str) {
    if is_deferring(stage, config) {
        log::warn!("{stage} is away, its vCons wait in its queue until it is back: {why}");
    } else {
        let chains = stage.chains(config).join(", ");
        log::warn!("{stage} is away, on hold until it is back: chain {chains}: {why}");
    }
}

fn log_back(stage: &Stage, config: &Arc<Config>, time: Duration) {
    let (seconds, chains) = (time.as_secs_f64(), stage.chains(config).join(", "));
    log::info!("{stage} is back after {seconds:.1} s, chain {chains} goes on");
}

/// The error of a stage in all attempts, and in the probe after them; once, if they have the same cause.
fn reason(attempted: Option<&str>, probed: &str) -> String {
    // What could not be done, and why.
    let parts = |error: &str| {
        let (what, why) = error.rsplit_once(": ").unwrap_or(("", error));
        (pattern(what), pattern(why))
    };
    let Some(attempted) = attempted else {
        return probed.to_owned();
    };
    let ((what, why), (what_probed, why_probed)) = (parts(attempted), parts(probed));
    if why == why_probed || !what.is_empty() && what == what_probed {
        // That of the probe names no vCon.
        probed.to_owned()
    } else if pattern(attempted).contains(&why_probed) {
        // A probe may know less: an answer to HEAD has no text.
        attempted.to_owned()
    } else {
        format!("{attempted}; its probe: {probed}")
    }
}

/// Probes one backend until that succeeds.
struct Prober {
    shared: Arc<SharedState>,
    config: Arc<Config>,
    stage: Stage,
    /// Why the last probe has failed.
    error: String,
    /// Whether it was denied.
    is_denied: bool,
    drain: Receiver<()>,
    /// The storage to probe, if it shares something with that of a lane.
    storage: Option<Box<dyn Storage>>,
}

impl Prober {
    fn run(mut self) {
        let since = Instant::now();
        let settings = self.shared.settings.clone();
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let mut denials = self.shared.breakers.denials();
        if self.is_denied {
            self.shared.health.note_denied(&self.stage, &self.error);
        }
        let Some(mut probe) = self.new_probe() else {
            return self.give_up();
        };
        let mut error = ProbeError::None;
        loop {
            let wait = match self.is_denied {
                true => denials.next_wait(),
                false => backoff.next_wait(),
            };
            let (stage, breakers) = (&self.stage, &self.shared.breakers);
            breakers.note_probe(stage, &self.config, (&error, self.is_denied), wait);
            if self.drain.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if !Arc::ptr_eq(&self.shared.current.get(), &self.config) {
                return self.give_up();
            }
            match probe() {
                Ok(()) => break,
                // It is reachable, and has connections for others.
                Err(failure) if failure.kind == FailureKind::Crowded => break,
                Err(failure) => {
                    let outage = format_args!("{stage} {AWAY}");
                    self.is_denied = failure.kind == FailureKind::Denied;
                    if !self.is_denied {
                        self.shared.health.end_denial(stage);
                    } else if Arc::ptr_eq(&self.shared.current.get(), &self.config) {
                        self.shared.health.note_denied(stage, &failure.message);
                    }
                    if self.shared.slot.renew_outage(outage) {
                        log_away(stage, &self.config, &failure.message);
                    } else {
                        log::debug!("{stage} is still away: {failure}");
                    }
                    // The error of the attempts may say more than that of a probe.
                    error = if pattern(&failure.message) == pattern(&self.error) {
                        ProbeError::Same
                    } else {
                        self.error.clone_from(&failure.message);
                        ProbeError::New(failure.message)
                    };
                }
            }
        }
        let (slot, stage) = (&self.shared.slot, &self.stage);
        self.shared.health.end_denial(stage);
        // Before any lane may find it unavailable anew.
        match slot.end_outage(format_args!("{stage} {AWAY}")) {
            Some(time) => log_back(stage, &self.config, time.max(since.elapsed())),
            None => log::debug!("{} finds {stage} available again", self.shared.name),
        }
        self.close();
    }

    /// Closes the breaker, though it is not known whether the stage is back.
    fn give_up(&self) {
        let stage = &self.stage;
        self.shared.health.end_denial(stage);
        self.shared
            .slot
            .leave_outage(format_args!("{stage} {AWAY}"));
        self.close();
    }

    fn close(&self) {
        self.shared.breakers.close(&self.stage, &self.config);
        self.shared.wakeup.wake_all();
    }

    /// Opens the backend for this thread, and returns what probes it.
    fn new_probe(&mut self) -> Option<Box<dyn FnMut() -> Result<(), Failure>>> {
        match &self.stage {
            Stage::Link(name) => {
                let mut link = self.config.links.get(name)?.open_link();
                let drain = self.drain.clone();
                Some(Box::new(move || guarded(|| link.probe(&drain))))
            }
            Stage::Storage(name) => {
                let mut storage = match self.storage.take() {
                    Some(storage) => storage,
                    None => self.config.storages.get(name)?.open_storage(),
                };
                Some(Box::new(move || guarded(|| storage.probe())))
            }
            Stage::Tracer(_) | Stage::Hook(_) => {
                let (host, drain) = (self.config.host(), self.drain.clone());
                Some(Box::new(move || {
                    guarded(|| begin_host(&host, &drain).map(drop))
                }))
            }
            Stage::List(list) => {
                let server = Server::new(&self.shared.settings.redis_url).ok()?;
                let mut lengths = Lengths::new(server, LIST_PROBE_LIMIT);
                let (names, list) = ([list.to_string()], list.clone());
                Some(Box::new(move || match lengths.ask(&names, &[]) {
                    Ok((lengths, _)) if lengths.iter().all(Option::is_some) => Ok(()),
                    Ok(_) => Err(not_a_list(&list)),
                    Err(error) => Err(Failure::transient(error.to_string())),
                }))
            }
        }
    }
}

/// Runs a probe; one that panics has failed.
pub(super) fn guarded(probe: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(probe))
        .unwrap_or_else(|_| Err(Failure::permanent("its probe panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_attempts_and_of_the_probe_is_told_once_if_the_cause_is_one() {
        for (attempted, probed, expected) in [
            (None, "no", "no"),
            (Some("refused"), "refused", "refused"),
            (
                Some("could not POST to http://h/: Connection refused (os error 111)"),
                "could not connect to http://h/: Connection refused (os error 111)",
                "could not connect to http://h/: Connection refused (os error 111)",
            ),
            (
                Some("could not save a.json: 403 Forbidden: the key is not known"),
                "could not look at the bucket: 403 Forbidden",
                "could not save a.json: 403 Forbidden: the key is not known",
            ),
            (
                Some("could not save: no answer within 30 s"),
                "could not connect: no answer within 5 s",
                "could not connect: no answer within 5 s",
            ),
            (
                Some("could not start `x`: No such file or directory (os error 2)"),
                "could not start `x`: there is no such program for this user",
                "could not start `x`: there is no such program for this user",
            ),
            (
                Some("no answer within 30 s"),
                "could not connect: refused",
                "no answer within 30 s; its probe: could not connect: refused",
            ),
        ] {
            assert_eq!(reason(attempted, probed), expected);
        }
    }

    #[test]
    fn a_stage_whose_connections_are_in_use_does_not_count_as_failing() {
        use FailureKind::{Crowded, Slow};
        let crowded = || Err(Failure::crowded("too many"));
        let away = Failure::transient("nobody listens");
        let failing = |is_probe_crowded| Diagnosis::Failing { is_probe_crowded };
        let unavailable = || Diagnosis::Unavailable(away.clone());
        for (kind, probed, expected) in [
            (Crowded, Ok(()), Diagnosis::Crowded),
            (Crowded, crowded(), Diagnosis::Crowded),
            (Crowded, Err(away.clone()), unavailable()),
            (Slow, Ok(()), failing(false)),
            (Slow, crowded(), failing(true)),
            (Slow, Err(away.clone()), unavailable()),
        ] {
            let found = diagnose(kind, probed.clone());
            assert_eq!(found, expected, "{kind:?} {probed:?}");
        }
    }
}
