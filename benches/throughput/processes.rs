//! How fast processes come and go, and how much memory they take, for each start method.
//!
//! 16 idle workers. Times are read from the daemon's log, so that looking at it does not count.

use std::time::{Duration, Instant, SystemTime};

use conserver::procfs::proportional_set_size;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Effort;
use super::harness::{Conserver, Daemon, PATIENCE, Redis, chain, wait_until};
use super::report::{Report, percentile, print, progress, table};
use super::servers::Servers;

const WORKERS: usize = 16;

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
    let methods = ["fork", "spawn", "forkserver"];
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

fn round(redis: &Redis, method: &str, measured: &mut Measured) {
    let conserver = Conserver::with(redis)
        .config(&chain(&[], &[]))
        .method(method)
        .workers(WORKERS)
        .env("LOG_LEVEL", "DEBUG");
    let start = SystemTime::now();
    let mut daemon = conserver.launch();
    let ready = format!("All {WORKERS} workers ready");
    daemon.wait_for_log(&ready, PATIENCE);
    measured
        .ready
        .push(milliseconds(start, time_of(&daemon, &ready)));

    let workers = daemon.wait_for_workers(WORKERS);
    let memory = |pid: &i32| proportional_set_size(*pid).unwrap_or(0) as f64 / 1e6;
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
