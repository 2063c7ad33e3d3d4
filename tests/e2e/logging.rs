//! What is logged, in which form, and what never is.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

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

/// What `JOURNAL_STREAM` says if this file is the journal's stream. The daemon will write to it again, emptied.
fn stream(conserver: &Conserver, name: &str) -> (u64, u64) {
    let file = File::create(conserver.folder().join(name)).expect("a file");
    let file = file.metadata().expect("a file");
    (file.dev(), file.ino())
}

#[test]
fn the_journal_gets_lines_with_their_priority_and_without_the_time() {
    let redis = Redis::plain();
    let odd = json!({"module": "links.tag", "options": {"tags": ["a"], "tagz": 1}});
    let config = chain(&[("odd", odd)], &[]);
    // The third time the stream was redirected.
    for (format, is_journal) in [("text", true), ("json", true), ("text", false)] {
        let conserver = Conserver::with(&redis).config(&config);
        let (device, inode) = stream(&conserver, "daemon.stderr");
        let named = format!("{device}:{}", inode + u64::from(!is_journal));
        let daemon = conserver
            .env("JOURNAL_STREAM", named)
            .env("CONSERVER_LOG_FORMAT", format)
            .start();
        let log = daemon.log();
        let mut levels = BTreeSet::new();
        for line in log.lines() {
            if !is_journal {
                assert!(line.starts_with("20"), "no time: {log}");
                continue;
            }
            let (priority, rest) = line.split_at_checked(3).expect("a priority");
            let level = match format {
                "json" => {
                    let fields: Value = serde_json::from_str(rest).expect("JSON");
                    fields["levelname"].as_str().expect("a level").to_owned()
                }
                _ => {
                    let level = rest.strip_prefix('[').and_then(|it| it.split_once(']'));
                    level
                        .unwrap_or_else(|| panic!("no level: {log}"))
                        .0
                        .to_owned()
                }
            };
            levels.insert((priority.to_owned(), level));
        }
        let warning = if format == "json" { "WARNING" } else { "WARN" };
        let expected =
            [("<4>", warning), ("<6>", "INFO")].map(|(n, it)| (n.to_owned(), it.to_owned()));
        let expected = if is_journal {
            expected.into()
        } else {
            BTreeSet::new()
        };
        assert_eq!(levels, expected, "{log}");
        daemon.stop();
    }

    // What is wrong before there is a log is an error there.
    let conserver = Conserver::without_redis().config_text("links: 1\nchains: 1\n");
    let (device, inode) = stream(&conserver, "command.stderr");
    let conserver = conserver.env("JOURNAL_STREAM", format!("{device}:{inode}"));
    for (arguments, code) in [(["run"], 78), (["fly"], 64)] {
        let said = conserver.run(&arguments);
        assert_eq!(said.code, code, "{}", said.stderr);
        assert!(said.stderr.lines().count() >= 2, "{}", said.stderr);
        let is_error = |line: &str| line.starts_with("<3>");
        assert!(said.stderr.lines().all(is_error), "{}", said.stderr);
    }
}
