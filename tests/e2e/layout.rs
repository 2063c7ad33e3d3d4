//! Where storages put a vCon, and find it again.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Postgres, Redis, S3, Sample, chain, run, submit,
    wait_until,
};

/// Values of `s3_path`, and what stands before each key.
const PATHS: &[(&str, &str)] = &[
    ("", ""),
    ("calls", "calls/"),
    ("slash/", "slash/"),
    ("slashes//", "slashes/"),
    ("/calls", "/calls/"),
    ("//calls", "//calls/"),
    ("/", "/"),
    ("a//b", "a//b/"),
    ("north/2025/in", "north/2025/in/"),
    (".", "./"),
    ("..", "../"),
    ("./here", "./here/"),
    ("up/../down", "up/../down/"),
    ("two words", "two words/"),
    (" edges ", " edges /"),
    ("100%", "100%/"),
    ("%2e%2E/%2F", "%2e%2E/%2F/"),
    ("a+b", "a+b/"),
    ("a?b=c&d", "a?b=c&d/"),
    ("a#b", "a#b/"),
    ("a;b,c:d@e=f", "a;b,c:d@e=f/"),
    ("(a)'b'*!$~", "(a)'b'*!$~/"),
    ("a\\b", "a\\b/"),
    ("Größe/日本", "Größe/日本/"),
];

fn dated(created_at: &Value) -> Sample {
    Sample::of(json!({
        "vcon": "0.4.0", "created_at": created_at, "subject": "dated",
        "parties": [], "dialog": [], "analysis": [], "attachments": [],
    }))
}

/// A storage of S3 for each path.
fn storages(s3: &S3, paths: &[&str]) -> Vec<(String, Value)> {
    let storage = |(number, path): (usize, &&str)| {
        let storage = s3.storage_with(json!({"s3_path": path}));
        (format!("s3_{number}"), storage)
    };
    paths.iter().enumerate().map(storage).collect()
}

fn conserver(redis: &Redis, storages: &[(String, Value)]) -> Conserver {
    let storages: Vec<(&str, Value)> = storages
        .iter()
        .map(|(name, storage)| (name.as_str(), storage.clone()))
        .collect();
    Conserver::with(redis).config(&chain(&[], &storages))
}

fn is_got_and_deleted(daemon: &Daemon, storage: &str, id: &str) {
    let got = run(daemon.conserver(), &["get", id, "--from", storage], 0);
    let document: Value = serde_json::from_str(&got.stdout).expect("JSON");
    assert_eq!(document["uuid"], json!(id));
    let deleted = run(
        daemon.conserver(),
        &["delete", id, "--yes", "--from", storage],
        0,
    );
    assert_eq!(deleted.stdout, format!("storage {storage}: deleted\n"));
}

#[test]
fn every_s3_path_gives_the_keys_of_the_existing_layout() {
    let (redis, s3) = (Redis::plain(), S3::without_bucket());
    s3.make_bucket();
    let paths: Vec<&str> = PATHS.iter().map(|(path, _)| *path).collect();
    let sample = dated(&json!("2025-03-07T10:00:00Z"));
    let id = &sample.id;
    let daemon = conserver(&redis, &storages(&s3, &paths)).start();
    submit(&redis, "default", std::slice::from_ref(&sample));
    Ledger::of(&redis, std::slice::from_ref(&sample)).settles();
    let mut expected: Vec<String> = PATHS
        .iter()
        .flat_map(|(_, before)| {
            [
                format!("{before}2025/03/07/{id}.vcon"),
                format!("{before}lookup/{id}.txt"),
            ]
        })
        .collect();
    expected.sort();
    // Some other path gives the same keys.
    expected.dedup();
    assert_eq!(s3.keys(), expected);
    for number in 0..PATHS.len() {
        is_got_and_deleted(&daemon, &format!("s3_{number}"), id);
    }
    assert_eq!(s3.keys(), [""; 0]);
    daemon.stop();
}

