//! What can go wrong with the server and the way to it: all of it is waited out.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Database, Direction, Ledger, PATIENCE, POSTGRES_PASSWORD, Postgres, Proxy,
    Redis, Sample, Shelf, chain, fresh, submit, wait_until,
};

pub fn daemon(redis: &Redis, storage: &Value) -> Daemon {
    Conserver::with(redis)
        .config(&chain(&[], &[("pg", storage.clone())]))
        .workers(2)
        .lanes(2)
        .start()
}

/// Waits until the log says that the storage fails for this reason; no vCon may be a dead letter
/// for it.
pub fn fails(redis: &Redis, daemon: &Daemon, why: &str) {
    let told = |line: &str| line.contains("storage pg has failed") && line.contains(why);
    wait_until(&format!("the log says {why:?}"), PATIENCE, || {
        daemon.log().lines().any(told)
    });
    assert_eq!(redis.length("DLQ:default"), 0);
}

/// Fails unless every vCon is done, and stored once.
pub fn all_is_stored(redis: &Redis, database: &Database<'_>, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    let mut stored: Vec<String> = database.rows().into_iter().map(|(id, _)| id).collect();
    let mut sent: Vec<String> = samples.iter().map(|sample| sample.id.clone()).collect();
    stored.sort();
    sent.sort();
    assert_eq!(stored, sent);
}

/// Breaks the database before the daemon starts, and mends it when the log has said why.
pub fn waits_until_it_is_mended(
    database: &Database<'_>,
    storage: &Value,
    why: &str,
    mend: impl FnOnce(),
) {
    let redis = Redis::plain();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, storage);
    fails(&redis, &daemon, why);
    assert!(!daemon.output().contains(POSTGRES_PASSWORD));
    // A column of somebody else's shows with the first row only.
    if !why.contains("23502") {
        let probed = daemon.conserver().run(&["check"]);
        assert_eq!(probed.code, 69, "{}", probed.output());
    }
    mend();
    all_is_stored(&redis, database, &samples);
    let probed = daemon.conserver().run(&["check"]);
    assert_eq!(probed.code, 0, "{}", probed.output());
    daemon.stop();
}

#[test]
fn a_locked_table_runs_into_the_statement_timeout_and_is_waited_out() {
    let database = Postgres::database();
    let storage = database.storage_with(json!({"statement_timeout": 0.2}));
    let redis = Redis::plain();
    let daemon = daemon(&redis, &storage);
    let first = fresh(5);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);

    let mut client = database.client();
    let mut lock = client.transaction().expect("a transaction");
    lock.batch_execute("TRUNCATE vcons; LOCK TABLE vcons IN ACCESS EXCLUSIVE MODE")
        .expect("a lock");
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    fails(&redis, &daemon, "SQLSTATE 57014");
    lock.commit().expect("the end of the lock");
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn the_victim_of_a_deadlock_is_stored_in_the_end() {
    let database = Postgres::database();
    let (redis, samples) = (Redis::plain(), fresh(1));
    let daemon = daemon(&redis, &database.storage());
    let first = fresh(1);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    // The daemon's session holds its new row and then wants the lock that we hold; we want the
    // row. Ours is the more patient one.
    database.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'; \
         CREATE TRIGGER slow AFTER INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let mut client = database.client();
    client
        .batch_execute("SET deadlock_timeout = '1h'; SET session_replication_role = replica")
        .expect("settings");
    let mut ours = client.transaction().expect("a transaction");
    ours.batch_execute("SELECT pg_advisory_xact_lock(1)")
        .expect("a lock");
    submit(&redis, "default", &samples);
    let waits = "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event = 'advisory'";
    let mut watcher = database.client();
    wait_until("the daemon waits for us", PATIENCE, || {
        let row = watcher.query_one(waits, &[]).expect("a count");
        row.get::<_, i64>(0) == 1
    });
    let insert = "INSERT INTO vcons (id, vcon, uuid, created_at) \
                  VALUES ($1::text::uuid, '', $1::text::uuid, now())";
    ours.execute(insert, &[&samples[0].id])
        .expect("the other one is the victim");
    fails(&redis, &daemon, "SQLSTATE 40P01");
    ours.rollback().expect("a rollback");
    Ledger::of(&redis, &samples).settles();
    assert_eq!(database.rows().len(), 2);
    daemon.stop();
}

#[test]
fn a_limit_of_connections_is_waited_out() {
    let database = Postgres::database();
    let user = database.new_user();
    database.execute(&format!("ALTER ROLE {user} CONNECTION LIMIT 0"));
    let storage = database.storage_with(json!({"user": user}));
    waits_until_it_is_mended(&database, &storage, "SQLSTATE 53300", || {
        database.execute(&format!("ALTER ROLE {user} CONNECTION LIMIT -1"));
    });
}

