//! The storage in a Redis of its own: what it keeps, and what can go wrong.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Direction, Ledger, MASTER, PATIENCE, Proxy, REDIS_PASSWORD, Redis, Sample,
    Sentinel, Shelf, chain, fresh, submit, wait_until,
};

fn storage(url: &str) -> Value {
    storage_with(url, json!({}))
}

fn storage_with(url: &str, options: Value) -> Value {
    let mut storage = json!({"module": "storage.redis_storage", "options": {"redis_url": url}});
    for (key, value) in options.as_object().expect("a mapping") {
        storage["options"][key] = value.clone();
    }
    storage
}

fn conserver(redis: &Redis, storage: Value) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], &[("kept", storage)]))
        .lanes(2)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
}

fn is_away(redis: &Redis, daemon: &Daemon, why: &str) {
    daemon.wait_for_log("storage kept is away", PATIENCE);
    assert!(daemon.log().contains(why), "the log does not say {why:?}");
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(!daemon.output().contains(REDIS_PASSWORD));
}

/// Fails unless every vCon is done and kept, and will expire.
fn all_is_kept(redis: &Redis, keeper: &Redis, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    for sample in samples {
        let key = format!("vcon_storage:{}", sample.id);
        let text: String = keeper.ask(&["GET", &key]);
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["uuid"], json!(sample.id));
        let left: i64 = keeper.ask(&["TTL", &key]);
        assert!((604_000..=604_800).contains(&left), "{left}");
    }
}

#[test]
fn it_keeps_what_it_is_given_until_it_expires() {
    let keeper = Redis::new().locked().started();
    Shelf::open(&storage(&keeper.url())).keeps_what_it_is_given();
    assert_eq!(keeper.keys("vcon_storage:*-*"), Vec::<String>::new());

    let (sample, options) = (Sample::small(), json!({"prefix": "old", "expires": "0"}));
    let mut forever = Shelf::open(&storage_with(&keeper.url(), options));
    assert_eq!(forever.save(&sample), Ok(()));
    let key = format!("old:{}", sample.id);
    assert_eq!(keeper.ask::<i64>(&["TTL", &key]), -1);

    let options = json!({"prefix": "old", "expires": 1});
    let mut briefly = Shelf::open(&storage_with(&keeper.url(), options));
    assert_eq!(briefly.save(&sample), Ok(()));
    wait_until("it has expired", PATIENCE, || {
        briefly.get(&sample) == Ok(None)
    });
}

#[test]
fn tls_and_unix_sockets_are_ways_to_it() {
    let (redis, keeper) = (Redis::plain(), Redis::new().tls().started());
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    let stranger = Shelf::open(&storage(&keeper.url())).probe().unwrap_err();
    assert!(stranger.is_transient());
    assert!(stranger.message.contains("certificate"), "{stranger}");
    let daemon = conserver(&redis, storage(&keeper.url()))
        .env("SSL_CERT_FILE", keeper.authority())
        .start();
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
    let url = format!("unix://{}", keeper.socket().display());
    Shelf::open(&storage(&url)).keeps_what_it_is_given();
}

#[test]
fn a_vcon_that_redis_has_lost_comes_back_from_it() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, storage(&keeper.url())).start();
    all_is_kept(&redis, &keeper, &samples);
    redis.ask::<()>(&["DEL", "done"]);
    for sample in &samples {
        redis.ask::<()>(&["DEL", &format!("vcon:{}", sample.id)]);
        redis.ask::<()>(&["RPUSH", "default", &sample.id]);
    }
    all_is_kept(&redis, &keeper, &samples);
    assert_eq!(daemon.count_in_log("was restored from storage kept"), 3);
    daemon.stop();
}

#[test]
fn sentinels_lead_to_the_present_master() {
    let redis = Redis::plain();
    let former = Redis::plain();
    let next = Redis::new().replica_of(&former).started();
    let sentinel = Sentinel::watching(&former, 1);
    let url = format!("redis+sentinel://127.0.0.1:{}/{MASTER}", sentinel.port());
    let daemon = conserver(&redis, storage(&url)).start();
    let samples = fresh(20);
    let (before, after) = samples.split_at(10);
    submit(&redis, "default", before);
    Ledger::of(&redis, before).settles();
    let mut copied = Shelf::open(&storage(&next.url()));
    wait_until("the replica has copied all", PATIENCE, || {
        before
            .iter()
            .all(|sample| copied.get(sample).is_ok_and(|found| found.is_some()))
    });
    sentinel.fail_over();
    // Until then the former master takes writes, which it forgets.
    wait_until("the former master is a replica", PATIENCE, || {
        // The sentinel has it close its connections.
        let role = former.try_ask::<String>(&["INFO", "replication"]);
        role.is_ok_and(|role| role.contains("role:slave"))
    });
    submit(&redis, "default", after);
    all_is_kept(&redis, &next, &samples);
    daemon.stop();
}

