//! `conserver check`: whether the daemon could start, without starting it.

use std::time::Duration;

use crate::harness::{
    Conserver, Files, POSTGRES_PASSWORD, Postgres, REDIS_PASSWORD, Redis, chain, run, said,
};

#[test]
fn it_is_content_when_everything_can_be_reached() {
    let (redis, files, database) = (
        Redis::new().locked().started(),
        Files::new(),
        Postgres::database(),
    );
    let storages = [("pg", database.storage()), ("files", files.storage())];
    let finished = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 0, "{output}");
    for word in ["redis", "pg", "files"] {
        assert!(output.contains(word), "{word}: {output}");
    }
    assert!(!output.contains(REDIS_PASSWORD), "{output}");
    assert!(!output.contains(POSTGRES_PASSWORD), "{output}");
    assert_eq!(redis.keys("*"), Vec::<String>::new());
    assert_eq!(files.paths().len(), 0);
}

/// Who asks may be another user than the service, which could not write to what that user has made.
#[test]
fn it_makes_no_directory() {
    let (redis, place) = (Redis::plain(), tempfile::tempdir().expect("a folder"));
    let path = place.path().join("conserver").join("vcons");
    let storage = serde_json::json!({"module": "storage.file", "options": {"path": path}});
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("files", storage)]));
    let finished = run(&conserver, &["check"], 0);
    said(&finished, &["is not there yet"]);
    let left = std::fs::read_dir(place.path()).expect("a folder").count();
    assert_eq!(left, 0);
    assert_eq!(redis.keys("*"), Vec::<String>::new());
}

#[test]
fn it_tells_that_redis_takes_no_writes() {
    let redis = Redis::plain();
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    said(&run(&conserver, &["check"], 69), &["OOM"]);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    said(&run(&conserver, &["check"], 69), &["READONLY"]);
}

#[test]
fn it_names_a_redis_that_is_down() {
    let redis = Redis::new().locked();
    let finished = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(output.contains("Redis"), "{output}");
    assert!(!output.contains(REDIS_PASSWORD), "{output}");
    assert!(
        finished.took < Duration::from_secs(10),
        "{:?}",
        finished.took
    );
}

#[test]
fn offline_it_looks_at_settings_and_configuration_alone() {
    let storage = serde_json::json!({"module": "storage.file", "options": {"path": "/proc/vcons"}});
    let mut deferring = storage.clone();
    deferring["on_outage"] = "defer".into();
    let conserver = Conserver::without_redis()
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .config(&chain(&[], &[("files", storage), ("later", deferring)]));
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 0, "{}", finished.output());
    assert!(
        finished.stdout.contains("chain main"),
        "{}",
        finished.stdout
    );
    for (storage, word) in [("files", "hold"), ("later", "defer")] {
        let mut lines = finished.stdout.lines();
        let row = lines.find(|line| line.contains(&format!("storage {storage} (storage.file)")));
        let row = row.unwrap_or_else(|| panic!("{storage}: {}", finished.stdout));
        assert!(row.contains(&format!("on_outage: {word}")), "{row}");
    }

    let conserver = conserver.env("CONSERVER_WORKERS", "many");
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    assert!(finished.stderr.contains("CONSERVER_WORKERS"));

    let conserver = conserver
        .env("CONSERVER_WORKERS", "1")
        .config_text("chains: 1");
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    assert!(
        finished.stderr.contains("config.yml:1"),
        "{}",
        finished.stderr
    );
}

#[test]
fn it_names_a_postgres_that_is_down() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let storage = server.new_database().storage();
    server.stop();
    let finished = Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .run(&["check"]);
    let output = finished.output();
    assert_eq!(finished.code, 69, "{output}");
    assert!(output.contains("pg"), "{output}");
    assert!(!output.contains(POSTGRES_PASSWORD), "{output}");
    assert!(
        finished.took < Duration::from_secs(20),
        "{:?}",
        finished.took
    );
}

#[test]
fn it_names_a_folder_that_cannot_be_written() {
    let redis = Redis::plain();
    let storage = serde_json::json!({"module": "storage.file", "options": {"path": "/proc/vcons"}});
    let finished = Conserver::with(&redis)
        .config(&chain(&[], &[("files", storage)]))
        .run(&["check"]);
    assert_eq!(finished.code, 69, "{}", finished.output());
    assert!(
        finished.output().contains("/proc/vcons"),
        "{}",
        finished.output()
    );
}
