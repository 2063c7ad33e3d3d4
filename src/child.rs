//! The common start of all child processes: the assignment, the signals, the slot on the scoreboard.
//!
//! Each child gets an [`Assignment`] from the supervisor: in memory (fork), as a file on standard
//! input (spawn) or over a socket (forkserver). [`Child::begin`] makes the child end with its
//! supervisor, handles its signals, and finds its slot on the scoreboard. Nothing here knows the work
//! of a worker or of the monitor.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::logging;
use crate::queue::{EndedWorker, Holder, Suspects};
use crate::scoreboard::{BoardError, BoardId, Slot, WorkerState};
use crate::sys;

/// The monitor's slot on the scoreboard; a worker's is its number.
pub const MONITOR_SLOT: usize = 0;

/// No assignment is longer, in bytes: a million claims, of all lanes there can be, take two thirds
/// of it.
pub const LONGEST_ASSIGNMENT: usize = 64 << 20;

/// What a child process does, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its task.
    pub task: Task,
    /// Which start this is.
    pub generation: u64,
    /// The name of the daemon as the supervisor knows it: a name taken from the host may have changed
    /// since.
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
    /// Writes it to a nameless file, the standard input of a child process: a command line has no room
    /// for the UUIDs of everything that a worker had in hand.
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

/// The tasks of child processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Process vCons.
    Work(WorkerTask),
    /// Return the claims of workers that will have no successor, and end.
    Recover {
        /// The workers.
        orphaned: Vec<OrphanedClaims>,
    },
    /// Hold the instance's name, and show other instances that this one is alive.
    Monitor,
}

/// The task of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTask {
    /// The last worker with the same number. Its claims are returned first.
    pub predecessor: OrphanedClaims,
    /// If set, the claims of every worker with a higher number are returned too: an earlier daemon
    /// with more workers left them behind.
    pub sweep_above: Option<u32>,
}

/// The claims that a worker which has ended may have left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanedClaims {
    /// Its number, from 1.
    pub worker: u32,
    /// Which of its vCons its death is counted against.
    pub blame: Suspects,
    /// How it ended, in words.
    pub end: String,
}

impl OrphanedClaims {
    /// The worker, as the queue wants to know it.
    pub fn dead(&self) -> EndedWorker<'_> {
        EndedWorker {
            worker: self.worker,
            blame: self.blame.clone(),
            end: &self.end,
        }
    }
}

impl Task {
    /// The name in the log: `Worker-3`, `Monitor` or `Recovery`.
    pub fn name(&self) -> String {
        match self {
            Self::Work(task) => format!("Worker-{}", task.predecessor.worker),
            Self::Recover { .. } => "Recovery".to_owned(),
            Self::Monitor => "Monitor".to_owned(),
        }
    }

    /// The name of the process, at most 15 bytes: see [`sys::set_name`].
    pub fn process_name(&self) -> String {
        match self {
            Self::Work(task) => format!("conserver-w{}", task.predecessor.worker),
            Self::Recover { .. } => "conserver-recov".to_owned(),
            Self::Monitor => "conserver-mon".to_owned(),
        }
    }

    /// The slot on the scoreboard.
    pub fn slot(&self) -> Option<usize> {
        match self {
            Self::Work(task) => usize::try_from(task.predecessor.worker).ok(),
            Self::Recover { .. } => None,
            Self::Monitor => Some(MONITOR_SLOT),
        }
    }
}

/// Wakes the supervisor, which then reads the scoreboard.
pub const WAKE_UP: Signal = Signal::SIGUSR2;

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
    supervisor: Pid,
}

