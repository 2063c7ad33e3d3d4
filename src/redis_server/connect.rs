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
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisResult,
};

use crate::settings::Master;

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

/// The sentinels of one master.
pub(super) struct Sentinels {
    master: Master,
    tcp: TcpSettings,
    /// The one to ask first: the last that knew a master.
    first: AtomicUsize,
}

/// What a sentinel said.
pub(super) struct Advice {
    /// Which one, for [`Sentinels::trust`].
    pub number: usize,
    /// Its address.
    pub sentinel: String,
    /// Where it takes the master to be, or why it does not say.
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

    /// Asks one after the other, as long as the caller goes on. None gets more than its share of
    /// the time until `deadline`, and one share is left for the master itself.
    pub fn ask(&self, deadline: Instant) -> impl Iterator<Item = Advice> {
        let count = self.master.sentinels.len();
        let first = self.first.load(Ordering::Relaxed);
        (0..count).map(move |asked| {
            let number = (first + asked) % count;
            let (sentinel, info) = &self.master.sentinels[number];
            let left = deadline.saturating_duration_since(Instant::now());
            let shares = u32::try_from(count - asked + 1).unwrap_or(u32::MAX);
            Advice {
                number,
                sentinel: sentinel.clone(),
                master: self.ask_one(info, left / shares),
            }
        })
    }

    /// The sentinel with this number was right: it is asked first from now on.
    pub fn trust(&self, number: usize) {
        self.first.store(number, Ordering::Relaxed);
    }

    /// How the master is reached at an address.
    pub fn server(&self, (host, port): (String, u16)) -> RedisResult<ConnectionInfo> {
        let info = self.master.address(host, port).into_connection_info()?;
        Ok(info.set_redis_settings(self.master.settings.clone()))
    }

    fn ask_one(&self, info: &ConnectionInfo, limit: Duration) -> Result<(String, u16), String> {
        let answer = || -> RedisResult<Option<(String, u16)>> {
            let deadline = Instant::now() + limit;
            let settings = info.redis_settings().clone().set_skip_set_lib_name();
            let info = info.clone().set_tcp_settings(self.tcp.clone());
            let client = Client::open(info.set_redis_settings(settings))?;
            let mut connection = connect(client, deadline)?;
            let left = deadline.saturating_duration_since(Instant::now());
            connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            redis::cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(&self.master.name)
                .query(&mut connection)
        };
        match answer() {
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
