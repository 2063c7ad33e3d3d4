//! The drain of a child process: begun by a signal, or by the process itself.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::scoreboard::{Slot, WorkerState};
use crate::sys;

/// What a terminal, or a person with `pkill`, sends to all processes at once, and only the
/// supervisor acts on.
const NOT_FOR_US: [i32; 6] = [SIGHUP, SIGQUIT, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2];

/// Begins the drain.
pub struct Drain {
    hold: Mutex<Option<Sender<()>>>,
    slot: Option<Slot>,
}

impl Drain {
    /// A drain that has not begun, and the channel that is disconnected when it has.
    pub fn new(slot: Option<Slot>) -> (Arc<Self>, Receiver<()>) {
        let (hold, draining) = bounded(0);
        let hold = Mutex::new(Some(hold));
        (Arc::new(Self { hold, slot }), draining)
    }

    /// Whether the supervisor wants this process to end; it says so before it sends the signal.
    fn is_wanted(&self) -> bool {
        self.slot.as_ref().is_none_or(Slot::is_to_end)
    }

    /// Begins the drain; answers whether it had not begun before.
    pub fn begin(&self) -> bool {
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has not been ready yet goes on saying so: nobody shall think that it has
        // returned its predecessor's claims.
        if let (Some(_), Some(slot)) = (&*hold, &self.slot)
            && !slot.is_starting()
        {
            slot.set_state(WorkerState::Draining);
        }
        hold.take().is_some()
    }
}

/// Who may begin the drain by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heeds {
    /// Anyone: a worker that ends is replaced, or was to end anyway.
    Everyone,
    /// The supervisor alone. A terminal, or a service manager that ends a whole control group,
    /// sends its signal to all processes at once, and the monitor's work is not over before that
    /// of the workers.
    TheSupervisor,
}

/// Has SIGTERM and SIGINT begin the drain, from now on.
///
/// One thread takes all signals. The others hold them back: a read from a socket that has a time
/// limit is not taken up again after a signal, and would look like a fault of its server.
pub(super) fn on_signals(drain: &Arc<Drain>, heeds: Heeds) -> io::Result<()> {
    sys::hold_signals()?.keep();
    let mut signals = Signals::new([SIGTERM, SIGINT].iter().chain(&NOT_FOR_US))?;
    let drain = Arc::clone(drain);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Err(error) = sys::release_signals() {
                log::error!("signals cannot be heard: {error}");
            }
            for signal in signals.forever() {
                if NOT_FOR_US.contains(&signal) {
                    continue;
                }
                if heeds == Heeds::Everyone || drain.is_wanted() {
                    drain.begin();
                }
            }
        })?;
    Ok(())
}
