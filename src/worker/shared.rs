//! What all lanes of a worker share: the configuration in force, the breakers, the memory limits.
//!
//! The supervisor alone reads `config.yml` and decides whether it is accepted. The scoreboard tells the
//! number of the configuration in force, and where its text is kept.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::backend_health::BackendHealth;
use super::budget::Budgets;
use super::circuit_breaker::CircuitBreakers;
use super::quarantine::Quarantine;
use super::retry::SharedOutage;
use super::wakeup::Wakeup;
use crate::child::{Child, Drain, Readiness};
use crate::config::Config;
use crate::failure::Failure;
use crate::queue::{Pauses, Queue, QueueError, Server, is_of_the_key};
use crate::scoreboard::{Outcome, Slot};
use crate::settings::Settings;
use crate::spelling::counted;
use crate::sys;
use crate::telemetry::Tracing;

/// A worker that is never idle gives free memory back to the system at most once in this time.
const MEMORY_PAUSE_MS: u64 = 5000;

/// What all lanes of a worker share.
pub(super) struct SharedState {
    pub settings: Settings,
    pub current: CurrentConfig,
    /// `Worker-3`.
    pub name: String,
    pub slot: Slot,
    pub health: BackendHealth,
    pub breakers: CircuitBreakers,
    pub pauses: CurrentPauses,
    pub redis_outage: Arc<SharedOutage>,
    pub quarantine: Quarantine,
    pub wakeup: Wakeup,
    pub budgets: Arc<Budgets>,
    /// The spans of the lanes, if they are sent anywhere.
    pub tracing: Option<Tracing>,
    /// Why the host of Python modules does not begin, as the log has said last.
    python_failure: Mutex<Option<String>>,
    drain: Arc<Drain>,
    readiness: Readiness,
    /// Lanes that are not ready yet.
    unready: AtomicU32,
    /// Whether a large document has left free memory that the system has not got back.
    has_free_memory: AtomicBool,
    /// When it last got some back, in milliseconds.
    memory_returned: AtomicU64,
    /// After how many vCons the worker is recycled.
    max_vcons: Option<u64>,
}

impl SharedState {
    pub fn new(
        child: Child,
        settings: Settings,
        (config, config_generation): (Arc<Config>, u64),
        first_look: (OwnLook, Option<Pauses>),
        slot: Slot,
        wakeup: Wakeup,
        server: &Server,
    ) -> Self {
        let budgets = Budgets::new(server, &settings.instance, slot.number());
        Self {
            budgets: Arc::new(budgets),
            current: CurrentConfig::new(config, config_generation, slot.clone()),
            health: BackendHealth::new(slot.clone()),
            breakers: CircuitBreakers::new(slot.clone(), settings.retry_max),
            pauses: CurrentPauses::new(first_look, settings.heartbeat_ttl, slot.clone()),
            redis_outage: Arc::new(SharedOutage::new(slot.clone())),
            quarantine: Quarantine::default(),
            python_failure: Mutex::default(),
            wakeup,
            tracing: start_tracing(&settings, &slot),
            name: child.name.clone(),
            readiness: child.readiness(),
            drain: Arc::clone(&child.drain),
            unready: AtomicU32::new(settings.concurrency),
            has_free_memory: AtomicBool::new(false),
            memory_returned: AtomicU64::new(0),
            max_vcons: settings.worker_max_vcons.map(spread),
            settings,
            slot,
        }
    }

    /// Whether the next death makes poison of a vCon on which this many workers have died.
    pub fn is_last_chance(&self, deaths: u32) -> bool {
        let most = self.settings.max_deaths;
        deaths > 0 && most > 0 && deaths.saturating_add(1) >= most
    }

