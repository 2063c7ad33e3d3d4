//! Connections to a Redis server: the one of the queue, or one that keeps vCons.
//!
//! Knows TLS, sentinels and time limits, nothing of keys.

mod connect;
mod error;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    Client, Connection, ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError,
    RedisResult, Value,
};

pub use error::{ConnectError, Refusal};
pub(crate) use error::{in_its_words, needs_another};

use self::connect::Sentinels;
use self::error::{is_unknown_command, of_auth, of_greeting};
use crate::settings::RedisUrl;
use crate::vcon::LARGEST_DOCUMENT;

/// How long connecting may take, sentinels included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one command may take; a document of 512 MB has to pass within it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A vanished host is noticed after about twice this time, even on an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A Redis server, or the present master of a group of them; cheap to clone.
#[derive(Clone)]
pub struct Server {
    access: Arc<Access>,
    protocol: ProtocolVersion,
    name: String,
}

/// How the server is found.
enum Access {
    At(Box<ConnectionInfo>),
    By(Sentinels),
}

/// A connection together with its server's name for messages.
pub struct Lease {
    connection: Connection,
    client_id: Option<i64>,
}

impl Server {
    /// Prepares access; nothing is sent yet.
    pub fn new(url: &RedisUrl) -> Result<Self, ConnectError> {
        let access = match url.master() {
            Some(master) => Access::By(Sentinels::new(master.clone(), tcp_settings())),
            None => {
                let info = url.server().map_err(unreachable_at(url))?;
                Access::At(Box::new(info))
            }
        };
        Ok(Self {
            access: Arc::new(access),
            protocol: ProtocolVersion::RESP2,
            name: url.to_string(),
        })
    }

    /// The same server, for connections that receive messages it sends unasked.
    pub fn with_pushes(&self) -> Self {
        Self {
            protocol: ProtocolVersion::RESP3,
            ..self.clone()
        }
    }

    /// Connects, authenticates and selects the database; `name` is what `CLIENT LIST` shows.
    pub fn connect(&self, name: &str) -> Result<Lease, ConnectError> {
        self.connect_within(name, CONNECT_TIMEOUT)
    }

    /// Like [`Server::connect`]; neither this nor any command later may take longer than `limit`.
    pub fn connect_for(&self, name: &str, limit: Duration) -> Result<Lease, ConnectError> {
        let lease = self.connect_within(name, limit)?;
        lease.limit(limit).map_err(unreachable_at(self))?;
        Ok(lease)
    }

    /// Like [`Server::connect`], within `limit`.
    pub fn connect_within(&self, name: &str, limit: Duration) -> Result<Lease, ConnectError> {
        let deadline = Instant::now() + limit;
        let connection = match &*self.access {
            Access::At(info) => {
                let opened = self.open(info, name, deadline);
                opened.map_err(unreachable_at(self))?
            }
            Access::By(sentinels) => self.find(sentinels, name, deadline)?,
        };
        let lease = Lease {
            connection,
            client_id: None,
        };
        lease.limit(COMMAND_TIMEOUT).map_err(unreachable_at(self))?;
        Ok(lease)
    }

