//! How a child process comes to be: the start methods, behind one function.

mod client;
mod fork;
mod protocol;
mod server;
mod spawn;

use std::io;
use std::os::fd::BorrowedFd;

use nix::poll::PollFlags;
use nix::unistd::Pid;

pub use server::run as serve;

use crate::child::Assignment;
use crate::settings::StartMethod;
use crate::sys::End;
use client::Forkserver;

/// On which side of a start we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// This is the new child process.
    Here,
    /// This is the supervisor; the child has this PID.
    There(Pid),
    /// This is the supervisor; the forkserver will tell.
    Asked,
}

/// What the forkserver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The child of this generation has this PID.
    Started(u64, Pid),
    /// It could not be started.
    Failed(u64, String),
    /// A child has ended.
    Ended(Pid, End),
}

/// A start method in use.
pub(super) enum Method {
    /// A copy of this process.
    Fork,
    /// The program executed anew.
    Spawn,
    /// A copy of a small process kept for that.
    Forkserver(Forkserver),
}

impl Method {
    pub fn new(method: StartMethod) -> Self {
        match method {
            StartMethod::Fork => Self::Fork,
            StartMethod::Spawn => Self::Spawn,
            StartMethod::Forkserver => Self::Forkserver(Forkserver::default()),
        }
    }

    /// Starts one child process.
    pub fn start(&mut self, assignment: &Assignment) -> io::Result<Started> {
        match self {
            Self::Fork => fork::start(),
            Self::Spawn => spawn::start(assignment).map(Started::There),
            Self::Forkserver(server) => server.ask(assignment).map(|()| Started::Asked),
        }
    }

    /// Where the forkserver is heard, and what that is to be waited for.
    pub fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Forkserver(server) => server.waits_for(),
            Self::Fork | Self::Spawn => None,
        }
    }

    /// What the forkserver has told since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        match self {
            Self::Forkserver(server) => server.events(),
            Self::Fork | Self::Spawn => Vec::new(),
        }
    }

    /// The end of this child, which the forkserver has told, is dealt with.
    pub fn release(&mut self, pid: Pid) {
        if let Self::Forkserver(server) = self {
            server.release(pid);
        }
    }

    /// Whether `pid` was the forkserver, which is gone then; the next start brings up another.
    pub fn note_end(&mut self, pid: Pid) -> bool {
        match self {
            Self::Forkserver(server) => server.note_end(pid),
            Self::Fork | Self::Spawn => false,
        }
    }

    /// The forkserver, as long as it runs.
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
