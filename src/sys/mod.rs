//! The calls to the operating system that need care: the only unsafe code of the crate.

mod account;
mod file;
mod fork;
mod mask;
mod memory;
mod own;
mod program;
mod random;
mod title;
mod wait;
mod words;

pub use account::Account;
pub use file::{nameless_file, take_stdin};
pub use fork::{Fork, fork};
pub use mask::{HeldSignals, hold_signals, release_signals};
pub use memory::{give_back_free_memory, give_back_large_blocks};
pub use own::this_program;
pub use program::{bind, has_ended, is_group, keep_standard_streams, kill_group, unread};
pub use random::seed_random;
pub use title::Title;
pub use wait::{End, peek, reap, reap_child};
pub use words::SharedWords;

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getppid};

/// Asks the kernel to kill this process when its parent ends, and answers whether `parent` is
/// still there: it may have ended before the request.
#[cfg(target_os = "linux")]
pub fn die_with_parent(parent: Pid) -> Result<bool, Errno> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(getppid() == parent)
}

/// Ends this process soon after its parent, and answers whether `parent` is still there. The
/// system does not tell, so a thread looks.
#[cfg(not(target_os = "linux"))]
pub fn die_with_parent(parent: Pid) -> Result<bool, Errno> {
    let watch = move || {
        while getppid() == parent {
            std::thread::sleep(Duration::from_millis(250));
        }
        std::process::abort();
    };
    std::thread::Builder::new()
        .spawn(watch)
        .map_err(|_| Errno::EAGAIN)?;
    Ok(getppid() == parent)
}

/// Keeps other processes of this user from reading or changing this one's memory, which holds
/// passwords and conversations, and from tracing it; it leaves no core dump. A process that is
/// forked from here inherits that, a program that is executed does not.
///
/// From then on `/proc` says that most of this process's files belong to root, so what others are
/// told there is told before or in another way.
pub fn hide_memory() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        log::warn!("programs of this user can read the memory of this process: {error}");
    }
}

/// Whether [`adopt_orphans`] does anything.
pub const ADOPTS_ORPHANS: bool = cfg!(target_os = "linux");

/// Makes processes whose parent ends children of this one, which then reaps them.
pub fn adopt_orphans() -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok(())
}

/// The time since some point in the past, the same for all processes of this machine, in which a
/// suspended machine does not age.
pub fn monotonic() -> Duration {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// [`monotonic`] in whole milliseconds.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

/// The processor time that this process has used, all its threads together, in microseconds.
pub fn processor_time_us() -> u64 {
    let time =
        clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Sends `signal`, and answers whether there was a process to send it to.
pub fn kill(pid: Pid, signal: Signal) -> bool {
    match nix::sys::signal::kill(pid, signal) {
        Ok(()) => true,
        Err(Errno::ESRCH) => false,
        Err(error) => {
            log::error!("could not send {signal} to PID {pid}: {error}");
            true
        }
    }
}

/// Names this process in `ps` and `/proc`, where that shows the file it was executed from.
pub fn set_name() {
    #[cfg(target_os = "linux")]
    // A process that could not be renamed does the same work.
    let _ = nix::sys::prctl::set_name(c"conserver");
}
