//! What the service manager is told, over a socket of the test's own.

use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, PATIENCE, Programs, Redis, chain, exec, fresh, submit, wait_until,
};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Manager {
    /// Listens, and has the daemon talk to it.
    fn of(conserver: Conserver) -> (Self, Conserver) {
        let path = conserver.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let short = Duration::from_millis(20);
        socket.set_read_timeout(Some(short)).expect("a socket");
        let told = Vec::new();
        (Self { socket, told }, conserver.env("NOTIFY_SOCKET", path))
    }

    /// Takes in what has come.
    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            self.told.push(text);
        }
    }

    fn wait_for(&mut self, what: &str) {
        let start = Instant::now();
        while !self.told.iter().any(|told| told.starts_with(what)) {
            assert!(start.elapsed() < PATIENCE, "not {what}: {:?}", self.told);
            self.listen();
        }
    }

    fn forget(&mut self) {
        self.listen();
        self.told.clear();
    }

    fn has(&self, what: &str) -> bool {
        self.told.iter().any(|told| told.starts_with(what))
    }
}

fn launch(conserver: Conserver) -> Daemon {
    conserver.workers(2).env("TICK_INTERVAL", "100").launch()
}

#[test]
fn the_manager_hears_of_start_reload_and_stop() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let (mut manager, conserver) = Manager::of(conserver);
    let mut daemon = launch(conserver);
    manager.wait_for("READY=1");
    assert!(daemon.log().contains("All 2 workers ready"));
    manager.wait_for("STATUS=running: 2 of 2 workers ready, 0 vCons in work");
    assert!(!manager.has("WATCHDOG"), "{:?}", manager.told);

    manager.forget();
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1");
    assert_eq!(daemon.count_in_log("All workers are replaced"), 1);

    manager.forget();
    daemon.reconfigure(&json!({"chains": 1}));
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    assert_eq!(daemon.count_in_log("All workers are replaced"), 1);

    manager.forget();
    daemon.terminate();
    manager.wait_for("STOPPING=1");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
}

#[test]
fn more_time_is_asked_for_while_workers_drain() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let door = programs.folder().join("door");
    let text = "echo begun >&2; until [ -e \"$DOOR\" ]; do sleep 0.02; done";
    let slow = exec(&json!({"command": [programs.shell("slow", text)], "env": {"DOOR": door}}));
    let conserver = Conserver::with(&redis)
        .config(&chain(&[("slow", slow)], &[]))
        .env("LOG_LEVEL", "DEBUG");
    let (mut manager, conserver) = Manager::of(conserver);
    let mut daemon = launch(conserver);
    manager.wait_for("READY=1");
    submit(&redis, "default", &fresh(1));
    daemon.wait_for_log("begun", PATIENCE);
    // Also what was still on its way when it was ready.
    manager.wait_for("STATUS=running: 2 of 2 workers ready, 1 vCon in work");
    manager.forget();
    manager.wait_for("STATUS=running");
    assert!(!manager.has("EXTEND_TIMEOUT_USEC="), "{:?}", manager.told);

    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1");
    manager.forget();
    manager.wait_for("STATUS=reloading");
    manager.wait_for("EXTEND_TIMEOUT_USEC=");

    daemon.terminate();
    manager.wait_for("STOPPING=1");
    manager.forget();
    manager.wait_for("STATUS=stopping");
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
    std::fs::write(&door, "").expect("a file");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    wait_until("it is finished", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(redis.length("default"), 0);
}

#[test]
fn ready_is_told_only_when_redis_is_there() {
    let redis = Redis::new();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let (mut manager, conserver) = Manager::of(conserver);
    let daemon = launch(conserver);
    daemon.wait_for_log("Redis is away", PATIENCE);
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
    manager.wait_for("STATUS=starting: 0 of 2 workers ready");
    assert!(!manager.has("READY=1"), "{:?}", manager.told);
    redis.start();
    manager.wait_for("READY=1");
    daemon.stop();
}

