//! Followers pull vCons from other servers into ingress lists of this one.
//!
//! This file owns the threads and their end: one thread for each entry of `followers`, and a manager that starts
//! and ends these when the configuration changes. `puller` is the work of one thread, `remote` the API of the
//! other server, `spool` the file that keeps UUIDs while Redis is unavailable.

mod puller;
pub(super) mod remote;
mod spool;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use self::puller::Puller;
use self::spool::Spool;
use crate::child::Child;
use crate::config::Follower;
use crate::queue::{Server, left_by_followers};
use crate::runtime_dir;
use crate::scoreboard::Slot;
use crate::settings::Settings;

/// The end of the daemon waits at most this long for a pop.
pub const LONGEST_FAREWELL: Duration = Duration::from_secs(10);

/// How long the end of the daemon waits until the pullers have released their leases.
const FAREWELL: Duration = Duration::from_millis(500);

/// How often the manager looks for a new configuration.
const LOOK: Duration = Duration::from_secs(1);

/// The running threads.
pub(super) struct Followers {
    gate: Arc<Gate>,
    /// Disconnected once all threads have ended.
    ended: Receiver<()>,
}

/// Starts the threads; they live until the monitor drains.
pub(super) fn start(
    child: &Child,
    settings: &Settings,
    server: &Server,
    stats: &StatsByFollower,
) -> io::Result<Followers> {
    let gate = Arc::new(Gate::default());
    let (end, ended) = bounded(0);
    if let Some(slot) = child.slot.clone() {
        let manager = Manager {
            slot,
            state: state_folder(),
            draining: child.draining.clone(),
            server: server.clone(),
            settings: settings.clone(),
            stats: stats.clone(),
            gate: Arc::clone(&gate),
            end,
            generation: None,
            has_looked: false,
            unread: None,
            running: Vec::new(),
        };
        let name = "followers".to_owned();
        thread::Builder::new().name(name).spawn(|| manager.run())?;
    }
    Ok(Followers { gate, ended })
}

impl Followers {
    /// Lets no further pop start, and waits for those under way.
    pub(super) fn close(&self) {
        if !self.gate.close(LONGEST_FAREWELL) {
            log::error!(
                "a follower still waits for UUIDs at shutdown: UUIDs that the other server has taken off its \
                 list for this response are lost"
            );
        }
    }

