//! The supervisor: starts the workers, watches them, replaces them, and ends with them.
//!
//! One thread, one loop, one wait; no network. The only state is the number of workers wanted and
//! what is known of each:
//!
//! ```text
//!          start                 died: wait (none, then back-off)
//! vacant ────────► running ────────────────────────────────► vacant until …
//!                    │ SIGTERM: drain                            │
//!                    └──────────────► gone ◄─────────────────────┘ SIGTERM
//! ```

mod children;
mod restart;
mod signals;

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, getpid};

use crate::exit::Exit;
use crate::settings::{Settings, StartMethod};
use crate::sys;
use crate::worker::Assignment;
use children::{Method, Started};
use restart::Restarts;
use signals::Signals;

/// The signals the supervisor acts on, the urgent ones first.
const SIGNALS: &[Signal] = &[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT];

/// Whether workers can be started in this way.
///
/// # Errors
/// Says which setting to change where they cannot.
pub fn is_available(method: StartMethod) -> Result<(), String> {
    match method {
        StartMethod::Fork => Ok(()),
        StartMethod::Spawn | StartMethod::Forkserver => Err(format!(
            "CONSERVER_START_METHOD: {method} is not available in this version, which has fork"
        )),
    }
}

/// What this process is when [`run`] returns: a fork returns twice, once on each side.
#[derive(Debug)]
pub enum Role {
    /// The supervisor, whose workers are all gone.
    Done(Exit),
    /// A new worker. Nothing of the supervisor is left in this process.
    Worker(Assignment),
}

/// Why the supervisor could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Signals could not be caught.
    #[error("could not catch signals: {0}")]
    Signals(#[source] io::Error),
    /// The wait itself failed.
    #[error("could not wait for signals: {0}")]
    Poll(#[source] Errno),
}

/// Runs the workers until a signal ends them; in a forked worker, returns at once.
pub fn run(settings: &Settings) -> Result<Role, SupervisorError> {
    Supervisor {
        method: Method::new(settings.start_method),
        signals: Signals::catch(SIGNALS).map_err(SupervisorError::Signals)?,
        workers: (1..=settings.workers).map(Worker::vacant).collect(),
        stopping: None,
        drain_timeout: settings.drain_timeout,
    }
    .run()
}

struct Supervisor {
    method: Method,
    signals: Signals,
    workers: Vec<Worker>,
    stopping: Option<Stopping>,
    drain_timeout: Duration,
}

/// One worker's place.
struct Worker {
    number: u32,
    state: State,
    starts: u32,
    restarts: Restarts,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Vacant { until: Option<Instant> },
    Running { pid: Pid, since: Instant },
}

struct Stopping {
    deadline: Instant,
    killed: bool,
}

impl Worker {
    fn vacant(number: u32) -> Self {
        Self {
            number,
            state: State::Vacant { until: None },
            starts: 0,
            restarts: Restarts::default(),
        }
    }

    fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Vacant { .. } => None,
        }
    }

    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Vacant { until } => until,
            State::Running { .. } => None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Vacant { until } if until.is_none_or(|until| until <= now))
    }
}

impl Supervisor {
    fn run(mut self) -> Result<Role, SupervisorError> {
        log::info!("Starting {} workers", self.workers.len());
        loop {
            for signal in self.signals.take() {
                self.act_on(signal);
            }
            // Also without a SIGCHLD: one may have been swallowed by a fork in progress.
            while let Some(status) = sys::reap() {
                self.note_end(status);
            }
            match self.stopping {
                None => {
                    if let Some(assignment) = self.maintain() {
                        return Ok(Role::Worker(assignment));
                    }
                }
                Some(_) if self.workers.iter().all(|worker| worker.pid().is_none()) => {
                    log::info!("All workers stopped");
                    return Ok(Role::Done(Exit::Ok));
                }
                Some(_) => self.enforce_deadline(),
            }
            self.wait()?;
        }
    }

