//! Chains on hold: while a link or storage does not work, nothing is claimed for the chains that need
//! it, so that lanes do not waste attempts.
//!
//! ```text
//!           all attempts failed, and so does a probe         a probe succeeds
//! closed ────────────────────────────────────► unavailable ──────────────────► closed, lanes wake
//!    │  the probe succeeds, but three vCons        one vCon at a time is tried, with growing pauses
//!    │  in a row have failed in all attempts       if a link refuses them
//!    ├───────────────────────────────────────► failing ──────────────────────► closed, lanes wake
//!    │                                                       one goes through
//!    │  the server refuses this deployment         one vCon at a time is tried, with growing pauses
//!    ├───────────────────────────────────────► denied ───────────────────────► closed, lanes wake
//!    │                                                       one goes through, or no vCon is left
//!    │                                                       as others went through elsewhere
//!    │  the server has named a time to come again            that time has come
//!    ├───────────────────────────────────────► waiting ──────────────────────► closed, lanes wake
//!    │
//!    │  its budget is used up                      as many vCons are claimed as there are tokens
//!    └───────────────────────────────────────► over budget ──────────────────► closed, lanes wake
//!                                                            none waits, or there are tokens to spare
//! ```
//!
//! What is unavailable or failing is at fault, and what denies has to be mended by somebody; what waits, for a
//! server or a budget, works as it should. None of these is the fault of a vCon; but one that is denied while
//! another gets through is judged like one that is refused (`backend_health`).
//!
//! A new configuration forgets what failed or was denied in the former one. A wait for an entry that has not
//! changed goes on.
//!
//! A storage with `on_outage: defer` holds up nobody: what it cannot take waits in its own queue,
//! from which idle lanes claim when it is closed again.
//!
//! Probes are in `prober`, trials of one vCon in `trial`, tokens in `budget`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::modules::Stage;
use crate::backoff::Backoff;
use crate::config::{Chain, Config, ListName, OnOutage};
use crate::queue::storage_letters_list;
use crate::scoreboard::{
    HoldReason, SeriesKind, Slot, Snapshot, StageKind, UnavailableStage, name_mark,
};
use crate::sys;

/// After this many different vCons in a row, a reachable backend counts as failing.
pub(super) const MOST_FAILURES: usize = 3;

/// The longest pause between two trials of what denies, and of a link that refuses, in multiples of that between
/// trials of what fails.
const LONGEST_DENIED: u32 = 10;

/// The open breakers, as the lanes of this worker have found: of backends that do not work. All others are closed.
pub(super) struct CircuitBreakers {
    slot: Slot,
    open: Mutex<Vec<Breaker>>,
    version: AtomicU64,
    /// How many of them are tried, to be read without the lock.
    tried: AtomicUsize,
    /// How many of them wait for a time, to be read without the lock.
    waiting: AtomicUsize,
    /// How many of them are over budget, to be read without the lock.
    over_budget: AtomicUsize,
    /// The pause between two trials.
    pause: Duration,
    /// How many waits of all workers it has followed.
    followed: AtomicU64,
}

pub(super) struct Breaker {
    pub stage: Stage,
    /// A stage's name means something in its own configuration only.
    pub config: Arc<Config>,
    pub state: BreakerState,
    /// Since when it is open, in monotonic milliseconds.
    since: u64,
    /// The last error, and when it was seen.
    error: String,
    seen: u64,
    /// When the stage is tried next.
    pub next: Instant,
    /// The pauses between its trials, if it denies, or is a link that refuses.
    denials: Backoff,
    /// Whether it has refused a vCon since the last trial.
    has_refused: bool,
    /// How often it had worked for any worker of the daemon when it last failed for this one.
    successes: u64,
    /// Whether its last probe was denied, while it is unavailable.
    is_probe_denied: bool,
}

