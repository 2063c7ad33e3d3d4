//! A limit on the time that connecting takes.
//!
//! The client library looks a name up without a limit, and then gives each of its addresses all of
//! the time. So connecting to a name runs on a thread of its own, which is left behind when the time
//! is over; it ends when the lookup and the attempts do.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use redis::{Client, Connection, ConnectionAddr, ErrorKind, RedisResult};

/// While so many attempts of this process are left behind, no other is made.
const MOST_LEFT: usize = 32;

/// Where the library itself notices that the time is over, it has more to say.
const GRACE: Duration = Duration::from_millis(100);

static LEFT: Left = Left(AtomicUsize::new(0));

/// How many attempts are left behind.
struct Left(AtomicUsize);

/// One attempt, from its begin to the end of its thread.
struct Attempt {
    left: &'static Left,
    /// Set by its end, and by whoever leaves it behind.
    is_noted: AtomicBool,
}

/// The thread's own hold on its attempt.
struct Hold(Arc<Attempt>);

impl Attempt {
    /// Nobody waits for it any more.
    fn leave(&self) {
        // Before the note, which its end looks for.
        self.left.0.fetch_add(1, Ordering::AcqRel);
        if self.is_noted.swap(true, Ordering::AcqRel) {
            self.left.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.0.is_noted.swap(true, Ordering::AcqRel) {
            self.0.left.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Connects until `deadline` at the longest.
pub(super) fn connect(client: Client, deadline: Instant) -> RedisResult<Connection> {
    let has_name = match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
            host.parse::<IpAddr>().is_err()
        }
        _ => false,
    };
    // A limit of nothing would be taken for none.
    let left = move || {
        let left = deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    };
    if has_name {
        let connect = move || client.get_connection_with_timeout(left());
        within(&LEFT, deadline + GRACE, connect)
    } else {
        client.get_connection_with_timeout(left())
    }
}

/// Runs `connect` until `deadline` at the longest.
fn within<T: Send + 'static>(
    left: &'static Left,
    deadline: Instant,
    connect: impl FnOnce() -> RedisResult<T> + Send + 'static,
) -> RedisResult<T> {
    let in_time = || io::Error::new(io::ErrorKind::TimedOut, "there was no connection in time");
    if left.0.load(Ordering::Acquire) >= MOST_LEFT {
        let why = format!("{MOST_LEFT} earlier attempts to connect have not ended yet");
        return Err(io::Error::new(io::ErrorKind::TimedOut, why).into());
    }
    let attempt = Arc::new(Attempt {
        left,
        is_noted: AtomicBool::new(false),
    });
    let (answer, answered) = bounded(1);
    let hold = Hold(Arc::clone(&attempt));
    let work = move || {
        let _hold = hold;
        // Nobody waits any more when the time was over.
        let _ = answer.send(connect());
    };
    thread::Builder::new()
        .name("connect".to_owned())
        .spawn(work)?;
    match answered.recv_deadline(deadline) {
        Ok(connected) => connected,
        Err(RecvTimeoutError::Timeout) => {
            attempt.leave();
            Err(in_time().into())
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err((ErrorKind::Client, "connecting ended without a result").into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    static MANY: Left = Left(AtomicUsize::new(0));
    static ONE: Left = Left(AtomicUsize::new(0));

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_is_answered_in_time_is_the_answer() {
        assert_eq!(within(&ONE, later(), || Ok(7)).unwrap(), 7);
        let refused = within(&ONE, later(), || {
            Err::<(), _>((ErrorKind::Client, "no").into())
        });
        assert!(refused.unwrap_err().to_string().contains("no"));
        assert_eq!(ONE.0.load(Ordering::Acquire), 0);
    }

    #[test]
    fn what_takes_longer_is_left_behind_and_not_without_number() {
        let (hold, held) = bounded::<()>(0);
        let hang = || {
            let held = held.clone();
            within(&MANY, soon(), move || Ok(held.recv()))
        };
        for _ in 0..MOST_LEFT {
            assert!(hang().unwrap_err().is_timeout());
        }
        let start = Instant::now();
        let refused = within(&MANY, start + Duration::from_secs(60), || Ok(()));
        assert!(refused.unwrap_err().is_timeout());
        drop(hold);
        while MANY.0.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        assert!(within(&MANY, later(), || Ok(())).is_ok());
    }
}