    /// One more lane is ready; with the last one, the worker is.
    pub fn note_ready(&self) {
        if self.unready.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.readiness.notify();
        }
    }

    /// Counts a claim that was released, and recycles the worker after its share of them.
    pub fn count(&self, outcome: Outcome) {
        let released = self.slot.count(outcome);
        if self.max_vcons.is_some_and(|most| released >= most) {
            self.recycle(&format!("it has done {}", counted(released, "vCon")));
        }
    }

    /// Logs once for all lanes why the host of Python modules does not begin.
    pub fn log_python_failure(&self, failure: &Failure) {
        let mut logged = self
            .python_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.as_ref() != Some(&failure.message) {
            log::error!(
                "{} waits: the Python host cannot begin, it is tried again: {failure}",
                self.name
            );
            *logged = Some(failure.message.clone());
        }
    }

    /// The host of Python modules has begun.
    pub fn forget_python_failure(&self) {
        let mut logged = self
            .python_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.take().is_some() {
            log::info!("{}: the Python host has begun", self.name);
        }
    }

    /// A large document is done. The system gets its memory back as soon as a lane is idle; a worker that is
    /// never idle returns it only now and then, as the next document may need it.
    pub fn note_large(&self) {
        self.has_free_memory.store(true, Ordering::Relaxed);
        let now = sys::monotonic_ms();
        if now.saturating_sub(self.memory_returned.load(Ordering::Relaxed)) >= MEMORY_PAUSE_MS {
            self.return_memory();
        }
    }

    /// Returns to the system the memory that large documents have left free, if there is any.
    pub fn return_memory(&self) {
        if self.has_free_memory.swap(false, Ordering::Relaxed) {
            sys::give_back_free_memory();
            self.memory_returned
                .store(sys::monotonic_ms(), Ordering::Relaxed);
        }
    }

    /// Drains this worker, so that the supervisor replaces it by a fresh one.
    pub fn recycle(&self, why: &str) {
        if self.drain.begin() {
            log::info!("{} makes way for a fresh one: {why}", self.name);
        }
    }
}

/// Without spans, vCons are processed all the same.
fn start_tracing(settings: &Settings, slot: &Slot) -> Option<Tracing> {
    Tracing::start(&settings.telemetry, slot).unwrap_or_else(|error| {
        log::error!("spans are not sent to the collector: {error}");
        None
    })
}

/// Lowers a limit by up to a tenth at random, so that the workers do not all reach it together.
pub(super) fn spread(limit: u64) -> u64 {
    let least = limit - limit / 10;
    fastrand::u64(least..=limit).max(1)
}

/// The configuration in force, as this worker has loaded it last.
pub(super) struct CurrentConfig {
    slot: Slot,
    /// What was loaded last, and its number.
    loaded: Mutex<(Arc<Config>, u64)>,
}

impl CurrentConfig {
    /// Starts with a configuration that the supervisor accepted, and its number.
    pub fn new(config: Arc<Config>, generation: u64, slot: Slot) -> Self {
        let loaded = Mutex::new((config, generation));
        Self { slot, loaded }
    }

    /// Returns the configuration in force now; loads it if it has changed.
    pub fn get(&self) -> Arc<Config> {
        // A lane that panicked left it valid: each part is replaced as a whole.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.slot.config_generation();
        if generation != loaded.1 {
            loaded.1 = generation;
            match Config::load_kept(self.slot.config_path()) {
                Ok(config) => loaded.0 = Arc::new(config),
                Err(errors) => {
                    log::error!(
                        "could not load the accepted configuration; keeping the former one:"
                    );
                    errors.lines().for_each(|line| log::error!("{line}"));
                }
            }
        }
        Arc::clone(&loaded.0)
    }
}

/// What operators have paused, as this worker follows it.
///
/// Whoever pauses something waits until every instance whose lease lives has confirmed that. An instance whose lease has
/// run out, as its Redis was away for long, is not waited for, so it must not claim by what it knew before. So a look at
/// the pauses counts only for half of the lease's time to live from the last renewal before it. After that, as when the
/// monitor is frozen or dead, the worker takes the lease and looks itself.
pub(super) struct CurrentPauses {
    slot: Slot,
    /// So many milliseconds a look counts.
    limit: u64,
    state: Mutex<PausesState>,
}

struct PausesState {
    /// The version that was in force when they were read.
    version: u64,
    /// This worker's own look, if they are from that and not from the monitor's file.
    own_look: Option<OwnLook>,
    /// `None` if they could not be read: then nothing may be claimed.
    pauses: Option<Arc<Pauses>>,
}

