//! `conserver get` and `conserver delete`: a vCon is found, and removed, wherever it is.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, PATIENCE, Postgres, Redis, Sample, Shelf, Webhook, chain, delay, fresh, run,
    same, submit, wait_until,
};

fn said(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn put(redis: &Redis, sample: &Sample) {
    submit(redis, "aside", std::slice::from_ref(sample));
    redis.ask::<i64>(&["DEL", "aside"]);
}

fn key(sample: &Sample) -> String {
    format!("vcon:{}", sample.id)
}

/// Whether the sorted set has an entry of the vCon.
fn is_in_sorted_set(redis: &Redis, sample: &Sample) -> bool {
    let score: Option<String> = redis.ask(&["ZSCORE", "vcons", &key(sample)]);
    score.is_some()
}

fn a_vcon_is_found_where_it_is_and_then_deleted_everywhere(redis: &Redis) {
    let (database, files) = (Postgres::database(), Files::new());
    let hook = Webhook::answering(&[]);
    let hooks = json!({"module": "storage.webhook", "options": {"webhook-urls": [hook.url()]}});
    let storages = [
        ("db", database.storage()),
        ("files", files.storage()),
        ("hook", hooks),
    ];
    let samples = fresh(3);
    submit(redis, "default", &samples);
    let daemon = Conserver::with(redis)
        .config(&chain(&[], &storages))
        .start();
    wait_until("they are stored", PATIENCE, || redis.length("done") == 3);
    let conserver = daemon.conserver();
    let sample = &samples[1];
    let id = sample.id.as_str();
    let stored: Value = serde_json::from_str(&files.text(id)).expect("JSON");

    let get = |arguments: &[&str], place: &str| {
        let finished = run(conserver, &[&["get", id], arguments].concat(), 0);
        said(&finished.stderr, &[&format!("Found in {place}")]);
        serde_json::from_str::<Value>(&finished.stdout).expect("JSON")
    };
    assert!(same(
        &get(&[], "Redis"),
        &redis.document(id).expect("a document")
    ));
    assert!(same(&get(&["--from", "files"], "storage files"), &stored));
    redis.ask::<i64>(&["EXPIRE", &key(sample), "590"]);
    get(&["--from", "redis"], "Redis, expires in 9 min");
    redis.ask::<i64>(&["DEL", &key(sample)]);
    assert!(same(&get(&[], "storage db"), &stored));
    Shelf::open(&storages[0].1)
        .delete(sample)
        .expect("it is there");
    assert!(same(&get(&["--raw"], "storage files"), &stored));
    let missing = run(conserver, &["get", id, "--from", "db"], 65);
    said(&missing.stderr, &["it is not in storage db"]);
    assert_eq!(missing.stdout, "");
    let blind = run(conserver, &["get", id, "--from", "hook"], 64);
    said(&blind.stderr, &["cannot be read back from storage hook"]);

    let deleted = run(conserver, &["delete", id, "--yes"], 0);
    let lines: Vec<&str> = deleted.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "storage db: was not there",
            "storage files: deleted",
            "storage hook: keeps no vCons; it cannot take back what it handed on",
            "Redis: was not there; its entry in vcons is deleted",
        ]
    );
    assert!(!is_in_sorted_set(redis, sample));
    let missing = run(conserver, &["get", id], 65);
    said(
        &missing.stderr,
        &[
            "it is not in Redis, storage db, storage files",
            "cannot be read back from storage hook",
        ],
    );
    run(conserver, &["delete", id, "--yes"], 65);

    let whole = &samples[2];
    let some = [
        "delete", &whole.id, "--yes", "--from", "db", "--from", "redis",
    ];
    let deleted = run(conserver, &some, 0).stdout;
    assert_eq!(
        deleted,
        "storage db: deleted\nRedis: deleted, and its entry in vcons\n"
    );
    assert_eq!(redis.document(&whole.id), None);
    let kept: Vec<String> = files.documents().into_iter().map(|(id, _)| id).collect();
    assert!(kept.contains(&whole.id) && !kept.contains(&sample.id));
    let rows = database.rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].0, samples[0].id);
    assert!(redis.document(&samples[0].id).is_some());
    assert!(is_in_sorted_set(redis, &samples[0]));
    daemon.stop();
}

