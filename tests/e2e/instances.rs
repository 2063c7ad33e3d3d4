//! More than one daemon on one Redis: of one name, and of different names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Webhook, chain, delay, fresh, is_alive,
    number_from_env, submit, wait_until,
};

const LEASE: &str = "conserver:instance:here";

/// A daemon that keeps what it has claimed in hand.
fn holding(redis: &Redis) -> Conserver {
    Conserver::with(redis).config(&chain(&[delay(600.0)], &[]))
}

fn signal_all(daemon: &Daemon, signal: Signal) {
    killpg(Pid::from_raw(daemon.pid()), signal).expect("the daemon runs");
}

/// Kills the supervisor and all its children at one instant.
fn kill_family(daemon: &Daemon) {
    let family = daemon.family();
    signal_all(daemon, Signal::SIGKILL);
    let gone = || family.iter().all(|pid| !is_alive(*pid));
    wait_until("the whole family is gone", PATIENCE, gone);
}

fn claims(redis: &Redis) -> Vec<Value> {
    let mut claims = Vec::new();
    for key in redis.keys("conserver:claims:*") {
        let records: Vec<String> = redis.ask(&["HVALS", &key]);
        let parsed = records
            .iter()
            .map(|record| serde_json::from_str(record).expect("JSON"));
        claims.extend(parsed);
    }
    claims.sort_by_key(|claim: &Value| claim["uuid"].to_string());
    claims
}

fn wait_for_claims(redis: &Redis, count: usize) -> Vec<Value> {
    let what = format!("{count} vCons are in hand");
    wait_until(&what, PATIENCE, || claims(redis).len() == count);
    claims(redis)
}

/// Who has the name `here`.
fn holder(redis: &Redis) -> Option<Value> {
    let record: Option<String> = redis.ask(&["GET", LEASE]);
    record.map(|record| serde_json::from_str(&record).expect("JSON"))
}

fn is_held_by(redis: &Redis, daemon: &Daemon) -> bool {
    holder(redis).is_some_and(|holder| holder["pid"] == daemon.pid())
}

fn instances(redis: &Redis) -> Vec<String> {
    let mut names: Vec<String> = redis.ask(&["SMEMBERS", "conserver:instances"]);
    names.sort();
    names
}

fn refuses_a_second_daemon(method: &str) {
    let redis = Redis::plain();
    let first = holding(&redis).workers(2).method(method).start();
    let before = first.wait_for_workers(2);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    let in_hand = wait_for_claims(&redis, 2);

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

    assert_eq!(claims(&redis), in_hand);
    assert_eq!(redis.list("default"), [samples[2].id.clone()]);
    assert!(is_held_by(&redis, &first));
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
    wait_for_claims(&redis, 4);
    wait_until("it has its name", PATIENCE, || is_held_by(&redis, &first));
    kill_family(&first);
    assert!(is_held_by(&redis, &first));

    // Fewer workers than before, and elsewhere: nothing of the first but its lease is there.
    let second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .start();
    second.wait_for_workers(2);
    Ledger::of(&redis, &samples).settles();
    assert!(is_held_by(&redis, &second));
    assert_eq!(second.count_in_log("took the name \"here\" over"), 1);
    assert_eq!(second.count_in_log("is in use"), 0, "{}", second.log());
    second.stop();
}

