//! Daemons of different names on one Redis: the others stand in for one that is gone.

use nix::sys::signal::Signal;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, chain, delay, fresh, submit, wait_until,
};

/// A daemon that keeps what it has claimed in hand.
fn holding(redis: &Redis) -> Conserver {
    Conserver::with(redis).config(&chain(&[delay(600.0)], &[]))
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
    redis.wait_for_claims(6);
    let second = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_INSTANCE", "there")
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    second.wait_for_workers(1);
    wait_until("both are known", PATIENCE, || {
        redis.instances() == ["here", "there"]
    });
    assert_eq!(redis.claims().len(), 6);
    first.kill_family();
    second.wait_for_log(
        "the instance \"here\" has stopped showing itself, its claims were returned: 6",
        PATIENCE,
    );
    Ledger::of(&redis, &samples).settles();
    wait_until("the dead one is forgotten", PATIENCE, || {
        redis.instances() == ["there"]
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
    redis.wait_for_claims(1);
    first.kill_family();
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
    redis.wait_for_claims(4);
    first.signal_family(Signal::SIGSTOP);
    let second = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .env("CONSERVER_INSTANCE", "there")
        .start();
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    first.signal_family(Signal::SIGCONT);
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
    assert!(redis.is_held_by(&first));
    let known: Vec<String> = redis.ask(&["SMEMBERS", "conserver:workers:here"]);
    assert!(!known.is_empty(), "nobody would find its claims");
    first.stop();
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
        redis.instances() == ["here"]
    });
    assert_eq!(redis.list("conserver:unreadable"), ["rubbish"]);
    assert_eq!(daemon.count_in_log("died"), 0, "{}", daemon.log());
    daemon.stop();
}
