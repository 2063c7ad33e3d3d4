//! How a worker comes to be: the start methods, behind one function.

use std::io;

use nix::unistd::Pid;

use crate::settings::StartMethod;
use crate::sys::{self, Fork};
use crate::worker::Assignment;

/// On which side of a start we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// This is the new worker's process.
    Here,
    /// This is the supervisor; the worker has this PID.
    There(Pid),
}

/// A start method in use.
pub(super) struct Method {
    kind: StartMethod,
}

impl Method {
    pub fn new(kind: StartMethod) -> Self {
        Self { kind }
    }

    /// Starts one worker process.
    ///
    /// Signals are held back until the new process is ready for its own: one sent to it from the
    /// first instant on is not lost, and never taken for the supervisor's.
    pub fn start(&self, _assignment: &Assignment) -> io::Result<Started> {
        match self.kind {
            StartMethod::Fork => {
                let held = sys::hold_signals()?;
                match sys::fork()? {
                    Fork::Child => {
                        held.keep();
                        Ok(Started::Here)
                    }
                    Fork::Parent { child } => Ok(Started::There(child)),
                }
            }
            StartMethod::Spawn | StartMethod::Forkserver => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only the start method fork is available",
            )),
        }
    }
}
