//! `.env` in the working directory: it fills what the environment leaves open, for every command and every
//! process of the daemon, and nobody sees its values.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, geteuid, mkfifo};
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Finished, PATIENCE, Redis, chain, exec, fresh, run, said, submit, wait_until,
};

/// A value that nobody may see.
const SECRET: &str = "hunter2-hunter2";

fn file(conserver: &Conserver) -> PathBuf {
    conserver.folder().join(".env")
}

fn put(conserver: &Conserver, text: &str) {
    fs::write(file(conserver), text).unwrap();
}

/// A chain that tags each vCon with the value of `TAG`, and has these links too.
fn tagging(links: &[(&str, Value)]) -> Value {
    let mut config = chain(links, &[]);
    config["links"]["tagger"]["options"]["tags"] = json!(["${TAG}"]);
    config
}

/// Runs a new vCon through the chain, and waits until it has this tag.
fn tags(redis: &Redis, tag: &str) {
    let samples = fresh(1);
    let before = redis.length("done");
    submit(redis, "default", &samples);
    wait_until("it is done", PATIENCE, || redis.length("done") > before);
    let document = redis.document(&samples[0].id).unwrap().to_string();
    assert!(document.contains(&format!("{tag}:{tag}")), "{document}");
}

fn shows_no_secret(finished: &Finished) {
    let output = finished.output();
    assert!(!output.contains(SECRET), "{output}");
}

/// Every command refuses the file, and says this.
fn refused(conserver: &Conserver, words: &str) {
    for command in [
        &["run"][..],
        &["check", "--offline"],
        &["status"],
        &["get", "00000000-0000-4000-8000-000000000000"],
        &["dlq", "ls"],
        &["audit"],
    ] {
        let finished = run(conserver, command, 78);
        said(&finished, &[words]);
        shows_no_secret(&finished);
        assert!(finished.took < PATIENCE, "{command:?}");
    }
}

#[test]
fn settings_and_configuration_see_it_under_every_start_method() {
    for method in ["fork", "spawn", "forkserver"] {
        let redis = Redis::plain();
        let conserver = Conserver::without_redis()
            .config(&tagging(&[]))
            .method(method)
            .env("LOG_LEVEL", "INFO")
            .workers(2)
            .without("CONSERVER_WORKERS");
        put(
            &conserver,
            &format!(
                "# Settings\nREDIS_URL={}\nexport CONSERVER_WORKERS='2'  # two\nLOG_LEVEL=nonsense\n\
                 PART=from\nTAG=\"${{PART}} a ${{NONE:-file}}\"\nTOKEN={SECRET}\n",
                redis.url()
            ),
        );
        let daemon = conserver.start();
        assert_eq!(daemon.wait_for_workers(2).len(), 2);
        tags(&redis, "from a file");
        let line = format!(
            "{}: variables taken: REDIS_URL, CONSERVER_WORKERS, PART, TAG, TOKEN; already set: LOG_LEVEL",
            fs::canonicalize(file(daemon.conserver()))
                .unwrap()
                .display()
        );
        assert_eq!(daemon.count_in_log(&line), 1, "{}", daemon.log());
        assert!(!daemon.output().contains(SECRET));
        let checked = run(daemon.conserver(), &["check"], 0);
        said(&checked, &["environment file", "REDIS_URL", "2 workers"]);
        shows_no_secret(&checked);
        run(daemon.conserver(), &["dlq", "ls"], 0);
        daemon.stop();
    }
}

#[test]
fn a_process_that_is_executed_anew_does_not_read_it_again() {
    for method in ["spawn", "forkserver"] {
        let redis = Redis::plain();
        // A program has the reaper beside it.
        let program = exec(&json!({"command": ["cat"]}));
        let config = tagging(&[("program", program)]);
        let conserver = Conserver::with(&redis).config(&config).method(method);
        put(&conserver, "TAG=first\n");
        let daemon = conserver.start();
        tags(&redis, "first");
        let worker = daemon.wait_for_workers(1)[&1];
        // A process that read it would end with an error, as commands do.
        put(daemon.conserver(), "TAG=second\n'\n");
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        daemon.wait_for_log("Restarted Worker-1", PATIENCE);
        tags(&redis, "first");
        daemon.stop();
    }
}

#[test]
fn an_empty_variable_of_the_environment_counts_as_set() {
    let conserver = Conserver::without_redis()
        .config(&chain(&[], &[]))
        .env("CONSERVER_VCON_CONCURRENCY", "");
    put(&conserver, "CONSERVER_VCON_CONCURRENCY=7\n");
    let checked = run(&conserver, &["check", "--offline"], 0);
    said(
        &checked,
        &[
            "taken: none; already set: CONSERVER_VCON_CONCURRENCY",
            "x 1 lane",
        ],
    );
}

