//! Connections to a Redis server: that of the queue, or one that stores vCons.
//!
//! `mod.rs` logs in and says what a server can do; `connect.rs` connects in time and asks sentinels;
//! `connection.rs` sends commands and reads replies; `error.rs` says what a server's error means. Knows TLS,
//! sentinels and time limits, nothing of keys.

mod connect;
mod connection;
mod error;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    Client, ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Value,
};

pub use connection::Connection;
pub use error::{ConnectError, RefusedUrlPart};
pub(crate) use error::{in_its_words, needs_another};

use self::connect::{Sentinels, left_until};
use self::error::{is_unknown_command, of_auth, of_greeting};
use crate::settings::RedisUrl;
use crate::vcon::LARGEST_DOCUMENT;

/// How long connecting may take, sentinels included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one command may take. A document of 512 MB must pass within it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A vanished host is noticed after about twice this time, even on an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A Redis server, or the present master of a group of servers. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    address: Arc<ServerAddress>,
    protocol: ProtocolVersion,
    name: String,
}

/// How to find the server.
enum ServerAddress {
    Known(Box<ConnectionInfo>),
    FromSentinels(Sentinels),
}

/// A connection, logged in.
pub struct RedisConnection {
    connection: Connection,
    client_id: Option<i64>,
}

impl Server {
    /// Prepares access; nothing is sent yet.
    pub fn new(url: &RedisUrl) -> Result<Self, ConnectError> {
        let address = match url.master() {
            Some(master) => {
                ServerAddress::FromSentinels(Sentinels::new(master.clone(), tcp_settings()))
            }
            None => {
                let info = url.server().map_err(unreachable_at(url))?;
                ServerAddress::Known(Box::new(info))
            }
        };
        Ok(Self {
            address: Arc::new(address),
            protocol: ProtocolVersion::RESP2,
            name: url.to_string(),
        })
    }

    /// The same server, for connections that receive push messages.
    pub fn with_pushes(&self) -> Self {
        Self {
            protocol: ProtocolVersion::RESP3,
            ..self.clone()
        }
    }

    /// Connects, authenticates and selects the database; `name` is what `CLIENT LIST` shows.
    pub fn connect(&self, name: &str) -> Result<RedisConnection, ConnectError> {
        self.connect_within(name, CONNECT_TIMEOUT)
    }

    /// Like [`Server::connect`]. Neither connecting nor any later command may take longer than `limit`.
    pub fn connect_for(
        &self,
        name: &str,
        limit: Duration,
    ) -> Result<RedisConnection, ConnectError> {
        let connected = self.connect_within(name, limit)?;
        connected.limit(limit).map_err(unreachable_at(self))?;
        Ok(connected)
    }

    /// Like [`Server::connect`]. Connecting may not take longer than `limit`.
    pub fn connect_within(
        &self,
        name: &str,
        limit: Duration,
    ) -> Result<RedisConnection, ConnectError> {
        let deadline = Instant::now() + limit;
        let connection = match &*self.address {
            ServerAddress::Known(info) => {
                let opened = self.open(info, name, deadline);
                opened.map_err(unreachable_at(self))?
            }
            ServerAddress::FromSentinels(sentinels) => self.find(sentinels, name, deadline)?,
        };
        let connected = RedisConnection {
            connection,
            client_id: None,
        };
        let limited = connected.limit(COMMAND_TIMEOUT);
        limited.map_err(unreachable_at(self))?;
        Ok(connected)
    }

    /// Connects to the server that sentinels name, if it is a master. Asks further sentinels if not: one that
    /// was cut off may name a former master.
    fn find(
        &self,
        sentinels: &Sentinels,
        name: &str,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        let mut tried: Vec<(String, u16)> = Vec::new();
        let mut faults: Vec<String> = Vec::new();
        for reply in sentinels.ask(deadline) {
            let address = match reply.master {
                Ok(address) if tried.contains(&address) => continue,
                Ok(address) => address,
                Err(why) => {
                    faults.push(format!("sentinel {}: {why}", reply.sentinel));
                    continue;
                }
            };
            tried.push(address.clone());
            let shown = format!("{}:{}", address.0, address.1);
            let connected = sentinels.server(address).and_then(|info| {
                let mut connection = self.open(&info, name, deadline)?;
                check_is_master(&mut connection, deadline)?;
                Ok(connection)
            });
            match connected {
                Ok(connection) => {
                    sentinels.trust(reply.index);
                    return Ok(connection);
                }
                Err(error) => faults.push(format!(
                    "{shown}, the master according to sentinel {}: {error}",
                    reply.sentinel
                )),
            }
        }
        Err(ConnectError::NoMaster {
            server: self.name.clone(),
            faults: faults.join("; "),
        })
    }

