//! Holding signals back across the start of a process.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow};

/// Signals are held back for this thread until the value is dropped.
pub struct HeldSignals {
    before: SigSet,
    keep: bool,
}

/// Holds back every signal that can be.
pub fn hold_signals() -> io::Result<HeldSignals> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    Ok(HeldSignals {
        before,
        keep: false,
    })
}

/// Lets all signals through to this thread again.
pub fn release_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

impl HeldSignals {
    /// Leaves the signals held back, for [`release_signals`] to let them through.
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
