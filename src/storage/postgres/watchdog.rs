//! A limit on the time of a call to PostgreSQL, kept from our side.
//!
//! The client has no limit of its own: a server whose kernel answers while its program does not
//! would hold a lane for ever. A thread beside each session ends such a call by ending its
//! connection. Before that it asks the server to cancel the statement, if the call has less time than the
//! server knows of. It sleeps until the call in work, or one that has ended since, would be over its
//! time, so that calls do not wake it:
//!
//! ```text
//! lane      ├─call─┤  ├─call─┤   ├─call───────────────────── … ─┤ error
//! watchdog  sleeps ─────────────────┤ sleeps until its end ── … ─┤ cuts, then asks to cancel
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::SocketHold;

/// The watch over one session; it ends with it.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// After this, the server is asked to cancel it, if at all.
    pub(super) cancel: Option<Duration>,
    /// After this, its connection is cut.
    pub(super) cut: Duration,
}

struct Shared {
    /// `None` where the socket cannot be found: nothing is cut then.
    socket: Option<SocketHold>,
    watch: Mutex<Watch>,
    changed: Condvar,
}

#[derive(Default)]
struct Watch {
    /// When the server is to be asked to cancel the call in work.
    cancel: Option<Instant>,
    /// When the call in work is over its time.
    end: Option<Instant>,
    /// Until when the thread sleeps; `None` where only a change wakes it.
    asleep_until: Option<Instant>,
    /// The server has been asked to cancel a call.
    has_cancelled: bool,
    /// The connection has been ended.
    has_cut: bool,
    /// The session is gone.
    is_over: bool,
}

impl Watchdog {
    /// Begins to watch over the session of this socket. `cancel` asks the server to cancel what it does
    /// in this session, and may take its time.
    pub(super) fn start(
        socket: Option<SocketHold>,
        cancel: impl Fn() + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket,
            watch: Mutex::default(),
            changed: Condvar::new(),
        });
        let ours = Arc::clone(&shared);
        thread::Builder::new()
            .name("pg-watchdog".to_owned())
            .spawn(move || {
                if ours.keep(&cancel) {
                    drop(ours);
                    cancel();
                }
            })?;
        Ok(Self { shared })
    }

    /// Makes the call, which is cancelled and cut when it takes too long, and cut when it panics.
    pub(super) fn during<T>(&self, times: Times, call: impl FnOnce() -> T) -> T {
        let _end = self.shared.begin(times);
        call()
    }

    /// Whether calls can be cut.
    pub(super) fn can_cut(&self) -> bool {
        self.shared.socket.is_some()
    }

    /// Whether the server was asked to cancel a call before its time was over. The request may reach it
    /// later than the call's answer: nothing else must be asked in this session.
    pub(super) fn has_cancelled(&self) -> bool {
        self.shared.lock().has_cancelled
    }

    /// Whether the connection has been cut, and the session is of no use any more.
    pub(super) fn has_cut(&self) -> bool {
        self.shared.lock().has_cut
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
    }
}

/// Ends the watch over a call.
struct EndOfCall<'a>(&'a Shared);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        let mut watch = self.0.lock();
        (watch.cancel, watch.end) = (None, None);
        if thread::panicking() {
            // The client, which is dropped next, would wait for the answer.
            self.0.cut(&mut watch);
        }
    }
}

impl Watch {
    /// When there is something to do.
    fn next(&self) -> Option<Instant> {
        self.cancel.into_iter().chain(self.end).min()
    }
}

