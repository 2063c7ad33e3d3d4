//! New rows of a worker's lanes go to PostgreSQL together, and nobody can tell by the table.

use std::collections::BTreeMap;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{
    Conserver, Daemon, Database, Ledger, PATIENCE, Postgres, Redis, Sample, chain, fresh, submit,
    wait_until,
};

/// A statement takes a while, so that other lanes come meanwhile, and some rows are refused.
const TRIGGERS: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN PERFORM pg_sleep(0.005); RETURN NULL; END'; \
     CREATE TRIGGER slow BEFORE INSERT ON vcons EXECUTE FUNCTION slow(); \
     CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN IF NEW.subject = ''refused'' THEN RAISE ''it is refused''; END IF; RETURN NEW; END'; \
     CREATE TRIGGER refuse BEFORE INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION refuse()";

const TABLE: &str = "CREATE TABLE vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
     created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb);";

/// How the log ends the line about a batch that has waited for a lock.
const LOCK_TIMEOUT: &str = "(SQLSTATE 55P03); each lane saves its vCon alone";

/// A worker with eight lanes.
fn daemon(redis: &Redis, database: &Database<'_>, batch: &str) -> Daemon {
    database.execute(&format!("{TABLE} {TRIGGERS}"));
    Conserver::with(redis)
        .config(&chain(&[], &[("pg", database.storage())]))
        .workers(1)
        .lanes(8)
        .env("CONSERVER_BATCH", batch)
        .env("LOG_LEVEL", "DEBUG")
        .start()
}

/// All that is in the table but the time of the write, by id.
fn content(database: &Database<'_>) -> BTreeMap<String, (String, Value)> {
    let select = "SELECT id::text, concat_ws('|', vcon, uuid, created_at, subject), vcon_json::text FROM vcons";
    let rows = database.client().query(select, &[]).expect("the table");
    let parsed = |text: &str| serde_json::from_str(text).expect("JSON");
    rows.iter()
        .map(|row| (row.get(0), (row.get(1), parsed(row.get(2)))))
        .collect()
}

/// How many transactions wrote the rows that are there.
fn commits(database: &Database<'_>) -> usize {
    let count = "SELECT count(DISTINCT xmin::text) FROM vcons";
    let row = database.client().query_one(count, &[]).expect("the table");
    usize::try_from(row.get::<_, i64>(0)).expect("a count")
}

fn with_subject(samples: &[Sample], subject: &str) -> Vec<Sample> {
    let mut samples = samples.to_vec();
    for sample in &mut samples {
        sample.document["subject"] = subject.into();
    }
    samples
}

fn is_done(redis: &Redis, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    redis.ask::<i64>(&["DEL", "done"]);
}

#[test]
fn rows_that_share_commits_are_the_same_rows() {
    let samples = fresh(160);
    let [(together, commits), (alone, of_each)] = ["true", "false"].map(|batch| {
        let (redis, database) = (Redis::plain(), Postgres::database());
        submit(&redis, "default", &samples);
        let daemon = daemon(&redis, &database, batch);
        is_done(&redis, &samples);
        let found = (content(&database), commits(&database));
        if batch == "true" {
            go_on(&redis, &database, &daemon, &samples);
        }
        daemon.stop();
        found
    });
    assert_eq!(together.len(), samples.len());
    assert_eq!(together, alone);
    assert_eq!(of_each, samples.len());
    // Usually it is less than half of them.
    assert!(commits <= samples.len() * 3 / 4, "{commits} commits");
}

/// More of the same lanes: rows that exist, are refused, or are somebody else's.
fn go_on(redis: &Redis, database: &Database<'_>, daemon: &Daemon, samples: &[Sample]) {
    // Some new, some that have a row.
    let mut mixed = with_subject(&samples[..20], "changed");
    mixed.extend(fresh(20));
    submit(redis, "default", &mixed);
    is_done(redis, &mixed);
    let rows = content(database);
    for sample in &mixed {
        let (_, document) = &rows[&sample.id];
        assert_eq!(document["subject"], sample.document["subject"]);
    }

    // One is refused, and nobody with it.
    let mut good = fresh(40);
    let bad = with_subject(&fresh(1), "refused");
    good.insert(20, bad[0].clone());
    submit(redis, "default", &good);
    good.remove(20);
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") + redis.length("DLQ:default") == good.len() + 1
    });
    assert_eq!(redis.list("DLQ:default"), [&*bad[0].id]);
    assert!(daemon.log().contains("it is refused (SQLSTATE P0001)"));
    redis.ask::<i64>(&["DEL", "DLQ:default"]);
    is_done(redis, &good);

    // One has a row that is not committed yet, and nobody waits for that but its own lane. It may have gone
    // alone, as all do for a while after a failure.
    let given_up = daemon.count_in_log(LOCK_TIMEOUT);
    let begun = Instant::now();
    while daemon.count_in_log(LOCK_TIMEOUT) == given_up {
        assert!(begun.elapsed() < PATIENCE, "no batch gives up a lock");
        one_is_locked(redis, database);
    }

    // The worker dies with rows on their way.
    let all = fresh(120);
    submit(redis, "default", &all);
    Ledger::of(redis, &all).wait_for(20);
    for worker in daemon.workers().into_values() {
        kill(Pid::from_raw(worker), Signal::SIGKILL).expect("a worker");
    }
    is_done(redis, &all);
    let rows = content(database);
    assert!(all.iter().all(|sample| rows.contains_key(&sample.id)));
}

fn one_is_locked(redis: &Redis, database: &Database<'_>) {
    let held = fresh(1);
    let mut client = database.client();
    let mut open = client.transaction().expect("a transaction");
    let insert = "INSERT INTO vcons (id, vcon, uuid, created_at) \
                  VALUES ($1::text::uuid, '', $1::text::uuid, now())";
    open.execute(insert, &[&held[0].id]).expect("a row");
    let mut all = fresh(60);
    all.insert(10, held[0].clone());
    submit(redis, "default", &all);
    let ledger = Ledger::of(redis, &all);
    ledger.wait_for(all.len() - 1);
    assert_eq!(redis.list("DLQ:default"), Vec::<String>::new());
    assert!(!redis.list("done").contains(&held[0].id));
    open.commit().expect("a commit");
    is_done(redis, &all);
    assert_eq!(content(database)[&held[0].id].1["uuid"], held[0].id);
}
