//! This very program, executed anew.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The service manager listens to the supervisor alone.
const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// This very program with the command `name`; where `/proc` is mounted, also when the file it came
/// from has been replaced or removed since.
pub fn this_program(name: &str) -> io::Result<Command> {
    let mut command = Command::new(program()?);
    command.arg0("conserver").arg(name);
    for variable in NOT_FOR_CHILDREN {
        command.env_remove(variable);
    }
    Ok(command)
}

#[cfg(target_os = "linux")]
fn program() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.symlink_metadata().is_ok() {
        return Ok(own);
    }
    executed_from().ok_or_else(|| {
        io::Error::other("neither /proc nor the kernel says which program this process runs")
    })
}

#[cfg(not(target_os = "linux"))]
fn program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The path this process was executed from, as whoever did that named it: the daemon stays in the
/// folder it was started in.
#[cfg(target_os = "linux")]
fn executed_from() -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr, c_char};
    use std::os::unix::ffi::OsStrExt;
    use std::ptr::with_exposed_provenance;

    // SAFETY: it reads a table that the kernel has written before this process began.
    let address = unsafe { nix::libc::getauxval(nix::libc::AT_EXECFN) };
    let start = with_exposed_provenance::<c_char>(usize::try_from(address).ok()?);
    if start.is_null() {
        return None;
    }
    // SAFETY: the kernel has put a string there, which ends in 0 and stays for the life of this
    // process. It lies behind the environment, where no title is written.
    let path = unsafe { CStr::from_ptr(start) };
    Some(OsStr::from_bytes(path.to_bytes()).into())
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_program_without_proc() {
        let own = std::fs::canonicalize("/proc/self/exe").unwrap();
        let known = std::fs::canonicalize(executed_from().unwrap()).unwrap();
        assert_eq!(known, own);
    }
}
