//! Connections to the Redis server.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2};
use redis::{Client, Connection, IntoConnectionInfo, ProtocolVersion, Value};

use super::QueueError;
use crate::settings::RedisUrl;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one command may take; a document of 512 MB has to pass within it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A vanished host is noticed after about this time, even on an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The Redis server of this deployment; cheap to clone.
#[derive(Clone)]
pub struct Server {
    client: Arc<Client>,
    name: String,
}

/// A connection in use.
pub(super) type Connected = Lease;

/// A connection together with its server's name for messages.
pub struct Lease {
    connection: Connection,
}

impl Server {
    /// Prepares access; nothing is sent yet.
    pub fn new(url: &RedisUrl) -> Result<Self, QueueError> {
        Self::with_protocol(url, ProtocolVersion::RESP2)
    }

    /// Like [`Server::new`], for connections that receive messages the server sends unasked.
    pub fn with_pushes(url: &RedisUrl) -> Result<Self, QueueError> {
        Self::with_protocol(url, ProtocolVersion::RESP3)
    }

    fn with_protocol(url: &RedisUrl, protocol: ProtocolVersion) -> Result<Self, QueueError> {
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 3)
            .with_retries(3);
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive);
        let info = url.reveal().into_connection_info()?;
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(protocol)
            .set_skip_set_lib_name();
        let info = info.set_tcp_settings(tcp).set_redis_settings(redis);
        Ok(Self {
            client: Arc::new(Client::open(info)?),
            name: url.to_string(),
        })
    }

    /// Connects, authenticates and selects the database; `name` is what `CLIENT LIST` shows.
    pub fn connect(&self, name: &str) -> Result<Lease, QueueError> {
        self.connect_within(name, CONNECT_TIMEOUT)
    }

    /// Like [`Server::connect`]; neither this nor any command later may take longer than `limit`.
    pub fn connect_for(&self, name: &str, limit: Duration) -> Result<Lease, QueueError> {
        let lease = self.connect_within(name, limit)?;
        lease.set_read_timeout(Some(limit))?;
        lease.set_write_timeout(Some(limit))?;
        Ok(lease)
    }

    /// Like [`Server::connect`], within `limit`.
    pub fn connect_within(&self, name: &str, limit: Duration) -> Result<Lease, QueueError> {
        let unreachable = |cause| QueueError::Unreachable {
            server: self.name.clone(),
            cause,
        };
        let mut connection = self
            .client
            .get_connection_with_timeout(limit)
            .map_err(unreachable)?;
        connection
            .set_read_timeout(Some(limit))
            .map_err(unreachable)?;
        connection
            .set_write_timeout(Some(COMMAND_TIMEOUT))
            .map_err(unreachable)?;
        let named = redis::cmd("CLIENT")
            .arg("SETNAME")
            .arg(name)
            .query::<()>(&mut connection);
        if let Err(cause) = named
            && cause.is_unrecoverable_error()
        {
            return Err(unreachable(cause));
        }
        connection
            .set_read_timeout(Some(COMMAND_TIMEOUT))
            .map_err(unreachable)?;
        Ok(Lease { connection })
    }
}

impl Lease {
    /// Whether the server keeps JSON documents.
    pub fn has_json(&mut self) -> Result<bool, QueueError> {
        let asked = redis::cmd("JSON.GET")
            .arg("conserver:probe")
            .query::<Value>(&mut self.connection);
        match asked {
            Ok(_) => Ok(true),
            Err(error) if is_unknown_command(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the server does not have the command: without the JSON module, one of those.
pub(super) fn is_unknown_command(error: &redis::RedisError) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.contains("unknown command"))
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
