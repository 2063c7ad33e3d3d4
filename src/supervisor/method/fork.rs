//! `fork`: the child is a copy of the process that starts it, which has one thread.

use std::io;

use super::Started;
use crate::sys::{self, Fork};

/// Forks.
///
/// Signals are held back until the new process is ready for its own: one sent to it from the
/// first instant on is not lost, and never taken for the one of its parent.
pub(super) fn start() -> io::Result<Started> {
    let held = sys::hold_signals()?;
    match sys::fork()? {
        Fork::Child => {
            held.keep();
            Ok(Started::Here)
        }
        Fork::Parent { child } => Ok(Started::There(child)),
    }
}
