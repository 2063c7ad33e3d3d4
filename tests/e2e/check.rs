//! `conserver check`: whether the daemon could start, without starting it.

use std::time::Duration;

use crate::harness::{
    Conserver, Files, Ledger, POSTGRES_PASSWORD, Postgres, REDIS_PASSWORD, Redis, Sample, chain,
    run, said, submit,
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
fn it_makes_no_table() {
    let (redis, database) = (Redis::plain(), Postgres::database());
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("pg", database.storage())]));
    let is_there = |table: &str| -> bool {
        let row = database
            .client()
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]);
        row.expect("PostgreSQL").get(0)
    };
    said(&run(&conserver, &["check"], 0), &["the service makes it"]);
    assert!(!is_there("vcons"));
    // A user who could not make it.
    let user = database.new_user();
    let options = serde_json::json!({"user": user, "table_name": "elsewhere.vcons"});
    let refused = chain(&[], &[("pg", database.storage_with(options))]);
    let refused = Conserver::with(&redis).config(&refused);
    said(&run(&refused, &["check"], 69), &["elsewhere"]);
    let daemon = conserver.start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(is_there("vcons"));
    said(&run(daemon.conserver(), &["check"], 0), &["answers"]);
    daemon.stop();
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
