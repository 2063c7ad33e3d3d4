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
//! What an error means for the vCon, and what a person can do about it:
//!
//! | error | met while | class |
//! |---|---|---|
//! | the document is longer than its limits allow, or `string exceeds maximum allowed size`, `invalid bulk length` | saving | refused |
//! | `WRONGTYPE`: something else has the vCon's key | reading | refused |
//! | a document that is not UTF-8 | reading | permanent |
//! | all others: not reached, not trusted, login refused, no right (NOPERM), out of memory (OOM), read-only, loading, disk full (MISCONF), a cluster (MOVED), … | anything | transient |
//!
//! A connection that was cut, or to a server that is not the master any more, is dropped.

use std::time::Duration;

use redis::{Cmd, RedisError, Value};

use super::Storage;
use super::timed_call::TimedCalls;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::options::Options;
use crate::redis_server::{
    ConnectError, RedisConnection, Server, in_its_words, needs_another, why_too_long,
};
use crate::settings::RedisUrl;
use crate::vcon::{Outgoing, VconId};

/// How much longer than its time on the socket a call may take, for name resolution.
const GRACE: Duration = Duration::from_secs(5);

/// The longest that a probe takes.
const PROBE: Duration = Duration::from_secs(5);

/// The longest time to live, in seconds: some ten years.
const LONGEST: i64 = 315_360_000;

