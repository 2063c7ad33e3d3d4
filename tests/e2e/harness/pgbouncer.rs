//! A private PgBouncer before a PostgreSQL of a test.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use nix::unistd::chown;
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::postgres::{PASSWORD, USER, unprivileged};
use super::{free_port, private_folder, program, wait_for_server};

/// When a connection to the server goes to another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// After each transaction.
    Transaction,
    /// When its client leaves.
    Session,
}

/// A pooler, on 127.0.0.1.
pub struct PgBouncer {
    folder: TempDir,
    port: u16,
    server: Mutex<Option<Guard>>,
}

impl PgBouncer {
    /// Starts one before the server on this port, with so many connections for each database, and
    /// these settings, as in `ignore_startup_parameters = options`.
    pub fn before(server: u16, pooling: Pooling, size: usize, settings: &[&str]) -> Self {
        let folder = private_folder();
        let port = free_port();
        let path = folder.path().display();
        let pool_mode = match pooling {
            Pooling::Transaction => "transaction",
            Pooling::Session => "session",
        };
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = {path}/users\npool_mode = {pool_mode}\ndefault_pool_size = {size}\n\
             max_client_conn = 300\nserver_login_retry = 1\n{}\n",
            settings.join("\n")
        );
        fs::write(folder.path().join("pgbouncer.ini"), config).expect("a file");
        let users = format!("\"{USER}\" \"{PASSWORD}\"\n");
        fs::write(folder.path().join("users"), users).expect("a file");
        let bouncer = Self {
            folder,
            port,
            server: Mutex::new(None),
        };
        bouncer.start();
        bouncer
    }

    /// The port that clients are to use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in the middle of its work, and starts it again.
    pub fn restart(&self) {
        let server = self.lock().take();
        server.expect("PgBouncer runs").end(Signal::SIGKILL);
        self.start();
    }

    /// Stops the process where it is, until [`PgBouncer::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// How many of its connections, to clients and to the server, have ended.
    pub fn closings(&self) -> usize {
        let log = fs::read_to_string(self.folder.path().join("log")).expect("a file");
        log.matches("closing because").count()
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        self.lock().as_ref().expect("PgBouncer runs").signal(signal);
    }

    fn start(&self) {
        let log = self.folder.path().join("log");
        let config = self.folder.path().join("pgbouncer.ini");
        let program: PathBuf = program("pgbouncer", &["/usr/sbin".into()]);
        // It refuses to run as root.
        let owner = nix::unistd::geteuid().is_root().then(unprivileged);
        if let Some((user, group)) = owner {
            let ids = (Some(user.into()), Some(group.into()));
            for path in [
                self.folder.path().to_owned(),
                self.folder.path().join("users"),
            ] {
                chown(&path, ids.0, ids.1).expect("chown");
            }
        }
        let server = Guard::launch(Launch {
            command: [program, config]
                .map(|part| part.display().to_string())
                .to_vec(),
            log: &log,
            // One that is stopped ends by no other.
            signal: "KILL",
            owner,
            cleanup: None,
        });
        *self.lock() = Some(server);
        wait_for_server("PgBouncer", &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Guard>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
