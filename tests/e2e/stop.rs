//! The stop: at once when idle, with nothing lost when busy.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, chain, delay, fresh, is_alive, submit, wait_until,
};

fn idle_workers_end_within_a_second_of(signal: Signal) {
    let redis = Redis::plain();
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(16)
        .start();
    let connected = || redis.ask::<String>(&["CLIENT", "LIST"]).lines().count() > 16;
    wait_until("16 workers wait for work", PATIENCE, connected);
    let pids = daemon.workers();
    assert_eq!(pids.len(), 16);
    let start = Instant::now();
    daemon.signal(signal);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    let took = start.elapsed();
    println!("{signal} to the end of 16 idle workers: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(pids.values().all(|pid| !is_alive(*pid)));
    let log = daemon.log();
    assert!(log.contains(&format!("{signal} received")), "{log}");
    assert!(log.contains("All workers stopped"), "{log}");
}

#[test]
fn idle_workers_end_within_a_second_of_sigterm() {
    idle_workers_end_within_a_second_of(Signal::SIGTERM);
}

#[test]
fn idle_workers_end_within_a_second_of_sigint() {
    idle_workers_end_within_a_second_of(Signal::SIGINT);
}

#[test]
fn workers_without_redis_end_within_a_second() {
    let redis = Redis::new();
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(4)
        .start();
    daemon.wait_for_log("Redis is away", PATIENCE);
    let start = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

fn nothing_is_lost_by_a_stop_under_load(count: usize, links: &[(&str, Value)]) {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(count);
    let ledger = Ledger::of(&redis, &samples);
    let config = chain(links, &[("files", files.storage())]);
    submit(&redis, "default", &samples);
    let conserver = Conserver::with(&redis).config(&config).workers(4).lanes(2);
    let mut daemon = conserver.start();
    ledger.wait_for(count / 10);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert!(
        redis.length("default") > 0,
        "the load was over before the stop"
    );
    ledger.is_split_between(&["done", "default"]);
    assert!(files.paths().len() >= redis.length("done"));

    let daemon = Conserver::with(&redis)
        .config(&config)
        .workers(4)
        .lanes(2)
        .start();
    ledger.settles();
    daemon.stop();
    assert_eq!(files.paths().len(), count);
}

#[test]
fn nothing_is_lost_by_a_stop_under_load_of_quick_vcons() {
    nothing_is_lost_by_a_stop_under_load(1500, &[]);
}

#[test]
fn nothing_is_lost_by_a_stop_under_load_of_slow_vcons() {
    nothing_is_lost_by_a_stop_under_load(100, &[delay(0.1)]);
}

#[test]
fn a_stop_while_redis_is_away_does_not_wait_for_the_drain_timeout() {
    let redis = Redis::new().durable().started();
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.5)], &[]))
        .lanes(2)
        .env("CONSERVER_DRAIN_TIMEOUT", "86400")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .start();
    wait_until("both are in work", PATIENCE, || {
        redis.length("default") == 0
    });
    redis.kill9();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    redis.start();
    let _daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    Ledger::of(&redis, &samples).settles();
}
