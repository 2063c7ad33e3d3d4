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
    /// Ours to the floor of all storages at once, where ours are.
    ratios_at_once: Vec<f64>,
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

/// How often a shape is measured in one round: one lane alone has the most trouble with a machine that is
/// busy with something else for a moment.
fn turns(way: Way<'_>) -> usize {
    if way.shape() == (1, 1) { 3 } else { 1 }
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
        known: BTreeMap::new(),
        medians: BTreeMap::new(),
    };
    for round in 1..=effort.rounds {
        // The rows of one shape after the other. Interleaved, so that a busy moment of the machine does not fall on one case alone.
        for rows in rows.chunks_mut(cases.len()) {
            for _ in 0..turns(rows[0].way) {
                floors.begin();
                for row in &mut *rows {
                    row.measure(&mut floors);
                    progress(&format!("{section}, round {round}: {}", row.last()));
                }
            }
        }
    }
    show(report, section, title, &rows, effort.rounds, &floors);
}

/// The case whose floor it is, and the workers and lanes it is measured beside.
type Key = (&'static str, (usize, usize));

/// The floors beside one shape, each measured when it is first needed in a turn.
struct Floors<'a> {
    servers: &'a Servers,
    document: &'a Document,
    window: f64,
    /// Those of now.
    known: BTreeMap<Key, f64>,
    /// Of all rounds.
    medians: BTreeMap<Key, Vec<f64>>,
}

impl Floors<'_> {
    /// Forgets those of before: they are too long ago.
    fn begin(&mut self) {
        self.known.clear();
    }

    /// At once: the slowest storage's; one after the other: that of the sum.
    fn of(&mut self, case: &Case, shape: (usize, usize)) -> f64 {
        if case.parallel {
            let alone = case.stores.iter().map(|store| case.alone(*store));
            let rates = alone.map(|case| self.measured(&case, shape));
            rates.fold(f64::INFINITY, f64::min)
        } else {
            self.measured(case, shape)
        }
    }

    fn measured(&mut self, case: &Case, shape: (usize, usize)) -> f64 {
        let key = (case.name, shape);
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
            shape.0 * shape.1,
            self.document,
            (count, window),
        );
        self.known.insert(key, rate);
        self.medians.entry(key).or_default().push(rate);
        rate
    }

    /// As [`Floors::of`], the median of all rounds.
    fn median_of(&self, case: &Case, shape: (usize, usize)) -> f64 {
        if case.parallel {
            let alone = case.stores.iter().map(|store| case.alone(*store));
            alone
                .filter_map(|case| self.median(&case, shape))
                .fold(f64::INFINITY, f64::min)
        } else {
            self.median(case, shape).unwrap_or(f64::NAN)
        }
    }

    /// That of all storages of the case at once.
    fn median_at_once(&self, case: &Case, shape: (usize, usize)) -> Option<f64> {
        case.parallel.then(|| self.median(case, shape)).flatten()
    }

    fn median(&self, case: &Case, shape: (usize, usize)) -> Option<f64> {
        let rates = self.medians.get(&(case.name, shape));
        rates.map(|rates| median(rates))
    }
}

impl<'a> Row<'a> {
    fn new(case: Case, way: Way<'a>) -> Self {
        Self {
            case,
            way,
            rates: Vec::new(),
            ratios: Vec::new(),
            ratios_at_once: Vec::new(),
            usage: Vec::new(),
        }
    }

    fn measure(&mut self, floors: &mut Floors<'_>) {
        let shape = self.way.shape();
        let lanes = shape.0 * shape.1;
        let floor = floors.of(&self.case, shape);
        // Ten for each lane at least, so that their ends do not count.
        let count = (floor * floors.window * 1.25) as usize;
        let count = count.clamp(lanes * 10, MOST);
        let Floors {
            servers, document, ..
        } = *floors;
        // Before ours, as the other: a machine that gets slower favours neither.
        let at_once = self
            .case
            .parallel
            .then(|| floors.measured(&self.case, shape));
        let (rate, usage) = ours::rate(servers, &self.case, self.way, document, count);
        self.rates.push(rate);
        self.ratios.push(rate / floor);
        self.ratios_at_once
            .extend(at_once.map(|floor| rate / floor));
        self.usage.push(usage);
    }

    /// The last measurement, in words.
    fn last(&self) -> String {
        let Way {
            workers,
            lanes,
            method,
        } = self.way;
        format!(
            "{}, {workers} x {lanes} {method}: {:.0}/s, {:.2} of the floor",
            self.case.name,
            self.rates.last().unwrap_or(&f64::NAN),
            self.ratios.last().unwrap_or(&f64::NAN)
        )
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
        "floor at once/s",
        "ratio to it",
        "ours, cores (kernel)",
        "Redis",
        "PostgreSQL",
        "S3",
        "all cores",
        "disk",
        "limited by",
    ]);
    for row in rows {
        let shape @ (workers, lanes) = row.way.shape();
        let floor = floors.median_of(&row.case, shape);
        let (rate, ratio) = (median(&row.rates), median(&row.ratios));
        let at_once = floors.median_at_once(&row.case, shape);
        let ratio_at_once = (!row.ratios_at_once.is_empty()).then(|| median(&row.ratios_at_once));
        let usage = Usage::mean(&row.usage);
        let limit = usage.limit();
        table.add_row([
            row.case.name.to_owned(),
            format!("{workers} x {lanes}"),
            row.way.method.to_owned(),
            format!("{floor:.0}"),
            format!("{rate:.0}"),
            format!("{ratio:.2}"),
            at_once.map_or_else(String::new, |rate| format!("{rate:.0}")),
            ratio_at_once.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
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
                "floor": floor, "ours": rate, "ratio": ratio, "floor_at_once": at_once, "ratio_at_once": ratio_at_once,
                "limit": limit}),
        );
    }
    let remark = format!(
        "medians of {rounds} rounds, interleaved; vCons of {USUAL} bytes through a link that tags them, where no other \
         is named; floor: the same requests to Redis and the same storage operation in a tight loop on as many \
         connections, for parallel storages that of the slowest alone; floor at once: the same with all storages at once, \
         each on a thread of its own; one lane alone is measured three times in each round; ratios are medians of those \
         of each measurement with its floor, not of the columns"
    );
    print(title, &table, &remark);
}
