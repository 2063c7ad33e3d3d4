//! Values of any length that anybody may have written into Redis: no command takes more memory for them than for
//! others, and none of them is printed whole.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Ledger, Monitor, PATIENCE, Redis, Sample, Terminal, chain, fresh,
    peak_memory_of, run, said, submit, wait_until,
};

/// The length of each of them. In JSON they are six times as long.
const LENGTH: usize = 12 << 20;

/// The most memory that a command may write to, in kilobytes. To receive one of the values takes more.
const ROOM: usize = 24 << 10;

/// More than a command ever prints of such a value.
const MOST_PRINTED: usize = LENGTH / 3;

const LETTERS: &str = "DLQ:default";
const OF_STORAGE: &str = "DLQ:storage:files";

/// Sends a command whose last argument is such a value.
fn send(redis: &Redis, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.arg(vec![1_u8; LENGTH]);
    command
        .exec(&mut redis.connection())
        .expect("Redis takes it");
}

/// The lists of `config.yml`: one that is served, and one of a chain out of service.
fn config(files: &Files) -> Value {
    let mut config = chain(&[], &[("files", files.storage())]);
    config["chains"]["parked"] =
        json!({"links": ["tagger"], "ingress_lists": ["parked"], "enabled": 0});
    config
}

/// The program, if it may not take more memory than that.
fn confined(redis: &Redis, config: &Value) -> Conserver {
    let conserver = Conserver::with(redis).config(config);
    let path = conserver.folder().join("confined");
    let program = env!("CARGO_BIN_EXE_conserver");
    let text = format!("#!/bin/sh\nulimit -d {ROOM} && exec '{program}' \"$@\"\n");
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("a file");
    conserver.program(path)
}

/// A command that has to end like this, and prints little.
fn ends(conserver: &Conserver, arguments: &[&str], code: i32, words: &[&str]) -> String {
    let finished = run(conserver, arguments, code);
    let length = finished.output().len();
    assert!(length < MOST_PRINTED, "{arguments:?}: {length}");
    said(&finished, words);
    finished.stdout
}

/// The same with a JSON object on each line.
fn tells(conserver: &Conserver, arguments: &[&str], code: i32) -> Vec<Value> {
    let arguments = [arguments, &["--json"]].concat();
    let lines = ends(conserver, &arguments, code, &[]);
    let line = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    lines.lines().map(line).collect()
}

#[test]
fn no_command_takes_or_prints_more_for_them() {
    let (redis, files) = (Redis::plain(), Files::new());
    let conserver = confined(&redis, &config(&files));
    let [dead, lost, kept, waiting] = [0; 4].map(|_| Sample::small());
    for sample in [&dead, &kept] {
        redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), &sample.text()]);
    }
    // Entries, reasons, a context, names of lists.
    for list in ["default", "parked", LETTERS, OF_STORAGE] {
        send(&redis, &["RPUSH", list]);
    }
    redis.ask::<i64>(&["RPUSH", LETTERS, &dead.id]);
    redis.ask::<i64>(&["RPUSH", OF_STORAGE, &kept.id]);
    for reasons in ["conserver:dlq:default", "conserver:dlq:storage:files"] {
        send(&redis, &["HSET", reasons, &dead.id]);
    }
    send(&redis, &["RPUSH", &format!("context:default:{}", dead.id)]);
    send(&redis, &["SADD", "conserver:letters"]);
    let name = [b"DLQ:".as_slice(), &vec![1; LENGTH]].concat();
    let mut push = redis::cmd("RPUSH");
    push.arg(name)
        .arg("x")
        .exec(&mut redis.connection())
        .expect("Redis takes it");

    ends(&conserver, &["dlq", "ls"], 0, &[&dead.id, r"\u{1}"]);
    ends(&conserver, &["dlq", "ls", "--all"], 0, &[&kept.id]);
    assert_eq!(tells(&conserver, &["dlq", "ls"], 0).len(), 4);
    ends(&conserver, &["dlq", "show", "default"], 0, &["Dead"]);
    ends(
        &conserver,
        &["dlq", "show", &dead.id],
        0,
        &["DLQ:default, number 2 of 2", "Grüße"],
    );
    let shown = tells(&conserver, &["dlq", "show", &dead.id], 0);
    let reason = shown[0]["letters"][0]["error"].as_str().expect("a reason");
    assert!(reason.starts_with("\u{1}\u{1}") && reason.ends_with('…'));
    ends(&conserver, &["status"], 69, &[]);
    ends(&conserver, &["get", &dead.id], 0, &["Grüße"]);
    ends(
        &conserver,
        &["where", &dead.id],
        0,
        &["dead letter: number 2 of 2"],
    );
    ends(&conserver, &["check"], 0, &[]);

    // Whoever waits looks at all lists again and again.
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    let file = folder.join(format!("{}.json", waiting.id));
    fs::write(&file, waiting.text()).expect("a file");
    let arguments = [
        "submit",
        "calls",
        "--list",
        "default",
        "--wait",
        "--timeout",
        "1",
    ];
    ends(&conserver, &arguments, 69, &["0 of 1 vCons are done"]);

    // Its date, too, is what anybody says.
    let date = format!("{{\"created_at\":\"{}\"}}", "\\u0001".repeat(LENGTH / 6));
    redis.ask::<()>(&["SET", &format!("vcon:{}", lost.id), &date]);
    let big = Conserver::with(&redis).config(&config(&files));
    ends(&big, &["audit", "--settle", "0"], 65, &[&lost.id, r"\u{1}"]);
    let found = tells(&big, &["audit", "--settle", "0"], 65);
    assert_eq!(found[0]["uuid"], json!(lost.id));
    ends(&conserver, &["delete", &lost.id, "--yes"], 0, &["deleted"]);
    ends(&conserver, &["audit", "--settle", "0"], 0, &[]);

    let done = tells(&conserver, &["dlq", "retry", "storage:files"], 65);
    assert_eq!(done[0]["storages"][0]["saved"], 1);
    assert_eq!(done[0]["storages"][0]["refused"], 1);
    assert!(files.text(&kept.id).contains("Grüße"));
    send(&redis, &["SET", "DLQ:storage:files:replay-lock"]);
    ends(
        &conserver,
        &["dlq", "retry", "storage:files"],
        69,
        &["replay-lock is there"],
    );
    ends(
        &conserver,
        &["dlq", "show", "storage:files"],
        0,
        &["replay-lock is there"],
    );
    redis.ask::<i64>(&["DEL", "DLQ:storage:files:replay-lock"]);
    let dropped = ["dlq", "drop", "storage:files", "--all", "--yes"];
    ends(&conserver, &dropped, 0, &["Dropped 1 entry"]);
    ends(
        &conserver,
        &["dlq", "retry", "default"],
        0,
        &["Put 2 back on list default"],
    );
    assert_eq!(redis.length("default"), 4);
    assert_eq!(redis.keys("conserver:dlq:storage:files").len(), 1);
    send(&redis, &["RPUSH", LETTERS]);
    let dropped = ["dlq", "drop", "default", "--all", "--yes"];
    assert_eq!(tells(&conserver, &dropped, 0)[0]["dropped"], 1);
    assert_eq!(redis.length(LETTERS), 0);
}

