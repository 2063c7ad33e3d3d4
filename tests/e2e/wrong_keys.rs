//! Keys that are no lists for a moment: a fault of the place, which costs no vCon anything.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Conserver, Daemon, Files, Hook, Ledger, PATIENCE, Proxy, Redis, Sample, chain, fresh,
    storage_at, submit, wait_until,
};

fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .lanes(4)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "50")
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
}

/// Puts a string where the list `done` is to be; what was announced there until then is moved to
/// the list `seen`.
fn break_egress(redis: &Redis) {
    let script = "if redis.call('TYPE', 'done').ok == 'list' then \
                  for _, id in ipairs(redis.call('LRANGE', 'done', 0, -1)) do redis.call('RPUSH', 'seen', id) end end \
                  redis.call('SET', 'done', 'no list')";
    redis.ask::<()>(&["EVAL", script, "0"]);
}

/// Waits until each vCon is announced, and fails if one is a dead letter or announced twice.
fn all_are_announced_once(redis: &Redis, samples: &[Sample]) {
    let announced = || redis.length("done") + redis.length("seen");
    wait_until("all are announced or dead", PATIENCE, || {
        announced() + redis.length("DLQ:default") >= samples.len()
    });
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    Ledger::of(redis, samples).is_split_between(&["done", "seen"]);
}

#[test]
fn an_egress_key_that_is_no_list_for_a_moment_costs_nothing() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let (files, link) = (Files::new(), Hook::new());
        let config = chain(&[("hook", link.link())], &[("files", files.storage())]);
        let samples = fresh(200);
        let daemon = conserver(&redis, &config).start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).wait_for(20);
        break_egress(&redis);
        daemon.wait_for_log("list done is away", PATIENCE);
        // The length of the outage is what is tested.
        thread::sleep(Duration::from_millis(500));
        redis.ask::<i64>(&["DEL", "done"]);
        all_are_announced_once(&redis, &samples);
        link.has_taken_each("the link", &samples, 1);
        assert_eq!(files.paths().len(), samples.len());
        daemon.stop();
    }
}

#[test]
fn an_egress_key_that_comes_and_goes_costs_nothing() {
    let redis = Redis::plain();
    let daemon = conserver(&redis, &chain(&[], &[])).start();
    let mut samples = Vec::new();
    for round in 0..60 {
        let some = fresh(20);
        break_egress(&redis);
        submit(&redis, "default", &some);
        samples.extend(some);
        // Some are refused just before, and asked about just after.
        thread::sleep(Duration::from_millis(round % 6));
        redis.ask::<i64>(&["DEL", "done"]);
        wait_until("some are announced", PATIENCE, || redis.length("done") > 0);
    }
    all_are_announced_once(&redis, &samples);
    // A list that is one again has nothing to prove.
    assert_eq!(daemon.count_in_log("one at a time"), 0, "{}", daemon.log());
    daemon.stop();
}

/// Three vCons in the hands of three lanes, whose storage is away, and a string in the place of
/// their list.
fn in_hand(redis: &Redis, attempts: &str) -> (Daemon, Vec<Sample>, Hook, Hook, Proxy) {
    let (link, storage) = (Hook::new(), Hook::new());
    let door = Proxy::before(storage.port());
    door.black_hole();
    let storages = [("away", storage_at(door.port()))];
    let conserver = conserver(redis, &chain(&[("hook", link.link())], &storages));
    let daemon = conserver
        .env("CONSERVER_RETRY_ATTEMPTS", attempts)
        .env("CONSERVER_DRAIN_TIMEOUT", "5")
        .start();
    let samples = fresh(3);
    submit(redis, "default", &samples);
    wait_until("all are at the storage", PATIENCE, || {
        link.taken().len() == 3 && door.accepted() == 3 && redis.length("default") == 0
    });
    redis.ask::<()>(&["SET", "default", "no list"]);
    (daemon, samples, link, storage, door)
}

#[test]
fn an_ingress_key_that_is_no_list_is_waited_for_in_a_hold() {
    let redis = Redis::plain();
    let (daemon, samples, link, storage, door) = in_hand(&redis, "1");
    door.refuse();
    door.reset();
    wait_until("none can be put back", PATIENCE, || {
        // Also one that was just being accepted.
        door.reset();
        daemon.count_in_log("cannot be put back, trying again until it can") == 3
    });
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    redis.ask::<i64>(&["DEL", "default"]);
    wait_until("all are back in their list", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    door.pass();
    Ledger::of(&redis, &samples).settles();
    link.has_taken_each("the link", &samples, 1);
    storage.has_taken_each("the storage", &samples, 1);
    daemon.stop();
}

#[test]
fn an_ingress_key_that_is_no_list_makes_no_dead_letters_in_a_drain() {
    let redis = Redis::plain();
    let (mut daemon, samples, _link, storage, door) = in_hand(&redis, "1000");
    door.refuse();
    door.reset();
    daemon.terminate();
    daemon.wait_exit(PATIENCE);
    door.reset();
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    let daemon = daemon.conserver().launch_again();
    door.pass();
    // Others are served beside it.
    daemon.wait_for_log("All 1 workers started", PATIENCE);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    redis.ask::<i64>(&["DEL", "default"]);
    Ledger::of(&redis, &samples).settles();
    storage.has_taken_each("the storage", &samples, 1);
    assert_eq!(redis.keys("conserver:unreadable"), Vec::<String>::new());
    daemon.stop();
}
