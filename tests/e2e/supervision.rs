//! What the supervisor does besides starting workers: reloads, limits, signals, health.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Redis, chain, delay, exec, fresh, is_alive, preload,
    submit, wait_until,
};

fn ready(daemon: &Daemon) -> u64 {
    let status = daemon.status().unwrap_or_default();
    status["workers_ready"].as_u64().unwrap_or(0)
}

#[test]
fn a_reload_never_leaves_fewer_workers_than_wanted_and_loses_nothing() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.05)], &[]))
        .workers(3)
        .start();
    daemon.wait_for_workers(3);
    let samples = fresh(150);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    for round in 1..=3 {
        let seconds = 0.05 - 0.01 * f64::from(round);
        daemon.reconfigure(&chain(&[delay(seconds)], &[]));
        daemon.signal(Signal::SIGHUP);
        let replaced = || {
            let ready = ready(&daemon);
            assert!(ready >= 3, "only {ready} workers are ready");
            daemon.count_in_log("All workers are replaced") == round as usize
        };
        wait_until("the workers are replaced", PATIENCE, replaced);
        // The spare, too: one that still drains when the next reload wants it counts as replaced.
        daemon.wait_for_workers(3);
    }
    assert_eq!(daemon.count_in_log("died unexpectedly"), 0);
    let restarts = daemon.status().expect("it runs")["restarts"].clone();
    for (cause, expected) in [("reloaded", 9), ("recycled", 0), ("died", 0)] {
        assert_eq!(restarts[cause], expected, "{cause}: {restarts}");
    }
    ledger.settles();
    daemon.stop();
}

#[test]
fn a_reload_of_a_bad_configuration_changes_nothing() {
    let redis = Redis::plain();
    let config = chain(&[], &[]);
    let daemon = Conserver::with(&redis).config(&config).workers(2).start();
    let before = daemon.wait_for_workers(2);
    daemon.reconfigure(&json!({"chains": {"main": {"links": ["nothing"]}}}));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log(
        "The configuration is not valid, the former one stays",
        PATIENCE,
    );
    assert_eq!(daemon.wait_for_workers(2), before);
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();

    // A worker that is started now works with the former one too.
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until("the worker is replaced", PATIENCE, || {
        daemon.workers()[&1] != before[&1]
    });
    daemon.wait_for_workers(2);
    redis.ask::<i64>(&["DEL", "done"]);
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn a_worker_started_after_the_file_has_changed_works_with_the_new_one() {
    for method in ["fork", "spawn", "forkserver"] {
        let redis = Redis::plain();
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .method(method)
            .env("TICK_INTERVAL", "100")
            .start();
        let before = daemon.wait_for_workers(1);
        let mut config = chain(&[], &[]);
        config["chains"]["main"]["egress_lists"] = json!(["elsewhere"]);
        daemon.reconfigure(&config);
        daemon.wait_for_log("was read and is in force", PATIENCE);
        kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
        wait_until("the worker is replaced", PATIENCE, || {
            daemon.workers()[&1] != before[&1]
        });
        let samples = fresh(5);
        submit(&redis, "default", &samples);
        wait_until("all are done", PATIENCE, || redis.length("elsewhere") == 5);
        daemon.stop();
    }
}

#[test]
fn a_worker_that_refuses_its_configuration_is_told_of_once() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn")
        .workers(2)
        .start();
    let before = daemon.wait_for_workers(2);
    let accepted = daemon.conserver().runtime_folder().join("here.config");
    fs::write(&accepted, "chains: [").expect("a file");
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
    daemon.wait_for_log(
        "cannot work with its configuration (exit code 78)",
        PATIENCE,
    );
    let status = daemon.status().unwrap_or_default();
    assert_eq!(status["workers"][0]["state"], "refused");
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("cannot work with its configuration"), 1);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("All workers are replaced", PATIENCE);
    daemon.wait_for_workers(2);
    daemon.stop();
}

#[test]
fn a_worker_that_refuses_its_configuration_ends_a_rolling_restart_and_the_spare_stands_in() {
    let redis = Redis::plain();
    // A drain waits for a program.
    let slow = exec(&json!({"command": ["sh", "-c", "sleep 3; cat"]}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("slow", slow)], &[]))
        .method("spawn")
        .workers(2)
        .start();
    daemon.wait_for_workers(2);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    wait_until("each worker has one", PATIENCE, || {
        redis.length("default") == 0
    });
    daemon.signal(Signal::SIGHUP);
    wait_until("Worker-1 drains", PATIENCE, || {
        daemon.status().unwrap_or_default()["workers"][0]["state"] == "draining"
    });
    let accepted = daemon.conserver().runtime_folder().join("here.config");
    fs::write(&accepted, "chains: [").expect("a file");
    daemon.wait_for_log("The workers are not replaced", PATIENCE);
    wait_until("Worker-2 and the spare work", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        status["state"] == "running" && status["workers_ready"] == 2
    });
    let status = daemon.status().unwrap_or_default();
    assert_eq!(status["workers"][0]["state"], "refused", "{status}");
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("All workers are replaced"), 0);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("All workers are replaced", PATIENCE);
    daemon.wait_for_workers(2);
    daemon.stop();
}

