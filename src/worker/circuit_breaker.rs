//! Chains on hold: while a link or storage does not do its work, nothing is claimed for the chains
//! that need it, so that lanes do not spend themselves on what will not go.
//!
//! ```text
//!           all attempts failed, and the probe too        the probe succeeds
//! closed ────────────────────────────────────────► away ─────────────────────► closed, lanes wake
//!    │  the probe succeeds, but so many vCons        one vCon at a time is tried;
//!    │  in a row have failed in all attempts         the first that goes through
//!    └────────────────────────────────────────► failing ─────────────────────► closed, lanes wake
//! ```
//!
//! A storage with `on_outage: defer` holds up nobody: what it cannot take waits in its own queue,
//! which idle lanes work off when it is closed again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::fault::Stage;
use super::retry::Backoff;
use super::shared::Shared;
use crate::config::{Chain, Config, ListName, OnOutage};
use crate::failure::{Failure, FailureKind};
use crate::queue::{Lengths, Server, storage_letters_list};
use crate::scoreboard::Slot;
use crate::storage::Storage;

/// So many different vCons must fail in a row at a backend that is reachable.
pub(super) const MOST_FAILURES: usize = 3;

/// How long Redis may take to tell what a list is.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The backends of a worker that do not do their work, as all lanes have found it.
pub(super) struct CircuitBreakers {
    slot: Slot,
    open: Mutex<Vec<Breaker>>,
    changes: AtomicU64,
    /// How many of them are of backends that fail.
    failing: AtomicUsize,
    /// The pause between two trials.
    pause: Duration,
}

struct Breaker {
    stage: Stage,
    /// A name means something in its own configuration only.
    config: Arc<Config>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A prober asks it until it is back.
    Away,
    /// It is reachable: one vCon at a time is tried, the next from then on.
    Failing { next: Instant, in_trial: bool },
}

impl Breaker {
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

/// Whether what a stage cannot take waits in a queue of its own.
fn is_deferring(stage: &Stage, config: &Config) -> bool {
    match stage {
        Stage::Storage(name) => defers(name, config),
        Stage::Link(_) | Stage::List(_) => false,
    }
}

/// Whether vCons that this storage cannot take for now wait in its own queue.
pub(super) fn defers(storage: &str, config: &Config) -> bool {
    let storage = config.storages.get(storage);
    storage.is_some_and(|storage| storage.on_outage == OnOutage::Defer)
}

/// The queue of a storage, to be claimed from like an ingress list.
pub(super) fn backlog_list(storage: &str) -> Option<ListName> {
    storage_letters_list(storage).parse().ok()
}

/// A turn at a backend that is reachable and fails: no other lane of this worker tries it as long as
/// this lives.
pub(super) struct Trial {
    shared: Arc<Shared>,
    stage: Stage,
    config: Arc<Config>,
    /// Where there may be a vCon to try.
    pub lists: Vec<ListName>,
    /// Whether these are the queues of storages.
    pub is_backlog: bool,
}

impl Drop for Trial {
    fn drop(&mut self) {
        let breakers = &self.shared.breakers;
        let mut open = breakers.lock();
        let ours = open.iter_mut().find(|it| it.is(&self.stage, &self.config));
        // It may have been found away meanwhile.
        if let Some(breaker) = ours
            && matches!(breaker.state, State::Failing { .. })
        {
            breaker.state = State::Failing {
                next: Instant::now() + breakers.pause,
                in_trial: false,
            };
        }
    }
}

impl CircuitBreakers {
    /// All are closed.
    pub fn new(slot: Slot, pause: Duration) -> Self {
        Self {
            slot,
            open: Mutex::default(),
            changes: AtomicU64::new(0),
            failing: AtomicUsize::new(0),
            pause,
        }
    }

    /// Grows with every change, so that a lane knows when to look.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The ingress lists that are claimed from now.
    pub fn open_lists(&self, config: &Arc<Config>) -> Vec<ListName> {
        self.forget_others(config);
        let open = self.lock();
        let is_open = |chain: &&Chain| !open.iter().any(|breaker| breaker.holds(chain, config));
        let chains = config.chains.iter().filter(|chain| chain.enabled);
        let lists = chains.filter(is_open).flat_map(|it| &it.ingress_lists);
        lists.cloned().collect()
    }

    /// A configuration that is not in force any more has nothing to be tried. What is away in it is
    /// closed by its prober.
    fn forget_others(&self, config: &Arc<Config>) {
        let is_tried = |it: &Breaker| matches!(it.state, State::Failing { .. });
        self.change(|open| {
            let before = open.len();
            open.retain(|it| Arc::ptr_eq(&it.config, config) || !is_tried(it));
            open.len() < before
        });
    }