/// A look at the pauses that a worker takes itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnLook {
    /// The version in force before it.
    version: u64,
    /// When it began, in monotonic milliseconds.
    begun: u64,
}

impl OwnLook {
    /// Takes the lease, then reads the pauses. Whoever pauses something after that finds that this instance is alive, and
    /// waits until it follows. Returns no pauses if their key cannot be read.
    pub fn take(slot: &Slot, queue: &mut Queue) -> Result<(Self, Option<Pauses>), QueueError> {
        let look = Self::begin(slot);
        queue.take_lease()?;
        match queue.pauses() {
            Ok(pauses) => Ok((look, Some(pauses))),
            // The monitor logs that.
            Err(error) if is_of_the_key(&error) => Ok((look, None)),
            Err(error) => Err(error),
        }
    }

    pub(super) fn begin(slot: &Slot) -> Self {
        Self {
            version: slot.pauses_version(),
            begun: sys::monotonic_ms(),
        }
    }
}

/// Which pauses a lane follows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FollowedPauses {
    /// A version that they are not older than.
    pub version: u64,
    /// Whether they could be read; else the lane claims nothing.
    pub are_known: bool,
    /// When the worker read them itself; `None` if they are the monitor's.
    pub own_look: Option<u64>,
}

impl CurrentPauses {
    /// Starts with what this worker has found itself.
    pub fn new((look, found): (OwnLook, Option<Pauses>), lease_ttl: Duration, slot: Slot) -> Self {
        let state = PausesState {
            version: 0,
            own_look: None,
            pauses: None,
        };
        let this = Self {
            slot,
            limit: (lease_ttl / 2).as_millis().try_into().unwrap_or(u64::MAX),
            state: Mutex::new(state),
        };
        this.note_look(look, found);
        this
    }

    /// The version in force.
    pub fn version(&self) -> u64 {
        self.slot.pauses_version()
    }

    /// Whether what a lane follows is what [`CurrentPauses::get`] would return.
    pub fn are_current(&self, followed: &FollowedPauses) -> bool {
        let monitor_is_back = || followed.own_look.is_some() && self.monitor_has_looked();
        followed.are_known && self.version() == followed.version && !monitor_is_back()
    }

    /// Whether what a lane follows was looked at so recently that it may claim by it. To be asked before it makes sure of
    /// the version.
    pub fn are_fresh(&self, followed: &FollowedPauses) -> bool {
        match followed.own_look {
            Some(begun) => self.counts(begun),
            None => self.monitor_has_looked(),
        }
    }

    fn monitor_has_looked(&self) -> bool {
        self.counts(self.slot.pauses_looked())
    }

    /// Whether a look of this time still counts; 0 is none.
    fn counts(&self, looked: u64) -> bool {
        looked > 0 && sys::monotonic_ms().saturating_sub(looked) <= self.limit
    }

    /// The pauses to follow now; none if they cannot be read at present: nothing may be claimed.
    pub fn get(&self) -> (FollowedPauses, Option<Arc<Pauses>>) {
        // A lane that panicked left it valid.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let has_looked = self.monitor_has_looked();
        let version = self.version();
        let own_look = state
            .own_look
            .filter(|own| !has_looked && own.version == version);
        let is_read = state.version == version && state.pauses.is_some();
        let is_of_this_look = own_look.is_some() || state.own_look.is_none();
        // Without a version, the monitor has not looked yet, or the scoreboard was repaired: the last ones stay.
        if version > 0 && !(is_read && is_of_this_look) {
            match Pauses::load(self.slot.pauses_path()) {
                Ok(pauses) => state.pauses = Some(Arc::new(pauses)),
                // The monitor replaces the file if it is missing.
                Err(error) => {
                    if state.pauses.take().is_some() {
                        log::error!(
                            "claiming nothing until it can be read what is paused: {}: {error}",
                            self.slot.pauses_path().display()
                        );
                    }
                }
            }
            state.own_look = None;
            state.version = version;
        }
        let followed = FollowedPauses {
            version,
            are_known: state.pauses.is_some(),
            own_look: own_look.map(|own| own.begun),
        };
        (followed, state.pauses.clone())
    }

