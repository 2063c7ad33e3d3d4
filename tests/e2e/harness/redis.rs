//! A private Redis, with or without RedisJSON, TLS, users, persistence.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use redis::{Connection, FromRedisValue, Pipeline, RedisResult};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::guard::{Guard, Launch};
use super::{cached, free_port, private_folder, program, wait_for_server};

/// The user of [`Redis::locked`].
pub const USER: &str = "worker";

/// The password of [`Redis::locked`]: letters only, so that it stands in a URL as it is.
pub const PASSWORD: &str = "GeheimesRedisWort";

/// A Redis server of one test.
pub struct Redis {
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    certificates: Option<Certificates>,
    json: bool,
    locked: bool,
    server: Mutex<Option<Guard>>,
}

impl Redis {
    /// A running server without RedisJSON.
    pub fn plain() -> Self {
        Self::new().started()
    }

    /// A running server with RedisJSON.
    pub fn with_json() -> Self {
        Self::new().json().started()
    }

    /// A server that does not run yet: its port is known and closed.
    pub fn new() -> Self {
        Self {
            folder: private_folder(),
            port: free_port(),
            arguments: Vec::new(),
            certificates: None,
            json: false,
            locked: false,
            server: Mutex::new(None),
        }
    }

    /// With RedisJSON.
    pub fn json(mut self) -> Self {
        self.json = true;
        let module = cached("rejson.so").display().to_string();
        self.with(&["--loadmodule", &module])
    }

    /// Every write is on disk before it is answered.
    pub fn durable(self) -> Self {
        self.with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// The journal on disk keeps every command, with its time.
    pub fn recorded(self) -> Self {
        self.with(&["--auto-aof-rewrite-percentage", "0"])
            .with(&["--aof-timestamp-enabled", "yes"])
    }

    /// TCP is TLS only.
    pub fn tls(mut self) -> Self {
        let certificates = Certificates::make(self.folder.path());
        let (port, shown) = (self.port.to_string(), |path: PathBuf| {
            path.display().to_string()
        });
        let (cert, key, ca) = (
            shown(certificates.certificate()),
            shown(certificates.key()),
            shown(certificates.authority()),
        );
        self.certificates = Some(certificates);
        self.with(&[
            "--port",
            "0",
            "--tls-port",
            &port,
            "--tls-auth-clients",
            "no",
        ])
        .with(&["--tls-cert-file", &cert, "--tls-key-file", &key])
        .with(&["--tls-ca-cert-file", &ca])
    }

    /// Nothing without a password: [`USER`] or the default user, both with [`PASSWORD`].
    pub fn locked(mut self) -> Self {
        self.locked = true;
        let password = format!(">{PASSWORD}");
        self.with(&["--requirepass", PASSWORD])
            .with(&["--user", USER, "on", &password, "~*", "&*", "+@all"])
    }

    /// A copy of another server; it answers once it has copied everything.
    pub fn replica_of(self, master: &Self) -> Self {
        let port = master.port.to_string();
        self.with(&["--replicaof", "127.0.0.1", &port])
    }

    /// With these arguments of the program.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// The same server, running.
    pub fn started(self) -> Self {
        self.start();
        self
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) {
        let log = self.folder.path().join("log");
        let mut command = vec![program("redis-server", &[]).display().to_string()];
        let basics = [
            ("--dir", self.folder.path().display().to_string()),
            ("--unixsocket", self.socket().display().to_string()),
            ("--bind", "127.0.0.1".to_owned()),
            ("--port", self.port.to_string()),
            ("--save", String::new()),
        ];
        command.extend(
            basics
                .into_iter()
                .flat_map(|(key, value)| [key.to_owned(), value]),
        );
        command.extend(self.arguments.iter().cloned());
        let server = Guard::launch(Launch {
            command,
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        });
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_for_server("Redis", &log, || self.try_ask::<String>(&["PING"]).is_ok());
    }

    /// Sends the server a signal that does not end it.
    pub fn signal(&self, signal: Signal) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().expect("Redis runs").signal(signal);
    }

