//! Chains on hold: while a link or storage does not work, nothing is claimed for the chains that need
//! it, so that lanes do not waste attempts.
//!
//! ```text
//!           all attempts failed, and so does a probe         a probe succeeds
//! closed ────────────────────────────────────► unavailable ──────────────────► closed, lanes wake
//!    │  the probe succeeds, but three vCons        one vCon at a time is tried
//!    │  in a row have failed in all attempts
//!    └───────────────────────────────────────► failing ──────────────────────► closed, lanes wake
//!                                                            one goes through
//! ```
//!
//! A storage with `on_outage: defer` holds up nobody: what it cannot take waits in its own queue,
//! from which idle lanes claim when it is closed again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::lane::retain_claimable;
use super::modules::{Stage, begin_host, not_a_list};
use super::pipeline::Pipeline;
use super::shared::SharedState;
use crate::backoff::Backoff;
use crate::config::{Chain, Config, ListName, OnOutage};
use crate::failure::{Failure, FailureKind, pattern};
use crate::queue::{Lengths, Server, storage_letters_list};
use crate::scoreboard::{Slot, StageKind, UnavailableStage};
use crate::storage::Storage;
use crate::sys;

/// After this many different vCons in a row, a reachable backend counts as failing.
pub(super) const MOST_FAILURES: usize = 3;

/// How long Redis may take to tell whether a key is a list.
const LIST_PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The open breakers, as the lanes of this worker have found: of backends that do not work. All others are closed.
pub(super) struct CircuitBreakers {
    slot: Slot,
    open: Mutex<Vec<Breaker>>,
    version: AtomicU64,
    /// How many of them are failing, to be read without the lock.
    failing: AtomicUsize,
    /// The pause between two trials.
    pause: Duration,
}

struct Breaker {
    stage: Stage,
    /// A stage's name means something in its own configuration only.
    config: Arc<Config>,
    state: BreakerState,
    /// Since when it is open, in monotonic milliseconds.
    since: u64,
    /// The last error, and when it was seen.
    error: String,
    seen: u64,
    /// When the stage is tried next.
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerState {
    /// A prober probes it until it is back.
    Unavailable,
    /// It is reachable and fails. One vCon at a time is tried.
    Failing { in_trial: bool },
}

impl Breaker {
    fn note_error(&mut self, error: &str) {
        error.clone_into(&mut self.error);
        self.seen = sys::monotonic_ms();
    }

    /// What the scoreboard shows of it; `None` if its configuration does not have the stage.
    fn shown(&self) -> Option<UnavailableStage> {
        let config = &self.config;
        let (kind, position) = match &self.stage {
            Stage::Link(name) => (StageKind::Link, config.links.get_index_of(name)?),
            Stage::Storage(name) => {
                let kind = match defers(name, config) {
                    true => StageKind::DeferringStorage,
                    false => StageKind::Storage,
                };
                (kind, config.storages.get_index_of(name)?)
            }
            Stage::Tracer(name) => {
                let mut tracers = config.tracers.iter();
                let position = tracers.position(|it| it.module.entry == *name)?;
                (StageKind::Tracer, position)
            }
            Stage::Hook(_) => (StageKind::Hook, 0),
            Stage::List(list) => {
                // A list that only a variable names has no position: it shares the last one.
                let position = config.egress_lists.get_index_of(list);
                (StageKind::List, position.unwrap_or(usize::MAX))
            }
        };
        let wait = self.next.saturating_duration_since(Instant::now());
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Some(UnavailableStage {
            kind,
            position,
            since: self.since,
            error: self.error.clone(),
            seen: self.seen,
            next_try: Some(sys::monotonic_ms().saturating_add(wait)),
        })
    }

    fn is(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        self.stage == *stage && Arc::ptr_eq(&self.config, config)
    }