/// How a trial has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrialEnd {
    /// A vCon was tried.
    Tried,
    /// There was none to try in all lists from which it may get one.
    NothingToTry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BreakerState {
    /// A prober probes it until it is back.
    Unavailable,
    /// It is reachable and fails. One vCon at a time is tried.
    Failing { in_trial: bool },
    /// It refuses this deployment, whatever the vCon. One vCon at a time is tried.
    Denied { in_trial: bool },
    /// It wants to be left alone until [`Breaker::next`].
    Waiting,
    /// Its budget is used up.
    OverBudget,
}

impl BreakerState {
    /// Whether one vCon at a time is tried.
    pub fn is_tried(self) -> bool {
        matches!(self, Self::Failing { .. } | Self::Denied { .. })
    }

    /// Whether a vCon may be tried now, as no other is.
    pub fn is_untried(self) -> bool {
        let (Self::Failing { in_trial } | Self::Denied { in_trial }) = self else {
            return false;
        };
        !in_trial
    }

    /// The same, in trial or not.
    pub fn trying(self, in_trial: bool) -> Self {
        match self {
            Self::Failing { .. } => Self::Failing { in_trial },
            Self::Denied { .. } => Self::Denied { in_trial },
            other => other,
        }
    }

    /// Of two things found of one stage, the one with the higher rank counts.
    fn rank(self) -> u8 {
        match self {
            Self::OverBudget => 0,
            Self::Waiting => 1,
            Self::Failing { .. } => 2,
            Self::Denied { .. } => 3,
            // While a prober probes it, no vCon is tried.
            Self::Unavailable => 4,
        }
    }

    fn shown(self) -> HoldReason {
        match self {
            Self::Unavailable => HoldReason::Unavailable,
            Self::Failing { .. } => HoldReason::Failing,
            Self::Denied { .. } => HoldReason::Denied,
            Self::Waiting => HoldReason::ServerWait,
            Self::OverBudget => HoldReason::Budget,
        }
    }
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
        let name = match &self.stage {
            Stage::Link(name) | Stage::Storage(name) => name_mark(name),
            Stage::Tracer(_) | Stage::Hook(_) | Stage::List(_) => 0,
        };
        Some(UnavailableStage {
            kind,
            position,
            name,
            since: self.since,
            error: self.error.clone(),
            seen: self.seen,
            next_try: Some(sys::monotonic_ms().saturating_add(wait)),
            reason: match self.is_probe_denied {
                true => HoldReason::Denied,
                false => self.state.shown(),
            },
        })
    }

    pub fn is(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        self.stage == *stage && Arc::ptr_eq(&self.config, config)
    }

    /// After a trial: the earliest time of the next one.
    fn end_trial(&mut self, pause: Duration, end: TrialEnd) {
        // Each answer that a link refuses may have been paid for: those of language models are. A storage that
        // refuses costs nothing, and goes on sooner after it is mended.
        let has_refused = std::mem::take(&mut self.has_refused);
        let is_costly = has_refused && matches!(self.stage, Stage::Link(_));
        let pause = match self.state {
            BreakerState::Denied { .. } if end == TrialEnd::Tried => self.denials.next_wait(),
            // The whole pause: workers that have found it together try it together.
            _ if is_costly => self.denials.next_wait_with(1.0),
            _ => pause,
        };
        self.state = self.state.trying(false);
        // Not before the server wants to be asked again.
        self.next = self.next.max(Instant::now() + pause);
    }

    /// Whether this is a wait whose time has come.
    fn is_over(&self, now: Instant) -> bool {
        self.state == BreakerState::Waiting && self.next <= now
    }

    /// Whether nothing may be claimed for the chain.
    pub fn holds(&self, chain: &Chain, config: &Arc<Config>) -> bool {
        Arc::ptr_eq(&self.config, config)
            && self.stage.is_in(chain, config)
            && !is_deferring(&self.stage, config)
    }
}