#[test]
fn a_reload_during_the_start_does_not_tell_that_all_are_ready() {
    let redis = Redis::new();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let (mut manager, conserver) = Manager::of(conserver);
    let daemon = launch(conserver);
    daemon.wait_for_log("Redis is away", PATIENCE);
    daemon.reconfigure(&json!({"chains": 1}));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("SIGHUP received", PATIENCE);
    daemon.wait_for_log("The configuration is not valid", PATIENCE);
    // Answered in a later turn of the loop.
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for_log("starting: 0 of 2 workers ready", PATIENCE);
    manager.listen();
    assert!(!manager.has("READY=1"), "{:?}", manager.told);

    daemon.reconfigure(&chain(&[], &[]));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("Replacing the workers one by one", PATIENCE);
    manager.forget();
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
    manager.wait_for("STATUS=reloading: 0 of 2 workers ready");
    assert!(!manager.has("READY=1"), "{:?}", manager.told);
    redis.start();
    manager.wait_for("READY=1");
    daemon.wait_for_workers(2);
    daemon.stop();
}

#[test]
fn a_reload_is_over_only_when_python_modules_were_tried() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let waiting = "
import os, time
folder = os.path.dirname(__file__)
open(folder + '/begun', 'w').close()
while not os.path.exists(folder + '/door'):
    time.sleep(0.01)
import nothing_there
";
    programs.write("slow.py", waiting);
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_PYTHON_PATH", programs.folder());
    let (mut manager, conserver) = Manager::of(conserver);
    let daemon = launch(conserver);
    manager.wait_for("READY=1");

    let slow = json!({"module": "slow"});
    daemon.reconfigure(&chain(&[("slow", slow)], &[]));
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1");
    wait_until("the import has begun", PATIENCE, || {
        programs.folder().join("begun").exists()
    });
    manager.forget();
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
    manager.wait_for("STATUS=running: 2 of 2 workers ready");
    assert!(!manager.has("READY=1"), "{:?}", manager.told);
    programs.write("door", "");
    manager.wait_for("READY=1");
    assert_eq!(daemon.count_in_log("the former one stays"), 1);

    programs.write(
        "slow.py",
        "def run(uuid, name, options):\n    return uuid\n",
    );
    manager.forget();
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    assert_eq!(daemon.count_in_log("All workers are replaced"), 1);
    daemon.stop();
}

#[test]
fn time_is_asked_for_while_python_modules_are_tried_at_the_start() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    programs.write(
        "quick.py",
        "def run(uuid, name, options):\n    return uuid\n",
    );
    let conserver = Conserver::with(&redis)
        .config(&chain(&[("quick", json!({"module": "quick"}))], &[]))
        .env("CONSERVER_PYTHON_PATH", programs.folder())
        .env("CONSERVER_PYTHON_TIMEOUT", "77");
    let (mut manager, conserver) = Manager::of(conserver);
    let daemon = launch(conserver);
    manager.wait_for("EXTEND_TIMEOUT_USEC=77000000");
    manager.wait_for("READY=1");
    daemon.stop();
}

#[test]
fn the_watchdog_is_fed_only_while_all_workers_answer() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let (mut manager, conserver) = Manager::of(conserver);
    let daemon = launch(conserver.env("WATCHDOG_USEC", "400000"));
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    let workers = daemon.wait_for_workers(2);

    // The supervisor stopped: silence.
    daemon.signal(Signal::SIGSTOP);
    manager.forget();
    thread::sleep(Duration::from_millis(600));
    manager.listen();
    assert!(!manager.has("WATCHDOG"), "{:?}", manager.told);
    daemon.signal(Signal::SIGCONT);
    manager.wait_for("WATCHDOG=1");

    // A worker that hangs is replaced, and all is well again.
    kill(Pid::from_raw(workers[&1]), Signal::SIGSTOP).expect("the worker runs");
    daemon.wait_for_log("has not shown itself", PATIENCE);
    manager.forget();
    manager.wait_for("WATCHDOG=1");
    daemon.wait_for_workers(2);
    daemon.stop();
}