    /// Whether nothing may be claimed for the chain.
    fn holds(&self, chain: &Chain, config: &Arc<Config>) -> bool {
        Arc::ptr_eq(&self.config, config)
            && self.stage.is_in(chain, config)
            && !is_deferring(&self.stage, config)
    }
}

/// Whether vCons wait in a queue of its own while this stage does not work.
fn is_deferring(stage: &Stage, config: &Config) -> bool {
    match stage {
        Stage::Storage(name) => defers(name, config),
        _ => false,
    }
}

/// Whether this storage has `on_outage: defer`.
pub(super) fn defers(storage: &str, config: &Config) -> bool {
    let storage = config.storages.get(storage);
    storage.is_some_and(|storage| storage.on_outage == OnOutage::Defer)
}

/// The queue of a storage, from which lanes claim as from an ingress list.
pub(super) fn backlog_list(storage: &str) -> Option<ListName> {
    storage_letters_list(storage).parse().ok()
}

/// The permit to try a failing backend with one vCon. No other lane of this worker has one for it as long
/// as this lives.
pub(super) struct TrialPermit {
    shared: Arc<SharedState>,
    stage: Stage,
    config: Arc<Config>,
    /// Where there may be a vCon to try.
    pub lists: Vec<ListName>,
    /// Whether it is the queue of a storage.
    pub is_backlog: bool,
}

impl Drop for TrialPermit {
    fn drop(&mut self) {
        let breakers = &self.shared.breakers;
        let mut open = breakers.lock();
        let ours = open.iter_mut().find(|it| it.is(&self.stage, &self.config));
        // It may have been found unavailable meanwhile.
        if let Some(breaker) = ours
            && matches!(breaker.state, BreakerState::Failing { .. })
        {
            breaker.state = BreakerState::Failing { in_trial: false };
            breaker.next = Instant::now() + breakers.pause;
            breakers.show(&open);
        }
    }
}

impl CircuitBreakers {
    /// All are closed.
    pub fn new(slot: Slot, pause: Duration) -> Self {
        Self {
            slot,
            open: Mutex::default(),
            version: AtomicU64::new(0),
            failing: AtomicUsize::new(0),
            pause,
        }
    }

    /// The version of the breakers, which grows with every change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The ingress lists to claim from: those of chains that are not on hold.
    pub fn open_lists(&self, config: &Arc<Config>) -> Vec<ListName> {
        self.forget_others(config);
        let open = self.lock();
        let is_open = |chain: &&Chain| !open.iter().any(|breaker| breaker.holds(chain, config));
        let chains = config.chains.iter().filter(|chain| chain.enabled);
        let lists = chains.filter(is_open).flat_map(|it| &it.ingress_lists);
        lists.cloned().collect()
    }

    /// Forgets what fails in other configurations, which are no longer in force. What is unavailable there
    /// is closed by its prober.
    fn forget_others(&self, config: &Arc<Config>) {
        let is_tried = |it: &Breaker| matches!(it.state, BreakerState::Failing { .. });
        self.change(|open| {
            let before = open.len();
            open.retain(|it| Arc::ptr_eq(&it.config, config) || !is_tried(it));
            open.len() < before
        });
    }

    /// The queues of storages to claim from: those of storages that defer and work.
    pub fn backlogs(&self, config: &Arc<Config>) -> Vec<ListName> {
        let open = self.lock();
        let works = |name: &&String| {
            let stage = Stage::Storage((*name).clone());
            defers(name, config) && !open.iter().any(|breaker| breaker.is(&stage, config))
        };
        let names = config.storages.keys().filter(works);
        names.filter_map(|name| backlog_list(name)).collect()
    }

    /// Whether a stage does not work.
    pub fn is_open(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        self.lock().iter().any(|breaker| breaker.is(stage, config))
    }

    /// Whether any backend is failing.
    fn any_fails(&self) -> bool {
        self.failing.load(Ordering::Relaxed) > 0
    }

    /// Whether a failing backend is due for a trial, and no lane tries it.
    pub fn has_trial_due(&self) -> bool {
        self.any_fails() && self.next_trial().is_some_and(|wait| wait.is_zero())
    }

