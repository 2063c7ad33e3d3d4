//! A Redis with a replica and a sentinel: the daemon follows the master.
//!
//! A replica is copied to without waiting, so what the old master did last may be missing on the
//! new one. A claim that is missing there leaves its entry in the list, and a finish that is
//! missing leaves its claim: either way the vCon is done again. So what is promised here is that
//! each is done at least once.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{
    Conserver, Files, MASTER, PATIENCE, Proxy, REDIS_PASSWORD, REDIS_USER, Redis,
    SENTINEL_PASSWORD, Sample, Sentinel, chain, delay, fresh, submit, wait_until,
};

/// A master and its replica, which has copied everything that was submitted.
struct Pair {
    master: Redis,
    replica: Redis,
}

impl Pair {
    fn start(make: fn() -> Redis) -> Self {
        let master = make().started();
        let replica = make().replica_of(&master).started();
        let linked = || {
            let status: String = replica.ask(&["INFO", "replication"]);
            status.contains("master_link_status:up")
        };
        wait_until("the replica is linked", PATIENCE, linked);
        Self { master, replica }
    }

    fn submit(&self, samples: &[Sample]) {
        submit(&self.master, "default", samples);
        let copied = || self.replica.length("default") == samples.len();
        wait_until("the replica has copied all", PATIENCE, copied);
    }
}

fn url(sentinels: &[u16]) -> String {
    let hosts: Vec<String> = sentinels
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
}

fn conserver(url: &str, storages: &[(&str, Value)]) -> Conserver {
    Conserver::without_redis()
        .env("REDIS_URL", url)
        .env("CONSERVER_RETRY_MAX_MS", "500")
        .config(&chain(&[delay(0.005)], storages))
}

/// Waits until every vCon is announced by the new master, stored, and held by nobody.
fn all_are_done(redis: &Redis, files: &Files, samples: &[Sample]) {
    let ids: BTreeSet<String> = samples.iter().map(|sample| sample.id.clone()).collect();
    wait_until("every vCon is announced", PATIENCE * 2, || {
        let done: Vec<String> = redis
            .try_ask(&["LRANGE", "done", "0", "-1"])
            .unwrap_or_default();
        done.into_iter().collect::<BTreeSet<String>>() == ids
    });
    wait_until("nothing is claimed", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(redis.list("DLQ:default"), Vec::<String>::new());
    assert_eq!(redis.length("default"), 0);
    assert_eq!(files.paths().len(), samples.len());
}

fn survives_the_death_of_the_master(make: fn() -> Redis) {
    let (pair, files) = (Pair::start(make), Files::new());
    let sentinel = Sentinel::watching(&pair.master, 1);
    let samples = fresh(300);
    pair.submit(&samples);
    let daemon = conserver(&url(&[sentinel.port()]), &[("files", files.storage())])
        .workers(2)
        .lanes(2)
        .start();
    wait_until("work has begun", PATIENCE, || {
        pair.master.length("done") > 50
    });
    let workers = daemon.workers();
    pair.master.kill9();
    all_are_done(&pair.replica, &files, &samples);
    assert_eq!(sentinel.master_port().unwrap(), pair.replica.port());
    assert_eq!(daemon.workers(), workers);
    daemon.stop();
}

#[test]
fn the_master_is_killed_under_load() {
    survives_the_death_of_the_master(Redis::new);
}

#[test]
fn the_master_is_killed_under_load_with_json() {
    survives_the_death_of_the_master(|| Redis::new().json());
}

#[test]
fn the_master_changes_places_with_its_replica_under_load() {
    let (pair, files) = (Pair::start(Redis::new), Files::new());
    let sentinel = Sentinel::watching(&pair.master, 1);
    let samples = fresh(300);
    pair.submit(&samples);
    let daemon = conserver(&url(&[sentinel.port()]), &[("files", files.storage())])
        .lanes(4)
        .start();
    wait_until("work has begun", PATIENCE, || {
        pair.master.length("done") > 50
    });
    sentinel.fail_over();
    all_are_done(&pair.replica, &files, &samples);
    // The former master has become the replica, and idle workers are rung by the new one.
    let late = fresh(5);
    submit(&pair.replica, "default", &late);
    let all = [samples, late].concat();
    all_are_done(&pair.replica, &files, &all);
    let lanes = |redis: &Redis| {
        let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "normal"]);
        clients.matches("name=conserver:here:1:").count()
    };
    assert_eq!((lanes(&pair.replica), lanes(&pair.master)), (4, 0));
    daemon.stop();
}