#[test]
fn a_daemon_and_its_page_tell_how_many_there_are_and_go_on() {
    let (redis, files, monitor) = (Redis::plain(), Files::new(), Monitor::at_a_port());
    let samples = fresh(5);
    send(&redis, &["RPUSH", "parked"]);
    // The monitor looks for reasons whose entries have gone.
    let gone = Sample::small().id;
    send(&redis, &["HSET", "conserver:dlq:default", &gone]);
    let mut push = redis::cmd("HSET");
    push.arg("conserver:dlq:default")
        .arg(vec![2_u8; LENGTH])
        .arg("x");
    push.exec(&mut redis.connection()).expect("Redis takes it");
    // If it had a time in it, the server would look for that at each of the digits.
    let digits = format!("\"at\":{}", "1".repeat(200_000));
    redis.ask::<i64>(&["HSET", "conserver:dlq:default", &samples[0].id, &digits]);
    let idle = Redis::plain();
    let other = Conserver::with(&idle).config(&config(&files)).start();
    wait_until("the other's keeper has done its work", PATIENCE, || {
        !idle.keys("conserver:keeper:*").is_empty()
    });
    let before = peak_memory_of(other.process("conserver-mon"));
    other.stop();
    let daemon = Conserver::with(&redis)
        .config(&config(&files))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let is_dropped =
        |entry: &str| redis.ask::<i64>(&["HEXISTS", "conserver:dlq:default", entry]) == 0;
    wait_until("reasons without entries are dropped", PATIENCE, || {
        is_dropped(&gone) && is_dropped(&samples[0].id)
    });
    let peak = peak_memory_of(daemon.process("conserver-mon"));
    assert!(peak < before + LENGTH as u64, "{before} {peak}");
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();

    let conserver = daemon.conserver();
    ends(conserver, &["status", "--queues"], 0, &["parked"]);
    let status = &tells(conserver, &["status", "--queues"], 0)[0];
    assert_eq!(status["queues"]["ingress"]["parked"], 1);
    assert_eq!(
        monitor.get("/status").json()["queues"]["ingress"]["parked"],
        1
    );
    assert_eq!(monitor.get("/").status, 200);
    monitor.wait_for("/readyz", 200);
    let terminal = Terminal::run(conserver, &["top", "--every=1"], (100, 40));
    terminal.wait_for(&["parked", "ingress", "1"]);
    daemon.stop();
}

#[test]
fn the_name_of_a_host_that_has_the_lease_is_shown_no_longer_than_one_can_be() {
    let redis = Redis::plain();
    let files = Files::new();
    let record = json!({"host": "\u{1}".repeat(LENGTH / 6), "pid": 1}).to_string();
    redis.ask::<()>(&["SET", "conserver:instance:here", &record]);
    let conserver = Conserver::with(&redis).config(&config(&files));
    ends(&conserver, &["run"], 69, &["conserver:instance:here"]);
    let short = json!({"host": "\u{1}".repeat(500), "pid": 1}).to_string();
    redis.ask::<()>(&["SET", "conserver:instance:here", &short]);
    let shown = format!("host {} with PID 1", r"\u{1}".repeat(253));
    ends(&conserver, &["run"], 69, &[&shown]);
}
