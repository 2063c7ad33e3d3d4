//! `storage.redis_storage`: one string for each vCon in a Redis server, which expires.
//!
//! Layout: the document under the key `<prefix>:<uuid>`.
//!
//! | option | default | |
//! |---|---|---|
//! | `redis_url` | `REDIS_URL`, else `redis://localhost` | as in `REDIS_URL`: TLS, Unix sockets, sentinels, parameters |
//! | `prefix` | `vcon_storage` | not `vcon`: the vCons in work have that |
//! | `expires` | `604800` | seconds from the latest save; 0: never |
//! | `timeout` | `30` | seconds for connecting, and for each command |
//!
//! Which errors are transient and which permanent stands in one table, in the module `fault`.

mod fault;

use std::time::Duration;

use redis::{Cmd, RedisError, Value};

use self::fault::{Step, breaks_connection, failure};
use super::Storage;
use super::bounded::Bounded;
use crate::config::Options;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::redis_server::{RedisConnection, Server, why_too_long};
use crate::settings::RedisUrl;
use crate::vcon::{Outgoing, VconId};

/// What a call gets beyond the time it has on the socket, for the resolution of names.
const GRACE: Duration = Duration::from_secs(5);

/// The longest that a probe takes.
const PROBE: Duration = Duration::from_secs(5);

/// The longest time to live, in seconds: some ten years.
const LONGEST: i64 = 315_360_000;

/// What `CLIENT LIST` shows.
const NAME: &str = "conserver:storage";

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let url = url(options);
    let server = Server::new(&url);
    if let Err(error) = &server {
        options.fault("redis_url", error.to_string());
    }
    let prefix = options.string_or("prefix", "vcon_storage");
    if prefix.is_empty() {
        options.fault("prefix", "is empty");
    } else if prefix == "vcon" {
        options.fault("prefix", "is that of the vCons in work, choose another one");
    }
    let expires = options.integer_or("expires", 604_800, 0..=LONGEST);
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    Box::new(RedisStorage {
        name: format!("Redis {url}"),
        server: server.ok(),
        prefix,
        expires,
        timeout,
        lease: None,
        bounded: Bounded::new(),
    })
}

/// The address of the server; without the option, that of the Redis of this deployment.
fn url(options: &mut Options) -> RedisUrl {
    let given = options.secret("redis_url");
    let text = match &given {
        Some(secret) => secret.reveal().to_owned(),
        None => std::env::var("REDIS_URL").unwrap_or_default(),
    };
    if given.is_none() && text.is_empty() {
        return RedisUrl::default();
    }
    text.parse().unwrap_or_else(|error| {
        options.fault(
            "redis_url",
            format!("is not a URL like redis://[user:password@]host[:port][/db]: {error}"),
        );
        RedisUrl::default()
    })
}

struct RedisStorage {
    /// What messages call it.
    name: String,
    /// `None` after a fault in the options.
    server: Option<Server>,
    prefix: String,
    expires: i64,
    timeout: Duration,
    lease: Option<RedisConnection>,
    bounded: Bounded,
}

impl Storage for RedisStorage {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let mut set = redis::cmd("SET");
        set.arg(self.key(&vcon.id)).arg(&vcon.json);
        if self.expires > 0 {
            set.arg("EX").arg(self.expires);
        }
        let what = format!("save vCon {}", vcon.id);
        let command = (set, vcon.json.len());
        self.run(Step::Save, &what, command, self.timeout, deadline)
            .map(drop)
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let mut get = redis::cmd("GET");
        get.arg(self.key(id));
        let what = format!("read vCon {id}");
        match self.run(Step::Read, &what, (get, 0), self.timeout, deadline)? {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| {
                Failure::permanent(format!("{}: it is not UTF-8", self.message(&what)))
            }),
            _ => Err(Failure::transient(format!(
                "{}: the answer is no string",
                self.message(&what)
            ))),
        }
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let mut delete = redis::cmd("DEL");
        delete.arg(self.key(id));
        let what = format!("delete vCon {id}");
        let command = (delete, 0);
        self.run(Step::Delete, &what, command, self.timeout, Deadline::NONE)
            .map(drop)
    }

    /// A command on a connection that turns out to be of no use, a new connection, and the command
    /// once more.
    fn longest_call(&self) -> Duration {
        (self.timeout + GRACE).saturating_mul(3)
    }

    /// Writes an empty string that is gone after a millisecond: that needs a server that takes
    /// writes, memory, and the rights.
    fn probe(&mut self) -> Result<(), Failure> {
        let mut set = redis::cmd("SET");
        set.arg(format!("{}:probe", self.prefix)).arg("");
        set.arg("PX").arg(1);
        let limit = self.timeout.min(PROBE);
        self.run(Step::Probe, "write", (set, 0), limit, Deadline::NONE)
            .map(drop)
    }
}

