//! Passwords, keys and tokens from variables and files: used, and never shown.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, POSTGRES_PASSWORD, Postgres, REDIS_PASSWORD, REDIS_USER,
    Redis, S3, S3_SECRET, Webhook, chain, fresh, submit,
};

/// Stands in a header.
const TOKEN: &str = "GeheimeMarke";

/// Everything that must not be shown.
const SECRETS: [&str; 4] = [POSTGRES_PASSWORD, REDIS_PASSWORD, S3_SECRET, TOKEN];

fn shows_no_secret(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} shows {secret}:\n{text}");
    }
}

/// Fails where a file in the folder, or in one below it, holds a secret.
fn holds_no_secret(folder: &Path) {
    for entry in folder.read_dir().expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            holds_no_secret(&path);
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            shows_no_secret(
                &path.display().to_string(),
                &String::from_utf8_lossy(&bytes),
            );
        }
    }
}

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("a file");
}

/// A storage of which one option is taken away and others are added.
fn with(mut storage: Value, without: &str, options: Value) -> Value {
    let there = storage["options"].as_object_mut().expect("a mapping");
    there.remove(without);
    there.extend(options.as_object().expect("a mapping").clone());
    storage
}

fn looks_everywhere(daemon: &Daemon) {
    shows_no_secret("the daemon", &daemon.output());
    for pid in daemon.family() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        shows_no_secret("ps", &String::from_utf8_lossy(&line));
    }
    for command in [
        &["check"][..],
        &["status", "--json"],
        &["status", "--queues"],
        &["audit", "--settle", "0"],
        &["dlq", "ls"],
    ] {
        let finished = daemon.conserver().run(command);
        assert_eq!(finished.code, 0, "{command:?}: {}", finished.output());
        shows_no_secret(command[0], &finished.output());
    }
    holds_no_secret(daemon.conserver().folder());
}

#[test]
fn secrets_from_variables_files_and_credentials_are_used_and_never_shown() {
    let (database, s3) = (Postgres::database(), S3::start());
    let (redis, keeper) = (Redis::plain(), Redis::new().locked().started());
    let webhook = Webhook::answering(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    put(folder.path(), "s3-secret", &format!("{S3_SECRET}\n"));
    put(folder.path(), "redis-url", &keeper.url());
    put(folder.path(), "token", &format!("{TOKEN}\r\n"));
    let url = json!({"redis_url_file": folder.path().join("redis-url")});
    let storages = [
        (
            "pg",
            with(
                database.storage(),
                "password",
                json!({"password": "${PG_WORD}"}),
            ),
        ),
        (
            "s3",
            with(
                s3.storage(),
                "aws_secret_access_key",
                json!({"aws_secret_access_key_file": "s3-secret"}),
            ),
        ),
        (
            "kept",
            json!({"module": "storage.redis_storage", "options": url}),
        ),
    ];
    let headers = json!({"X-One": "a ${TOKEN}", "X-Two": "${file:token}"});
    let options = json!({"webhook-urls": ["${HOOK}"], "headers": headers});
    let link = json!({"module": "links.webhook", "options": options});
    let config = chain(&[("post", link)], &storages);
    let mut done = Vec::new();
    for method in ["fork", "spawn", "forkserver"] {
        let samples = fresh(10);
        submit(&redis, "default", &samples);
        done.extend(samples);
        let daemon = Conserver::with(&redis)
            .config(&config)
            .workers(2)
            .method(method)
            .env("LOG_LEVEL", "DEBUG")
            .env("PG_WORD", POSTGRES_PASSWORD)
            .env("TOKEN", TOKEN)
            .env("HOOK", webhook.url())
            .env("CREDENTIALS_DIRECTORY", folder.path())
            .start();
        Ledger::of(&redis, &done).settles();
        // A worker that is started later, and one that reads a new configuration.
        daemon.signal(Signal::SIGTTIN);
        daemon.wait_for_workers(3);
        daemon.signal(Signal::SIGHUP);
        let samples = fresh(10);
        submit(&redis, "default", &samples);
        done.extend(samples);
        Ledger::of(&redis, &done).settles();
        daemon.wait_for_workers(3);
        looks_everywhere(&daemon);
        daemon.stop();
    }
    for request in webhook.requests() {
        let (one, two) = ("x-one: a geheimemarke\r", "x-two: geheimemarke\r");
        assert!(
            request.head.contains(one) && request.head.contains(two),
            "{}",
            request.head
        );
    }
}

#[test]
fn what_cannot_be_looked_up_is_a_fault_with_line_and_name() {
    let redis = Redis::plain();
    let text = "\
storages:
  pg:
    module: storage.postgres
    options:
      user: keeper
      database: calls
      port: ${PG_PORT}
      password: ${PG_WORD}
  kept:
    module: storage.redis_storage
    options: {redis_url_file: /none/there}
  post:
    module: storage.webhook
    options:
      webhook-urls: http://h/
      headers: {X-Key: '${TOKEN}${MISSING}'}
chains: {main: {storages: [pg], ingress_lists: [default]}}
";
    let conserver = Conserver::with(&redis)
        .config_text(text)
        .env("PG_PORT", TOKEN)
        .env("TOKEN", TOKEN);
    for command in [&["check"][..], &["run"], &["audit"]] {
        let finished = conserver.run(command);
        let output = finished.output();
        assert_eq!(finished.code, 78, "{output}");
        for fault in [
            ":7: storages.pg.options.port: \"${PG_PORT}\" is not a whole number",
            ":8: storages.pg.options.password: the variable PG_WORD is not set",
            ":11: storages.kept.options.redis_url_file: the file /none/there could not be read",
            ":16: storages.post.options.headers.X-Key: the variable MISSING is not set",
        ] {
            assert!(output.contains(fault), "{fault}\n{output}");
        }
        shows_no_secret(command[0], &output);
    }
}

#[test]
fn a_changed_file_counts_after_a_reload_and_a_missing_one_changes_nothing() {
    let (redis, keeper) = (Redis::plain(), Redis::new().locked().started());
    let folder = tempfile::tempdir().expect("a folder");
    put(folder.path(), "url", &keeper.url());
    let options = json!({"redis_url_file": folder.path().join("url")});
    let storage = json!({"module": "storage.redis_storage", "options": options});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("kept", storage)]))
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .start();
    let mut samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();

    fs::remove_file(folder.path().join("url")).expect("a file");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log(
        "The configuration is not valid, the former one stays",
        PATIENCE,
    );
    let more = fresh(5);
    submit(&redis, "default", &more);
    samples.extend(more);
    Ledger::of(&redis, &samples).settles();

    // The user of the test's own connections keeps the former one.
    keeper.ask::<()>(&["ACL", "SETUSER", REDIS_USER, "resetpass", ">AnderesWort"]);
    keeper.ask::<i64>(&["CLIENT", "KILL", "USER", REDIS_USER]);
    let new = keeper.url().replace(REDIS_PASSWORD, "AnderesWort");
    let more = fresh(5);
    submit(&redis, "default", &more);
    samples.extend(more);
    daemon.wait_for_log("storage kept is away", PATIENCE);
    put(folder.path(), "url", &new);
    daemon.signal(Signal::SIGHUP);
    Ledger::of(&redis, &samples).settles();
    assert!(!daemon.output().contains("AnderesWort"));
    daemon.stop();
}