#[test]
fn sentinels_that_hang_or_are_away_are_passed_over() {
    let redis = Redis::plain();
    let sentinel = Sentinel::watching(&redis, 0);
    let (hanging, away) = (
        Proxy::before(sentinel.port()),
        Proxy::before(sentinel.port()),
    );
    hanging.black_hole();
    away.refuse();
    let files = Files::new();
    let ports = [hanging.port(), away.port(), sentinel.port()];
    let daemon = conserver(&url(&ports), &[("files", files.storage())]).start();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    all_are_done(&redis, &files, &samples);
    // All of them: the commands end all the same, and name each.
    let finished = conserver(&url(&ports[..2]), &[]).run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(finished.took < PATIENCE, "{output}");
    for port in &ports[..2] {
        assert!(output.contains(&port.to_string()), "{output}");
    }
    daemon.stop();
}

#[test]
fn a_server_that_is_no_master_is_not_used() {
    let pair = Pair::start(Redis::new);
    // It takes the replica for the master, until it has asked it.
    let sentinel = Sentinel::watching(&pair.replica, 0);
    let finished = conserver(&url(&[sentinel.port()]), &[]).run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(output.contains("slave"), "{output}");
}

#[test]
fn a_master_that_the_sentinels_do_not_know_is_named() {
    let redis = Redis::plain();
    let sentinel = Sentinel::watching(&redis, 0);
    let url = url(&[sentinel.port()]).replace(MASTER, "elsewhere");
    let finished = conserver(&url, &[]).run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(output.contains("knows no master elsewhere"), "{output}");
}

#[test]
fn every_command_finds_the_master_and_shows_no_password() {
    let redis = Redis::new().locked().started();
    let sentinel = Sentinel::locked(&redis, 0);
    let url = format!(
        "redis+sentinel://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:{}/{MASTER}/0?sentinel_password={SENTINEL_PASSWORD}",
        sentinel.port()
    );
    let files = Files::new();
    let daemon = conserver(&url, &[("files", files.storage())]).start();
    let sample = Sample::small();
    let conserver = daemon.conserver();
    for arguments in [
        &["check"][..],
        &["submit", "-", "--list", "default"],
        &["status", "--queues"],
    ] {
        let finished = conserver.run_with_input(arguments, &sample.text());
        let output = finished.output();
        assert_eq!(finished.code, 0, "{arguments:?}: {output}");
        assert!(!output.contains(REDIS_PASSWORD), "{output}");
        assert!(!output.contains(SENTINEL_PASSWORD), "{output}");
    }
    all_are_done(&redis, &files, &[sample]);
    let beats = || redis.keys("conserver:instance:here").len() == 1;
    wait_until("the monitor shows that we live", PATIENCE, beats);
    let output = daemon.output();
    assert!(!output.contains(REDIS_PASSWORD) && !output.contains(SENTINEL_PASSWORD));
    daemon.stop();

    let wrong = url.replace(SENTINEL_PASSWORD, "FalschesWort");
    let finished = self::conserver(&wrong, &[]).run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(!output.contains("FalschesWort"), "{output}");
}

#[test]
fn a_faulty_url_is_told_and_not_shown() {
    let finished = conserver("redis+sentinel://me:hunter2@a", &[]).run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 78, "{output}");
    assert!(output.contains("REDIS_URL"), "{output}");
    assert!(!output.contains("hunter2"), "{output}");
}