impl RedisStorage {
    fn key(&self, id: &VconId) -> String {
        format!("{}:{id}", self.prefix)
    }

    fn message(&self, what: &str) -> String {
        format!("{}: could not {what}", self.name)
    }

    /// Runs the command, which has a value of this many bytes, on the kept connection, or a new one. A kept connection may have died
    /// since its last use, or its server may no longer be the master; each command is idempotent,
    /// and is then sent once more on a new one.
    fn run(
        &mut self,
        step: Step,
        what: &str,
        (mut command, length): (Cmd, usize),
        own: Duration,
        deadline: Deadline,
    ) -> Result<Value, Failure> {
        loop {
            let (mut lease, kept) = match self.lease.take() {
                Some(lease) => (lease, true),
                None => (self.connect(what, own, deadline)?, false),
            };
            let name = self.message(what);
            // Of the time limits of sockets, each counts for one read or write alone.
            let limit = deadline.begin(own + GRACE);
            let on_socket = Self::on_socket(own, limit);
            let (lease, back, result) = self.bounded.run(&name, limit, move || {
                let result = lease
                    .limit(on_socket)
                    .and_then(|()| send(&mut lease, &command, length));
                (lease, command, result)
            })?;
            command = back;
            let broken = result.as_ref().is_err_and(breaks_connection);
            if !broken {
                self.lease = Some(lease);
            }
            match result {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(why)) => return Err(Failure::refused(format!("{name}: {why}"))),
                Err(error) if broken && kept => {
                    log::debug!("{name}: {error}; connecting anew");
                }
                Err(error) => return Err(failure(step, &name, &error)),
            }
        }
    }

    /// The limit of the socket, which says more when it is reached. Where less is left, it only ends
    /// a call that is left behind.
    fn on_socket(own: Duration, limit: Limit) -> Duration {
        own.min(limit.left() + Duration::from_secs(1))
    }

    fn connect(
        &mut self,
        what: &str,
        own: Duration,
        deadline: Deadline,
    ) -> Result<RedisConnection, Failure> {
        let message = self.message(what);
        let Some(server) = self.server.clone() else {
            return Err(Failure::transient(format!("{message}: no server")));
        };
        let limit = deadline.begin(own + GRACE);
        let on_socket = Self::on_socket(own, limit);
        self.bounded
            .run(&format!("{message} (connecting)"), limit, move || {
                server.connect_for(NAME, on_socket)
            })?
            .map_err(|error| fault::unreachable(&message, &error))
    }
}

/// Sends a command with a value of this many bytes, or says why the server cannot take that.
fn send(
    lease: &mut RedisConnection,
    command: &Cmd,
    length: usize,
) -> Result<Result<Value, String>, RedisError> {
    match why_too_long(lease, length)? {
        Some(why) => Ok(Err(why)),
        None => command.query(lease).map(Ok),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn options_that_make_no_sense_are_faults_that_show_no_password() {
        for (text, fault) in [
            (
                "redis_url: http://u:hunter2@h",
                "redis_url: is not a URL like redis://",
            ),
            (
                "redis_url: redis+sentinel://u:hunter2@h",
                "redis_url: is not a URL like redis://",
            ),
            ("redis_url: ''", "redis_url: is not a URL like redis://"),
            ("prefix: ''", "prefix: is empty"),
            ("prefix: vcon", "prefix: is that of the vCons in work"),
            ("expires: -1", "expires: \"-1\" is not a whole number"),
            ("timeout: 0", "timeout: must be more than 0"),
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            options.finish();
            let faults = options.faults();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(fault), "{faults:?}");
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
    }

    #[test]
    fn every_form_of_a_redis_url_is_taken() {
        for text in [
            "redis_url: redis://:pw@h:1/2",
            "redis_url: rediss://h",
            "redis_url: unix:///run/r.sock?db=1",
            "redis_url: 'redis+sentinel://a,b/main'",
            "{}",
            "{redis_url: 'redis://h', prefix: a b, expires: '0', timeout: 0.5}",
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            options.finish();
            assert_eq!(options.faults(), Vec::<String>::new(), "{text}");
        }
    }
}
