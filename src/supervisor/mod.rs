//! The supervisor: starts the workers and the monitor, watches them, replaces them, ends with them.
//!
//! One thread, one loop, one wait; no network. Its state is what is wanted (how many workers,
//! which configuration, whether to stop) and what is known of each place; every turn of the loop
//! takes one step from the one towards the other, so that start, restart, scaling, reload and
//! stop are the same code.
//!
//! ```text
//! starting ──all ready──► running ◄──all replaced── reloading
//!     │                      │  └──────SIGHUP──────────▲ │
//!     └──────────────────────┴── SIGTERM, SIGINT, SIGQUIT ──► stopping ──► the end
//! ```
//!
//! It reads the scoreboard as copies and trusts nothing there: a worker that crashed may have left
//! any bits behind.

mod deaths;
mod follow;
mod health;
mod method;
mod notify;
mod place;
mod report;
mod restart;
mod rolling;
mod signals;
mod steps;
mod stuck;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use method::serve as forkserver;

use crate::child::{Assignment, Leftover, NUDGE};
use crate::config::Source;
use crate::exit::Exit;
use crate::queue::Holder;
use crate::scoreboard::{Board, BoardError, Phase as DaemonPhase, SLOTS};
use crate::settings::Settings;
use crate::sys;
use follow::Followed;
use method::{Event, Method};
use notify::{Notify, Tell};
use place::{Place, Post, State};
use signals::Signals;
use stuck::Stuck;
use watch::Watch;

/// The signals the supervisor acts on, the urgent ones first.
const SIGNALS: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    NUDGE,
];

/// The most workers that can be wanted: one slot is the monitor's, and one is kept for a rolling
/// restart.
const MOST_WORKERS: u32 = SLOTS as u32 - 2;

/// What this process is when [`run`] returns: a fork returns twice, once on each side.
#[derive(Debug)]
pub enum Role {
    /// The supervisor, whose children are all gone.
    Done(Exit),
    /// A new child of this process's parent, forked from the supervisor. Nothing of the
    /// supervisor is left in it.
    Child(Box<Assignment>, std::sync::Arc<crate::config::Config>),
}

