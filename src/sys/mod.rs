//! The calls to the operating system that need care: the only unsafe code of the crate.
//!
//! Here stands what a process does to itself: its clock, its name, its tie to its parent. The files:
//! `process` (fork, this program anew, its environment, how a child ended), `signals`, `memory` (shared,
//! returned), `program` and `account` (programs of links).

mod account;
mod memory;
mod process;
mod program;
mod signals;

pub use account::{Account, Credentials, is_enough as may_switch_with};
pub use memory::{LargeBlockAllocator, SharedWords, give_back_free_memory, give_back_large_blocks};
pub use process::{
    End, Fork, NOT_FOR_CHILDREN, fork, nameless_file, own_program, peek, reap, reap_child,
    replace_variables, set_variables, take_stdin, this_program,
};
pub use program::{bind, detach, has_ended, is_group, keep_standard_streams, kill_group, unread};
pub use signals::{CaughtSignals, HeldSignals, end_is_pending, hold_signals, release_signals};

#[cfg(target_os = "linux")]
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getppid};

/// Asks the kernel to kill this process when its parent ends. Returns whether `parent` still runs: it
/// may have ended before the request.
#[cfg(target_os = "linux")]
pub fn die_with_parent(parent: Pid) -> Result<bool, Errno> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(getppid() == parent)
}

/// Ends this process soon after its parent. Returns whether `parent` still runs. This system does not
/// tell a process of its parent's end, so a thread looks.
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

/// Keeps other processes of this user from reading, changing or tracing this process, whose memory
/// holds passwords and conversations; it leaves no core dump. A forked process inherits that, a
/// program that is executed does not.
///
/// From then on most files of this process in `/proc` belong to root.
pub fn hide_memory() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        log::warn!("programs of this user can read the memory of this process: {error}");
    }
}

/// Whether [`adopt_orphans`] does anything.
pub const ADOPTS_ORPHANS: bool = cfg!(target_os = "linux");

/// Makes this process the parent of its descendants whose own parent ends, so that it reaps them.
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

/// Sends `signal`. Returns whether there is such a process.
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

/// Names this process in `top`, `pgrep` and `ps -o comm`. Linux shows the first 15 bytes.
pub fn set_name(name: &str) {
    #[cfg(target_os = "linux")]
    // A process that could not be renamed does the same work.
    let _ = CString::new(name).map(|name| nix::sys::prctl::set_name(&name));
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}

/// Seeds this thread's generator of random numbers anew. A forked process inherits its parent's, and
/// would draw the same numbers as its siblings; threads seed theirs by the time of their first
/// number, which siblings may share too.
pub fn seed_random() {
    fastrand::seed(entropy().unwrap_or_else(guess));
}

/// Random bits from the system, if it has any.
fn entropy() -> Option<u64> {
    let mut bytes = [0; size_of::<u64>()];
    let (start, length) = (bytes.as_mut_ptr().cast(), bytes.len());
    #[cfg(target_os = "linux")]
    // SAFETY: the call writes at most `length` bytes, and as many are ours from `start` on.
    let drawn = usize::try_from(unsafe { nix::libc::getrandom(start, length, 0) }) == Ok(length);
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the call writes `length` bytes, and as many are ours from `start` on.
    let drawn = unsafe { nix::libc::getentropy(start, length) } == 0;
    drawn.then(|| u64::from_ne_bytes(bytes))
}

/// Without entropy: a number that no other thread of this machine has at this moment.
fn guess() -> u64 {
    let mut hasher = DefaultHasher::new();
    (std::process::id(), thread::current().id(), monotonic()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_had_the_numbers_of_another_has_its_own() {
        let drawn = |seeds_anew: bool| {
            // As after a fork: the state is a copy.
            fastrand::seed(7);
            if seeds_anew {
                seed_random();
            }
            [(); 4].map(|()| fastrand::u64(..))
        };
        assert_eq!(drawn(false), drawn(false));
        assert_ne!(drawn(true), drawn(false));
        assert_ne!(drawn(true), drawn(true));
        assert_ne!(entropy(), entropy());
        assert_ne!(guess(), guess());
    }
}