#[test]
fn a_clean_end_leaves_no_trace_of_the_instance() {
    let redis = Redis::plain();
    for (signal, workers) in [(Signal::SIGTERM, 3), (Signal::SIGQUIT, 2)] {
        let mut daemon = holding(&redis).workers(workers).start();
        daemon.wait_for_workers(workers);
        wait_until("it has its name", PATIENCE, || is_held_by(&redis, &daemon));
        assert_eq!(instances(&redis), ["here"]);
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
        assert_eq!(redis.keys("conserver:*"), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn claims_killed_at_the_end_go_back_before_the_name_is_given_up() {
    let redis = Redis::plain();
    let mut daemon = holding(&redis).workers(3).start();
    daemon.wait_for_workers(3);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    wait_for_claims(&redis, 3);
    daemon.signal(Signal::SIGQUIT);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
    assert_eq!(holder(&redis), None);
    assert_eq!(instances(&redis), Vec::<String>::new());
}

#[test]
fn the_claims_of_a_killed_instance_are_returned_by_another() {
    let redis = Redis::plain();
    let first = holding(&redis)
        .workers(3)
        .lanes(2)
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    let samples = fresh(6);
    submit(&redis, "default", &samples);
    wait_for_claims(&redis, 6);
    let second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_INSTANCE", "there")
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    second.wait_for_workers(1);
    wait_until("both are known", PATIENCE, || {
        instances(&redis) == ["here", "there"]
    });
    assert_eq!(claims(&redis).len(), 6);
    kill_family(&first);
    second.wait_for_log(
        "the instance \"here\" has stopped showing itself, its claims were returned: 6",
        PATIENCE,
    );
    Ledger::of(&redis, &samples).settles();
    wait_until("the dead one is forgotten", PATIENCE, || {
        instances(&redis) == ["there"]
    });
    assert_eq!(redis.keys("conserver:*:here*"), Vec::<String>::new());
    assert_eq!(second.count_in_log("has stopped showing itself"), 1);
    second.stop();
}

#[test]
fn a_vcon_on_which_an_instance_died_too_often_says_so() {
    let redis = Redis::plain();
    let first = holding(&redis).env("CONSERVER_HEARTBEAT_TTL", "3").start();
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    wait_for_claims(&redis, 1);
    kill_family(&first);
    let _second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_INSTANCE", "there")
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .env("CONSERVER_MAX_DEATHS", "1")
        .start();
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &samples[0].id]);
    assert!(
        reason.contains("its instance stopped showing itself"),
        "{reason}"
    );
    assert!(reason.contains("here Worker-1"), "{reason}");
}

#[test]
fn an_instance_that_was_frozen_goes_on_when_another_has_done_its_work() {
    let (redis, files) = (Redis::plain(), Files::new());
    let storages = [("files", files.storage())];
    let first = Conserver::with(&redis)
        .config(&chain(&[delay(2.0)], &storages))
        .workers(2)
        .lanes(2)
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .env("TICK_INTERVAL", "500")
        .start();
    let before = first.wait_for_workers(2);
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    wait_for_claims(&redis, 4);
    signal_all(&first, Signal::SIGSTOP);
    let second = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .env("CONSERVER_INSTANCE", "there")
        .start();
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    signal_all(&first, Signal::SIGCONT);
    wait_until("the first knows that it was late", PATIENCE, || {
        first.count_in_log("the claim was settled already") == 4
    });
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    second.stop();

    // The first does the next ones, with the same workers.
    redis.ask::<i64>(&["DEL", "done"]);
    let samples = fresh(8);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(first.wait_for_workers(2), before);
    assert!(is_held_by(&redis, &first));
    let known: Vec<String> = redis.ask(&["SMEMBERS", "conserver:workers:here"]);
    assert!(!known.is_empty(), "nobody would find its claims");
    first.stop();
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
    wait_for_claims(&redis, 2);
    signal_all(&first, Signal::SIGSTOP);
    wait_until("its lease has run out", PATIENCE, || {
        holder(&redis).is_none()
    });
    let second = Conserver::with(&redis)
        .config(&chain(&[delay(0.01)], &[]))
        .workers(2)
        .start();
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    signal_all(&first, Signal::SIGCONT);
    assert_eq!(first.wait_exit(PATIENCE), 69);
    let said = "is in use by the conserver on host";
    assert_eq!(first.count_in_log(said), 1, "{}", first.log());
    assert!(first.log().contains(&format!("with PID {}", second.pid())));
    ledger.settles();
    assert!(is_held_by(&redis, &second));
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
    wait_for_claims(&redis, 2);
    signal_all(&first, Signal::SIGSTOP);
    wait_until("its lease has run out", PATIENCE, || {
        holder(&redis).is_none()
    });
    // The second returns what the first had in hand, and serves another list.
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["other"]);
    let second = Conserver::with(&redis).config(&config).workers(2).start();
    second.wait_for_workers(2);
    assert_eq!(redis.length("default"), 6);
    signal_all(&first, Signal::SIGCONT);
    assert_eq!(first.wait_exit(PATIENCE), 69);
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
    wait_until("it has its name", PATIENCE, || is_held_by(&redis, &daemon));
    redis.ask::<()>(&["FLUSHALL"]);
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(is_held_by(&redis, &daemon));
    assert_eq!(instances(&redis), ["here"]);
    assert_eq!(daemon.wait_for_workers(2), before);

    // Also where there is nothing to do.
    redis.ask::<()>(&["FLUSHALL"]);
    wait_until("it has its name", PATIENCE, || is_held_by(&redis, &daemon));
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

#[test]
fn rubbish_among_the_instances_does_no_harm() {
    let redis = Redis::plain();
    for name in ["", "a b", "x:y", "\u{1}"] {
        redis.ask::<i64>(&["SADD", "conserver:instances", name]);
    }
    redis.ask::<i64>(&[
        "SADD",
        "conserver:workers:a b",
        "-1",
        "1e9",
        "99999999999",
        "2",
    ]);
    redis.ask::<i64>(&["HSET", "conserver:claims:a b:2", "1", "rubbish"]);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    daemon.wait_for_workers(1);
    wait_until("they are forgotten", PATIENCE, || {
        instances(&redis) == ["here"]
    });
    assert_eq!(redis.list("conserver:unreadable"), ["rubbish"]);
    assert_eq!(daemon.count_in_log("died"), 0, "{}", daemon.log());
    daemon.stop();
}

/// A library under which a process that sends `marker` aborts.
fn aborting_library(folder: &Path, marker: &str) -> PathBuf {
    let (source, library) = (folder.join("abort.c"), folder.join("abort.so"));
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/types.h>
        #include <unistd.h>
        static void look(const void *bytes, size_t count) {
            if (memmem(bytes, count, "MARKER", strlen("MARKER"))) abort();
        }
        ssize_t send(int socket, const void *bytes, size_t count, int flags) {
            static ssize_t (*next)(int, const void *, size_t, int);
            if (!next) next = dlsym(RTLD_NEXT, "send");
            look(bytes, count);
            return next(socket, bytes, count, flags);
        }
        ssize_t write(int file, const void *bytes, size_t count) {
            static ssize_t (*next)(int, const void *, size_t);
            if (!next) next = dlsym(RTLD_NEXT, "write");
            look(bytes, count);
            return next(file, bytes, count);
        }"#;
    fs::write(&source, code.replace("MARKER", marker)).expect("a file");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(compiled.expect("a C compiler").success());
    library
}

#[test]
fn a_link_that_aborts_its_worker_for_one_vcon_costs_only_that_one() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let options = json!({"webhook-urls": [webhook.url()]});
    let post = json!({"module": "links.webhook", "options": options});
    let conserver = Conserver::with(&redis)
        .config(&chain(&[("post", post)], &[]))
        .workers(4);
    let marker = "kills-its-worker";
    let library = aborting_library(conserver.folder(), marker);
    let daemon = conserver.env("LD_PRELOAD", library).start();

    let others = number_from_env("CONSERVER_TEST_OTHERS", 199);
    let mut samples = fresh(others + 1);
    let poison = others / 2;
    samples[poison].document["subject"] = marker.into();
    submit(&redis, "default", &samples);
    let poison = samples.remove(poison);
    let over = || redis.length("done") + redis.length("DLQ:default") > others;
    wait_until("all are done or dead", PATIENCE * 5, over);
    assert_eq!(redis.list("DLQ:default"), std::slice::from_ref(&poison.id));
    Ledger::of(&redis, &samples).is_split_between(&["done"]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &poison.id]);
    for part in ["3 workers died", "killed by SIGABRT"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(daemon.count_in_log("died unexpectedly"), 3);
    daemon.stop();
}
