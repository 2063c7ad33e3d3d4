//! How fast processes come and go, how much memory they take, and how fast they work, for each start method.
//!
//! 16 workers are idle. Times are read from the daemon's log, so that looking at it does not count.

use std::time::{Duration, Instant, SystemTime};

use conserver::procfs::proportional_set_size;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::harness::{Conserver, Daemon, PATIENCE, Redis, chain, wait_until};
use super::ours::{self, Done, Way};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;

const WORKERS: usize = 16;

/// Start methods; the others are held against the first.
const METHODS: [&str; 3] = ["fork", "spawn", "forkserver"];

/// What was measured of one start method; times in milliseconds, memory in megabytes.
#[derive(Default)]
struct Measured {
    ready: Vec<f64>,
    replaced: Vec<f64>,
    drained: Vec<f64>,
    worker: Vec<f64>,
    tree: Vec<f64>,
}

/// The table of start methods.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let methods = METHODS;
    let mut measured: Vec<Measured> = methods.iter().map(|_| Measured::default()).collect();
    servers.empty();
    // Interleaved, so that a busy moment of the machine does not fall on one method alone.
    for number in 1..=effort.rounds {
        for (method, measured) in methods.iter().zip(&mut measured) {
            progress(&format!(
                "processes, round {number} of {}: {method}",
                effort.rounds
            ));
            round(&servers.redis, method, measured);
        }
    }
    show(report, &methods, &measured, effort.rounds);
}

fn show(report: &mut Report, methods: &[&str], measured: &[Measured], rounds: usize) {
    report.begin("processes");
    let mut table = table(&[
        "start method",
        "16 workers ready, ms",
        "kill to ready, ms (median)",
        "(p99)",
        "drain of 16 idle, ms",
        "PSS per idle worker, MB",
        "PSS of the whole tree, MB",
    ]);
    for (method, measured) in methods.iter().zip(measured) {
        let figures = [
            ("ready", &measured.ready, 0.5),
            ("replaced", &measured.replaced, 0.5),
            ("replaced_p99", &measured.replaced, 0.99),
            ("drained", &measured.drained, 0.5),
            ("worker", &measured.worker, 0.5),
            ("tree", &measured.tree, 0.5),
        ];
        let mut row = json!({"method": method});
        let mut cells = vec![(*method).to_owned()];
        for (name, values, part) in figures {
            let figure = percentile(values, part);
            row[name] = figure.into();
            cells.push(format!("{figure:.1}"));
        }
        table.add_row(cells);
        report.add("processes", row);
    }
    let remark = format!(
        "medians of {rounds} rounds; {} kills each",
        rounds * WORKERS
    );
    print("Processes", &table, &remark);
}

fn idle(redis: &Redis, method: &str) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], &[]))
        .method(method)
        .workers(WORKERS)
}

/// The proportional set size of a process, in megabytes.
fn memory(pid: &i32) -> f64 {
    proportional_set_size(*pid).unwrap_or(0) as f64 / 1e6
}

/// The memory of each of 16 idle workers, in megabytes.
pub fn idle_workers(servers: &Servers, method: &str) -> Vec<f64> {
    servers.empty();
    let daemon = idle(&servers.redis, method).start();
    let workers = daemon.wait_for_workers(WORKERS);
    let sizes = workers.values().map(memory).collect();
    ours::stop(servers, daemon);
    sizes
}

/// The memory of as many workers after so many vCons, in megabytes.
pub fn after_work(servers: &Servers, case: &Case, document: &Document, count: usize) -> Vec<f64> {
    servers.empty();
    let ids = ids(count);
    servers.load(document, &ids);
    let daemon = ours::start(servers, case, Way::of(WORKERS, 1));
    servers.push("default", &ids);
    Done::of(&servers.redis).wait_for(count);
    let sizes = daemon.workers().values().map(memory).collect();
    ours::stop(servers, daemon);
    sizes
}

