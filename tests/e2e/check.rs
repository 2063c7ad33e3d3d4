//! `conserver check`: whether the daemon could start, without starting it.

use std::time::Duration;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, POSTGRES_PASSWORD, Postgres, REDIS_PASSWORD, Redis, Sample,
    Terminal, chain, run, said, submit,
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

#[test]
fn it_warns_of_more_lanes_than_connections() {
    let (redis, database) = (Redis::plain(), Postgres::database());
    let user = database.new_user();
    database.execute(&format!("ALTER ROLE {user} CONNECTION LIMIT 5"));
    let storage = database.storage_with(serde_json::json!({"user": user}));
    let storages = [("one", storage.clone()), ("two", storage)];
    let conserver = Conserver::with(&redis).config(&chain(&[], &storages));
    let shown = run(&conserver, &["check"], 0).output();
    assert!(!shown.contains("connections"), "{shown}");
    let conserver = conserver.workers(2).lanes(2);
    let expected = format!(
        "warning: storage one, two: 2 workers x 2 lanes may want 8 connections, and there is room for 5 \
         (CONNECTION LIMIT of user {user})"
    );
    said(&run(&conserver, &["check"], 0), &[&expected]);
    said(
        &run(&conserver, &["check", "--deny-warnings"], 78),
        &[&expected],
    );
    let all = chain(&[], &[("pg", database.storage())]);
    let conserver = conserver.config(&all).workers(51).lanes(4);
    let expected = "may want 204 connections, and there is room for 200 (max_connections 200)";
    said(&run(&conserver, &["check"], 0), &[expected]);
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

    said(
        &finished,
        &["1 chain, 1 link, 2 storages: 0 errors, 0 warnings"],
    );
    // In a terminal it fits, and has colours.
    let summary = ["1 chain, 1 link, 2 storages: 0 errors, 0 warnings"];
    let terminal = Terminal::run(&conserver, &["check", "--offline"], (60, 40));
    terminal.wait_for(&summary);
    let colour = || terminal.seen(|screen| screen.cell(0, 0).map(|cell| cell.fgcolor()));
    assert_eq!(colour(), Some(vt100::Color::Idx(10)));
    let path = conserver.folder().join("config.yml");
    let path = path.to_str().expect("text");
    assert!(terminal.lines().iter().any(|line| line.ends_with(path)) || path.len() > 50);

    let conserver = conserver.env("CONSERVER_WORKERS", "many");
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    assert!(finished.stderr.contains("CONSERVER_WORKERS"));

    let conserver = conserver
        .env("CONSERVER_WORKERS", "1")
        .config_text("chains: 1");
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    said(&finished, &["the configuration: 1 error, 0 warnings"]);
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

/// A configuration that works but has something without effect in it, on its third line.
const ODD: &str = "\
links:
  tagger: {module: links.tag, options: {tags: [a]}}
  bare: {module: links.tag, ingress-lists: [somewhere], options: {tags: []}}
chains:
  main: {links: [tagger, bare], ingress_lists: [default], egress_lists: [done]}
";

#[test]
fn it_names_what_has_no_effect_and_refuses_it_only_if_it_is_asked_to() {
    let conserver = Conserver::without_redis().config_text(ODD);
    let warning = "config.yml:3: links.bare.ingress-lists: has no effect";
    let finished = conserver.run(&["check", "--offline"]);
    assert_eq!(finished.code, 0, "{}", finished.output());
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("warning: ") && lines[0].contains(warning),
        "{}",
        finished.output()
    );
    let finished = conserver.run(&["check", "--offline", "--deny-warnings"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    assert!(finished.stderr.contains(warning), "{}", finished.output());

    let text = ODD.replace("ingress-lists: [somewhere]", "ingress-lists: []");
    let conserver = conserver.config_text(&text);
    let finished = conserver.run(&["check", "--offline", "--deny-warnings"]);
    assert_eq!(finished.code, 0, "{}", finished.output());
    assert_eq!(finished.stderr, "");
    let conserver = conserver.env("CONSERVER_WORKRES", "4");
    for (arguments, code) in [
        (&["check", "--offline"][..], 0),
        (&["check", "--offline", "--deny-warnings"], 78),
    ] {
        let finished = conserver.run(arguments);
        assert_eq!(finished.code, code, "{}", finished.output());
        let warning =
            "warning: CONSERVER_WORKRES is not a setting; did you mean CONSERVER_WORKERS?";
        assert!(finished.stderr.contains(warning), "{}", finished.output());
    }
}

#[test]
fn the_daemon_logs_what_has_no_effect_and_works() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config_text(ODD)
        .env("VCON_DLQ_EXPIRES", "60")
        .start();
    for warning in [
        "config.yml:3: links.bare.ingress-lists: has no effect",
        "VCON_DLQ_EXPIRES is not a setting; did you mean VCON_DLQ_EXPIRY?",
    ] {
        assert_eq!(daemon.count_in_log(warning), 1, "{}", daemon.log());
    }
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["egress_lists"] = serde_json::json!(["done", "default"]);
    config["chains"]["main"]["note"] = "x".into();
    daemon.reconfigure(&config);
    daemon.wait_for_log("unknown key `note` has no effect", PATIENCE);
    assert!(
        daemon.count_in_log("comes back for ever") > 0,
        "{}",
        daemon.log()
    );
}