    /// Kills the server without a warning.
    pub fn kill9(&self) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        server.expect("Redis runs").end(Signal::SIGKILL);
    }

    /// Its process.
    #[allow(dead_code)]
    pub fn pid(&self) -> i32 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().expect("Redis runs").pid()
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What `REDIS_URL` says.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let user = if self.locked {
            format!("{USER}:{PASSWORD}@")
        } else {
            String::new()
        };
        format!("{scheme}://{user}127.0.0.1:{}", self.port)
    }

    /// The private folder that it keeps its data in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The certificate to trust, where it speaks TLS.
    pub fn authority(&self) -> PathBuf {
        self.certificates.as_ref().expect("TLS").authority()
    }

    /// Whether it has RedisJSON.
    pub fn has_json(&self) -> bool {
        self.json
    }

    /// Whether it wants a password.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// A connection of the test's own, over the Unix socket.
    pub fn connection(&self) -> Connection {
        self.try_connection(0).expect("a connection to Redis")
    }

    /// A connection of the test's own, or why there is none.
    pub fn try_connect(&self) -> RedisResult<Connection> {
        self.try_connection(0)
    }

    fn try_connection(&self, database: u32) -> RedisResult<Connection> {
        let mut url = format!("unix://{}?db={database}", self.socket().display());
        if self.locked {
            url += &format!("&pass={PASSWORD}");
        }
        redis::Client::open(url)?.get_connection()
    }

    /// The answer to one command.
    pub fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command)
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The answer to one command in another database than 0.
    pub fn ask_in<T: FromRedisValue>(&self, database: u32, command: &[&str]) -> T {
        let mut connection = self
            .try_connection(database)
            .expect("a connection to Redis");
        query(&mut connection, command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The answer to one command, or why there is none.
    pub fn try_ask<T: FromRedisValue>(&self, command: &[&str]) -> RedisResult<T> {
        query(&mut self.try_connection(0)?, command)
    }

    /// How often the server has run a command, in scripts or alone; 0 if never.
    pub fn has_run(&self, command: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&start));
        let calls = line.and_then(|line| line.split(',').next()?.parse().ok());
        calls.unwrap_or(0)
    }

    /// The length of a list.
    pub fn length(&self, list: &str) -> usize {
        self.ask(&["LLEN", list])
    }

    /// The entries of a list.
    pub fn list(&self, list: &str) -> Vec<String> {
        self.ask(&["LRANGE", list, "0", "-1"])
    }

    /// The names of the keys like `pattern`.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.ask(&["KEYS", pattern])
    }

    /// The document of a vCon, parsed.
    pub fn document(&self, id: &str) -> Option<serde_json::Value> {
        self.documents(&[id]).pop().flatten()
    }

    /// The documents of these vCons, parsed.
    pub fn documents(&self, ids: &[&str]) -> Vec<Option<serde_json::Value>> {
        let key = |id: &str| format!("vcon:{id}");
        let types: Vec<String> = self.ask_of_each(ids, |id, ask| ask.cmd("TYPE").arg(key(id)));
        let is_json = |id: &str| {
            let place = ids.iter().position(|it| *it == id);
            place.is_some_and(|place| types[place] == "ReJSON-RL")
        };
        let texts: Vec<Option<String>> = self.ask_of_each(ids, |id, ask| {
            let read = if is_json(id) { "JSON.GET" } else { "GET" };
            ask.cmd(read).arg(key(id))
        });
        let parsed = |text: String| serde_json::from_str(&text).expect("JSON");
        texts.into_iter().map(|text| text.map(parsed)).collect()
    }

    /// The entries of a list for each of these vCons; `name` gives its key.
    pub fn lists(&self, ids: &[&str], name: impl Fn(&str) -> String) -> Vec<Vec<String>> {
        self.ask_of_each(ids, |id, ask| {
            ask.cmd("LRANGE").arg(name(id)).arg(0).arg(-1)
        })
    }

    /// One question for each vCon, all in one round trip.
    fn ask_of_each<T: FromRedisValue>(
        &self,
        ids: &[&str],
        ask: impl for<'a> Fn(&str, &'a mut Pipeline) -> &'a mut Pipeline,
    ) -> Vec<T> {
        let mut steps = redis::pipe();
        for id in ids {
            ask(id, &mut steps);
        }
        let answers = steps.query(&mut self.connection());
        answers.expect("Redis answers")
    }
}

fn query<T: FromRedisValue>(connection: &mut Connection, command: &[&str]) -> RedisResult<T> {
    let mut request = redis::cmd(command[0]);
    for argument in &command[1..] {
        request.arg(argument);
    }
    request.query(connection)
}