/// s3s-fs checks the signature of each key. As it keeps objects as files, it has none whose key
/// begins with a slash.
#[test]
fn a_server_that_checks_signatures_takes_every_key() {
    let (redis, s3) = (Redis::plain(), S3::start());
    let paths: Vec<&str> = PATHS
        .iter()
        .map(|(path, _)| *path)
        .filter(|path| !path.starts_with('/'))
        .collect();
    let sample = dated(&json!("2025-03-07T10:00:00Z"));
    let daemon = conserver(&redis, &storages(&s3, &paths)).start();
    submit(&redis, "default", std::slice::from_ref(&sample));
    Ledger::of(&redis, std::slice::from_ref(&sample)).settles();
    for (number, path) in paths.iter().enumerate() {
        let storage = format!("s3_{number}");
        let got = run(
            daemon.conserver(),
            &["get", &sample.id, "--from", &storage],
            0,
        );
        assert!(got.stdout.contains(&sample.id), "{path}");
    }
    daemon.stop();
}

#[test]
fn objects_of_the_existing_layout_are_found_where_redis_has_no_document() {
    let (redis, s3) = (Redis::plain(), S3::without_bucket());
    s3.make_bucket();
    let sample = dated(&json!("2025-03-07T10:00:00Z"));
    let id = &sample.id;
    s3.put(&format!("/vcons/2025/03/07/{id}.vcon"), &sample.text());
    s3.put(&format!("/vcons/lookup/{id}.txt"), "2025/03/07");
    let daemon = conserver(&redis, &storages(&s3, &["/vcons"])).start();
    redis.ask::<i64>(&["RPUSH", "default", id]);
    Ledger::of(&redis, std::slice::from_ref(&sample)).settles();
    assert_eq!(s3.keys().len(), 2);
    assert_eq!(redis.document(id).expect("a document")["subject"], "dated");
    daemon.stop();
}

/// Stores a new version of the vCon with another date, as a producer does.
fn redate(redis: &Redis, sample: &Sample, created_at: &str) {
    let mut newer = sample.clone();
    newer.document["created_at"] = json!(created_at);
    redis.ask::<i64>(&["DEL", "done"]);
    submit(redis, "default", &[newer]);
    Ledger::of(redis, std::slice::from_ref(sample)).settles();
}

#[test]
fn one_copy_is_left_when_the_day_of_a_vcon_changes() {
    let (redis, s3, files) = (Redis::plain(), S3::without_bucket(), Files::new());
    s3.make_bucket();
    let storages = [
        ("s3".to_owned(), s3.storage()),
        ("files".to_owned(), files.storage()),
    ];
    let daemon = conserver(&redis, &storages).workers(2).lanes(2).start();
    let sample = dated(&json!("2025-03-07T10:00:00Z"));
    let id = &sample.id;
    for created_at in [
        "2025-03-07T10:00:00Z",
        "2025-03-08T10:00:00Z",
        "2025-03-08T11:00:00Z",
        "2024-12-31T10:00:00Z",
        "2026-01-01T10:00:00Z",
    ] {
        redate(&redis, &sample, created_at);
        let day = created_at[..10].replace('-', "/");
        let file = files.folder().join(format!("{day}/{id}.json"));
        assert_eq!(files.with_hidden(), std::slice::from_ref(&file));
        let text = fs::read_to_string(file).expect("a file");
        assert!(text.contains(created_at), "{text}");
        let keys = [
            format!("archive/{day}/{id}.vcon"),
            format!("archive/lookup/{id}.txt"),
        ];
        assert_eq!(s3.keys(), keys);
    }
    let got = run(daemon.conserver(), &["get", id, "--from", "s3"], 0);
    assert!(got.stdout.contains("2026-01-01T10:00:00Z"));
    daemon.stop();
}

#[test]
fn a_file_is_found_wherever_the_existing_daemon_has_left_it() {
    let (redis, files) = (Redis::plain(), Files::new());
    let storages = [("files".to_owned(), files.storage())];
    let daemon = conserver(&redis, &storages).start();
    let samples: Vec<Sample> = (0..3)
        .map(|_| dated(&json!("2025-03-07T10:00:00Z")))
        .collect();
    let at = |below: &str| files.folder().join(below);
    fs::create_dir_all(at("2019/12/31")).expect("folders");
    let flat = at(&format!("{}.json", samples[0].id));
    let other_day = at(&format!("2019/12/31/{}.json", samples[1].id));
    let gzipped = at(&format!("{}.json.gz", samples[2].id));
    fs::write(&flat, samples[0].text()).expect("a file");
    fs::write(&other_day, samples[1].text()).expect("a file");
    gzip(&gzipped, &samples[2].text());
    for sample in &samples {
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    }
    Ledger::of(&redis, &samples).settles();
    // Each lies under its day from now on, and nowhere else.
    let mut expected: Vec<_> = samples
        .iter()
        .map(|sample| at(&format!("2025/03/07/{}.json", sample.id)))
        .collect();
    expected.sort();
    let mut found = files.with_hidden();
    found.sort();
    assert_eq!(found, expected);
    daemon.stop();
}

