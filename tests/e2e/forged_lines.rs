//! What servers, documents and names may say: it stays on the line it stands in, and shows all of itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use conserver::queue::Holder;
use serde_json::{Value, json};

use crate::harness::{
    Blocked, Conserver, Files, Format, Monitor, PATIENCE, Redis, Scrape, Webhook, chain, fresh,
    is_fit, lease_of, queue_with, run, said, storage_at, submit, wait_until,
};

/// Ends a line, begins one, clears a screen, turns the direction of text.
const HOSTILE: &str =
    "no\n2026-01-01T00:00:00Z [INFO] Forged\r\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200b}end";

/// How it is shown.
const SHOWN: &str =
    r"no\n2026-01-01T00:00:00Z [INFO] Forged\r\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200b}end";

/// A server that refuses every login with these words, before anyone has proven to be anybody.
fn refusing_postgres() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Ends with the test process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let fields = format!("SFATAL\0VFATAL\0C28000\0M\u{1b}]0;{HOSTILE}\0\0");
            let length = u32::try_from(fields.len() + 4).expect("a short text");
            let _ =
                stream.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat());
        }
    });
    port
}

fn config(s3: &Webhook, postgres: u16) -> Value {
    let link = json!({"module": "links.jq_link", "options": {
        "filter": format!("error({})", serde_json::to_string(HOSTILE).expect("JSON")),
    }});
    let s3 = json!({"module": "storage.s3", "options": {
        "aws_access_key_id": "keeper", "aws_secret_access_key": "x", "aws_bucket": "calls",
        "aws_region": "us-east-1", "endpoint_url": s3.url().trim_end_matches("/calls"), "s3_path": "archive",
    }});
    let postgres = json!({"module": "storage.postgres", "options": {
        "host": "127.0.0.1", "port": postgres.to_string(), "database": "x", "user": "x",
        "password": "x", "sslmode": "disable",
    }});
    let mut config = chain(&[("filter", link)], &[]);
    config["storages"] = json!({"s3": s3, "postgres": postgres});
    for name in ["s3", "postgres"] {
        config["chains"][name] =
            json!({"storages": [name], "ingress_lists": [format!("to-{name}")]});
    }
    config
}

/// Everything that was written begins as lines of the log do, and nothing else does.
fn is_whole(log: &str) {
    assert!(log.chars().all(is_fit), "{log:?}");
    for line in log.lines() {
        assert!(
            line.contains("Z [") && !line.starts_with("2026-01-01T00"),
            "{line}"
        );
    }
}

