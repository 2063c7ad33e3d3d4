//! The two processes of the demonstration, each ended when its value is dropped.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{DemoError, wait_for};
use crate::child::MONITOR_SLOT;
use crate::scoreboard::{SlotView, Snapshot};
use crate::sys;

/// The daemon's name.
const INSTANCE: &str = "demo";

/// How long a process may take to be there, or to be gone.
const LIMIT: Duration = Duration::from_secs(30);

/// A private Redis on a Unix socket; it keeps nothing on disk.
pub(super) struct Redis {
    process: Child,
    url: String,
}

impl Redis {
    pub fn start(folder: &Path) -> Result<Self, DemoError> {
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        // Not to be ended by what is meant for this process, but with it.
        sys::bind(&mut command, None);
        let process = command
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => DemoError::NoRedis,
                _ => DemoError::System("start redis-server", error),
            })?;
        let url = format!("unix://{}", socket.display());
        let mut this = Self { process, url };
        let up = wait_for(LIMIT, || {
            UnixStream::connect(&socket).is_ok() || !matches!(this.process.try_wait(), Ok(None))
        });
        if up && matches!(this.process.try_wait(), Ok(None)) {
            return Ok(this);
        }
        Err(DemoError::System(
            "start redis-server",
            io::Error::other("it ended at once"),
        ))
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program as the daemon, with its log as a channel of lines.
pub(super) struct Daemon {
    process: Child,
    log: Receiver<String>,
    scoreboard: PathBuf,
}

impl Daemon {
    pub fn start(folder: &Path, config: &Path, redis: &str, workers: u32) -> io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        sys::bind(&mut command, None);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CONSERVER_") || text.starts_with("VCON_") {
                command.env_remove(&name);
            }
        }
        let mut process = command
            .arg("run")
            .env_remove("EGRESS_FORMAT_VERSION")
            .env("REDIS_URL", redis)
            .env("CONSERVER_CONFIG_FILE", config)
            .env("CONSERVER_WORKERS", workers.to_string())
            .env("CONSERVER_INSTANCE", INSTANCE)
            .env("RUNTIME_DIRECTORY", folder.join("run"))
            .env("CONSERVER_HTTP", "off")
            .env("CONSERVER_LOG_FORMAT", "json")
            .env("LOG_LEVEL", "INFO")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let (send, log) = unbounded();
        if let Some(stderr) = process.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let scoreboard = folder.join(format!("run/{INSTANCE}.scoreboard"));
        Ok(Self {
            process,
            log,
            scoreboard,
        })
    }

    /// The lines of its log.
    pub fn log(&self) -> &Receiver<String> {
        &self.log
    }

    /// The memory of each worker, in bytes; empty where the system does not tell.
    pub fn memory_of_workers(&self) -> Vec<u64> {
        let Ok(snapshot) = Snapshot::take(&self.scoreboard) else {
            return Vec::new();
        };
        let workers = snapshot.slots.iter().skip(MONITOR_SLOT + 1);
        workers.filter_map(SlotView::memory).collect()
    }

    /// Drains it, as systemd would.
    pub fn stop(&mut self) -> Result<(), DemoError> {
        self.signal(Signal::SIGTERM);
        let mut code = None;
        wait_for(LIMIT, || {
            code = self.process.try_wait().ok().flatten();
            code.is_some()
        });
        match code {
            Some(code) if code.success() => Ok(()),
            Some(code) => Err(DemoError::Daemon(code.to_string())),
            None => Err(DemoError::Daemon("it did not stop".to_owned())),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            sys::kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its workers end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
