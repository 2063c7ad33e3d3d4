//! What is logged, in which form, and what never is.

use serde_json::Value;

use crate::harness::{
    Conserver, Files, Ledger, POSTGRES_PASSWORD, Postgres, REDIS_PASSWORD, Redis, chain, fresh,
    submit,
};

/// The log of a daemon that has processed three vCons, and their ids.
fn logged(environment: &[(&str, &str)]) -> (String, Vec<String>) {
    let (redis, files, database) = (
        Redis::new().locked().started(),
        Files::new(),
        Postgres::database(),
    );
    let storages = [("pg", database.storage()), ("files", files.storage())];
    let mut conserver = Conserver::with(&redis).config(&chain(&[], &storages));
    for (name, value) in environment {
        conserver = conserver.env(name, *value);
    }
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    let mut daemon = conserver.launch();
    Ledger::of(&redis, &samples).settles();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(crate::harness::PATIENCE), 0);
    let output = daemon.output();
    for secret in [REDIS_PASSWORD, POSTGRES_PASSWORD] {
        assert!(!output.contains(secret), "{output}");
    }
    assert!(!output.contains('\u{1b}'), "escape codes: {output:?}");
    (
        daemon.log(),
        samples.into_iter().map(|sample| sample.id).collect(),
    )
}

#[test]
fn each_vcon_has_a_line_with_its_chain_and_the_seconds_it_took() {
    let (log, ids) = logged(&[]);
    for id in ids {
        let told = log.lines().any(|line| {
            line.contains(&id)
                && line.contains("main")
                && line.contains(" s")
                && line.contains("INFO")
        });
        assert!(told, "{id}: {log}");
    }
    for line in [
        "Started Worker-1 (PID ",
        "All 1 workers started",
        "SIGTERM received",
        "All workers stopped",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn json_lines_have_the_fields_that_people_filter_by() {
    let (log, ids) = logged(&[("CONSERVER_LOG_FORMAT", "json")]);
    let parse = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let lines: Vec<Value> = log.lines().map(parse).collect();
    for line in &lines {
        for field in ["asctime", "levelname", "name", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
    for id in ids {
        let of_vcon = |line: &&Value| line["vcon_id"] == id.as_str();
        let timed = |line: &&Value| line["vcon_processing_time"].is_number();
        let done = lines.iter().filter(of_vcon).find(timed);
        let done = done.unwrap_or_else(|| panic!("no line for {id}: {log}"));
        assert_eq!(done["chain_name"], "main");
        assert_eq!(done["worker"], "Worker-1");
        let stored: Vec<&Value> = lines
            .iter()
            .filter(of_vcon)
            .filter(|line| line["storage_processing_time"].is_number())
            .collect();
        for storage in ["pg", "files"] {
            let named = |line: &&&Value| line["storage_name"] == storage;
            assert_eq!(stored.iter().filter(named).count(), 1, "{storage}: {log}");
        }
    }
}

#[test]
fn debug_shows_no_secret_either() {
    let (log, _) = logged(&[("LOG_LEVEL", "debug")]);
    assert!(log.contains("INFO"), "{log}");
}

#[test]
fn a_higher_level_hides_what_is_below_it() {
    let (log, _) = logged(&[("LOG_LEVEL", "ERROR")]);
    assert_eq!(log, "");
}

#[test]
fn the_journal_gets_lines_without_the_time() {
    use std::os::unix::fs::MetadataExt;
    let redis = Redis::plain();
    for journal in [false, true] {
        let mut conserver = Conserver::with(&redis).config(&chain(&[], &[]));
        if journal {
            // The daemon's standard error will be this file again, emptied.
            let file =
                std::fs::File::create(conserver.folder().join("daemon.stderr")).expect("a file");
            let file = file.metadata().expect("a file");
            let stream = format!("{}:{}", file.dev(), file.ino());
            conserver = conserver.env("JOURNAL_STREAM", stream);
        }
        let daemon = conserver.start();
        let has_time = |line: &str| line.starts_with("20");
        let log = daemon.log();
        assert!(log.lines().all(|line| has_time(line) != journal), "{log}");
        daemon.stop();
    }
}