    /// The queues of the storages that defer, and work.
    pub fn backlogs(&self, config: &Arc<Config>) -> Vec<ListName> {
        let open = self.lock();
        let works = |name: &&String| {
            let stage = Stage::Storage((*name).clone());
            defers(name, config) && !open.iter().any(|breaker| breaker.is(&stage, config))
        };
        let names = config.storages.keys().filter(works);
        names.filter_map(|name| backlog_list(name)).collect()
    }

    /// Whether the storage does not do its work.
    pub fn is_open(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        self.lock().iter().any(|breaker| breaker.is(stage, config))
    }

    /// Whether the breaker of any backend is open because it fails.
    fn any_fails(&self) -> bool {
        self.failing.load(Ordering::Relaxed) > 0
    }

    /// Whether a backend is to be tried that is not tried now.
    pub fn has_trial_due(&self) -> bool {
        self.any_fails() && self.next_trial().is_some_and(|wait| wait.is_zero())
    }

    /// How long it takes until a backend can be tried that is not tried now.
    pub fn next_trial(&self) -> Option<Duration> {
        let due = |breaker: &Breaker| match breaker.state {
            State::Failing { next, in_trial } => (!in_trial).then_some(next),
            State::Away => None,
        };
        let next = self.lock().iter().filter_map(due).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// All attempts for this many vCons in a row have failed at a backend that is reachable.
    /// Returns whether that is news.
    pub fn note_failing(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        let state = State::Failing {
            next: Instant::now() + self.pause,
            in_trial: false,
        };
        self.begin(stage, config, state)
    }

    /// The backend has done its work.
    pub fn note_success(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        if !self.any_fails() {
            return false;
        }
        let is_failing = |breaker: &Breaker| {
            breaker.is(stage, config) && matches!(breaker.state, State::Failing { .. })
        };
        self.change(|open| {
            let before = open.len();
            open.retain(|breaker| !is_failing(breaker));
            open.len() < before
        })
    }

    /// Opens a breaker; false if it is open for that already.
    fn begin(&self, stage: &Stage, config: &Arc<Config>, state: State) -> bool {
        self.change(|open| {
            let found = open.iter_mut().find(|breaker| breaker.is(stage, config));
            match found {
                // What is away is asked by its prober, and nothing is tried meanwhile.
                Some(breaker) => match (breaker.state, state) {
                    (State::Failing { .. }, State::Away) => {
                        breaker.state = state;
                        true
                    }
                    _ => false,
                },
                None => {
                    open.push(Breaker {
                        stage: stage.clone(),
                        config: Arc::clone(config),
                        state,
                    });
                    true
                }
            }
        })
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
            self.changes.fetch_add(1, Ordering::Release);
            let fails = |breaker: &&Breaker| matches!(breaker.state, State::Failing { .. });
            let failing = open.iter().filter(fails).count();
            self.failing.store(failing, Ordering::Relaxed);
            let (mut links, mut storages) = (Vec::new(), Vec::new());
            for breaker in open.iter() {
                match &breaker.stage {
                    Stage::Link(name) => links.extend(breaker.config.links.get_index_of(name)),
                    Stage::Storage(name) => {
                        storages.extend(breaker.config.storages.get_index_of(name));
                    }
                    Stage::List(_) => {}
                }
            }
            self.slot.hold(&links, &storages);
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Breaker>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn at a backend that fails, if one is due and no other lane has it.
pub(super) fn begin_trial(shared: &Arc<Shared>, config: &Arc<Config>) -> Option<Trial> {
    if !shared.breakers.has_trial_due() {
        return None;
    }
    let mut open = shared.breakers.lock();
    let now = Instant::now();
    let due = open.iter_mut().find(|breaker| {
        let is_due =
            matches!(breaker.state, State::Failing { next, in_trial: false } if next <= now);
        is_due && Arc::ptr_eq(&breaker.config, config)
    })?;
    due.state = State::Failing {
        next: now,
        in_trial: true,
    };
    let stage = due.stage.clone();
    let is_backlog = is_deferring(&stage, config);
    let mut lists: Vec<ListName> = match &stage {
        Stage::Storage(name) if is_backlog => backlog_list(name).into_iter().collect(),
        _ => {
            // Those of chains that nothing else holds up. Another one that fails as well can be tried
            // with the same vCon, unless it is tried now: else both would wait for each other.
            let is_free = |chain: &&Chain| {
                let is_held = open.iter().any(|breaker| {
                    let may_be_tried = matches!(
                        breaker.state,
                        State::Failing {
                            in_trial: false,
                            ..
                        }
                    );
                    breaker.stage != stage && !may_be_tried && breaker.holds(chain, config)
                });
                chain.enabled && stage.is_in(chain, config) && !is_held
            };
            let chains = config.chains.iter().filter(is_free);
            chains.flat_map(|it| &it.ingress_lists).cloned().collect()
        }
    };
    drop(open);
    // Another list each time: those in the first one may be refused for their own fault, and go to its end.
    if lists.len() > 1 {
        let first = fastrand::usize(..lists.len());
        lists.rotate_left(first);
    }
    Some(Trial {
        shared: Arc::clone(shared),
        stage,
        config: Arc::clone(config),
        lists,
        is_backlog,
    })
}

/// Opens the breaker of `stage` until it answers a probe; asks it from a thread of its own, by the
/// `prober` if there is one.
pub(super) fn hold(
    shared: &Arc<Shared>,
    config: &Arc<Config>,
    stage: &Stage,
    why: &str,
    drain: &Receiver<()>,
    prober: Option<Box<dyn Storage>>,
) {
    if !shared.breakers.begin(stage, config, State::Away) {
        return;
    }
    let chains = stage.chains(config).join(", ");
    if is_deferring(stage, config) {
        log::warn!("{stage} is away, its vCons wait in its queue until it is back: {why}");
    } else {
        log::warn!("{stage} is away, on hold until it is back: chain {chains}: {why}");
    }
    let prober = Prober {
        shared: Arc::clone(shared),
        config: Arc::clone(config),
        stage: stage.clone(),
        drain: drain.clone(),
        storage: prober,
    };
    let name = "prober".to_owned();
    let started = thread::Builder::new().name(name).spawn(|| prober.run());
    if let Err(error) = started {
        log::error!("{stage} cannot be watched, its vCons are tried again at once: {error}");
        shared.breakers.close(stage, config);
    }
}

/// Asks one backend until it answers.
struct Prober {
    shared: Arc<Shared>,
    config: Arc<Config>,
    stage: Stage,
    drain: Receiver<()>,
    storage: Option<Box<dyn Storage>>,
}

impl Prober {
    fn run(mut self) {
        let since = Instant::now();
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let Some(mut ask) = self.question() else {
            return self.close();
        };
        loop {
            if self.waits(backoff.next_wait()) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if !Arc::ptr_eq(&self.shared.current.get(), &self.config) {
                return self.close();
            }
            match ask() {
                Ok(()) => break,
                // It is there, and lets others in.
                Err(failure) if failure.kind == FailureKind::Crowded => break,
                Err(failure) => log::debug!("{} is still away: {failure}", self.stage),
            }
        }
        let seconds = since.elapsed().as_secs_f64();
        let chains = self.stage.chains(&self.config).join(", ");
        log::info!(
            "{} is back after {seconds:.1} s, chain {chains} goes on",
            self.stage
        );
        self.close();
    }

    fn waits(&self, time: Duration) -> Result<(), RecvTimeoutError> {
        self.drain.recv_timeout(time)
    }

    fn close(&self) {
        self.shared.breakers.close(&self.stage, &self.config);
        self.shared.wakeup.wake_all();
    }

    /// A backend of its own, asked as often as is wanted.
    fn question(&mut self) -> Option<Box<dyn FnMut() -> Result<(), Failure>>> {
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
            Stage::List(list) => {
                let server = Server::new(&self.shared.settings.redis_url).ok()?;
                let mut lengths = Lengths::new(server, PROBE_LIMIT);
                let names = [list.to_string()];
                Some(Box::new(move || match lengths.ask(&names, &[]) {
                    Ok((lengths, _)) if lengths.iter().all(Option::is_some) => Ok(()),
                    Ok(_) => Err(Failure::transient("it is no list")),
                    Err(error) => Err(Failure::transient(error.to_string())),
                }))
            }
        }
    }
}

/// A probe that panics has not answered.
pub(super) fn guarded(probe: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(probe))
        .unwrap_or_else(|_| Err(Failure::permanent("its probe panicked")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::shared::tests::{Worker, parse};
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
                 defers: {storages: [c], ingress_lists: [lc]}}\n";

    fn storage(name: &str) -> Stage {
        Stage::Storage(name.to_owned())
    }

    /// One in which a trial is due as soon as the breaker is open.
    fn worker() -> Worker {
        let pauses = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_MAX_MS", "1"),
        ];
        Worker::with(CONFIG, &pauses)
    }

    /// The trial that is due, or that comes due now.
    fn trial(worker: &Worker) -> Option<Trial> {
        let breakers = &worker.shared.breakers;
        while breakers.next_trial().is_some_and(|wait| !wait.is_zero()) {
            thread::yield_now();
        }
        begin_trial(&worker.shared, &worker.config())
    }

    /// By name: which one a trial tries first is chance.
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
        assert!(breakers.begin(&storage("a"), &config, State::Away));
        assert_eq!(lists(), both("lb lc", "DLQ:storage:c"));
        assert!(breakers.note_failing(&storage("c"), &config));
        assert_eq!(lists(), both("lb lc", ""));
        assert!(!breakers.note_failing(&storage("a"), &config));
        assert!(!breakers.note_success(&storage("a"), &config));
        assert!(breakers.note_success(&storage("c"), &config));
        breakers.close(&storage("a"), &config);
        assert_eq!(lists(), both("la lab lb lc", "DLQ:storage:c"));
    }