fn round(redis: &Redis, method: &str, measured: &mut Measured) {
    let conserver = idle(redis, method).env("LOG_LEVEL", "DEBUG");
    let start = SystemTime::now();
    let mut daemon = conserver.launch();
    let ready = format!("All {WORKERS} workers ready");
    daemon.wait_for_log(&ready, PATIENCE);
    measured
        .ready
        .push(milliseconds(start, time_of(&daemon, &ready)));

    let workers = daemon.wait_for_workers(WORKERS);
    measured.worker.extend(workers.values().map(memory));
    measured.tree.push(daemon.family().iter().map(memory).sum());

    for number in workers.keys() {
        let victim = daemon.workers()[number];
        let start = SystemTime::now();
        kill(Pid::from_raw(victim), Signal::SIGKILL).expect("the worker runs");
        wait_until("the worker is replaced", PATIENCE, || {
            daemon.workers()[number] != victim
        });
        let ready = format!("(PID {}) is ready", daemon.workers()[number]);
        daemon.wait_for_log(&ready, PATIENCE);
        measured
            .replaced
            .push(milliseconds(start, time_of(&daemon, &ready)));
    }

    let start = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit_at_once(), 0);
    measured.drained.push(start.elapsed().as_secs_f64() * 1e3);
}

/// The table of rates under load.
pub fn measure_methods(servers: &Servers, effort: &Effort, report: &mut Report) {
    report.begin("methods");
    let mut table = table(&[
        "storages",
        "start method",
        "vCons/s",
        "by fork",
        "(least to most)",
    ]);
    for (case, all) in methods(servers, effort, &METHODS) {
        for (method, (rates, ratios)) in METHODS.iter().zip(&all) {
            let (rate, ratio) = (median(rates), median(ratios));
            let [least, most] = [0.0, 1.0].map(|part| percentile(ratios, part));
            table.add_row([
                case.name.to_owned(),
                (*method).to_owned(),
                format!("{rate:.0}"),
                format!("{ratio:.2}"),
                format!("({least:.2} to {most:.2})"),
            ]);
            report.add(
                "methods",
                json!({"storages": case.name, "method": method, "ours": rate, "ratio": ratio, "least": least,
                    "most": most}),
            );
        }
    }
    print(
        "Rates by start method",
        &table,
        "4 workers x 1 lane under full load, through a link that tags; the methods take turns, which one comes first too;          ratios are medians of those of each pair",
    );
}

/// Rates of one start method, and their ratios to that of the first method in the same round.
pub type ByMethod = (Vec<f64>, Vec<f64>);

/// The rates of some start methods under load, by turns.
pub fn methods(servers: &Servers, effort: &Effort, methods: &[&str]) -> Vec<(Case, Vec<ByMethod>)> {
    let document = Document::of_size(USUAL);
    let mut measured: Vec<(Case, Vec<ByMethod>)> = [case::NONE, case::BOTH]
        .map(|case| (case, vec![ByMethod::default(); methods.len()]))
        .into();
    let rounds = effort.rounds * 2;
    for round in 1..=rounds {
        for (case, all) in &mut measured {
            let way = |method| Way {
                method,
                ..Way::of(4, 1)
            };
            let rate = |method| {
                let name = case.name;
                progress(&format!(
                    "methods, round {round} of {rounds}: {name}, {method}"
                ));
                let count = match (effort.quick, case.stores.is_empty()) {
                    (true, true) => 4000,
                    (true, false) => 400,
                    (false, true) => 16_000,
                    (false, false) => 1000,
                };
                ours::rate(servers, case, way(method), &document, count).0
            };
            // Whoever comes first has the machine as the one before left it.
            let mut order: Vec<usize> = (0..methods.len()).collect();
            order.rotate_left(round % methods.len());
            for at in order {
                let rate = rate(methods[at]);
                all[at].0.push(rate);
            }
            let last: Vec<f64> = all
                .iter()
                .filter_map(|(rates, _)| rates.last().copied())
                .collect();
            for ((_, ratios), rate) in all.iter_mut().zip(&last) {
                ratios.push(rate / last[0]);
            }
        }
    }
    measured
}

/// The time at which the log says `text`.
fn time_of(daemon: &Daemon, text: &str) -> SystemTime {
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains(text))
        .expect("a line");
    let time = line.split(' ').next().expect("a time");
    chrono::DateTime::parse_from_rfc3339(time)
        .expect("a time")
        .into()
}

fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
        * 1e3
}
