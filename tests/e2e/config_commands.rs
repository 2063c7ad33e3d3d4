//! `conserver config` and the names that completions ask for.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Conserver, REDIS_PASSWORD, Redis, run, said};

const SECRET: &str = "hunter2-hunter2";

const CONFIG: &str = "\
links:
  tagger: {module: links.tag, options: {tags: [a]}}
  tell:
    module: links.webhook
    options:
      webhook-urls: ['https://hunter2-hunter2@hooks.example.org/T0/hunter2-hunter2']
      headers: {X-Key: '${API_KEY}', X-Other: hunter2-hunter2}
storages:
  cache: {module: storage.redis_storage, options: {redis_url_file: url, expires: 60}}
chains:
  main: {links: [tagger], storages: [cache], ingress_lists: [calls], egress_lists: [done]}
";

/// One line of what a command has printed.
fn line<'a>(text: &'a str, word: &str) -> &'a str {
    let found = text.lines().find(|line| line.contains(word));
    found.unwrap_or_else(|| panic!("{word}: {text}"))
}

#[test]
fn what_is_in_force_is_shown_without_secrets_and_names_are_offered() {
    let redis = Redis::new().locked().started();
    let conserver = Conserver::with(&redis)
        .config_text(CONFIG)
        .env("CONSERVER_WORKERS", "1");
    let folder = conserver.folder().to_owned();
    fs::write(folder.join("url"), redis.url()).expect("a file");
    let variables = format!("# of the deployment\nCONSERVER_MAX_ROUNDS=7\nAPI_KEY={SECRET}\n");
    fs::write(folder.join(".env"), variables).expect("a file");

    let file = run(&conserver, &["config", "show"], 0);
    assert!(file.stdout.starts_with("# From "), "{}", file.stdout);
    let daemon = conserver.start();
    let conserver = daemon.conserver();
    let shown = run(conserver, &["config", "show", "--origin"], 0);
    assert_eq!(shown.stderr, "");
    let text = &shown.stdout;
    assert!(text.starts_with("# In force in here (PID "), "{text}");
    for secret in [SECRET, REDIS_PASSWORD] {
        assert!(!text.contains(secret), "{text}");
    }
    for (word, expected) in [
        ("  CONSERVER_WORKERS:", "\"1\"  # environment"),
        ("  CONSERVER_MAX_ROUNDS:", "/.env, line 2"),
        ("  CONSERVER_DRAIN_TIMEOUT:", "\"30\"  # default"),
        ("  CONSERVER_INSTANCE:", "here  # environment"),
        ("  tell:", "# line 3"),
        ("X-Key:", "${API_KEY}  # API_KEY: "),
        ("X-Key:", "/.env, line 3"),
        ("X-Other:", "\"***\""),
        ("hooks.example.org", "https://***@hooks.example.org/***"),
        ("redis_url_file:", "url  # file url"),
        ("expires:", "60"),
    ] {
        let line = line(text, word);
        assert!(line.contains(expected), "{expected}: {line}");
    }
    // It can be read back.
    fs::write(folder.join("shown.yml"), text.replace("***", "x")).expect("a file");
    let again = [
        "check",
        "--offline",
        "--deny-warnings",
        "--config",
        "shown.yml",
    ];
    let checked = run(conserver, &again, 0);
    said(
        &checked,
        &["1 chain, 2 links, 1 storage: 0 errors, 0 warnings"],
    );

    fs::write(folder.join("config.yml"), "chains: 1\n").expect("a file");
    let shown = run(conserver, &["config", "show", "--json"], 0);
    said(&shown, &["differs from what is in force, and is not valid"]);
    let json: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(json["changed"], true);
    assert_eq!(json["instance"], "here");
    assert_eq!(
        json["config"]["storages"]["cache"]["options"]["expires"],
        60
    );
    let settings = json["settings"].as_array().expect("settings");
    let rounds = settings
        .iter()
        .find(|it| it["name"] == "CONSERVER_MAX_ROUNDS");
    assert_eq!(rounds.expect("a setting")["value"], "7");
    assert!(!shown.stdout.contains(SECRET), "{}", shown.stdout);

    // Names are those of the configuration in force, too.
    let (dead, waiting) = (
        "05cec3d4-4b6e-4d8f-9d35-0a1b2c3d4e5f",
        "05cec3d4-0000-4d8f-9d35-0a1b2c3d4e5f",
    );
    redis.ask::<u64>(&["RPUSH", "DLQ:calls", "no UUID", dead]);
    redis.ask::<u64>(&["RPUSH", "DLQ:storage:cache", dead, waiting]);
    redis.ask::<u64>(&["SADD", "conserver:dlq-lists", "DLQ:$(former)"]);
    for (what, prefix, expected) in [
        ("uuids", "05cec3d4-4", vec![dead]),
        ("uuids", "", vec![dead, waiting]),
        ("queues", "", vec!["calls", "storage:cache"]),
        ("lists,chains", "", vec!["calls", "done", "main"]),
        ("storages", "x", vec![]),
    ] {
        let offered = run(conserver, &["complete", what, "--", prefix], 0);
        let names: Vec<&str> = offered.stdout.lines().collect();
        assert_eq!(names, expected, "{what} {prefix}");
        assert_eq!(offered.stderr, "");
    }
    let conserver = conserver.again().env("REDIS_URL", "redis://127.0.0.1:1");
    let offered = run(&conserver, &["complete", "queues,uuids"], 0);
    assert_eq!(offered.stdout, "calls\nstorage:cache\n");
    assert_eq!(offered.stderr, "");
    assert!(offered.took < Duration::from_secs(5), "{:?}", offered.took);
    daemon.stop();
}

#[test]
fn a_configuration_to_start_with_is_written_once() {
    let conserver = Conserver::without_redis();
    let path = conserver.folder().join("own.yml");
    let name = path.to_str().expect("text");
    said(
        &run(&conserver, &["config", "init", name], 0),
        &["Wrote ", name],
    );
    let text = fs::read_to_string(&path).expect("a file");
    run(
        &conserver,
        &["check", "--offline", "--deny-warnings", "--config", name],
        0,
    );
    fs::write(&path, "mine").expect("a file");
    said(
        &run(&conserver, &["config", "init", name], 64),
        &["is there already"],
    );
    assert_eq!(fs::read_to_string(&path).expect("a file"), "mine");
    assert_eq!(
        run(&conserver, &["config", "init", "--print"], 0).stdout,
        text
    );
    said(
        &run(&conserver, &["config", "init", "/proc/none/own.yml"], 70),
        &["could not write"],
    );
    let schema = run(&conserver, &["config", "schema"], 0);
    let schema: Value = serde_json::from_str(&schema.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert!(schema["definitions"]["links/links.tag"]["properties"]["tags"].is_object());
    said(
        &run(&conserver, &["config", "show"], 78),
        &["there is no such file"],
    );
}
