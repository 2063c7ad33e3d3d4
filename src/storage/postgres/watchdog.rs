//! A limit on the time of a call to PostgreSQL, kept by cutting its connection.
//!
//! The client has no limit of its own: a server whose kernel answers while its program does not
//! would hold a lane for ever. A thread beside each session ends such a call by ending its
//! connection. It sleeps until the call in work, or one that has ended since, would be over its
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

struct Shared {
    socket: SocketHold,
    watch: Mutex<Watch>,
    changed: Condvar,
}

#[derive(Default)]
struct Watch {
    /// When the call in work is over its time.
    end: Option<Instant>,
    /// Until when the thread sleeps; `None` where only a change wakes it.
    asleep_until: Option<Instant>,
    /// The connection has been ended.
    has_cut: bool,
    /// The session is gone.
    is_over: bool,
}

impl Watchdog {
    /// Begins to watch over the session of this socket. `cancel` is called after a cut, and may
    /// take its time.
    pub(super) fn start(
        socket: SocketHold,
        cancel: impl FnOnce() + Send + 'static,
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
                if ours.keep() {
                    drop(ours);
                    cancel();
                }
            })?;
        Ok(Self { shared })
    }

    /// Makes the call, whose connection is cut when it takes longer than `limit`, or panics.
    pub(super) fn during<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        let _end = self.shared.begin(limit);
        call()
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
        watch.end = None;
        if thread::panicking() {
            // The client, which is dropped next, would wait for the answer.
            self.0.cut(&mut watch);
        }
    }
}

impl Shared {
    fn begin(&self, limit: Duration) -> EndOfCall<'_> {
        let end = Instant::now() + limit;
        let mut watch = self.lock();
        watch.end = Some(end);
        if watch.asleep_until.is_none_or(|until| end < until) {
            self.changed.notify_one();
        }
        EndOfCall(self)
    }

    /// Watches until the session is gone, or a call was over its time: then the answer is true.
    fn keep(&self) -> bool {
        let mut watch = self.lock();
        while !watch.is_over {
            watch.asleep_until = watch.end;
            let Some(end) = watch.end else {
                watch = self
                    .changed
                    .wait(watch)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.cut(&mut watch);
                return true;
            }
            watch = self
                .changed
                .wait_timeout(watch, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }

    fn cut(&self, watch: &mut Watch) {
        watch.has_cut = true;
        self.socket.cut();
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        // Nothing panics while it holds the lock.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A watched connection on which nothing ever comes, its other end, and whether the call was
    /// cancelled.
    fn watched(mark: u32) -> (Watchdog, TcpStream, TcpStream, Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        setsockopt(&near, sockopt::TcpUserTimeout, &mark).unwrap();
        let socket = SocketHold::find(mark, 5_000).unwrap();
        let (tell, cancelled) = sync_channel(1);
        let dog = Watchdog::start(socket, move || tell.send(()).unwrap()).unwrap();
        (dog, near, far, cancelled)
    }

    #[test]
    fn a_call_over_its_time_is_cut_and_cancelled_also_after_one_with_more_time() {
        let (dog, mut near, _far, cancelled) = watched(5_020);
        dog.during(LONG, || ());
        assert!(!dog.has_cut());
        let short = Duration::from_millis(20);
        let read = dog.during(short, || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(dog.has_cut());
        assert_eq!(cancelled.recv_timeout(LONG), Ok(()));
    }

    #[test]
    fn a_call_that_panics_leaves_no_connection_to_wait_for() {
        let (dog, mut near, _far, _cancelled) = watched(5_040);
        let call = AssertUnwindSafe(|| dog.during(LONG, || panic!("inside")));
        assert!(catch_unwind(call).is_err());
        assert!(dog.has_cut());
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_thread_lets_go_of_the_socket_when_the_session_ends() {
        let (dog, near, mut far, cancelled) = watched(5_060);
        dog.during(LONG, || ());
        drop((dog, near));
        // Ends only once the last descriptor of the other end is closed.
        far.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        assert!(cancelled.recv().is_err());
    }
}
