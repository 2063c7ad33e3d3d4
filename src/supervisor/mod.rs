//! The supervisor: starts the workers and the monitor, watches them, replaces them, ends with them.
//!
//! One thread, one loop, one wait; no network. Its state is what is wanted (how many workers, which
//! configuration, whether to stop) and what is known of each child; every turn of the loop goes from
//! the one towards the other, so that start, restart, scaling, reload and stop are the same code.
//!
//! ```text
//! starting ──all ready──► running ◄──all replaced── reloading
//!     │                      │  └──────SIGHUP──────────▲ │
//!     └──────────────────────┴── SIGTERM, SIGINT, SIGQUIT ──► stopping ──► the end
//! ```
//!
//! It reads the scoreboard as copies and trusts nothing there: a worker that crashed may have left
//! any bits behind.
//!
//! The files: `child_slot` (the states of one child), `children` (starts and ends), `start_method` and
//! `forkserver` (how a process is started), `restart_policy` (what an end means, back-off),
//! `rolling_restart` (SIGHUP, scaling), `drain` (stopping), `housekeeping` (heartbeats, stuck lanes, status
//! lines), `active_config`, `candidate` (a changed configuration with Python modules), `notify` (systemd).

mod active_config;
mod candidate;
mod child_slot;
mod children;
mod drain;
mod forkserver;
mod housekeeping;
mod notify;
mod restart_policy;
mod rolling_restart;
mod start_method;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use active_config::log_refusal;
pub use forkserver::serve as forkserver;
pub use notify::ask_for_time;

use crate::child::{Assignment, OrphanedClaims, WAKE_UP};
use crate::config::{Config, Source};
use crate::exit::Exit;
use crate::queue::Holder;
use crate::scoreboard::{Board, BoardError, DaemonPhase, SLOTS};
use crate::settings::Settings;
use crate::sys::{self, CaughtSignals};
use active_config::ActiveConfig;
use candidate::Candidate;
use child_slot::{ChildSlot, ProcessPhase, Role, SlotState};
use drain::StopRequest;
use forkserver::ForkserverReport;
use housekeeping::{HousekeepingTimer, StuckLanes};
use notify::Notify;
use start_method::Starter;

/// The signals that the supervisor acts on, in this order.
const SIGNALS: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    WAKE_UP,
];

/// The most workers that can be wanted: one slot is the monitor's, and one the spare's in a rolling
/// restart.
pub const MOST_WORKERS: u32 = SLOTS as u32 - 2;

/// Where [`run`] returns: a fork returns twice, once on each side.
#[derive(Debug)]
pub enum RunResult {
    /// In the supervisor, when all its children have ended.
    Ended(Exit),
    /// In a new child, forked from the supervisor. Nothing of the supervisor is left in it.
    InChild(Box<Assignment>, Arc<Config>),
}

