//! The parts of a lane's work, each by itself.
//!
//! `cargo bench --bench micro`: Redis is a private one; the rest needs nothing. `-- NAME` measures what has that in its
//! name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unused_imports
)]

#[path = "../shared/backend.rs"]
mod backend;
#[path = "../throughput/document.rs"]
mod document;
#[path = "../../tests/e2e/harness/mod.rs"]
mod harness;

mod fanout;
mod queue;
mod scoreboard;
mod vcon;

fn main() {
    divan::main();
}
