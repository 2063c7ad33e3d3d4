//! One of the daemons, and what is done to it.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run::{Event, Run};
use super::servers::millis;
use crate::harness::{Conserver, Daemon, PATIENCE, name_of, running_in_group};

/// After this many seconds without a sign of life, an instance counts as dead.
pub const HEARTBEAT_TTL: u64 = 3;

/// An instance that was frozen for longer than its lease has at least so many milliseconds until
/// something else is done to it.
const PUTS_RIGHT: u64 = 3_000;

/// An instance has at most so many lanes.
pub const MOST_LANES: usize = MOST_WORKERS * MOST_LANES_OF_A_WORKER;
const MOST_WORKERS: usize = 4;
const MOST_LANES_OF_A_WORKER: usize = 3;

/// What can be done to an instance, and how often among others.
const ACTS: &[(Act, u32)] = &[
    (Act::KillWorker, 44),
    (Act::KillSeveral, 12),
    (Act::KillMonitor, 6),
    (Act::KillForkserver, 5),
    (Act::KillSupervisor, 10),
    (Act::KillInstance, 7),
    (Act::Stop, 6),
    (Act::Reload, 6),
    (Act::FreezeWorker, 4),
    (Act::FreezeSupervisor, 2),
    (Act::FreezeInstance, 3),
];

#[derive(Debug, Clone, Copy)]
enum Act {
    KillWorker,
    KillSeveral,
    KillMonitor,
    KillForkserver,
    KillSupervisor,
    KillInstance,
    Stop,
    Reload,
    FreezeWorker,
    FreezeSupervisor,
    FreezeInstance,
}

/// A daemon that is killed and started again and again.
pub struct Victim<'a> {
    run: &'a Run,
    name: &'static str,
    /// Never runs itself: it holds the files.
    template: Conserver,
    random: fastrand::Rng,
    daemon: Daemon,
}

impl<'a> Victim<'a> {
    /// Starts it.
    pub fn start(run: &'a Run, name: &'static str, template: Conserver) -> Self {
        let mut random = run.random(name);
        let template = template
            .env("CONSERVER_INSTANCE", name)
            .env("CONSERVER_HEARTBEAT_TTL", HEARTBEAT_TTL.to_string())
            // Innocent vCons are in work when their workers are killed, again and again.
            .env("CONSERVER_MAX_DEATHS", "0")
            // The same of vCons whose backend fails for all of them.
            .env("CONSERVER_MAX_ROUNDS", "0")
            .env("CONSERVER_DRAIN_TIMEOUT", "5")
            .env("CONSERVER_RETRY_MAX_MS", "500")
            .env("TICK_INTERVAL", "500");
        let daemon = launch(run, name, &template, &mut random);
        Self {
            run,
            name,
            template,
            random,
            daemon,
        }
    }

