//! Everything a test needs: private servers, a running daemon, sample vCons, and waiting.
//!
//! Each server and daemon belongs to one test, sits in a folder of its own, and is gone when the
//! test ends, however it ends. A server whose program cannot be found fails the test: nothing is
//! skipped.

mod branch;
mod browser;
mod certificates;
mod claims;
mod collector;
mod config;
mod conserver;
mod daemon;
mod deployment;
mod disk;
mod elastic;
mod files;
mod guard;
mod hook;
mod journal;
mod leash;
mod ledger;
mod mongo;
mod monitor;
mod nginx;
mod pgbouncer;
mod postgres;
mod preload;
mod processes;
mod programs;
mod prometheus;
mod proxy;
mod queues;
mod redis;
mod relay;
mod s3;
mod sentinel;
mod services;
mod shelf;
mod speech;
mod sshd;
mod terminal;
mod vcons;
mod webhook;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use self::postgres::{Database, PASSWORD as POSTGRES_PASSWORD, Postgres};
pub use self::redis::{PASSWORD as REDIS_PASSWORD, Redis, USER as REDIS_USER};
pub use branch::{Branch, Manner};
pub use browser::{Browser, Screen};
pub use certificates::Certificates;
pub use claims::LEASE;
pub use collector::Collector;
pub use config::{chain, delay, stuck};
pub use conserver::{Conserver, Finished, is_fit, run, said};
pub use daemon::Daemon;
pub use deployment::{Call, Deployment};
pub use disk::Disk;
pub use elastic::Elastic;
pub use files::{Blocked, Files};
pub use hook::{Hook, deferring, storage_at};
pub use leash::Leashed;
pub use ledger::Ledger;
pub use mongo::Mongo;
pub use monitor::{Answer, Monitor};
pub use nginx::{Nginx, Terms};
pub use pgbouncer::{PgBouncer, Pooling};
pub use preload::preload;
pub use processes::{
    children_of, command_line_of, descriptors_of, family_of, freeze, is_alive, name_of,
    peak_memory_of, processes_mentioning, resident_set_of, running_in_group, zombies_of,
};
pub use programs::{LINGERING, Programs, exec, wait_until_gone, wait_until_reaped};
pub use prometheus::{Format, Prometheus, Scrape, of_prometheus};
pub use proxy::{Direction, Proxy};
pub use queues::{EXPIRY, lease_of, list, queue, queue_with, server_of};
pub use relay::relay;
pub use s3::{S3, SECRET as S3_SECRET};
pub use sentinel::{MASTER, PASSWORD as SENTINEL_PASSWORD, Sentinel};
pub use services::{Asked, SERVICE_KEY, Scripted, Services};
pub use shelf::Shelf;
pub use speech::{Heard, SPEECH_KEY, Say, Speech, recording};
pub use sshd::Sshd;
pub use terminal::Terminal;
pub use vcons::{Sample, fresh, same, submit};
pub use webhook::{Request, Webhook, reply};

/// How long a test waits for what should take far less: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again whether `condition` holds; the test fails when it does not within `patience`.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < patience,
            "waited {patience:?} in vain until {what}"
        );
        thread::sleep(pause_after(start.elapsed()));
    }
}

/// The pause before the next look, of a test that has waited for so long: other tests need the processors.
fn pause_after(waited: Duration) -> Duration {
    (waited / 40).clamp(Duration::from_millis(5), Duration::from_millis(40))
}

/// Waits until a server that was just started can be used.
fn wait_for_server(name: &str, log: &Path, mut answers: impl FnMut() -> bool) {
    let start = Instant::now();
    while !answers() {
        assert!(
            start.elapsed() < PATIENCE,
            "{name} did not start:\n{}",
            tail(log)
        );
        thread::sleep(pause_after(start.elapsed()));
    }
}

/// A number for the tests that are larger on demand.
pub fn number_from_env(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
        Err(_) => default,
    }
}

/// A port that nothing listens on, below those that the system hands out to clients, so that a
/// server can come back to it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + (process::id() % 180) as u16 * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A new private folder with a short name: paths of Unix sockets are limited to about 100 bytes.
pub fn private_folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("cons")
        .tempdir()
        .expect("a temporary folder")
}

/// A file that `tests/run.sh` has put into its cache.
fn cached(name: &str) -> PathBuf {
    cached_if_there(name)
        .unwrap_or_else(|| panic!("{name} is missing; tests/run.sh installs what the tests need"))
}

/// A file that `tests/run.sh` puts into its cache where it can.
pub fn cached_if_there(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("CONSERVER_TEST_CACHE").map_or_else(
        || {
            let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            base.join("conserver-tests")
        },
        PathBuf::from,
    );
    let path = cache.join(name);
    path.exists().then_some(path)
}

/// A program of the system, searched in PATH and then in `folders`, the later names first.
fn program(name: &str, folders: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(folders.iter().rev().cloned())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!("the program {name} is missing; tests/run.sh installs what the tests need")
    })
}

/// The last lines of a log, for the message of a failed test.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
