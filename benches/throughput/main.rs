//! How near the daemon comes to the least that any program must do for the same work.
//!
//! `cargo bench --bench throughput`: private servers, the real program, about half an hour. After `--`:
//! `--quick` for six minutes, names of sections for these alone, `--draw` to draw the curves of the last run.
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

#[derive(Parser)]
#[command(
    about = "How near the daemon comes to the least that any program must do for the same work"
)]
struct Arguments {
    /// Measure only these
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Fewer cases, rounds and seconds
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
    /// vCons in a second by workers, lanes and storages, beside the floor
    Throughput,
    /// The same by start method
    Methods,
    /// Start, kill to ready, drain, and memory of idle workers
    Processes,
    /// CPU, round trips and system calls for each vCon
    Costs,
    /// From RPUSH to stored, at parts of the highest rate
    Latency,
    /// Documents, lists, waiting vCons and workers, from few to many
    Growth,
    /// What an idle daemon takes, what an RPUSH costs it, and how fast it wakes
    Idle,
    /// CPU of Redis for each vCon, beside a lean loop
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
        let is_long = matches!(section, Section::Scale | Section::Mixed);
        let all = arguments.sections.is_empty() && !is_long;
        all || arguments.sections.contains(&section)
    };
    let servers = Servers::start();
    let mut report = Report::new();
    type Measure = fn(&Servers, &Effort, &mut Report);
    let sections: [(Section, Measure); 12] = [
        (Section::Throughput, matrix::measure),
        (Section::Methods, matrix::measure_methods),
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
