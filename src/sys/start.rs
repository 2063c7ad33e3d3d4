//! Starting another process of this program: a copy (`fork`), or the program executed anew.
//!
//! `fork` is sound because a process with more than one thread is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{ForkResult, Pid, dup2_stdin};

/// Which side of the fork this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The process that called.
    Parent {
        /// The new process.
        child: Pid,
    },
    /// The new process.
    Child,
}

/// Makes a copy of this process.
///
/// # Errors
/// If this process has more than one thread (the copy could find locks held by threads that it does
/// not have), or the system has no room for another process.
pub fn fork() -> io::Result<Fork> {
    let threads = threads()?;
    if threads != 1 {
        return Err(io::Error::other(format!(
            "{threads} threads are running; fork needs one"
        )));
    }
    // SAFETY: this is the only thread, so no lock of the allocator, of the standard library or of
    // any crate is held by a thread that the child would not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Fork::Parent { child }),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Counts the threads of this process in `/proc`. If that is not mounted, the daemon's structure is
/// trusted, which is the same everywhere.
#[cfg(target_os = "linux")]
fn threads() -> io::Result<usize> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Other systems have no cheap way; the daemon's structure is the same, and asserted on Linux.
#[cfg(not(target_os = "linux"))]
fn threads() -> io::Result<usize> {
    Ok(1)
}

/// Variables for the supervisor alone: the service manager listens to no other process.
const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// This very program with the command `name`; if `/proc` is mounted, also after its file was
/// replaced or removed.
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

/// The path that this process was executed by. A relative one is good, because the daemon stays in
/// the folder that it was started in.
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
    // process.
    let path = unsafe { CStr::from_ptr(start) };
    Some(OsStr::from_bytes(path.to_bytes()).into())
}

/// Makes an empty file that nobody else can open, and that vanishes with its last descriptor. It is in
/// memory if the system can do that, so that no disk needs room.
pub fn nameless_file() -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        if let Ok(file) = memfd_create("conserver", MFdFlags::MFD_CLOEXEC) {
            return Ok(file.into());
        }
    }
    tempfile::tempfile()
}

/// Takes this process's standard input, and leaves `/dev/null` there for its children and the
/// programs it starts.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let given = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(&File::open("/dev/null")?)?;
    Ok(given)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        let (hold, held) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::spawn(move || held.recv());
        let refused = fork();
        drop(hold);
        assert!(thread.join().is_ok());
        assert!(refused.is_err_and(|error| error.to_string().contains("fork needs one")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_knows_the_program_without_proc() {
        let own = std::fs::canonicalize("/proc/self/exe").unwrap();
        let known = std::fs::canonicalize(executed_from().unwrap()).unwrap();
        assert_eq!(known, own);
    }
}