    /// The time until the next trial of a failing backend that no lane tries now.
    pub fn next_trial(&self) -> Option<Duration> {
        let due = |breaker: &Breaker| match breaker.state {
            BreakerState::Failing { in_trial } => (!in_trial).then_some(breaker.next),
            BreakerState::Unavailable => None,
        };
        let next = self.lock().iter().filter_map(due).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// [`MOST_FAILURES`] vCons in a row have failed in all attempts at a reachable backend, the last with this
    /// error. Returns whether its breaker was closed.
    pub fn note_failing(&self, stage: &Stage, config: &Arc<Config>, error: &str) -> bool {
        let state = BreakerState::Failing { in_trial: false };
        self.open_breaker(stage, config, state, error)
    }

    /// The backend has worked. Returns whether its breaker was open for failing.
    pub fn note_success(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        if !self.any_fails() {
            return false;
        }
        let is_failing = |breaker: &Breaker| {
            breaker.is(stage, config) && matches!(breaker.state, BreakerState::Failing { .. })
        };
        self.change(|open| {
            let before = open.len();
            open.retain(|breaker| !is_failing(breaker));
            open.len() < before
        })
    }

    /// Opens a breaker because of this error. Returns false if it is already open for that.
    fn open_breaker(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        state: BreakerState,
        error: &str,
    ) -> bool {
        self.change(|open| {
            let found = open.iter_mut().find(|breaker| breaker.is(stage, config));
            match found {
                Some(breaker) => {
                    breaker.note_error(error);
                    // While a prober probes what is unavailable, no vCon is tried.
                    let is_worse = matches!(breaker.state, BreakerState::Failing { .. })
                        && state == BreakerState::Unavailable;
                    if is_worse {
                        breaker.state = state;
                    }
                    is_worse
                }
                None => {
                    let now = sys::monotonic_ms().max(1);
                    open.push(Breaker {
                        stage: stage.clone(),
                        config: Arc::clone(config),
                        state,
                        since: now,
                        error: error.to_owned(),
                        seen: now,
                        next: Instant::now() + self.pause,
                    });
                    true
                }
            }
        })
    }

    /// A prober tries the stage after this time.
    fn note_probe(&self, stage: &Stage, config: &Arc<Config>, error: &ProbeError, wait: Duration) {
        let mut open = self.lock();
        let found = open.iter_mut().find(|breaker| breaker.is(stage, config));
        if let Some(breaker) = found {
            match error {
                ProbeError::None => {}
                ProbeError::Same => breaker.seen = sys::monotonic_ms(),
                ProbeError::New(error) => breaker.note_error(error),
            }
            breaker.next = Instant::now() + wait;
            self.show(&open);
        }
    }

    fn close(&self, stage: &Stage, config: &Arc<Config>) {
        self.change(|open| {
            open.retain(|breaker| !breaker.is(stage, config));
            true
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Breaker>) -> bool) -> bool {
        let mut open = self.lock();
        let changed = change(&mut open);
        if changed {
            self.version.fetch_add(1, Ordering::Release);
            let fails = |breaker: &&Breaker| matches!(breaker.state, BreakerState::Failing { .. });
            let failing = open.iter().filter(fails).count();
            self.failing.store(failing, Ordering::Relaxed);
        }
        // The errors of those that are open may have changed.
        if changed || !open.is_empty() {
            self.show(&open);
        }
        changed
    }

    /// Shows what is open on the scoreboard.
    fn show(&self, open: &[Breaker]) {
        let shown: Vec<UnavailableStage> = open.iter().filter_map(Breaker::shown).collect();
        self.slot.show_unavailable(&shown);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Breaker>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The permit for a trial, if one is due and no other lane has it.
pub(super) fn begin_trial(shared: &Arc<SharedState>, config: &Arc<Config>) -> Option<TrialPermit> {
    if !shared.breakers.has_trial_due() {
        return None;
    }
    let mut open = shared.breakers.lock();
    let now = Instant::now();
    let due = open.iter_mut().find(|breaker| {
        let is_untried = breaker.state == BreakerState::Failing { in_trial: false };
        is_untried && breaker.next <= now && Arc::ptr_eq(&breaker.config, config)
    })?;
    due.state = BreakerState::Failing { in_trial: true };
    let stage = due.stage.clone();
    let is_backlog = is_deferring(&stage, config);
    let mut lists: Vec<ListName> = match &stage {
        Stage::Storage(name) if is_backlog => backlog_list(name).into_iter().collect(),
        _ => {
            // The lists of chains that nothing else holds up. Another failing stage does not count, as the
            // same vCon tries it too; unless another lane tries it now.
            let is_free = |chain: &&Chain| {
                let is_held = open.iter().any(|breaker| {
                    let may_be_tried = breaker.state == BreakerState::Failing { in_trial: false };
                    breaker.stage != stage && !may_be_tried && breaker.holds(chain, config)
                });
                chain.enabled && stage.is_in(chain, config) && !is_held
            };
            let chains = config.chains.iter().filter(is_free);
            chains.flat_map(|it| &it.ingress_lists).cloned().collect()
        }
    };
    drop(open);
    retain_claimable(&mut lists, shared.pauses.get().1.as_deref(), config);
    // Another list each time: the vCons of the first may all be bad, and go to its end.
    if lists.len() > 1 {
        let first = fastrand::usize(..lists.len());
        lists.rotate_left(first);
    }
    Some(TrialPermit {
        shared: Arc::clone(shared),
        stage,
        config: Arc::clone(config),
        lists,
        is_backlog,
    })
}

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

/// How a probe has failed.
enum ProbeError {
    /// There was none yet.
    None,
    /// Like the one before.
    Same,
    /// With another error.
    New(String),
}

/// Probes one backend until that succeeds.
struct Prober {
    shared: Arc<SharedState>,
    config: Arc<Config>,
    stage: Stage,
    /// Why the last probe has failed.
    error: String,
    drain: Receiver<()>,
    /// The storage to probe, if it shares something with that of a lane.
    storage: Option<Box<dyn Storage>>,
}

impl Prober {
    fn run(mut self) {
        let since = Instant::now();
        let settings = self.shared.settings.clone();
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let Some(mut probe) = self.new_probe() else {
            return self.give_up();
        };
        let mut error = ProbeError::None;
        loop {
            let (stage, wait) = (&self.stage, backoff.next_wait());
            let breakers = &self.shared.breakers;
            breakers.note_probe(stage, &self.config, &error, wait);
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::shared::tests::{TestWorker, parse};
    use super::*;

    /// Storages `a` and `b`, which hold up their chains, and `c`, which defers.
    const CONFIG: &str = "\
        storages: {a: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, \
                   b: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, \
                   c: {module: storage.webhook, on_outage: defer, options: {webhook-urls: ['http://h']}}}\n\
        chains: {only-a: {storages: [a], ingress_lists: [la]}, \
                 both: {storages: [a, b], ingress_lists: [lab]}, \
                 only-b: {storages: [b], ingress_lists: [lb]}, \
                 off: {storages: [a], ingress_lists: [off], enabled: false}, \
                 defers: {storages: [c], ingress_lists: [lc], egress_lists: [done, out]}}\n";

    fn storage(name: &str) -> Stage {
        Stage::Storage(name.to_owned())
    }

    /// A worker in which a trial is due as soon as a backend is failing.
    fn worker() -> TestWorker {
        let pauses = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_MAX_MS", "1"),
        ];
        TestWorker::with(CONFIG, &pauses)
    }

    /// The permit for the trial that is due; waits for it if need be.
    fn trial(worker: &TestWorker) -> Option<TrialPermit> {
        let breakers = &worker.shared.breakers;
        while breakers.next_trial().is_some_and(|wait| !wait.is_zero()) {
            thread::yield_now();
        }
        begin_trial(&worker.shared, &worker.config())
    }

    /// Sorted: a trial begins with any of them.
    fn names(lists: &[ListName]) -> Vec<&str> {
        let mut names: Vec<&str> = lists.iter().map(ListName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_open_holds_up_its_chains_and_what_defers_its_own_queue_alone() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let lists = || {
            let open = breakers.open_lists(&config);
            let backlogs = breakers.backlogs(&config);
            (names(&open).join(" "), names(&backlogs).join(" "))
        };
        let both = |open: &str, backlogs: &str| (open.to_owned(), backlogs.to_owned());
        assert_eq!(lists(), both("la lab lb lc", "DLQ:storage:c"));
        assert!(breakers.open_breaker(
            &storage("a"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(lists(), both("lb lc", "DLQ:storage:c"));
        assert!(breakers.note_failing(&storage("c"), &config, "busy"));
        assert_eq!(lists(), both("lb lc", ""));
        assert!(!breakers.note_failing(&storage("a"), &config, "busy"));
        assert!(!breakers.note_success(&storage("a"), &config));
        assert!(breakers.note_success(&storage("c"), &config));
        breakers.close(&storage("a"), &config);
        assert_eq!(lists(), both("la lab lb lc", "DLQ:storage:c"));
    }

    #[test]
    fn what_failed_in_a_former_configuration_is_forgotten_and_what_was_unavailable_is_not() {
        let worker = worker();
        let (breakers, config, former) = (&worker.shared.breakers, worker.config(), parse(CONFIG));
        assert!(breakers.note_failing(&storage("a"), &former, "busy"));
        assert!(breakers.open_breaker(
            &storage("b"),
            &former,
            BreakerState::Unavailable,
            "refused"
        ));
        assert!(breakers.note_failing(&storage("b"), &config, "busy"));
        let before = breakers.version();
        breakers.open_lists(&config);
        assert!(!breakers.is_open(&storage("a"), &former));
        assert!(breakers.is_open(&storage("b"), &former));
        assert!(breakers.is_open(&storage("b"), &config));
        // One change; to read the lists once more is none.
        assert_eq!(breakers.version(), before + 1);
        breakers.open_lists(&config);
        assert_eq!(breakers.version(), before + 1);
    }

    #[test]
    fn what_holds_chains_up_is_shown() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let shown = || {
            let held = worker.board.slot(1).worker.unwrap().held;
            held.map(|held| held.stages)
        };
        assert!(breakers.open_breaker(
            &storage("b"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        assert_eq!(
            shown(),
            Some(vec![(StageKind::Storage, 0), (StageKind::Storage, 1)])
        );
        breakers.note_success(&storage("a"), &config);
        assert_eq!(shown(), Some(vec![(StageKind::Storage, 1)]));
        breakers.close(&storage("b"), &config);
        assert_eq!(shown(), None);
    }

    #[test]
    fn a_list_is_shown_as_a_hold_and_a_storage_that_defers_is_not() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let shown = || worker.board.slot(1).worker.unwrap();
        assert!(breakers.open_breaker(
            &storage("c"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(shown().held, None);
        let deferring = shown().deferring.unwrap().stages;
        assert_eq!(deferring, [(StageKind::DeferringStorage, 2)]);
        let list = Stage::List("out".parse().unwrap());
        assert!(breakers.open_breaker(&list, &config, BreakerState::Unavailable, "refused"));
        assert_eq!(shown().held.unwrap().stages, [(StageKind::List, 1)]);
        breakers.close(&storage("c"), &config);
        assert_eq!(shown().deferring, None);
        breakers.close(&list, &config);
        assert_eq!(shown().held, None);
    }

    #[test]
    fn a_trial_takes_from_chains_that_nothing_else_holds_up() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert!(trial(&worker).is_none());
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        let first = trial(&worker).unwrap();
        assert_eq!(names(&first.lists), ["la", "lab"]);
        assert!(!first.is_backlog);
        assert!(trial(&worker).is_none(), "it is tried already");
        // With another that fails, one vCon can try both; but not while that one is tried.
        assert!(breakers.note_failing(&storage("b"), &config, "busy"));
        let second = trial(&worker).unwrap();
        assert_eq!(names(&second.lists), ["lb"]);
        drop(first);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
        drop(second);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la", "lab"]);
        // What is unavailable is not tried.
        assert!(breakers.open_breaker(
            &storage("b"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
    }

    #[test]
    fn what_defers_is_tried_with_what_waits_for_it() {
        let worker = worker();
        let config = worker.config();
        assert!(
            worker
                .shared
                .breakers
                .note_failing(&storage("c"), &config, "busy")
        );
        let trial = trial(&worker).unwrap();
        assert_eq!(names(&trial.lists), ["DLQ:storage:c"]);
        assert!(trial.is_backlog);
    }

    #[test]
    fn between_two_trials_there_is_a_pause() {
        let long = [("CONSERVER_RETRY_MAX_MS", "60000")];
        let worker = TestWorker::with(CONFIG, &long);
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert_eq!(breakers.next_trial(), None);
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        let wait = breakers.next_trial().unwrap();
        assert!(wait > Duration::from_secs(30), "{wait:?}");
        assert!(!breakers.has_trial_due());
        assert!(begin_trial(&worker.shared, &config).is_none());
        // Once it is unavailable, only its prober tries it.
        assert!(breakers.open_breaker(
            &storage("a"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(breakers.next_trial(), None);
    }

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
    fn what_is_shown_of_a_stage_is_its_last_error_and_its_next_try() {
        let long = [("CONSERVER_RETRY_MAX_MS", "60000")];
        let worker = TestWorker::with(CONFIG, &long);
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let shown = || {
            let path = &worker.board.id().path;
            let mut reasons = crate::scoreboard::Snapshot::take_own(path).unwrap().reasons;
            let reason = reasons.pop().unwrap().1;
            let wait = reason.next_try.unwrap().saturating_sub(sys::monotonic_ms());
            (reason.error, reason.since, wait)
        };
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        let (error, since, wait) = shown();
        assert_eq!(error, "busy");
        assert!(wait > 30_000, "{wait}");
        assert!(!breakers.note_failing(&storage("a"), &config, "locked"));
        assert_eq!(shown().0, "locked");
        assert!(breakers.open_breaker(
            &storage("a"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        let probe = |error, seconds| {
            let wait = Duration::from_secs(seconds);
            breakers.note_probe(&storage("a"), &config, &error, wait);
            let (error, still, wait) = shown();
            assert_eq!(still, since);
            (
                error,
                wait > seconds * 1000 - 5000 && wait <= seconds * 1000,
            )
        };
        assert_eq!(probe(ProbeError::None, 90), ("refused".to_owned(), true));
        assert_eq!(probe(ProbeError::Same, 120), ("refused".to_owned(), true));
        let new = ProbeError::New("timed out".to_owned());
        assert_eq!(probe(new, 150), ("timed out".to_owned(), true));
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