#[test]
fn when_every_worker_refuses_its_configuration_the_daemon_ends_with_78() {
    let redis = Redis::plain();
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn")
        .start();
    let before = daemon.wait_for_workers(1);
    let accepted = daemon.conserver().runtime_folder().join("here.config");
    fs::write(&accepted, "chains: [").expect("a file");
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
    assert_eq!(daemon.wait_exit(PATIENCE), 78);
    assert!(
        daemon
            .log()
            .contains("No worker can work with the configuration")
    );
}

#[test]
fn a_vcon_beyond_its_chains_time_takes_its_worker_along_and_alone_has_the_blame() {
    let redis = Redis::plain();
    // It asks nothing of anyone, so nothing ends it by itself.
    let mut config = chain(&[delay(600.0)], &[]);
    config["chains"]["main"]["timeout"] = json!(1);
    // A chain without a limit, in the same worker.
    config["chains"]["patient"] = json!({"links": ["slowly"], "ingress_lists": ["patient"]});
    let daemon = Conserver::with(&redis)
        .config(&config)
        .lanes(2)
        .env("CONSERVER_MAX_DEATHS", "1")
        .env("TICK_INTERVAL", "100")
        .start();
    let (patient, hasty) = (fresh(1), fresh(1));
    submit(&redis, "patient", &patient);
    wait_until("one is in hand", PATIENCE, || redis.length("patient") == 0);
    submit(&redis, "default", &hasty);
    daemon.wait_for_log("its limit of 1 s (its chain's timeout", PATIENCE);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &hasty[0].id]);
    assert!(reason.contains("died"), "{reason}");
    assert_eq!(redis.length("DLQ:patient"), 0);
    let back = || redis.keys("conserver:claims:*").len() == 1;
    wait_until("the other is in work again", PATIENCE, back);
}

#[test]
fn time_spent_waiting_for_a_server_that_is_away_is_not_the_vcons() {
    let redis = Redis::plain();
    let mut config = chain(
        &[],
        &[(
            "pg",
            json!({
                "module": "storage.postgres",
                "options": {"host": "127.0.0.1", "port": 1, "user": "u", "password": "p", "database": "d"},
            }),
        )],
    );
    config["chains"]["main"]["timeout"] = json!(1);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("TICK_INTERVAL", "100")
        .start();
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    daemon.wait_for_log("storage pg is away", PATIENCE);
    let status = || daemon.status().unwrap_or_default()["workers"][0]["state"].clone();
    wait_until("the worker is seen to hold its chain", PATIENCE, || {
        status() == "holding"
    });
    // Longer than limit and grace together: that nothing happens is what is tested.
    thread::sleep(Duration::from_secs(7));
    assert_eq!(daemon.count_in_log("killed"), 0);
    assert_eq!(redis.length("DLQ:default"), 0);
}

#[test]
fn workers_are_recycled_after_their_share_of_vcons() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("CONSERVER_WORKER_MAX_VCONS", "20")
        .start();
    let samples = fresh(300);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let recycled = daemon.count_in_log("makes way for a fresh one: it has done");
    assert!((14..=18).contains(&recycled), "{recycled} times");
    assert_eq!(daemon.count_in_log("died unexpectedly"), 0);
    daemon.wait_for_workers(2);
    daemon.stop();
}

#[test]
fn forked_workers_are_not_recycled_together() {
    for method in ["fork", "forkserver"] {
        let redis = Redis::plain();
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .method(method)
            .workers(4)
            .env("CONSERVER_WORKER_MAX_VCONS", "200")
            .start();
        let first = daemon.wait_for_workers(4);
        let said = "makes way for a fresh one: it has done ";
        let share = |log: &str, worker: &usize| -> Option<u64> {
            let name = format!("Worker-{worker} {said}");
            let (_, rest) = log.lines().find_map(|line| line.split_once(&name))?;
            rest.split_once(' ')?.0.parse().ok()
        };
        let mut shares: Vec<u64> = Vec::new();
        wait_until("each has been recycled", PATIENCE, || {
            if redis.length("default") < 100 {
                submit(&redis, "default", &fresh(200));
            }
            let log = daemon.log();
            shares = (first.keys())
                .filter_map(|worker| share(&log, worker))
                .collect();
            shares.len() == 4
        });
        // One of 21 numbers each: that all four draw the same is one in nine thousand.
        assert!(shares.iter().any(|count| *count != shares[0]), "{shares:?}");
        daemon.stop();
    }
}

