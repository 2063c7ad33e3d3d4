//! Servers that go away and come back: nothing is lost, and nothing has to be done by hand.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Postgres, Redis, chain, delay, fresh,
    number_from_env, submit, wait_until,
};

fn daemon(redis: &Redis, storages: &[(&str, Value)]) -> Daemon {
    let config = chain(&[delay(0.01)], storages);
    Conserver::with(redis)
        .config(&config)
        .workers(4)
        .lanes(2)
        .start()
}

fn survives_the_death_of_redis(redis: &Redis) {
    let files = Files::new();
    let samples = fresh(400);
    let ledger = Ledger::of(redis, &samples);
    submit(redis, "default", &samples);
    let daemon = daemon(redis, &[("files", files.storage())]);
    for done in [50, 150] {
        ledger.wait_for(done);
        daemon.wait_until_back("Redis");
        let before = daemon.count_in_log("Redis is away");
        redis.kill9();
        let noticed = || daemon.count_in_log("Redis is away") > before;
        wait_until("the daemon notices", PATIENCE, noticed);
        redis.start();
    }
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

#[test]
fn redis_is_killed_and_restarted_under_load() {
    survives_the_death_of_redis(&Redis::new().durable().started());
}

#[test]
fn redis_with_json_is_killed_and_restarted_under_load() {
    survives_the_death_of_redis(&Redis::new().json().durable().started());
}

#[test]
fn redis_is_not_there_at_the_start() {
    let redis = Redis::new();
    let daemon = daemon(&redis, &[]);
    daemon.wait_for_log("Redis is away", PATIENCE);
    let workers = daemon.workers();
    redis.start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.workers(), workers);
    daemon.stop();
}

#[test]
fn connections_to_redis_are_cut_again_and_again() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(400);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &[("files", files.storage())]);
    for done in (20..400).step_by(20) {
        ledger.wait_for(done);
        redis.ask::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

#[test]
fn idle_workers_whose_connections_are_cut_find_new_work() {
    let redis = Redis::plain();
    let daemon = daemon(&redis, &[]);
    for _ in 0..3 {
        redis.ask::<i64>(&["DEL", "done"]);
        let samples = fresh(5);
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        redis.ask::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    daemon.stop();
}

#[test]
fn postgres_is_stopped_and_started_under_load() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let database = server.new_database();
    let mut samples = fresh(300);
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &[("pg", database.storage())]);
    wait_until("some vCons are done", PATIENCE, || done(&redis) >= 50);
    server.stop();
    daemon.wait_for_log("storage pg is away", PATIENCE);
    let start = Instant::now();
    while start.elapsed() < outage() {
        let more = fresh(5);
        submit(&redis, "default", &more);
        samples.extend(more);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(redis.length("DLQ:default"), 0);
    server.start();
    resumes("PostgreSQL", &redis);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(database.rows().len(), samples.len());
    daemon.stop();
}

#[test]
fn redis_is_away_for_long_under_load() {
    let (redis, files) = (Redis::new().durable().started(), Files::new());
    let samples = fresh(2_000);
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &[("files", files.storage())]);
    wait_until("some vCons are done", PATIENCE, || done(&redis) >= 50);
    redis.kill9();
    daemon.wait_for_log("Redis is away", PATIENCE);
    // The length of the outage is what is tested.
    thread::sleep(outage());
    redis.start();
    resumes("Redis", &redis);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

/// How long a server is away.
fn outage() -> Duration {
    let seconds = number_from_env("CONSERVER_TEST_OUTAGE_SECONDS", 3);
    Duration::from_secs(seconds as u64)
}

fn done(redis: &Redis) -> usize {
    redis.length("done")
}

/// Waits for the first vCon that is done after a server has answered again: just now.
fn resumes(server: &str, redis: &Redis) {
    let (start, before) = (Instant::now(), done(redis));
    wait_until("the work goes on", PATIENCE, || done(redis) > before);
    let took = start.elapsed();
    println!(
        "{server} was away for {:?}; the work goes on after {took:?}",
        outage()
    );
    // A quiet machine takes less than 2 s.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_stop_during_an_outage_gives_the_vcons_back() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let storage = server.new_database().storage();
    server.stop();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    let mut daemon = daemon(&redis, &[("pg", storage)]);
    daemon.wait_for_log("storage pg is away", PATIENCE);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn a_daemon_that_is_stopped_while_redis_is_slow_does_not_take_it_for_away() {
    let redis = Redis::plain();
    let daemon = daemon(&redis, &[]);
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    wait_until("all are in hand", PATIENCE, || redis.length("default") == 0);
    redis.signal(Signal::SIGSTOP);
    // Long enough for every lane to wait for an answer.
    thread::sleep(Duration::from_millis(500));
    daemon.signal_family(Signal::SIGSTOP);
    daemon.signal_family(Signal::SIGCONT);
    redis.signal(Signal::SIGCONT);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("is away"), 0, "{}", daemon.log());
    daemon.stop();
}
