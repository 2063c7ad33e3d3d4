//! A Redis without memory for more: what needs none is done, the rest waits, and nothing is lost.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Sample, chain, delay, fresh, submit,
    wait_until,
};

/// No write that may take memory is taken any more.
fn fill(redis: &Redis) {
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = redis.try_ask::<()>(&["SET", "probe", "1"]).unwrap_err();
    assert_eq!(refused.code(), Some("OOM"));
}

fn empty(redis: &Redis) {
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
}

/// A chain of these links only: none of them changes a vCon.
fn unchanging(links: &[(&'static str, Value)], files: &Files) -> Value {
    let mut config = chain(links, &[("files", files.storage())]);
    let names: Vec<&str> = links.iter().map(|(name, _)| *name).collect();
    config["chains"]["main"]["links"] = names.into();
    config
}

fn start(redis: &Redis, config: &Value) -> Daemon {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_RETRY_MAX_MS", "200")
        .lanes(2)
        .start()
}

fn finishes_what_is_unchanged(redis: &Redis) {
    let (files, samples) = (Files::new(), fresh(50));
    submit(redis, "default", &samples);
    // Those without a context are finished by a script of their own.
    let with_context = &samples[..25];
    for sample in with_context {
        let context = format!("context:default:{}", sample.id);
        redis.ask::<i64>(&["RPUSH", &context, r#"{"trace_id":"0af7"}"#]);
    }
    fill(redis);
    let daemon = start(redis, &unchanging(&[], &files));
    Ledger::of(redis, &samples).settles();
    assert_eq!(files.paths().len(), samples.len());
    for sample in with_context {
        assert_eq!(redis.length(&format!("context:done:{}", sample.id)), 1);
    }
    assert_eq!(daemon.count_in_log("Redis is away"), 0);
    daemon.stop();
}

#[test]
fn vcons_that_no_link_changed_are_finished() {
    finishes_what_is_unchanged(&Redis::plain());
}

#[test]
fn vcons_that_no_link_changed_are_finished_with_json() {
    finishes_what_is_unchanged(&Redis::with_json());
}

#[test]
fn vcons_that_wait_for_a_budget_are_finished() {
    for limit in [
        json!({"rate": "20/s", "burst": 5}),
        json!({"rate": "20/s", "burst": 5, "concurrency": 2}),
    ] {
        let (redis, files, samples) = (Redis::plain(), Files::new(), fresh(20));
        submit(&redis, "default", &samples);
        fill(&redis);
        let mut link = delay(0.0);
        link.1["limit"] = limit;
        let daemon = start(&redis, &unchanging(&[link], &files));
        Ledger::of(&redis, &samples).settles();
        assert_eq!(files.paths().len(), samples.len());
        assert_eq!(daemon.count_in_log("Redis is away"), 0);
        daemon.stop();
    }
}

fn waits_with_what_has_changed(redis: &Redis) {
    let (files, samples) = (Files::new(), fresh(20));
    submit(redis, "default", &samples);
    fill(redis);
    let daemon = start(redis, &chain(&[], &[("files", files.storage())]));
    daemon.wait_for_log("until it is back: OOM command not allowed", PATIENCE);
    wait_until("both lanes have stored theirs", PATIENCE, || {
        files.paths().len() == 2
    });
    assert_eq!((redis.length("done"), redis.length("DLQ:default")), (0, 0));
    empty(redis);
    Ledger::of(redis, &samples).settles();
    let told = daemon.count_in_log("Redis is away");
    assert_eq!(told, 1, "once for all lanes and tries");
    assert_eq!(redis.keys("conserver:draft:*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn vcons_that_a_link_changed_wait() {
    waits_with_what_has_changed(&Redis::plain());
}

#[test]
fn vcons_that_a_link_changed_wait_with_json() {
    waits_with_what_has_changed(&Redis::with_json());
}

#[test]
fn dead_letters_are_buried_with_their_reason() {
    let (redis, files) = (Redis::plain(), Files::new());
    redis.ask::<i64>(&["RPUSH", "default", "no-uuid"]);
    fill(&redis);
    let daemon = start(&redis, &unchanging(&[], &files));
    wait_until("it is buried", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", "no-uuid"]);
    assert!(reason.contains("not a UUID"), "{reason}");
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn vcons_in_work_are_given_back_at_the_end() {
    let (redis, files, samples) = (Redis::plain(), Files::new(), fresh(4));
    submit(&redis, "default", &samples);
    let mut daemon = start(&redis, &unchanging(&[delay(600.0)], &files));
    wait_until("two are claimed", PATIENCE, || redis.length("default") == 2);
    fill(&redis);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn claims_of_a_killed_worker_are_recovered() {
    let (redis, files, samples) = (Redis::plain(), Files::new(), fresh(10));
    submit(&redis, "default", &samples);
    let daemon = start(&redis, &unchanging(&[delay(1.0)], &files));
    wait_until("two are claimed", PATIENCE, || redis.length("default") == 8);
    fill(&redis);
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).unwrap();
    daemon.wait_for_log("is back in its list", PATIENCE);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

#[test]
fn documents_that_redis_has_dropped_come_from_a_storage_or_are_dead_letters() {
    let (redis, files) = (Redis::plain(), Files::new());
    let (stored, lost) = (fresh(10), fresh(10));
    submit(&redis, "default", &stored);
    let daemon = start(&redis, &chain(&[], &[("files", files.storage())]));
    Ledger::of(&redis, &stored).settles();
    daemon.stop();
    redis.ask::<i64>(&["DEL", "done"]);

    let all: Vec<Sample> = stored.iter().chain(&lost).cloned().collect();
    submit(&redis, "default", &all);
    for sample in &all {
        redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), "3600"]);
    }
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    fill(&redis);
    assert_eq!(
        redis.keys("vcon:*"),
        Vec::<String>::new(),
        "all are evicted"
    );
    empty(&redis);
    let daemon = start(&redis, &chain(&[], &[("files", files.storage())]));
    wait_until("every vCon is done or dead", PATIENCE, || {
        redis.length("done") + redis.length("DLQ:default") == all.len()
    });
    Ledger::of(&redis, &all).is_split_between(&["done", "DLQ:default"]);
    Ledger::of(&redis, &stored).is_split_between(&["done"]);
    for sample in &lost {
        let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &sample.id]);
        assert!(reason.contains("no document"), "{reason}");
    }
    daemon.stop();
}

#[test]
fn an_entry_whose_list_has_become_something_else_is_kept_until_it_is_a_list_again() {
    let (redis, files, samples) = (Redis::plain(), Files::new(), fresh(1));
    submit(&redis, "default", &samples);
    let config = unchanging(&[], &files);
    let mut daemon = start(&redis, &unchanging(&[delay(600.0)], &files));
    wait_until("it is claimed", PATIENCE, || redis.length("default") == 0);
    redis.ask::<()>(&["SET", "default", "something else"]);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert_eq!(redis.length("DLQ:default"), 0);
    redis.ask::<i64>(&["DEL", "default"]);
    let daemon = start(&redis, &config);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}
