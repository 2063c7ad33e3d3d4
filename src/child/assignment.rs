//! What the supervisor tells a child process: by memory, on the command line, or over a socket.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::queue::{Blame, Dead, Holder};
use crate::scoreboard::BoardId;
use crate::sys;

/// The monitor's slot on the scoreboard; a worker's is its number.
pub const MONITOR_SLOT: usize = 0;

/// No assignment is longer, in bytes: a million claims, of all lanes there can be, take two thirds
/// of it.
pub const LONGEST_ASSIGNMENT: usize = 64 << 20;

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

impl Assignment {
    /// Writes it to a file without a name, which a child process is given as its standard input: a
    /// command line has no room for the UUIDs of all that a worker had in hand.
    pub fn hand_over(&self) -> io::Result<File> {
        let text = serde_json::to_vec(self)?;
        let mut file = sys::nameless_file()?;
        file.write_all(&text)?;
        file.rewind()?;
        Ok(file)
    }

    /// Reads what [`Assignment::hand_over`] has written.
    pub fn take_over(from: impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        from.take(LONGEST_ASSIGNMENT as u64)
            .read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use uuid::Uuid;

    use super::*;

    /// An assignment to return what so many workers have left, with the UUIDs of so many vCons each.
    pub fn recover(workers: u32, vcons: u128) -> Assignment {
        let left = |worker| Leftover {
            worker,
            blame: Blame::AllBut((1..=vcons).map(Uuid::from_u128).collect()),
            end: "killed by SIGKILL".to_owned(),
        };
        let leftovers = (1..=workers).map(left).collect();
        Assignment {
            task: Task::Recover { leftovers },
            generation: 7,
            instance: "here".to_owned(),
            supervisor: 4711,
            holder: Holder::this_process(u64::MAX),
            board: BoardId {
                path: PathBuf::from("/run/conserver/here.scoreboard"),
                nonce: u64::MAX,
            },
            config_generation: 1,
            config_file: PathBuf::from("/etc/conserver/config.yml"),
        }
    }

    #[test]
    fn an_assignment_of_any_size_is_handed_over() {
        for vcons in [0, 1, 10_000] {
            let assignment = recover(1, vcons);
            let file = assignment.hand_over().unwrap();
            assert_eq!(Assignment::take_over(file).unwrap(), assignment);
        }
        assert!(Assignment::take_over(&b"{}"[..]).is_err());
        assert!(Assignment::take_over(&b""[..]).is_err());
    }

    #[test]
    fn no_assignment_that_can_be_is_too_long() {
        let one = serde_json::to_vec(&recover(1, 1024)).unwrap().len();
        assert!(one * 1024 < LONGEST_ASSIGNMENT, "{one} bytes for a worker");
    }
}
