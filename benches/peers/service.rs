//! A peer at work as a service: started, stopped for a while, started again where it ends, killed.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use conserver::procfs::proportional_set_size;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::case::Case;
use super::harness::{
    Leashed, PATIENCE, children_of, family_of, is_alive, private_folder, wait_until,
};
use super::peer::{Peer, Shape};
use super::servers::Servers;
use super::usage::cpu_clock;

/// How long a service manager waits before it starts again what has ended: the default of systemd.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The servers, and a folder with what the programs read.
pub struct Site<'a> {
    pub servers: &'a Servers,
    storage: String,
    folder: TempDir,
}

impl<'a> Site<'a> {
    pub fn new(servers: &'a Servers, job: &Case) -> Self {
        let folder = private_folder();
        let mut config = job.config(servers);
        let storages = config["storages"].as_object_mut().expect("a mapping");
        for storage in storages.values_mut() {
            // "No limit" is not said in the same way everywhere, and the default is large enough.
            let options = storage["options"].as_object_mut();
            options.expect("a mapping").remove("max_file_size");
        }
        let storage = storages.values().next().cloned().unwrap_or_default();
        let site = Self {
            servers,
            storage: storage.to_string(),
            folder,
        };
        fs::write(site.config_file(), config.to_string()).expect("a file");
        let mut private = fs::DirBuilder::new();
        private
            .mode(0o700)
            .create(site.runtime_folder())
            .expect("a folder");
        site
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where this daemon keeps its scoreboard.
    pub fn runtime_folder(&self) -> PathBuf {
        self.folder().join("run")
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder().join("config.yml")
    }

    /// The storage as it stands in `config.yml`, or `null`.
    pub fn storage(&self) -> &str {
        &self.storage
    }

    pub fn redis_url(&self) -> String {
        self.servers.redis.url()
    }
}

/// A peer that works.
pub struct Service<'a> {
    site: &'a Site<'a>,
    peer: Peer,
    shape: Shape,
    main: Leashed,
}

impl<'a> Service<'a> {
    pub fn start(site: &'a Site<'a>, peer: Peer, shape: Shape) -> Self {
        Self {
            site,
            peer,
            shape,
            main: launch(site, peer, shape),
        }
    }

    fn main(&self) -> i32 {
        self.main.id().cast_signed()
    }

    /// All its processes.
    pub fn family(&self) -> Vec<i32> {
        family_of(self.main())
    }

    /// Has all its processes do nothing until [`Service::thaw`].
    pub fn freeze(&self) -> Frozen {
        let family = self.family();
        for pid in &family {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        Frozen { family }
    }

    /// Starts it again where it has ended, as a service manager does.
    pub fn tend(&mut self) {
        let main = Pid::from_raw(self.main());
        // It is not waited for yet: its number, and that of its group, is nobody else's.
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if waitid(Id::Pid(main), look).expect("a child") == WaitStatus::StillAlive {
            return;
        }
        // Its workers may have outlived it.
        let _ = killpg(main, Signal::SIGKILL);
        self.main.wait().expect("a child");
        thread::sleep(RESTART_PAUSE);
        self.main = launch(self.site, self.peer, self.shape);
    }

    /// Kills the worker process that has worked most. The main process has no time of its own to speak of.
    pub fn kill_a_worker(&self) {
        let workers = children_of(self.main());
        let victim = (workers.iter())
            .max_by(|one, other| cpu_clock(**one).total_cmp(&cpu_clock(**other)))
            .expect("a worker");
        kill(Pid::from_raw(*victim), Signal::SIGKILL).expect("the worker runs");
    }

    /// What all its processes take, what they share counted once, in bytes.
    pub fn memory(&self) -> f64 {
        let family = self.family();
        let sizes = family.iter().filter_map(|pid| proportional_set_size(*pid));
        sizes.sum::<u64>() as f64
    }

    /// Fails where it does not run any more; its log says why.
    pub fn assert_alive(&mut self) {
        let ended = self.main.try_wait().expect("a child");
        assert!(
            ended.is_none(),
            "{} has ended:\n{}",
            self.peer.name(),
            self.log()
        );
    }

    /// The end of what it has written.
    pub fn log(&self) -> String {
        let bytes = fs::read(log_file(self.site)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let family = self.family();
        // Those that have lost their parent are in its group.
        let _ = killpg(Pid::from_raw(self.main()), Signal::SIGKILL);
        for pid in &family {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let _ = self.main.wait();
        if thread::panicking() {
            eprintln!("The log of {} ends in:\n{}", self.peer.name(), self.log());
            return;
        }
        let gone = || family.iter().all(|pid| !is_alive(*pid));
        wait_until("the whole family is gone", PATIENCE, gone);
    }
}

/// The processes of a service that do nothing for now.
pub struct Frozen {
    family: Vec<i32>,
}

impl Frozen {
    /// Lets them go on.
    pub fn thaw(self) -> Vec<i32> {
        for pid in &self.family {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
        }
        self.family
    }
}

fn launch(site: &Site<'_>, peer: Peer, shape: Shape) -> Leashed {
    let mut command = peer.work(site, shape);
    let log = || {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_file(site));
        log.expect("a file")
    };
    command.stdin(Stdio::null()).stdout(log()).stderr(log());
    Leashed::spawn(&mut command)
}

fn log_file(site: &Site<'_>) -> PathBuf {
    site.folder().join("log")
}