    #[test]
    fn what_failed_in_a_former_configuration_is_forgotten_and_what_was_away_is_not() {
        let worker = worker();
        let (breakers, config, former) = (&worker.shared.breakers, worker.config(), parse(CONFIG));
        assert!(breakers.note_failing(&storage("a"), &former));
        assert!(breakers.begin(&storage("b"), &former, State::Away));
        assert!(breakers.note_failing(&storage("b"), &config));
        let before = breakers.changes();
        breakers.open_lists(&config);
        assert!(!breakers.is_open(&storage("a"), &former));
        assert!(breakers.is_open(&storage("b"), &former));
        assert!(breakers.is_open(&storage("b"), &config));
        // That is one change, and a look at the lists is none.
        assert_eq!(breakers.changes(), before + 1);
        breakers.open_lists(&config);
        assert_eq!(breakers.changes(), before + 1);
    }

    #[test]
    fn what_holds_chains_up_is_shown() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let shown = || {
            let held = worker.board.slot(1).worker.unwrap().held;
            held.map(|held| (held.links, held.storages))
        };
        assert!(breakers.begin(&storage("b"), &config, State::Away));
        assert!(breakers.note_failing(&storage("a"), &config));
        assert_eq!(shown(), Some((vec![], vec![0, 1])));
        breakers.note_success(&storage("a"), &config);
        assert_eq!(shown(), Some((vec![], vec![1])));
        breakers.close(&storage("b"), &config);
        assert_eq!(shown(), None);
    }

