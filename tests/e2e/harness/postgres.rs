//! A private PostgreSQL: one for all tests with a database for each, and own ones to stop.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::Signal;
use postgres::{Client, Config, NoTls};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::guard::{Guard, Launch};
use super::{free_port, private_folder, program, wait_for_server};

/// The password of the user [`USER`], which the server insists on.
pub const PASSWORD: &str = "GeheimesPostgresWort";

/// The user of the tests, who may do everything.
pub(super) const USER: &str = "keeper";

/// A PostgreSQL server.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    owner: Option<(u32, u32)>,
    shared: bool,
    certificates: Option<Certificates>,
    settings: Vec<String>,
    server: Mutex<Option<Guard>>,
}

/// A database on a server, empty at first.
pub struct Database<'a> {
    server: &'a Postgres,
    name: String,
}

impl Postgres {
    /// An empty database on the server that all tests share.
    pub fn database() -> Database<'static> {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::make(true, false, &[]))
            .new_database()
    }

    /// A server of the test's own.
    pub fn own() -> Self {
        Self::make(false, false, &[])
    }

    /// A server of the test's own with these settings, as in `max_connections=10`.
    pub fn with(settings: &[&str]) -> Self {
        Self::make(false, false, settings)
    }

    /// A server of the test's own that speaks TLS as well.
    pub fn with_tls() -> Self {
        Self::make(false, true, &[])
    }

    fn make(shared: bool, tls: bool, settings: &[&str]) -> Self {
        let folder = private_folder();
        // PostgreSQL refuses to run as root.
        let owner = (folder.path().metadata().expect("a folder").uid() == 0).then(unprivileged);
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group)).expect("chown");
        }
        let mut server = Self {
            port: free_port(),
            owner,
            shared,
            certificates: tls.then(|| Certificates::make(folder.path())),
            settings: settings.iter().map(ToString::to_string).collect(),
            server: Mutex::new(None),
            folder,
        };
        server.hand_over_key();
        server.initialise();
        server.start();
        server
    }

    /// The server insists on a key that only its user can read.
    fn hand_over_key(&mut self) {
        let Some(certificates) = &self.certificates else {
            return;
        };
        let key = certificates.key();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a file");
        if let Some((user, group)) = self.owner {
            chown(&key, Some(user), Some(group)).expect("chown");
        }
        self.settings.push("ssl=on".to_owned());
        for (name, file) in [
            ("ssl_cert_file", certificates.certificate()),
            ("ssl_key_file", key),
        ] {
            self.settings.push(format!("{name}={}", file.display()));
        }
    }

    fn initialise(&self) {
        use std::os::unix::process::CommandExt;
        let password = self.folder.path().join("password");
        fs::write(&password, PASSWORD).expect("a file");
        if let Some((user, group)) = self.owner {
            chown(&password, Some(user), Some(group)).expect("chown");
        }
        let mut initdb = Command::new(tool("initdb"));
        initdb
            .args([
                "--no-sync",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .args(["--username", USER, "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(self.data())
            .current_dir("/");
        if let Some((user, group)) = self.owner {
            initdb.uid(user).gid(group);
        }
        let output = initdb.output().expect("initdb");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "initdb: {said}");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) {
        let log = self.folder.path().join("log");
        let settings = [
            "fsync=off".to_owned(),
            "max_connections=200".to_owned(),
            "listen_addresses=127.0.0.1,127.0.0.2".to_owned(),
            format!("unix_socket_directories={}", self.folder.path().display()),
            format!("port={}", self.port),
        ];
        let mut command = vec![
            tool("postgres").display().to_string(),
            "-D".to_owned(),
            self.data().display().to_string(),
        ];
        command.extend(
            settings
                .into_iter()
                .chain(self.settings.iter().cloned())
                .flat_map(|setting| ["-c".to_owned(), setting]),
        );
        let server = Guard::launch(Launch {
            command,
            log: &log,
            signal: "INT",
            owner: self.owner,
            cleanup: self.shared.then(|| self.folder.path().to_owned()),
        });
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        let answers = || self.config("postgres").connect(NoTls).is_ok();
        wait_for_server("PostgreSQL", &log, answers);
    }

    /// Stops the server; its sessions are ended.
    pub fn stop(&self) {
        self.end(Signal::SIGINT);
    }

    /// Stops the server as a crash would: it has to recover when it starts again.
    pub fn crash(&self) {
        self.end(Signal::SIGQUIT);
    }

    fn end(&self, signal: Signal) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        server.expect("PostgreSQL runs").end(signal);
    }

    /// For measurements: its process.
    #[allow(dead_code)]
    pub fn pid(&self) -> i32 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().expect("PostgreSQL runs").pid()
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces who may come in and how, as in `pg_hba.conf`, for the test user and others.
    pub fn let_in(&self, rules: &str) {
        let file = self.data().join("pg_hba.conf");
        let text = format!("local all {USER} scram-sha-256\n{rules}\n");
        fs::write(file, text).expect("a file");
        let mut client = self.config("postgres");
        client.host_path(self.socket_folder());
        let mut client = client.connect(NoTls).expect("a session");
        client
            .batch_execute("SELECT pg_reload_conf()")
            .expect("a reload");
    }

    /// The authority that signed its certificate.
    pub fn authority(&self) -> PathBuf {
        self.certificates.as_ref().expect("TLS").authority()
    }

    /// An empty database on this server.
    pub fn new_database(&self) -> Database<'_> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        self.create_database(&format!("calls_{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// An empty database of this name on this server.
    pub fn create_database(&self, name: &str) -> Database<'_> {
        let name = name.to_owned();
        let mut client = self.config("postgres").connect(NoTls).expect("a session");
        let create = format!("CREATE DATABASE {name}");
        client.batch_execute(&create).expect("a database");
        Database { server: self, name }
    }

    fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).dbname(database);
        config.user(USER).password(PASSWORD);
        config
    }
}