/// The name that `CLIENT LIST` shows.
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
        timed_calls: TimedCalls::new(),
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
    timed_calls: TimedCalls,
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
        self.run(RedisStep::Save, &what, command, self.timeout, deadline)
            .map(drop)
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let mut get = redis::cmd("GET");
        get.arg(self.key(id));
        let what = format!("read vCon {id}");
        match self.run(RedisStep::Read, &what, (get, 0), self.timeout, deadline)? {
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
        self.run(
            RedisStep::Delete,
            &what,
            command,
            self.timeout,
            Deadline::NONE,
        )
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
        self.run(RedisStep::Probe, "write", (set, 0), limit, Deadline::NONE)
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

    /// Runs the command, which has a value of this many bytes, on the kept connection or on a new one. A
    /// kept connection may have died since its last use, or its server may no longer be the master: then
    /// the command, which is idempotent, is sent again on a new connection.
    fn run(
        &mut self,
        step: RedisStep,
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
            // The time limits of sockets count for each read and write alone.
            let limit = deadline.begin(own + GRACE);
            let on_socket = Self::on_socket(own, limit);
            let (lease, back, result) = self.timed_calls.run(&name, limit, move || {
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

    /// The time limit of the socket, whose error says more. If less time is left, it only ends a call
    /// that is left behind.
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
        self.timed_calls
            .run(&format!("{message} (connecting)"), limit, move || {
                server.connect_for(NAME, on_socket)
            })?
            .map_err(|error| unreachable(&message, &error))
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

/// The step of an operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RedisStep {
    /// Writing a document.
    Save,
    /// Reading one.
    Read,
    /// Removing one.
    Delete,
    /// Probing.
    Probe,
}

/// The failure of one command; `message` says what could not be done.
fn failure(step: RedisStep, message: &str, error: &RedisError) -> Failure {
    let text = with_advice(format!("{message}: {}", in_its_words(error)));
    if is_the_vcons(step, error) {
        Failure::refused(text)
    } else {
        Failure::transient(text)
    }
}

/// The failure to connect: no vCon is to blame.
fn unreachable(message: &str, error: &ConnectError) -> Failure {
    let text = match error {
        // The server is named in the message.
        ConnectError::Unreachable { cause, .. } => format!("{message}: {}", in_its_words(cause)),
        ConnectError::NoMaster { faults, .. } => format!("{message}: {faults}"),
    };
    Failure::transient(with_advice(text))
}

/// Whether the connection is of no use after this error.
fn breaks_connection(error: &RedisError) -> bool {
    match error.clone().into_server_errors() {
        Some(errors) => errors
            .iter()
            .any(|(_, error)| needs_another(error) || is_about_size(error.details())),
        None => true,
    }
}

/// The table in the module's head.
fn is_the_vcons(step: RedisStep, error: &RedisError) -> bool {
    let answered = error.clone().into_server_errors().unwrap_or_default();
    answered.iter().any(|(_, error)| match step {
        RedisStep::Save => is_about_size(error.details()),
        RedisStep::Read => error.code() == "WRONGTYPE",
        RedisStep::Delete | RedisStep::Probe => false,
    })
}

fn is_about_size(details: Option<&str>) -> bool {
    let details = details.unwrap_or_default();
    ["exceeds maximum allowed size", "invalid bulk length"]
        .iter()
        .any(|text| details.contains(text))
}

fn with_advice(text: String) -> String {
    match advice(&text) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

fn advice(text: &str) -> Option<&'static str> {
    let advices = [
        (
            &["WRONGPASS", "NOAUTH", "AuthenticationFailed", "AUTH failed"][..],
            "see to user and password in `redis_url`",
        ),
        (
            &["NOPERM"],
            "allow this user SET, GET and DEL on the keys of `prefix`",
        ),
        (&["OOM "], "raise its maxmemory, or lower `expires`"),
        (&["READONLY"], "it is a replica: see to `redis_url`"),
        (
            &["MOVED ", "ASK "],
            "it is part of a Redis Cluster, which this storage does not use",
        ),
        (&["MISCONF"], "see to its disk and its log"),
    ];
    advices
        .iter()
        .find(|(words, _)| words.iter().any(|word| text.contains(word)))
        .map(|(_, advice)| *advice)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io;

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

    /// The error of a command that the server answers with this line.
    fn answered(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).err();
        error.unwrap_or_else(|| panic!("{line} is no error"))
    }

    #[test]
    fn errors_are_classified_as_the_table_says() {
        use RedisStep::{Delete, Probe, Read, Save};
        let size = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
        let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
        for (line, permanent_at) in [
            (size, &[Save][..]),
            ("ERR Protocol error: invalid bulk length", &[Save]),
            (wrong, &[Read]),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                &[],
            ),
            ("READONLY You can't write against a read only replica.", &[]),
            (
                "NOPERM this user has no permissions to run the 'set' command",
                &[],
            ),
            ("NOAUTH Authentication required.", &[]),
            ("LOADING Redis is loading the dataset in memory", &[]),
            (
                "MISCONF Redis is configured to save RDB snapshots, but",
                &[],
            ),
            ("MOVED 3999 127.0.0.1:6381", &[]),
            ("ERR something new", &[]),
        ] {
            for step in [Save, Read, Delete, Probe] {
                let failure = failure(step, "it failed", &answered(line));
                let expected = !permanent_at.contains(&step);
                assert_eq!(failure.is_transient(), expected, "{step:?} {line}");
                let word = line.split(' ').next().unwrap_or_default();
                assert!(failure.message.contains(word), "{failure}");
            }
        }
        let cut = RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert!(failure(Save, "it failed", &cut).is_transient());
        assert!(breaks_connection(&cut));
    }

    #[test]
    fn a_connection_is_dropped_if_the_server_has_ended_it_or_is_not_the_one() {
        for (line, breaks) in [
            ("ERR string exceeds maximum allowed size (512MB)", true),
            ("ERR Protocol error: invalid bulk length", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            ("MASTERDOWN Link with MASTER is down", true),
            ("NOAUTH Authentication required.", true),
            ("WRONGPASS invalid username-password pair", true),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                false,
            ),
            ("WRONGTYPE Operation against a key", false),
            ("LOADING Redis is loading the dataset in memory", false),
            ("ERR something new", false),
        ] {
            assert_eq!(breaks_connection(&answered(line)), breaks, "{line}");
        }
    }

    #[test]
    fn a_server_that_is_not_reached_is_the_fault_of_the_place() {
        let cause = RedisError::from((
            redis::ErrorKind::AuthenticationFailed,
            "Password authentication failed",
        ));
        let refused = ConnectError::Unreachable {
            server: "h:1".to_owned(),
            cause,
        };
        let failure = unreachable("could not save", &refused);
        assert!(failure.is_transient());
        let start = "could not save: Password authentication failed";
        assert!(failure.message.starts_with(start), "{failure}");
        assert!(!failure.message.contains("h:1"), "{failure}");
        assert!(
            failure.message.contains("see to user and password"),
            "{failure}"
        );
        let lost = ConnectError::NoMaster {
            server: "m".to_owned(),
            faults: "s:1: refused".to_owned(),
        };
        let failure = unreachable("could not save", &lost);
        assert_eq!(failure, Failure::transient("could not save: s:1: refused"));
    }

    #[test]
    fn what_a_person_can_mend_is_said() {
        let user = "see to user and password in `redis_url`";
        let cluster = "it is part of a Redis Cluster, which this storage does not use";
        for (line, advice) in [
            ("WRONGPASS invalid username-password pair", user),
            ("NOAUTH Authentication required.", user),
            ("ERR AUTH failed: WRONG", user),
            (
                "NOPERM no permissions",
                "allow this user SET, GET and DEL on the keys of `prefix`",
            ),
            (
                "OOM command not allowed",
                "raise its maxmemory, or lower `expires`",
            ),
            (
                "READONLY You can't write",
                "it is a replica: see to `redis_url`",
            ),
            ("MOVED 1 h:1", cluster),
            ("ASK 1 h:1", cluster),
            ("MISCONF Redis is configured", "see to its disk and its log"),
        ] {
            let failure = failure(RedisStep::Save, "it failed", &answered(line));
            assert!(failure.message.starts_with("it failed: "), "{failure}");
            assert!(
                failure.message.ends_with(&format!("; {advice}")),
                "{failure}"
            );
        }
        let other = failure(RedisStep::Save, "it failed", &answered("ERR something new"));
        assert_eq!(other.message, "it failed: ERR something new");
    }
}