/// Why a child process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The supervisor has ended.
    #[error("its supervisor has ended")]
    Orphaned,
    /// It could outlive its supervisor.
    #[error("it would outlive its supervisor: {0}")]
    Unattended(#[source] nix::errno::Errno),
    /// Its signals could not be caught.
    #[error("it could not take over its signals: {0}")]
    Signals(#[source] io::Error),
    /// The scoreboard could not be used.
    #[error(transparent)]
    Board(#[from] BoardError),
}

impl Child {
    /// Begins the life of a child process of `parent`: the supervisor, or the forkserver.
    pub fn begin(assignment: &Assignment, parent: Pid) -> Result<Self, BeginError> {
        let name = assignment.task.name();
        sys::seed_random();
        logging::may_wait();
        logging::set_worker(&name);
        sys::set_name(&assignment.task.process_name());
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
        let obeys = match assignment.task {
            Task::Monitor => Obeys::Supervisor,
            Task::Work(_) | Task::Recover { .. } => Obeys::Anyone,
        };
        drain_on_signals(&drain, obeys).map_err(BeginError::Signals)?;
        Ok(Self {
            name,
            drain,
            draining,
            slot,
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
            supervisor: Pid::this(),
        }
    }

    /// What reports that this process is ready.
    pub fn readiness(&self) -> Readiness {
        Readiness {
            slot: self.slot.clone(),
            supervisor: self.supervisor,
        }
    }
}

/// Reports that a child process is ready.
pub struct Readiness {
    slot: Option<Slot>,
    supervisor: Pid,
}

impl Readiness {
    /// Shows it on the scoreboard, and wakes the supervisor.
    pub fn notify(&self) {
        if let Some(slot) = &self.slot {
            slot.set_state(WorkerState::Ready);
        }
        sys::kill(self.supervisor, WAKE_UP);
    }
}

/// Signals that only the supervisor acts on. A terminal, or a person with `pkill`, sends them to all
/// processes at once.
const IGNORED: [i32; 6] = [SIGHUP, SIGQUIT, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2];

/// The drain of a child process, begun by a signal or by the process itself.
pub struct Drain {
    hold: Mutex<Option<Sender<()>>>,
    slot: Option<Slot>,
}

impl Drain {
    /// A drain that has not begun, and the channel that is disconnected when it has.
    pub fn new(slot: Option<Slot>) -> (Arc<Self>, Receiver<()>) {
        let (hold, draining) = bounded(0);
        let hold = Mutex::new(Some(hold));
        (Arc::new(Self { hold, slot }), draining)
    }

    /// Whether the supervisor asks this process to end. It shows that before it sends the signal.
    fn is_wanted(&self) -> bool {
        self.slot.as_ref().is_none_or(Slot::is_to_end)
    }

    /// Begins the drain. Returns false if it had begun before.
    pub fn begin(&self) -> bool {
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        // A process that is not ready yet goes on showing that: the others must not believe that it
        // has returned its predecessor's claims.
        if let (Some(_), Some(slot)) = (&*hold, &self.slot)
            && !slot.is_starting()
        {
            slot.set_state(WorkerState::Draining);
        }
        hold.take().is_some()
    }
}

/// Whose signals begin the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obeys {
    /// Everybody's: a worker that ends is replaced, unless all of them end.
    Anyone,
    /// The supervisor's alone. A terminal, or a service manager that ends a whole control group,
    /// signals all processes at once, and the monitor has to outlive the workers.
    Supervisor,
}

/// Makes SIGTERM and SIGINT begin the drain.
///
/// One thread takes all signals, and the others block them: a signal interrupts a read with a
/// timeout, which would look like an error of the server.
fn drain_on_signals(drain: &Arc<Drain>, obeys: Obeys) -> io::Result<()> {
    sys::hold_signals()?.keep();
    let mut signals = Signals::new([SIGTERM, SIGINT].iter().chain(&IGNORED))?;
    let drain = Arc::clone(drain);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Err(error) = sys::release_signals() {
                log::error!("could not unblock signals: {error}");
            }
            for signal in signals.forever() {
                if IGNORED.contains(&signal) {
                    continue;
                }
                if obeys == Obeys::Anyone || drain.is_wanted() {
                    drain.begin();
                }
            }
        })?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use uuid::Uuid;

    use super::*;

    /// An assignment to return what this many workers have left, each with this many vCons.
    pub fn recover(workers: u32, vcons: u128) -> Assignment {
        let left = |worker| OrphanedClaims {
            worker,
            blame: Suspects::AllBut((1..=vcons).map(Uuid::from_u128).collect()),
            end: "killed by SIGKILL".to_owned(),
        };
        let orphaned = (1..=workers).map(left).collect();
        Assignment {
            task: Task::Recover { orphaned },
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