impl Database<'_> {
    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.postgres", "options": {
            "host": "127.0.0.1", "port": self.server.port.to_string(), "database": self.name,
            "user": USER, "password": PASSWORD,
        }})
    }

    /// The storage with some options set or replaced.
    pub fn storage_with(&self, options: Value) -> Value {
        let mut storage = self.storage();
        for (key, value) in options.as_object().expect("a mapping") {
            storage["options"][key] = value.clone();
        }
        storage
    }

    /// The port of its server.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs statements in a session of the test's own.
    pub fn execute(&self, statements: &str) {
        self.client()
            .batch_execute(statements)
            .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// A session of the test's own through a pooler or a proxy on this port.
    pub fn client_at(&self, port: u16) -> Client {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).dbname(&self.name);
        config.user(USER).password(PASSWORD);
        config.connect(NoTls).expect("a session")
    }

    /// The processes of the server that serve the storage in this database.
    pub fn backends(&self) -> Vec<i32> {
        let select = "SELECT pid FROM pg_stat_activity \
                      WHERE datname = current_database() AND application_name = 'conserver'";
        let rows = self.client().query(select, &[]).expect("the sessions");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// A user with the password [`PASSWORD`] who may do in this database what the storage needs.
    pub fn new_user(&self) -> String {
        let user = format!("clerk_{}", self.name);
        self.execute(&format!(
            "CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'; GRANT ALL ON SCHEMA public TO {user}"
        ));
        user
    }

    /// A session of the test's own.
    pub fn client(&self) -> Client {
        self.server
            .config(&self.name)
            .connect(NoTls)
            .expect("a session")
    }

    /// Every row: its id and its document.
    pub fn rows(&self) -> Vec<(String, Value)> {
        self.rows_of("vcons")
    }

    /// The same of another table.
    pub fn rows_of(&self, table: &str) -> Vec<(String, Value)> {
        let select = format!("SELECT id::text, vcon_json::text FROM {table} WHERE id = uuid");
        let rows = self.client().query(&select, &[]).expect("the table");
        let parsed = |text: &str| serde_json::from_str(text).expect("JSON");
        rows.iter()
            .map(|row| (row.get(0), parsed(row.get(1))))
            .collect()
    }
}

fn tool(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = Vec::new();
    for (base, suffix) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin")] {
        let Ok(entries) = Path::new(base).read_dir() else {
            continue;
        };
        let versions = entries.flatten().map(|entry| entry.path());
        let named =
            |path: &PathBuf| base != "/usr" || path.display().to_string().starts_with("/usr/pgsql");
        folders.extend(versions.filter(named).map(|version| version.join(suffix)));
    }
    folders.sort();
    program(name, &folders)
}

/// A user and group without rights: those of PostgreSQL's package, else nobody's.
pub(super) fn unprivileged() -> (u32, u32) {
    let id = |flag: &str, user: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, user]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    let user = |user: &str| Some((id("-u", user)?, id("-g", user)?));
    user("postgres")
        .or_else(|| user("nobody"))
        .expect("a user who is not root")
}