#[test]
fn a_vcon_is_found_where_it_is_and_then_deleted_everywhere_with_plain_documents() {
    a_vcon_is_found_where_it_is_and_then_deleted_everywhere(&Redis::plain());
}

#[test]
fn a_vcon_is_found_where_it_is_and_then_deleted_everywhere_with_json_documents() {
    a_vcon_is_found_where_it_is_and_then_deleted_everywhere(&Redis::with_json());
}

#[test]
fn numbers_and_the_order_of_keys_are_shown_as_they_are() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let sample = Sample::small();
    let text = "{\"z\":1.0e5,\"a\":123456789012345678901234567890,\"s\":\"\\u001b \u{9b}2J\"}";
    redis.ask::<()>(&["SET", &key(&sample), text]);
    let shown = run(&conserver, &["get", &sample.id], 0).stdout;
    let expected = "{\n  \"z\": 1.0e5,\n  \"a\": 123456789012345678901234567890,\n  \
        \"s\": \"\\u001b \\u009b2J\"\n}\n";
    assert_eq!(shown, expected);
    let raw = conserver.run(&["get", &sample.id, "--raw"]);
    assert_eq!((raw.code, raw.stdout.as_str()), (0, text));

    redis.ask::<()>(&["SET", &key(&sample), "\u{1b}[2J{"]);
    let shown = run(&conserver, &["get", &sample.id], 0);
    assert_eq!(shown.stdout, "\\u{1b}[2J{\n");
    said(&shown.stderr, &["not JSON"]);
    redis.ask::<i64>(&["DEL", &key(&sample)]);
    redis.ask::<i64>(&["HSET", &key(&sample), "a", "b"]);
    let unusable = run(&conserver, &["get", &sample.id], 65);
    said(&unusable.stderr, &["a hash", "unreadable in Redis"]);
}

#[test]
fn a_name_that_is_not_there_is_answered_with_those_that_are() {
    let redis = Redis::plain();
    let files = Files::new();
    let storages = [("files", files.storage()), ("redis", files.storage())];
    let conserver = Conserver::with(&redis).config(&chain(&[], &storages));
    let sample = Sample::small();
    put(&redis, &sample);
    for command in [
        &["get", &sample.id, "--from", "s3"][..],
        &[
            "delete", &sample.id, "--yes", "--from", "files", "--from", "s3",
        ],
    ] {
        let finished = run(&conserver, command, 64);
        said(
            &finished.stderr,
            &["--from s3", "redis, files, storages.redis"],
        );
    }
    run(&conserver, &["get", "no-uuid"], 64);
    run(&conserver, &["get", &sample.id, "--from", "redis"], 0);
    run(
        &conserver,
        &["get", &sample.id, "--from", "storages.redis"],
        65,
    );
    run(
        &Conserver::with(&redis).config_text("chains: ["),
        &["get", &sample.id],
        78,
    );
    assert!(redis.document(&sample.id).is_some());
}

#[test]
fn a_place_that_is_away_does_not_keep_the_others_from_being_asked() {
    let (redis, server, files) = (Redis::plain(), Postgres::own(), Files::new());
    let pg = server.new_database().storage();
    let storages = [("db", pg), ("files", files.storage())];
    let conserver = Conserver::with(&redis).config(&chain(&[], &storages));
    let sample = Sample::small();
    Shelf::open(&files.storage()).save(&sample).expect("a file");
    server.stop();

    let found = run(&conserver, &["get", &sample.id], 0);
    said(&found.stderr, &["storage db: ", "Found in storage files"]);
    let missing = run(&conserver, &["get", &Sample::small().id], 69);
    said(
        &missing.stderr,
        &["it is not in Redis, storage files; no answer from storage db"],
    );
    let deleted = run(&conserver, &["delete", &sample.id, "--yes"], 69);
    said(&deleted.stderr, &["storage db: NOT deleted: "]);
    said(
        &deleted.stdout,
        &["storage files: deleted", "Redis: was not there"],
    );

    Shelf::open(&files.storage()).save(&sample).expect("a file");
    redis.kill9();
    let found = run(&conserver, &["get", &sample.id], 0);
    said(&found.stderr, &["Redis: ", "Found in storage files"]);
    let arguments = ["delete", &sample.id, "--yes", "--from", "files"];
    let refused = run(&conserver, &arguments, 69);
    said(&refused.stderr, &["could not find out whether", "--force"]);
    assert_eq!(files.paths().len(), 1);
    let deleted = run(&conserver, &[&arguments[..], &["--force"]].concat(), 0);
    assert_eq!(deleted.stdout, "storage files: deleted\n");
    assert_eq!(files.paths().len(), 0);
}

