//! From RPUSH to stored, at parts of the highest rate.
//!
//! vCons are handed in at times drawn beforehand (a Poisson process), whether or not the ones before are done, and the
//! time counts from when a vCon was to be handed in. So a daemon that stalls is not spared those that wait.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::harness::PATIENCE;
use super::ours::{self, Way};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;

const PARTS: [f64; 3] = [0.1, 0.5, 0.9];

/// The table of latencies.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let document = Document::of_size(USUAL);
    let way = Way::of(2, 4);
    let seconds = if effort.quick { 1.5 } else { 8.0 };
    let mut table = table(&[
        "storages",
        "of the highest rate",
        "vCons/s",
        "p50, ms",
        "p99, ms",
        "p99.9, ms",
    ]);
    report.begin("latency");
    for case in [case::NONE, case::BOTH] {
        let highest = highest(servers, &case, way, &document, effort);
        for part in PARTS {
            let rate = highest * part;
            progress(&format!("latency: {}, {rate:.0} vCons/s", case.name));
            let count = (rate * seconds) as usize;
            let times = latencies(servers, &case, way, &document, (count, rate));
            let [half, most, nearly] =
                [0.5, 0.99, 0.999].map(|part| percentile(&times, part) * 1e3);
            table.add_row([
                case.name.to_owned(),
                format!("{:.0} %", part * 100.0),
                format!("{rate:.0}"),
                format!("{half:.2}"),
                format!("{most:.2}"),
                format!("{nearly:.2}"),
            ]);
            report.add(
                "latency",
                json!({"storages": case.name, "part": part, "rate": rate, "p50": half, "p99": most, "p999": nearly}),
            );
        }
    }
    let remark = format!(
        "{} workers x {} lanes, {seconds} s each; handed in at random times, the time counts from when a vCon was to \
         be handed in until it stands on the egress list, which is after it was stored",
        way.workers, way.lanes
    );
    print("From RPUSH to stored", &table, &remark);
}

/// vCons in a second where all are handed in at once and listened for, as they are below.
fn highest(
    servers: &Servers,
    case: &Case,
    way: Way<'_>,
    document: &Document,
    effort: &Effort,
) -> f64 {
    let count = if case.stores.is_empty() { 15_000 } else { 2000 };
    let rates: Vec<f64> = (0..effort.rounds.min(3))
        .map(|_| {
            let times = latencies(servers, case, way, document, (count, f64::INFINITY));
            count as f64 / percentile(&times, 1.0)
        })
        .collect();
    median(&rates)
}

fn latencies(
    servers: &Servers,
    case: &Case,
    way: Way<'_>,
    document: &Document,
    (count, rate): (usize, f64),
) -> Vec<f64> {
    servers.empty();
    let warm = way.workers * way.lanes * 5;
    let ids = ids(count + warm);
    servers.load(document, &ids);
    let daemon = ours::start(servers, case, way);
    servers.push("default", &ids[..warm]);
    ours::Done::of(&servers.redis).wait_for(warm);
    servers.redis.ask::<()>(&["DEL", "done"]);

    let ids = &ids[warm..];
    let start = Instant::now() + Duration::from_millis(100);
    let mut at = 0.0;
    let due: Vec<Instant> = ids
        .iter()
        .map(|_| {
            at += -(1.0 - fastrand::f64()).ln() / rate;
            start + Duration::from_secs_f64(at)
        })
        .collect();
    let times = thread::scope(|scope| {
        let listener = scope.spawn(|| listen(servers, ids, &due));
        hand_in(servers, ids, &due);
        listener.join().expect("the listener")
    });
    ours::stop(servers, daemon);
    times
}

fn hand_in(servers: &Servers, ids: &[String], due: &[Instant]) {
    // Else the system rounds each sleep up by 50 µs.
    nix::sys::prctl::set_timerslack(1).expect("a timer");
    let mut connection = servers.redis.connection();
    let mut next = 0;
    while next < ids.len() {
        thread::sleep(due[next].saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let overdue = due[next..].iter().take_while(|due| **due <= now);
        let last = next + overdue.count().clamp(1, 1000);
        let mut push = redis::cmd("RPUSH");
        push.arg("default").arg(&ids[next..last.min(ids.len())]);
        push.query::<()>(&mut connection).expect("Redis");
        next = last;
    }
}

fn listen(servers: &Servers, ids: &[String], due: &[Instant]) -> Vec<f64> {
    let due: HashMap<&str, Instant> = ids
        .iter()
        .map(String::as_str)
        .zip(due.iter().copied())
        .collect();
    let mut connection = servers.redis.connection();
    let mut times = Vec::with_capacity(ids.len());
    while times.len() < ids.len() {
        let mut pop = redis::cmd("BLPOP");
        pop.arg("done").arg(PATIENCE.as_secs());
        let popped: Option<(String, String)> = pop.query(&mut connection).expect("Redis");
        let (_, first) = popped.expect("a vCon in time");
        let mut pop = redis::cmd("LPOP");
        pop.arg("done").arg(1000);
        let others: Option<Vec<String>> = pop.query(&mut connection).expect("Redis");
        let now = Instant::now();
        for id in std::iter::once(first).chain(others.unwrap_or_default()) {
            let took = now.saturating_duration_since(due[id.as_str()]);
            times.push(took.as_secs_f64());
        }
    }
    times
}