    /// Follows what this worker has found itself. If the key cannot be read, the pauses in force stay.
    pub fn note_look(&self, look: OwnLook, found: Option<Pauses>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = || match look.version {
            0 => state.pauses.clone().or_else(|| Some(Arc::default())),
            _ => Pauses::load(self.slot.pauses_path()).ok().map(Arc::new),
        };
        let pauses = found.map(Arc::new).or_else(in_force);
        *state = PausesState {
            version: look.version,
            own_look: Some(look),
            pauses,
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::scoreboard::{Board, ChildState, ChildView, Shape};

    /// A worker without running lanes. Nothing listens at its Redis.
    pub(in crate::worker) struct TestWorker {
        pub shared: Arc<SharedState>,
        pub board: Board,
        _folder: TempDir,
    }

    impl TestWorker {
        /// One with this configuration and these settings.
        pub fn with(config: &str, set: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
            board.prepare(1).unwrap();
            let place = ChildView {
                generation: 1,
                pid: Some(std::process::id().cast_signed()),
                state: ChildState::Ready,
                since: 0,
                deaths: 0,
                retry: None,
            };
            board.show_child(1, Some(place));
            let slot = Slot::attach(board.id(), 1, 1).unwrap();
            let child = Child::in_a_test(slot.clone());
            let settings = settings(set);
            let server = Server::new(&settings.redis_url).unwrap();
            let wakeup = Wakeup::new(&settings, slot.clone(), server.clone());
            let config = (parse(config), 0);
            let look = (OwnLook::begin(&slot), Some(Pauses::default()));
            let shared = SharedState::new(child, settings, config, look, slot, wakeup, &server);
            Self {
                shared: Arc::new(shared),
                board,
                _folder: folder,
            }
        }

        /// The configuration in force.
        pub fn config(&self) -> Arc<Config> {
            self.shared.current.get()
        }
    }

    /// The settings with these variables.
    pub(in crate::worker) fn settings(set: &[(&str, &str)]) -> Settings {
        let lookup = |name: &str| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        };
        Settings::from_lookup(&lookup).unwrap()
    }

    /// A configuration.
    pub(in crate::worker) fn parse(text: &str) -> Arc<Config> {
        Arc::new(Config::parse(text, Path::new("config.yml")).unwrap())
    }

    #[test]
    fn the_last_chance_is_the_one_before_the_most_deaths() {
        for (most, deaths, expected) in [
            ("3", 0, false),
            ("3", 1, false),
            ("3", 2, true),
            ("3", 3, true),
            ("3", u32::MAX, true),
            ("1", 0, false),
            ("1", 1, true),
            ("0", 5, false),
        ] {
            let worker = TestWorker::with("chains: {}\n", &[("CONSERVER_MAX_DEATHS", most)]);
            let found = worker.shared.is_last_chance(deaths);
            assert_eq!(found, expected, "{deaths} of {most}");
        }
    }

    #[test]
    fn a_worker_is_recycled_once_it_has_released_its_share_of_claims() {
        for (most, counted, expected) in [("3", 2, false), ("3", 3, true), ("0", 9, false)] {
            let worker = TestWorker::with("chains: {}\n", &[("CONSERVER_WORKER_MAX_VCONS", most)]);
            for outcome in [Outcome::Finished, Outcome::Returned, Outcome::Failed]
                .into_iter()
                .cycle()
                .take(counted)
            {
                worker.shared.count(outcome);
            }
            let drains = !worker.shared.drain.begin();
            assert_eq!(drains, expected, "{counted} of {most}");
        }
    }

    #[test]
    fn limits_are_spread_over_the_last_tenth() {
        for (limit, least) in [(1, 1), (9, 9), (10, 9), (1000, 900)] {
            let limits: Vec<u64> = (0..20_000).map(|_| spread(limit)).collect();
            assert_eq!(limits.iter().min(), Some(&least), "{limit}");
            assert_eq!(limits.iter().max(), Some(&limit), "{limit}");
        }
    }
}