    /// Does one thing after another to it; leaves it running.
    pub fn torture(mut self) -> Self {
        while self.run.pause(millis(&mut self.random, 100, 1_000)) {
            if let Some(code) = self.daemon.has_exited() {
                let (name, log) = (self.name, self.daemon.log());
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(8)..].join("\n");
                let text = format!("{name} ended by itself, with exit code {code}:\n{last}");
                self.run.fault(text);
                self.restart();
            }
            let act = self.draw();
            self.act(act);
        }
        self
    }

    fn draw(&mut self) -> Act {
        let all: u32 = ACTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.u32(..all);
        let drawn = ACTS.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        drawn.expect("one of them").0
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::KillWorker => self.kill_named("conserver-w", 1, Event::WorkerKilled),
            Act::KillSeveral => {
                let count = self.random.usize(2..=4);
                self.kill_named("conserver-w", count, Event::WorkerKilled);
            }
            Act::KillMonitor => self.kill_named("conserver-mon", 1, Event::MonitorKilled),
            Act::KillForkserver => {
                self.kill_named("conserver-fork", 1, Event::ForkserverKilled);
            }
            Act::KillSupervisor => {
                self.daemon.signal(Signal::SIGKILL);
                self.run
                    .note(self.name, Event::SupervisorKilled, &self.shown());
                self.daemon.wait_exit(PATIENCE);
                if self.random.bool() {
                    self.wait(0, 1_000);
                }
                self.restart();
            }
            Act::KillInstance => {
                self.daemon.signal_family(Signal::SIGKILL);
                self.run
                    .note(self.name, Event::InstanceKilled, &self.shown());
                self.daemon.wait_exit(PATIENCE);
                // Often longer than it takes the other to find that this one is dead.
                self.wait(0, HEARTBEAT_TTL * 2_500);
                self.restart();
            }
            Act::Stop => {
                self.run
                    .note(self.name, Event::InstanceStopped, &self.shown());
                self.stop_daemon();
                self.wait(0, 500);
                self.restart();
            }
            Act::Reload => {
                self.daemon.signal(Signal::SIGHUP);
                self.run.note(self.name, Event::Reload, "");
            }
            Act::FreezeWorker => {
                let workers = self.named("conserver-w");
                if let Some(worker) = self.random.choice(workers) {
                    self.freeze(worker, Event::WorkerFrozen);
                }
            }
            Act::FreezeSupervisor => self.freeze(self.daemon.pid(), Event::SupervisorFrozen),
            Act::FreezeInstance => {
                self.daemon.signal_family(Signal::SIGSTOP);
                self.run
                    .note(self.name, Event::InstanceFrozen, &self.shown());
                self.wait(HEARTBEAT_TTL * 1_000, HEARTBEAT_TTL * 2_500);
                self.daemon.signal_family(Signal::SIGCONT);
                self.run.write(&format!("{}: goes on", self.name));
                // What it had in hand was returned, and it goes on with it: it stores old documents,
                // finds that, and puts it right. Killed between the two, it could not.
                self.wait(PUTS_RIGHT, PUTS_RIGHT);
            }
        }
    }

    /// Its processes whose names begin like this.
    fn named(&self, name: &str) -> Vec<i32> {
        let mut pids = running_in_group(self.daemon.pid());
        pids.retain(|pid| name_of(*pid).starts_with(name));
        pids
    }

    fn kill_named(&mut self, name: &str, count: usize, event: Event) {
        let mut pids = self.named(name);
        self.random.shuffle(&mut pids);
        for pid in pids.into_iter().take(count) {
            let shown = name_of(pid);
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                let detail = format!("PID {pid} ({shown})");
                self.run.note(self.name, event, &detail);
            }
        }
    }

    fn freeze(&mut self, pid: i32, event: Event) {
        let (process, detail) = (Pid::from_raw(pid), format!("PID {pid}"));
        if kill(process, Signal::SIGSTOP).is_err() {
            return;
        }
        self.run.note(self.name, event, &detail);
        self.wait(500, HEARTBEAT_TTL * 2_000);
        match kill(process, Signal::SIGCONT) {
            Ok(()) => self.run.write(&format!("{}: {detail} goes on", self.name)),
            Err(Errno::ESRCH) => self
                .run
                .write(&format!("{}: {detail} was killed meanwhile", self.name)),
            Err(error) => self.run.fault(format!("{}: {detail}: {error}", self.name)),
        }
    }

    fn wait(&mut self, least: u64, most: u64) {
        let time = millis(&mut self.random, least, most);
        self.run.pause(time);
    }

    fn shown(&self) -> String {
        format!("PID {}", self.daemon.pid())
    }

    /// Another daemon in the place of one that has ended.
    fn restart(&mut self) {
        let next = launch(self.run, self.name, &self.template, &mut self.random);
        let before = std::mem::replace(&mut self.daemon, next);
        let (start, group) = (Instant::now(), before.pid());
        while !running_in_group(group).is_empty() {
            if start.elapsed() > Duration::from_secs(5) {
                let left: Vec<String> = running_in_group(group).into_iter().map(name_of).collect();
                let name = self.name;
                self.run
                    .fault(format!("{name}: these outlived their supervisor: {left:?}"));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.keep_log(&before);
    }

    fn keep_log(&self, daemon: &Daemon) {
        let head = format!("=== PID {} ===\n", daemon.pid());
        self.run
            .keep(&format!("{}.log", self.name), &(head + &daemon.output()));
    }

    /// Asks the daemon to stop; it must end well.
    fn stop_daemon(&mut self) {
        self.daemon.terminate();
        let (start, name) = (Instant::now(), self.name);
        loop {
            match self.daemon.has_exited() {
                Some(0) => return,
                Some(code) => {
                    return self
                        .run
                        .fault(format!("{name} was asked to stop and ended with {code}"));
                }
                None if start.elapsed() > PATIENCE => {
                    let text = format!("{name} has not stopped within {PATIENCE:?}");
                    self.run.fault(text);
                    self.daemon.signal_family(Signal::SIGKILL);
                    self.daemon.wait_exit(PATIENCE);
                    return;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Stops it for good.
    pub fn stop(mut self) {
        self.stop_daemon();
        self.keep_log(&self.daemon);
    }
}

/// Starts the daemon, each time a little different.
fn launch(run: &Run, name: &str, template: &Conserver, random: &mut fastrand::Rng) -> Daemon {
    let method = ["fork", "spawn", "forkserver"][random.usize(..3)];
    let (workers, lanes) = (
        random.usize(2..=MOST_WORKERS),
        random.usize(1..=MOST_LANES_OF_A_WORKER),
    );
    let recycle = if random.bool() { "0" } else { "100" };
    let order = ["strict", "rotate"][random.usize(..2)];
    let daemon = template
        .again()
        .env("CONSERVER_LIST_ORDER", order)
        .method(method)
        .workers(workers)
        .lanes(lanes)
        .env("CONSERVER_WORKER_MAX_VCONS", recycle)
        .launch();
    let detail = format!(
        "PID {}: {method}, {workers} workers with {lanes} lanes, {order}",
        daemon.pid()
    );
    run.note(name, Event::InstanceStarted, &detail);
    daemon
}
