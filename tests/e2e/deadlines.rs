//! A chain's `timeout`: it ends calls, and the vCons wait. Nobody dies of it but a lane that does not
//! move at all.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Postgres, Programs, Proxy, Redis, S3, Sample, Webhook,
    chain, exec, fresh, submit, wait_until,
};

/// What messages say of a call that the chain's timeout has ended.
const ENDED: &str = "what was left of the chain's timeout";

/// Longer than the chain's timeout and what a lane was given beyond it: a worker that is killed for
/// such a time is killed within it.
const OUTAGE: Duration = Duration::from_secs(11);

/// A daemon with a chain that has a timeout; a single death makes a dead letter.
fn daemon(redis: &Redis, timeout: u32, links: &[(&str, Value)], storage: Option<Value>) -> Daemon {
    let storages: Vec<_> = storage.into_iter().map(|it| ("kept", it)).collect();
    let mut config = chain(links, &storages);
    config["chains"]["main"]["timeout"] = json!(timeout);
    Conserver::with(redis)
        .config(&config)
        .workers(2)
        .lanes(2)
        .env("CONSERVER_MAX_DEATHS", "1")
        .env("TICK_INTERVAL", "100")
        .start()
}

/// Fails unless the vCons of an outage wait for its end, and then are done, without a death.
/// `outage` begins with `true`, and ends with `false`.
fn outlasts(redis: &Redis, daemon: Daemon, mut outage: impl FnMut(bool)) -> Vec<Sample> {
    let before = daemon.wait_for_workers(2);
    let first = fresh(4);
    submit(redis, "default", &first);
    Ledger::of(redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    outage(true);
    let begun = Instant::now();
    let samples = fresh(20);
    submit(redis, "default", &samples);
    daemon.wait_for_log(ENDED, PATIENCE);
    // That nothing happens is what is tested.
    thread::sleep(OUTAGE.saturating_sub(begun.elapsed()));
    outage(false);
    Ledger::of(redis, &samples).settles();
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    assert_eq!(daemon.wait_for_workers(2), before, "{}", daemon.log());
    daemon.stop();
    samples
}

/// The same, for a server that takes connections and says nothing.
fn outlasts_silence(redis: &Redis, proxy: &Proxy, storage: Value) -> Vec<Sample> {
    let daemon = daemon(redis, 2, &[], Some(storage));
    outlasts(redis, daemon, |begins| {
        if begins {
            proxy.black_hole();
        } else {
            proxy.pass();
        }
    })
}

#[test]
fn a_locked_table_costs_no_worker_and_no_vcon() {
    let (redis, database) = (Redis::plain(), Postgres::database());
    let daemon = daemon(&redis, 2, &[], Some(database.storage()));
    let mut client = database.client();
    let samples = outlasts(&redis, daemon, |begins| {
        let statements = if begins {
            "BEGIN; LOCK TABLE vcons IN ACCESS EXCLUSIVE MODE"
        } else {
            "COMMIT"
        };
        client.batch_execute(statements).expect("a session");
    });
    assert_eq!(database.rows().len(), samples.len() + 4);
}

#[test]
fn a_row_that_others_hold_is_chance_also_when_the_chain_has_less_time_than_the_statement() {
    let (redis, database) = (Redis::plain(), Postgres::database());
    let mut config = chain(&[], &[("pg", database.storage())]);
    config["chains"]["main"]["timeout"] = json!(2);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .lanes(2)
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        // Where the server is slow to cancel, the lane gives up first, and that round counts.
        .env("CONSERVER_MAX_ROUNDS", "4")
        .env("LOG_LEVEL", "DEBUG")
        .start();
    let first = fresh(1);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    let mut client = database.client();
    let mut ours = client.transaction().expect("a transaction");
    let held = fresh(1);
    let insert = "INSERT INTO vcons (id, vcon, uuid, created_at) \
                  VALUES ($1::text::uuid, '', $1::text::uuid, now())";
    ours.execute(insert, &[&held[0].id]).expect("a row");
    submit(&redis, "default", &held);
    let mut done = 1;
    wait_until("it has failed in more rounds than count", PATIENCE, || {
        // Others are stored between its rounds.
        if redis.length("done") == done {
            submit(&redis, "default", &fresh(1));
            done += 1;
        }
        daemon.count_in_log(&format!("Returned {} to the end", held[0].id)) >= 5
    });
    let log = daemon.log();
    assert!(
        log.contains("SQLSTATE 57014") && log.contains(ENDED),
        "{log}"
    );
    ours.rollback().expect("a rollback");
    wait_until("all are stored", PATIENCE, || {
        redis.length("done") == done + 1
    });
    assert_eq!(redis.length("DLQ:default"), 0);
    daemon.stop();
}

#[test]
fn a_silent_postgresql_costs_no_worker_and_no_vcon() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let database = server.new_database();
    let proxy = Proxy::before(server.port());
    let storage = database.storage_with(json!({"port": proxy.port()}));
    let samples = outlasts_silence(&redis, &proxy, storage);
    assert_eq!(database.rows().len(), samples.len() + 4);
}

#[test]
fn a_silent_redis_storage_costs_no_worker_and_no_vcon() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let proxy = Proxy::before(keeper.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let storage = json!({"module": "storage.redis_storage", "options": {"redis_url": url}});
    let samples = outlasts_silence(&redis, &proxy, storage);
    let kept = keeper.keys("vcon_storage:*");
    assert!(
        samples
            .iter()
            .all(|sample| kept.contains(&format!("vcon_storage:{}", sample.id)))
    );
}

