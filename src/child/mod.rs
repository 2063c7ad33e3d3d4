//! What every child process of the daemon is told, and does first.
//!
//! The supervisor starts each with an [`Assignment`]; [`Child::begin`] ties its life to the
//! supervisor's, takes over its signals, and finds its slot on the scoreboard.

mod assignment;
mod drain;
mod title;

use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

#[cfg(test)]
pub(crate) use assignment::tests::recover;
pub use assignment::{Assignment, LONGEST_ASSIGNMENT, Leftover, MONITOR_SLOT, Task};
pub use drain::Drain;
pub use title::BusyTitle;

use crate::logging;
use crate::scoreboard::{BoardError, Slot, WorkerState};
use crate::sys::{self, Title};
use drain::Heeds;

/// What wakes the supervisor to have a look at the scoreboard.
pub const NUDGE: Signal = Signal::SIGUSR2;

/// A child process at work.
pub struct Child {
    /// `Worker-3`, `Monitor` or `Recovery`.
    pub name: String,
    /// Begins the drain; shared by everything that may want it.
    pub drain: Arc<Drain>,
    /// Disconnected when the drain has begun.
    pub draining: Receiver<()>,
    /// Its slot on the scoreboard; one that only returns claims has none.
    pub slot: Option<Slot>,
    /// Its title as `ps` shows it.
    pub title: Title,
    supervisor: Pid,
}

/// Why a child process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// There is nobody to work for.
    #[error("its supervisor has ended")]
    Orphaned,
    /// It could be left behind.
    #[error("it would outlive its supervisor: {0}")]
    Unattended(#[source] nix::errno::Errno),
    /// It could not be stopped.
    #[error("it could not take over its signals: {0}")]
    Signals(#[source] io::Error),
    /// It could not show what it does.
    #[error(transparent)]
    Board(#[from] BoardError),
}

impl Child {
    /// Begins the life of a child process of `parent`: the supervisor, or the forkserver.
    pub fn begin(
        assignment: &Assignment,
        parent: Pid,
        mut title: Title,
    ) -> Result<Self, BeginError> {
        let name = assignment.task.name();
        sys::seed_random();
        logging::may_wait();
        logging::set_worker(&name);
        title.set(&assignment.task.title());
        match sys::die_with_parent(parent) {
            Ok(true) => {}
            Ok(false) => return Err(BeginError::Orphaned),
            Err(error) => return Err(BeginError::Unattended(error)),
        }
        let slot = match assignment.task.slot() {
            Some(number) => Some(Slot::attach(
                &assignment.board,
                number,
                assignment.generation,
            )?),
            None => None,
        };
        let (drain, draining) = Drain::new(slot.clone());
        let heeds = match assignment.task {
            Task::Monitor => Heeds::TheSupervisor,
            Task::Work { .. } | Task::Recover { .. } => Heeds::Everyone,
        };
        drain::on_signals(&drain, heeds).map_err(BeginError::Signals)?;
        Ok(Self {
            name,
            drain,
            draining,
            slot,
            title,
            supervisor: Pid::from_raw(assignment.supervisor),
        })
    }

    /// One that only tests know of; its signals and its life are its own.
    #[cfg(test)]
    pub fn in_a_test(slot: Slot) -> Self {
        let (drain, draining) = Drain::new(Some(slot.clone()));
        Self {
            name: "Worker-1".to_owned(),
            drain,
            draining,
            slot: Some(slot),
            title: Title::nowhere(),
            supervisor: Pid::this(),
        }
    }

    /// What tells the others that this process is ready.
    pub fn readiness(&self) -> Readiness {
        Readiness {
            slot: self.slot.clone(),
            supervisor: self.supervisor,
        }
    }
}

/// Tells that a child process is ready.
pub struct Readiness {
    slot: Option<Slot>,
    supervisor: Pid,
}

impl Readiness {
    /// Shows it, and has the supervisor look.
    pub fn tell(&self) {
        if let Some(slot) = &self.slot {
            slot.set_state(WorkerState::Ready);
        }
        sys::kill(self.supervisor, NUDGE);
    }
}
