//! A Redis that answers, but not with what was asked for: each error is waited out, and nothing
//! is lost or done twice.

use std::thread;

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, REDIS_PASSWORD, REDIS_USER, Redis, Sample, chain,
    delay, fresh, submit, wait_until,
};

/// A daemon at work on vCons.
struct Bench<'a> {
    redis: &'a Redis,
    files: Files,
    samples: Vec<Sample>,
    daemon: Daemon,
}

impl<'a> Bench<'a> {
    /// So many vCons are submitted, of which each takes a moment, and work begins.
    fn start(redis: &'a Redis, count: usize) -> Self {
        let (files, samples) = (Files::new(), fresh(count));
        submit(redis, "default", &samples);
        let config = chain(&[delay(0.005)], &[("files", files.storage())]);
        let daemon = Conserver::with(redis)
            .config(&config)
            .env("CONSERVER_RETRY_MAX_MS", "500")
            .env("LOG_LEVEL", "DEBUG")
            .workers(2)
            .lanes(2)
            .start();
        let bench = Self {
            redis,
            files,
            samples,
            daemon,
        };
        bench.wait_for(count / 10);
        bench
    }

    fn wait_for(&self, count: usize) {
        Ledger::of(self.redis, &self.samples).wait_for(count);
    }

    /// Waits until the log tells of an absence for one of these reasons.
    fn notices(&self, reasons: &[&str]) {
        assert!(reasons.iter().all(|reason| !reason.is_empty()));
        let away =
            |line: &str| line.contains("Redis is away") || line.contains("Redis is still away");
        let is_one = |line: &str| reasons.iter().any(|reason| line.contains(reason));
        let told = |line: &str| away(line) && is_one(line);
        wait_until(&format!("the log tells of {reasons:?}"), PATIENCE, || {
            self.daemon.log().lines().any(told)
        });
    }

    /// All is well in the end.
    fn settles(self) {
        Ledger::of(self.redis, &self.samples).settles();
        assert_eq!(self.files.paths().len(), self.samples.len());
        self.daemon.stop();
    }
}

fn survives_the_loss_of_scripts(redis: &Redis) {
    let bench = Bench::start(redis, 200);
    for done in (20..200).step_by(5) {
        bench.wait_for(done);
        redis.ask::<()>(&["SCRIPT", "FLUSH"]);
    }
    bench.settles();
}

#[test]
fn scripts_that_the_server_forgets_are_sent_again() {
    survives_the_loss_of_scripts(&Redis::plain());
}

#[test]
fn scripts_that_the_server_forgets_are_sent_again_with_json() {
    survives_the_loss_of_scripts(&Redis::with_json());
}

#[test]
fn a_server_that_is_busy_with_a_script_is_waited_for() {
    let redis = Redis::plain();
    redis.ask::<()>(&["CONFIG", "SET", "lua-time-limit", "50"]);
    let bench = Bench::start(&redis, 200);
    let mut other = redis.connection();
    let script = thread::spawn(move || {
        let endless = redis::cmd("EVAL").arg("while true do end").arg(0).clone();
        endless.query::<redis::Value>(&mut other).is_err()
    });
    bench.notices(&["BUSY"]);
    redis.ask::<()>(&["SCRIPT", "KILL"]);
    assert!(script.join().unwrap());
    bench.settles();
}

#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    let slowly = [
        "--key-load-delay",
        "4000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let redis = Redis::new().durable().with(&slowly).started();
    let bench = Bench::start(&redis, 300);
    // Only what is in the base file is loaded slowly.
    redis.ask::<redis::Value>(&["BGREWRITEAOF"]);
    wait_until("the base file is written", PATIENCE, || {
        let state: String = redis.ask(&["INFO", "persistence"]);
        state.contains("aof_rewrite_in_progress:0") && state.contains("aof_rewrite_scheduled:0")
    });
    redis.kill9();
    redis.start();
    bench.notices(&["LOADING"]);
    bench.settles();
}