#[test]
fn a_wrong_password_is_waited_out_and_mended_by_a_reload() {
    let (redis, keeper) = (Redis::plain(), Redis::new().locked().started());
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    let wrong = keeper.url().replace(REDIS_PASSWORD, "FalschesWort");
    let daemon = conserver(&redis, storage(&wrong)).start();
    is_away(&redis, &daemon, "see to user and password in `redis_url`");
    assert!(!daemon.output().contains("FalschesWort"));
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 69, "{}", checked.output());
    assert!(!checked.output().contains("FalschesWort"));
    daemon.reconfigure(&chain(&[], &[("kept", storage(&keeper.url()))]));
    daemon.signal(Signal::SIGHUP);
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_takes_no_writes_is_waited_out() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let daemon = conserver(&redis, storage(&keeper.url())).start();
    let mut samples = Vec::new();
    for (command, undo, why) in [
        (
            ["CONFIG", "SET", "maxmemory", "1"],
            ["CONFIG", "SET", "maxmemory", "0"],
            "raise its maxmemory",
        ),
        (
            ["REPLICAOF", "127.0.0.1", "1", ""],
            ["REPLICAOF", "NO", "ONE", ""],
            "it is a replica",
        ),
        (
            ["ACL", "SETUSER", "default", "-set"],
            ["ACL", "SETUSER", "default", "+set"],
            "allow this user SET",
        ),
    ] {
        let ask = |command: [&'static str; 4]| {
            let words: Vec<&str> = command
                .into_iter()
                .filter(|word| !word.is_empty())
                .collect();
            keeper.ask::<()>(&words);
        };
        ask(command);
        let more = fresh(3);
        submit(&redis, "default", &more);
        samples.extend(more);
        daemon.wait_for_log(why, PATIENCE);
        is_away(&redis, &daemon, why);
        ask(undo);
        Ledger::of(&redis, &samples).wait_for(samples.len());
    }
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}

#[test]
fn an_unknown_host_is_waited_out_and_named() {
    let (redis, samples) = (Redis::plain(), fresh(3));
    submit(&redis, "default", &samples);
    let mut daemon = conserver(&redis, storage("redis://nowhere.invalid:1")).start();
    is_away(&redis, &daemon, "nowhere.invalid");
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn a_document_that_is_too_large_for_it_is_a_dead_letter() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    keeper.ask::<()>(&["CONFIG", "SET", "proto-max-bulk-len", "1mb"]);
    let mut samples = fresh(4);
    samples[0].document["subject"] = json!("x".repeat(9_000_000));
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, storage(&keeper.url()))
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .env("CONSERVER_MAX_ROUNDS", "2")
        .start();
    Ledger::of(&redis, &samples[1..]).wait_for(3);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [samples[0].id.clone()]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &samples[0].id]);
    assert!(reason.contains("proto-max-bulk-len"), "{reason}");
    daemon.stop();
}

#[test]
fn a_server_that_is_killed_under_load_again_and_again_loses_nothing() {
    let (redis, keeper) = (Redis::plain(), Redis::new().durable().started());
    let samples = fresh(200);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, storage(&keeper.url())).start();
    for done in [20, 80, 140] {
        ledger.wait_for(done);
        daemon.wait_until_back("storage kept");
        let before = daemon.count_in_log("storage kept is away");
        keeper.kill9();
        wait_until("the daemon notices", PATIENCE, || {
            daemon.count_in_log("storage kept is away") > before
        });
        keeper.start();
    }
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_breaks_off_at_any_byte_of_its_answers_loses_nothing() {
    let (redis, keeper, samples) = (Redis::plain(), Redis::plain(), fresh(30));
    let proxy = Proxy::before(keeper.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let ledger = Ledger::of(&redis, &samples);
    let daemon = conserver(&redis, storage(&url))
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    for (done, sample) in samples.iter().enumerate() {
        proxy.cut_after(Direction::ToClient, done as u64 % 5);
        submit(&redis, "default", std::slice::from_ref(sample));
        ledger.wait_for(done + 1);
    }
    assert!(proxy.cuts() > 20, "{} cuts", proxy.cuts());
    proxy.pass();
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}

#[test]
fn a_slow_server_is_used_and_one_that_hangs_is_waited_out() {
    let (redis, keeper, samples) = (Redis::plain(), Redis::plain(), fresh(10));
    let proxy = Proxy::before(keeper.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    proxy.delay(Duration::from_millis(50));
    let daemon = conserver(&redis, storage_with(&url, json!({"timeout": 1}))).start();
    let (slowly, later) = samples.split_at(4);
    submit(&redis, "default", slowly);
    Ledger::of(&redis, slowly).settles();
    assert_eq!(daemon.count_in_log("is away"), 0);
    proxy.black_hole();
    submit(&redis, "default", later);
    is_away(&redis, &daemon, "could not save vCon");
    proxy.pass();
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}

#[test]
fn a_vcon_that_redis_has_lost_is_looked_for_in_as_many_attempts_as_any_other() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let door = Proxy::before(keeper.port());
    let samples = fresh(1);
    submit(&redis, "aside", &samples);
    let url = format!("redis://127.0.0.1:{}", door.port());
    let daemon = conserver(&redis, storage(&url))
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
        .env("LOG_LEVEL", "DEBUG")
        .start();
    redis.ask::<()>(&["RENAME", "aside", "default"]);
    all_is_kept(&redis, &keeper, &samples);
    redis.ask::<()>(&["DEL", "done", &format!("vcon:{}", samples[0].id)]);
    door.refuse();
    door.reset();
    redis.ask::<()>(&["RPUSH", "default", &samples[0].id]);
    daemon.wait_for_log("storage kept is away", PATIENCE);
    for attempt in 1..=4 {
        let told = format!("may hold {}, attempt {attempt}:", samples[0].id);
        assert_eq!(
            daemon.count_in_log(&told),
            usize::from(attempt <= 3),
            "{told}"
        );
    }
    assert_eq!(redis.length("DLQ:default"), 0);
    door.pass();
    all_is_kept(&redis, &keeper, &samples);
    daemon.stop();
}
