//! What one vCon costs Redis, beside the floors.
//!
//! All take turns in one run, so that the speed of the machine does not count in their ratios.

use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::floor::{Loops, Queue};
use super::harness::{PATIENCE, wait_until};
use super::ours::{self, Way};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;
use super::usage::{cpu_clock, reads};

/// Workers and lanes.
const SHAPES: [(usize, usize); 2] = [(1, 1), (4, 4)];

const CASES: [Case; 2] = [case::BARE, case::NONE];

/// What one vCon has cost.
#[derive(Clone, Copy)]
struct Cost {
    /// Seconds of Redis.
    cpu: f64,
    round_trips: f64,
    /// vCons in a second.
    rate: f64,
}

/// The measurements of one case in one shape, round by round.
struct Row {
    case: Case,
    shape: (usize, usize),
    ours: Vec<Cost>,
    /// One vCon at a time.
    single: Vec<Cost>,
    /// Eight at a time.
    batched: Vec<Cost>,
}

/// The table of what Redis spends.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let documents = Document::samples(USUAL);
    let (rounds, count) = if effort.quick {
        (3, 8_000)
    } else {
        (effort.rounds, 20_000)
    };
    let row = |(shape, case)| Row {
        case,
        shape,
        ours: Vec::new(),
        single: Vec::new(),
        batched: Vec::new(),
    };
    let mut rows: Vec<Row> = SHAPES
        .iter()
        .flat_map(|shape| CASES.map(|case| row((*shape, case))))
        .collect();
    for number in 1..=rounds {
        for row in &mut rows {
            let (workers, lanes) = row.shape;
            let connections = workers * lanes;
            progress(&format!(
                "redis, round {number} of {rounds}: {workers} x {lanes}, {}",
                row.case.name
            ));
            let floor = |loops| floor(servers, &row.case, loops, &documents, count);
            row.single.push(floor(Loops::single(connections)));
            row.batched.push(floor(Loops::batched(connections)));
            row.ours
                .push(ours(servers, &row.case, row.shape, &documents, count));
        }
    }
    show(report, &rows, &documents);
}

fn show(report: &mut Report, rows: &[Row], documents: &[Document]) {
    let mut table = table(&[
        "workers x lanes",
        "vCons",
        "Redis, µs",
        "single floor, µs",
        "ratio",
        "(least to most)",
        "batched floor, µs",
        "ratio",
        "round trips",
        "of the single floor",
        "of the batched floor",
        "vCons/s",
        "of the single floor",
        "of the batched floor",
    ]);
    report.begin("redis");
    let middle = |costs: &[Cost], of: fn(&Cost) -> f64| {
        let values: Vec<f64> = costs.iter().map(of).collect();
        median(&values)
    };
    for row in rows {
        let (workers, lanes) = row.shape;
        let ratios = |floor: &[Cost]| -> Vec<f64> {
            let pairs = row.ours.iter().zip(floor);
            pairs.map(|(ours, floor)| ours.cpu / floor.cpu).collect()
        };
        let (of_single, of_batched) = (ratios(&row.single), ratios(&row.batched));
        let (ratio, ratio_batched) = (median(&of_single), median(&of_batched));
        let [least, most] = [0.0, 1.0].map(|part| percentile(&of_single, part));
        let all = [&row.ours, &row.single, &row.batched];
        let cpu = all.map(|costs| middle(costs, |cost| cost.cpu));
        let round_trips = all.map(|costs| middle(costs, |cost| cost.round_trips));
        let rates = all.map(|costs| middle(costs, |cost| cost.rate));
        let vcons = if row.case.tag { "tagged" } else { "plain" };
        let mut cells = vec![
            format!("{workers} x {lanes}"),
            vcons.to_owned(),
            format!("{:.1}", cpu[0] * 1e6),
            format!("{:.1}", cpu[1] * 1e6),
            format!("{ratio:.2}"),
            format!("({least:.2} to {most:.2})"),
            format!("{:.1}", cpu[2] * 1e6),
            format!("{ratio_batched:.2}"),
        ];
        cells.extend(round_trips.map(|number| format!("{number:.2}")));
        cells.extend(rates.map(|rate| format!("{rate:.0}")));
        table.add_row(cells);
        report.add(
            "redis",
            json!({"workers": workers, "lanes": lanes, "vcons": vcons, "cpu": cpu[0], "single": cpu[1],
                "ratio": ratio, "least": least, "most": most, "batched": cpu[2], "ratio_batched": ratio_batched,
                "round_trips": round_trips[0], "ours": rates[0]}),
        );
    }
    let sizes = documents.iter().map(Document::size);
    let remark = format!(
        "user and system time of the Redis process for each vCon, while the list holds work; medians of {} rounds in \
         which the daemon and the floors take turns, ratios are medians of those of each round; documents of {} bytes on \
         average, made of the sample vCons; no storage, one egress list; tagged: a link changes each document, the floor \
         writes back what it got; a floor has one connection for each lane; round trips as Redis counts them \
         (total_reads_processed)",
        rows[0].ours.len(),
        sizes.sum::<usize>() / documents.len(),
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

fn floor(
    servers: &Servers,
    case: &Case,
    loops: Loops,
    documents: &[Document],
    count: usize,
) -> Cost {
    let ids = loaded(servers, documents, count);
    let queues: Vec<Queue> = (1..=loops.connections)
        .map(|number| Queue::connect(servers, number, loops.together, &documents[0]))
        .collect();
    servers.push("default", &ids);
    std::thread::scope(|scope| {
        for mut queue in queues {
            scope.spawn(move || {
                let mut taken = queue.claim();
                while !taken.is_empty() {
                    taken = queue.finish_and_claim(&taken, case.tag);
                }
            });
        }
        watch(servers, count)
    })
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