    fn open(
        &self,
        info: &ConnectionInfo,
        name: &str,
        deadline: Instant,
    ) -> RedisResult<Connection> {
        let settings = info.redis_settings();
        // The client library hides the server's error to a login, so with RESP2 this module logs in.
        let ours = self.protocol == ProtocolVersion::RESP2;
        let theirs = if ours {
            RedisConnectionInfo::default()
        } else {
            settings.clone()
        };
        let info = info
            .clone()
            .set_tcp_settings(tcp_settings())
            .set_redis_settings(theirs.set_protocol(self.protocol).set_skip_set_lib_name());
        let client = Client::open(info)?;
        // If the client library logs in, its error is the server's error to `HELLO`.
        let mut connection = connect::connect(client, deadline).map_err(of_greeting)?;
        connection.set_write_timeout(Some(left_until(deadline)))?;
        connection.set_read_timeout(Some(left_until(deadline)))?;
        let login = ours.then_some(settings);
        greet(&mut connection, login, name)?;
        Ok(connection)
    }
}

/// Logs in, selects the database and names the connection, in one round trip.
fn greet(
    connection: &mut Connection,
    settings: Option<&RedisConnectionInfo>,
    name: &str,
) -> RedisResult<()> {
    let mut commands = redis::pipe();
    let password = settings.and_then(RedisConnectionInfo::password);
    if let Some(password) = password {
        let user = settings.and_then(RedisConnectionInfo::username);
        commands.cmd("AUTH").arg(user).arg(password);
    }
    let database = settings.map_or(0, RedisConnectionInfo::db);
    if database != 0 {
        commands.cmd("SELECT").arg(database);
    }
    commands.cmd("CLIENT").arg("SETNAME").arg(name);
    connection.send_packed_command(&commands.get_packed_pipeline())?;
    let answers: RedisResult<Vec<Value>> = (0..commands.len())
        .map(|_| connection.recv_response())
        .collect();
    let mut answers = answers?;
    let named = answers.pop().map(Value::extract_error);
    let mut answers = answers.into_iter();
    // The error of a login says more than the errors that follow from it.
    if password.is_some()
        && let Some(answer) = answers.next()
    {
        answer.extract_error().map_err(of_auth)?;
    }
    for answer in answers {
        answer.extract_error()?;
    }
    match named {
        // The connection works without a name.
        Some(Err(error)) if !is_forbidden(&error) => Err(error),
        _ => Ok(()),
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 3)
        .with_retries(3);
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(KEEPALIVE * 2);
    settings
}

/// Whether this user may not call the command, or the server does not know it.
fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM") || is_unknown_command(error)
}

/// Fails unless the server is a master.
fn check_is_master(connection: &mut Connection, deadline: Instant) -> RedisResult<()> {
    connection.set_read_timeout(Some(left_until(deadline)))?;
    let role = redis::cmd("ROLE").query::<Value>(connection);
    let role = match role {
        // The first write will show it.
        Err(error) if is_forbidden(&error) => return Ok(()),
        role => role?,
    };
    let Value::Array(role) = role else {
        return Err(not_a_master("something unknown".to_owned()));
    };
    match role.into_iter().next() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(()),
        Some(Value::BulkString(role)) => {
            Err(not_a_master(String::from_utf8_lossy(&role).into_owned()))
        }
        _ => Err(not_a_master("something unknown".to_owned())),
    }
}

fn not_a_master(role: String) -> RedisError {
    (redis::ErrorKind::Client, "it is no master but", role).into()
}

/// Makes an error that names the server.
fn unreachable_at(server: &impl std::fmt::Display) -> impl Fn(RedisError) -> ConnectError {
    move |cause| ConnectError::Unreachable {
        server: server.to_string(),
        cause,
    }
}

impl RedisConnection {
    /// Limits the time of each later read from and write to the socket.
    pub(crate) fn limit(&self, limit: Duration) -> RedisResult<()> {
        self.connection.set_read_timeout(Some(limit))?;
        self.connection.set_write_timeout(Some(limit))
    }

