//! The daemon beside what people would use instead: job queues with an equivalent job on the same servers.
//!
//! `cargo bench --bench peers`: private servers, the real programs, about 40 minutes. `tests/run.sh --peers` installs
//! them before, with Node.js where it is missing. After `--`: `--quick` for a few minutes, names of peers for these alone. The table goes to standard
//! output, the figures behind it to `target/bench/peers.json`.
//!
//! A job reads a vCon of 4.5 KB from Redis, parses it, adds a tag, saves it, writes it back and announces it on a list;
//! the queue gets its acknowledgement after that. PostgreSQL keeps its defaults (`fsync` and `synchronous_commit` are
//! on), files are synced with their directories, Redis writes nothing to disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unused_imports
)]

#[path = "../throughput/case.rs"]
mod case;
#[path = "../throughput/document.rs"]
mod document;
#[path = "../../tests/e2e/harness/mod.rs"]
mod harness;
#[path = "../throughput/report.rs"]
mod report;
#[path = "../throughput/servers.rs"]
mod servers;
#[path = "../throughput/usage.rs"]
mod usage;

mod measure;
mod peer;
mod service;
mod show;

use std::time::Duration;

use clap::Parser;

use case::Case;
use measure::{Killed, Round};
use peer::{Peer, Shape};
use report::{median, progress};
use servers::Servers;

/// The jobs, by what they save to.
const JOBS: [Case; 3] = [case::NONE, case::FILE, case::POSTGRES];

/// How many vCons may be in work at once.
const SLOTS: [usize; 2] = [4, 32];

#[derive(Parser)]
#[command(
    about = "The daemon beside what people would use instead, with an equivalent job on the same servers",
    after_help = "Before: tests/run.sh --peers installs BullMQ, dramatiq and RQ into the cache of the tests, and Node.js \
        and npm from the distribution where they are missing. \
        CONSERVER_PEER=FOLDER, where main.py of the existing Python worker daemon lies, measures it too (one whose \
        documents are plain strings); CONSERVER_PYTHON names the interpreter that has its packages.\n\n\
        Each round starts every peer anew, measures the time from there to the first job done, and warms it up. Then \
        all its processes are stopped (SIGSTOP), the jobs are handed in by the peer's own client and the processes go \
        on; rate and CPU are those from a tenth of the announcements to nine."
)]
struct Arguments {
    /// Measure only these, besides this daemon
    #[arg(value_enum)]
    peers: Vec<Peer>,
    /// Measure only the job that saves to this
    #[arg(long, value_parser = JOBS.map(|job| job.name))]
    storage: Option<String>,
    /// One round, fewer seconds, and a worker killed in the first job alone
    #[arg(long)]
    quick: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    /// Seconds that the jobs of one rate are to take.
    seconds: f64,
    /// vCons of one round that are handed in one by one.
    probes: usize,
    /// In how many of the jobs a worker is killed.
    kills: usize,
    /// How long the jobs of a killed worker are waited for.
    patience: Duration,
}

/// What was measured of a peer at a job.
struct Row {
    peer: Peer,
    job: Case,
    /// For each number of slots.
    rounds: [Vec<Round>; SLOTS.len()],
    /// Milliseconds from handed in to announced.
    latencies: Vec<f64>,
    killed: Option<Killed>,
}

fn main() {
    let arguments = Arguments::parse();
    let effort = if arguments.quick {
        Effort {
            rounds: 1,
            seconds: 1.0,
            probes: 60,
            kills: 1,
            patience: Duration::from_secs(90),
        }
    } else {
        Effort {
            rounds: 3,
            seconds: 2.0,
            probes: 100,
            kills: JOBS.len(),
            patience: Duration::from_secs(120),
        }
    };
    let peers = peers(&arguments.peers);
    let servers = Servers::start();
    let is_wanted = |job: &&Case| {
        let only = arguments.storage.as_deref();
        only.is_none_or(|name| name == job.name)
    };
    let jobs: Vec<&Case> = JOBS.iter().filter(is_wanted).collect();
    let of_all = |job: &&Case| peers.iter().map(|peer| Row::of(*peer, **job)).collect();
    let mut rows: Vec<Row> = jobs.iter().flat_map::<Vec<Row>, _>(of_all).collect();
    for number in 1..=effort.rounds {
        for slots in 0..SLOTS.len() {
            // Peers take turns, so that a busy moment of the machine does not fall on one alone.
            for row in &mut rows {
                let what = format!("round {number} of {}", effort.rounds);
                row.round(&servers, slots, &effort, &what);
            }
        }
    }
    for row in rows.iter_mut().take(effort.kills * peers.len()) {
        row.kill(&servers, &effort);
    }
    show::table(&rows, &peers, effort.rounds, effort.patience);
}

/// Those that are wanted and there, this daemon first.
fn peers(wanted: &[Peer]) -> Vec<Peer> {
    let mut peers = vec![Peer::Conserver];
    for peer in Peer::OTHERS {
        let named = wanted.contains(&peer);
        if !named && !wanted.is_empty() {
            continue;
        }
        match peer.missing() {
            None => peers.push(peer),
            // Nobody has to have it.
            Some(_) if peer == Peer::Existing && !named => {}
            Some(why) => {
                eprintln!("{why}");
                std::process::exit(69);
            }
        }
    }
    peers
}

impl Row {
    fn of(peer: Peer, job: Case) -> Self {
        Self {
            peer,
            job,
            rounds: Default::default(),
            latencies: Vec::new(),
            killed: None,
        }
    }

    fn round(&mut self, servers: &Servers, slots: usize, effort: &Effort, what: &str) {
        let shape = self.peer.shape(SLOTS[slots]);
        progress(&format!("{what}: {}", self.title(shape)));
        // A low rate needs no more slots than there are of the larger shape.
        let probes = if slots + 1 == SLOTS.len() {
            effort.probes
        } else {
            0
        };
        let (round, latencies) = measure::round(
            servers,
            &self.job,
            self.peer,
            shape,
            (effort.seconds, probes),
        );
        self.rounds[slots].push(round);
        self.latencies.extend(latencies);
    }

    fn kill(&mut self, servers: &Servers, effort: &Effort) {
        let shape = self.peer.shape(SLOTS[SLOTS.len() - 1]);
        progress(&format!("kill -9 of a worker: {}", self.title(shape)));
        let rate = self.rate(SLOTS.len() - 1);
        let killed = measure::killed(
            servers,
            &self.job,
            self.peer,
            shape,
            (rate, effort.patience),
        );
        self.killed = Some(killed);
    }

    fn title(&self, shape: Shape) -> String {
        format!("{}, {}, {shape}", self.peer.name(), self.job.name)
    }

    /// vCons in a second.
    fn rate(&self, slots: usize) -> f64 {
        self.middle(slots, |round| round.rate)
    }

    /// The middle one of the rounds.
    fn middle(&self, slots: usize, of: fn(&Round) -> f64) -> f64 {
        let values: Vec<f64> = self.rounds[slots].iter().map(of).collect();
        median(&values)
    }
}
