//! The lease of a daemon on its name: one daemon of a name at a time, and no waiting after a crash.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, LEASE, Ledger, PATIENCE, Redis, chain, delay, fresh, preload, submit, wait_until,
};

/// A daemon that keeps what it has claimed in hand.
fn holding(redis: &Redis) -> Conserver {
    Conserver::with(redis).config(&chain(&[delay(600.0)], &[]))
}

fn refuses_a_second_daemon(method: &str) {
    let redis = Redis::plain();
    let first = holding(&redis).workers(2).method(method).start();
    let before = first.wait_for_workers(2);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    let in_hand = redis.wait_for_claims(2);

    let second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .method(method)
        .run(&["run"]);
    assert_eq!(second.code, 69, "{}", second.output());
    let host = nix::unistd::gethostname().expect("a host name");
    let message = format!(
        "the instance name \"here\" is in use by the conserver on host {} with PID {}; \
         set CONSERVER_INSTANCE to another name here",
        host.to_string_lossy(),
        first.pid()
    );
    let said = second.stderr.matches(&message).count();
    assert_eq!(said, 1, "{}", second.output());
    for wrong in ["died", "is away", "ready"] {
        assert!(!second.stderr.contains(wrong), "{}", second.output());
    }

    assert_eq!(redis.claims(), in_hand);
    assert_eq!(redis.list("default"), [samples[2].id.clone()]);
    assert!(redis.is_held_by(&first));
    assert_eq!(first.wait_for_workers(2), before);
}

#[test]
fn a_second_daemon_of_the_same_name_does_not_start() {
    refuses_a_second_daemon("fork");
}

#[test]
fn a_second_daemon_of_the_same_name_does_not_start_by_spawn() {
    refuses_a_second_daemon("spawn");
}

#[test]
fn a_second_daemon_of_the_same_name_does_not_start_by_forkserver() {
    refuses_a_second_daemon("forkserver");
}

#[test]
fn a_restart_after_a_crash_of_all_processes_takes_over_before_the_lease_runs_out() {
    let redis = Redis::plain();
    let first = holding(&redis)
        .workers(4)
        .env("CONSERVER_HEARTBEAT_TTL", "3600")
        .start();
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(4);
    wait_until("it has its name", PATIENCE, || redis.is_held_by(&first));
    first.kill_family();
    assert!(redis.is_held_by(&first));

    // Fewer workers than before, and elsewhere: nothing of the first but its lease is there.
    let second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .start();
    second.wait_for_workers(2);
    Ledger::of(&redis, &samples).settles();
    assert!(redis.is_held_by(&second));
    assert_eq!(second.count_in_log("took the name \"here\" over"), 1);
    assert_eq!(second.count_in_log("is in use"), 0, "{}", second.log());
    second.stop();
}

#[test]
fn a_clean_end_leaves_no_trace_of_the_instance() {
    let redis = Redis::plain();
    for (signal, workers) in [(Signal::SIGTERM, 3), (Signal::SIGQUIT, 2)] {
        let config = chain(&[delay(0.01)], &[]);
        let conserver = Conserver::with(&redis).config(&config).workers(workers);
        let mut daemon = conserver.start();
        daemon.wait_for_workers(workers);
        wait_until("it has its name", PATIENCE, || redis.is_held_by(&daemon));
        assert_eq!(redis.instances(), ["here"]);
        // Done, every worker among those that may have claims.
        let samples = fresh(3 * workers);
        submit(&redis, "default", &samples);
        let ledger = Ledger::of(&redis, &samples);
        ledger.settles();
        let known: Vec<String> = redis.ask(&["SMEMBERS", "conserver:workers:here"]);
        assert!(!known.is_empty(), "no worker has claimed anything");
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
        let mut left = redis.keys("conserver:*");
        // Which dead letter queues there are belongs to no instance.
        left.retain(|key| key != "conserver:letters");
        assert_eq!(left, Vec::<String>::new(), "{signal}");
        redis.ask::<()>(&["FLUSHALL"]);
    }
}

#[test]
fn claims_killed_at_the_end_go_back_before_the_name_is_given_up() {
    let redis = Redis::plain();
    let mut daemon = holding(&redis).workers(3).start();
    daemon.wait_for_workers(3);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(3);
    daemon.signal(Signal::SIGQUIT);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
    assert_eq!(redis.holder(), None);
    assert_eq!(redis.instances(), Vec::<String>::new());
}

#[test]
fn a_daemon_whose_name_was_taken_while_it_was_frozen_ends() {
    let redis = Redis::plain();
    let mut first = Conserver::with(&redis)
        .config(&chain(&[delay(2.0)], &[]))
        .workers(2)
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .env("TICK_INTERVAL", "500")
        .start();
    first.wait_for_workers(2);
    let samples = fresh(6);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(2);
    first.signal_family(Signal::SIGSTOP);
    wait_until("its lease has run out", PATIENCE, || {
        redis.holder().is_none()
    });
    let second = Conserver::with(&redis)
        .config(&chain(&[delay(0.01)], &[]))
        .workers(2)
        .start();
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    first.signal_family(Signal::SIGCONT);
    assert_eq!(first.wait_exit(PATIENCE), 69);
    let said = "is in use by the conserver on host";
    assert_eq!(first.count_in_log(said), 1, "{}", first.log());
    assert!(first.log().contains(&format!("with PID {}", second.pid())));
    ledger.settles();
    assert!(redis.is_held_by(&second));
    redis.ask::<i64>(&["DEL", "done"]);
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    second.stop();
}

