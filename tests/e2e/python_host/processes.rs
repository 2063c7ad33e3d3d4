//! The hosts as processes: how many there are, when, and what becomes of them.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{bare, beside, conserver, hosts, module, samples};
use crate::harness::{
    Conserver, Deployment, Files, Ledger, PATIENCE, Redis, chain, command_line_of, is_alive,
    submit, wait_until, wait_until_gone,
};

/// The interpreters of a daemon, whatever they run.
fn interpreters(daemon: &crate::harness::Daemon) -> Vec<String> {
    let lines = daemon.family().into_iter().map(command_line_of);
    lines.filter(|line| line.contains("python")).collect()
}

#[test]
fn a_lane_without_python_modules_starts_no_interpreter() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    // A folder without hooks, and none at all.
    let practice = deployment.folder().join("practice").display().to_string();
    for path in [Some(practice), None] {
        let mut conserver = Conserver::with(&redis).config(&config).workers(2).lanes(2);
        if let Some(path) = &path {
            conserver = conserver.env("CONSERVER_PYTHON_PATH", path.as_str());
        }
        // Whoever starts an interpreter all the same is told on.
        let trap = deployment.folder().join("trap");
        let started = deployment.folder().join("started");
        fs::write(&trap, format!("#!/bin/sh\necho >>{}\n", started.display())).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&trap, mode).expect("a file");
        let daemon = conserver.env("CONSERVER_PYTHON", trap).start();
        let some = samples("plain", 20);
        let before = redis.length("done");
        submit(&redis, "default", &some);
        wait_until("all are done", PATIENCE, || {
            redis.length("done") == before + some.len()
        });
        assert_eq!(interpreters(&daemon), Vec::<String>::new());
        daemon.stop();
        assert!(!started.exists(), "{path:?}: an interpreter was started");
    }
}

#[test]
fn hooks_that_do_nothing_keep_no_interpreter_running() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    // The deployment's path has such hooks.
    let daemon = conserver(&redis, &deployment, &config).lanes(2).start();
    let some = samples("plain", 20);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    wait_until("no interpreter is left", PATIENCE, || {
        interpreters(&daemon).is_empty()
    });
    daemon.stop();
}

#[test]
fn each_lane_has_a_host_of_its_own_that_lives_as_long_as_it() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let links = [
        ("rests", module("links.sleeps", json!({"seconds": 0.05}))),
        ("counts", bare("links.counts")),
    ];
    let storages = [("drawer", bare("storage.drawer"))];
    let daemon = conserver(&redis, &deployment, &chain(&links, &storages))
        .workers(2)
        .lanes(2)
        .start();
    let some = samples("plain", 60);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    let hosts = hosts(&daemon);
    assert!((1..=4).contains(&hosts.len()), "{hosts:?}");
    let mut callers: Vec<i32> = redis.calls().iter().map(|call| call.pid).collect();
    callers.sort_unstable();
    callers.dedup();
    assert!(
        callers.iter().all(|pid| hosts.contains(pid)),
        "{callers:?} are not all in {hosts:?}"
    );
    // Whatever a lane calls, it calls in one process.
    let calls = redis.calls_by_vcon();
    for calls in calls.values() {
        assert_eq!(calls.len(), 3);
        assert!(
            calls.iter().all(|call| call.pid == calls[0].pid),
            "{calls:?}"
        );
    }
    daemon.stop();
    wait_until_gone(&hosts);
}

#[test]
fn no_host_outlives_a_worker_or_a_daemon_that_is_killed() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let links = [("rests", module("links.sleeps", json!({"seconds": 0.05})))];
    let daemon = conserver(&redis, &deployment, &chain(&links, &[]))
        .workers(2)
        .lanes(2)
        .start();
    let some = samples("plain", 80);
    submit(&redis, "default", &some);
    wait_until("hosts are at work", PATIENCE, || redis.length("done") > 8);
    let before = hosts(&daemon);
    assert!(!before.is_empty());
    let workers = daemon.workers();
    for pid in workers.values() {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it runs");
    }
    wait_until_gone(&before);
    wait_until("hosts are at work again", PATIENCE, || {
        hosts(&daemon).iter().any(|pid| !before.contains(pid))
    });
    let again = hosts(&daemon);
    // The daemon alone: its workers end by themselves.
    let family = daemon.family();
    daemon.signal(Signal::SIGKILL);
    wait_until_gone(&family[1..]);
    wait_until_gone(&again);
    let daemon = daemon.conserver().launch_again();
    Ledger::of(&redis, &some).settles();
    daemon.stop();
}

#[test]
fn a_drain_lets_a_call_come_to_its_end() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    deployment.write(
        "waits_for_sign.py",
        "import os, time\nfrom redis_mgr import client\n\
         def run(uuid, name, options):\n    client.rpush('waiting', uuid)\n    \
         while not client.exists('sign'): time.sleep(0.01)\n    return uuid\n",
    );
    let mut daemon = conserver(
        &redis,
        &deployment,
        &chain(&[("waits", bare("waits_for_sign"))], &[]),
    )
    .env("CONSERVER_DRAIN_TIMEOUT", "600")
    .start();
    let some = samples("plain", 2);
    submit(&redis, "default", &some);
    wait_until("a call is made", PATIENCE, || redis.length("waiting") == 1);
    let hosts = hosts(&daemon);
    daemon.terminate();
    daemon.wait_for_log("SIGTERM received", PATIENCE);
    assert!(hosts.iter().all(|pid| is_alive(*pid)));
    redis.ask::<String>(&["SET", "sign", "1"]);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    // The worker may hear of the drain only after its first vCon.
    assert_eq!(redis.list("done")[0], some[0].id);
    Ledger::of(&redis, &some).is_split_between(&["done", "default"]);
    wait_until_gone(&hosts);
}

