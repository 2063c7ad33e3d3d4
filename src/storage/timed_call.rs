//! Timed calls: a limit on the time of a call that has none of its own.
//!
//! Timeouts of sockets do not cover name resolution, nor a peer whose kernel answers while its
//! program does not. Such calls run on a helper thread, so that neither can hold a lane for ever. A call
//! that is over its time is left behind together with its thread, which ends when the call does; the
//! keepalive of its connection sees to that when the peer is gone.
//!
//! ```text
//! lane: run(call) ──call──► helper: call() ──result──► lane       the helper is kept for the next call
//!                                   └─ too late ─► left behind    the next call starts another helper
//! ```

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::deadline::Limit;
use crate::failure::Failure;

/// At most this many calls may be left behind; then new ones fail at once.
const MOST_LEFT: usize = 4;

/// While that many are left behind, one more is tried after this time.
const PAUSE: Duration = Duration::from_secs(300);

/// An idle helper thread ends after this time.
const IDLE: Duration = Duration::from_secs(10);

type BoxedCall = Box<dyn FnOnce() + Send>;

/// Runs the calls of one backend, and counts those that are left behind.
pub(super) struct TimedCalls {
    helper: Option<HelperThread>,
    left: Vec<thread::JoinHandle<()>>,
    /// When the latest of them was left behind.
    latest: Instant,
}

/// A thread that makes one call after the other.
struct HelperThread {
    calls: Sender<BoxedCall>,
    thread: thread::JoinHandle<()>,
}

impl TimedCalls {
    pub(super) fn new() -> Self {
        Self {
            helper: None,
            left: Vec::new(),
            latest: Instant::now(),
        }
    }

