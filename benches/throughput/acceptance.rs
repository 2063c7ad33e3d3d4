//! The promises about speed and memory, each with the figure that it is held against, in one short run.

use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL};
use super::floor::Loops;
use super::idle;
use super::matrix::{FLOORS, Row};
use super::memory;
use super::ours::Way;
use super::processes;
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;

/// A case in one shape, and for each floor the part of it that is promised.
struct Promise {
    case: Case,
    shape: (usize, usize),
    floors: &'static [(Loops, f64)],
}

const ONE: Loops = Loops {
    connections: 1,
    together: 1,
};
const SIXTEEN: Loops = Loops {
    connections: 16,
    together: 1,
};
const SIXTEEN_BATCHED: Loops = Loops {
    connections: 16,
    together: super::floor::BATCH,
};

const fn one_lane(case: Case, floors: &'static [(Loops, f64)]) -> Promise {
    Promise {
        case,
        shape: (1, 1),
        floors,
    }
}

const fn sixteen_lanes(case: Case, floors: &'static [(Loops, f64)]) -> Promise {
    Promise {
        case,
        shape: (4, 4),
        floors,
    }
}

const RATES: [Promise; 10] = [
    one_lane(case::BARE, &[(ONE, 0.85)]),
    one_lane(case::NONE, &[(ONE, 0.85)]),
    one_lane(case::FILE, &[(ONE, 0.85)]),
    one_lane(case::POSTGRES, &[(ONE, 0.85)]),
    one_lane(case::S3, &[(ONE, 0.85)]),
    one_lane(case::PARALLEL, &[(ONE, 0.95)]),
    one_lane(case::INLINE, &[(ONE, 0.95)]),
    sixteen_lanes(case::BARE, &[(SIXTEEN_BATCHED, 0.6)]),
    sixteen_lanes(case::NONE, &[(SIXTEEN_BATCHED, 0.6)]),
    sixteen_lanes(
        case::POSTGRES,
        &[(SIXTEEN_BATCHED, 0.6), (SIXTEEN, 1.3), (ONE, 1.3)],
    ),
];

/// Megabytes.
const IDLE_WORKER: f64 = 0.8;
const AFTER_WORK: f64 = 3.0;
const PEAK: f64 = 3.0 * 10.0 + 10.0;

/// Milliseconds.
const TO_CLAIM: f64 = 1.0;

/// The tables of promises.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    report.begin("acceptance");
    rates(servers, effort, report);
    figures(servers, effort, report);
}

fn rates(servers: &Servers, effort: &Effort, report: &mut Report) {
    let document = Document::of_size(USUAL);
    let mut rows = RATES.map(|promise| {
        let loops: Vec<Loops> = promise.floors.iter().map(|(loops, _)| *loops).collect();
        let (workers, lanes) = promise.shape;
        let row = Row::new(promise.case, Way::of(workers, lanes), &loops);
        (promise, row)
    });
    // As one lane alone is not measured more often than the others, all are.
    let rounds = if effort.quick { 1 } else { effort.rounds + 2 };
    for round in 1..=rounds {
        for (_, row) in &mut rows {
            row.measure(servers, &document, effort.window);
            progress(&format!(
                "acceptance, round {round} of {rounds}: {}",
                row.last()
            ));
        }
    }
    let mut table = table(&[
        "storages",
        "workers x lanes",
        "ours/s",
        "floor",
        "floor/s",
        "ratio",
        "(least to most)",
        "promised",
    ]);
    for (promise, row) in &rows {
        let (workers, lanes) = promise.shape;
        let ours = median(&row.rates);
        for ((loops, promised), against) in promise.floors.iter().zip(&row.against) {
            let (floor, ratio) = (median(&against.rates), median(&against.ratios));
            let [least, most] = [0.0, 1.0].map(|part| percentile(&against.ratios, part));
            table.add_row([
                promise.case.name.to_owned(),
                format!("{workers} x {lanes}"),
                format!("{ours:.0}"),
                loops.name(),
                format!("{floor:.0}"),
                format!("{ratio:.2}"),
                format!("({least:.2} to {most:.2})"),
                promised.to_string(),
            ]);
            report.add(
                "acceptance",
                json!({"storages": promise.case.name, "workers": workers, "lanes": lanes, "ours": ours,
                    "loops": loops.name(), "floor": floor, "ratio": ratio, "least": least, "most": most,
                    "promised": promised}),
            );
        }
    }
    let remark = format!(
        "medians of {rounds} rounds, interleaved; vCons of {USUAL} bytes through a link that tags them, where no other is \
         named; {FLOORS}"
    );
    print("Rates, and what is promised of them", &table, &remark);
}

