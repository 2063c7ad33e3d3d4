//! Signals of this process: blocked across the start of another process, or caught for a poll loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use signal_hook::{SigId, flag, low_level};

/// Signals are blocked for this thread until the value is dropped.
pub struct HeldSignals {
    before: SigSet,
    keep: bool,
}

/// Blocks every signal that can be blocked.
pub fn hold_signals() -> io::Result<HeldSignals> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    Ok(HeldSignals {
        before,
        keep: false,
    })
}

/// Unblocks all signals for this thread.
pub fn release_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Whether a signal that tells this process to end has come and is blocked.
pub fn end_is_pending() -> bool {
    // SAFETY: a set of signals is made of numbers, and all zeros are one.
    let mut pending: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `pending` is ours to write to, and lives through the call.
    let asked = unsafe { libc::sigpending(&raw mut pending) };
    let has_come = |signal: Signal| {
        // SAFETY: the call reads `pending`, which lives through it.
        asked == 0 && unsafe { libc::sigismember(&raw const pending, signal as i32) } == 1
    };
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]
        .into_iter()
        .any(has_come)
}

impl HeldSignals {
    /// Leaves the signals blocked until [`release_signals`].
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if !self.keep {
            // Setting a mask that was in force before cannot fail.
            let _ = self.before.thread_set_mask();
        }
    }
}

/// The signals that this process catches while the value lives, as something that `poll` can wait for.
pub struct CaughtSignals {
    wake: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
    ids: Vec<SigId>,
}

impl CaughtSignals {
    /// Catches `signals`; [`CaughtSignals::take`] returns them in the order given here.
    pub fn catch(signals: &[Signal]) -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut this = Self {
            wake,
            caught: Vec::new(),
            ids: Vec::new(),
        };
        for &signal in signals {
            let caught = Arc::new(AtomicBool::new(false));
            // The flag first: whoever is woken finds it set.
            this.ids
                .push(flag::register(signal as i32, Arc::clone(&caught))?);
            this.ids.push(low_level::pipe::register(
                signal as i32,
                write.try_clone()?,
            )?);
            this.caught.push((signal, caught));
        }
        Ok(this)
    }

    /// What becomes readable when a signal has come.
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The signals that have come since the last call.
    pub fn take(&mut self) -> Vec<Signal> {
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(count) if count > 0) {}
        self.caught
            .iter()
            .filter(|(_, caught)| caught.swap(false, Ordering::SeqCst))
            .map(|(signal, _)| *signal)
            .collect()
    }
}

impl Drop for CaughtSignals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
    }
}
