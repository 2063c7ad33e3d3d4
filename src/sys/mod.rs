//! The calls to the operating system that need care: the only unsafe code of the crate.

mod fork;
mod mask;

pub use fork::{Fork, fork};
pub use mask::{HeldSignals, hold_signals, release_signals};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

/// Asks the kernel to kill this process when its parent ends, and answers whether `parent` is
/// still there: it may have ended before the request.
pub fn die_with_parent(parent: Pid) -> Result<bool, Errno> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(getppid() == parent)
}

/// Collects one child that has ended, without waiting.
pub fn reap() -> Option<WaitStatus> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => {
                return Some(status);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("could not wait for a worker: {error}");
                return None;
            }
        }
    }
}

/// Sends `signal`; a process that has ended is no error.
pub fn kill(pid: Pid, signal: Signal) {
    if let Err(error) = nix::sys::signal::kill(pid, signal)
        && error != Errno::ESRCH
    {
        log::error!("could not send {signal} to PID {pid}: {error}");
    }
}
