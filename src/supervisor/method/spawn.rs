//! `spawn`: the program executed anew, which inherits nothing but standard output and error, and the
//! environment.

use std::io;
use std::process::Stdio;

use nix::unistd::Pid;

use crate::child::Assignment;
use crate::sys;

/// Executes `conserver child` with this assignment as its standard input.
///
/// Signals are held back until the new process is ready for its own: one sent to it from the
/// first instant on is not lost, and does not end it.
pub(super) fn start(assignment: &Assignment) -> io::Result<Pid> {
    let file = assignment.hand_over()?;
    let held = sys::hold_signals()?;
    let child = sys::this_program("child")?
        .arg(assignment.task.name())
        .stdin(Stdio::from(file))
        .spawn();
    drop(held);
    Ok(pid_of(&child?))
}

/// The child is reaped with all others, not through this value.
pub(super) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