    /// Waits shortly until the pullers have released their leases, once the monitor drains. Leases that they do
    /// not release expire.
    pub(super) fn wait_for_release(&self) {
        // Nothing is sent: the threads close the channel.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Keeps the end of the daemon from coming between a pop and its note in Redis.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_closed: bool,
    /// Pops under way.
    inside: usize,
}

/// A pop under way.
struct Pass<'a>(&'a Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a pop start; `None` once the gate is closed.
    fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.inside += 1;
        Some(Pass(self))
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Closes the gate; returns whether all pops have left it within `limit`.
    fn close(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.is_closed = true;
        let is_inside = |state: &mut GateState| state.inside > 0;
        let waited = self.changed.wait_timeout_while(state, limit, is_inside);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.inside == 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

/// The folder for files that must outlast the daemon, if systemd names one that can be used.
fn state_folder() -> Option<PathBuf> {
    match runtime_dir::state()? {
        Ok(folder) => Some(folder),
        Err(error) => {
            log::warn!("{error}; until then followers keep UUIDs in the runtime folder");
            None
        }
    }
}

/// The thread that starts and ends the pullers.
struct Manager {
    slot: Slot,
    /// The state folder, if systemd names one that can be used.
    state: Option<PathBuf>,
    draining: Receiver<()>,
    server: Server,
    settings: Settings,
    stats: StatsByFollower,
    gate: Arc<Gate>,
    /// Each thread has a copy until it ends.
    end: Sender<()>,
    generation: Option<u64>,
    /// Whether the manager has looked for what removed followers have left behind.
    has_looked: bool,
    /// The configuration whose error was logged.
    unread: Option<u64>,
    /// Each ends when its sender is dropped.
    running: Vec<(Follower, Sender<()>)>,
}

impl Manager {
    fn run(mut self) {
        loop {
            let generation = Some(self.slot.config_generation());
            if generation != self.generation {
                self.read(generation);
            }
            if !self.has_looked {
                self.has_looked = self.warn_of_left_behind();
            }
            if self.draining.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn read(&mut self, generation: Option<u64>) {
        match Follower::load_all(self.slot.config_path()) {
            Ok(followers) => {
                self.generation = generation;
                self.unread = None;
                self.follow(followers);
            }
            // The supervisor could read it: a file that it names may have gone since.
            Err(errors) if self.unread != generation => {
                self.unread = generation;
                log::error!(
                    "could not read the followers of the new configuration, the former ones keep running:"
                );
                errors.lines().for_each(|line| log::error!("{line}"));
            }
            Err(_) => {}
        }
    }

    /// Starts new followers, ends removed ones, and leaves unchanged ones alone.
    fn follow(&mut self, followers: Vec<Follower>) {
        self.running.retain(|(running, _)| {
            let stays = followers.contains(running);
            if !stays {
                log::info!(
                    "follower {}: stops, it is no longer in the configuration",
                    running.name
                );
            }
            stays
        });
        let names: Vec<&str> = followers.iter().map(|it| it.name.as_str()).collect();
        self.stats.keep_only(&names);
        self.has_looked = false;
        for follower in followers {
            if self.running.iter().any(|(running, _)| *running == follower) {
                continue;
            }
            let (hold, ended) = bounded(0);
            let puller = Puller::new(self, follower.clone(), ended);
            let name = "follower".to_owned();
            match thread::Builder::new().name(name).spawn(|| puller.run()) {
                Ok(_) => self.running.push((follower, hold)),
                Err(error) => {
                    log::error!(
                        "follower {}: could not start a thread: {error}",
                        follower.name
                    );
                    // The next look tries again.
                    self.generation = None;
                }
            }
        }
    }

    /// Logs what Redis and files still hold for followers that are no longer in the configuration; false if
    /// that is not known yet.
    fn warn_of_left_behind(&self) -> bool {
        if self.generation.is_none() {
            return false;
        }
        let running = self.running.iter();
        let names: Vec<&str> = running.map(|(it, _)| it.name.as_str()).collect();
        let left = match left_by_followers(&self.server, &self.settings.instance, &names) {
            Ok(left) => left,
            Err(error) => {
                log::debug!("could not look for what removed followers have left: {error}");
                return false;
            }
        };
        for (name, count) in left {
            log::warn!(
                "follower \"{name}\" is no longer in the configuration, and {count} vCons that it took are still \
                 to be fetched: their UUIDs stay in conserver:follower:{name}"
            );
        }
        self.warn_of_left_spools(&names);
        true
    }

    /// Logs which files still hold UUIDs of followers other than these.
    fn warn_of_left_spools(&self, followers: &[&str]) {
        let board = self.slot.board_path();
        let left = match Spool::left(board, self.state.as_deref(), followers) {
            Ok(left) => left,
            Err(error) => {
                log::warn!("could not look for files of removed followers: {error}");
                return;
            }
        };
        for (name, spool) in left {
            let path = spool.path().display();
            match spool.read() {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => log::warn!(
                    "{path} still holds {} UUIDs that follower \"{name}\" took, and it is no longer in the \
                     configuration: add it again under this name to have them fetched",
                    ids.len()
                ),
                Err(error) => {
                    log::warn!("could not read {path} of the removed follower \"{name}\": {error}");
                }
            }
        }
    }
}

/// What one follower has done since the monitor started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FollowerStats {
    /// vCons handed in.
    pub pulled: u64,
    /// UUIDs that went to the dead letter queue.
    pub dead_lettered: u64,
    /// Failed rounds.
    pub failures: u64,
    /// UUIDs whose documents were still to be fetched when it last looked.
    pub waiting: u64,
    /// The present error.
    pub error: Option<String>,
}

/// The statistics of all followers by name; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StatsByFollower(Arc<Mutex<BTreeMap<String, FollowerStats>>>);

impl StatsByFollower {
    /// Changes those of one follower.
    pub(super) fn note(&self, name: &str, change: impl FnOnce(&mut FollowerStats)) {
        let mut stats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(stats.entry(name.to_owned()).or_default());
    }

    /// Forgets all but these, and shows each of them from now on.
    pub(super) fn keep_only(&self, names: &[&str]) {
        let mut stats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stats.retain(|name, _| names.contains(&name.as_str()));
        for name in names {
            stats.entry((*name).to_owned()).or_default();
        }
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<String, FollowerStats> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_waits_for_a_pop_under_way_and_lets_none_begin() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter();
        assert!(pass.is_some());
        assert!(!gate.close(Duration::from_millis(20)));
        assert!(gate.is_closed() && gate.enter().is_none());
        let closing = Arc::clone(&gate);
        let closes = thread::spawn(move || closing.close(Duration::from_secs(60)));
        drop(pass);
        assert_eq!(closes.join().ok(), Some(true));
        assert!(gate.close(Duration::ZERO));
    }
}