/// Why the supervisor could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// There is no scoreboard.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// There is no place for it.
    #[error(transparent)]
    Folder(io::Error),
    /// The configuration could not be kept for the children.
    #[error("could not keep the configuration for the workers: {0}")]
    Config(#[source] io::Error),
    /// Signals could not be caught.
    #[error("could not catch signals: {0}")]
    Signals(#[source] io::Error),
    /// Children could be left behind.
    #[error("could not become the parent of orphans: {0}")]
    Orphans(#[source] Errno),
    /// The wait itself failed.
    #[error("could not wait for signals: {0}")]
    Poll(#[source] Errno),
}

/// Runs the workers until a signal ends them; in a forked child, returns at once.
pub fn run(settings: &Settings, source: Source) -> Result<Role, SupervisorError> {
    let signals = Signals::catch(SIGNALS).map_err(SupervisorError::Signals)?;
    // Those that came earlier are acted on now.
    sys::release_signals().map_err(SupervisorError::Signals)?;
    sys::adopt_orphans().map_err(SupervisorError::Orphans)?;
    let folder = crate::runtime_dir::make().map_err(SupervisorError::Folder)?;
    let lanes = settings.concurrency as usize;
    let method = settings.start_method;
    let shape = follow::shape(lanes, &source.config);
    let mut board = Board::create(&folder, &settings.instance, shape, method.number())?;
    board.set_stuck_after(settings.stuck_after);
    let file = settings.config_file.clone();
    let followed = Followed::begin(source, file, &mut board).map_err(SupervisorError::Config)?;
    let holder = Holder::this_process(board.id().nonce);
    let notify = Notify::from_env();
    let beat = settings.beat();
    let supervisor = Supervisor {
        method: Method::new(method),
        watch: Watch::every(
            notify.watchdog_beat().map_or(beat, |dog| dog.min(beat)),
            beat,
        ),
        signals,
        board,
        holder,
        followed,
        notify,
        places: BTreeMap::new(),
        wanted: settings.workers,
        phase: DaemonPhase::Starting,
        up: false,
        all_started: false,
        reloading: false,
        stop: None,
        round: 0,
        generations: 0,
        orphaned: Vec::new(),
        closing: None,
        drain_timeout: settings.drain_timeout,
        lease_ttl: settings.heartbeat_ttl,
        stuck: Stuck::after(settings.stuck_after),
        instance: settings.instance.clone(),
        first_workers: settings.workers,
        swept: false,
    };
    supervisor.run()
}

struct Supervisor {
    method: Method,
    watch: Watch,
    signals: Signals,
    board: Board,
    holder: Holder,
    followed: Followed,
    notify: Notify,
    places: BTreeMap<Post, Place>,
    /// How many workers there are to be.
    wanted: u32,
    phase: DaemonPhase,
    /// Whether all workers have been ready together once, and the service manager knows.
    up: bool,
    /// Whether every worker has been started once.
    all_started: bool,
    /// Whether workers of an earlier round are being replaced.
    reloading: bool,
    stop: Option<Stop>,
    /// Counts reloads.
    round: u64,
    /// Counts starts of processes.
    generations: u64,
    /// Claims that no successor will return.
    orphaned: Vec<Leftover>,
    /// Since when there is nothing left to do but the forkserver's end.
    closing: Option<Instant>,
    drain_timeout: Duration,
    /// How long the lease on the name lives without being renewed.
    lease_ttl: Duration,
    /// Which lanes the log has called stuck.
    stuck: Stuck,
    /// The name of this daemon.
    instance: String,
    /// How many workers the settings ask for.
    first_workers: u32,
    /// Whether the claims of an earlier daemon's workers with higher numbers than those have been
    /// returned. Nobody may hold claims under such a number before that.
    swept: bool,
}

/// An end that has begun.
struct Stop {
    /// Whether to wait for vCons in work.
    now: bool,
    /// The exit code at its end.
    exit: Exit,
}

impl Stop {
    /// What becomes of an end that may have begun before: no less of a hurry, and the first code
    /// that tells of a fault.
    fn after(before: Option<Self>, now: bool, exit: Exit) -> Self {
        let (hurry, code) = before.map_or((false, Exit::Ok), |stop| (stop.now, stop.exit));
        Self {
            now: now || hurry,
            exit: if code == Exit::Ok { exit } else { code },
        }
    }
}

/// What a turn of the loop came to.
enum Turn {
    GoesOn,
    Child(Box<Assignment>),
    Over(Exit),
}

impl Supervisor {
    fn run(mut self) -> Result<Role, SupervisorError> {
        let noun = if self.wanted == 1 {
            "worker"
        } else {
            "workers"
        };
        log::info!("Starting {} {noun}", self.wanted);
        self.board.set_wanted(self.wanted);
        loop {
            for signal in self.signals.take() {
                self.act_on(signal);
            }
            for event in self.method.events() {
                self.note(event);
            }
            // Also without a SIGCHLD: one may have been swallowed by a fork in progress.
            while let Some((pid, end)) = sys::reap() {
                self.note_end(pid, end);
            }
            self.note_readiness();
            if self.watch.is_due() {
                self.look_after();
            }
            match self.step() {
                Turn::GoesOn => {}
                Turn::Child(assignment) => {
                    return Ok(Role::Child(assignment, self.followed.config));
                }
                Turn::Over(exit) => return Ok(Role::Done(exit)),
            }
            self.wait()?;
        }
    }

    fn act_on(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD | NUDGE => {}
            Signal::SIGTERM | Signal::SIGINT => {
                log::info!("{signal} received");
                let again = self.stop.is_some();
                self.stop(again, Exit::Ok);
            }
            Signal::SIGQUIT => {
                log::info!("{signal} received");
                self.stop(true, Exit::Ok);
            }
            Signal::SIGHUP => {
                log::info!("{signal} received");
                self.reload();
            }
            Signal::SIGTTIN => self.scale(self.wanted.saturating_add(1)),
            Signal::SIGTTOU => self.scale(self.wanted.saturating_sub(1)),
            Signal::SIGUSR1 => report::log_all(self),
            _ => {}
        }
    }

    fn stop(&mut self, now: bool, exit: Exit) {
        if self.stop.is_none() {
            self.notify.tell(Tell::Stopping);
            self.set_phase(DaemonPhase::Stopping);
        }
        self.stop = Some(Stop::after(self.stop.take(), now, exit));
    }

    /// Whether this daemon ends because another one has its name, or Redis is none that can be worked
    /// with: then there are no claims that it could return.
    fn is_displaced(&self) -> bool {
        let stop = self.stop.as_ref();
        let monitor = self.places.get(&Post::Monitor);
        stop.is_some_and(|stop| stop.exit == Exit::Unavailable)
            || monitor.is_some_and(|place| place.state == State::Refused)
    }

    fn scale(&mut self, wanted: u32) {
        let wanted = wanted.clamp(1, MOST_WORKERS);
        if wanted == self.wanted {
            log::warn!("There are to be from 1 to {MOST_WORKERS} workers: {wanted} it stays");
        } else {
            log::info!("{wanted} workers are wanted instead of {}", self.wanted);
            self.wanted = wanted;
            self.board.set_wanted(wanted);
        }
    }

    fn reload(&mut self) {
        if self.stop.is_some() {
            return;
        }
        // Before that, it waits for the start.
        if self.up {
            self.notify.tell(Tell::Reloading);
        }
        if self.followed.read(&mut self.board) {
            self.round += 1;
            self.reloading = true;
            self.set_phase(DaemonPhase::Reloading);
            log::info!("Replacing the workers one by one");
            self.forgive_refusals();
        } else if self.phase == DaemonPhase::Running {
            self.notify.tell(Tell::Ready);
        }
    }

    /// A new configuration gives workers that refused the former one another chance.
    fn forgive_refusals(&mut self) {
        for place in self.places.values_mut() {
            if place.state == State::Refused {
                place.set(State::Vacant { until: None });
            }
        }
    }

    fn set_phase(&mut self, phase: DaemonPhase) {
        self.phase = phase;
        self.board.set_phase(phase);
    }

    fn workers(&self) -> impl Iterator<Item = &Place> {
        let is_worker = |place: &&Place| place.post.worker().is_some();
        self.places.values().filter(is_worker)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Started(generation, pid) => self.note_start(generation, pid),
            Event::Failed(generation, error) => self.note_failed_start(generation, &error),
            Event::Ended(pid, end) => {
                self.note_end(pid, end);
                self.method.release(pid);
            }
        }
    }

    /// Waits for a signal, the forkserver, or the next time at which there is something to do.
    fn wait(&self) -> Result<(), SupervisorError> {
        let deadlines = self.places.values().filter_map(|place| match place.state {
            State::Running {
                phase: place::Phase::Draining { until },
                ..
            } => Some(until),
            _ if self.stop.is_none() || place.post == Post::Recovery => place.due(),
            _ => None,
        });
        let next = deadlines.chain([self.watch.due()]).min();
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            // Rounded up, so that the time has come when the poll returns.
            let wait = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = vec![PollFd::new(self.signals.readable(), PollFlags::POLLIN)];
        sources.extend(
            self.method
                .waits_for()
                .map(|(socket, flags)| PollFd::new(socket, flags)),
        );
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(SupervisorError::Poll(error)),
        }
    }

    fn place_of(&mut self, pid: Pid) -> Option<&mut Place> {
        let mut places = self.places.values_mut();
        places.find(|place| place.pid() == Some(pid))
    }

    fn show(&self, place: &Place) {
        if let Some(slot) = place.post.slot() {
            self.board.set_place(slot, Some(place.shown()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_stop_neither_slows_down_nor_forgets_the_fault() {
        let stop = |steps: &[(bool, Exit)]| {
            let stop = steps.iter().fold(None, |before, (now, exit)| {
                Some(Stop::after(before, *now, *exit))
            });
            stop.map(|stop| (stop.now, stop.exit))
        };
        let (drain, now, config) = ((false, Exit::Ok), (true, Exit::Ok), (false, Exit::Config));
        assert_eq!(stop(&[drain]), Some(drain));
        assert_eq!(stop(&[drain, now]), Some(now));
        assert_eq!(stop(&[now, drain]), Some(now));
        assert_eq!(stop(&[config, now]), Some((true, Exit::Config)));
        assert_eq!(stop(&[drain, config]), Some(config));
    }
}
