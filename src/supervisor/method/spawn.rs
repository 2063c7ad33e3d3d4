//! `spawn`: the program executed anew, which inherits nothing but standard input, output and
//! error, and the environment.

use std::io;

use nix::unistd::Pid;

use crate::child::Assignment;
use crate::sys;

/// Executes `conserver child` with this assignment.
pub(super) fn start(assignment: &Assignment) -> io::Result<Pid> {
    let text = serde_json::to_string(assignment)?;
    let child = sys::this_program("child")?.arg(text).spawn()?;
    Ok(pid_of(&child))
}

/// The child is reaped with all others, not through this value.
pub(super) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
