//! Asking sentinels where the present master is.
//!
//! The client library's own sentinel client waits without a limit for a sentinel that hangs, and
//! keeps connections of its own; so its plain client asks, and the answer is used at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisResult};

use super::within;
use crate::settings::Master;

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
            let mut connection = within::connect(client, deadline)?;
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