#[test]
fn a_vcon_that_always_takes_too_long_becomes_a_dead_letter_alone_or_not() {
    let database = Postgres::database();
    let storage = database.storage_with(json!({"statement_timeout": 0.2}));
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .lanes(2)
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "2")
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .env("CONSERVER_MAX_ROUNDS", "3")
        .start();
    let mut done = fresh(1);
    submit(&redis, "default", &done);
    Ledger::of(&redis, &done).settles();
    let slow = fresh(2);
    database.execute(&format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF NEW.id IN (''{}'', ''{}'') THEN PERFORM pg_sleep(5); END IF; RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION slow()",
        slow[0].id, slow[1].id
    ));
    for (number, vcon) in slow.iter().enumerate() {
        let begun = Instant::now();
        submit(&redis, "default", std::slice::from_ref(vcon));
        wait_until("it is a dead letter", PATIENCE, || {
            if number == 1 && redis.length("done") == done.len() {
                done.extend(fresh(1));
                submit(&redis, "default", &done[done.len() - 1..]);
            }
            redis.length("DLQ:default") == number + 1
        });
        // A lock that others hold would be gone by then: 3,600 of the longest pauses, or 600 if others are stored.
        let took = begun.elapsed();
        let least = if number == 0 { 7200 } else { 1200 };
        assert!(took > Duration::from_millis(least), "{took:?}");
        let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &vcon.id]);
        assert!(reason.contains("SQLSTATE 57014"), "{reason}");
    }
    wait_until("the others are stored", PATIENCE, || {
        redis.length("done") == done.len()
    });
    daemon.stop();
}

#[test]
fn a_server_without_room_for_a_row_is_away_until_there_is_some() {
    let database = Postgres::database();
    let redis = Redis::plain();
    let daemon = daemon(&redis, &database.storage());
    let first = fresh(1);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    database.execute(
        "TRUNCATE vcons; CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''53100''; END'; \
         CREATE TRIGGER no_room BEFORE INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION no_room()",
    );
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    daemon.wait_for_log("storage pg is away, on hold until it is back", PATIENCE);
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 69, "{}", checked.output());
    assert!(checked.output().contains("53100"), "{}", checked.output());
    database.execute("DROP TRIGGER no_room ON vcons");
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn a_rule_that_lets_in_certain_rows_alone_does_not_keep_a_probe_out() {
    let database = Postgres::database();
    let storage = database.storage();
    let mut shelf = Shelf::open(&storage);
    let sample = &fresh(1)[0];
    assert_eq!(shelf.save(sample), Ok(()));
    for rule in [
        "ALTER TABLE vcons ADD CONSTRAINT kind CHECK (vcon_json ? 'uuid')",
        "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF NEW.vcon_json ? ''probe'' THEN RAISE EXCEPTION ''no''; END IF; RETURN NEW; END'; \
         CREATE TRIGGER picky BEFORE INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION picky()",
    ] {
        database.execute(rule);
        assert_eq!(shelf.probe(), Ok(()), "{rule}");
    }
    // And nothing of it stays.
    assert_eq!(database.rows().len(), 1);
    assert_eq!(shelf.save(sample), Ok(()));
}

#[test]
fn fewer_connections_than_lanes_are_enough() {
    let server = Postgres::with(&["max_connections=8", "superuser_reserved_connections=3"]);
    let database = server.new_database();
    let user = database.new_user();
    let storage = database.storage_with(json!({"user": user}));
    let (redis, samples) = (Redis::plain(), fresh(300));
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .workers(4)
        .lanes(8)
        .start();
    all_is_stored(&redis, &database, &samples);
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(daemon.count_in_log("storage pg is away"), 0);
    daemon.stop();
}

#[test]
fn a_worker_gets_the_session_that_another_does_not_need_any_more() {
    let database = Postgres::database();
    let user = database.new_user();
    database.execute(&format!("ALTER ROLE {user} CONNECTION LIMIT 1"));
    let storage = database.storage_with(json!({"user": user}));
    let (redis, samples) = (Redis::plain(), fresh(60));
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[crate::harness::delay(0.02)], &[("pg", storage)]))
        .workers(3)
        .lanes(2)
        .start();
    all_is_stored(&redis, &database, &samples);
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(daemon.count_in_log("storage pg is away"), 0);
    daemon.stop();
}

