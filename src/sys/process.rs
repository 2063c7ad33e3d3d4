//! Starting another process of this program: a copy (`fork`), or the program executed anew.
//!
//! `fork` and `set_variables` are sound because a process with more than one thread is refused.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{fmt, io};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, dup2_stdin};
use serde::{Deserialize, Serialize};

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

/// Sets variables of this process, which every process that it starts inherits. Names are not empty and hold no `=`;
/// neither names nor values hold a NUL.
///
/// # Errors
/// If this process has more than one thread: another may read the environment meanwhile.
pub fn set_variables<N: AsRef<OsStr>>(variables: Vec<(N, OsString)>) -> io::Result<()> {
    one_thread()?;
    for (name, value) in variables {
        // SAFETY: this is the only thread, so none reads or changes the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Gives this process these variables and no others; for the rest as [`set_variables`].
pub fn replace_variables(variables: Vec<(OsString, OsString)>) -> io::Result<()> {
    one_thread()?;
    for (name, _) in std::env::vars_os() {
        // SAFETY: this is the only thread, so none reads or changes the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    set_variables(variables)
}

fn one_thread() -> io::Result<()> {
    match threads()? {
        1 => Ok(()),
        threads => Err(io::Error::other(format!(
            "{threads} threads are running; a change of the environment needs one"
        ))),
    }
}

/// Variables for the supervisor alone: the service manager listens to no other process.
pub const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// This very program with the command `name`; if `/proc` is mounted, also after its file was
/// replaced or removed.
pub fn this_program(name: &str) -> io::Result<Command> {
    let mut command = Command::new(own_program()?);
    command.arg0("conserver").arg(name);
    for variable in NOT_FOR_CHILDREN {
        command.env_remove(variable);
    }
    Ok(command)
}

/// What executes this very program; if `/proc` is mounted, also after its file was replaced or removed.
#[cfg(target_os = "linux")]
pub fn own_program() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.symlink_metadata().is_ok() {
        return Ok(own);
    }
    executed_from().ok_or_else(|| {
        io::Error::other("neither /proc nor the kernel says which program this process runs")
    })
}

/// What executes this very program.
#[cfg(not(target_os = "linux"))]
pub fn own_program() -> io::Result<PathBuf> {
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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By a signal of this number.
    Killed {
        /// The number.
        signal: i32,
        /// Whether it left a core dump.
        core: bool,
    },
    /// Another process reaped it.
    Unseen,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed { signal, core } => {
                write!(f, "killed by {}", signal_name(*signal))?;
                f.write_str(if *core { ", core dumped" } else { "" })
            }
            Self::Unseen => f.write_str("ended unseen"),
        }
    }
}

/// `SIGKILL`, `SIGRTMIN+3`, or `signal 99` for a number that has no name.
fn signal_name(number: i32) -> String {
    if let Ok(signal) = Signal::try_from(number) {
        return signal.to_string();
    }
    #[cfg(target_os = "linux")]
    if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number) {
        return format!("SIGRTMIN+{}", number - libc::SIGRTMIN());
    }
    format!("signal {number}")
}

/// Reaps one child that has ended, without waiting.
pub fn reap() -> Option<(Pid, End)> {
    collect(-1)
}

/// Reaps the child `pid`, or with -1 any child, if it has ended. The status is decoded here, because a
/// library that has no name for the signal fails only after it has reaped the child.
fn collect(pid: i32) -> Option<(Pid, End)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is ours to write to, and lives through the call.
        let collected = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        match Errno::result(collected) {
            Ok(0) | Err(Errno::ECHILD) => return None,
            Ok(pid) => {
                if let Some(end) = decode(status) {
                    return Some((Pid::from_raw(pid), end));
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("could not wait for a child process: {error}");
                return None;
            }
        }
    }
}

/// Reaps the child `pid` if it has ended, without waiting.
pub fn reap_child(pid: Pid) -> Option<End> {
    collect(pid.as_raw()).map(|(_, end)| end)
}

/// Looks whether the child `pid` has ended, and does not reap it: until then its PID is not given to
/// another process.
pub fn peek(pid: Pid) -> Option<End> {
    let id = libc::id_t::try_from(pid.as_raw()).ok()?;
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zeros are a valid value of this structure of numbers and addresses.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: `info` is ours to write to, and lives through the call.
        let looked = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, flags) };
        match Errno::result(looked) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(_) => return Some(End::Unseen),
        }
    }
    // SAFETY: waitid fills in the members for an ended child, or leaves the zeros.
    let (ended, status) = unsafe { (info.si_pid(), info.si_status()) };
    match info.si_code {
        _ if ended == 0 => None,
        libc::CLD_EXITED => Some(End::Exited(status)),
        code => Some(End::Killed {
            signal: status,
            core: code == libc::CLD_DUMPED,
        }),
    }
}

/// `None` for a child that was stopped or continued, which nobody asked to hear of.
fn decode(status: i32) -> Option<End> {
    if libc::WIFEXITED(status) {
        Some(End::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Some(End::Killed {
            signal: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        })
    } else {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod start_tests {
    use std::process::Command;

    use super::*;

    /// The end of a shell that does this.
    #[allow(clippy::zombie_processes)]
    fn end_of(script: &str) -> End {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id().cast_signed();
        loop {
            if let Some((ended, end)) = collect(pid) {
                assert_eq!(ended.as_raw(), pid);
                return end;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn every_end_is_seen_for_what_it_is() {
        for (script, expected) in [
            ("exit 0", "exit code 0"),
            ("exit 255", "exit code 255"),
            ("kill -KILL $$", "killed by SIGKILL"),
            ("kill -34 $$", "killed by SIGRTMIN+0"),
            ("kill -64 $$", "killed by SIGRTMIN+30"),
        ] {
            assert_eq!(end_of(script).to_string(), expected, "{script}");
        }
    }

    #[test]
    #[allow(clippy::zombie_processes)]
    fn a_child_can_be_seen_to_have_ended_and_stays_there() {
        for (script, expected) in [
            ("exit 3", End::Exited(3)),
            (
                "kill -34 $$",
                End::Killed {
                    signal: 34,
                    core: false,
                },
            ),
        ] {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed());
            while peek(pid).is_none() {
                std::thread::yield_now();
            }
            assert_eq!(peek(pid), Some(expected));
            assert_eq!(reap_child(pid), Some(expected));
            assert_eq!(peek(pid), Some(End::Unseen));
            assert_eq!(reap_child(pid), None);
        }
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert_eq!(peek(Pid::from_raw(child.id().cast_signed())), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_core_dump_is_told() {
        let end = decode(libc::SIGABRT | 0x80).unwrap();
        assert_eq!(end.to_string(), "killed by SIGABRT, core dumped");
        assert_eq!(signal_name(33), "signal 33");
    }
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
