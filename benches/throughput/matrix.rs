//! The rates: workers, lanes and storages, each beside its floors.

use std::collections::BTreeMap;

use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL};
use super::floor::{self, BATCH, Loops};
use super::ours::{self, Way};
use super::report::{Report, median, print, progress, table};
use super::servers::Servers;
use super::usage::Usage;

const CASES: [Case; 7] = [
    case::BARE,
    case::NONE,
    case::FILE,
    case::POSTGRES,
    case::S3,
    case::PARALLEL,
    case::INLINE,
];

/// Workers and lanes.
const SHAPES: [(usize, usize); 6] = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (4, 4)];

/// More vCons than this are never loaded for one measurement.
const MOST: usize = 40_000;

/// A floor, and what was measured of it.
pub struct Against {
    pub loops: Loops,
    pub rates: Vec<f64>,
    /// Ours to it, each with what was measured right before.
    pub ratios: Vec<f64>,
}

/// One case in one shape, and its floors, which are measured by turns.
pub struct Row<'a> {
    pub case: Case,
    pub way: Way<'a>,
    pub against: Vec<Against>,
    pub rates: Vec<f64>,
    pub usage: Vec<Usage>,
}

impl<'a> Row<'a> {
    /// Nothing is measured yet.
    pub fn new(case: Case, way: Way<'a>, floors: &[Loops]) -> Self {
        let against = floors.iter().map(|loops| Against {
            loops: *loops,
            rates: Vec::new(),
            ratios: Vec::new(),
        });
        Self {
            case,
            way,
            against: against.collect(),
            rates: Vec::new(),
            usage: Vec::new(),
        }
    }

    /// Measures each floor, and then ours, for about `window` seconds each.
    pub fn measure(&mut self, servers: &Servers, document: &Document, window: f64) {
        for against in &mut self.against {
            // As many vCons as the last time, and some; at first more than can be done.
            let guess = match self.case.stores {
                [] => 80_000.0,
                _ => 12_000.0,
            };
            let guess = against.rates.last().copied().unwrap_or(guess);
            let count = ((guess * window * 1.5) as usize).clamp(100, MOST);
            let floor = floor::rate(
                servers,
                &self.case,
                against.loops,
                document,
                (count, window),
            );
            against.rates.push(floor);
        }
        let floors = self.against.iter().filter_map(|it| it.rates.last());
        let guess = floors.copied().fold(f64::INFINITY, f64::min);
        let guess = self.rates.last().copied().unwrap_or(guess);
        // Ten for each lane at least, so that their ends do not count.
        let (workers, lanes) = self.way.shape();
        let count = ((guess * window * 1.5) as usize).clamp(workers * lanes * 10, MOST);
        let (rate, usage) = ours::rate(servers, &self.case, self.way, document, count);
        self.rates.push(rate);
        self.usage.push(usage);
        for against in &mut self.against {
            let floor = against.rates.last().expect("it was measured");
            against.ratios.push(rate / floor);
        }
    }

    /// The last measurement, in words.
    pub fn last(&self) -> String {
        let (workers, lanes) = self.way.shape();
        let rate = self.rates.last().unwrap_or(&f64::NAN);
        let mut text = format!("{}, {workers} x {lanes}: {rate:.0}/s", self.case.name);
        for against in &self.against {
            let ratio = against.ratios.last().unwrap_or(&f64::NAN);
            text += &format!(", {ratio:.2} of {}", against.loops.name());
        }
        text
    }
}

/// The table of everything.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let shapes = if effort.quick {
        &[(1, 1), (4, 4)][..]
    } else {
        &SHAPES[..]
    };
    let document = Document::of_size(USUAL);
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (workers, lanes) in shapes {
        let connections = workers * lanes;
        let floors = [Loops::single(connections), Loops::batched(connections)];
        let way = Way::of(*workers, *lanes);
        rows.extend(CASES.map(|case| Row::new(case, way, &floors)));
    }
    for round in 1..=effort.rounds {
        // The rows of one shape after the other. Interleaved, so that a busy moment of the machine does not fall on one
        // case alone.
        for rows in rows.chunks_mut(CASES.len()) {
            for _ in 0..turns(rows[0].way, effort) {
                for row in &mut *rows {
                    row.measure(servers, &document, effort.window);
                    progress(&format!("throughput, round {round}: {}", row.last()));
                }
            }
        }
    }
    show(report, &rows, effort.rounds);
}

/// How often a shape is measured in one round: one lane alone has the most trouble with a machine that is
/// busy with something else for a moment.
fn turns(way: Way<'_>, effort: &Effort) -> usize {
    if way.shape() == (1, 1) && !effort.quick {
        3
    } else {
        1
    }
}

fn show(report: &mut Report, rows: &[Row<'_>], rounds: usize) {
    report.begin("throughput");
    let mut table = table(&[
        "storages",
        "workers x lanes",
        "ours/s",
        "single floor/s",
        "ratio",
        "batched floor/s",
        "ratio",
        "times one lane",
        "ours, cores (kernel)",
        "Redis",
        "PostgreSQL",
        "S3",
        "all cores",
        "disk",
        "limited by",
    ]);
    let mut of_one_lane: BTreeMap<&str, f64> = BTreeMap::new();
    for row in rows {
        let (workers, lanes) = row.way.shape();
        let rate = median(&row.rates);
        let times = rate / *of_one_lane.entry(row.case.name).or_insert(rate);
        let [single, batched] = [0, 1].map(|at| {
            let Against { rates, ratios, .. } = &row.against[at];
            (median(rates), median(ratios))
        });
        let usage = Usage::mean(&row.usage);
        let limit = usage.limit();
        table.add_row([
            row.case.name.to_owned(),
            format!("{workers} x {lanes}"),
            format!("{rate:.0}"),
            format!("{:.0}", single.0),
            format!("{:.2}", single.1),
            format!("{:.0}", batched.0),
            format!("{:.2}", batched.1),
            format!("{times:.2}"),
            format!("{:.2} ({:.2})", usage.ours, usage.kernel),
            format!("{:.2}", usage.redis),
            format!("{:.2}", usage.postgres),
            format!("{:.2}", usage.s3),
            format!("{:.0} %", usage.machine * 100.0),
            format!("{:.0} %", usage.disk * 100.0),
            limit.clone(),
        ]);
        report.add(
            "throughput",
            json!({"storages": row.case.name, "workers": workers, "lanes": lanes, "ours": rate,
                "single": single.0, "ratio": single.1, "batched": batched.0, "ratio_batched": batched.1,
                "times": times, "limit": limit}),
        );
    }
    let remark = format!(
        "medians of {rounds} rounds, interleaved; one lane alone is measured three times in each round; vCons of {USUAL} \
         bytes through a link that tags them, where no other is named; {FLOORS}; ratios are medians of those of each \
         measurement with its floor, not of the columns"
    );
    print(
        "vCons in a second, and what part of the floors that is",
        &table,
        &remark,
    );
    const { assert!(BATCH == 8, "the remark says so") };
}

/// What the floors are, in words.
pub const FLOORS: &str = "floors: tight loops on as many connections that do the least any reliable worker must do: LMOVE to \
    a list of its own, GET, SET of the changed document, RPUSH to the egress list, LREM, in one round trip; a prepared \
    upsert with its commit; write, fsync, rename, fsync of the directory; two PUTs on a connection that is kept; storages at \
    once: each on a thread of its own; single: one vCon at a time; batched: eight in each request to Redis, in each \
    statement and commit, and for each fsync of the directory (S3 takes one object at a time in either)";