/// A promise that no floor is needed for.
struct Figure {
    what: String,
    figure: f64,
    /// At most, or at least if it is a ratio of rates.
    promised: f64,
}

fn figures(servers: &Servers, effort: &Effort, report: &mut Report) {
    let mut figures: Vec<Figure> = Vec::new();
    let mut add = |what: String, figure: f64, promised: f64| {
        figures.push(Figure {
            what,
            figure,
            promised,
        });
    };
    for (case, by_fork) in processes::methods(servers, effort, &["fork", "spawn"]) {
        add(
            format!("rate of spawn by that of fork under load, {}", case.name),
            median(&by_fork[1].1),
            0.95,
        );
    }
    for (method, promised) in [("fork", IDLE_WORKER), ("spawn", f64::NAN)] {
        progress(&format!("acceptance: idle workers by {method}"));
        let memory = median(&processes::idle_workers(servers, method));
        add(
            format!("PSS per idle worker by {method}, MB"),
            memory,
            promised,
        );
    }
    let document = Document::of_size(USUAL);
    for case in [
        case::NONE,
        case::FILE,
        case::POSTGRES,
        case::S3,
        case::PARALLEL,
    ] {
        progress(&format!("acceptance: memory after work, {}", case.name));
        let count = if effort.quick { 200 } else { 2000 };
        let memory = median(&processes::after_work(servers, &case, &document, count));
        let what = format!("PSS per worker after {count} vCons, {}, MB", case.name);
        add(what, memory, AFTER_WORK);
    }
    for case in [case::NONE, case::FILE, case::POSTGRES, case::S3] {
        progress(&format!("acceptance: a document of 10 MB, {}", case.name));
        let (peak, _) = memory::peak(servers, &case, 10_000_000);
        let what = format!("peak of a worker by a document of 10 MB, {}, MB", case.name);
        add(what, peak / 1e6, PEAK);
    }
    progress("acceptance: idle CPU");
    let seconds = if effort.quick { 2 } else { 10 };
    let used = idle::idle_cpu(servers, seconds) * 1e3;
    add(
        format!("CPU of 4 idle workers, monitor and supervisor in {seconds} s, ms"),
        used,
        0.0,
    );
    for workers in [1, 32] {
        progress(&format!(
            "acceptance: RPUSH to claim, {workers} idle workers"
        ));
        let count = if effort.quick { 30 } else { 300 };
        let times = idle::claims(servers, idle::fleet(1, workers, 1), count);
        add(
            format!("RPUSH to claim with {workers} idle workers, p99, ms"),
            percentile(&times, 0.99) * 1e3,
            TO_CLAIM,
        );
    }
    let mut table = table(&["what", "figure", "promised"]);
    for Figure {
        what,
        figure,
        promised,
    } in figures
    {
        let shown = if promised.is_nan() {
            String::new()
        } else {
            promised.to_string()
        };
        table.add_row([what.clone(), format!("{figure:.2}"), shown]);
        report.add(
            "acceptance",
            json!({"what": what, "figure": figure, "promised": promised}),
        );
    }
    let remark = "the rate of spawn is promised to be at least, all else to be at most the figure to the right; peak: VmHWM \
        of a fresh worker";
    print(
        "Memory and idle daemons, and what is promised",
        &table,
        remark,
    );
}
