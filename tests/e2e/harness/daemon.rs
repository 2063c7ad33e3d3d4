//! A running daemon: supervisor, workers, log.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Conserver, Leashed, PATIENCE, family_of, is_alive, name_of, tail, wait_until};

/// A running daemon; the end of the test is its end.
pub struct Daemon {
    conserver: Conserver,
    child: Leashed,
}

impl Daemon {
    pub(super) fn launch(conserver: Conserver) -> Self {
        let child = Leashed::spawn(&mut conserver.command(&["run"], "daemon"));
        Self { conserver, child }
    }

    pub(super) fn start(conserver: Conserver) -> Self {
        let daemon = Self::launch(conserver);
        let started = format!("All {} workers started", daemon.conserver.workers);
        daemon.wait_for_log(&started, PATIENCE);
        daemon
    }

    /// The supervisor's pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.conserver.folder().join("daemon.stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Everything written so far, to standard output too.
    pub fn output(&self) -> String {
        let bytes = fs::read(self.conserver.folder().join("daemon.stdout")).unwrap_or_default();
        self.log() + &String::from_utf8_lossy(&bytes)
    }

    /// Waits for a line that holds `text`.
    pub fn wait_for_log(&self, text: &str, patience: Duration) {
        let what = format!("the log says {text:?}");
        wait_until(&what, patience, || {
            let log = self.log();
            assert!(
                log.contains(text) || is_alive(self.pid()),
                "the daemon has ended, and its log does not say {text:?}"
            );
            log.contains(text)
        });
    }

    /// How often the log says `text` so far.
    pub fn count_in_log(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until every worker that found `what` away (`Redis`, `storage pg`) finds it there: the log has the
    /// beginning and the end of each outage once for all of them.
    pub fn wait_until_back(&self, what: &str) {
        wait_until(&format!("{what} is back"), PATIENCE, || {
            let ends = self.count_in_log(&format!("{what} is back after"));
            ends >= self.count_in_log(&format!("{what} is away"))
        });
    }

    /// The workers and their present pids, as the log has them.
    pub fn workers(&self) -> BTreeMap<usize, i32> {
        let log = self.log();
        let parse = |line: &str| {
            let (_, rest) = line.split_once("tarted Worker-")?;
            let (number, rest) = rest.split_once(" (")?;
            let pid = rest.split_once("PID ")?.1.split_once(')')?.0;
            Some((number.parse().ok()?, pid.parse().ok()?))
        };
        log.lines().filter_map(parse).collect()
    }

    /// What `conserver status --json` says; nothing where it says that no daemon runs.
    pub fn status(&self) -> Option<Value> {
        let finished = self.conserver.run(&["status", "--json"]);
        (finished.code == 0).then(|| {
            serde_json::from_str(&finished.stdout)
                .unwrap_or_else(|error| panic!("{error}: {}", finished.output()))
        })
    }

    /// Waits until it is at work with so many workers, all of them ready, and none besides.
    pub fn wait_for_workers(&self, count: usize) -> BTreeMap<usize, i32> {
        let mut pids = BTreeMap::new();
        let what = format!("{count} workers are ready, and none besides");
        wait_until(&what, PATIENCE, || {
            let status = self.status().unwrap_or_default();
            let workers = status["workers"].as_array().cloned().unwrap_or_default();
            let pid = |worker: &Value| {
                let number = usize::try_from(worker["worker"].as_u64()?).ok()?;
                Some((number, i32::try_from(worker["pid"].as_i64()?).ok()?))
            };
            pids = workers.iter().filter_map(pid).collect();
            status["state"] == "running"
                && status["workers_ready"] == count
                && status["workers_wanted"] == count
                && workers.len() == count
        });
        pids
    }

    /// All processes of the daemon: the supervisor and what descends from it.
    pub fn family(&self) -> Vec<i32> {
        family_of(self.pid())
    }

    /// The process of this name, as `ps -o comm` shows it.
    pub fn process(&self, name: &str) -> i32 {
        let is_it = |pid: &i32| name_of(*pid) == name;
        let found = self.family().into_iter().find(is_it);
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// The program with the same settings, for other commands.
    pub fn conserver(&self) -> &Conserver {
        &self.conserver
    }

    /// Replaces its configuration file.
    pub fn reconfigure(&self, config: &Value) {
        let text = serde_json::to_string_pretty(config).expect("JSON");
        self.conserver.rewrite_config(&text);
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the daemon runs");
    }

    /// Sends all its processes a signal at one instant.
    pub fn signal_family(&self, signal: Signal) {
        killpg(Pid::from_raw(self.pid()), signal).expect("the daemon runs");
    }

    /// Kills all its processes at one instant.
    pub fn kill_family(&self) {
        let family = self.family();
        self.signal_family(Signal::SIGKILL);
        let gone = || family.iter().all(|pid| !is_alive(*pid));
        wait_until("the whole family is gone", PATIENCE, gone);
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits for its end; gives its exit code, -1 where a signal ended it.
    pub fn wait_exit(&mut self, patience: Duration) -> i32 {
        let mut status = None;
        wait_until("the daemon has ended", patience, || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.and_then(|status| status.code()).unwrap_or(-1)
    }

    /// Its exit code when it has ended, -1 where a signal ended it.
    pub fn has_exited(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("a child");
        status.map(|status| status.code().unwrap_or(-1))
    }

    /// For measurements: waits for its end without a pause; gives its exit code, -1 where a signal ended it.
    #[allow(dead_code)]
    pub fn wait_exit_at_once(&mut self) -> i32 {
        self.child.wait().expect("a child").code().unwrap_or(-1)
    }

    /// Stops it and fails unless it ends well.
    pub fn stop(mut self) {
        self.terminate();
        assert_eq!(self.wait_exit(PATIENCE), 0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.conserver.folder().join("daemon.stderr");
            eprintln!("The daemon's log ends in:\n{}", tail(&log));
        }
    }
}
