//! What the supervisor tells a child process: by memory, on the command line, or over a socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::queue::{Blame, Dead, Holder};
use crate::scoreboard::BoardId;

/// The monitor's slot on the scoreboard; a worker's is its number.
pub const MONITOR_SLOT: usize = 0;

/// What a child process is to do, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its duty.
    pub task: Task,
    /// Which start this is.
    pub generation: u64,
    /// The name of the daemon, as the supervisor has it: where that is the name of the host, it may
    /// be another by now.
    pub instance: String,
    /// The supervisor's PID.
    pub supervisor: i32,
    /// Who holds the instance's name, for all processes of this daemon.
    pub holder: Holder,
    /// The scoreboard.
    pub board: BoardId,
    /// The number of the accepted configuration when it was started.
    pub config_generation: u64,
    /// The file that configuration was read from, for messages.
    pub config_file: PathBuf,
}

/// The duties of child processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Process vCons.
    Work {
        /// What is returned first: the claims of the last worker that had its number.
        predecessor: Leftover,
        /// Whether to return also the claims of every worker with a number higher than any that
        /// is wanted: those that an earlier start left behind.
        sweep_above: Option<u32>,
    },
    /// Return the claims of workers that will have no successor, and end.
    Recover {
        /// The workers.
        leftovers: Vec<Leftover>,
    },
    /// Show other instances that this one is alive.
    Monitor,
}

/// The claims that a worker which has ended may have left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Its number, from 1.
    pub worker: u32,
    /// Which of its vCons its death is counted against.
    pub blame: Blame,
    /// How it ended, in words.
    pub end: String,
}

impl Leftover {
    /// The worker, as the queue wants to know it.
    pub fn dead(&self) -> Dead<'_> {
        Dead {
            worker: self.worker,
            blame: self.blame.clone(),
            end: &self.end,
        }
    }
}

impl Task {
    /// `Worker-3`, `Monitor` or `Recovery`.
    pub fn name(&self) -> String {
        match self {
            Self::Work { predecessor, .. } => format!("Worker-{}", predecessor.worker),
            Self::Recover { .. } => "Recovery".to_owned(),
            Self::Monitor => "Monitor".to_owned(),
        }
    }

    /// The title in `ps` at the start.
    pub fn title(&self) -> String {
        match self {
            Self::Work { predecessor, .. } => {
                format!("conserver: worker {} [starting]", predecessor.worker)
            }
            Self::Recover { .. } => "conserver: recovery".to_owned(),
            Self::Monitor => "conserver: monitor".to_owned(),
        }
    }

    /// The slot on the scoreboard.
    pub fn slot(&self) -> Option<usize> {
        match self {
            Self::Work { predecessor, .. } => usize::try_from(predecessor.worker).ok(),
            Self::Recover { .. } => None,
            Self::Monitor => Some(MONITOR_SLOT),
        }
    }
}
