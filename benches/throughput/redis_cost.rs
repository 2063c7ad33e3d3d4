//! What one vCon costs Redis, beside a lean loop.
//!
//! The loop does what the simplest reliable queue does for a vCon, in one round trip: it announces the vCon before and
//! takes that off its processing list, moves the next one there and gets its document (`RPUSH`, `LREM`, `LMOVE`, `GET`
//! in one script). Both take turns in one run, so that the speed of the machine does not count in their ratio.

use std::time::Duration;

use redis::{Connection, Script};
use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::harness::{PATIENCE, wait_until};
use super::ours::{self, Way};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;
use super::usage::{cpu_clock, reads};

/// Workers and lanes.
const SHAPES: [(usize, usize); 2] = [(1, 1), (4, 4)];

/// vCons that a link changes are for information: the loop leaves its documents as they are.
const CASES: [Case; 2] = [case::BARE, case::NONE];

const LOOP: &str = "\
    if ARGV[1] ~= '' then redis.call('RPUSH', KEYS[3], ARGV[1]) redis.call('LREM', KEYS[2], 1, ARGV[1]) end \
    local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') \
    if not id then return false end \
    return {id, redis.call('GET', 'vcon:' .. id)}";

/// What one vCon has cost.
#[derive(Clone, Copy)]
struct Cost {
    /// Seconds of Redis.
    cpu: f64,
    round_trips: f64,
    /// vCons in a second.
    rate: f64,
}

/// The measurements of one shape, round by round.
struct Row {
    shape: (usize, usize),
    lean: Vec<Cost>,
    /// In the order of the cases.
    ours: [Vec<Cost>; CASES.len()],
}

/// The table of what Redis spends.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let documents = Document::samples(USUAL);
    let (rounds, count) = if effort.quick {
        (5, 8_000)
    } else {
        (effort.rounds * 2, 20_000)
    };
    let mut rows = SHAPES.map(|shape| Row {
        shape,
        lean: Vec::new(),
        ours: [Vec::new(), Vec::new()],
    });
    for number in 1..=rounds {
        for row in &mut rows {
            let (workers, lanes) = row.shape;
            let what = format!("redis, round {number} of {rounds}: {workers} x {lanes}");
            progress(&format!("{what}, lean loop"));
            row.lean
                .push(lean(servers, workers * lanes, &documents, count));
            for (case, costs) in CASES.iter().zip(&mut row.ours) {
                progress(&format!("{what}, {}", case.name));
                costs.push(ours(servers, case, row.shape, &documents, count));
            }
        }
    }
    show(report, &rows, &documents);
}

fn show(report: &mut Report, rows: &[Row], documents: &[Document]) {
    let mut table = table(&[
        "workers x lanes",
        "vCons",
        "Redis, µs",
        "lean loop, µs",
        "ratio",
        "(least to most)",
        "round trips",
        "of the loop",
        "vCons/s",
        "of the loop",
    ]);
    report.begin("redis");
    let middle = |costs: &[Cost], of: fn(&Cost) -> f64| {
        let values: Vec<f64> = costs.iter().map(of).collect();
        median(&values)
    };
    for row in rows {
        let (workers, lanes) = row.shape;
        let loops = middle(&row.lean, |cost| cost.cpu);
        for (case, costs) in CASES.iter().zip(&row.ours) {
            let pairs = costs.iter().zip(&row.lean);
            let ratios: Vec<f64> = pairs.map(|(ours, lean)| ours.cpu / lean.cpu).collect();
            let ratio = median(&ratios);
            let [least, most] = [0.0, 1.0].map(|part| percentile(&ratios, part));
            let cpu = middle(costs, |cost| cost.cpu);
            let round_trips = middle(costs, |cost| cost.round_trips);
            let rate = middle(costs, |cost| cost.rate);
            let vcons = if case.tag { "tagged" } else { "plain" };
            table.add_row([
                format!("{workers} x {lanes}"),
                vcons.to_owned(),
                format!("{:.1}", cpu * 1e6),
                format!("{:.1}", loops * 1e6),
                format!("{ratio:.2}"),
                format!("({least:.2} to {most:.2})"),
                format!("{round_trips:.2}"),
                format!("{:.2}", middle(&row.lean, |cost| cost.round_trips)),
                format!("{rate:.0}"),
                format!("{:.0}", middle(&row.lean, |cost| cost.rate)),
            ]);
            report.add(
                "redis",
                json!({"workers": workers, "lanes": lanes, "vcons": vcons, "cpu": cpu, "loop": loops, "ratio": ratio,
                    "least": least, "most": most,
                    "round_trips": round_trips, "ours": rate}),
            );
        }
    }
    let sizes = documents.iter().map(|document| document.plain("").len());
    let remark = format!(
        "user and system time of the Redis process for each vCon, while the list holds work; medians of {} rounds in \
         which the daemon and the loop take turns, ratios are medians of those of each round; documents of {} bytes on \
         average, made of the sample vCons; no storage, one egress list; the loop has one connection for each lane, and \
         leaves documents as they are; round trips as Redis counts them (total_reads_processed)",
        rows[0].lean.len(),
        sizes.sum::<usize>() / documents.len() + 36,
    );
    print("What one vCon costs Redis", &table, &remark);
}

