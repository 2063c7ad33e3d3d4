//! Daemons of different names on one Redis: the others stand in for one that is gone.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Proxy, Redis, chain, delay, fresh, submit, wait_until,
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
    // Nobody saw its workers die.
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    assert_eq!(second.count_in_log("has stopped showing itself"), 1);
    second.stop();
}

#[test]
fn a_lease_that_ran_out_blames_nobody_until_it_was_ten_times() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["other"]);
    let second = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_INSTANCE", "there")
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .env("CONSERVER_MAX_DEATHS", "1")
        .start();
    second.wait_for_workers(1);
    let samples = fresh(2);
    for (sample, lapses) in samples.iter().zip(["8", "9"]) {
        redis.ask::<i64>(&["DEL", "default"]);
        let first = holding(&redis).env("CONSERVER_HEARTBEAT_TTL", "3").start();
        redis.ask::<i64>(&["HSET", "conserver:lapses", &sample.id, lapses]);
        submit(&redis, "default", std::slice::from_ref(sample));
        redis.wait_for_claims(1);
        first.kill_family();
        second.wait_for_log(&format!("{}, claimed by a daemon", sample.id), PATIENCE);
        if lapses == "8" {
            assert_eq!(redis.list("default"), [sample.id.as_str()]);
            assert_eq!(redis.length("DLQ:default"), 0);
        }
    }
    assert_eq!(
        second.count_in_log("is back in its list (list default, lapses: 9)"),
        1
    );
    assert_eq!(redis.length("default"), 0);
    let id = &samples[1].id;
    assert_eq!(redis.list("DLQ:default"), [id.as_str()]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", id]);
    let said = "10 times the daemon that worked on it stopped showing itself";
    assert!(reason.contains(said), "{reason}");
    assert!(reason.contains("here Worker-1"), "{reason}");
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    let left: Vec<String> = redis.ask(&["HGETALL", "conserver:lapses"]);
    assert_eq!(left, [samples[0].id.clone(), "9".to_owned()]);
    assert!(redis.ask::<i64>(&["TTL", "conserver:lapses"]) > 604_700);
    second.stop();
}

#[test]
fn instances_whose_monitors_freeze_in_turn_bury_nothing() {
    let redis = Redis::plain();
    let start = |instance: &str| {
        Conserver::with(&redis)
            .config(&chain(&[delay(8.0)], &[]))
            .lanes(4)
            .env("CONSERVER_INSTANCE", instance)
            .env("CONSERVER_HEARTBEAT_TTL", "3")
            .start()
    };
    let daemons = [start("here"), start("there")];
    let samples = fresh(8);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(8);
    for turn in 0..4 {
        let monitor = daemons[turn % 2].process("conserver-mon");
        kill(Pid::from_raw(monitor), Signal::SIGSTOP).expect("it runs");
        // Longer than the lease: what is tested is that this does no harm.
        thread::sleep(Duration::from_secs(5));
        kill(Pid::from_raw(monitor), Signal::SIGCONT).expect("it runs");
    }
    Ledger::of(&redis, &samples).settles();
    for daemon in &daemons {
        assert_eq!(daemon.count_in_log("stopped showing itself"), 0);
    }
    for hash in ["conserver:deaths", "conserver:lapses"] {
        assert_eq!(redis.keys(hash), Vec::<String>::new());
    }
}

#[test]
fn instances_that_are_cut_off_in_turn_bury_nothing() {
    let redis = Redis::plain();
    let proxies = [(); 2].map(|()| Proxy::before(redis.port()));
    let start = |number: usize| {
        let url = format!("redis://127.0.0.1:{}", proxies[number].port());
        Conserver::with(&redis)
            .config(&chain(&[delay(8.0)], &[]))
            .lanes(4)
            .env("REDIS_URL", url)
            .env("CONSERVER_INSTANCE", ["here", "there"][number])
            .env("CONSERVER_HEARTBEAT_TTL", "3")
            // One that is blamed is dead.
            .env("CONSERVER_MAX_DEATHS", "1")
            .start()
    };
    let daemons = [start(0), start(1)];
    let samples = fresh(8);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(8);
    for (number, proxy) in proxies.iter().enumerate() {
        proxy.black_hole();
        let other = &daemons[1 - number];
        let name = ["here", "there"][number];
        let said = format!("the instance \"{name}\" has stopped showing itself");
        other.wait_for_log(&said, PATIENCE);
        proxy.pass();
    }
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
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
        first.count_in_log("the claim was released already") == 4
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
    let long = "\u{1}".repeat(2_000_000);
    for name in ["", "a b", "x:y", "\u{1}", &long] {
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
    let longest = daemon.log().lines().map(str::len).max();
    assert!(longest < Some(10_000), "{longest:?}");
    daemon.stop();
}
