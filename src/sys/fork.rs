//! `fork`, made sound by being refused to a process with more than one thread.

use std::io;

use nix::unistd::{ForkResult, Pid};

/// On which side of the fork we are.
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
/// Where this process has more than one thread (the copy could find locks held by threads that
/// it does not have), or the system has no room for another process.
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

/// How many threads this process has, as `/proc` tells. Where that is not mounted nobody does, and
/// the daemon's structure, which is the same, has to do.
#[cfg(target_os = "linux")]
pub(super) fn threads() -> io::Result<usize> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Other systems do not tell cheaply; the daemon's structure is the same, and asserted on Linux.
#[cfg(not(target_os = "linux"))]
pub(super) fn threads() -> io::Result<usize> {
    Ok(1)
}

#[cfg(test)]
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
}