#[test]
fn a_worker_that_makes_way_begins_nothing_more() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.05)], &[]))
        .env("CONSERVER_WORKER_MAX_VCONS", "1")
        .start();
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(daemon.count_in_log("makes way for a fresh one: it has done") >= 4);
    // A link that notices the drain gives up what it has begun.
    assert_eq!(daemon.count_in_log("Returned "), 0);
    daemon.stop();
}

#[test]
fn workers_are_recycled_when_they_have_grown_too_large() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_WORKER_MAX_RSS_MB", "1")
        .env("TICK_INTERVAL", "100")
        .start();
    // With nothing done, and at once all the same: none of them waits for its start.
    let recycled = || {
        let status = daemon.status().expect("it runs");
        let wait = &status["workers"][0]["restart_in_seconds"];
        assert!(wait.is_null(), "the next is started in {wait} s");
        daemon.count_in_log("MB of memory") >= 9
    };
    wait_until("the worker was recycled", PATIENCE, recycled);
    let log = daemon.log();
    let sizes = log.lines().filter_map(|line| {
        let (_, size) = line.split_once("it uses ")?;
        size.split_once(" MB of memory")?.0.parse::<u64>().ok()
    });
    for size in sizes {
        assert!((2..1000).contains(&size), "{size}");
    }
    let samples = fresh(50);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("died unexpectedly"), 0);
    daemon.stop();
}

#[test]
fn a_worker_that_hangs_is_killed_and_replaced() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("TICK_INTERVAL", "100")
        .start();
    let before = daemon.wait_for_workers(2);
    kill(Pid::from_raw(before[&2]), Signal::SIGSTOP).expect("the worker runs");
    daemon.wait_for_log("has not shown itself", PATIENCE);
    wait_until("it is gone", PATIENCE, || !is_alive(before[&2]));
    let after = daemon.wait_for_workers(2);
    assert_eq!(after[&1], before[&1]);
    daemon.stop();
}

#[test]
fn a_daemon_that_was_stopped_as_a_whole_does_not_kill_its_workers_for_it() {
    let redis = Redis::plain();
    let mut config = chain(&[delay(8.0)], &[]);
    config["chains"]["main"]["timeout"] = json!(4);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .workers(2)
        .env("TICK_INTERVAL", "200")
        .start();
    let before = daemon.wait_for_workers(2);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    wait_until("it is in hand", PATIENCE, || redis.length("default") == 0);
    let group = Pid::from_raw(daemon.pid());
    killpg(group, Signal::SIGSTOP).expect("the daemon runs");
    // The length of the standstill is what is tested: beyond every limit.
    thread::sleep(Duration::from_secs(4));
    killpg(group, Signal::SIGCONT).expect("the daemon runs");
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.wait_for_workers(2), before);
    assert_eq!(daemon.count_in_log("is away"), 0, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_signal_logs_what_every_worker_does() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &[]))
        .workers(2)
        .start();
    let workers = daemon.wait_for_workers(2);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    wait_until("it is shown to be in hand", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        let mut workers = status["workers"].as_array().into_iter().flatten();
        workers.any(|worker| worker["vcon"] == *samples[0].id)
    });
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for_log("2 of 2 workers ready, 1 vCon in work", PATIENCE);
    for (number, pid) in workers {
        daemon.wait_for_log(&format!("Worker-{number} (PID {pid}) ready"), PATIENCE);
    }
    daemon.wait_for_log(&format!("at work on {}", samples[0].id), PATIENCE);
}

#[test]
fn a_second_daemon_of_the_same_name_does_not_start() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let second = daemon.conserver().run(&["run"]);
    assert_eq!(second.code, 69, "{}", second.output());
    let expected = format!("is running already (PID {})", daemon.pid());
    assert!(second.stderr.contains(&expected), "{}", second.output());
    assert_eq!(daemon.wait_for_workers(1), daemon.workers());
    daemon.stop();
}

