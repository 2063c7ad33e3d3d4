//! Documents that are longer than Redis takes, or than a storage may bring: dead letters with a reason,
//! while others go on.

use std::fs::{self, File};
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::{
    Branch, Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Sample, chain, fresh, run, said,
    submit, wait_until,
};

/// The smallest limits that Redis has.
const VALUES: [&str; 2] = ["--proto-max-bulk-len", "1mb"];
const REQUESTS: [&str; 2] = ["--client-query-buffer-limit", "1mb"];

/// A vCon whose document has this many bytes.
fn of_length(length: usize) -> Sample {
    let mut sample = fresh(1).remove(0);
    sample.document["subject"] = json!("");
    let room = length - sample.text().len();
    sample.document["subject"] = json!("x".repeat(room));
    assert_eq!(sample.text().len(), length);
    sample
}

/// The reason why this is the only dead letter of `default`.
fn reason(redis: &Redis, id: &str) -> String {
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [id]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", id]);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    reason["error"].as_str().expect("text").to_owned()
}

fn is_never_away(daemon: &Daemon) {
    assert_eq!(daemon.count_in_log("is away"), 0, "{}", daemon.log());
}

fn grows_too_long(redis: &Redis, length: usize, setting: &str) {
    let (large, others) = (of_length(length), fresh(3));
    let before = redis_text(&large);
    submit(redis, "default", std::slice::from_ref(&large));
    submit(redis, "default", &others);
    let daemon = Conserver::with(redis).config(&chain(&[], &[])).start();
    let reason = reason(redis, &large.id);
    assert!(reason.contains(setting), "{reason}");
    Ledger::of(redis, &others).wait_for(3);
    Ledger::of(redis, &others).nothing_is_claimed();
    // What stands there is what was loaded, and no draft is left beside it.
    assert_eq!(redis.document(&large.id), Some(before));
    assert_eq!(redis.keys("conserver:draft:*"), Vec::<String>::new());
    is_never_away(&daemon);
    daemon.stop();
}

fn redis_text(sample: &Sample) -> Value {
    serde_json::from_str(&sample.text()).expect("JSON")
}

#[test]
fn a_document_that_grows_beyond_what_redis_takes_is_a_dead_letter() {
    let full = 1 << 20;
    let redis = || Redis::new().with(&VALUES);
    grows_too_long(&redis().started(), full, VALUES[0].trim_start_matches('-'));
    grows_too_long(
        &redis().json().started(),
        full,
        VALUES[0].trim_start_matches('-'),
    );
}

#[test]
fn a_document_that_is_longer_than_a_request_may_be_is_a_dead_letter() {
    let redis = Redis::new().with(&REQUESTS).started();
    // It has come from elsewhere, in pieces.
    let large = of_length(1_500_000);
    let key = format!("vcon:{}", large.id);
    for piece in large.text().as_bytes().chunks(500_000) {
        let piece = std::str::from_utf8(piece).expect("ASCII");
        redis.ask::<i64>(&["APPEND", &key, piece]);
    }
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("client-query-buffer-limit"), "{reason}");
    is_never_away(&daemon);
    daemon.stop();
}

#[test]
fn a_server_that_hides_its_limits_has_the_usual_ones() {
    let redis = Redis::new()
        .with(&["--rename-command", "CONFIG", ""])
        .started();
    let samples = [of_length(1_500_000)];
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn submit_says_which_document_redis_does_not_take_and_hands_in_the_others() {
    let redis = Redis::new().with(&VALUES).started();
    let conserver = Conserver::with(&redis);
    let samples = [fresh(1).remove(0), of_length(3_000_000), fresh(1).remove(0)];
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    for sample in &samples {
        fs::write(folder.join(format!("{}.json", sample.id)), sample.text()).expect("a file");
    }
    let folder = folder.display().to_string();
    let finished = conserver.run(&["submit", &folder, "--list", "default"]);
    assert_ne!(finished.code, 0, "{}", finished.output());
    said(&finished, &[&samples[1].id, "proto-max-bulk-len"]);
    let mut listed = redis.list("default");
    listed.sort();
    let mut ids = [samples[0].id.clone(), samples[2].id.clone()];
    ids.sort();
    assert_eq!(listed, ids);
}

#[test]
fn a_follower_makes_a_dead_letter_of_what_redis_does_not_take() {
    let redis = Redis::new().with(&VALUES).started();
    let branch = Branch::new("token");
    let samples = [of_length(3_000_000), fresh(1).remove(0)];
    branch.announce("out", &samples);
    let mut config = chain(&[], &[]);
    config["followers"] = json!({"far": branch.follower("out")});
    let daemon = Conserver::with(&redis).config(&config).start();
    let reason = reason(&redis, &samples[0].id);
    assert!(reason.contains("proto-max-bulk-len"), "{reason}");
    Ledger::of(&redis, &samples[1..]).wait_for(1);
    daemon.stop();
}

/// A file of a few kilobytes that unpacks to so many bytes, and has no end.
fn bomb(files: &Files, id: &str, length: usize) {
    let path = files.folder().join(format!("{id}.json.gz"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&vec![b' '; length]).expect("in memory");
    let mut packed = gzip.finish().expect("in memory");
    packed.truncate(packed.len() - 8);
    let mut file = File::create(path).expect("a file");
    file.write_all(&packed).expect("room on the disk");
}

#[test]
fn a_small_file_that_unpacks_to_very_much_is_read_no_further_than_it_may_be() {
    let (redis, files) = (Redis::plain(), Files::new());
    let (large, others) = (fresh(1).remove(0), fresh(2));
    bomb(&files, &large.id, 30_000_000);
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    submit(&redis, "default", &others);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", files.storage())]))
        .start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("max_file_size"), "{reason}");
    Ledger::of(&redis, &others).wait_for(2);
    let got = run(daemon.conserver(), &["get", &large.id], 65);
    said(&got, &["max_file_size"]);
    daemon.stop();
}

#[test]
fn a_document_of_a_storage_that_redis_does_not_take_is_a_dead_letter() {
    let (redis, files) = (Redis::new().with(&VALUES).started(), Files::new());
    let large = of_length(3_000_000);
    let path = files.folder().join(format!("{}.json", large.id));
    fs::write(path, large.text()).expect("a file");
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", files.storage())]))
        .start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("proto-max-bulk-len"), "{reason}");
    is_never_away(&daemon);
    daemon.stop();
}
