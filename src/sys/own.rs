//! This very program, executed anew.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The service manager listens to the supervisor alone.
const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// This very program with the command `name`, also when the file it came from has been replaced or
/// removed since.
pub fn this_program(name: &str) -> io::Result<Command> {
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