/// Whether vCons wait in a queue of its own while this stage does not work.
pub(super) fn is_deferring(stage: &Stage, config: &Config) -> bool {
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

impl CircuitBreakers {
    /// All are closed.
    pub fn new(slot: Slot, pause: Duration) -> Self {
        Self {
            slot,
            open: Mutex::default(),
            version: AtomicU64::new(0),
            tried: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            over_budget: AtomicUsize::new(0),
            pause,
            followed: AtomicU64::new(0),
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
    /// is closed by its prober. A wait goes on if the entry of the stage is the same here.
    fn forget_others(&self, config: &Arc<Config>) {
        self.change(|open| {
            let before = open.len();
            open.retain_mut(|it| {
                if Arc::ptr_eq(&it.config, config) || it.state == BreakerState::Unavailable {
                    return true;
                }
                let goes_on = !it.state.is_tried() && it.stage.is_same(&it.config, config);
                if goes_on {
                    it.config = Arc::clone(config);
                }
                goes_on
            });
            open.len() < before
        });
    }

    /// Follows what servers have told the other workers of this daemon.
    pub fn follow_waits(&self, config: &Arc<Config>) {
        let noted = self.slot.waits_noted();
        if self.followed.load(Ordering::Acquire) == noted {
            return;
        }
        let Ok(snapshot) = Snapshot::without_figures(self.slot.board_path()) else {
            return;
        };
        self.follow_reasons(&snapshot.reasons, config);
        self.followed.store(noted, Ordering::Release);
    }

    /// Follows what workers show, each with its slot.
    fn follow_reasons(&self, reasons: &[(usize, UnavailableStage)], config: &Arc<Config>) {
        let now = sys::monotonic_ms();
        for (number, reason) in reasons {
            let is_others = *number != self.slot.number();
            if !is_others || reason.reason != HoldReason::ServerWait {
                continue;
            }
            // By its name: the other worker may follow a configuration with other positions.
            let is_it = |name: &&String| name_mark(name) == reason.name;
            let stage = match reason.kind {
                StageKind::Link => config.links.keys().find(is_it).cloned().map(Stage::Link),
                StageKind::Storage | StageKind::DeferringStorage => {
                    let name = config.storages.keys().find(is_it);
                    name.cloned().map(Stage::Storage)
                }
                _ => None,
            };
            // The time there is rounded down.
            let wait = reason.next_try.unwrap_or(0).saturating_sub(now) + 1;
            if let Some(stage) = stage.filter(|_| wait > 1) {
                let until = Instant::now() + Duration::from_millis(wait);
                self.note_wait(&stage, config, &reason.error, until);
            }
        }
    }

    /// Closes what has waited for long enough. Returns whether there was anything.
    pub fn end_waits(&self) -> bool {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let now = Instant::now();
        self.change(|open| {
            let before = open.len();
            open.retain(|breaker| !breaker.is_over(now));
            open.len() < before
        })
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

    /// Whether any stage is tried with one vCon at a time.
    fn any_tried(&self) -> bool {
        self.tried.load(Ordering::Relaxed) > 0
    }

    /// Whether any stage is over budget.
    pub fn any_over_budget(&self) -> bool {
        self.over_budget.load(Ordering::Relaxed) > 0
    }

    /// Until when the stage wants to be left alone, if it does, and why.
    pub fn wait_of(&self, stage: &Stage, config: &Arc<Config>) -> Option<(Instant, String)> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (open, now) = (self.lock(), Instant::now());
        let waits = open.iter().find(|it| {
            it.is(stage, config) && it.state == BreakerState::Waiting && !it.is_over(now)
        });
        waits.map(|it| (it.next, it.error.clone()))
    }

    /// Whether a trial is due that no lane makes, or the end of a wait.
    pub fn has_due(&self) -> bool {
        let any = self.any_tried() || self.waiting.load(Ordering::Relaxed) > 0;
        any && self.next_due().is_some_and(|wait| wait.is_zero())
    }

    /// The time until the next trial that no lane makes now, or until the end of a wait.
    pub fn next_due(&self) -> Option<Duration> {
        let due = |breaker: &Breaker| {
            let is_timed = breaker.state == BreakerState::Waiting || breaker.state.is_untried();
            is_timed.then_some(breaker.next)
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

    /// The stage has refused one vCon more. Counts if it is failing.
    pub fn note_refused(&self, stage: &Stage, config: &Arc<Config>) {
        let successes = self.successes(stage);
        let mut open = self.lock();
        if let Some(breaker) = open.iter_mut().find(|it| it.is(stage, config)) {
            breaker.has_refused = true;
            breaker.successes = successes;
        }
    }

    /// The server refuses this deployment with this error, and wants to be asked again at a time if it has
    /// named one. Returns whether that is new.
    pub fn note_denied(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        error: &str,
        until: Option<Instant>,
    ) -> bool {
        let state = BreakerState::Denied { in_trial: false };
        let next = Instant::now() + self.denials().next_wait();
        let next = until.map_or(next, |until| until.max(next));
        self.open_until(stage, config, state, error, next)
    }

    /// The server wants to be left alone until then. Returns whether it was not left alone before.
    pub fn note_wait(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        error: &str,
        until: Instant,
    ) -> bool {
        self.open_until(stage, config, BreakerState::Waiting, error, until)
    }

    /// The stage's budget is used up; a token is due then.
    pub fn note_over_budget(&self, stage: &Stage, config: &Arc<Config>, why: &str, due: Instant) {
        self.open_until(stage, config, BreakerState::OverBudget, why, due);
    }

    /// The backend has worked. Returns whether its breaker was open for failing.
    pub fn note_success(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        if !self.any_tried() {
            return false;
        }
        let is_tried = |breaker: &Breaker| breaker.is(stage, config) && breaker.state.is_tried();
        self.change(|open| {
            let before = open.len();
            open.retain(|breaker| !is_tried(breaker));
            open.len() < before
        })
    }

    /// Opens a breaker because of this error. Returns false if it is already open for that.
    pub fn open_breaker(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        state: BreakerState,
        error: &str,
    ) -> bool {
        self.open_until(stage, config, state, error, Instant::now() + self.pause)
    }

    /// The same for a stage that is tried next at a given time.
    fn open_until(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        state: BreakerState,
        error: &str,
        next: Instant,
    ) -> bool {
        // A used-up budget is no failure, and is noted for each vCon that waits for it.
        let is_failure = state != BreakerState::OverBudget;
        let successes = is_failure.then(|| self.successes(stage));
        self.change(|open| {
            let found = open.iter_mut().find(|breaker| breaker.is(stage, config));
            match found {
                Some(breaker) => {
                    let (had, has) = (breaker.state.rank(), state.rank());
                    if has > had {
                        breaker.state = state;
                        breaker.next = next;
                    } else if state == BreakerState::OverBudget {
                        if has == had {
                            breaker.next = next;
                        }
                    } else if breaker.state != BreakerState::Unavailable {
                        // Whatever else is wrong with it, it is not asked before that.
                        breaker.next = breaker.next.max(next);
                    }
                    if has >= had {
                        breaker.note_error(error);
                    }
                    breaker.successes = successes.unwrap_or(breaker.successes);
                    has > had
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
                        next,
                        denials: self.denials().after(1),
                        has_refused: false,
                        successes: successes.unwrap_or(0),
                        is_probe_denied: false,
                    });
                    true
                }
            }
        })
    }

    /// The pauses between the trials or probes of what denies.
    pub fn denials(&self) -> Backoff {
        Backoff::new(self.pause, self.pause.saturating_mul(LONGEST_DENIED))
    }

    /// A trial of the stage is over. Returns whether that has closed its breaker: if there was nothing to try, other
    /// workers may have got through, and done all that waited.
    pub fn end_trial(&self, stage: &Stage, config: &Arc<Config>, end: TrialEnd) -> bool {
        // It may have been found unavailable meanwhile.
        let is_ours = |it: &Breaker| it.is(stage, config) && it.state.is_tried();
        let successes = match end {
            TrialEnd::Tried => None,
            TrialEnd::NothingToTry => Some(self.successes(stage)),
        };
        self.change(|open| {
            let before = open.len();
            open.retain_mut(|breaker| {
                if !is_ours(breaker) {
                    return true;
                }
                let others_got_through = successes.is_some_and(|now| now > breaker.successes);
                breaker.end_trial(self.pause, end);
                !others_got_through
            });
            open.len() < before
        })
    }

    /// How often the stage has worked so far, for any worker of the daemon.
    fn successes(&self, stage: &Stage) -> u64 {
        match stage {
            Stage::Link(name) => self.slot.successes_of(SeriesKind::Link, name),
            Stage::Storage(name) => self.slot.successes_of(SeriesKind::Storage, name),
            Stage::List(_) | Stage::Tracer(_) | Stage::Hook(_) => 0,
        }
    }

    /// Closes the breakers of these stages if they are open for no more than their budgets.
    pub fn note_in_budget(&self, stages: &[Stage], config: &Arc<Config>) -> bool {
        let is_over = |breaker: &Breaker| {
            breaker.state == BreakerState::OverBudget
                && stages.iter().any(|stage| breaker.is(stage, config))
        };
        self.change(|open| {
            let before = open.len();
            open.retain(|breaker| !is_over(breaker));
            open.len() < before
        })
    }

    /// A prober tries the stage after this time. Its last probe has failed like this, or was denied.
    pub fn note_probe(
        &self,
        stage: &Stage,
        config: &Arc<Config>,
        (error, is_denied): (&ProbeError, bool),
        wait: Duration,
    ) {
        let mut open = self.lock();
        let found = open.iter_mut().find(|breaker| breaker.is(stage, config));
        if let Some(breaker) = found {
            match error {
                ProbeError::None => {}
                ProbeError::Same => breaker.seen = sys::monotonic_ms(),
                ProbeError::New(error) => breaker.note_error(error),
            }
            breaker.is_probe_denied = is_denied;
            breaker.next = Instant::now() + wait;
            self.show(&open);
        }
    }

    pub fn close(&self, stage: &Stage, config: &Arc<Config>) {
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
            let count = |is: fn(BreakerState) -> bool| {
                open.iter().filter(|breaker| is(breaker.state)).count()
            };
            let counts = [
                (&self.tried, count(BreakerState::is_tried)),
                (&self.waiting, count(|it| it == BreakerState::Waiting)),
                (
                    &self.over_budget,
                    count(|it| it == BreakerState::OverBudget),
                ),
            ];
            for (counter, count) in counts {
                counter.store(count, Ordering::Relaxed);
            }
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

    pub fn lock(&self) -> MutexGuard<'_, Vec<Breaker>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a probe has failed.
pub(super) enum ProbeError {
    /// There was none yet.
    None,
    /// Like the one before.
    Same,
    /// With another error.
    New(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::super::shared::tests::{TestWorker, parse};
    use super::*;

    /// Storages `a` and `b`, which hold up their chains, and `c`, which defers.
    pub(in crate::worker) const CONFIG: &str = "\
        storages: {a: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, \
                   b: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, \
                   c: {module: storage.webhook, on_outage: defer, options: {webhook-urls: ['http://h']}}}\n\
        chains: {only-a: {storages: [a], ingress_lists: [la]}, \
                 both: {storages: [a, b], ingress_lists: [lab]}, \
                 only-b: {storages: [b], ingress_lists: [lb]}, \
                 off: {storages: [a], ingress_lists: [off], enabled: false}, \
                 defers: {storages: [c], ingress_lists: [lc], egress_lists: [done, out]}}\n";

    pub(in crate::worker) fn storage(name: &str) -> Stage {
        Stage::Storage(name.to_owned())
    }

    /// A worker in which a trial is due as soon as a backend is failing.
    pub(in crate::worker) fn worker() -> TestWorker {
        let pauses = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_MAX_MS", "1"),
        ];
        TestWorker::with(CONFIG, &pauses)
    }

    /// Sorted: a trial begins with any of them.
    pub(in crate::worker) fn names(lists: &[ListName]) -> Vec<&str> {
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
            breakers.note_probe(&storage("a"), &config, (&error, false), wait);
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
        let reason = || {
            let path = &worker.board.id().path;
            let shown = crate::scoreboard::Snapshot::take_own(path).unwrap();
            shown.reasons[0].1.reason
        };
        for (is_denied, expected) in [(true, HoldReason::Denied), (false, HoldReason::Unavailable)]
        {
            let wait = Duration::from_secs(1);
            let error = (&ProbeError::Same, is_denied);
            breakers.note_probe(&storage("a"), &config, error, wait);
            assert_eq!(reason(), expected);
        }
    }

    fn lists(worker: &TestWorker) -> String {
        names(&worker.shared.breakers.open_lists(&worker.config())).join(" ")
    }

    #[test]
    fn a_wait_ends_at_its_time_and_not_before_and_is_no_hold() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let (soon, late) = (Duration::from_millis(30), Duration::from_secs(600));
        let begin = Instant::now();
        assert!(breakers.note_wait(&storage("a"), &config, "429", begin + soon));
        assert!(breakers.wait_of(&storage("a"), &config).is_some());
        assert!(worker.board.slot(1).worker.unwrap().held.is_none());
        assert!(worker.board.slot(1).worker.unwrap().waits);
        // A success of a request that was under way does not end it.
        assert!(!breakers.note_success(&storage("a"), &config));
        while !breakers.end_waits() {
            assert_eq!(lists(&worker), "lb lc");
            std::thread::yield_now();
        }
        assert!(begin.elapsed() >= soon);
        assert_eq!(lists(&worker), "la lab lb lc");
        // The later of two times counts.
        assert!(breakers.note_wait(&storage("a"), &config, "429", begin + late));
        assert!(!breakers.note_wait(&storage("a"), &config, "429", begin));
        assert!(!breakers.end_waits() && !breakers.has_due());
    }

    #[test]
    fn a_new_configuration_ends_what_is_denied_and_a_wait_only_if_its_entry_has_changed() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let late = Instant::now() + Duration::from_secs(600);
        for changed in [false, true] {
            let url = if changed { "http://other" } else { "http://h" };
            let former = parse(&CONFIG.replacen("http://h", url, 1));
            assert!(breakers.note_wait(&storage("a"), &former, "429", late));
            assert!(breakers.note_denied(&storage("b"), &former, "401", None));
            let open = if changed { "la lab lb lc" } else { "lb lc" };
            assert_eq!(lists(&worker), open, "{changed}");
            breakers.close(&storage("a"), &config);
        }
    }

    #[test]
    fn what_another_worker_was_asked_to_leave_alone_is_known_by_its_name() {
        let mut worker = worker();
        worker.board.prepare(2).unwrap();
        let place = worker.board.slot(1).place;
        worker.board.show_child(2, place);
        let slot = Slot::attach(worker.board.id(), 2, 1).unwrap();
        let other = CircuitBreakers::new(slot, Duration::from_secs(1));
        // The other worker does not follow the new configuration yet, in which one storage less comes first.
        let former =
            "storages: {z: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, ";
        let former = parse(&CONFIG.replacen("storages: {", former, 1));
        let late = Instant::now() + Duration::from_secs(600);
        assert!(other.note_wait(&storage("a"), &former, "429", late));
        let shown = Snapshot::take_own(&worker.board.id().path).unwrap();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        breakers.follow_reasons(&shown.reasons, &config);
        assert!(breakers.wait_of(&storage("a"), &config).is_some());
        assert!(breakers.wait_of(&storage("b"), &config).is_none());
    }

    #[test]
    fn what_denies_is_tried_at_growing_pauses_and_not_before_its_server_wants_to_be_asked() {
        let worker = TestWorker::with(CONFIG, &[("CONSERVER_RETRY_MAX_MS", "60000")]);
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert!(breakers.note_denied(&storage("a"), &config, "401", None));
        assert!(worker.board.slot(1).worker.unwrap().held.is_some());
        let wait = || breakers.next_due().unwrap().as_secs();
        assert!((29..=60).contains(&wait()), "{}", wait());
        breakers.end_trial(&storage("a"), &config, TrialEnd::Tried);
        assert!((59..=120).contains(&wait()), "{}", wait());
        let late = Instant::now() + Duration::from_secs(6000);
        assert!(!breakers.note_denied(&storage("a"), &config, "401", Some(late)));
        breakers.end_trial(&storage("a"), &config, TrialEnd::Tried);
        assert!(wait() > 5000, "{}", wait());
        assert!(breakers.note_success(&storage("a"), &config));
    }

    #[test]
    fn a_link_that_refuses_is_tried_at_growing_pauses_and_what_fails_otherwise_at_equal_ones() {
        let worker = TestWorker::with(
            "links: {ai: {module: links.tag, options: {tags: [t]}}}\n\
             storages: {a: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
             chains: {c: {links: [ai], storages: [a], ingress_lists: [l]}}\n",
            &[("CONSERVER_RETRY_MAX_MS", "60000")],
        );
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let ai = Stage::Link("ai".to_owned());
        // The pause after a trial that has ended in a refusal or not.
        let pause_after = |stage: &Stage, is_refused: bool| {
            breakers.note_failing(stage, &config, "not JSON");
            if is_refused {
                breakers.note_refused(stage, &config);
            }
            for breaker in breakers.lock().iter_mut() {
                breaker.next = Instant::now();
            }
            breakers.end_trial(stage, &config, TrialEnd::Tried);
            let open = breakers.lock();
            let breaker = open.iter().find(|it| it.is(stage, &config)).unwrap();
            breaker.next.saturating_duration_since(Instant::now())
        };
        let minute = Duration::from_secs(60);
        let is_about = |pause: Duration, longest: Duration| {
            let shortest = longest - Duration::from_secs(5);
            assert!(pause > shortest && pause <= longest, "{pause:?}");
        };
        for minutes in [2, 4, 8, 10, 10, 10] {
            is_about(pause_after(&ai, true), minutes * minute);
        }
        // It failed in another way.
        let pause = pause_after(&ai, false);
        assert!(pause > minute / 2 && pause <= minute, "{pause:?}");
        is_about(pause_after(&ai, true), 10 * minute);
        for is_refused in [true, true, true] {
            let pause = pause_after(&storage("a"), is_refused);
            assert!(pause > minute / 2 && pause <= minute, "{pause:?}");
        }
        // Once it works, all begins anew.
        assert!(breakers.note_success(&ai, &config));
        is_about(pause_after(&ai, true), 2 * minute);
    }

    #[test]
    fn whatever_is_worse_than_a_used_up_budget_counts_instead() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let now = Instant::now();
        breakers.note_over_budget(&storage("a"), &config, "used up", now);
        assert!(breakers.any_over_budget());
        assert_eq!(lists(&worker), "lb lc");
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        breakers.note_over_budget(&storage("a"), &config, "used up", now);
        assert!(!breakers.any_over_budget());
        assert!(!breakers.note_in_budget(&[storage("a")], &config));
        assert_eq!(lists(&worker), "lb lc");
    }
}
