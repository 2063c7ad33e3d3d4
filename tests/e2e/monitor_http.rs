//! What the monitor answers by HTTP.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{
    Blocked, Conserver, Daemon, Files, Ledger, Monitor, PATIENCE, Redis, chain, fresh, preload,
    submit, wait_until,
};

/// A daemon of two workers with a monitor at a port.
fn with_monitor(redis: &Redis) -> (Daemon, Monitor) {
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("CONSERVER_HTTP", monitor.setting())
        .env("TICK_INTERVAL", "200")
        .start();
    monitor.wait_for("/readyz", 200);
    (daemon, monitor)
}

fn keys(value: &Value) -> BTreeSet<String> {
    let object = value.as_object().into_iter().flatten();
    object.map(|(key, _)| key.clone()).collect()
}

#[test]
fn health_and_status_are_what_the_daemon_is() {
    let redis = Redis::plain();
    let (daemon, monitor) = with_monitor(&redis);
    let health = monitor.get("/healthz");
    assert_eq!(
        (health.status, health.body.as_str()),
        (200, "healthy: running, 2 workers\n")
    );
    assert_eq!(monitor.get("/readyz").body, "ready\n");
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let mut status = Value::Null;
    wait_until("the status has the announced vCons", PATIENCE, || {
        status = monitor.get("/status").json();
        status["queues"]["egress"]["done"] == 3
    });
    let printed = daemon.conserver().run(&["status", "--json", "--queues"]);
    let printed: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    assert_eq!(keys(&status), keys(&printed));
    for key in [
        "instance",
        "pid",
        "state",
        "workers_wanted",
        "holds",
        "queues",
    ] {
        assert_eq!(status[key], printed[key], "{key}");
    }
    let done: u64 = status["workers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|worker| worker["done"].as_u64())
        .sum();
    assert_eq!(done, 3);
    daemon.stop();
    assert!(monitor.try_get("/healthz").is_none());
}

#[test]
fn answers_may_not_be_kept_or_used_by_other_pages() {
    let redis = Redis::plain();
    let (_daemon, monitor) = with_monitor(&redis);
    for (path, status) in [
        ("/", 200),
        ("/healthz?verbose=1", 200),
        ("/status", 200),
        ("/no", 404),
    ] {
        let answer = monitor.get(path);
        assert_eq!(answer.status, status, "{path}");
        for (name, value) in [
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let policy = answer.header("Content-Security-Policy");
        assert!(policy.is_some_and(|policy| policy.starts_with("default-src 'none'")));
        assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
        let length = answer
            .header("Content-Length")
            .and_then(|text| text.parse().ok());
        assert_eq!(length, Some(answer.body.len()));
    }
    let head = monitor.send(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let head = head.expect("an answer");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_ne!(head.header("Content-Length"), Some("0"));
}

#[test]
fn only_questions_to_this_host_are_answered() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let _daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_HTTP_HOSTS", "conserver.example")
        .start();
    monitor.wait_for("/healthz", 200);
    let ask = |request: &str| monitor.send(request.as_bytes()).map(|answer| answer.status);
    for (host, status) in [
        ("localhost:9180", 200),
        ("10.0.0.7:9180", 200),
        ("conserver.example", 200),
        ("evil.example", 421),
        ("", 421),
    ] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask(&request), Some(status), "{host:?}");
    }
    assert_eq!(
        ask("GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        Some(421)
    );
    assert_eq!(ask("GET /healthz HTTP/1.0\r\n\r\n"), Some(200));
}

#[test]
fn a_redis_that_is_away_makes_it_unready_and_not_unhealthy() {
    let redis = Redis::plain();
    let (daemon, monitor) = with_monitor(&redis);
    let quickly = |path: &str| {
        let start = Instant::now();
        let answer = monitor.get(path);
        // A probe has a second, and this machine other things to do.
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        answer.status
    };
    redis.signal(Signal::SIGSTOP);
    wait_until("it is not ready", PATIENCE, || quickly("/readyz") == 503);
    assert_eq!(quickly("/healthz"), 200);
    redis.signal(Signal::SIGCONT);
    monitor.wait_for("/readyz", 200);
    redis.kill9();
    let unready = monitor.wait_for("/readyz", 503);
    assert!(unready.body.starts_with("Redis"), "{unready:?}");
    assert_eq!(quickly("/healthz"), 200);
    let status = monitor.get("/status").json();
    assert!(status["queues"]["error"].is_string(), "{status}");
    assert_eq!(status["workers_ready"], 2);
    wait_until("the scoreboard has it", PATIENCE, || {
        daemon.status().unwrap_or_default()["redis_away_seconds"].is_f64()
    });
    let printed = daemon.conserver().run(&["status"]);
    assert!(
        printed.stdout.contains("Redis is unavailable (since "),
        "{}",
        printed.output()
    );
    let error = daemon.status().unwrap_or_default()["redis_error"].clone();
    let error = error.as_str().unwrap_or_default();
    assert!(error.contains("refused"), "{error}");
    assert!(printed.stdout.contains(error), "{}", printed.output());
    redis.start();
    monitor.wait_for("/readyz", 200);
    let status = daemon.status().unwrap_or_default();
    assert!(status["redis_away_seconds"].is_null() && status["redis_error"].is_null());
    daemon.stop();
}

#[test]
fn chains_on_hold_make_it_unready() {
    let (redis, blocked) = (Redis::plain(), Blocked::new());
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[blocked.storage()]))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    monitor.wait_for("/readyz", 200);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    let unready = monitor.wait_for("/readyz", 503);
    let body = &unready.body;
    assert!(
        body.starts_with("storage files is unavailable (since "),
        "{body}"
    );
    assert!(body.ends_with("; chains on hold: main\n"), "{body}");
    assert_eq!(monitor.get("/healthz").status, 200);
    blocked.free();
    monitor.wait_for("/readyz", 200);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// The program as spawned workers see it, and only they: it aborts before its first line.
