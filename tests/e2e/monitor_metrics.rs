//! What the monitor serves to Prometheus, read by Prometheus' own parsers.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Blocked, Conserver, Files, Format, Hook, Ledger, Monitor, PATIENCE, Prometheus, Redis, Scrape,
    chain, delay, fresh, submit, wait_until,
};

const RULES: &str = include_str!("../../packaging/prometheus/alerts.yml");
const MANUAL: &str = include_str!("../../packaging/manual/conserver-operations.7.md");

/// The names and types that the manual promises.
fn promised() -> BTreeSet<(String, String)> {
    let (_, rest) = MANUAL.split_once("<!-- metrics -->\n").expect("a table");
    let (table, _) = rest.split_once("<!-- /metrics -->").expect("a table");
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`'));
        Some((cells.nth(1)?.to_owned(), cells.next()?.to_owned()))
    };
    table.lines().skip(2).filter_map(row).collect()
}

/// The names and types that are served, as they stand in the manual.
fn served(scrape: &Scrape) -> BTreeSet<(String, String)> {
    let types = scrape.types.iter();
    types
        .map(|(name, kind)| match kind.as_str() {
            "counter" => (format!("{name}_total"), kind.clone()),
            "info" => (format!("{name}_info"), kind.clone()),
            _ => (name.clone(), kind.clone()),
        })
        .collect()
}

#[test]
fn both_formats_say_what_was_done() {
    let (redis, files) = (Redis::plain(), Files::new());
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.002)], &[("files", files.storage())]))
        .workers(2)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    redis.ask::<()>(&["RPUSH", "default", "no UUID"]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let main = [("chain", "main")];
    let mut open = Scrape::of(&monitor, Format::OpenMetrics);
    wait_until("the metrics have all of it", PATIENCE, || {
        open = Scrape::of(&monitor, Format::OpenMetrics);
        open.get("conserver_chain_done_total", &main) == Some(20.0)
            && open.get("conserver_chain_dead_lettered_total", &main) == Some(1.0)
            && open.get("conserver_workers_ready", &[]) == Some(2.0)
            && open.get(
                "conserver_queue_length",
                &[("list", "DLQ:default"), ("kind", "dead_letter")],
            ) == Some(1.0)
    });
    assert_eq!(served(&open), promised());
    for (name, labels, value) in [
        ("conserver_chain_received_total", &main[..], 21.0),
        ("conserver_chain_halted_total", &main, 0.0),
        ("conserver_link_received_total", &[("link", "tagger")], 20.0),
        ("conserver_link_done_total", &[("link", "slowly")], 20.0),
        (
            "conserver_link_duration_seconds_count",
            &[("link", "slowly")],
            20.0,
        ),
        (
            "conserver_storage_done_total",
            &[("storage", "files")],
            20.0,
        ),
        (
            "conserver_storage_failed_total",
            &[("storage", "files")],
            0.0,
        ),
        (
            "conserver_storage_duration_seconds_bucket",
            &[("storage", "files"), ("le", "+Inf")],
            20.0,
        ),
        (
            "conserver_queue_length",
            &[("list", "default"), ("kind", "ingress")],
            0.0,
        ),
        (
            "conserver_queue_length",
            &[("list", "done"), ("kind", "egress")],
            20.0,
        ),
        ("conserver_redis_up", &[], 1.0),
        ("conserver_workers_wanted", &[], 2.0),
        ("conserver_workers_backing_off", &[], 0.0),
        ("conserver_vcons_in_flight", &[], 0.0),
        ("conserver_worker_restarts_total", &[("cause", "died")], 0.0),
        (
            "conserver_build_info",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("start_method", "fork"),
            ],
            1.0,
        ),
    ] {
        assert_eq!(open.get(name, labels), Some(value), "{name} {labels:?}");
    }
    let slowly = [("link", "slowly")];
    let least = open.get("conserver_link_duration_seconds_sum", &slowly);
    assert!(least >= Some(20.0 * 0.002), "{least:?}");
    let none = [("link", "slowly"), ("le", "0.001953125")];
    assert_eq!(
        open.get("conserver_link_duration_seconds_bucket", &none),
        Some(0.0)
    );
    for worker in ["1", "2", "monitor", "supervisor"] {
        let memory = open.get("conserver_worker_memory_bytes", &[("worker", worker)]);
        assert!(memory > Some(10_000.0), "{worker}: {memory:?}");
    }
    let started = open
        .get("conserver_start_time_seconds", &[])
        .expect("a time");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .as_secs_f64();
    assert!((now - 600.0..=now).contains(&started), "{started} {now}");

    let classic = Scrape::of(&monitor, Format::Classic);
    for ((name, labels), value) in open
        .growing()
        .filter(|((name, _), _)| !name.contains("_worker_"))
    {
        // The bounds are written as each format wants them.
        if name.ends_with("_bucket") {
            continue;
        }
        let labels: Vec<(&str, &str)> = labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(classic.get(name, &labels), Some(value), "{name} {labels:?}");
    }
    assert_eq!(classic.types.len(), open.types.len());
    daemon.stop();
}

/// Where buckets are coarse, 0.300 s are shown as 375 ms.
#[test]
fn a_time_is_shown_as_what_it_is_by_status_and_by_a_prometheus() {
    let monitor = Monitor::at_a_port();
    // It waits for 5 s before its first scrape.
    let prometheus = Prometheus::of(&monitor);
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.3)], &[]))
        .lanes(4)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(8);
    let all = samples.len() as f64;
    submit(&redis, "default", &samples[..4]);
    let times = "conserver_link_duration_seconds{link=\"slowly\"}";
    let has = |prometheus: &Prometheus, least: f64| {
        prometheus.value(&format!("histogram_count({times})")) >= Some(least)
    };
    if let Some(prometheus) = &prometheus {
        // A rate is between two samples.
        wait_until("Prometheus has a sample", PATIENCE, || has(prometheus, 0.0));
    }
    submit(&redis, "default", &samples[4..]);
    Ledger::of(&redis, &samples).settles();

    let status = daemon.status().expect("a daemon");
    let links = status["links"].as_array().expect("figures");
    let slowly = links.iter().find(|it| it["name"] == "slowly");
    let seconds = &slowly.expect("its figures")["seconds"];
    // A busy machine adds to it.
    let exact = seconds["mean"].as_f64().expect("a number");
    assert!((0.3..0.4).contains(&exact), "{seconds}");
    let is_near = |time: Option<f64>| time.is_some_and(|time| (time / exact - 1.0).abs() < 0.05);
    assert!(is_near(seconds["p50"].as_f64()), "{seconds}");
    let table = daemon.conserver().run(&["status"]).stdout;
    let row = |name: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.contains(name));
        let cells = line.expect("a line").split(['│', '┆']);
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    assert_eq!(row("Dead letters")[7..10], ["Mean", "p50", "p99"]);
    let median = &row("slowly")[8];
    let median = median.strip_suffix(" ms").and_then(|ms| ms.parse().ok());
    assert!(is_near(median.map(|ms: f64| ms / 1e3)), "{table}");

    if let Some(prometheus) = prometheus {
        wait_until("Prometheus has all of it", PATIENCE, || {
            has(&prometheus, all)
        });
        for expression in [
            format!("histogram_quantile(0.5, {times})"),
            format!("histogram_sum({times}) / {all}"),
        ] {
            let value = prometheus.value(&expression);
            assert!(is_near(value), "{expression}: {value:?} is not {exact}");
        }
        let done = prometheus.value("conserver_chain_done_total{chain=\"main\"}");
        assert_eq!(done, Some(all));
        let (_, rule) = RULES.split_once("alert: ConserverSlow").expect("a rule");
        let (_, rule) = rule.split_once("expr: >").expect("an expression");
        let (rule, _) = rule.split_once("for:").expect("an expression");
        let value = prometheus.value(&rule.replace("> 4", ""));
        assert!(value >= Some(0.28), "{value:?}");
    }
    daemon.stop();
}

#[test]
fn names_of_any_kind_can_be_read() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let odd = "a \"b\" \\ c\nd {e=\"f\"} # ü";
    let mut config = chain(&[], &[]);
    let main = config["chains"]["main"].take();
    config["chains"] = json!({odd: main});
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    monitor.wait_for("/metrics", 200);
    // What steers a terminal is escaped in names.
    let shown = odd.replace('\n', "\\n");
    for format in [Format::Classic, Format::OpenMetrics] {
        let scrape = Scrape::of(&monitor, format);
        let done = scrape.get("conserver_chain_done_total", &[("chain", &shown)]);
        assert_eq!(done, Some(0.0), "{:?}", scrape.samples.keys());
    }
    daemon.stop();
}

#[test]
fn what_is_away_is_in_the_metrics() {
    let (redis, blocked) = (Redis::plain(), Blocked::new());
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[blocked.storage()]))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start();
    monitor.wait_for("/readyz", 200);
    submit(&redis, "default", &fresh(1));
    let files = [("storage", "files")];
    wait_until("the chain is on hold", PATIENCE, || {
        let scrape = Scrape::of(&monitor, Format::OpenMetrics);
        scrape
            .get(
                "conserver_hold_seconds",
                &[("kind", "storage"), ("name", "files")],
            )
            .is_some()
            && scrape.get("conserver_storage_failed_total", &files) >= Some(2.0)
            && scrape.get("conserver_storage_retried_total", &files) >= Some(1.0)
    });
    redis.kill9();
    let mut scrape = Scrape::of(&monitor, Format::OpenMetrics);
    wait_until("Redis is seen to be away", PATIENCE, || {
        scrape = Scrape::of(&monitor, Format::OpenMetrics);
        scrape.get("conserver_redis_up", &[]) == Some(0.0)
    });
    let lengths = scrape
        .samples
        .keys()
        .filter(|(name, _)| name == "conserver_queue_length");
    assert_eq!(lengths.count(), 0);
    assert_eq!(
        scrape.get("conserver_chain_received_total", &[("chain", "main")]),
        Some(1.0)
    );
    drop(daemon);
}

/// Of two storages, one refuses some vCons and both refuse one, while others go through.
#[test]
fn what_storages_refuse_for_good_is_in_the_metrics() {
    let (redis, first, second) = (Redis::plain(), Hook::new(), Hook::new());
    let monitor = Monitor::at_a_port();
    let storages = [("first", first.storage()), ("second", second.storage())];
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(6);
    let bad_for = |hook: &Hook, places: &[usize]| {
        let bad: Vec<String> = places
            .iter()
            .map(|place| samples[*place].id.clone())
            .collect();
        hook.decides(move |id| {
            if bad.iter().any(|it| it == id) {
                422
            } else {
                200
            }
        });
    };
    bad_for(&second, &[0, 2, 4]);
    bad_for(&first, &[4]);
    for (place, expected) in [
        (0, [0.0, 1.0]),
        (1, [0.0, 1.0]),
        (2, [0.0, 2.0]),
        (3, [0.0, 2.0]),
        (4, [1.0, 3.0]),
        (5, [1.0, 3.0]),
    ] {
        submit(&redis, "default", &samples[place..=place]);
        wait_until("the metrics have it", PATIENCE, || {
            let scrape = Scrape::of(&monitor, Format::Classic);
            let count = |storage| {
                let labels = [("storage", storage)];
                scrape.get("conserver_storage_dead_lettered_total", &labels)
            };
            let done = scrape.get("conserver_link_done_total", &[("link", "tagger")]);
            done == Some(place as f64 + 1.0) && ["first", "second"].map(count) == expected.map(Some)
        });
    }
    assert_eq!(redis.length("DLQ:storage:second"), 2);
    assert_eq!(redis.list("DLQ:default"), [samples[4].id.as_str()]);
    let scrape = Scrape::of(&monitor, Format::Classic);
    let main = scrape.get("conserver_chain_dead_lettered_total", &[("chain", "main")]);
    assert_eq!(main, Some(1.0));
    daemon.stop();
}

#[test]
fn no_counter_goes_back_while_workers_die() {
    const KILLS: usize = 12;
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.05)], &[]))
        .workers(3)
        .lanes(2)
        .env("CONSERVER_HTTP", monitor.setting())
        // Whom a kill meets is chance.
        .env("CONSERVER_MAX_DEATHS", "0")
        .start();
    monitor.wait_for("/readyz", 200);
    let samples = fresh(600);
    submit(&redis, "default", &samples);
    let ledger = Ledger::of(&redis, &samples);
    let (mut scrapes, mut killed) = (0, 0);
    let mut last = Scrape::of(&monitor, Format::OpenMetrics);
    let mut look = |last: &mut Scrape| {
        let next = Scrape::of(&monitor, Format::OpenMetrics);
        for (key, before) in last.growing() {
            let now = next.samples.get(key);
            assert!(
                now.is_some_and(|now| *now >= before),
                "{key:?}: {before} became {now:?}"
            );
        }
        *last = next;
        scrapes += 1;
    };
    let start = Instant::now();
    while killed < KILLS || ledger.done() < samples.len() {
        let workers = daemon.workers();
        if killed < KILLS {
            let pid = workers[&(killed % 3 + 1)];
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                killed += 1;
                wait_until("it is replaced", PATIENCE, || {
                    daemon.workers()[&((killed - 1) % 3 + 1)] != pid
                });
            }
        }
        look(&mut last);
        assert!(start.elapsed() < PATIENCE * 3);
    }
    ledger.settles();
    wait_until("all kills are counted", PATIENCE, || {
        look(&mut last);
        last.get("conserver_worker_restarts_total", &[("cause", "died")]) == Some(KILLS as f64)
    });
    // A worker may be killed between the last step of a vCon and its count.
    let uncounted = KILLS as f64 * 2.0;
    let all = samples.len() as f64;
    wait_until("all that is done is counted", PATIENCE, || {
        look(&mut last);
        let done = last.get("conserver_chain_done_total", &[("chain", "main")]);
        (all - uncounted..=all).contains(&done.expect("a count"))
    });
    assert!(scrapes > KILLS);
    daemon.stop();
}