    /// The client id of this connection; 0 if the server does not tell. Asks once.
    pub fn client_id(&mut self) -> RedisResult<i64> {
        if let Some(id) = self.client_id {
            return Ok(id);
        }
        let id = match redis::cmd("CLIENT").arg("ID").query(&mut self.connection) {
            // The server does not know the command, or refuses it to this user.
            Err(error) if error.code().is_some() => 0,
            id => id?,
        };
        self.client_id = Some(id);
        Ok(id)
    }

    /// Whether the server has RedisJSON and lets this user call it.
    pub fn has_json(&mut self) -> RedisResult<bool> {
        has_json(&mut self.connection)
    }
}

/// Whether the server has RedisJSON and lets this user call it.
pub(crate) fn has_json(connection: &mut Connection) -> RedisResult<bool> {
    let asked = redis::cmd("JSON.GET")
        .arg("conserver:probe")
        .query::<Value>(connection);
    match asked {
        Ok(_) => Ok(true),
        Err(error) if is_forbidden(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Every server takes a value of this many bytes: both limits are at least 1 MiB.
const ALWAYS: u64 = 800 << 10;

/// A setting of the server that limits the length of a value.
struct LengthLimit {
    name: &'static str,
    default: u64,
    /// How many eighths of the limit a value may have.
    eighths: u64,
}

const LENGTH_LIMITS: [LengthLimit; 2] = [
    LengthLimit {
        name: "proto-max-bulk-len",
        default: LARGEST_DOCUMENT,
        eighths: 8,
    },
    // The rest of the request counts as well: keys, and a script with its other arguments.
    LengthLimit {
        name: "client-query-buffer-limit",
        default: 1 << 30,
        eighths: 7,
    },
];

/// Why a value of this many bytes cannot be sent to the server; `None` if it can.
///
/// A server closes the connection to a client that sends more, which looks like an unavailable server. So
/// the length is compared with the server's limits before. If the server does not show its settings to this
/// user, the defaults count.
pub(crate) fn why_too_long(
    connection: &mut Connection,
    length: usize,
) -> RedisResult<Option<String>> {
    let length = length as u64;
    if length <= ALWAYS {
        return Ok(None);
    }
    let mut ask = redis::pipe();
    for limit in &LENGTH_LIMITS {
        ask.cmd("CONFIG").arg("GET").arg(limit.name);
    }
    connection.send_packed_command(&ask.get_packed_pipeline())?;
    let mut why = None;
    for limit in &LENGTH_LIMITS {
        // The server may not know the command, or refuse it.
        let set = connection.recv_response()?.extract_error();
        let set = set.ok().and_then(number);
        why = why.or_else(|| limit.why_too_long(length, set));
    }
    Ok(why)
}

impl LengthLimit {
    fn why_too_long(&self, length: u64, set: Option<u64>) -> Option<String> {
        let longest = set.unwrap_or(self.default) / 8 * self.eighths;
        (length > longest).then(|| {
            format!(
                "it has {length} bytes, more than the {longest} that the server takes ({})",
                self.name
            )
        })
    }
}

/// The number in a reply to `CONFIG GET`; `None` if there is none, or if it is 0, which means no limit.
fn number(reply: Value) -> Option<u64> {
    let pair: Vec<String> = redis::from_redis_value(reply).ok()?;
    let [_, text] = <[String; 2]>::try_from(pair).ok()?;
    text.parse().ok().filter(|number| *number > 0)
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Deref for RedisConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for RedisConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_up_to_the_limit_and_not_one_byte_more() {
        let [value, request] = &LENGTH_LIMITS;
        for (limit, set, longest) in [
            (value, None, 512 << 20),
            (value, Some(1 << 20), 1 << 20),
            (request, None, 7 << 27),
            (request, Some(1 << 20), 7 << 17),
        ] {
            assert_eq!(limit.why_too_long(longest, set), None, "{}", limit.name);
            let why = limit.why_too_long(longest + 1, set).unwrap_or_default();
            assert!(why.contains(limit.name), "{why}");
            assert!(why.contains(&(longest + 1).to_string()), "{why}");
        }
        // A value below `ALWAYS` fits the smallest limits that a server may have.
        for limit in &LENGTH_LIMITS {
            assert_eq!(limit.why_too_long(ALWAYS, Some(1 << 20)), None);
        }
    }

    #[test]
    fn a_reply_without_a_number_leaves_the_default() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pair = |value: &str| Value::Array(vec![text("proto-max-bulk-len"), text(value)]);
        assert_eq!(number(pair("1048576")), Some(1 << 20));
        for reply in [pair("1mb"), pair("0"), Value::Array(Vec::new()), Value::Nil] {
            assert_eq!(number(reply), None);
        }
    }
}