#[test]
fn a_server_that_crashes_under_load_again_and_again_loses_nothing() {
    let server = Postgres::own();
    let database = server.new_database();
    let (redis, samples) = (Redis::plain(), fresh(400));
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let storage = ("pg", database.storage());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[crate::harness::delay(0.01)], &[storage]))
        .workers(2)
        .lanes(2)
        .start();
    for done in [40, 150, 250] {
        ledger.wait_for(done);
        daemon.wait_until_back("storage pg");
        let before = daemon.count_in_log("storage pg is away");
        server.crash();
        let noticed = || daemon.count_in_log("storage pg is away") > before;
        wait_until("the daemon notices", PATIENCE, noticed);
        server.start();
    }
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn sessions_that_the_server_ends_are_opened_anew_without_a_fuss() {
    let database = Postgres::database();
    let (redis, samples) = (Redis::plain(), fresh(300));
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &database.storage());
    for done in (20..300).step_by(40) {
        ledger.wait_for(done);
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'conserver'",
        );
    }
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_breaks_off_at_any_byte_of_its_answers_loses_nothing() {
    let server = Postgres::own();
    let database = server.new_database();
    let proxy = Proxy::before(server.port());
    let storage = database.storage_with(json!({"port": proxy.port()}));
    let (redis, samples) = (Redis::plain(), fresh(60));
    let ledger = Ledger::of(&redis, &samples);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    for (done, sample) in samples.iter().enumerate() {
        // From the first byte of a new session to the answers in it.
        proxy.reset();
        proxy.cut_after(Direction::ToClient, 25 * done as u64);
        submit(&redis, "default", std::slice::from_ref(sample));
        ledger.wait_for(done + 1);
    }
    assert!(proxy.cuts() > 30, "{} cuts", proxy.cuts());
    proxy.pass();
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn a_slow_server_is_used_and_one_that_hangs_is_waited_out() {
    let server = Postgres::own();
    let database = server.new_database();
    let proxy = Proxy::before(server.port());
    let storage = database.storage_with(json!({
        "port": proxy.port(), "connect_timeout": 2, "statement_timeout": 1,
    }));
    let redis = Redis::plain();
    proxy.delay(Duration::from_millis(50));
    let daemon = daemon(&redis, &storage);
    let first = fresh(10);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    assert_eq!(daemon.count_in_log("is away"), 0);
    redis.ask::<i64>(&["DEL", "done"]);
    database.execute("TRUNCATE vcons");

    proxy.black_hole();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    fails(&redis, &daemon, "no answer within");
    let probed = daemon.conserver().run(&["check"]);
    assert_eq!(probed.code, 69, "{}", probed.output());
    proxy.pass();
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn a_commit_that_waits_for_a_lost_standby_is_cut_and_its_session_is_not_left_at_the_server() {
    let server = Postgres::with(&["synchronous_standby_names=lost", "synchronous_commit=local"]);
    let database = server.new_database();
    let mut client = database.client();
    // For the sessions that begin from now on.
    let mut set_commits = |how: &str| {
        let set = format!(
            "ALTER DATABASE \"{}\" SET synchronous_commit = {how}",
            database.name()
        );
        client.execute(&set, &[]).expect("a setting");
    };
    let storage = database.storage_with(json!({"statement_timeout": 0.1}));
    let redis = Redis::plain();
    let config = chain(&[], &[("pg", storage)]);
    let (first, samples) = (fresh(1), fresh(1));
    submit(&redis, "default", &first);
    let daemon = Conserver::with(&redis).config(&config).start();
    all_is_stored(&redis, &database, &first);
    daemon.stop();
    redis.ask::<i64>(&["DEL", "done"]);
    database.execute("TRUNCATE vcons");

    set_commits("on");
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis).config(&config).start();
    let mut seen = BTreeSet::new();
    let mut watcher = database.client();
    wait_until("three attempts have waited", PATIENCE, || {
        let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let waiting = watcher.query(waiting, &[]).expect("the sessions");
        // One that is being cancelled, and the next.
        assert!(waiting.len() <= 2, "{} sessions wait", waiting.len());
        seen.extend(waiting.iter().map(|row| row.get::<_, i32>(0)));
        seen.len() >= 3
    });
    fails(&redis, &daemon, "no answer within");
    set_commits("local");
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn an_unknown_host_is_waited_out_and_named() {
    let database = Postgres::database();
    let storage = database.storage_with(json!({"host": "nowhere.invalid"}));
    let (redis, samples) = (Redis::plain(), fresh(3));
    submit(&redis, "default", &samples);
    let mut daemon = daemon(&redis, &storage);
    fails(&redis, &daemon, "nowhere.invalid");
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn a_unix_socket_will_do_whatever_sslmode_says() {
    let server = Postgres::own();
    let database = server.new_database();
    for mode in ["disable", "prefer", "verify-full"] {
        let storage = database.storage_with(json!({
            "host": server.socket_folder(), "sslmode": mode,
        }));
        database.execute("DROP TABLE IF EXISTS vcons");
        let (redis, samples) = (Redis::plain(), fresh(5));
        submit(&redis, "default", &samples);
        let daemon = daemon(&redis, &storage);
        all_is_stored(&redis, &database, &samples);
        daemon.stop();
    }
}
