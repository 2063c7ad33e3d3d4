//! The rates: workers, lanes and storages, each beside its floor.

use std::collections::BTreeMap;

use serde_json::json;

use super::Effort;
use super::case::{self, Case, Store};
use super::document::{Document, USUAL};
use super::floor;
use super::ours::{self, Way};
use super::report::{Report, median, print, progress, table};
use super::servers::Servers;
use super::usage::Usage;

const CASES: [Case; 8] = [
    case::BARE,
    case::NONE,
    case::FILE,
    case::POSTGRES,
    case::S3,
    case::BOTH,
    case::PARALLEL,
    case::INLINE,
];

/// Workers and lanes.
const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (2, 1),
    (4, 1),
    (8, 1),
    (1, 4),
    (2, 4),
    (4, 4),
    (8, 4),
];

/// More vCons than this are never loaded for one measurement.
const MOST: usize = 40_000;

/// What is measured of one case in one shape.
struct Row<'a> {
    case: Case,
    way: Way<'a>,
    rates: Vec<f64>,
    /// Ours to the floor, round by round.
    ratios: Vec<f64>,
    usage: Vec<Usage>,
}

/// The table of everything.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let shapes = if effort.quick {
        &SHAPES[..5]
    } else {
        &SHAPES[..]
    };
    let ways: Vec<Way<'_>> = shapes
        .iter()
        .map(|(workers, lanes)| Way::of(*workers, *lanes))
        .collect();
    let title = "vCons in a second, and what part of the floor that is";
    rates(
        servers,
        effort,
        report,
        "throughput",
        title,
        (&CASES, &ways),
    );
}

/// The same by start method.
pub fn measure_methods(servers: &Servers, effort: &Effort, report: &mut Report) {
    let ways = ["fork", "spawn", "forkserver"].map(|method| Way {
        method,
        ..Way::of(4, 1)
    });
    let title = "The same by start method";
    let cases = [case::NONE, case::BOTH];
    rates(servers, effort, report, "methods", title, (&cases, &ways));
}