#[test]
fn a_document_that_cannot_be_read_is_deleted_all_the_same() {
    let (redis, files) = (Redis::plain(), Files::new());
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("files", files.storage())]));
    let sample = Sample::small();
    Shelf::open(&files.storage()).save(&sample).expect("a file");
    fs::write(&files.paths()[0], b"\xff\xfe").expect("a file");
    let damaged = run(&conserver, &["get", &sample.id], 65);
    said(&damaged.stderr, &["unreadable in storage files"]);
    run(&conserver, &["delete", &sample.id, "--yes"], 0);
    assert_eq!(files.paths().len(), 0);
}

#[test]
fn a_vcon_that_would_come_back_is_deleted_by_force_only() {
    let (redis, files) = (Redis::plain(), Files::new());
    let storages = [("files", files.storage())];
    let samples = [Sample::small(), Sample::small()];
    let [waiting, claimed] = &samples;
    put(&redis, waiting);
    redis.ask::<i64>(&["RPUSH", "default", "other", &waiting.id]);
    let conserver = Conserver::with(&redis).config(&chain(&[], &storages));
    let refused = run(&conserver, &["delete", &waiting.id, "--yes"], 65);
    said(&refused.stderr, &["waits in list default", "--force"]);
    assert!(redis.document(&waiting.id).is_some());
    // Without its document it waits none the less: it may come from a storage.
    redis.ask::<i64>(&["DEL", &key(waiting)]);
    run(&conserver, &["delete", &waiting.id, "--yes"], 65);
    put(&redis, waiting);
    let forced = run(&conserver, &["delete", &waiting.id, "--yes", "--force"], 0);
    said(&forced.stderr, &["warning: ", "waits in list default"]);
    assert_eq!(redis.document(&waiting.id), None);
    redis.ask::<i64>(&["DEL", "default"]);

    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &storages))
        .start();
    submit(&redis, "default", std::slice::from_ref(claimed));
    redis.wait_for_claims(1);
    let refused = run(daemon.conserver(), &["delete", &claimed.id, "--yes"], 65);
    said(&refused.stderr, &["a worker has vCon", "--force"]);
    assert!(redis.document(&claimed.id).is_some());
    daemon.kill_family();
}

#[test]
fn nothing_is_deleted_before_somebody_says_yes() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let sample = Sample::small();
    put(&redis, &sample);
    redis.ask::<i64>(&["RPUSH", "DLQ:default", &sample.id]);
    let arguments = ["delete", sample.id.as_str()];
    said(&run(&conserver, &arguments, 64).stderr, &["--yes"]);
    let finished = conserver.run_on_terminal(&arguments, "n\n");
    assert_eq!(finished.code, 0, "{}", finished.output());
    let drop = format!("conserver dlq drop {}", sample.id);
    said(
        &finished.stderr,
        &["DLQ:default", &drop, "from Redis?", "Nothing was deleted"],
    );
    assert!(redis.document(&sample.id).is_some());
    let finished = conserver.run_on_terminal(&arguments, "y\n");
    assert_eq!(finished.code, 0, "{}", finished.output());
    said(
        &finished.stdout,
        &["Redis: deleted, and its entry in vcons"],
    );
    assert_eq!(redis.document(&sample.id), None);
    assert_eq!(redis.list("DLQ:default"), [sample.id]);
}