#[test]
fn a_daemon_takes_over_at_once_after_one_that_was_killed() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    daemon.signal(Signal::SIGKILL);
    wait_until("it is gone", PATIENCE, || daemon.status().is_none());
    let left = daemon.conserver().run(&["status"]);
    assert_eq!(left.code, 69);
    assert!(
        left.stderr.contains("was left behind by PID"),
        "{}",
        left.output()
    );
    let start = Instant::now();
    let again = daemon.conserver().launch_again();
    again.wait_for_log("All 1 workers ready", PATIENCE);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_scoreboard_that_is_cut_short_is_put_right() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("TICK_INTERVAL", "100")
        .start();
    daemon.wait_for_workers(2);
    let board = daemon.conserver().runtime_folder().join("here.scoreboard");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(board)
        .expect("a file");
    file.set_len(100).expect("a file");
    daemon.wait_for_log("the scoreboard was cut short", PATIENCE);
    daemon.wait_for_workers(2);
    let samples = fresh(50);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// The program as spawned workers see it: it aborts before its first line.
const CRASH: &str = r#"
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    __attribute__((constructor)) static void crash(void) {
        char line[256] = "";
        int file = open("/proc/self/cmdline", O_RDONLY);
        long count = read(file, line, sizeof line - 1);
        if (count > 10 && strcmp(line + strlen(line) + 1, "child") == 0) abort();
    }"#;

#[test]
fn workers_that_always_crash_are_slowed_down_and_can_be_stopped() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn")
        .workers(4);
    let library = preload(conserver.folder(), CRASH);
    let mut daemon = conserver.env("LD_PRELOAD", library).launch();
    daemon.wait_for_log("restarting in 1.", PATIENCE);
    let log = daemon.log();
    assert!(log.contains("killed by SIGABRT"), "{log}");
    let deaths = daemon.count_in_log("died unexpectedly");
    // Four workers and the monitor, five or six deaths each until the wait is above a second.
    assert!(deaths <= 5 * 7, "{deaths} deaths");
    assert!(log.lines().count() <= 3 * 5 * 7, "{log}");
    let start = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

/// Has Redis hang for longer than the time a chain allows, while a vCon of it is done and only to
/// be settled.
fn hangs_while_a_vcon_is_settled(refuses_first: bool) {
    let redis = Redis::plain();
    let mut config = chain(&[delay(1.0)], &[]);
    config["chains"]["main"]["timeout"] = json!(2);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("TICK_INTERVAL", "100")
        .start();
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    wait_until("it is in work", PATIENCE, || redis.length("default") == 0);
    if refuses_first {
        redis.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        daemon.wait_for_log("Redis is away", PATIENCE);
    }
    redis.signal(Signal::SIGSTOP);
    // Longer than limit and grace together: that nothing happens is what is tested.
    thread::sleep(Duration::from_secs(9));
    redis.signal(Signal::SIGCONT);
    redis.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("killed"), 0, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_redis_that_hangs_costs_no_vcon_its_chains_time() {
    hangs_while_a_vcon_is_settled(false);
}

#[test]
fn a_redis_that_refuses_and_then_hangs_costs_no_vcon_its_chains_time() {
    hangs_while_a_vcon_is_settled(true);
}

#[test]
fn a_lane_that_works_on_one_vcon_for_too_long_is_called_stuck_once() {
    let redis = Redis::plain();
    let start = |seconds: &str| {
        Conserver::with(&redis)
            .config(&chain(&[delay(600.0)], &[]))
            .lanes(2)
            .env("TICK_INTERVAL", "100")
            .env("CONSERVER_DRAIN_TIMEOUT", "0")
            .env("CONSERVER_STUCK_AFTER", seconds)
            .start()
    };
    let daemon = start("2");
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(1);
    wait_until("it is busy", PATIENCE, || {
        let status = daemon.status();
        status.is_some_and(|status| status["workers"][0]["state"] == "busy")
    });
    let said = "Worker-1 is stuck: lane ";
    daemon.wait_for_log(said, PATIENCE);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(said));
    let line = line.expect("it says so");
    assert!(
        line.contains("WARN") && line.contains(&samples[0].id),
        "{line}"
    );
    let status = daemon.status().expect("it runs");
    assert_eq!(status["workers"][0]["state"], "stuck");
    assert_eq!(status["workers"][0]["lanes"][0]["stuck"], true);
    let text = daemon.conserver().run(&["status"]).stdout;
    let shown = format!("has worked on {} for ", samples[0].id);
    assert!(
        text.contains("Stuck: worker 1, lane ") && text.contains(&shown),
        "{text}"
    );
    // It looks ten times a second: that it says nothing more is what is tested.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.count_in_log("is stuck"), 1);
    daemon.stop();

    let daemon = start("0");
    redis.wait_for_claims(1);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.count_in_log("is stuck"), 0);
    daemon.stop();
}