#[test]
fn a_daemon_whose_name_was_taken_claims_nothing_more() {
    let redis = Redis::plain();
    let mut first = Conserver::with(&redis)
        .config(&chain(&[delay(2.0)], &[]))
        .workers(2)
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    first.wait_for_workers(2);
    let samples = fresh(6);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(2);
    first.signal_family(Signal::SIGSTOP);
    wait_until("its lease has run out", PATIENCE, || {
        redis.holder().is_none()
    });
    // The second returns what the first had in hand, and serves another list.
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["other"]);
    let second = Conserver::with(&redis).config(&config).workers(2).start();
    second.wait_for_workers(2);
    assert_eq!(redis.length("default"), 6);
    // The workers go on before the monitor can say that the name is gone.
    for pid in first.workers().into_values() {
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("the worker is there");
    }
    wait_until("they know that they were late", PATIENCE, || {
        first.count_in_log("the claim was released already") == 2
    });
    first.signal_family(Signal::SIGCONT);
    assert_eq!(first.wait_exit(PATIENCE), 69);
    assert_eq!(first.count_in_log("Returned"), 0, "{}", first.log());
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
    second.stop();
}

#[test]
fn a_name_is_taken_and_held_on_a_server_that_is_full() {
    let redis = Redis::plain();
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    daemon.wait_for_workers(1);
    let mut left = i64::MAX;
    wait_until("the lease is renewed", PATIENCE, || {
        let before = std::mem::replace(&mut left, redis.ask(&["PTTL", LEASE]));
        left > before
    });
    assert_eq!(daemon.count_in_log("is away"), 0, "{}", daemon.log());
    assert_eq!(daemon.count_in_log("cannot show"), 0, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_lease_that_is_lost_with_everything_else_is_taken_again() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .start();
    let before = daemon.wait_for_workers(2);
    wait_until("it has its name", PATIENCE, || redis.is_held_by(&daemon));
    redis.ask::<()>(&["FLUSHALL"]);
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(redis.is_held_by(&daemon));
    assert_eq!(redis.instances(), ["here"]);
    assert_eq!(daemon.wait_for_workers(2), before);

    // Also where there is nothing to do.
    redis.ask::<()>(&["FLUSHALL"]);
    wait_until("it has its name", PATIENCE, || redis.is_held_by(&daemon));
    daemon.stop();
}

#[test]
fn what_is_no_lease_is_named_and_not_overwritten() {
    let redis = Redis::plain();
    redis.ask::<()>(&["SET", LEASE, "mine"]);
    let finished = holding(&redis).run(&["run"]);
    assert_eq!(finished.code, 69, "{}", finished.output());
    let expected = format!("something else that has written {LEASE}");
    assert!(finished.stderr.contains(&expected), "{}", finished.output());
    assert_eq!(redis.ask::<String>(&["GET", LEASE]), "mine");
}

/// Runs one of the daemon's scripts.
fn run_script<T: redis::FromRedisValue>(
    redis: &Redis,
    text: &str,
    keys: &[&str],
    arguments: &[&str],
) -> T {
    let script = redis::Script::new(text);
    let mut call = script.prepare_invoke();
    for key in keys {
        call.key(*key);
    }
    for argument in arguments {
        call.arg(*argument);
    }
    call.invoke(&mut redis.connection()).expect("it runs")
}

#[test]
fn claims_are_returned_in_one_step_with_a_look_at_the_lease() {
    let script = concat!(
        include_str!("../../src/queue/scripts/extend_ttl.lua"),
        include_str!("../../src/queue/scripts/put_back_context.lua"),
        include_str!("../../src/queue/scripts/reason_time.lua"),
        include_str!("../../src/queue/scripts/claim_limits.lua"),
        include_str!("../../src/queue/scripts/claim_token.lua"),
        include_str!("../../src/queue/scripts/claim_record.lua"),
        include_str!("../../src/queue/scripts/recover.lua")
    );
    let redis = Redis::plain();
    let claims = "conserver:claims:here:1";
    let record = r#"{"list":"default","uuid":"x","since":1.5}"#;
    redis.ask::<i64>(&["HSET", claims, "1", record]);
    let recover = |guard: &str| {
        let keys = [claims, "conserver:deaths", LEASE, "conserver:lapses"];
        let arguments = [
            "3",
            "9",
            "9",
            "9",
            "here Worker-1",
            "all but",
            guard,
            "somehow",
            "",
            "60",
        ];
        run_script::<redis::Value>(&redis, script, &keys, &arguments)
    };
    let refused = |found: &str| redis::Value::BulkString(found.into());
    assert_eq!(recover("ours"), refused(""));
    redis.ask::<()>(&["SET", LEASE, "theirs"]);
    assert_eq!(recover("ours"), refused("theirs"));
    assert_eq!(recover(""), refused("theirs"));
    assert_eq!(redis.length("default"), 0);
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    assert!(matches!(recover("theirs"), redis::Value::Array(_)));
    assert_eq!(redis.list("default"), ["x"]);
}

#[test]
fn a_lease_is_taken_over_only_from_the_holder_that_was_looked_at() {
    let script = include_str!("../../src/queue/scripts/instance_lease.lua");
    let redis = Redis::plain();
    let take = |ours: &str, stale: &str| {
        let keys = [LEASE, "conserver:instances"];
        let arguments = [ours, stale, "30", "here"];
        let answer: (String, String) = run_script(&redis, script, &keys, &arguments);
        answer
    };
    let answer = |what: &str, found: &str| (what.to_owned(), found.to_owned());
    assert_eq!(take("a", ""), answer("ours", ""));
    assert_eq!(take("a", ""), answer("ours", ""));
    assert_eq!(take("b", ""), answer("held", "a"));
    assert_eq!(take("b", "c"), answer("held", "a"));
    assert_eq!(take("b", "a"), answer("taken", "a"));
    assert_eq!(take("b", "a"), answer("ours", ""));
    assert_eq!(take("c", "a"), answer("held", "b"));
    assert!(redis.ask::<i64>(&["TTL", LEASE]) > 0);
}

/// A daemon whose name another one would take over after three seconds.
fn short_lease(redis: &Redis, instance: &str, seconds: f64) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[delay(seconds)], &[]))
        .env("CONSERVER_INSTANCE", instance)
        .env("CONSERVER_HEARTBEAT_TTL", "3")
}