#[test]
fn a_drain_that_is_over_ends_a_call_and_gives_its_vcon_back() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let links = [("rests", module("links.sleeps", json!({"seconds": 1000})))];
    let mut daemon = conserver(&redis, &deployment, &chain(&links, &[]))
        .env("CONSERVER_DRAIN_TIMEOUT", "1")
        .start();
    let some = samples("plain", 1);
    submit(&redis, "default", &some);
    wait_until("a call is made", PATIENCE, || redis.length("calls") > 0);
    let hosts = hosts(&daemon);
    assert_eq!(hosts.len(), 1);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert_eq!(redis.list("default"), [some[0].id.as_str()]);
    assert_eq!(redis.length("done") + redis.length("DLQ:default"), 0);
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    wait_until_gone(&hosts);
}

#[test]
fn a_new_configuration_whose_module_cannot_be_imported_is_not_taken() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let config = chain(&[("counts", bare("links.counts"))], &[]);
    let daemon = conserver(&redis, &deployment, &config)
        .env("TICK_INTERVAL", "100")
        .start();
    let mut worse = config.clone();
    beside(&mut worse, &[("odd", bare("odd"))]);
    deployment.write("odd.py", "import of_no_such_name\n");
    daemon.reconfigure(&worse);
    daemon.wait_for_log("No module named 'of_no_such_name'", PATIENCE);
    let some = samples("plain", 3);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    // Nor is what the new one says in force.
    let others = samples("plain", 1);
    submit(&redis, "odd", &others);
    assert_eq!(redis.list("odd"), [others[0].id.as_str()]);

    deployment.write("odd.py", "def run(uuid, name, options): return uuid\n");
    let mut better = worse.clone();
    better["chains"]["odd"]["timeout"] = json!(60);
    daemon.reconfigure(&better);
    wait_until("the new one is in force", PATIENCE, || {
        redis.length("odd_done") == 1
    });
    daemon.stop();
}

#[test]
fn a_new_configuration_brings_modules_and_imports_that_were_not_there() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let config = chain(&[("counts", bare("links.counts"))], &[]);
    let daemon = conserver(&redis, &deployment, &config)
        .env("TICK_INTERVAL", "100")
        .start();
    let some = samples("plain", 3);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    let before = hosts(&daemon);
    let mut more = chain(
        &[
            ("counts", bare("links.counts")),
            ("marks", bare("links.marks")),
        ],
        &[],
    );
    more["imports"] = json!({"opening": {"module": "practice.opening"}});
    daemon.reconfigure(&more);
    let is_marked = || {
        let calls = redis.calls();
        calls.iter().any(|call| call.call == "links.marks.run")
    };
    let mut done = some.len();
    while !is_marked() {
        submit(&redis, "default", &samples("plain", 1));
        done += 1;
        wait_until("it is done", PATIENCE, || redis.length("done") == done);
        assert!(
            done < 10_000,
            "the new configuration is not taken: {}",
            daemon.log()
        );
    }
    let marked = redis
        .calls()
        .into_iter()
        .filter(|call| call.call == "links.marks.run");
    let imported: Vec<i32> = redis
        .calls()
        .iter()
        .filter(|call| call.call == "practice.opening.import")
        .map(|call| call.pid)
        .collect();
    for call in marked {
        assert!(imported.contains(&call.pid), "{imported:?}: {call:?}");
    }
    wait_until_gone(&before);
    daemon.stop();
}

#[test]
fn an_import_that_takes_long_holds_up_the_start_and_nothing_dies_of_it() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    deployment.write(
        "slow.py",
        "import os, time\nfrom redis_mgr import client\nclient.rpush('imports', os.getpid())\n\
         while client.exists('hold'): time.sleep(0.01)\n",
    );
    let mut config = chain(&[("counts", bare("links.counts"))], &[]);
    config["imports"] = json!({"slow": "slow"});
    let daemon = conserver(&redis, &deployment, &config).workers(2).start();
    let before = daemon.wait_for_workers(2);
    // From now on, each new host waits.
    redis.ask::<String>(&["SET", "hold", "1"]);
    let imports = redis.length("imports");
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("it runs");
    wait_until("another host imports", PATIENCE, || {
        redis.length("imports") > imports
    });
    let some = samples("plain", 6);
    submit(&redis, "default", &some);
    // The other worker goes on.
    Ledger::of(&redis, &some).settles();
    redis.ask::<i64>(&["DEL", "hold"]);
    let after = daemon.wait_for_workers(2);
    assert_eq!(after[&2], before[&2]);
    assert_eq!(
        daemon.count_in_log("died unexpectedly"),
        1,
        "{}",
        daemon.log()
    );
    daemon.stop();
}

#[test]
fn an_import_that_fails_keeps_the_daemon_from_starting_and_is_told_once() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    deployment.write("broken.py", "raise RuntimeError('broken on purpose')\n");
    let mut config = chain(&[], &[]);
    config["imports"] = json!({"broken": {"module": "broken"}});
    let mut daemon = conserver(&redis, &deployment, &config)
        .workers(4)
        .lanes(4)
        .launch();
    assert_eq!(daemon.wait_exit(PATIENCE), 78, "{}", daemon.log());
    let log = daemon.log();
    let told = log
        .lines()
        .filter(|line| line.contains("imports.broken") && line.contains("broken on purpose"));
    assert_eq!(told.count(), 1, "{log}");
}