/// Ids of documents that are in Redis, in any order.
fn loaded(servers: &Servers, documents: &[Document], count: usize) -> Vec<String> {
    servers.empty();
    let mut ids = ids(count);
    for (document, ids) in documents.iter().zip(ids.chunks(count / documents.len())) {
        servers.load(document, ids);
    }
    fastrand::shuffle(&mut ids);
    ids
}

fn ours(
    servers: &Servers,
    case: &Case,
    (workers, lanes): (usize, usize),
    documents: &[Document],
    count: usize,
) -> Cost {
    let ids = loaded(servers, documents, count);
    let daemon = ours::start(servers, case, Way::of(workers, lanes));
    daemon.wait_for_workers(workers);
    servers.push("default", &ids);
    let cost = watch(servers, count);
    ours::stop(servers, daemon);
    cost
}

fn lean(servers: &Servers, connections: usize, documents: &[Document], count: usize) -> Cost {
    let ids = loaded(servers, documents, count);
    let client = redis::Client::open(servers.redis.url()).expect("a URL");
    let connections: Vec<Connection> = (0..connections)
        .map(|_| client.get_connection().expect("a connection"))
        .collect();
    servers.push("default", &ids);
    std::thread::scope(|scope| {
        for (number, connection) in connections.into_iter().enumerate() {
            scope.spawn(move || drain(connection, number));
        }
        watch(servers, count)
    })
}

/// One connection of the loop, until the list is empty.
fn drain(mut connection: Connection, number: usize) {
    let script = Script::new(LOOP);
    let processing = format!("processing:{number}");
    let mut id = String::new();
    loop {
        let mut call = script.key("default");
        let call = call.key(&processing).key("done").arg(&id);
        let next: Option<(String, Vec<u8>)> = call.invoke(&mut connection).expect("Redis");
        let Some((next, document)) = next else {
            break;
        };
        assert!(!document.is_empty());
        id = next;
    }
}

/// What it costs from one tenth done to nine, so that neither the start nor the end counts.
fn watch(servers: &Servers, count: usize) -> Cost {
    let mut connection = servers.redis.connection();
    let pid = servers.redis.pid();
    let mut look = |wanted: usize| {
        let mut done = 0;
        wait_until("enough are done", PATIENCE * 5, || {
            done = redis::cmd("LLEN")
                .arg("done")
                .query(&mut connection)
                .expect("Redis");
            done >= wanted
        });
        let now = std::time::Instant::now();
        (now, done as f64, cpu_clock(pid), reads(&mut connection))
    };
    let (begin, before, cpu, round_trips) = look(count / 10);
    let (end, after, cpu_after, round_trips_after) = look(count / 10 * 9);
    let done = after - before;
    assert!(done > 0.0, "too few vCons to measure");
    let cost = Cost {
        cpu: (cpu_after - cpu) / done,
        round_trips: (round_trips_after - round_trips) / done,
        rate: done / (end - begin).as_secs_f64(),
    };
    look(count);
    cost
}