const CRASH: &str = r#"
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    __attribute__((constructor)) static void crash(void) {
        static char line[8192];
        int file = open("/proc/self/cmdline", O_RDONLY);
        long count = read(file, line, sizeof line - 1);
        close(file);
        for (long i = 0; i < count; i++)
            if (strncmp(line + i, "Worker-", 7) == 0) abort();
    }"#;

#[test]
fn workers_that_keep_dying_make_it_unhealthy() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn")
        .workers(2)
        .env("CONSERVER_HTTP", monitor.setting());
    let library = preload(conserver.folder(), CRASH);
    let mut daemon = conserver.env("LD_PRELOAD", library).launch();
    let named = ["Worker-1 ", "Worker-2 "];
    wait_until("both are told", PATIENCE, || {
        let health = monitor.try_get("/healthz");
        health.is_some_and(|health| named.iter().all(|name| health.body.contains(name)))
    });
    // Also while the next ones are being started.
    for _ in 0..20 {
        let unhealthy = monitor.get("/healthz");
        assert_eq!(unhealthy.status, 503, "{unhealthy:?}");
        for worker in named {
            assert!(unhealthy.body.contains(worker), "{unhealthy:?}");
        }
    }
    let backing_off = || monitor.get("/metrics").body;
    wait_until("both wait for their next start", PATIENCE, || {
        backing_off().contains("\nconserver_workers_backing_off 2\n")
    });
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
}

#[test]
fn one_worker_that_is_killed_is_no_reason_to_restart_all() {
    let redis = Redis::plain();
    let (daemon, monitor) = with_monitor(&redis);
    for _ in 0..3 {
        let workers = daemon.wait_for_workers(2);
        kill(Pid::from_raw(workers[&1]), Signal::SIGKILL).expect("it runs");
        wait_until("it is replaced", PATIENCE, || {
            let health = monitor.get("/healthz");
            assert_eq!(health.status, 200, "{health:?}");
            daemon.workers()[&1] != workers[&1]
        });
    }
    daemon.stop();
}

#[test]
fn an_address_in_use_is_told_once_and_waited_for() {
    let redis = Redis::plain();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let monitor = Monitor::Port(port.local_addr().expect("an address").port());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let told = format!(
        "the monitor does not answer by HTTP: could not listen at {} (CONSERVER_HTTP)",
        monitor.setting()
    );
    daemon.wait_for_log(&told, PATIENCE);
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let check = daemon.conserver().run(&["check"]);
    assert_eq!(check.code, 0, "{}", check.output());
    assert!(
        check.stdout.contains("in use at present"),
        "{}",
        check.output()
    );
    drop(port);
    monitor.wait_for("/healthz", 200);
    assert_eq!(daemon.count_in_log("does not answer by HTTP"), 1);
    daemon.stop();
}

#[test]
fn an_address_that_is_not_of_this_machine_fails_the_check() {
    let redis = Redis::plain();
    let check = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", "192.0.2.1:9180")
        .run(&["check"]);
    assert_eq!(check.code, 69, "{}", check.output());
    assert!(
        check.stdout.contains("192.0.2.1:9180"),
        "{}",
        check.output()
    );
}

#[test]
fn a_monitor_that_is_killed_answers_again_at_the_same_address() {
    let redis = Redis::plain();
    let (daemon, monitor) = with_monitor(&redis);
    let before = daemon.process("conserver-mon");
    kill(Pid::from_raw(before), Signal::SIGKILL).expect("it runs");
    wait_until("another answers", PATIENCE, || {
        let answer = monitor.try_get("/status");
        answer.is_some_and(|answer| {
            let pid = answer.json()["monitor"]["pid"].as_i64();
            pid.is_some_and(|pid| pid != i64::from(before))
        })
    });
    assert_eq!(daemon.count_in_log("does not answer by HTTP"), 0);
    daemon.stop();
}

#[test]
fn a_unix_socket_does_as_well_as_a_port() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let path = folder.folder().join("http.sock");
    let monitor = Monitor::Socket(path.clone());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/readyz", 200);
    let mode = fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let any_name = monitor.send(b"GET /healthz HTTP/1.1\r\nHost: any.example\r\n\r\n");
    assert_eq!(any_name.map(|answer| answer.status), Some(200));

    daemon.kill_family();
    assert!(path.exists());
    wait_until("nobody listens there", PATIENCE, || {
        UnixStream::connect(&path).is_err()
    });
    let again = daemon.conserver().launch_again();
    monitor.wait_for("/readyz", 200);
    again.stop();
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_place_of_the_socket_stays() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let path = folder.folder().join("http.sock");
    fs::write(&path, "precious").expect("a file");
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", format!("unix:{}", path.display()))
        .start();
    daemon.wait_for_log("there is something that is no socket", PATIENCE);
    daemon.stop();
    assert_eq!(fs::read_to_string(&path).expect("a file"), "precious");
}
