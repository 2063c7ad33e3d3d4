//! Chains on hold: while a link or storage is away, nothing is claimed for the chains that need it.
//!
//! ```text
//! lane: all attempts failed, and the probe too ──hold──► its chains' lists are not claimed from
//!                                                          │
//! lanes are woken ◄─lift── prober: the backend answers ◄───┘
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Backoff, Shared, Stage};
use crate::config::{Chain, Config, ListName};
use crate::failure::Failure;
use crate::scoreboard::Slot;

/// What is away, as all lanes of a worker have found it.
pub(super) struct Holds {
    slot: Slot,
    held: Mutex<Vec<Held>>,
    changes: AtomicU64,
}

struct Held {
    stage: Stage,
    /// A name means something in its own configuration only.
    config: Arc<Config>,
}

/// The ingress lists of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lists {
    /// Those that are claimed from.
    pub open: Vec<ListName>,
    /// Those of chains on hold.
    pub held: Vec<ListName>,
}

impl Holds {
    /// Nothing is on hold.
    pub fn none(slot: Slot) -> Self {
        Self {
            slot,
            held: Mutex::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// Grows with every change, so that a lane knows when to look.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The ingress lists, those that are claimed from and the others.
    pub fn lists(&self, config: &Arc<Config>) -> Lists {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let on_hold = |chain: &&Chain| {
            let needs = |held: &Held| Arc::ptr_eq(&held.config, config) && held.stage.is_in(chain);
            held.iter().any(needs)
        };
        let in_service = config.chains.iter().filter(|chain| chain.enabled);
        let (closed, open): (Vec<&Chain>, Vec<&Chain>) = in_service.partition(on_hold);
        let lists = |chains: Vec<&Chain>| {
            let lists = chains.iter().flat_map(|chain| &chain.ingress_lists);
            lists.cloned().collect()
        };
        Lists {
            open: lists(open),
            held: lists(closed),
        }
    }

    /// Holds the chains that need `stage`; false where they are on hold for it already.
    fn begin(&self, stage: &Stage, config: &Arc<Config>) -> bool {
        self.change(|held| {
            let same = |held: &Held| held.stage == *stage && Arc::ptr_eq(&held.config, config);
            if held.iter().any(same) {
                return false;
            }
            held.push(Held {
                stage: stage.clone(),
                config: Arc::clone(config),
            });
            true
        })
    }

    fn end(&self, stage: &Stage, config: &Arc<Config>) {
        self.change(|held| {
            held.retain(|held| held.stage != *stage || !Arc::ptr_eq(&held.config, config));
            true
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Held>) -> bool) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut held);
        if changed {
            self.changes.fetch_add(1, Ordering::Release);
            let (mut links, mut storages) = (Vec::new(), Vec::new());
            for held in held.iter() {
                match &held.stage {
                    Stage::Link(name) => links.extend(held.config.links.get_index_of(name)),
                    Stage::Storage(name) => {
                        storages.extend(held.config.storages.get_index_of(name));
                    }
                }
            }
            self.slot.hold(&links, &storages);
        }
        changed
    }
}

/// Holds the chains that need `stage` until it answers; asks it from a thread of its own.
pub(super) fn hold(
    shared: &Arc<Shared>,
    config: &Arc<Config>,
    stage: &Stage,
    why: &str,
    drain: &Receiver<()>,
) {
    if !shared.holds.begin(stage, config) {
        return;
    }
    let chains = stage.chains(config).join(", ");
    log::warn!("{stage} is away, on hold until it is back: chain {chains}: {why}");
    let prober = Prober {
        shared: Arc::clone(shared),
        config: Arc::clone(config),
        stage: stage.clone(),
        drain: drain.clone(),
    };
    let name = "prober".to_owned();
    let started = thread::Builder::new().name(name).spawn(|| prober.run());
    if let Err(error) = started {
        log::error!("{stage} cannot be watched, its vCons are tried again at once: {error}");
        shared.holds.end(stage, config);
    }
}

/// Asks one backend until it answers.
struct Prober {
    shared: Arc<Shared>,
    config: Arc<Config>,
    stage: Stage,
    drain: Receiver<()>,
}

impl Prober {
    fn run(self) {
        let since = Instant::now();
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let Some(mut ask) = self.question() else {
            return self.lift();
        };
        loop {
            if self.waits(backoff.next_wait()) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if !Arc::ptr_eq(&self.shared.current.get(), &self.config) {
                return self.lift();
            }
            match ask() {
                Ok(()) => break,
                Err(failure) => log::debug!("{} is still away: {failure}", self.stage),
            }
        }
        let seconds = since.elapsed().as_secs_f64();
        let chains = self.stage.chains(&self.config).join(", ");
        log::info!(
            "{} is back after {seconds:.1} s, chain {chains} goes on",
            self.stage
        );
        self.lift();
    }

    fn waits(&self, time: Duration) -> Result<(), RecvTimeoutError> {
        self.drain.recv_timeout(time)
    }

    fn lift(&self) {
        self.shared.holds.end(&self.stage, &self.config);
        self.shared.wakeup.wake_all();
    }

    /// A backend of its own, asked as often as is wanted.
    fn question(&self) -> Option<Box<dyn FnMut() -> Result<(), Failure>>> {
        match &self.stage {
            Stage::Link(name) => {
                let mut link = self.config.links.get(name)?.open_link();
                let drain = self.drain.clone();
                Some(Box::new(move || guarded(|| link.probe(&drain))))
            }
            Stage::Storage(name) => {
                let mut storage = self.config.storages.get(name)?.open_storage();
                Some(Box::new(move || guarded(|| storage.probe())))
            }
        }
    }
}

/// A probe that panics has not answered.
pub(super) fn guarded(probe: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(probe))
        .unwrap_or_else(|_| Err(Failure::permanent("its probe panicked")))
}