fn gzip(path: &Path, text: &str) {
    let plain = path.with_extension("");
    fs::write(&plain, text).expect("a file");
    let gzip = std::process::Command::new("gzip").arg(&plain).status();
    assert!(gzip.expect("gzip").success());
}

#[test]
fn every_form_of_a_date_gives_its_day_everywhere() {
    let forms = [
        (
            json!("2025-02-11T08:15:00.250+01:00"),
            "2025-02-11 08:15:00.25",
            1_739_258_100,
        ),
        (
            json!("20250211T081500Z"),
            "2025-02-11 08:15:00",
            1_739_261_700,
        ),
        (
            json!("2025-02-11T08:15:00,250+01:00"),
            "2025-02-11 08:15:00.25",
            1_739_258_100,
        ),
        (
            json!("2025-W07-2T08Z"),
            "2025-02-11 08:00:00",
            1_739_260_800,
        ),
        (json!("2025042"), "2025-02-11 00:00:00", 1_739_232_000),
        (
            json!("2025-02-11T00:10:00+05:30:20"),
            "2025-02-11 00:10:00",
            1_739_212_780,
        ),
        (
            json!("2025-02-11T23:40:00-08:00"),
            "2025-02-11 23:40:00",
            1_739_346_000,
        ),
        (
            json!("2025-02-10T24:00z"),
            "2025-02-11 00:00:00",
            1_739_232_000,
        ),
        (
            json!("Tue, 11 Feb 2025 23:15:00 -0500"),
            "2025-02-11 23:15:00",
            1_739_333_700,
        ),
        (json!(1_739_261_700), "2025-02-11 08:15:00", 1_739_261_700),
        (
            json!(1_739_261_700_250_i64),
            "2025-02-11 08:15:00.25",
            1_739_261_700,
        ),
        (
            json!("1739261700.25"),
            "2025-02-11 08:15:00.25",
            1_739_261_700,
        ),
    ];
    let (redis, s3, files) = (Redis::plain(), S3::start(), Files::new());
    let database = Postgres::database();
    let storages = [
        ("s3".to_owned(), s3.storage()),
        ("files".to_owned(), files.storage()),
        ("pg".to_owned(), database.storage()),
    ];
    let daemon = conserver(&redis, &storages).start();
    let samples: Vec<Sample> = forms.iter().map(|(form, _, _)| dated(form)).collect();
    let handed_in = daemon.conserver().folder().join("handed_in");
    fs::create_dir(&handed_in).expect("a folder");
    for sample in &samples {
        let path = handed_in.join(format!("{}.json", sample.id));
        fs::write(path, sample.text()).expect("a file");
    }
    let folder = handed_in.display().to_string();
    run(daemon.conserver(), &["submit", &folder], 0);
    Ledger::of(&redis, &samples).settles();
    let mut client = database.client();
    for (sample, (form, local, unix)) in samples.iter().zip(&forms) {
        let id = &sample.id;
        let file = files.folder().join(format!("2025/02/11/{id}.json"));
        assert!(file.exists(), "{form}");
        let object = s3.object(&format!("archive/2025/02/11/{id}.vcon"));
        assert!(object.exists(), "{form}");
        let row = client
            .query_one(
                "SELECT created_at::text FROM vcons WHERE id::text = $1",
                &[id],
            )
            .expect("a row");
        assert_eq!(row.get::<_, String>(0), *local, "{form}");
        let score: f64 = redis.ask(&["ZSCORE", "vcons", &format!("vcon:{id}")]);
        assert_eq!(score as i64, *unix, "{form}");
    }
    assert_eq!(daemon.count_in_log("missing or unreadable"), 0);

    let unreadable = dated(&json!("some day"));
    submit(&redis, "default", std::slice::from_ref(&unreadable));
    wait_until("it is done", PATIENCE, || {
        redis.length("done") == samples.len() + 1
    });
    let today = chrono::Utc::now().format("%Y/%m/%d").to_string();
    let file = files
        .folder()
        .join(format!("{today}/{}.json", unreadable.id));
    assert!(file.exists(), "{}", file.display());
    assert_eq!(daemon.count_in_log("missing or unreadable"), 1);
    daemon.stop();
}
