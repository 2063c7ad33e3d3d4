//! A limit on the time of a call that has none of its own.
//!
//! Timeouts of sockets do not cover name resolution, nor a peer whose kernel answers while its
//! program does not. So that neither can hold a lane for ever, such calls run on a thread of their
//! own, which is left behind with the call whose time is over. It then ends when the call does; the
//! keepalive of its connection sees to that when the peer is gone. (PostgreSQL has another way for
//! what it does most often; see its module `watchdog`.)
//!
//! ```text
//! lane: run(call) ──job──► helper: call() ──answer──► lane        the helper is kept for the next
//!                                  └─ too late ─► left behind     the next call starts another
//! ```

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::deadline::Limit;
use crate::failure::Failure;

/// So many calls may be left behind before new ones have to wait their turn.
const MOST_LEFT: usize = 4;

/// When that many are left behind, one more is tried in this time.
const PAUSE: Duration = Duration::from_secs(300);

/// A helper that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The calls of one backend, and how many of them are left behind.
pub(super) struct Bounded {
    helper: Option<Helper>,
    left: Vec<thread::JoinHandle<()>>,
    /// When the last of them was left.
    latest: Instant,
}

/// A thread that does one job after the other.
struct Helper {
    jobs: Sender<Job>,
    thread: thread::JoinHandle<()>,
}

impl Bounded {
    pub(super) fn new() -> Self {
        Self {
            helper: None,
            left: Vec::new(),
            latest: Instant::now(),
        }
    }

    /// Runs `call` for as long as `limit` leaves; `what` names it in the failure. A panic in the call goes
    /// on in the caller.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Limit,
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
        let job = move || {
            let result = panic::catch_unwind(AssertUnwindSafe(call));
            // Nobody waits any more when the time was over.
            let _ = answer.send(result);
        };
        self.hand_over(Box::new(job))
            .map_err(|e| Failure::transient(format!("{what}: could not start a thread: {e}")))?;
        let result: Result<T, Box<dyn Any + Send>> = match answered.recv_timeout(limit.left()) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
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

    /// Has the helper do the job; one that has ended, because it was idle, has a successor.
    fn hand_over(&mut self, job: Job) -> std::io::Result<()> {
        let job = match self.helper.take() {
            Some(helper) => match helper.jobs.send(job) {
                Ok(()) => {
                    self.helper = Some(helper);
                    return Ok(());
                }
                Err(unsent) => unsent.into_inner(),
            },
            None => job,
        };
        // Without room for a job: one is taken only by a helper that is there for it.
        let (jobs, todo) = bounded::<Job>(0);
        let name = thread::current().name().unwrap_or("store").to_owned();
        let work = move || {
            job();
            while let Ok(job) = todo.recv_timeout(IDLE) {
                job();
            }
        };
        let thread = thread::Builder::new().name(name).spawn(work)?;
        self.helper = Some(Helper { jobs, thread });
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
        let mut bounded = Bounded::new();
        assert_eq!(bounded.run("add", long(), || 1 + 1), Ok(2));
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            bounded.run("break", long(), || panic!("inside"))
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"inside"));
    }

    #[test]
    fn calls_share_a_thread_and_one_that_has_ended_is_replaced() {
        let mut bounded = Bounded::new();
        let here = thread::current().id();
        let first = bounded.run("look", long(), || thread::current().id());
        assert_eq!(
            bounded.run("look", long(), || thread::current().id()),
            first
        );
        assert_ne!(first, Ok(here));
        // As if it had been idle for too long.
        bounded.helper.as_mut().unwrap().jobs = crossbeam_channel::bounded(0).0;
        let second = bounded.run("look", long(), || thread::current().id());
        assert!(second.is_ok() && second != first);
    }

    #[test]
    fn after_a_panic_and_after_a_call_that_was_left_there_is_a_thread_again() {
        let mut bounded = Bounded::new();
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            bounded.run("break", long(), || panic!("inside"))
        }));
        assert!(caught.is_err());
        assert_eq!(bounded.run("add", long(), || 1 + 1), Ok(2));
        let (hold, held) = sync_channel::<()>(0);
        assert!(bounded.run("wait", short(), move || held.recv()).is_err());
        assert_eq!(bounded.run("add", long(), || 1 + 2), Ok(3));
        drop(hold);
    }

    #[test]
    fn calls_left_behind_are_counted_until_they_end() {
        let mut bounded = Bounded::new();
        let mut holds = Vec::new();
        for _ in 0..MOST_LEFT {
            let (hold, held) = sync_channel::<()>(0);
            holds.push(hold);
            let failure = bounded
                .run("wait", short(), move || held.recv())
                .unwrap_err();
            assert!(failure.is_transient());
            assert!(failure.message.contains("no answer within"), "{failure}");
        }
        let failure = bounded.run("go on", long(), || ()).unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("4 earlier calls"), "{failure}");

        bounded.latest = Instant::now()
            .checked_sub(PAUSE)
            .unwrap_or_else(Instant::now);
        assert_eq!(bounded.run("try once more", long(), || 1), Ok(1));
        bounded.latest = Instant::now();

        drop(holds);
        let start = Instant::now();
        while bounded.left.iter().any(|thread| !thread.is_finished()) {
            assert!(start.elapsed() < LONG);
            thread::yield_now();
        }
        assert_eq!(bounded.run("go on", long(), || 2), Ok(2));
    }
}
