//! Requests that are none, come slowly or never end: they cost the monitor nothing that lasts, and
//! the workers nothing at all.

use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    Answer, Conserver, Ledger, Monitor, PATIENCE, Redis, chain, descriptors_of, fresh,
    resident_set_of, submit, wait_until,
};

/// Far below what one of the attacks sends in all, far above what connections at work take.
const MOST_MEMORY: u64 = 8 << 20;

/// Requests of each kind.
const OF_EACH: usize = 100;

/// Sends it, and answers the status, 0 where there is none.
fn status(monitor: &Monitor, bytes: &[u8]) -> u16 {
    monitor.send(bytes).map_or(0, |answer| answer.status)
}

/// Sends without end, until nobody takes it any more or a megabyte has gone.
fn send_without_end(monitor: &Monitor, head: &[u8], part: &[u8]) -> u16 {
    let Ok(mut stream) = monitor.connect() else {
        return 0;
    };
    let mut sent = stream.write_all(head).map_or(usize::MAX, |()| 0);
    while sent < 1 << 20 {
        sent = stream
            .write_all(part)
            .map_or(usize::MAX, |()| sent + part.len());
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Answer::parse(&answer).map_or(0, |answer| answer.status)
}

/// Sends a part of a request and says that there is no more.
fn break_off(monitor: &Monitor, bytes: &[u8]) -> u16 {
    let Ok(mut stream) = monitor.connect() else {
        return 0;
    };
    let _ = stream.write_all(bytes);
    let _ = stream.half_close();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Answer::parse(&answer).map_or(0, |answer| answer.status)
}

type Attack = Box<dyn Fn(&Monitor) -> u16 + Send + Sync>;

/// Each kind of attack, with the statuses that are right for it. A connection may also be cut: one
/// that is given up for another, or that sends more than anybody reads.
fn attacks() -> Vec<(&'static str, Attack, &'static [u16])> {
    let fixed = |bytes: Vec<u8>| -> Attack { Box::new(move |monitor| status(monitor, &bytes)) };
    let text = |text: &str| fixed(text.as_bytes().to_vec());
    let garbage: Vec<u8> = (0..4096_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let host = "Host: localhost\r\n";
    let lines = "X-Filler: y\r\n".repeat(10_000);
    vec![
        ("garbage", fixed(garbage), &[400, 431, 505]),
        ("nothing but NUL", fixed(vec![0; 512]), &[400]),
        (
            "a TLS hello",
            fixed(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
            &[400],
        ),
        (
            "a head without end",
            Box::new(move |monitor| {
                let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
                send_without_end(monitor, head, &[b'x'; 16384])
            }),
            &[431],
        ),
        (
            "ten thousand headers",
            text(&format!("GET / HTTP/1.1\r\n{host}{lines}\r\n")),
            &[431],
        ),
        (
            "a body without end",
            Box::new(move |monitor| {
                let head = b"POST /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
                send_without_end(monitor, head, b"400\r\n")
            }),
            &[405],
        ),
        (
            "half a request",
            Box::new(|monitor| break_off(monitor, b"GET /status HTTP/1.1\r\nHost:")),
            &[],
        ),
        (
            "a whole request and no more",
            Box::new(|monitor| {
                break_off(monitor, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            }),
            &[200],
        ),
        (
            "one after the other",
            text(&format!("GET /healthz HTTP/1.1\r\n{host}\r\n").repeat(100)),
            &[200],
        ),
        (
            "another's name",
            text("GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
            &[421],
        ),
        ("HTTP/0.9", text("GET /status\r\n\r\n"), &[400]),
    ]
}

/// Opens connections that say nothing, or a byte now and then, until the end.
fn crawl(monitor: &Monitor, over: &AtomicBool) {
    let mut open = Vec::new();
    while !over.load(Ordering::Relaxed) {
        if open.len() < 150
            && let Ok(stream) = monitor.connect()
        {
            open.push(stream);
        }
        // Those that were dropped make room for others.
        let mut number = 0;
        open.retain_mut(|stream| {
            number += 1;
            number % 2 == 0 || stream.write_all(b"G").is_ok()
        });
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks for everything again and again; the most memory that the monitor had meanwhile.
fn watch(monitor: &Monitor, pid: i32, over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        for path in ["/healthz", "/readyz", "/status"] {
            // A connection may be given up for one that came later.
            let answer = (0..3).find_map(|_| monitor.try_get(path));
            assert_eq!(answer.map(|answer| answer.status), Some(200), "{path}");
        }
        most = most.max(resident_set_of(pid));
    }
    most
}

#[test]
fn a_thousand_bad_requests_cost_nothing() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/readyz", 200);
    monitor.wait_for("/status", 200);
    let pid = daemon.process("conserver-mon");
    let (memory, descriptors) = (resident_set_of(pid), descriptors_of(pid).len());
    let samples = fresh(500);
    submit(&redis, "default", &samples);
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let attacks = attacks();
    let most = thread::scope(|scope| {
        scope.spawn(|| crawl(&monitor, &over));
        let watch = scope.spawn(|| watch(&monitor, pid, &over));
        let attackers: Vec<_> = attacks
            .iter()
            .map(|(name, attack, right)| {
                let (monitor, sent) = (&monitor, &sent);
                scope.spawn(move || {
                    for _ in 0..OF_EACH {
                        let status = attack(monitor);
                        sent.fetch_add(1, Ordering::Relaxed);
                        assert!(status == 0 || right.contains(&status), "{name}: {status}");
                    }
                })
            })
            .collect();
        let finished: Vec<bool> = attackers.into_iter().map(|it| it.join().is_ok()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(!finished.contains(&false));
        watch.join().expect("every question is answered")
    });
    assert!(sent.into_inner() >= 1000);
    assert!(most < memory + MOST_MEMORY, "{memory} bytes grew to {most}");
    Ledger::of(&redis, &samples).settles();
    wait_until("all connections are gone", PATIENCE, || {
        descriptors_of(pid).len() <= descriptors
    });
    assert_eq!(daemon.process("conserver-mon"), pid);
    assert_eq!(monitor.get("/healthz").status, 200);
    daemon.stop();
}

#[test]
fn slow_connections_have_an_end() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/healthz", 200);
    let start = Instant::now();
    let mut silent = monitor.connect().expect("a connection");
    let mut slow = monitor.connect().expect("a connection");
    slow.write_all(b"GET / HT").expect("a connection");
    let mut answer = Vec::new();
    assert_eq!(silent.read_to_end(&mut answer).expect("an end"), 0);
    slow.read_to_end(&mut answer).expect("an end");
    assert_eq!(Answer::parse(&answer).expect("an answer").status, 408);
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    daemon.stop();
}

#[test]
fn probes_are_answered_while_others_hang() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/readyz", 200);
    redis.signal(Signal::SIGSTOP);
    // More than there may be at a time, silent ones and ones that wait for Redis.
    let hanging: Vec<_> = (0..200)
        .filter_map(|number| {
            let mut stream = monitor.connect().ok()?;
            if number % 2 == 0 {
                let request = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";
                stream.write_all(request).ok()?;
            }
            Some(stream)
        })
        .collect();
    assert!(hanging.len() > 150, "{}", hanging.len());
    for (path, status) in [("/healthz", 200), ("/readyz", 503), ("/healthz", 200)] {
        let start = Instant::now();
        assert_eq!(monitor.get(path).status, status, "{path}");
        // A probe has a second, and this machine other things to do.
        let took = start.elapsed();
        assert!(took < Duration::from_millis(4500), "{path}: {took:?}");
    }
    redis.signal(Signal::SIGCONT);
    drop(hanging);
    monitor.wait_for("/readyz", 200);
    daemon.stop();
}

const TOKEN: &str = "0f9a-correct-horse-battery";

/// A request to drop dead letters with these headers besides those that are right: one that is named replaces such a
/// one, and one without a value leaves it out.
fn action(changes: &[(&str, &str)], body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let authorization = format!("Bearer {TOKEN}");
    let right = [
        ("Host", "localhost:9180"),
        ("Origin", "http://localhost:9180"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Content-Type", "application/json"),
        ("Content-Length", &*length),
        ("Authorization", &*authorization),
        ("Idempotency-Key", "a-key-of-its-own"),
    ];
    let kept = right
        .iter()
        .filter(|(name, _)| !changes.iter().any(|(other, _)| name == other));
    let lines: String = kept
        .chain(changes)
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("POST /actions/dlq/drop HTTP/1.1\r\n{lines}\r\n{body}").into_bytes()
}

#[test]
fn only_who_has_the_token_acts_and_once_with_each_request() {
    let (redis, monitor) = (Redis::plain(), Monitor::at_a_port());
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting());
    let token = conserver.folder().join("token");
    fs::write(&token, format!("{TOKEN}\n")).expect("a file");
    let daemon = conserver.env("CONSERVER_HTTP_TOKEN_FILE", &token).start();
    monitor.wait_for("/readyz", 200);
    // The umask lets everybody read it.
    daemon.wait_for_log("every user of this machine may read the token", PATIENCE);
    redis.ask::<i64>(&["RPUSH", "DLQ:default", "a", "b", "c"]);
    let body = r#"{"queue":"default"}"#;
    let long = format!("{body}{}", " ".repeat(4096));
    let ask = |changes: &[(&str, &str)], body: &str| status(&monitor, &action(changes, body));
    for (changes, body, expected) in [
        (&[("Authorization", "")][..], body, 401),
        (
            &[("Authorization", "Bearer 0f9a-correct-horse-batterx")],
            body,
            401,
        ),
        (&[("Authorization", TOKEN)], body, 401),
        (&[("Origin", "http://evil.example")], body, 403),
        (&[("Origin", "null")], body, 403),
        (&[("Sec-Fetch-Site", "cross-site")], body, 403),
        (&[("Host", "evil.example")], body, 421),
        (&[("Content-Type", "text/plain")], body, 415),
        (&[("Content-Type", "")], body, 415),
        (&[("Idempotency-Key", "")], body, 400),
        (&[("Content-Length", "")], body, 411),
        (&[("Idempotency-Key", "another-key-1")], "{}", 400),
        (
            &[("Idempotency-Key", "another-key-2")],
            r#"{"queue":"none"}"#,
            404,
        ),
        (&[], &long, 413),
    ] {
        assert_eq!(ask(changes, body), expected, "{changes:?}");
    }
    let get = monitor.get("/actions/dlq/drop");
    assert_eq!((get.status, get.header("Allow")), (405, Some("POST")));
    assert_eq!(
        status(&monitor, b"POST /status HTTP/1.1\r\nHost: a\r\n\r\n"),
        405
    );
    let other = String::from_utf8_lossy(&action(&[], body)).replace("dlq/drop", "dlq/other");
    assert_eq!(status(&monitor, other.as_bytes()), 404);

    // Many wrong tokens cost nothing, and the right one is accepted meanwhile.
    let pid = daemon.process("conserver-mon");
    let memory = resident_set_of(pid);
    let wrong = action(&[("Authorization", "Bearer 0123456789abcdef")], body);
    let mut answers = [0; 2];
    for _ in 0..300 {
        match status(&monitor, &wrong) {
            401 => answers[0] += 1,
            429 => answers[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!(answers[0] < 20 && answers[1] > 280, "{answers:?}");
    assert!(resident_set_of(pid) < memory + MOST_MEMORY);
    assert_eq!(redis.length("DLQ:default"), 3);
    let right = action(&[], body);
    let done = monitor.send(&right).expect("an answer");
    assert_eq!(
        done.json()["message"],
        "3 dropped from DLQ:default",
        "{done:?}"
    );
    redis.ask::<i64>(&["RPUSH", "DLQ:default", "d"]);
    assert_eq!(status(&monitor, &right), 409);
    assert_eq!(redis.length("DLQ:default"), 1);
    // No browser, and another key; then another token, which counts at once.
    let by_hand = [
        ("Origin", ""),
        ("Sec-Fetch-Site", ""),
        ("Idempotency-Key", "another-key-3"),
    ];
    assert_eq!(ask(&by_hand, body), 200);
    fs::write(&token, "the-next-token-of-this-file").expect("a file");
    let renewed = [("Idempotency-Key", "another-key-4")];
    assert_eq!(ask(&renewed, body), 429);
    fs::remove_file(&token).expect("a file");
    assert_eq!(ask(&renewed, body), 503);
    let check = daemon.conserver().run(&["check", "--offline"]);
    assert_eq!(check.code, 78, "{}", check.output());
    assert!(
        check.output().contains("could not be read"),
        "{}",
        check.output()
    );

    assert_eq!(
        daemon.count_in_log("127.0.0.1 asked for /actions/dlq/drop: 3 dropped"),
        1
    );
    daemon.terminate();
    daemon.wait_for_log("refused 3", PATIENCE);
    let line = daemon.log();
    let line = line
        .lines()
        .find(|line| line.contains("to act from 127.0.0.1"));
    let line = line.expect("a line").to_owned();
    for words in [
        "with a wrong token after many others",
        "3 from another page",
        "1 that had come before",
    ] {
        assert!(line.contains(words), "{line}");
    }
    assert_eq!(daemon.count_in_log("to act from 127.0.0.1"), 1);
    assert!(!daemon.log().contains(TOKEN));
    daemon.stop();
}
