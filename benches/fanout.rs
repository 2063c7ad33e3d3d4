//! What saving to several storages costs, at once and one after the other.
//!
//! `cargo bench --bench fanout`: backends that take 100, 150 and 100 ms, through the very function
//! that lanes save with. One after the other they take the sum, at once as long as the slowest.

#![allow(clippy::expect_used, clippy::panic)]

#[path = "shared/backend.rs"]
mod backend;

use std::thread;
use std::time::{Duration, Instant};

use comfy_table::Table;
use conserver::deadline::Deadline;
use conserver::storage::fan_out::{Backend, WriterPool};
use conserver::vcon::Leaving;

use backend::Taking;

/// How long each backend takes, in milliseconds.
const TIMES: [u64; 3] = [100, 150, 100];

const ROUNDS: usize = 5;

fn main() {
    let vcon = backend::vcon();
    let mut measured = [
        ("inline", false, Vec::new()),
        ("parallel", true, Vec::new()),
    ];
    // Interleaved, so that a busy moment of the machine does not fall on one way alone.
    for _ in 0..ROUNDS {
        for (_, parallel, times) in &mut measured {
            times.push(save(&vcon, *parallel));
        }
    }
    let slowest = TIMES.iter().max().expect("a backend");
    let mut table = Table::new();
    let ratio = format!("of the slowest, {slowest} ms");
    table.set_header(["storages", "median, ms", "least", "most", &ratio]);
    for (name, _, times) in &mut measured {
        times.sort_by(f64::total_cmp);
        let (median, most) = (times[ROUNDS / 2], times[ROUNDS - 1]);
        table.add_row([
            (*name).to_owned(),
            format!("{median:.2}"),
            format!("{:.2}", times[0]),
            format!("{most:.2}"),
            format!("{:.3}", median / *slowest as f64),
        ]);
    }
    println!("{table}\nmedians of {ROUNDS} rounds; backends that take {TIMES:?} ms");
}

/// How long one save takes, in milliseconds, by a lane that has saved before.
fn save(vcon: &Leaving, parallel: bool) -> f64 {
    let backends = TIMES.into_iter().enumerate().map(|(place, time)| Backend {
        name: format!("slow-{place}").into(),
        storage: Box::new(Taking(Duration::from_millis(time))),
        is_downgraded: false,
    });
    thread::scope(|scope| {
        let mut writers = WriterPool::new(scope);
        let before = writers.save_all(backends.collect(), vcon, Deadline::NONE, parallel);
        let backends = backend::lent_again(before);
        let start = Instant::now();
        let outcomes = writers.save_all(backends, vcon, Deadline::NONE, parallel);
        let took = start.elapsed();
        assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
        took.as_secs_f64() * 1e3
    })
}