    fn act_on(&mut self, signal: Signal) {
        if signal == Signal::SIGCHLD {
            return;
        }
        log::info!("{signal} received");
        let (deadline, tell) = match &self.stopping {
            None => (Instant::now() + self.drain_timeout, Signal::SIGTERM),
            Some(_) => (Instant::now(), Signal::SIGKILL),
        };
        self.stopping = Some(Stopping {
            deadline,
            killed: tell == Signal::SIGKILL,
        });
        self.tell_all(tell);
    }

    fn tell_all(&self, signal: Signal) {
        for pid in self.workers.iter().filter_map(Worker::pid) {
            sys::kill(pid, signal);
        }
    }

    fn note_end(&mut self, status: WaitStatus) {
        let Some(worker) = self
            .workers
            .iter_mut()
            .find(|worker| worker.pid() == status.pid())
        else {
            return;
        };
        let State::Running { pid, since } = worker.state else {
            return;
        };
        let name = format!("Worker-{} (PID {pid})", worker.number);
        if self.stopping.is_some() {
            worker.state = State::Vacant { until: None };
            match status {
                WaitStatus::Exited(_, 0) => log::debug!("{name} has drained"),
                status => log::warn!("{name} did not drain: {}", describe(status)),
            }
            return;
        }
        let wait = worker
            .restarts
            .after_death(since.elapsed(), fastrand::f64());
        worker.state = State::Vacant {
            until: Some(Instant::now() + wait),
        };
        let pause = match wait.as_secs_f64() {
            0.0 => String::new(),
            seconds => format!(" in {seconds:.1} s"),
        };
        log::error!(
            "{name} died unexpectedly, restarting{pause}: {}",
            describe(status)
        );
    }

    /// Starts every worker that is due. Answers, in the new process, what it is to do.
    fn maintain(&mut self) -> Option<Assignment> {
        let now = Instant::now();
        let first_start = self.workers.iter().all(|worker| worker.starts == 0);
        for worker in self.workers.iter_mut().filter(|worker| worker.is_due(now)) {
            let sweep = worker.number == 1 && worker.starts == 0;
            let assignment = Assignment {
                number: worker.number,
                sweep,
                parent: getpid(),
            };
            worker.starts = worker.starts.saturating_add(1);
            match self.method.start(&assignment) {
                Ok(Started::Here) => return Some(assignment),
                Ok(Started::There(pid)) => {
                    worker.state = State::Running {
                        pid,
                        since: Instant::now(),
                    };
                    if worker.starts == 1 {
                        log::info!("Started Worker-{} (PID {pid})", worker.number);
                    } else {
                        log::info!("Restarted Worker-{} (new PID {pid})", worker.number);
                    }
                }
                Err(error) => {
                    let wait = worker.restarts.after_death(Duration::ZERO, fastrand::f64());
                    worker.state = State::Vacant {
                        until: Some(Instant::now() + wait),
                    };
                    log::error!("could not start Worker-{}: {error}", worker.number);
                }
            }
        }
        if first_start && self.workers.iter().all(|worker| worker.pid().is_some()) {
            log::info!("All {} workers started", self.workers.len());
        }
        None
    }

    fn enforce_deadline(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        if !stopping.killed && stopping.deadline <= Instant::now() {
            stopping.killed = true;
            let seconds = self.drain_timeout.as_secs_f64();
            log::error!("Workers still busy after the drain timeout of {seconds} s are killed");
            self.tell_all(Signal::SIGKILL);
        }
    }

    /// Waits for a signal or the next time at which there is something to do.
    fn wait(&self) -> Result<(), SupervisorError> {
        let next = match &self.stopping {
            Some(stopping) if stopping.killed => None,
            Some(stopping) => Some(stopping.deadline),
            None => self.workers.iter().filter_map(Worker::due).min(),
        };
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            // Rounded up, so that the time has come when the poll returns.
            let wait = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = [PollFd::new(self.signals.readable(), PollFlags::POLLIN)];
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(SupervisorError::Poll(error)),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, true) => format!("killed by {signal}, core dumped"),
        WaitStatus::Signaled(_, signal, false) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    }
}
