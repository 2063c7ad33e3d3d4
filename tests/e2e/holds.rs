//! Backends that stay away: their chains are on hold, others go on, and nothing is lost or runs out.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Ledger, Monitor, PATIENCE, Postgres, Redis, Terminal, Webhook, chain, fresh,
    submit, wait_until,
};

/// Quick to give up, so that holds come soon.
fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "200")
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
}

fn hold(daemon: &Daemon) -> Value {
    daemon.status().unwrap_or_default()["holds"].clone()
}

#[test]
fn a_storage_that_is_away_holds_its_own_chain_only() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let database = server.new_database();
    let mut config = chain(&[], &[("pg", database.storage())]);
    config["chains"]["other"] = json!({
        "links": ["tagger"], "storages": [], "ingress_lists": ["light"], "egress_lists": ["lit"],
    });
    server.stop();
    let daemon = conserver(&redis, &config).workers(2).lanes(2).start();
    let samples = fresh(30);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(
        "storage pg is away, on hold until it is back: chain main",
        PATIENCE,
    );
    let others = fresh(50);
    submit(&redis, "light", &others);
    wait_until("the other chain goes on", PATIENCE, || {
        redis.length("lit") == others.len()
    });
    // Those that wait stand in their list, in their order, and none is claimed.
    wait_until("all wait in their list", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
    assert_eq!(
        redis.list("default").last().map(String::as_str),
        ids.last().copied()
    );
    Ledger::of(&redis, &samples).nothing_is_claimed();

    wait_until("both workers are seen to hold", PATIENCE, || {
        hold(&daemon)[0]["workers"] == json!([1, 2])
    });
    let hold = hold(&daemon);
    assert_eq!(hold[0]["stage"], "storage pg");
    assert_eq!(hold[0]["chains"], json!(["main"]));
    let shown = daemon.conserver().run(&["status"]).stdout;
    assert!(
        shown.contains("; workers 1, 2), chain main waits: PostgreSQL "),
        "{shown}"
    );
    assert!(shown.contains("holding"), "{shown}");

    server.start();
    Ledger::of(&redis, &samples).settles();
    assert_eq!(database.rows().len(), samples.len());
    wait_until("no hold is shown", PATIENCE, || {
        daemon.status().unwrap_or_default()["holds"] == json!([])
    });
    // Once for all workers, not once a worker or try.
    for line in ["storage pg is away", "storage pg is back after"] {
        assert_eq!(daemon.count_in_log(line), 1, "{}", daemon.log());
    }
    daemon.stop();
}

/// A port at which nobody listens.
fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn webhook_at(address: SocketAddr) -> Value {
    let options = json!({"webhook-urls": [format!("http://{address}/")]});
    json!({"module": "storage.webhook", "options": options})
}

/// Fails unless the entry of `holds` or `outages` says why, since when, and when it is tried next.
fn says_why(entry: &Value) {
    let error = entry["error"].as_str().unwrap_or_default();
    assert_eq!(error.matches("refused").count(), 1, "{entry}");
    let seconds = |name: &str| entry[name].as_u64().unwrap_or(u64::MAX);
    assert!(seconds("error_seconds") <= seconds("seconds"), "{entry}");
    assert!(seconds("next_try_seconds") <= 1, "{entry}");
}