#[test]
fn a_silent_s3_costs_no_worker_and_no_vcon() {
    let (redis, s3) = (Redis::plain(), S3::start());
    let proxy = Proxy::before(s3.port());
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let storage = s3.storage_with(json!({"endpoint_url": endpoint}));
    for sample in outlasts_silence(&redis, &proxy, storage) {
        let pointer = s3.object(&format!("archive/lookup/{}.txt", sample.id));
        assert!(pointer.exists(), "{}", pointer.display());
    }
}

#[test]
fn a_silent_webhook_costs_no_worker_and_no_vcon() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let proxy = Proxy::before(webhook.port());
    let url = format!("http://127.0.0.1:{}/calls", proxy.port());
    let storage = json!({"module": "storage.webhook", "options": {"webhook-urls": [url]}});
    let samples = outlasts_silence(&redis, &proxy, storage);
    let requests = webhook.requests();
    for sample in samples {
        assert!(
            requests
                .iter()
                .any(|request| request.body.contains(&sample.id))
        );
    }
}

#[test]
fn a_redis_that_is_frozen_under_a_python_link_costs_no_worker_and_no_vcon() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let text = "
import time
import store
def run(vcon_uuid, link_name, opts):
    time.sleep(0.2)
    store.save(vcon_uuid, store.load(vcon_uuid))
    return vcon_uuid
";
    programs.write("asks.py", text);
    let options = json!({"module": "asks", "path": programs.folder()});
    let link = json!({"module": "links.python", "options": options});
    let daemon = daemon(&redis, 2, &[("asks", link)], None);
    let before = daemon.wait_for_workers(2);
    let samples = fresh(40);
    submit(&redis, "default", &samples);
    wait_until("some are done", PATIENCE, || redis.length("done") > 3);
    redis.signal(Signal::SIGSTOP);
    // That nothing happens is what is tested.
    thread::sleep(OUTAGE);
    redis.signal(Signal::SIGCONT);
    Ledger::of(&redis, &samples).settles();
    assert!(daemon.log().contains(ENDED), "{}", daemon.log());
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(daemon.wait_for_workers(2), before, "{}", daemon.log());
    daemon.stop();
}

/// Fails unless a vCon on which a link hangs, once, is done by another attempt.
fn a_link_that_hangs_once_is_tried_again(redis: &Redis, programs: &Programs, link: Value) {
    let daemon = daemon(redis, 1, &[("hangs", link)], None);
    let before = daemon.wait_for_workers(2);
    let samples = fresh(3);
    submit(redis, "default", &samples);
    daemon.wait_for_log(ENDED, PATIENCE);
    Ledger::of(redis, &samples).settles();
    assert_eq!(programs.lines("tries"), ["hangs"]);
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(daemon.wait_for_workers(2), before, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_program_that_hangs_once_is_tried_again() {
    for mode in ["once", "stream"] {
        let (redis, programs) = (Redis::plain(), Programs::new());
        let hangs = "mkdir \"$TRIES.made\" 2>/dev/null && { echo hangs >\"$TRIES\"; sleep 1000; }";
        let program = match mode {
            "once" => programs.shell("program", &format!("{hangs}; cat >/dev/null")),
            _ => programs.shell(
                "program",
                &format!("while read -r line; do {hangs}; echo '{{}}'; done"),
            ),
        };
        let tries = programs.folder().join("tries");
        let link = exec(&json!({"command": [program], "mode": mode, "env": {"TRIES": tries}}));
        a_link_that_hangs_once_is_tried_again(&redis, &programs, link);
    }
}

#[test]
fn a_python_link_that_hangs_once_is_tried_again() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let text = "
import os, time
def run(vcon_uuid, link_name, opts):
    try:
        os.mkdir(opts['tries'] + '.made')
    except FileExistsError:
        return vcon_uuid
    with open(opts['tries'], 'w') as file:
        print('hangs', file=file)
    time.sleep(1000)
";
    programs.write("hangs.py", text);
    let (path, tries) = (programs.folder(), programs.folder().join("tries"));
    let options = json!({"module": "hangs", "path": path, "tries": tries});
    let link = json!({"module": "links.python", "options": options});
    a_link_that_hangs_once_is_tried_again(&redis, &programs, link);
}

#[test]
fn a_vcon_that_crashes_its_program_is_a_dead_letter_also_when_nothing_else_arrives() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let text = "while read -r line; do case $line in \
                *crashes*) echo try >>\"$TRIES\"; exit 3;; *) echo '{}';; esac; done";
    let program = programs.shell("crashing", text);
    let tries = programs.folder().join("tries");
    let options = json!({"command": [program], "mode": "stream", "env": {"TRIES": tries}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("crashing", exec(&options))], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "5")
        .env("CONSERVER_MAX_ROUNDS", "3")
        .start();
    let mut sample = Sample::small();
    sample.document["subject"] = "crashes".into();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    // Not before it has crashed it for 300 of the longest pauses.
    let tries = programs.lines("tries").len();
    assert!((8..100).contains(&tries), "{tries}");
    let reason = daemon.conserver().run(&["dlq", "show", &sample.id]).stdout;
    assert!(
        reason.contains("ended without an answer, exit code 3"),
        "{reason}"
    );
    // The link still works.
    let others = fresh(2);
    submit(&redis, "default", &others);
    wait_until("others are done", PATIENCE, || redis.length("done") == 2);
    daemon.stop();
}