    #[test]
    fn a_trial_takes_from_chains_that_nothing_else_holds_up() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert!(trial(&worker).is_none());
        assert!(breakers.note_failing(&storage("a"), &config));
        let first = trial(&worker).unwrap();
        assert_eq!(names(&first.lists), ["la", "lab"]);
        assert!(!first.is_backlog);
        assert!(trial(&worker).is_none(), "it is tried already");
        // With another that fails, one vCon can try both; but not while that one is tried.
        assert!(breakers.note_failing(&storage("b"), &config));
        let second = trial(&worker).unwrap();
        assert_eq!(names(&second.lists), ["lb"]);
        drop(first);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
        drop(second);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la", "lab"]);
        // One that is away takes nothing.
        assert!(breakers.begin(&storage("b"), &config, State::Away));
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
    }

    #[test]
    fn what_defers_is_tried_with_what_waits_for_it() {
        let worker = worker();
        let config = worker.config();
        assert!(worker.shared.breakers.note_failing(&storage("c"), &config));
        let trial = trial(&worker).unwrap();
        assert_eq!(names(&trial.lists), ["DLQ:storage:c"]);
        assert!(trial.is_backlog);
    }

    #[test]
    fn between_two_trials_there_is_a_pause() {
        let long = [("CONSERVER_RETRY_MAX_MS", "60000")];
        let worker = Worker::with(CONFIG, &long);
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert_eq!(breakers.next_trial(), None);
        assert!(breakers.note_failing(&storage("a"), &config));
        let wait = breakers.next_trial().unwrap();
        assert!(wait > Duration::from_secs(30), "{wait:?}");
        assert!(!breakers.has_trial_due());
        assert!(begin_trial(&worker.shared, &config).is_none());
        // What is away in its turn is asked by its prober alone.
        assert!(breakers.begin(&storage("a"), &config, State::Away));
        assert_eq!(breakers.next_trial(), None);
    }
}
