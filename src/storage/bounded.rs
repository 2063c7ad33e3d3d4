//! A limit on the time of a call that has none of its own.
//!
//! Timeouts of sockets do not cover name resolution, nor a peer whose kernel answers while its
//! program does not. So that neither can hold a lane for ever, such a call runs on a thread of
//! its own and is left behind when its time is over. The thread ends when the call does; the
//! keepalive of its connection sees to that when the peer is gone.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use std::{panic, thread};

use crate::failure::Failure;

/// So many calls may be left behind before new ones have to wait their turn.
const MOST_LEFT: usize = 4;

/// When that many are left behind, one more is tried in this time.
const PAUSE: Duration = Duration::from_secs(300);

/// The calls of one backend, and how many of them are left behind.
pub(super) struct Bounded {
    left: Vec<thread::JoinHandle<()>>,
    /// When the last of them was left.
    latest: Instant,
}

impl Bounded {
    pub(super) fn new() -> Self {
        Self {
            left: Vec::new(),
            latest: Instant::now(),
        }
    }

    /// Runs `call` for at most `limit`; `what` and `whom` name it in the failure. A panic in the
    /// call goes on in the caller.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.left.retain(|thread| !thread.is_finished());
        if self.left.len() >= MOST_LEFT && self.latest.elapsed() < PAUSE {
            return Err(Failure::transient(format!(
                "{what}: {} earlier calls are still without an answer",
                self.left.len()
            )));
        }
        let (answer, answered) = sync_channel(1);
        let name = thread::current().name().unwrap_or("store").to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                // Nobody waits any more when the time was over.
                let _ = answer.send(call());
            })
            .map_err(|e| Failure::transient(format!("{what}: could not start a thread: {e}")))?;
        match answered.recv_timeout(limit) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => {
                self.left.push(thread);
                self.latest = Instant::now();
                Err(Failure::transient(format!(
                    "{what}: no answer within {limit:?}"
                )))
            }
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(payload) => panic::resume_unwind(payload),
                Ok(()) => Err(Failure::transient(format!("{what}: ended without result"))),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_call_in_time_gives_its_value_and_a_panic_passes_through() {
        let mut bounded = Bounded::new();
        assert_eq!(bounded.run("add", LONG, || 1 + 1), Ok(2));
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            bounded.run("break", LONG, || panic!("inside"))
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"inside"));
    }

    #[test]
    fn calls_left_behind_are_counted_until_they_end() {
        let mut bounded = Bounded::new();
        let mut holds = Vec::new();
        for _ in 0..MOST_LEFT {
            let (hold, held) = sync_channel::<()>(0);
            holds.push(hold);
            let failure = bounded.run("wait", SHORT, move || held.recv()).unwrap_err();
            assert!(failure.is_transient());
            assert!(failure.message.contains("no answer within"), "{failure}");
        }
        let failure = bounded.run("go on", LONG, || ()).unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("4 earlier calls"), "{failure}");

        bounded.latest = Instant::now()
            .checked_sub(PAUSE)
            .unwrap_or_else(Instant::now);
        assert_eq!(bounded.run("try once more", LONG, || 1), Ok(1));
        bounded.latest = Instant::now();

        drop(holds);
        let start = Instant::now();
        while bounded.left.iter().any(|thread| !thread.is_finished()) {
            assert!(start.elapsed() < LONG);
            thread::yield_now();
        }
        assert_eq!(bounded.run("go on", LONG, || 2), Ok(2));
    }
}
