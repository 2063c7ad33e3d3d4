//! What all lanes of a worker share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::Meters;
use super::circuit_breaker::CircuitBreakers;
use super::current::Current;
use super::health::Health;
use super::modules::Modules;
use super::quarantine::Quarantine;
use super::retry::Absence;
use super::wakeup::Wakeup;
use crate::child::{Child, Drain, Readiness};
use crate::config::Config;
use crate::scoreboard::{Outcome, Slot};
use crate::settings::Settings;
use crate::sys;

/// A worker that is never idle gives free memory back once in this many milliseconds.
const MOST_OFTEN: u64 = 5000;

/// What all lanes of a worker share.
pub(super) struct Shared {
    pub settings: Settings,
    pub current: Current,
    pub name: String,
    pub slot: Slot,
    pub health: Health,
    pub breakers: CircuitBreakers,
    pub redis: Arc<Absence>,
    pub quarantine: Quarantine,
    pub wakeup: Wakeup,
    drain: Arc<Drain>,
    readiness: Readiness,
    unready: AtomicU32,
    /// Whether a large document has left memory free that is not given back to the system.
    has_free_memory: AtomicBool,
    /// When it was last given back, in milliseconds.
    given_back: AtomicU64,
    max_vcons: Option<u64>,
}

impl Shared {
    pub fn new(
        child: Child,
        settings: Settings,
        config: Arc<Config>,
        config_generation: u64,
        slot: Slot,
        wakeup: Wakeup,
    ) -> Self {
        Self {
            current: Current::new(config, config_generation, slot.clone()),
            health: Health::default(),
            breakers: CircuitBreakers::new(slot.clone(), settings.retry_max),
            redis: Arc::default(),
            quarantine: Quarantine::default(),
            wakeup,
            name: child.name.clone(),
            readiness: child.readiness(),
            drain: Arc::clone(&child.drain),
            unready: AtomicU32::new(settings.concurrency),
            has_free_memory: AtomicBool::new(false),
            given_back: AtomicU64::new(0),
            max_vcons: settings.worker_max_vcons.map(spread),
            settings,
            slot,
        }
    }

    /// Whether a vCon on which so many workers have died is taken for poison at the next death.
    pub fn is_last_chance(&self, deaths: u32) -> bool {
        let most = self.settings.max_deaths;
        deaths > 0 && most > 0 && deaths.saturating_add(1) >= most
    }

    /// One lane more is ready; with the last, the worker is.
    pub fn note_ready(&self) {
        if self.unready.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.readiness.notify();
        }
    }

    /// Links and storages for one lane.
    pub fn open_modules(&self, config: Arc<Config>) -> Modules {
        let meters = Meters::of(&config, &self.slot);
        Modules::open(config, meters)
    }

    /// Counts a claim that was let go; the worker is recycled after its share of them.
    pub fn count(&self, outcome: Outcome) {
        let settled = self.slot.count(outcome);
        if self.max_vcons.is_some_and(|most| settled >= most) {
            self.recycle(&format!("it has done {settled} vCons"));
        }
    }

    /// A large document is done. The memory that it took is given back as soon as a lane is idle, and on the
    /// way only now and then, as the next document may want it.
    pub fn note_large(&self) {
        self.has_free_memory.store(true, Ordering::Relaxed);
        let now = sys::monotonic_ms();
        if now.saturating_sub(self.given_back.load(Ordering::Relaxed)) >= MOST_OFTEN {
            self.give_back_memory();
        }
    }

    /// Gives the memory back that large documents have left free, if there is any.
    pub fn give_back_memory(&self) {
        if self.has_free_memory.swap(false, Ordering::Relaxed) {
            sys::give_back_free_memory();
            self.given_back
                .store(sys::monotonic_ms(), Ordering::Relaxed);
        }
    }

    /// Drains this worker, for the supervisor to put a fresh one in its place.
    pub fn recycle(&self, why: &str) {
        if self.drain.begin() {
            log::info!("{} makes way for a fresh one: {why}", self.name);
        }
    }
}

/// A limit up to a tenth lower, so that the workers do not all reach it together.
pub(super) fn spread(limit: u64) -> u64 {
    let least = limit - limit / 10;
    fastrand::u64(least..=limit).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::queue::Server;
    use crate::scoreboard::{Board, PlaceState, PlaceView, Shape};

    /// A worker none of whose lanes has begun. Nothing listens at its Redis.
    pub(in crate::worker) struct Worker {
        pub shared: Arc<Shared>,
        pub board: Board,
        _folder: TempDir,
    }

    impl Worker {
        /// One with this configuration and these settings.
        pub fn with(config: &str, set: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
            board.prepare(1).unwrap();
            let place = PlaceView {
                generation: 1,
                pid: Some(std::process::id().cast_signed()),
                state: PlaceState::Ready,
                since: 0,
                deaths: 0,
                retry: None,
            };
            board.set_place(1, Some(place));
            let slot = Slot::attach(board.id(), 1, 1).unwrap();
            let child = Child::in_a_test(slot.clone());
            let settings = settings(set);
            let wakeup = Wakeup::new(
                &settings,
                slot.clone(),
                Server::new(&settings.redis_url).unwrap(),
            );
            let shared = Shared::new(child, settings, parse(config), 0, slot, wakeup);
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
            let worker = Worker::with("chains: {}\n", &[("CONSERVER_MAX_DEATHS", most)]);
            let found = worker.shared.is_last_chance(deaths);
            assert_eq!(found, expected, "{deaths} of {most}");
        }
    }

    #[test]
    fn a_worker_makes_way_once_it_has_let_go_of_its_share_of_claims() {
        for (most, counted, expected) in [("3", 2, false), ("3", 3, true), ("0", 9, false)] {
            let worker = Worker::with("chains: {}\n", &[("CONSERVER_WORKER_MAX_VCONS", most)]);
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
