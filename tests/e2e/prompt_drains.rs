//! A drain ends every wait: in pauses that nothing else ends, and of lanes that wait for each other.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Sample, chain, delay, fresh, submit,
    wait_until,
};

/// What a drain may take on a busy machine; the waits that it ends are longer.
const PROMPT: Duration = Duration::from_secs(15);

fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .lanes(3)
        .env("CONSERVER_DRAIN_TIMEOUT", "120")
}

/// Stops the daemon, which must end well and soon.
fn drains(daemon: &mut Daemon) {
    let start = Instant::now();
    daemon.terminate();
    let code = daemon.wait_exit(PATIENCE * 3);
    let took = start.elapsed();
    assert_eq!(code, 0);
    assert!(took < PROMPT, "{took:?}");
}

#[test]
fn a_drain_ends_the_pauses_of_lanes_that_wait_for_redis() {
    let (redis, files) = (Redis::new().durable().started(), Files::new());
    let config = chain(&[delay(0.5)], &[("files", files.storage())]);
    let mut daemon = conserver(&redis, &config)
        .env("CONSERVER_RETRY_FIRST_MS", "60000")
        .env("CONSERVER_RETRY_MAX_MS", "60000")
        .start();
    // Two lanes work, one is idle.
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    // Not only claimed: the lanes have been told.
    wait_until("both are in work", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        let lanes = status["workers"][0]["lanes"].as_array();
        lanes.is_some_and(|lanes| lanes.len() == 2)
    });
    redis.kill9();
    // Both are to be finished then, in pauses of half a minute at least.
    wait_until("both are stored", PATIENCE, || files.paths().len() == 2);
    daemon.wait_for_log("Redis is away", PATIENCE);
    drains(&mut daemon);
    redis.start();
    let daemon = daemon.conserver().launch_again();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// A vCon on which workers died, so that it is worked on alone.
fn suspect(redis: &Redis) -> Vec<Sample> {
    let suspect = fresh(1);
    redis.ask::<i64>(&["HSET", "conserver:deaths", &suspect[0].id, "2"]);
    submit(redis, "default", &suspect);
    suspect
}

fn claims(redis: &Redis) -> usize {
    redis.ask(&["HLEN", "conserver:claims:here:1"])
}

fn all_are_back(redis: &Redis, samples: &[Vec<Sample>]) {
    Ledger::of(redis, &samples.concat()).is_split_between(&["default"]);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
}

#[test]
fn a_drain_ends_the_wait_of_a_suspect_and_of_those_behind_it() {
    let redis = Redis::plain();
    let mut daemon = conserver(&redis, &chain(&[delay(600.0)], &[])).start();
    let first = fresh(1);
    submit(&redis, "default", &first);
    wait_until("one is in work", PATIENCE, || claims(&redis) == 1);
    let suspect = suspect(&redis);
    wait_until("a suspect waits for it", PATIENCE, || claims(&redis) == 2);
    let last = fresh(1);
    submit(&redis, "default", &last);
    drains(&mut daemon);
    all_are_back(&redis, &[first, suspect, last]);
}

#[test]
fn a_drain_ends_the_wait_of_those_behind_a_suspect_that_is_in_work() {
    let redis = Redis::plain();
    let mut daemon = conserver(&redis, &chain(&[delay(600.0)], &[])).start();
    let suspect = suspect(&redis);
    wait_until("the suspect is in work", PATIENCE, || claims(&redis) == 1);
    let last = fresh(2);
    submit(&redis, "default", &last);
    drains(&mut daemon);
    all_are_back(&redis, &[suspect, last]);
}
