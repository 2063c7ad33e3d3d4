//! What servers, documents and names may say: it stays on the line it stands in, and shows all of itself.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use conserver::queue::Holder;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, PATIENCE, Redis, Webhook, chain, fresh, is_fit, lease_of, queue_with, run, said,
    storage_at, submit, wait_until,
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
    daemon.stop();
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
