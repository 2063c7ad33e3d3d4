//! Connections to Redis that break at any byte: nothing is lost, and nothing is done twice.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Direction, Files, Ledger, PATIENCE, Proxy, Redis, Sample, chain, delay,
    number_from_env, submit, wait_until,
};

/// A daemon that reaches Redis through a proxy.
fn behind(proxy: &Proxy, redis: &Redis, files: &Files, seconds: f64) -> Daemon {
    let config = chain(&[delay(seconds)], &[("files", files.storage())]);
    Conserver::with(redis)
        .env("REDIS_URL", format!("redis://127.0.0.1:{}", proxy.port()))
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .config(&config)
        .start()
}

/// So many positions below `end`, or all of them, in order.
fn positions(end: u64, wanted: usize, seed: u64) -> BTreeSet<u64> {
    let mut random = fastrand::Rng::with_seed(seed);
    let all = wanted as u64 >= end;
    let mut chosen: BTreeSet<u64> = (0..end).filter(|_| all).collect();
    while !all && chosen.len() < wanted {
        chosen.insert(random.u64(..end));
    }
    chosen
}

/// Submits a vCon and waits until it is announced.
fn one(redis: &Redis, samples: &mut Vec<Sample>) {
    let sample = Sample::small();
    submit(redis, "default", std::slice::from_ref(&sample));
    samples.push(sample);
    Ledger::of(redis, samples).wait_for(samples.len());
}

fn survives_a_cut_at_any_byte(redis: &Redis) {
    let (proxy, files) = (Proxy::before(redis.port()), Files::new());
    let seed = number_from_env("CONSERVER_TEST_SEED", 4711) as u64;
    let wanted = number_from_env("CONSERVER_TEST_CUTS", 40);
    println!("CONSERVER_TEST_SEED={seed} CONSERVER_TEST_CUTS={wanted}");
    let daemon = behind(&proxy, redis, &files, 0.0);
    let mut samples = Vec::new();
    one(redis, &mut samples);
    for direction in [Direction::ToServer, Direction::ToClient] {
        // From a new connection to a finished vCon.
        proxy.reset();
        let before = proxy.carried(direction);
        one(redis, &mut samples);
        let whole = proxy.carried(direction) - before;
        for position in positions(whole, wanted, seed) {
            let cuts = proxy.cuts();
            proxy.cut_after(direction, position);
            while proxy.cuts() == cuts {
                one(redis, &mut samples);
            }
        }
    }
    one(redis, &mut samples);
    Ledger::of(redis, &samples).settles();
    assert_eq!(files.paths().len(), samples.len());
    for sample in &samples {
        let document = redis.document(&sample.id).expect("a document");
        assert_eq!(document["attachments"][0]["body"], "[\"checked:checked\"]");
    }
    assert_eq!(redis.keys("conserver:d*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_cut_at_any_byte_loses_and_repeats_nothing() {
    survives_a_cut_at_any_byte(&Redis::plain());
}

#[test]
fn a_cut_at_any_byte_loses_and_repeats_nothing_with_json() {
    survives_a_cut_at_any_byte(&Redis::with_json());
}

fn leaves_alone_what_came_after(redis: &Redis) {
    let (proxy, files) = (Proxy::before(redis.port()), Files::new());
    let daemon = behind(&proxy, redis, &files, 0.0);
    // So that a lane is connected.
    one(redis, &mut Vec::new());
    redis.ask::<i64>(&["DEL", "done"]);
    let sample = Sample::small();
    proxy.refuse();
    proxy.lose_answer_to(&[&sample.id, "done"]);
    submit(redis, "default", std::slice::from_ref(&sample));
    Ledger::of(redis, std::slice::from_ref(&sample)).wait_for(1);
    wait_until("the answer is lost", PATIENCE, || proxy.cuts() == 1);
    let mut later = redis.document(&sample.id).expect("a document");
    later["subject"] = json!("changed by the next in line");
    let key = format!("vcon:{}", sample.id);
    if redis.has_json() {
        redis.ask::<()>(&["JSON.SET", &key, "$", &later.to_string()]);
    } else {
        redis.ask::<()>(&["SET", &key, &later.to_string()]);
    }
    proxy.pass();
    daemon.wait_for_log("the claim was released already", PATIENCE);
    assert_eq!(redis.document(&sample.id), Some(later));
    assert_eq!(redis.keys("conserver:d*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_finish_whose_answer_was_lost_does_not_undo_what_came_after() {
    leaves_alone_what_came_after(&Redis::plain());
}

#[test]
fn a_finish_whose_answer_was_lost_does_not_undo_what_came_after_with_json() {
    leaves_alone_what_came_after(&Redis::with_json());
}

#[test]
fn connections_are_reset_and_refused_under_load() {
    let (redis, files) = (Redis::plain(), Files::new());
    let proxy = Proxy::before(redis.port());
    let samples: Vec<Sample> = (0..200).map(|_| Sample::small()).collect();
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = behind(&proxy, &redis, &files, 0.002);
    for done in (20..200).step_by(40) {
        ledger.wait_for(done);
        proxy.reset();
        ledger.wait_for(done + 10);
        daemon.wait_until_back("Redis");
        let before = daemon.count_in_log("Redis is away");
        proxy.refuse();
        proxy.reset();
        wait_until("the daemon notices", PATIENCE, || {
            daemon.count_in_log("Redis is away") > before
        });
        proxy.pass();
    }
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}
