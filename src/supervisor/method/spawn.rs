//! `spawn`: the program executed anew, which inherits nothing but standard input, output and
//! error, and the environment.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::Pid;

use crate::child::Assignment;

/// The service manager listens to the supervisor alone.
const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Executes `conserver child` with this assignment.
pub(super) fn start(assignment: &Assignment) -> io::Result<Pid> {
    let text = serde_json::to_string(assignment)?;
    let child = command("child")?.arg(text).spawn()?;
    Ok(pid_of(&child))
}

/// This very program, also when the file it came from has been replaced or removed since.
pub(super) fn command(name: &str) -> io::Result<Command> {
    let program = if cfg!(target_os = "linux") {
        "/proc/self/exe".into()
    } else {
        std::env::current_exe()?
    };
    let mut command = Command::new(program);
    command.arg0("conserver").arg(name);
    for variable in NOT_FOR_CHILDREN {
        command.env_remove(variable);
    }
    Ok(command)
}

/// The child is reaped with all others, not through this value.
pub(super) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