/// Why the supervisor could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The scoreboard could not be made.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The runtime folder cannot be used.
    #[error(transparent)]
    Folder(io::Error),
    /// The configuration could not be kept for the children.
    #[error("could not keep the configuration for the workers: {0}")]
    Config(#[source] io::Error),
    /// Signals could not be caught.
    #[error("could not catch signals: {0}")]
    Signals(#[source] io::Error),
    /// Orphans could be left behind.
    #[error("could not become the parent of orphans: {0}")]
    Orphans(#[source] Errno),
    /// The wait itself failed.
    #[error("could not wait for signals: {0}")]
    Poll(#[source] Errno),
}

/// Runs the workers until a signal ends them. In a forked child, returns at once.
pub fn run(settings: &Settings, source: Source) -> Result<RunResult, SupervisorError> {
    let signals = CaughtSignals::catch(SIGNALS).map_err(SupervisorError::Signals)?;
    // Those that came earlier are acted on now.
    sys::release_signals().map_err(SupervisorError::Signals)?;
    sys::adopt_orphans().map_err(SupervisorError::Orphans)?;
    let folder = crate::runtime_dir::make().map_err(SupervisorError::Folder)?;
    let lanes = settings.concurrency as usize;
    let method = settings.start_method;
    let sends_metrics = settings.telemetry.metrics.is_some();
    let shape = active_config::shape(lanes, &source.config, sends_metrics);
    let mut board = Board::create(&folder, &settings.instance, shape, method.number())?;
    board.set_stuck_after(settings.stuck_after);
    board.set_redis(&settings.redis_url.to_string());
    let file = settings.config_file.clone();
    let active_config = ActiveConfig::begin(source, file, sends_metrics, &mut board)
        .map_err(SupervisorError::Config)?;
    let holder = Holder::this_process(board.id().nonce);
    let notify = Notify::from_env();
    let heartbeat = settings.beat();
    let interval = notify
        .watchdog_interval()
        .map_or(heartbeat, |interval| interval.min(heartbeat));
    let supervisor = Supervisor {
        starter: Starter::new(method),
        timer: HousekeepingTimer::every(interval, heartbeat),
        signals,
        board,
        holder,
        active_config,
        candidate: None,
        notify,
        children: BTreeMap::new(),
        wanted: settings.workers,
        phase: DaemonPhase::Starting,
        up: false,
        all_started: false,
        reloading: false,
        spare_stands_in: false,
        stop: None,
        round: 0,
        generations: 0,
        orphaned: Vec::new(),
        closing: None,
        drain_timeout: settings.drain_timeout,
        lease_ttl: settings.heartbeat_ttl,
        stuck: StuckLanes::after(settings.stuck_after),
        instance: settings.instance.clone(),
        first_workers: settings.workers,
        swept: false,
    };
    supervisor.run()
}

struct Supervisor {
    starter: Starter,
    timer: HousekeepingTimer,
    signals: CaughtSignals,
    board: Board,
    holder: Holder,
    active_config: ActiveConfig,
    /// A changed configuration that may take its place.
    candidate: Option<Candidate>,
    notify: Notify,
    children: BTreeMap<Role, ChildSlot>,
    /// How many workers are wanted.
    wanted: u32,
    phase: DaemonPhase,
    /// Whether all workers have been ready together once, and the service manager knows.
    up: bool,
    /// Whether every worker has been started once.
    all_started: bool,
    /// Whether a rolling restart is in progress.
    reloading: bool,
    /// The spare of a rolling restart that was given up does the work of a worker that refuses.
    spare_stands_in: bool,
    stop: Option<StopRequest>,
    /// Counts reloads.
    round: u64,
    /// Counts starts of processes.
    generations: u64,
    /// Claims that no successor will return.
    orphaned: Vec<OrphanedClaims>,
    /// Since when only the forkserver is left to end.
    closing: Option<Instant>,
    drain_timeout: Duration,
    /// How long the lease on the name lives without being renewed.
    lease_ttl: Duration,
    /// The lanes that the log has called stuck.
    stuck: StuckLanes,
    /// The name of this daemon.
    instance: String,
    /// How many workers the settings ask for.
    first_workers: u32,
    /// Whether the claims of an earlier daemon's workers with higher numbers than those have been
    /// returned. Before that, no process may hold claims under such a number.
    swept: bool,
}

/// How the loop goes on after a turn.
enum LoopStep {
    /// It waits for the next event.
    Wait,
    /// This is a new child process.
    InChild(Box<Assignment>),
    /// Everything has ended.
    End(Exit),
}

impl Supervisor {
    fn run(mut self) -> Result<RunResult, SupervisorError> {
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
            for report in self.starter.reports() {
                self.note_report(report);
            }
            // Also without a SIGCHLD: one may have been swallowed by a fork in progress.
            while let Some((pid, end)) = sys::reap() {
                self.note_end(pid, end);
            }
            self.note_readiness();
            if self.timer.is_due() {
                self.do_housekeeping();
            }
            match self.advance() {
                LoopStep::Wait => {}
                LoopStep::InChild(assignment) => {
                    return Ok(RunResult::InChild(assignment, self.active_config.parsed));
                }
                LoopStep::End(exit) => return Ok(RunResult::Ended(exit)),
            }
            self.wait()?;
        }
    }

    fn act_on(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => {}
            WAKE_UP => self.take_request(),
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
            Signal::SIGUSR1 => housekeeping::log_children(self),
            _ => {}
        }
    }

    fn set_phase(&mut self, phase: DaemonPhase) {
        self.phase = phase;
        self.board.set_phase(phase);
    }

    fn workers(&self) -> impl Iterator<Item = &ChildSlot> {
        let is_worker = |child: &&ChildSlot| child.role.worker().is_some();
        self.children.values().filter(is_worker)
    }

    fn ready_workers(&self) -> usize {
        self.workers().filter(|child| child.is_ready()).count()
    }

    fn note_report(&mut self, report: ForkserverReport) {
        match report {
            ForkserverReport::Started { generation, pid } => {
                self.note_start(generation, Pid::from_raw(pid));
            }
            ForkserverReport::Failed { generation, error } => {
                self.note_failed_start(generation, &error);
            }
            ForkserverReport::Ended { pid, end } => {
                let pid = Pid::from_raw(pid);
                self.note_end(pid, end);
                self.starter.release(pid);
            }
        }
    }

    /// Waits for a signal, the forkserver, or the next time at which there is something to do.
    fn wait(&self) -> Result<(), SupervisorError> {
        let deadlines = self
            .children
            .values()
            .filter_map(|child| match child.state {
                SlotState::Running {
                    phase: ProcessPhase::Draining { until },
                    ..
                } => Some(until),
                _ if self.stop.is_none() || child.role == Role::Recovery => child.due(),
                _ => None,
            });
        let trial = self.candidate.as_ref().map(|it| it.until);
        let next = deadlines.chain(trial).chain([self.timer.due()]).min();
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            // Rounded up, so that the time has come when the poll returns.
            let wait = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = vec![PollFd::new(self.signals.readable(), PollFlags::POLLIN)];
        sources.extend(
            self.starter
                .waits_for()
                .map(|(socket, flags)| PollFd::new(socket, flags)),
        );
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(SupervisorError::Poll(error)),
        }
    }
}
