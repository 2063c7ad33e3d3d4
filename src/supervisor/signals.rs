//! The supervisor's signals, as something a poll can wait for.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use signal_hook::{SigId, flag, low_level};

/// Signals of this process, caught from the making of this value to its drop.
pub(super) struct Signals {
    wake: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
    ids: Vec<SigId>,
}

impl Signals {
    /// Catches `signals`; [`Signals::take`] answers them in the order given here.
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

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
    }
}