/// The server becomes a copy of one that is not there, and its own again.
fn survives_a_demotion(redis: &Redis, stale: &str, errors: &[&str]) {
    redis.ask::<()>(&["CONFIG", "SET", "replica-serve-stale-data", stale]);
    let bench = Bench::start(redis, 300);
    redis.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    bench.notices(errors);
    redis.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    bench.settles();
}

#[test]
fn a_server_that_takes_no_writes_any_more_is_waited_for() {
    survives_a_demotion(&Redis::plain(), "yes", &["READONLY"]);
}

#[test]
fn a_server_that_takes_no_writes_any_more_is_waited_for_with_json() {
    survives_a_demotion(&Redis::with_json(), "yes", &["READONLY"]);
}

#[test]
fn a_copy_without_its_original_is_waited_for() {
    // MASTERDOWN, or READONLY where a document is to be written first.
    survives_a_demotion(&Redis::plain(), "no", &["MASTERDOWN", "READONLY"]);
}

#[test]
fn a_server_without_enough_copies_is_waited_for() {
    let redis = Redis::plain();
    let bench = Bench::start(&redis, 200);
    redis.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    bench.notices(&["NOREPLICAS"]);
    redis.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    bench.settles();
}

#[test]
fn a_password_that_changes_is_waited_for_and_not_shown() {
    let redis = Redis::new().locked().started();
    let bench = Bench::start(&redis, 200);
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "resetpass", ">anders"]);
    redis.ask::<i64>(&["CLIENT", "KILL", "USER", REDIS_USER]);
    bench.notices(&["uthentication failed"]);
    let password = format!(">{REDIS_PASSWORD}");
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "resetpass", &password]);
    assert!(!bench.daemon.output().contains(REDIS_PASSWORD));
    bench.settles();
}

#[test]
fn a_password_that_is_suddenly_asked_for_is_waited_for() {
    let redis = Redis::plain();
    let mut kept = redis.connection();
    let bench = Bench::start(&redis, 200);
    let mut ask = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command
            .arg(&words[1..])
            .query::<redis::Value>(&mut kept)
            .unwrap()
    };
    ask(&["CONFIG", "SET", "requirepass", "anders"]);
    ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    bench.notices(&["NOAUTH"]);
    ask(&["CONFIG", "SET", "requirepass", ""]);
    bench.settles();
}

#[test]
fn a_user_who_may_not_announce_waits_until_he_may() {
    let redis = Redis::new().locked().started();
    let bench = Bench::start(&redis, 100);
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "-rpush"]);
    wait_until("the log tells", PATIENCE, || {
        bench.daemon.log().contains("user executing the script")
            || bench.daemon.log().contains("NOPERM")
    });
    assert_eq!(redis.length("DLQ:default"), 0);
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "+@all"]);
    bench.settles();
}

#[test]
fn a_user_who_may_not_hold_claims_takes_nothing() {
    let redis = Redis::new().locked().started();
    let bench = Bench::start(&redis, 100);
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "-hset"]);
    let refused = || bench.daemon.log().contains("Redis is away");
    wait_until("the log tells", PATIENCE, refused);
    wait_until("what was claimed is done", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    let everywhere = redis.length("default") + redis.length("done");
    assert_eq!(everywhere, bench.samples.len());
    redis.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "+@all"]);
    bench.settles();
}

#[test]
fn answers_too_large_for_the_server_to_keep_are_asked_for_again() {
    let redis = Redis::plain();
    let mut document = Sample::small().document;
    document["subject"] = "x".repeat(500_000).into();
    let large: Vec<Sample> = (0..20).map(|_| Sample::of(document.clone())).collect();
    let bench = Bench::start(&redis, 50);
    bench.wait_for(50);
    let limit = |text: &str| {
        redis.ask::<()>(&["CONFIG", "SET", "client-output-buffer-limit", text]);
    };
    limit("normal 100000 0 0");
    submit(&redis, "default", &large);
    bench.notices(&["connection", "Connection", "end of file", "Broken pipe"]);
    limit("normal 0 0 0");
    let all = Bench {
        samples: [&bench.samples[..], &large].concat(),
        ..bench
    };
    all.settles();
}