#[test]
fn the_workers_renew_the_lease_of_a_daemon_whose_monitor_is_frozen() {
    let redis = Redis::plain();
    let first = short_lease(&redis, "here", 10.0).workers(2).start();
    first.wait_for_workers(2);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(2);
    let second = short_lease(&redis, "there", 0.0).start();
    second.wait_for_workers(1);
    // Lane 0 is the main thread.
    let renewers = || {
        let clients: String = redis.ask(&["CLIENT", "LIST"]);
        let names = ["name=conserver:here:1:0 ", "name=conserver:here:2:0 "];
        let found = names.iter().filter(|name| clients.contains(**name));
        found.count()
    };
    assert_eq!(renewers(), 0);

    let monitor = Pid::from_raw(first.process("conserver-mon"));
    kill(monitor, Signal::SIGSTOP).expect("the monitor runs");
    // More than twice the lease's time to live.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        assert!(redis.is_held_by(&first), "{}", first.log());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(renewers(), 1, "one does it for all");
    kill(monitor, Signal::SIGCONT).expect("the monitor runs");
    first.wait_for_log("others renew the lease again", PATIENCE);
    wait_until("no connection is left of it", PATIENCE, || renewers() == 0);
    Ledger::of(&redis, &samples).settles();
    for daemon in [&first, &second] {
        for wrong in ["stopped showing itself", "was released already", "killed"] {
            assert_eq!(daemon.count_in_log(wrong), 0, "{}", daemon.log());
        }
    }
    assert_eq!(redis.keys("conserver:lapses"), Vec::<String>::new());
    first.stop();
    second.stop();
}

#[test]
fn a_monitor_that_keeps_dying_is_restarted_before_its_lease_runs_out() {
    let redis = Redis::plain();
    let conserver = short_lease(&redis, "here", 0.0).method("spawn");
    let library = preload(
        conserver.folder(),
        r#"
        #include <stdlib.h>
        #include <pthread.h>
        #include <string.h>
        #include <unistd.h>
        int pthread_setname_np(pthread_t thread, const char *name) {
            if (!strcmp(name, "keeper") && !access("crash", F_OK)) abort();
            return 0;
        }"#,
    );
    let crash = conserver.folder().join("crash");
    let daemon = conserver.env("LD_PRELOAD", library).start();
    daemon.wait_for_workers(1);
    fs::write(&crash, "").expect("a file");
    let monitor = Pid::from_raw(daemon.process("conserver-mon"));
    kill(monitor, Signal::SIGKILL).expect("the monitor runs");
    // After that many the pause would be over three seconds long.
    wait_until("it has died often", PATIENCE * 2, || {
        daemon.count_in_log("died unexpectedly") >= 9
    });
    for line in daemon
        .log()
        .lines()
        .filter(|line| line.contains("restarting in"))
    {
        let (_, rest) = line.split_once("restarting in ").expect("a pause");
        let (seconds, _) = rest.split_once(" s").expect("seconds");
        let seconds: f64 = seconds.parse().expect("a number");
        assert!(seconds <= 1.0, "{line}");
    }
    fs::remove_file(&crash).expect("a file");
    daemon.wait_for_workers(1);
    daemon.stop();
}