#[test]
fn four_workers_say_everywhere_why_something_is_away_and_once_in_the_log() {
    let (redis, monitor) = (Redis::plain(), Monitor::at_a_port());
    let [held, later] = [closed_port(), closed_port()];
    let mut deferring = webhook_at(later);
    deferring["on_outage"] = json!("defer");
    let config = chain(&[], &[("held", webhook_at(held)), ("later", deferring)]);
    let daemon = conserver(&redis, &config)
        .workers(4)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(12);
    submit(&redis, "default", &samples);
    let mut status = Value::Null;
    wait_until("all workers have found both", PATIENCE, || {
        status = daemon.status().unwrap_or_default();
        let kinds = ["holds", "outages"];
        kinds
            .iter()
            .all(|kind| status[kind][0]["workers"] == json!([1, 2, 3, 4]))
    });
    says_why(&status["holds"][0]);
    says_why(&status["outages"][0]);
    let error = status["holds"][0]["error"].as_str().expect("an error");
    let shown = daemon.conserver().run(&["status"]).stdout;
    for part in [
        "On hold: storage held is unavailable (since ",
        "; workers 1, 2, 3, 4), chain main waits: ",
        "Storage later is unavailable (since ",
        "its vCons wait in its backlog, chains go on: ",
        &format!(": {error}; next try "),
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let ready = monitor.wait_for("/readyz", 503).body;
    let why = format!("): {error}; next try ");
    assert!(ready.starts_with("storage held is unavailable (since ") && ready.contains(&why));
    assert!(
        ready.ends_with("; chains on hold: main\n") && !ready.contains("later"),
        "{ready}"
    );
    let mut terminal = Terminal::run(daemon.conserver(), &["top", "--every=1"], (160, 40));
    terminal.wait_for(&["On hold: storage held is unavailable (since "]);
    terminal.wait_for(&[&format!("  {error}; next try ")]);
    terminal.type_keys(b"q");
    assert_eq!(terminal.wait_exit(), 0);

    let servers = [held, later].map(|address| Webhook::at(address, |_| 200));
    wait_until("all are through, and nothing is away", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        redis.length("done") == samples.len()
            && status["holds"] == json!([])
            && status["outages"] == json!([])
    });
    assert!(servers[0].requests().len() >= samples.len());
    let log = daemon.log();
    for stage in ["storage held", "storage later"] {
        let lines: Vec<&str> = (log.lines())
            .filter(|line| line.contains(&format!("{stage} is away")))
            .collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert_eq!(lines[0].matches("refused").count(), 1, "{lines:?}");
        assert_eq!(
            daemon.count_in_log(&format!("{stage} is back after")),
            1,
            "{log}"
        );
    }
    daemon.stop();
}

#[test]
fn new_work_wakes_idle_lanes_at_once_after_a_hold() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let config = chain(&[], &[("pg", server.new_database().storage())]);
    server.stop();
    // A tick that would be noticed.
    let daemon = conserver(&redis, &config)
        .env("TICK_INTERVAL", "3600000")
        .start();
    let first = fresh(1);
    submit(&redis, "default", &first);
    daemon.wait_for_log("storage pg is away", PATIENCE);
    server.start();
    Ledger::of(&redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    let second = fresh(3);
    submit(&redis, "default", &second);
    Ledger::of(&redis, &second).settles();
    daemon.stop();
}

#[test]
fn vcons_that_wait_do_not_run_out() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let database = server.new_database();
    server.stop();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    for sample in &samples {
        redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), "4"]);
    }
    let daemon = conserver(&redis, &chain(&[], &[("pg", database.storage())]))
        .env("VCON_REDIS_EXPIRY", "4")
        .start();
    daemon.wait_for_log("storage pg is away", PATIENCE);
    // Longer than they would live: that they do not run out is what is tested.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(redis.keys("vcon:*").len(), samples.len());
    server.start();
    Ledger::of(&redis, &samples).settles();
    assert_eq!(database.rows().len(), samples.len());
    daemon.stop();
}

#[test]
fn a_link_whose_server_is_away_holds_its_chain() {
    let redis = Redis::plain();
    let address = closed_port();
    let url = format!("http://{address}/");
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [url]}});
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[])).start();
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(
        "link hook is away, on hold until it is back: chain main",
        PATIENCE,
    );
    wait_until("all wait in their list", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    assert_eq!(redis.length("DLQ:default"), 0);
    let server = Webhook::at(address, |_| 200);
    Ledger::of(&redis, &samples).settles();
    assert!(server.requests().len() >= samples.len());
    daemon.stop();
}

