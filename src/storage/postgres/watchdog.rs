//! A limit on the time of a call to PostgreSQL, kept by cutting its connection.
//!
//! The client has no limit of its own: a server whose kernel answers while its program does not
//! would hold a lane for ever. A thread beside each session ends such a call by ending its
//! connection. It sleeps until the call in work, or one that has ended since, would be over its
//! time, so that calls do not wake it:
//!
//! ```text
//! lane      ├─call─┤  ├─call─┤   ├─call───────────────────── … ─┤ error
//! watchdog  sleeps ─────────────────┤ sleeps until its end ── … ─┤ cuts
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
    watch: Mutex<Watch>,
    changed: Condvar,
}

struct Watch {
    /// When the call in work is over its time.
    end: Option<Instant>,
    /// Until when the thread sleeps; `None` where only a change wakes it.
    asleep_until: Option<Instant>,
    has_cut: bool,
    is_over: bool,
}

impl Watchdog {
    /// Begins to watch over the session of this socket.
    pub(super) fn start(socket: SocketHold) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            watch: Mutex::new(Watch {
                end: None,
                asleep_until: None,
                has_cut: false,
                is_over: false,
            }),
            changed: Condvar::new(),
        });
        let ours = Arc::clone(&shared);
        thread::Builder::new()
            .name("pg-watchdog".to_owned())
            .spawn(move || ours.keep(&socket))?;
        Ok(Self { shared })
    }

    /// Makes the call, whose connection is cut when it takes longer than `limit`.
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

/// Ends the watch over a call, also where it panics.
struct EndOfCall<'a>(&'a Shared);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        self.0.lock().end = None;
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

    fn keep(&self, socket: &SocketHold) {
        let mut watch = self.lock();
        while !watch.is_over && !watch.has_cut {
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
                watch.has_cut = true;
                socket.cut();
            } else {
                watch = self
                    .changed
                    .wait_timeout(watch, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        // Nothing panics while it holds the lock.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A watched connection on which nothing ever comes, and its other end.
    fn watched(mark: u32) -> (Watchdog, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        setsockopt(&near, sockopt::TcpUserTimeout, &mark).unwrap();
        let socket = SocketHold::find(mark, 5_000).unwrap();
        (Watchdog::start(socket).unwrap(), near, far)
    }

    #[test]
    fn a_call_over_its_time_is_cut_also_after_one_with_more_time() {
        let (dog, mut near, _far) = watched(5_001);
        dog.during(LONG, || ());
        assert!(!dog.has_cut());
        let short = Duration::from_millis(20);
        let read = dog.during(short, || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(dog.has_cut());
    }

    #[test]
    fn the_thread_lets_go_of_the_socket_when_the_session_ends() {
        let (dog, near, mut far) = watched(5_002);
        dog.during(LONG, || ());
        drop((dog, near));
        // Ends only once the last descriptor of the other end is closed.
        far.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    }
}