    /// Connects to the server that sentinels name, if it is a master. A sentinel that was cut off
    /// may name a former one, so the others are asked too.
    fn find(
        &self,
        sentinels: &Sentinels,
        name: &str,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        let mut tried: Vec<(String, u16)> = Vec::new();
        let mut faults: Vec<String> = Vec::new();
        for advice in sentinels.ask(deadline) {
            let address = match advice.master {
                Ok(address) if tried.contains(&address) => continue,
                Ok(address) => address,
                Err(why) => {
                    faults.push(format!("sentinel {}: {why}", advice.sentinel));
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
                    sentinels.trust(advice.number);
                    return Ok(connection);
                }
                Err(error) => faults.push(format!(
                    "{shown}, the master according to sentinel {}: {error}",
                    advice.sentinel
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
        // The client library does not tell what the server says of a login.
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
        // Where the client library logs in, it passes on what the server says of `HELLO`.
        let mut connection = connect::connect(client, deadline).map_err(of_greeting)?;
        connection.set_write_timeout(Some(left_until(deadline)))?;
        connection.set_read_timeout(Some(left_until(deadline)))?;
        let login = ours.then_some(settings);
        greet(&mut connection, login, name)?;
        Ok(connection)
    }
}

/// Logs in, selects the database and gives the connection its name, in one round trip.
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
    // A refused login says more than what is refused for the want of it.
    if password.is_some()
        && let Some(answer) = answers.next()
    {
        answer.extract_error().map_err(of_auth)?;
    }
    for answer in answers {
        answer.extract_error()?;
    }
    match named {
        // A name is not worth a connection.
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

/// At least a moment: a limit of nothing would be taken for none.
fn left_until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// Whether a command is not for this user, or not known to this server.
fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM") || is_unknown_command(error)
}

/// Fails unless the server is a master.
fn check_is_master(connection: &mut Connection, deadline: Instant) -> RedisResult<()> {
    connection.set_read_timeout(Some(left_until(deadline)))?;
    let role = redis::cmd("ROLE").query::<Value>(connection);
    let role = match role {
        // Then it is found out by the first write.
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

/// Names the server with the cause.
fn unreachable_at(server: &impl std::fmt::Display) -> impl Fn(RedisError) -> ConnectError {
    move |cause| ConnectError::Unreachable {
        server: server.to_string(),
        cause,
    }
}

impl Lease {
    /// Limits the time of each read from and write to the socket from now on.
    pub(crate) fn limit(&self, limit: Duration) -> RedisResult<()> {
        self.connection.set_read_timeout(Some(limit))?;
        self.connection.set_write_timeout(Some(limit))
    }

    /// What the server calls this connection; 0 where it does not tell. Asked once.
    pub fn client_id(&mut self) -> RedisResult<i64> {
        if let Some(id) = self.client_id {
            return Ok(id);
        }
        let id = match redis::cmd("CLIENT").arg("ID").query(&mut self.connection) {
            // The server does not know the question, or does not answer it to this user.
            Err(error) if error.code().is_some() => 0,
            id => id?,
        };
        self.client_id = Some(id);
        Ok(id)
    }

    /// Whether the server keeps JSON documents.
    pub fn has_json(&mut self) -> RedisResult<bool> {
        has_json(&mut self.connection)
    }
}

/// Whether the server keeps JSON documents.
pub(crate) fn has_json(connection: &mut Connection) -> RedisResult<bool> {
    let asked = redis::cmd("JSON.GET")
        .arg("conserver:probe")
        .query::<Value>(connection);
    match asked {
        Ok(_) => Ok(true),
        // A user who may not use the module keeps none with it.
        Err(error) if is_forbidden(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Every server takes this many bytes: both limits are at least 1 MiB.
const ALWAYS: u64 = 800 << 10;

/// A setting that limits the length of a value, and its default.
struct Setting {
    name: &'static str,
    default: u64,
    /// Eighths of it that are left for the value.
    eighths: u64,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "proto-max-bulk-len",
        default: LARGEST_DOCUMENT,
        eighths: 8,
    },
    // The rest of the request counts, too: keys, and a script with its other arguments.
    Setting {
        name: "client-query-buffer-limit",
        default: 1 << 30,
        eighths: 7,
    },
];

/// Why a value of this many bytes cannot be sent to the server; `None` if it can. A server that does not
/// show its settings to this user is taken to have the defaults.
pub(crate) fn why_too_long(
    connection: &mut Connection,
    length: usize,
) -> RedisResult<Option<String>> {
    let length = length as u64;
    if length <= ALWAYS {
        return Ok(None);
    }
    for setting in &SETTINGS {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg(setting.name);
        let set = match ask.query::<Value>(connection) {
            Ok(answer) => number(answer),
            // It does not know the command, or refuses it.
            Err(error) if error.code().is_some() => None,
            Err(error) => return Err(error),
        };
        if let Some(why) = setting.why_too_long(length, set) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

impl Setting {
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

/// The number in an answer to `CONFIG GET`; `None` if there is none, or if it stands for no limit.
fn number(answer: Value) -> Option<u64> {
    let pair: Vec<String> = redis::from_redis_value(answer).ok()?;
    let [_, text] = <[String; 2]>::try_from(pair).ok()?;
    text.parse().ok().filter(|number| *number > 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_up_to_the_limit_and_not_one_byte_more() {
        let [value, request] = &SETTINGS;
        for (setting, set, longest) in [
            (value, None, 512 << 20),
            (value, Some(1 << 20), 1 << 20),
            (request, None, 7 << 27),
            (request, Some(1 << 20), 7 << 17),
        ] {
            assert_eq!(setting.why_too_long(longest, set), None, "{}", setting.name);
            let why = setting.why_too_long(longest + 1, set).unwrap_or_default();
            assert!(why.contains(setting.name), "{why}");
            assert!(why.contains(&(longest + 1).to_string()), "{why}");
        }
        // What is never asked for fits by the smallest limits that a server may have.
        for setting in &SETTINGS {
            assert_eq!(setting.why_too_long(ALWAYS, Some(1 << 20)), None);
        }
    }

    #[test]
    fn an_answer_without_a_number_leaves_the_default() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pair = |value: &str| Value::Array(vec![text("proto-max-bulk-len"), text(value)]);
        assert_eq!(number(pair("1048576")), Some(1 << 20));
        for answer in [pair("1mb"), pair("0"), Value::Array(Vec::new()), Value::Nil] {
            assert_eq!(number(answer), None);
        }
    }
}