#[test]
fn a_faulty_setting_in_it_is_an_error_and_a_misspelt_one_a_warning() {
    let conserver = Conserver::without_redis().config(&chain(&[], &[]));
    put(&conserver, "CONSERVER_VCON_CONCURRENCY=many\n");
    refused(
        &conserver,
        "CONSERVER_VCON_CONCURRENCY: \"many\" is not a whole number",
    );
    put(&conserver, "CONSERVER_CONCURRENCY=2\nCONSERVER_WORKERS\n");
    let warnings = [
        "CONSERVER_CONCURRENCY is not a setting; did you mean CONSERVER_VCON_CONCURRENCY?",
        ".env:2: has no `=` and no effect",
    ];
    said(&run(&conserver, &["check", "--offline"], 0), &warnings);
    let strict = ["check", "--offline", "--deny-warnings"];
    said(&run(&conserver, &strict, 78), &warnings);
}

#[test]
fn lines_that_are_not_understood_are_named_by_number_and_not_shown() {
    let conserver = Conserver::without_redis().config(&chain(&[], &[]));
    put(&conserver, &format!("A=1\n\nB='{SECRET}\nC=2\n"));
    refused(&conserver, ".env:3: a quote is opened and not closed");
    put(&conserver, &format!("A='1' {SECRET}\nB={SECRET}\0\n"));
    refused(&conserver, ".env:1: has text behind the closing quote");
    refused(&conserver, ".env:2: the value has a NUL");
    fs::write(file(&conserver), b"A=1\nB=\xff\n").unwrap();
    refused(&conserver, ".env:2: is not UTF-8 text");
}

#[test]
fn what_is_no_file_or_too_large_is_refused_without_waiting() {
    let conserver = Conserver::without_redis().config(&chain(&[], &[]));
    mkfifo(&file(&conserver), Mode::S_IRWXU).unwrap();
    refused(&conserver, ".env: is not a regular file");
    fs::remove_file(file(&conserver)).unwrap();
    symlink("/dev/zero", file(&conserver)).unwrap();
    refused(&conserver, ".env: has more than 1 MiB");
    fs::remove_file(file(&conserver)).unwrap();
    symlink(".env", file(&conserver)).unwrap();
    refused(&conserver, ".env: Too many levels of symbolic links");
    fs::remove_file(file(&conserver)).unwrap();
    // Hidden on purpose, as in containers.
    symlink("/dev/null", file(&conserver)).unwrap();
    said(
        &run(&conserver, &["check", "--offline"], 0),
        &["variables taken: none"],
    );
}

#[test]
fn what_cannot_be_read_is_passed_over_with_a_warning() {
    let conserver = Conserver::without_redis().config(&chain(&[], &[]));
    fs::create_dir(file(&conserver)).unwrap();
    let passed_over = |why: &str| {
        let warning = format!(".env is not read: {why}");
        let checked = run(&conserver, &["check", "--offline"], 0);
        said(&checked, &[&warning]);
        assert!(!checked.output().contains("environment file"));
        said(&run(&conserver, &["status"], 69), &[&warning]);
        let strict = ["check", "--offline", "--deny-warnings"];
        said(&run(&conserver, &strict, 78), &[&warning]);
    };
    passed_over("it is a folder");
    fs::remove_dir(file(&conserver)).unwrap();
    put(&conserver, "CONSERVER_WORKERS=nonsense\n");
    if geteuid().is_root() {
        // Root can read everything, but takes nothing that anybody may have put there.
        let mode = |mode| {
            fs::set_permissions(conserver.folder(), fs::Permissions::from_mode(mode)).unwrap()
        };
        let read = || refused(&conserver, "CONSERVER_WORKERS: \"nonsense\" is not");
        chown(file(&conserver), Some(12345), None).unwrap();
        read();
        mode(0o1777);
        passed_over("others may write to the folder, and it belongs to UID 12345");
        chown(conserver.folder(), Some(12345), None).unwrap();
        passed_over("it and its folder belong to UID 12345, and this is root");
        chown(conserver.folder(), Some(0), None).unwrap();
        mode(0o700);
    } else {
        fs::set_permissions(file(&conserver), fs::Permissions::from_mode(0o000)).unwrap();
        passed_over("Permission denied");
    }
}

#[test]
fn variables_of_the_existing_server_are_named_once_as_ignored() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("LOGGING_CONFIG_FILE", "server/logging.conf")
        .env("CONSERVER_API_TOKEN", SECRET)
        .env("SENTRY_DSN", "")
        .env("HOSTNAME", "web-1");
    let line = "Ignored variables of the existing server: LOGGING_CONFIG_FILE (LOG_LEVEL and \
                CONSERVER_LOG_FORMAT say how the log looks); CONSERVER_API_TOKEN (of the API server)\n";
    let daemon = conserver.start();
    assert_eq!(daemon.count_in_log(line), 1, "{}", daemon.log());
    let again = daemon.conserver().again().config(&chain(&[], &[]));
    daemon.stop();
    put(&again, "HOSTNAME=ours\nAPI_ROOT_PATH=/api\n");
    let again = again.without("HOSTNAME");
    let checked = run(&again, &["check", "--offline", "--deny-warnings"], 0);
    said(
        &checked,
        &["ignored variables", "HOSTNAME", "API_ROOT_PATH"],
    );
    shows_no_secret(&checked);
}