#[test]
fn a_vcon_that_a_working_server_never_takes_becomes_a_dead_letter_and_holds_nobody_up() {
    let redis = Redis::plain();
    let samples = fresh(40);
    let bad = samples[0].id.clone();
    let server = Webhook::deciding({
        let bad = bad.clone();
        move |body| if body.contains(&bad) { 500 } else { 200 }
    });
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [server.url()]}});
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[]))
        .env("CONSERVER_MAX_ROUNDS", "3")
        .start();
    // Others must be served between its rounds, for it to be known that it is the vCon.
    let mut done = 0;
    wait_until("it is a dead letter", PATIENCE, || {
        let now = redis.length("done");
        if now > done && redis.length("default") < 5 {
            done = now;
            submit(&redis, "default", &fresh(5));
        }
        redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), std::slice::from_ref(&bad));
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &bad]);
    assert!(reason.contains("\"stage\":\"link hook\""), "{reason}");
    assert!(reason.contains("500"), "{reason}");
    assert!(reason.contains("\"attempts\":9"), "{reason}");
    daemon.stop();
}

/// A server that has no time for anyone until it is told otherwise.
fn busy() -> (Webhook, Arc<AtomicBool>) {
    let failing = Arc::new(AtomicBool::new(true));
    let server = Webhook::deciding({
        let failing = Arc::clone(&failing);
        move |_| {
            if failing.load(Ordering::Relaxed) {
                503
            } else {
                200
            }
        }
    });
    (server, failing)
}

#[test]
fn a_server_that_answers_and_takes_nothing_costs_time_only() {
    let redis = Redis::plain();
    let (server, failing) = busy();
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [server.url()]}});
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[]))
        .env("CONSERVER_MAX_ROUNDS", "2")
        .start();
    // Each of them through more rounds than would make a dead letter of it.
    wait_until("many rounds have failed", PATIENCE, || {
        server.requests().len() >= 4 * 3 * 5
    });
    assert_eq!(redis.length("DLQ:default"), 0);
    assert_eq!(daemon.count_in_log("is reachable but fails"), 1);
    failing.store(false, Ordering::Relaxed);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("link hook works again"), 1);
    assert_eq!(redis.keys("conserver:tries"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_server_that_takes_only_some_makes_no_dead_letters() {
    let redis = Redis::plain();
    // Most are told to come again, whoever they are.
    let server = Webhook::deciding({
        let mut count = 0;
        move |_| {
            count += 1;
            if count % 12 == 0 { 200 } else { 429 }
        }
    });
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [server.url()]}});
    let samples = fresh(40);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[]))
        .lanes(8)
        .env("CONSERVER_MAX_ROUNDS", "2")
        .start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn rounds_of_an_outage_do_not_count_after_it() {
    let redis = Redis::plain();
    let state = Arc::new(AtomicU16::new(500));
    let server = Webhook::deciding({
        let (state, mut count) = (Arc::clone(&state), 0);
        move |_| match state.load(Ordering::Relaxed) {
            200 => {
                count += 1;
                // Its first days are bumpy.
                if count % 4 == 0 { 500 } else { 200 }
            }
            status => status,
        }
    });
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [server.url()]}});
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .env("CONSERVER_MAX_ROUNDS", "3")
        .start();
    wait_until("each has failed in many rounds", PATIENCE, || {
        server.requests().len() >= 4 * 6
    });
    state.store(200, Ordering::Relaxed);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn vcons_that_go_round_do_not_run_out() {
    let redis = Redis::plain();
    let (server, failing) = busy();
    let hook = json!({"module": "links.webhook", "options": {"webhook-urls": [server.url()]}});
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    for sample in &samples {
        redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), "4"]);
    }
    // More lanes than vCons: each is in some lane's hands nearly always.
    let daemon = conserver(&redis, &chain(&[("hook", hook)], &[]))
        .lanes(4)
        .env("VCON_REDIS_EXPIRY", "4")
        .start();
    // Longer than they would live: that they do not run out is what is tested.
    thread::sleep(Duration::from_secs(7));
    assert_eq!(redis.length("DLQ:default"), 0);
    failing.store(false, Ordering::Relaxed);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}
