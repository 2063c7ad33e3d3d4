//! A private sentinel, which makes a replica the master when the master is away.

use redis::{Connection, RedisResult};
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::{
    PATIENCE, REDIS_PASSWORD, REDIS_USER, Redis, free_port, private_folder, program,
    wait_for_server, wait_until,
};

/// The name under which sentinels know the master.
pub const MASTER: &str = "calls";

/// The password of [`Sentinel::locked`]: letters only, so that it stands in a URL as it is.
pub const PASSWORD: &str = "GeheimesWaechterWort";

/// A sentinel that decides alone.
pub struct Sentinel {
    _folder: TempDir,
    port: u16,
    password: Option<&'static str>,
    _server: Guard,
}

impl Sentinel {
    /// A sentinel that watches this master and its replicas; it knows all of them.
    pub fn watching(master: &Redis, replicas: usize) -> Self {
        Self::start(master, replicas, None)
    }

    /// The same, with [`PASSWORD`].
    pub fn locked(master: &Redis, replicas: usize) -> Self {
        Self::start(master, replicas, Some(PASSWORD))
    }

    fn start(master: &Redis, replicas: usize, password: Option<&'static str>) -> Self {
        let (folder, port) = (private_folder(), free_port());
        let path = folder.path().to_owned();
        let mut lines = vec![
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", path.display()),
            format!("sentinel monitor {MASTER} 127.0.0.1 {} 1", master.port()),
            format!("sentinel down-after-milliseconds {MASTER} 1000"),
            format!("sentinel failover-timeout {MASTER} 3000"),
        ];
        if master.is_locked() {
            lines.push(format!("sentinel auth-user {MASTER} {REDIS_USER}"));
            lines.push(format!("sentinel auth-pass {MASTER} {REDIS_PASSWORD}"));
        }
        lines.extend(password.map(|password| format!("requirepass {password}")));
        let file = path.join("sentinel.conf");
        std::fs::write(&file, lines.join("\n")).expect("a file");
        let log = path.join("log");
        let server = Guard::launch(Launch {
            command: vec![
                program("redis-sentinel", &[]).display().to_string(),
                file.display().to_string(),
            ],
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        });
        let sentinel = Self {
            _folder: folder,
            port,
            password,
            _server: server,
        };
        wait_for_server("The sentinel", &log, || sentinel.master_port().is_ok());
        wait_until("the sentinel knows the replicas", PATIENCE, || {
            sentinel.knows_replicas() == replicas
        });
        sentinel
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the server that it takes for the master.
    pub fn master_port(&self) -> RedisResult<u16> {
        let (_, port): (String, u16) = redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(MASTER)
            .query(&mut self.connection()?)?;
        Ok(port)
    }

    /// Has it make a replica the master although the master lives.
    pub fn fail_over(&self) {
        let mut connection = self.connection().expect("a connection");
        redis::cmd("SENTINEL")
            .arg("FAILOVER")
            .arg(MASTER)
            .query::<()>(&mut connection)
            .expect("a failover");
    }

    fn knows_replicas(&self) -> usize {
        let answer = self.connection().and_then(|mut connection| {
            redis::cmd("SENTINEL")
                .arg("REPLICAS")
                .arg(MASTER)
                .query::<Vec<redis::Value>>(&mut connection)
        });
        answer.map_or(0, |replicas| replicas.len())
    }

    fn connection(&self) -> RedisResult<Connection> {
        let login = self
            .password
            .map(|password| format!(":{password}@"))
            .unwrap_or_default();
        redis::Client::open(format!("redis://{login}127.0.0.1:{}", self.port))?.get_connection()
    }
}
