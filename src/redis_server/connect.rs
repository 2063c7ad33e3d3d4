//! How a connection is opened in time, and how sentinels are asked where the present master is.
//!
//! The client library looks a name up without a limit, and then gives each of its addresses all of the
//! time. So connecting to a name runs on a thread of its own. When the time is over, the caller abandons
//! that thread, which ends with its lookup and its attempts.
//!
//! The client library's own sentinel client waits without a limit for a sentinel that hangs, and keeps
//! connections of its own. So its plain client asks, and the answer is used at once.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisResult};

use super::Connection;
use crate::settings::Master;

/// While this process has abandoned this many attempts that have not ended, it makes no other.
const MOST_ABANDONED: usize = 32;

/// How much longer the caller waits: if the library itself notices that the time is over, its error says
/// more.
const GRACE: Duration = Duration::from_millis(100);

static ABANDONED: Abandoned = Abandoned(AtomicUsize::new(0));

/// How many abandoned attempts have not ended.
struct Abandoned(AtomicUsize);

/// One attempt to connect. The caller that abandons it and the thread that ends it both set `is_over`; the
/// second of the two finds it set, and takes the attempt out of the count.
struct Attempt {
    abandoned: &'static Abandoned,
    is_over: AtomicBool,
}

/// Held by the thread of an attempt until it ends.
struct AttemptGuard(Arc<Attempt>);

impl Attempt {
    /// The caller stops waiting.
    fn abandon(&self) {
        // Counted first: the thread subtracts as soon as it finds the flag set.
        self.abandoned.0.fetch_add(1, Ordering::AcqRel);
        if self.is_over.swap(true, Ordering::AcqRel) {
            self.abandoned.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        if self.0.is_over.swap(true, Ordering::AcqRel) {
            self.0.abandoned.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Connects, by `deadline` at the latest.
pub(super) fn connect(client: Client, deadline: Instant) -> RedisResult<Connection> {
    let has_name = match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
            host.parse::<IpAddr>().is_err()
        }
        _ => false,
    };
    let connect = move || Connection::open(&client, left_until(deadline));
    if has_name {
        connect_by(&ABANDONED, deadline + GRACE, connect)
    } else {
        connect()
    }
}

/// The time until `deadline`, at least 1 ms: a limit of 0 would mean no limit.
pub(super) fn left_until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// Runs `connect` on a thread, which it abandons at `deadline`.
fn connect_by<T: Send + 'static>(
    abandoned: &'static Abandoned,
    deadline: Instant,
    connect: impl FnOnce() -> RedisResult<T> + Send + 'static,
) -> RedisResult<T> {
    let in_time = || io::Error::new(io::ErrorKind::TimedOut, "there was no connection in time");
    if abandoned.0.load(Ordering::Acquire) >= MOST_ABANDONED {
        let why = format!("{MOST_ABANDONED} earlier attempts to connect have not ended yet");
        return Err(io::Error::new(io::ErrorKind::TimedOut, why).into());
    }
    let attempt = Arc::new(Attempt {
        abandoned,
        is_over: AtomicBool::new(false),
    });
    let (result, received) = bounded(1);
    let guard = AttemptGuard(Arc::clone(&attempt));
    let work = move || {
        let _guard = guard;
        // Fails if the caller has stopped waiting.
        let _ = result.send(connect());
    };
    thread::Builder::new()
        .name("connect".to_owned())
        .spawn(work)?;
    match received.recv_deadline(deadline) {
        Ok(connected) => connected,
        Err(RecvTimeoutError::Timeout) => {
            attempt.abandon();
            Err(in_time().into())
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err((ErrorKind::Client, "connecting ended without a result").into())
        }
    }
}

/// The sentinels of one master.
pub(super) struct Sentinels {
    master: Master,
    tcp: TcpSettings,
    /// The index of the one to ask first: the last that knew a master.
    first: AtomicUsize,
}

/// What a sentinel replied.
pub(super) struct SentinelReply {
    /// The sentinel's index, for [`Sentinels::trust`].
    pub index: usize,
    /// The sentinel's address.
    pub sentinel: String,
    /// The master's address, or why there is none.
    pub master: Result<(String, u16), String>,
}

impl Sentinels {
    /// Prepares access; nothing is sent yet.
    pub fn new(master: Master, tcp: TcpSettings) -> Self {
        Self {
            master,
            tcp,
            first: AtomicUsize::new(0),
        }
    }

    /// Asks one sentinel after another, as long as the caller iterates. None gets more than its share of the
    /// time until `deadline`; one share is left for the master itself.
    pub fn ask(&self, deadline: Instant) -> impl Iterator<Item = SentinelReply> {
        let count = self.master.sentinels.len();
        let first = self.first.load(Ordering::Relaxed);
        (0..count).map(move |asked| {
            let index = (first + asked) % count;
            let (sentinel, info) = &self.master.sentinels[index];
            let left = deadline.saturating_duration_since(Instant::now());
            let shares = u32::try_from(count - asked + 1).unwrap_or(u32::MAX);
            SentinelReply {
                index,
                sentinel: sentinel.clone(),
                master: self.ask_one(info, left / shares),
            }
        })
    }

    /// Makes the sentinel with this index the first to ask: it knew the master.
    pub fn trust(&self, index: usize) {
        self.first.store(index, Ordering::Relaxed);
    }

    /// How to connect to the master at an address.
    pub fn server(&self, (host, port): (String, u16)) -> RedisResult<ConnectionInfo> {
        let info = self.master.address(host, port).into_connection_info()?;
        Ok(info.set_redis_settings(self.master.settings.clone()))
    }

    fn ask_one(&self, info: &ConnectionInfo, limit: Duration) -> Result<(String, u16), String> {
        let ask = || -> RedisResult<Option<(String, u16)>> {
            let deadline = Instant::now() + limit;
            let settings = info.redis_settings().clone().set_skip_set_lib_name();
            let info = info.clone().set_tcp_settings(self.tcp.clone());
            let client = Client::open(info.set_redis_settings(settings))?;
            let mut connection = connect(client, deadline)?;
            connection.set_read_timeout(Some(left_until(deadline)))?;
            redis::cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(&self.master.name)
                .query(&mut connection)
        };
        match ask() {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(format!("it knows no master {}", self.master.name)),
            Err(error) if error.is_timeout() => Err("no answer in time".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    static MANY: Abandoned = Abandoned(AtomicUsize::new(0));
    static ONE: Abandoned = Abandoned(AtomicUsize::new(0));

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_connection_in_time_is_returned() {
        assert_eq!(connect_by(&ONE, later(), || Ok(7)).unwrap(), 7);
        let refused = connect_by(&ONE, later(), || {
            Err::<(), _>((ErrorKind::Client, "no").into())
        });
        assert!(refused.unwrap_err().to_string().contains("no"));
        assert_eq!(ONE.0.load(Ordering::Acquire), 0);
    }

    #[test]
    fn an_attempt_that_takes_longer_is_abandoned_up_to_a_number() {
        let (hold, held) = bounded::<()>(0);
        let hang = || {
            let held = held.clone();
            connect_by(&MANY, soon(), move || Ok(held.recv()))
        };
        for _ in 0..MOST_ABANDONED {
            assert!(hang().unwrap_err().is_timeout());
        }
        let start = Instant::now();
        let refused = connect_by(&MANY, start + Duration::from_secs(60), || Ok(()));
        assert!(refused.unwrap_err().is_timeout());
        drop(hold);
        while MANY.0.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        assert!(connect_by(&MANY, later(), || Ok(())).is_ok());
    }
}
