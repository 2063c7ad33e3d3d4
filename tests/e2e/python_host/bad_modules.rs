//! Modules that do what modules should not. Whatever one does to its own process, the worker lives, the other
//! lane works, and the vCon is done or a dead letter that says why.

use std::fs;

use serde_json::{Value, json};

use super::{bare, beside, conserver, hosts, samples};
use crate::harness::{
    Daemon, Deployment, PATIENCE, Redis, Sample, chain, is_alive, resident_set_of, submit,
    wait_until, wait_until_gone,
};

/// A worker with two lanes; the chain `main` has modules that do as they should, the chain `odd` one of these.
struct Scene {
    redis: Redis,
    deployment: Deployment,
    daemon: Daemon,
    worker: i32,
}

impl Scene {
    /// With a module of this text, and these keys beside its name.
    fn with(text: &str, keys: &Value) -> Self {
        Self::with_environment(text, keys, &[])
    }

    fn with_environment(text: &str, keys: &Value, environment: &[(&str, &str)]) -> Self {
        let (redis, deployment) = (Redis::plain(), Deployment::new());
        let text = format!(
            "import os, signal, subprocess, sys, time\nfrom lib.calls import record\n{text}"
        );
        deployment.write("odd.py", &text);
        let mut config = chain(&[("counts", bare("links.counts"))], &[]);
        let mut odd = bare("odd");
        for (key, value) in keys.as_object().expect("a mapping") {
            odd[key] = value.clone();
        }
        beside(&mut config, &[("odd", odd)]);
        let mut conserver = conserver(&redis, &deployment, &config).lanes(2);
        let hold = deployment.folder().join("hold");
        conserver = conserver.env("HOLD", hold);
        for (name, value) in environment {
            conserver = conserver.env(name, *value);
        }
        let daemon = conserver.start();
        let worker = daemon.wait_for_workers(1)[&1];
        Self {
            redis,
            deployment,
            daemon,
            worker,
        }
    }

    /// Gives vCons to the odd module.
    fn submit(&self, count: usize) -> Vec<Sample> {
        let some = samples("odd", count);
        submit(&self.redis, "odd", &some);
        some
    }

    /// Works on a few vCons in the other chain.
    fn others_go_on(&self) {
        let before = self.redis.length("done");
        submit(&self.redis, "default", &samples("plain", 4));
        wait_until("the others go on", PATIENCE, || {
            self.redis.length("done") == before + 4
        });
    }

    /// Waits until these vCons are through the odd chain, each once.
    fn are_done(&self, some: &[Sample]) {
        wait_until("the odd ones are done", PATIENCE, || {
            let dead = self.redis.list("DLQ:odd");
            assert_eq!(dead, Vec::<String>::new(), "{}", self.daemon.log());
            self.redis.length("odd_done") >= some.len()
        });
        self.are_in("odd_done", some);
    }

    /// Waits until these vCons are dead letters, each once, for this reason.
    fn are_dead(&self, some: &[Sample], reason: &str) {
        wait_until("the odd ones are dead letters", PATIENCE * 2, || {
            self.redis.length("DLQ:odd") >= some.len()
        });
        self.are_in("DLQ:odd", some);
        for sample in some {
            let shown = self
                .daemon
                .conserver()
                .run(&["dlq", "show", &sample.id])
                .output();
            assert!(shown.contains(reason), "{shown}");
        }
    }