impl Shared {
    fn begin(&self, times: Times) -> EndOfCall<'_> {
        let now = Instant::now();
        let mut watch = self.lock();
        watch.cancel = times.cancel.map(|time| now + time);
        watch.end = Some(now + times.cut);
        let is_sooner = |next| watch.asleep_until.is_none_or(|until| next < until);
        if watch.next().is_some_and(is_sooner) {
            self.changed.notify_one();
        }
        EndOfCall(self)
    }

    /// Watches until the session is gone, or a call was over its time: then the answer is true.
    fn keep(&self, cancel: &(impl Fn() + Clone + Send + 'static)) -> bool {
        let mut watch = self.lock();
        while !watch.is_over {
            watch.asleep_until = watch.next();
            let Some(next) = watch.asleep_until else {
                watch = self
                    .changed
                    .wait(watch)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = Instant::now();
            if watch.end.is_some_and(|end| end <= now) {
                self.cut(&mut watch);
                return true;
            }
            if watch.cancel.is_some_and(|time| time <= now) {
                watch.cancel = None;
                watch.has_cancelled = true;
                ask_aside(cancel.clone());
                continue;
            }
            watch = self
                .changed
                .wait_timeout(watch, next.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }

    fn cut(&self, watch: &mut Watch) {
        watch.has_cut = true;
        if let Some(socket) = &self.socket {
            socket.cut();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        // Nothing panics while it holds the lock.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks on a thread of its own: a server that does not answer must not hold up the cut.
fn ask_aside(cancel: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name("pg-cancel".to_owned());
    if let Err(why) = thread.spawn(cancel) {
        log::debug!("PostgreSQL could not be asked to cancel a call: {why}");
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::{Receiver, sync_channel};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    const SHORT: Duration = Duration::from_millis(20);

    fn cut_after(cut: Duration) -> Times {
        Times { cancel: None, cut }
    }

    /// A watched connection on which nothing ever comes, its other end, and the requests to cancel.
    fn watched(mark: u32) -> (Watchdog, TcpStream, TcpStream, Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        setsockopt(&near, sockopt::TcpUserTimeout, &mark).unwrap();
        let socket = SocketHold::find(mark, 5_000).unwrap();
        let (tell, cancelled) = sync_channel(2);
        let dog = Watchdog::start(Some(socket), move || tell.send(()).unwrap()).unwrap();
        (dog, near, far, cancelled)
    }

    #[test]
    fn a_call_over_its_time_is_cut_and_cancelled_also_after_one_with_more_time() {
        let (dog, mut near, _far, cancelled) = watched(5_020);
        dog.during(cut_after(LONG), || ());
        assert!(!dog.has_cut() && dog.can_cut());
        let read = dog.during(cut_after(SHORT), || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(dog.has_cut() && !dog.has_cancelled());
        assert_eq!(cancelled.recv_timeout(LONG), Ok(()));
        assert!(cancelled.recv().is_err());
    }

    #[test]
    fn a_call_is_cancelled_in_its_time_and_cut_only_when_that_does_not_help() {
        let (dog, mut near, mut far, cancelled) = watched(5_080);
        dog.during(cut_after(LONG), || ());
        let times = |cut| Times {
            cancel: Some(SHORT),
            cut,
        };
        let answer = std::thread::spawn(move || {
            cancelled.recv_timeout(LONG).unwrap();
            std::io::Write::write_all(&mut far, b"E").unwrap();
            (far, cancelled)
        });
        let read = dog.during(times(LONG), || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 1);
        assert!(dog.has_cancelled() && !dog.has_cut());
        let (_far, cancelled) = answer.join().unwrap();

        let read = dog.during(times(2 * SHORT), || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(dog.has_cut());
        // Before the cut, and after it.
        assert_eq!(cancelled.recv_timeout(LONG), Ok(()));
        assert_eq!(cancelled.recv_timeout(LONG), Ok(()));
    }

    #[test]
    fn without_a_socket_a_call_is_cancelled_all_the_same() {
        let (tell, cancelled) = sync_channel(2);
        let dog = Watchdog::start(None, move || tell.send(()).unwrap()).unwrap();
        assert!(!dog.can_cut());
        let times = Times {
            cancel: Some(SHORT),
            cut: LONG,
        };
        dog.during(times, || cancelled.recv_timeout(LONG).unwrap());
        assert!(dog.has_cancelled() && !dog.has_cut());
    }

    #[test]
    fn a_call_that_panics_leaves_no_connection_to_wait_for() {
        let (dog, mut near, _far, _cancelled) = watched(5_040);
        let call = AssertUnwindSafe(|| dog.during(cut_after(LONG), || panic!("inside")));
        assert!(catch_unwind(call).is_err());
        assert!(dog.has_cut());
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_thread_lets_go_of_the_socket_when_the_session_ends() {
        let (dog, near, mut far, cancelled) = watched(5_060);
        dog.during(cut_after(LONG), || ());
        drop((dog, near));
        // Ends only once the last descriptor of the other end is closed.
        far.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        assert!(cancelled.recv().is_err());
    }
}
