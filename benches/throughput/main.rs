//! How near the daemon comes to the least that any reliable worker must do for the same work.
//!
//! `cargo bench --bench throughput`: private servers, the real program, about an hour. After `--`: names of sections for
//! these alone, `--quick` for a tenth of the time, `--draw` to draw the curves of the last run, `--help` for all names.
//! The tables go to standard output, the figures behind them to `target/bench/throughput.json`.
//!
//! PostgreSQL keeps its defaults (`fsync` and `synchronous_commit` are on), files are synced with their
//! directories, Redis writes nothing to disk, and s3s-fs keeps objects as files without syncing them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unused_imports
)]

#[path = "../../tests/e2e/harness/mod.rs"]
mod harness;

mod acceptance;
mod case;
mod costs;
mod document;
mod draw;
mod floor;
mod growth;
mod idle;
mod latency;
mod matrix;
mod memory;
mod ours;
mod processes;
mod python;
mod redis_cost;
mod report;
mod scale;
mod servers;
mod usage;

use clap::{Parser, ValueEnum};

use report::Report;
use servers::Servers;

const MORE_HELP: &str = "\
Rates stand beside those of two floors: tight loops on as many connections as
the daemon has lanes. A single floor does one vCon at a time, a batched one
eight in each request, statement and sync of a directory. They know of nothing
but the work: LMOVE, GET, SET, RPUSH and LREM; a prepared upsert; write, fsync,
rename, fsync of the directory; two PUTs. Each measurement, of the daemon and of
a floor, ends with a check that every vCon was announced once and stored.

Ratios are medians of pairs that took turns in one run: they hold on other
machines too, rates do not. Another program that runs meanwhile spoils both.

  cargo bench --bench throughput -- acceptance
      each promise of speed and memory, in about 6 minutes
  cargo bench --bench throughput -- growth
      the curves of the manual, in about 15 minutes
  cargo bench --bench throughput -- --draw
      draws the curves of the last run into benches/figures

The figures of all tables are in target/bench/throughput.json, where a section
that is not measured keeps its last ones.";

#[derive(Parser)]
#[command(
    about = "How near the daemon comes to the least that any reliable worker must do for the same work",
    after_help = MORE_HELP
)]
struct Arguments {
    /// Measure only these; all but acceptance, scale and mixed if none is named
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Fewer cases, rounds and seconds: to see that everything works
    #[arg(long)]
    quick: bool,
    /// Measure nothing: draw the curves of the last run into benches/figures
    #[arg(long)]
    draw: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// What is promised of rates, memory and idle daemons, each beside its floor or its figure; only if named
    Acceptance,
    /// vCons in a second by workers, lanes and storages, beside the single and the batched floor
    Throughput,
    /// Rates under load by start method, in pairs with fork
    Methods,
    /// Start, kill to ready, drain, and memory of idle workers, by start method
    Processes,
    /// CPU, round trips and system calls for each vCon
    Costs,
    /// From RPUSH to stored, at parts of the highest rate
    Latency,
    /// Rates from few to many: bytes of a document, lists, waiting vCons, workers, instances; and what limits them
    Growth,
    /// What an idle daemon takes, what an RPUSH costs it, and how fast it wakes
    Idle,
    /// CPU of Redis for each vCon, beside both floors
    Redis,
    /// What a Python link costs that does nothing
    Python,
    /// The most memory that one document takes
    Memory,
    /// Very many lists, waiting vCons, lanes and instances, very large documents; only if named
    Scale,
    /// Memory over ten minutes of mixed load; only if named
    Mixed,
}

/// How much is measured.
pub struct Effort {
    /// Whether there is little time.
    pub quick: bool,
    /// How often each thing is measured, all things by turns.
    pub rounds: usize,
    /// Seconds for one measurement of a rate.
    pub window: f64,
}

fn main() {
    let arguments = Arguments::parse();
    if arguments.draw {
        draw::figures();
        return;
    }
    let effort = if arguments.quick {
        Effort {
            quick: true,
            rounds: 1,
            window: 0.3,
        }
    } else {
        Effort {
            quick: false,
            rounds: 5,
            window: 0.35,
        }
    };
    let wanted = |section| {
        // The others say again what acceptance says, or take long.
        let is_apart = matches!(
            section,
            Section::Acceptance | Section::Scale | Section::Mixed
        );
        let all = arguments.sections.is_empty() && !is_apart;
        all || arguments.sections.contains(&section)
    };
    let servers = Servers::start();
    let mut report = Report::new();
    type Measure = fn(&Servers, &Effort, &mut Report);
    let sections: [(Section, Measure); 13] = [
        (Section::Acceptance, acceptance::measure),
        (Section::Throughput, matrix::measure),
        (Section::Methods, processes::measure_methods),
        (Section::Processes, processes::measure),
        (Section::Costs, costs::measure),
        (Section::Latency, latency::measure),
        (Section::Growth, growth::measure),
        (Section::Idle, idle::measure),
        (Section::Redis, redis_cost::measure),
        (Section::Python, python::measure),
        (Section::Memory, memory::measure),
        (Section::Scale, scale::measure),
        (Section::Mixed, scale::mixed),
    ];
    for (section, measure) in sections {
        if wanted(section) {
            measure(&servers, &effort, &mut report);
            report.save();
        }
    }
}
