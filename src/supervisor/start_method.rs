//! The start methods behind one function: fork, spawn, and a forkserver.
//!
//! Signals are blocked across each start until the new process handles its own: one sent to it from
//! the first instant on is not lost, does not end it, and never counts as its parent's.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::Stdio;

use nix::poll::PollFlags;
use nix::unistd::Pid;

use super::forkserver::{ForkserverClient, ForkserverReport};
use crate::child::Assignment;
use crate::settings::StartMethod;
use crate::sys::{self, Fork};

/// What a start came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// This is the new child process.
    InChild,
    /// This is the supervisor, and the child has this PID.
    Running(Pid),
    /// This is the supervisor, and the forkserver will report the child's PID.
    Requested,
}

/// A start method in use.
pub(super) enum Starter {
    /// A copy of this process.
    Fork,
    /// The program executed anew.
    Spawn,
    /// A copy of a small process kept for that.
    Forkserver(ForkserverClient),
}

impl Starter {
    pub fn new(method: StartMethod) -> Self {
        match method {
            StartMethod::Fork => Self::Fork,
            StartMethod::Spawn => Self::Spawn,
            StartMethod::Forkserver => Self::Forkserver(ForkserverClient::default()),
        }
    }

    /// Starts one child process.
    pub fn start(&mut self, assignment: &Assignment) -> io::Result<Started> {
        match self {
            Self::Fork => fork(),
            Self::Spawn => spawn(assignment).map(Started::Running),
            Self::Forkserver(server) => server.request(assignment).map(|()| Started::Requested),
        }
    }

    /// The forkserver's socket, and the events to wait for.
    pub fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Forkserver(server) => server.waits_for(),
            Self::Fork | Self::Spawn => None,
        }
    }

    /// What the forkserver has reported since the last call.
    pub fn reports(&mut self) -> Vec<ForkserverReport> {
        match self {
            Self::Forkserver(server) => server.reports(),
            Self::Fork | Self::Spawn => Vec::new(),
        }
    }

    /// The end of this child, reported by the forkserver, is dealt with.
    pub fn release(&mut self, pid: Pid) {
        if let Self::Forkserver(server) = self {
            server.release(pid);
        }
    }

    /// Whether `pid` was the forkserver, which has ended then; the next start brings up another.
    pub fn note_end(&mut self, pid: Pid) -> bool {
        match self {
            Self::Forkserver(server) => server.note_end(pid),
            Self::Fork | Self::Spawn => false,
        }
    }

    /// The forkserver, if one runs.
    pub fn forkserver(&self) -> Option<Pid> {
        match self {
            Self::Forkserver(server) => server.pid(),
            Self::Fork | Self::Spawn => None,
        }
    }

    /// Lets the forkserver end.
    pub fn close(&mut self) {
        if let Self::Forkserver(server) = self {
            server.close();
        }
    }
}

/// Forks: the child is a copy of this process, which has one thread.
pub(super) fn fork() -> io::Result<Started> {
    let held = sys::hold_signals()?;
    match sys::fork()? {
        Fork::Child => {
            held.keep();
            Ok(Started::InChild)
        }
        Fork::Parent { child } => Ok(Started::Running(child)),
    }
}

/// Executes `conserver child` with this assignment as its standard input. The child inherits nothing
/// else but standard output, standard error and the environment.
fn spawn(assignment: &Assignment) -> io::Result<Pid> {
    let file = assignment.hand_over()?;
    let name = assignment.task.name();
    execute("child", &[name.as_ref()], Stdio::from(file))
}

/// Executes this program with a command and its arguments. The child is reaped like all others.
pub(super) fn execute(command: &str, arguments: &[&OsStr], stdin: Stdio) -> io::Result<Pid> {
    let held = sys::hold_signals()?;
    let child = sys::this_program(command)?
        .args(arguments)
        .stdin(stdin)
        .spawn();
    drop(held);
    Ok(Pid::from_raw(child?.id().cast_signed()))
}