    fn are_in(&self, list: &str, some: &[Sample]) {
        wait_until("nothing is in hand", PATIENCE, || {
            self.redis.keys("conserver:claims:*").is_empty()
        });
        let mut found = self.redis.list(list);
        let mut expected: Vec<String> = some.iter().map(|sample| sample.id.clone()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{list}");
        let other = if list == "odd_done" {
            "DLQ:odd"
        } else {
            "odd_done"
        };
        assert_eq!(self.redis.length(other), 0, "{other}");
        assert_eq!(self.redis.length("odd"), 0);
    }

    /// The numbers that the module has pushed onto this list.
    fn numbers(&self, list: &str) -> Vec<i32> {
        let entries = self.redis.list(list);
        entries
            .iter()
            .map(|entry| entry.parse().expect("a number"))
            .collect()
    }

    fn wait_for_numbers(&self, list: &str, count: usize) -> Vec<i32> {
        wait_until(&format!("{list} has {count}"), PATIENCE, || {
            self.redis.length(list) >= count
        });
        self.numbers(list)
    }

    /// How often the module was called.
    fn calls(&self) -> usize {
        let calls = self.redis.calls();
        calls.iter().filter(|call| call.call == "odd.run").count()
    }

    /// Fails unless the worker is the one that it was, and works; then ends the daemon.
    fn ends_unharmed(self) {
        self.others_go_on();
        assert_eq!(self.daemon.wait_for_workers(1)[&1], self.worker);
        assert!(is_alive(self.worker));
        let log = self.daemon.log();
        assert!(!log.contains("died unexpectedly"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        let hosts = hosts(&self.daemon);
        assert!(hosts.len() <= 2, "one host for each lane: {hosts:?}");
        self.daemon.stop();
        wait_until_gone(&hosts);
    }
}

/// Pushes a number onto a list of Redis.
const NOTE: &str = "
from redis_mgr import client

def note(key, number):
    client.rpush(key, number)
";

#[test]
fn one_that_hangs_is_killed_at_its_limit_with_all_its_processes() {
    let text = format!(
        "{NOTE}
def run(*arguments):
    record(__name__, 'run', arguments)
    child = subprocess.Popen(['sleep', '1000'])
    note('pids', os.getpid())
    note('pids', child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
"
    );
    let scene = Scene::with(&text, &json!({"timeout": 3}));
    let some = scene.submit(1);
    scene.wait_for_numbers("pids", 2);
    // While it hangs.
    scene.others_go_on();
    assert_eq!(
        scene.redis.length("odd_done") + scene.redis.length("DLQ:odd"),
        0
    );
    scene.are_dead(&some, "time limit of 3 s");
    wait_until_gone(&scene.numbers("pids"));
    scene.ends_unharmed();
}

#[test]
fn one_that_hangs_is_killed_at_the_limit_of_the_setting() {
    let text = "
def run(*arguments):
    record(__name__, 'run', arguments)
    time.sleep(1000)
";
    let limit = [("CONSERVER_PYTHON_TIMEOUT", "4")];
    let scene = Scene::with_environment(text, &json!({}), &limit);
    let some = scene.submit(1);
    wait_until("it hangs", PATIENCE, || scene.calls() > 0);
    scene.others_go_on();
    scene.are_dead(&some, "time limit of 4 s");
    scene.ends_unharmed();
}

#[test]
fn one_whose_children_live_on_is_answered_for_once() {
    let text = format!(
        "{NOTE}
def run(*arguments):
    record(__name__, 'run', arguments)
    child = os.fork()
    if child == 0:
        # It has all that its parent has.
        time.sleep(1000)
        os._exit(0)
    note('pids', child)
    return arguments[0]
"
    );
    let scene = Scene::with(&text, &json!({}));
    let some = scene.submit(6);
    scene.are_done(&some);
    assert_eq!(scene.calls(), 6);
    let children = scene.numbers("pids");
    assert_eq!(children.len(), 6);
    scene.ends_unharmed();
    wait_until_gone(&children);
}

#[test]
fn one_whose_children_come_back_from_its_call_is_answered_for_once() {
    for end in [
        "return arguments[0]",
        "raise ValueError(os.getpid())",
        "sys.exit(0)",
    ] {
        let text = format!(
            "{NOTE}
def run(*arguments):
    record(__name__, 'run', arguments)
    child = os.fork()
    if child == 0:
        {end}
    note('ends', os.waitpid(child, 0)[0])
    return arguments[0]
"
        );
        let scene = Scene::with(&text, &json!({}));
        let some = scene.submit(6);
        scene.are_done(&some);
        assert_eq!(scene.calls(), 6, "{end}");
        assert_eq!(scene.numbers("ends").len(), 6);
        scene.ends_unharmed();
    }
}

#[test]
fn one_that_prints_megabytes_is_done() {
    let text = "
def run(*arguments):
    record(__name__, 'run', arguments)
    for stream in (sys.stdout, sys.stderr):
        for _ in range(200):
            print('{\"halt\": true} ' * 3000, file=stream)
        print('x' * (4 << 20), end='', file=stream)
    os.write(1, b'\\0\\xff' * (1 << 20))
    subprocess.run(['sh', '-c', 'yes | head -c 4000000; yes | head -c 4000000 >&2'], check=True)
    return arguments[0]
";
    let scene = Scene::with(text, &json!({}));
    let some = scene.submit(3);
    scene.others_go_on();
    scene.are_done(&some);
    assert_eq!(scene.calls(), 3);
    scene.ends_unharmed();
}

#[test]
fn one_that_closes_descriptors_is_done() {
    for what in [
        "for n in (0, 1, 2): os.close(n)",
        "os.closerange(0, 3)",
        "sys.stdin.close(); sys.stdout.close(); sys.stderr.close()",
        "os.closerange(0, 30)",
        "sys.stdout = sys.stderr = None",
    ] {
        let text = format!(
            "
from redis import Redis
import settings

def run(*arguments):
    record(__name__, 'run', arguments)
    {what}
    return arguments[0]
"
        );
        let scene = Scene::with(&text, &json!({}));
        let some = scene.submit(4);
        scene.are_done(&some);
        assert_eq!(scene.calls(), 4, "{what}");
        scene.ends_unharmed();
    }
}

/// Nothing but the end of the process can come of that.
#[test]
fn one_that_closes_every_descriptor_makes_a_dead_letter() {
    let text = "
def run(*arguments):
    record(__name__, 'run', arguments)
    os.closerange(0, 70000)
    return arguments[0]
";
    let scene = Scene::with(text, &json!({"timeout": 20}));
    let some = scene.submit(1);
    scene.others_go_on();
    scene.are_dead(&some, "odd");
    scene.ends_unharmed();
}

#[test]
fn one_that_exits_fails_its_vcon_and_nothing_else() {
    for (statement, reason) in [
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit('over')", "SystemExit: over"),
        ("exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise BaseException('all')", "BaseException: all"),
    ] {
        let text = format!(
            "def run(*arguments):\n    record(__name__, 'run', arguments)\n    {statement}\n"
        );
        let scene = Scene::with(&text, &json!({}));
        let some = scene.submit(2);
        scene.are_dead(&some, reason);
        assert_eq!(scene.calls(), 2);
        // Its process has gone on.
        let calls = scene.redis.calls();
        let mut pids: Vec<i32> = calls.iter().map(|call| call.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        assert!(
            pids.iter().all(|pid| is_alive(*pid)),
            "{statement}: {pids:?}"
        );
        scene.ends_unharmed();
    }
}

#[test]
fn one_that_ends_its_process_once_is_called_again() {
    for end in [
        "os._exit(3)",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.killpg(os.getpgid(0), signal.SIGKILL)",
        "os.abort()",
    ] {
        let text = format!(
            "{NOTE}
def run(*arguments):
    record(__name__, 'run', arguments)
    if client.hincrby('times', arguments[0], 1) == 1:
        {end}
    return arguments[0]
"
        );
        let scene = Scene::with(&text, &json!({}));
        let some = scene.submit(2);
        scene.are_done(&some);
        assert_eq!(scene.calls(), 4, "{end}");
        scene.ends_unharmed();
    }
}

#[test]
fn one_that_always_ends_its_process_makes_a_dead_letter_after_the_third_time() {
    for (end, how) in [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ] {
        let text =
            format!("def run(*arguments):\n    record(__name__, 'run', arguments)\n    {end}\n");
        let scene = Scene::with(&text, &json!({}));
        let some = scene.submit(1);
        scene.are_dead(&some, how);
        assert_eq!(scene.calls(), 3, "{end}: {}", scene.daemon.log());
        scene.ends_unharmed();
    }
}

/// Waits at its import as long as there is the file `HOLD`, and notes that it does.
const IMPORTS_LONG: &str = "
from redis_mgr import client

client.rpush('imports', os.getpid())
while os.path.exists(os.environ['HOLD']):
    time.sleep(0.01)

def run(*arguments):
    record(__name__, 'run', arguments)
    return arguments[0]
";

#[test]
fn one_that_takes_long_to_import_holds_up_nobody_else() {
    let scene = Scene::with(IMPORTS_LONG, &json!({}));
    // Whoever has looked whether it can be imported is done.
    let before = scene.redis.length("imports");
    let hold = scene.deployment.folder().join("hold");
    fs::write(&hold, "").expect("a file");
    let some = scene.submit(1);
    scene.wait_for_numbers("imports", before + 1);
    scene.others_go_on();
    assert_eq!(scene.calls(), 0);
    fs::remove_file(&hold).expect("a file");
    scene.are_done(&some);
    assert_eq!(scene.redis.length("imports"), before + 1);
    scene.ends_unharmed();
}

#[test]
fn one_that_takes_too_long_to_import_is_killed_and_its_vcons_wait() {
    let environment = [
        ("CONSERVER_PYTHON_TIMEOUT", "2"),
        ("CONSERVER_RETRY_ATTEMPTS", "1"),
    ];
    let scene = Scene::with_environment(IMPORTS_LONG, &json!({}), &environment);
    let before = scene.redis.length("imports");
    let hold = scene.deployment.folder().join("hold");
    fs::write(&hold, "").expect("a file");
    let some = scene.submit(1);
    let importing = scene.wait_for_numbers("imports", before + 1)[before];
    scene.daemon.wait_for_log("time limit of 2 s", PATIENCE);
    wait_until_gone(&[importing]);
    scene.others_go_on();
    assert_eq!(scene.redis.length("DLQ:odd"), 0);
    fs::remove_file(&hold).expect("a file");
    scene.are_done(&some);
    scene.ends_unharmed();
}

/// What is lost with each call is 30 MB: no limit stands against it but that of the system, and the lane's
/// own process is the one that has it.
#[test]
fn one_that_leaks_does_so_in_its_own_process() {
    let text = "
leak = []

def run(*arguments):
    leak.append(bytearray(os.urandom(1 << 20) * 30))
    record(__name__, 'run', arguments)
    return arguments[0]
";
    let scene = Scene::with(text, &json!({}));
    let before = resident_set_of(scene.worker);
    let some = scene.submit(12);
    scene.are_done(&some);
    let leaked: u64 = hosts(&scene.daemon).into_iter().map(resident_set_of).sum();
    assert!(leaked > 300 << 20, "{leaked} bytes in hosts");
    let after = resident_set_of(scene.worker);
    assert!(
        after < before + (30 << 20),
        "the worker has grown from {before} to {after} bytes"
    );
    scene.ends_unharmed();
}

/// The limit is the module's own here; what it meets is what it meets where a service has one.
#[test]
fn one_that_runs_out_of_memory_makes_its_vcon_wait_until_there_is_some() {
    let text = format!(
        "{NOTE}
import resource

def run(*arguments):
    record(__name__, 'run', arguments)
    if not client.exists('memory'):
        now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
    else:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    bytearray(256 << 20)
    return arguments[0]
"
    );
    let environment = [
        ("CONSERVER_RETRY_ATTEMPTS", "2"),
        ("CONSERVER_MAX_ROUNDS", "0"),
    ];
    let scene = Scene::with_environment(&text, &json!({}), &environment);
    let some = scene.submit(1);
    scene.daemon.wait_for_log("MemoryError", PATIENCE);
    scene.others_go_on();
    scene.redis.ask::<String>(&["SET", "memory", "1"]);
    scene.are_done(&some);
    scene.ends_unharmed();
}