fn rates(
    servers: &Servers,
    effort: &Effort,
    report: &mut Report,
    section: &str,
    title: &str,
    (cases, ways): (&[Case], &[Way<'_>]),
) {
    let document = Document::of_size(USUAL);
    let mut rows: Vec<Row<'_>> = ways
        .iter()
        .flat_map(|way| cases.iter().map(|case| Row::new(*case, *way)))
        .collect();
    let mut floors = Floors {
        servers,
        document: &document,
        window: effort.window,
        way: None,
        known: BTreeMap::new(),
        medians: BTreeMap::new(),
    };
    for round in 1..=effort.rounds {
        // Interleaved, so that a busy moment of the machine does not fall on one case alone.
        for row in &mut rows {
            floors.follow(row.way);
            let floor = floors.of(&row.case, row.way.workers * row.way.lanes);
            // Ten for each lane at least, so that their ends do not count.
            let lanes = row.way.workers * row.way.lanes;
            let count = (floor * effort.window * 1.25) as usize;
            let count = count.clamp(lanes * 10, MOST);
            let (rate, usage) = ours::rate(servers, &row.case, row.way, &document, count);
            row.rates.push(rate);
            row.ratios.push(rate / floor);
            row.usage.push(usage);
            progress(&format!(
                "{section}, round {round} of {}: {}, {} x {} {}: {rate:.0}/s, {:.2} of the floor",
                effort.rounds,
                row.case.name,
                row.way.workers,
                row.way.lanes,
                row.way.method,
                rate / floor
            ));
        }
    }
    show(report, section, title, &rows, effort.rounds, &floors);
}

/// The floors of one round, each measured when it is first needed beside others of its shape.
struct Floors<'a> {
    servers: &'a Servers,
    document: &'a Document,
    window: f64,
    /// The workers and lanes they were measured beside.
    way: Option<(usize, usize)>,
    /// Those of now, by the case that is measured for it and its connections.
    known: BTreeMap<(&'static str, usize), f64>,
    /// Of all rounds.
    medians: BTreeMap<(&'static str, usize), Vec<f64>>,
}

impl Floors<'_> {
    /// Forgets those of another shape: they are too long ago.
    fn follow(&mut self, way: Way<'_>) {
        let way = Some((way.workers, way.lanes));
        if self.way != way {
            self.way = way;
            self.known.clear();
        }
    }

    /// At once: the slowest storage's; one after the other: that of the sum.
    fn of(&mut self, case: &Case, connections: usize) -> f64 {
        if case.parallel {
            let alone = case.stores.iter().map(|store| case.alone(*store));
            let rates = alone.map(|case| self.measured(&case, connections));
            rates.fold(f64::INFINITY, f64::min)
        } else {
            self.measured(case, connections)
        }
    }

    fn measured(&mut self, case: &Case, connections: usize) -> f64 {
        let key = (case.name, connections);
        if let Some(rate) = self.known.get(&key) {
            return *rate;
        }
        // As many vCons as the last time, and some; at first more than can be done.
        let before = self.medians.get(&key).and_then(|rates| rates.last());
        let guess = if case.stores.is_empty() {
            20_000.0
        } else {
            4_000.0
        };
        let count = (before.unwrap_or(&guess) * self.window * 1.5) as usize;
        let (count, window) = (count.clamp(100, MOST), self.window);
        let rate = floor::rate(
            self.servers,
            case,
            connections,
            self.document,
            (count, window),
        );
        self.known.insert(key, rate);
        self.medians.entry(key).or_default().push(rate);
        rate
    }

    /// As [`Floors::of`], the median of all rounds.
    fn median_of(&self, case: &Case, connections: usize) -> f64 {
        let of = |case: &Case| {
            self.medians
                .get(&(case.name, connections))
                .map(|rates| median(rates))
        };
        if case.parallel {
            let alone = case.stores.iter().map(|store| case.alone(*store));
            alone
                .filter_map(|case| of(&case))
                .fold(f64::INFINITY, f64::min)
        } else {
            of(case).unwrap_or(f64::NAN)
        }
    }
}

impl<'a> Row<'a> {
    fn new(case: Case, way: Way<'a>) -> Self {
        Self {
            case,
            way,
            rates: Vec::new(),
            ratios: Vec::new(),
            usage: Vec::new(),
        }
    }
}

fn show(
    report: &mut Report,
    section: &str,
    title: &str,
    rows: &[Row<'_>],
    rounds: usize,
    floors: &Floors<'_>,
) {
    report.begin(section);
    let mut table = table(&[
        "storages",
        "workers x lanes",
        "method",
        "floor/s",
        "ours/s",
        "ratio",
        "ours, cores (kernel)",
        "Redis",
        "PostgreSQL",
        "S3",
        "all cores",
        "disk",
        "limited by",
    ]);
    for row in rows {
        let (workers, lanes) = (row.way.workers, row.way.lanes);
        let floor = floors.median_of(&row.case, workers * lanes);
        let (rate, ratio) = (median(&row.rates), median(&row.ratios));
        let usage = Usage::mean(&row.usage);
        let limit = usage.limit();
        table.add_row([
            row.case.name.to_owned(),
            format!("{workers} x {lanes}"),
            row.way.method.to_owned(),
            format!("{floor:.0}"),
            format!("{rate:.0}"),
            format!("{ratio:.2}"),
            format!("{:.2} ({:.2})", usage.ours, usage.kernel),
            format!("{:.2}", usage.redis),
            format!("{:.2}", usage.postgres),
            format!("{:.2}", usage.s3),
            format!("{:.0} %", usage.machine * 100.0),
            format!("{:.0} %", usage.disk * 100.0),
            limit.clone(),
        ]);
        report.add(
            section,
            json!({"storages": row.case.name, "workers": workers, "lanes": lanes, "method": row.way.method,
                "floor": floor, "ours": rate, "ratio": ratio, "limit": limit}),
        );
    }
    let remark = format!(
        "medians of {rounds} rounds, interleaved; vCons of {USUAL} bytes through a link that tags them, where no other \
         is named; floor: the same requests to Redis and the same storage operation in a tight loop on as many \
         connections, for parallel storages those of the slowest"
    );
    print(title, &table, &remark);
}