#[test]
fn nobody_forges_a_line_of_the_log_or_steers_a_terminal() {
    let redis = Redis::plain();
    let error = format!("<Error><Code>AccessDenied</Code><Message>{HOSTILE}</Message></Error>");
    let s3 = Webhook::saying(move |_| (403, error.clone()));
    let daemon = Conserver::with(&redis)
        .config(&config(&s3, refusing_postgres()))
        .lanes(3)
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    for list in ["default", "to-s3", "to-postgres"] {
        submit(&redis, list, &fresh(1));
    }
    daemon.wait_for_log("storage s3 is away", PATIENCE);
    daemon.wait_for_log("storage postgres is away", PATIENCE);
    wait_until("a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let log = daemon.log();
    is_whole(&log);
    for place in [
        "storage s3 is away",
        "storage postgres is away",
        "link filter",
    ] {
        let told = log
            .lines()
            .any(|line| line.contains(place) && line.contains(SHOWN));
        assert!(told, "{place}: {log}");
    }
    // Commands that print the same.
    let conserver = daemon.conserver();
    said(&run(conserver, &["check"], 69), &[SHOWN]);
    let entry = redis.list("DLQ:default").remove(0);
    said(&run(conserver, &["dlq", "show", &entry], 0), &["Forged"]);
    run(conserver, &["dlq", "ls"], 0);
    run(conserver, &["dlq", "ls", "--json"], 0);
    run(conserver, &["status", "--queues"], 0);
    said(
        &run(conserver, &["get", &entry, "--from", "postgres"], 69),
        &[SHOWN],
    );
    said(
        &run(conserver, &["get", &entry, "--from", "s3"], 65),
        &[SHOWN],
    );
    submit(&redis, "DLQ:storage:s3", &fresh(1));
    for arguments in [
        &["audit", "--settle", "0"][..],
        &["delete", &entry, "--yes", "--from", "postgres"],
        &["dlq", "retry", "storage:s3"],
    ] {
        said(&run(conserver, arguments, 69), &[SHOWN]);
    }
    daemon.stop();
}

/// A server in the place of Redis that refuses everything with these words.
fn refusing_redis() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Ends with the test process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let refusal = format!("-ODD {}\r\n", HOSTILE.replace(['\r', '\n'], " "));
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request) {
                    // One for each command that may be in it.
                    if stream.write_all(refusal.repeat(4).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Runs a command, and once more for JSON; nothing of both begins a line, and the second is JSON.
fn is_harmless(conserver: &Conserver, arguments: &[&str], code: i32) {
    let plain = run(conserver, arguments, code);
    let forged = |line: &str| line.starts_with("2026-01-01T00");
    assert!(!plain.output().lines().any(forged), "{}", plain.output());
    let has_json = ["dlq", "audit", "status"].contains(&arguments[0]);
    if has_json {
        let json = run(conserver, &[arguments, &["--json"]].concat(), code);
        for line in json.stdout.lines() {
            let parsed: Result<Value, _> = serde_json::from_str(line);
            parsed.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {line}"));
        }
        assert!(!json.stderr.lines().any(forged), "{}", json.stderr);
    }
}

/// All that others can write: entries, names of lists, reasons, documents, locks, files.
#[test]
fn whatever_others_write_every_command_shows_it_on_its_line() {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    let conserver = Conserver::with(&redis).config(&config);
    let [dead, lost, broken] = [0; 3].map(|_| fresh(1).remove(0).id);
    let put = |id: &str, text: &str| redis.ask::<()>(&["SET", &format!("vcon:{id}"), text]);
    let hostile = json!({HOSTILE: HOSTILE, "created_at": HOSTILE, "uuid": HOSTILE}).to_string();
    put(&dead, &hostile);
    put(&lost, &hostile);
    // On one line: a document that is no JSON is shown with its lines.
    let line = HOSTILE.replace('\n', " ");
    put(&broken, &format!("{{\"{line}"));
    let reason =
        json!({"stage": HOSTILE, "error": HOSTILE, "attempts": 1, "worker": HOSTILE, "at": 1.5});
    let list = format!("DLQ:{HOSTILE}");
    for list in ["DLQ:default", "DLQ:storage:files", &list] {
        redis.ask::<i64>(&["RPUSH", list, &dead, HOSTILE, &broken]);
        let reasons = list.replacen("DLQ:", "conserver:dlq:", 1);
        redis.ask::<i64>(&[
            "HSET",
            &reasons,
            &dead,
            &reason.to_string(),
            HOSTILE,
            HOSTILE,
        ]);
    }
    redis.ask::<i64>(&["SADD", "conserver:letters", &list, HOSTILE]);
    redis.ask::<i64>(&["SADD", "conserver:instances", HOSTILE]);
    redis.ask::<i64>(&["RPUSH", HOSTILE, &broken]);
    for (arguments, code) in [
        (&["dlq", "ls"][..], 0),
        (&["dlq", "ls", "--all"], 0),
        (&["dlq", "ls", SHOWN], 0),
        (&["dlq", "ls", "no\u{202e}list\n"], 65),
        (&["dlq", "show", &dead], 0),
        (&["dlq", "show", SHOWN], 0),
        (&["dlq", "show", "default"], 0),
        (&["audit", "--settle", "0"], 65),
        (&["get", &dead], 0),
        (&["where", &dead, &broken], 0),
        (&["get", &broken], 0),
        (&["get", &lost, "--from", HOSTILE], 64),
        (&["delete", &broken, "--yes"], 65),
        (&["delete", &lost, "--yes"], 0),
        (&["check"], 0),
        (&["check", "--offline"], 0),
        (&["dlq", "retry", "storage:files"], 65),
    ] {
        is_harmless(&conserver, arguments, code);
    }
    let shown = run(&conserver, &["get", &dead], 0);
    assert!(
        shown.stdout.contains(r"\u202e\u2066\u2028\u200bend"),
        "{}",
        shown.stdout
    );
    redis.ask::<()>(&["SET", "DLQ:storage:files:replay-lock", HOSTILE]);
    is_harmless(&conserver, &["dlq", "retry", "storage:files"], 69);
    is_harmless(&conserver, &["dlq", "show", "storage:files"], 0);
    // A folder that others can write to.
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join(format!("{HOSTILE}.json")), &hostile).expect("a file");
    fs::write(folder.join("cut.json"), format!("{{\"uuid\":\"{HOSTILE}")).expect("a file");
    is_harmless(&conserver, &["submit", "calls"], 65);
    is_harmless(&conserver, &["dlq", "retry", SHOWN], 0);
    assert_eq!(redis.list(HOSTILE)[1..], [dead.as_str(), HOSTILE, &broken]);
    run(&conserver, &["dlq", "drop", "--yes", SHOWN], 0);
    is_harmless(&conserver, &["dlq", "drop", "--yes", "--all", "default"], 0);

    // A vCon that is submitted, and told of as a dead letter.
    let link = json!({"module": "links.jq_link", "options": {"filter": "error(.subject)"}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("filter", link)], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    let mut sample = fresh(1).remove(0);
    sample.document["subject"] = json!(HOSTILE);
    let path = daemon.conserver().folder().join("one.json");
    fs::write(&path, sample.text()).expect("a file");
    let submitted = ["submit", "one.json", "--list", "default", "--wait"];
    let told = run(daemon.conserver(), &submitted, 65);
    said(&told, &[SHOWN]);
    is_harmless(daemon.conserver(), &["status", "--queues"], 0);
    is_whole(&daemon.log());
    daemon.stop();
}

/// Names of the configuration, which cannot be told from those of others where they are shown.
#[test]
fn neither_names_nor_errors_of_redis_steer_who_asks_the_monitor() {
    let (redis, monitor, blocked) = (Redis::plain(), Monitor::at_a_port(), Blocked::new());
    let name = HOSTILE;
    let (_, storage) = blocked.storage();
    let mut config = chain(&[], &[(name, storage)]);
    config["chains"] = json!({name: config["chains"]["main"]});
    config["chains"][name]["egress_lists"] = json!(["to\u{202e}\u{2028}\u{200b}<script>"]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    submit(&redis, "default", &fresh(1));
    wait_until("the storage is away", PATIENCE, || {
        let ready = monitor.wait_for("/readyz", 503).body;
        ready.contains(&format!("storage {SHOWN} is unavailable"))
    });
    for path in ["/", "/status", "/metrics", "/readyz", "/healthz"] {
        let body = monitor.get(path).body;
        let unfit: Vec<char> = body.chars().filter(|c| !is_fit(*c)).collect();
        assert_eq!(unfit, Vec::<char>::new(), "{path}");
        assert!(
            !body.lines().any(|line| line.starts_with("2026-01-01T00")),
            "{path}: {body}"
        );
    }
    let status = monitor.get("/status").json();
    let lists = status["queues"]["egress"].as_object().expect("lists");
    assert!(
        lists
            .keys()
            .any(|list| list.contains("\u{202e}\u{2028}\u{200b}<script>")),
        "{status}"
    );
    for format in [Format::Classic, Format::OpenMetrics] {
        let scrape = Scrape::of(&monitor, format);
        let held = [("kind", "storage"), ("name", SHOWN)];
        assert!(scrape.get("conserver_hold_seconds", &held).is_some());
    }
    for arguments in [&["status", "--queues"][..], &["check", "--offline"]] {
        is_harmless(daemon.conserver(), arguments, 0);
    }
    daemon.stop();

    let url = format!("redis://127.0.0.1:{}", refusing_redis());
    let monitor = Monitor::at_a_port();
    let conserver = Conserver::without_redis()
        .config(&chain(&[], &[blocked.storage()]))
        .env("REDIS_URL", url)
        .env("CONSERVER_HTTP", monitor.setting());
    let nobody = "05cec3d4-0561-4010-9fb8-23cc7edef146";
    for arguments in [
        &["check"][..],
        &["dlq", "ls"],
        &["dlq", "show", nobody],
        &["dlq", "retry"],
        &["audit"],
        &["get", nobody, "--from", "redis"],
        &["where", nobody],
        &["delete", nobody, "--yes"],
        &["submit", "config.yml"],
    ] {
        is_harmless(&conserver, arguments, 69);
    }
    let daemon = conserver.launch();
    let ready = monitor.wait_for("/readyz", 503);
    assert!(ready.body.chars().all(is_fit), "{ready:?}");
    wait_until("the status has its words", PATIENCE, || {
        let status = monitor.get("/status");
        assert!(status.body.chars().all(is_fit), "{status:?}");
        let error = &status.json()["queues"]["error"];
        error
            .as_str()
            .is_some_and(|error| error.contains("\u{202e}"))
    });
    is_whole(&daemon.log());
}

#[test]
fn the_host_that_has_the_name_says_nothing_but_itself() {
    let redis = Redis::plain();
    let mut holder = Holder::this_process(1);
    holder.host = HOSTILE.to_owned();
    let mut queue = queue_with(&redis, "here", 1, lease_of("here", &holder));
    queue.take_lease().expect("nobody has it");
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("x", storage_at(1))]));
    let text = run(&conserver, &["run"], 69);
    said(&text, &[&format!("the conserver on host {SHOWN} with PID")]);
    is_whole(&text.stderr);
    let json = conserver.env("CONSERVER_LOG_FORMAT", "json").run(&["run"]);
    assert!(json.stderr.chars().all(is_fit), "{:?}", json.stderr);
    let lines = json.stderr.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["message"].as_str().expect("a message").to_owned()
    });
    let told = lines.filter(|message| message.contains(HOSTILE)).count();
    assert_eq!(told, 1, "{}", json.stderr);
}
