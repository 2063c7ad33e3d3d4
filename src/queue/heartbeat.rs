//! What tells other instances on the same Redis that this one is alive.

use std::time::Duration;

use serde::Serialize;

use super::connection::Connected;
use super::{QueueError, Server, keys};
use crate::settings::Settings;

/// A heartbeat that takes longer than this has missed its time.
const LIMIT: Duration = Duration::from_secs(5);

/// The heartbeat of this instance: a key that expires when nobody renews it.
pub struct Heartbeat {
    server: Server,
    connected: Option<Connected>,
    key: String,
    record: String,
    ttl: u64,
}

/// Who is alive.
#[derive(Serialize)]
struct Record<'a> {
    host: &'a str,
    pid: i32,
}

impl Heartbeat {
    /// A heartbeat in the name of `supervisor`, which does not beat yet.
    pub fn new(server: Server, settings: &Settings, supervisor: i32) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy();
        let record = Record {
            host: &host,
            pid: supervisor,
        };
        Self {
            server,
            connected: None,
            key: keys::instance_key(&settings.instance),
            // A host name and a number are always JSON.
            record: serde_json::to_string(&record).unwrap_or_default(),
            ttl: settings.heartbeat_ttl.as_secs(),
        }
    }

    /// Beats once.
    pub fn beat(&mut self) -> Result<(), QueueError> {
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(&self.record).arg("EX").arg(self.ttl);
        self.send(&set)
    }

    /// Stops beating: this instance ends, and says so.
    pub fn end(&mut self) {
        let mut del = redis::cmd("DEL");
        del.arg(&self.key);
        if let Err(error) = self.send(&del) {
            log::debug!("the heartbeat will expire by itself: {error}");
        }
    }

    fn send(&mut self, command: &redis::Cmd) -> Result<(), QueueError> {
        let connection = match &mut self.connected {
            Some(connection) => connection,
            empty => {
                let lease = self.server.connect_within("conserver:monitor", LIMIT)?;
                lease.set_read_timeout(Some(LIMIT))?;
                lease.set_write_timeout(Some(LIMIT))?;
                empty.insert(lease)
            }
        };
        let sent = command.query::<()>(&mut **connection);
        if sent.is_err() {
            self.connected = None;
        }
        Ok(sent?)
    }
}