    /// Runs `call` for as long as `limit` leaves; `what` names it in the failure. A panic in the call
    /// continues in the caller.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Limit,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.run_or_cancel(what, limit, (None, &|| ()), call)
    }

    /// The same for a call that can be cancelled: after a time of its own, if there is one, and when the
    /// limit is over.
    pub(super) fn run_or_cancel<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Limit,
        (after, cancel): (Option<Duration>, &dyn Fn()),
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.left.retain(|thread| !thread.is_finished());
        if self.left.len() >= MOST_LEFT && self.latest.elapsed() < PAUSE {
            return Err(Failure::transient(format!(
                "{what}: {} earlier calls are still without an answer",
                self.left.len()
            )));
        }
        let (answer, answered) = bounded(1);
        let call = move || {
            let result = panic::catch_unwind(AssertUnwindSafe(call));
            // Nobody waits any more if the time is over.
            let _ = answer.send(result);
        };
        self.hand_over(Box::new(call))
            .map_err(|e| Failure::transient(format!("{what}: could not start a thread: {e}")))?;
        let mut received = Err(RecvTimeoutError::Timeout);
        if let Some(time) = after.filter(|time| *time < limit.left()) {
            received = answered.recv_timeout(time);
            if matches!(received, Err(RecvTimeoutError::Timeout)) {
                cancel();
            }
        }
        if matches!(received, Err(RecvTimeoutError::Timeout)) {
            received = answered.recv_timeout(limit.left());
        }
        let result: Result<T, Box<dyn Any + Send>> = match received {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                cancel();
                self.left.extend(self.helper.take().map(|it| it.thread));
                self.latest = Instant::now();
                return Err(Failure::transient(format!(
                    "{what}: no answer within {limit}"
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::transient(format!("{what}: ended without result")));
            }
        };
        result.or_else(|payload| panic::resume_unwind(payload))
    }

    /// Hands the call to the helper thread, or to a new one if that has ended because it was idle.
    fn hand_over(&mut self, call: BoxedCall) -> std::io::Result<()> {
        let call = match self.helper.take() {
            Some(helper) => match helper.calls.send(call) {
                Ok(()) => {
                    self.helper = Some(helper);
                    return Ok(());
                }
                Err(unsent) => unsent.into_inner(),
            },
            None => call,
        };
        // Zero capacity: a call is taken only by a helper that is waiting for it.
        let (calls, todo) = bounded::<BoxedCall>(0);
        let name = thread::current().name().unwrap_or("store").to_owned();
        let work = move || {
            call();
            while let Ok(call) = todo.recv_timeout(IDLE) {
                call();
            }
        };
        let thread = thread::Builder::new().name(name).spawn(work)?;
        self.helper = Some(HelperThread { calls, thread });
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::deadline::Deadline;

    const LONG: Duration = Duration::from_secs(10);

    fn short() -> Limit {
        Deadline::NONE.begin(Duration::from_millis(20))
    }

    fn long() -> Limit {
        Deadline::NONE.begin(LONG)
    }

    #[test]
    fn a_call_in_time_gives_its_value_and_a_panic_passes_through() {
        let mut timed_calls = TimedCalls::new();
        assert_eq!(timed_calls.run("add", long(), || 1 + 1), Ok(2));
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            timed_calls.run("break", long(), || panic!("inside"))
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"inside"));
    }

    #[test]
    fn calls_share_a_thread_and_one_that_has_ended_is_replaced() {
        let mut timed_calls = TimedCalls::new();
        let here = thread::current().id();
        let first = timed_calls.run("look", long(), || thread::current().id());
        assert_eq!(
            timed_calls.run("look", long(), || thread::current().id()),
            first
        );
        assert_ne!(first, Ok(here));
        // As if it had been idle for too long.
        timed_calls.helper.as_mut().unwrap().calls = crossbeam_channel::bounded(0).0;
        let second = timed_calls.run("look", long(), || thread::current().id());
        assert!(second.is_ok() && second != first);
    }

    #[test]
    fn after_a_panic_and_after_a_call_that_was_left_there_is_a_thread_again() {
        let mut timed_calls = TimedCalls::new();
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            timed_calls.run("break", long(), || panic!("inside"))
        }));
        assert!(caught.is_err());
        assert_eq!(timed_calls.run("add", long(), || 1 + 1), Ok(2));
        let (hold, held) = sync_channel::<()>(0);
        assert!(
            timed_calls
                .run("wait", short(), move || held.recv())
                .is_err()
        );
        assert_eq!(timed_calls.run("add", long(), || 1 + 2), Ok(3));
        drop(hold);
    }

    #[test]
    fn calls_left_behind_are_counted_until_they_end() {
        let mut timed_calls = TimedCalls::new();
        let mut holds = Vec::new();
        for _ in 0..MOST_LEFT {
            let (hold, held) = sync_channel::<()>(0);
            holds.push(hold);
            let failure = timed_calls
                .run("wait", short(), move || held.recv())
                .unwrap_err();
            assert!(failure.is_transient());
            assert!(failure.message.contains("no answer within"), "{failure}");
        }
        let failure = timed_calls.run("go on", long(), || ()).unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("4 earlier calls"), "{failure}");

        timed_calls.latest = Instant::now()
            .checked_sub(PAUSE)
            .unwrap_or_else(Instant::now);
        assert_eq!(timed_calls.run("try once more", long(), || 1), Ok(1));
        timed_calls.latest = Instant::now();

        drop(holds);
        let start = Instant::now();
        while timed_calls.left.iter().any(|thread| !thread.is_finished()) {
            assert!(start.elapsed() < LONG);
            thread::yield_now();
        }
        assert_eq!(timed_calls.run("go on", long(), || 2), Ok(2));
    }

    #[test]
    fn a_call_is_cancelled_after_its_own_time_and_when_the_limit_is_over() {
        let mut timed_calls = TimedCalls::new();
        let (hold, held) = sync_channel::<()>(1);
        let cancel = || hold.try_send(()).unwrap();
        let early = (Some(Duration::from_millis(20)), &cancel as &dyn Fn());
        let result = timed_calls.run_or_cancel("wait", long(), early, move || held.recv());
        assert_eq!(result, Ok(Ok(())));

        let cancelled = std::cell::Cell::new(0);
        let cancel = || cancelled.set(cancelled.get() + 1);
        let (_hold, held) = sync_channel::<()>(0);
        let early = (Some(LONG), &cancel as &dyn Fn());
        let result = timed_calls.run_or_cancel("wait", short(), early, move || held.recv());
        assert!(result.is_err());
        assert_eq!(cancelled.get(), 1);
    }
}
