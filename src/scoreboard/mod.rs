//! What every process of the daemon shows to the others: a file of words in the runtime folder.
//!
//! ```text
//! supervisor ──Board──► header, places          (writes and reads with pwrite and pread)
//! worker     ──Slot───► its own slot and lanes  (mapped: no lock, no system call)
//!          └─Meter──► what it counts for each chain, link and storage
//! status, monitor ◄──Snapshot── the whole file  (read once, then checked word by word)
//! ```
//!
//! Nobody trusts what stands there. The supervisor and the readers take copies, in which a word
//! that is no state counts as none, and a lane caught halfway through a change is left out: what
//! is read may be stale, never invalid. The supervisor holds a lock on the file as long as it
//! lives, so that a scoreboard of the living is told from one that was left behind.

mod board;
mod error;
mod figures;
mod layout;
mod meter;
mod series;
mod silence;
mod slot;
mod snapshot;
mod states;
#[cfg(test)]
mod tests;

pub use board::{Board, BoardId, Place};
pub use error::BoardError;
pub use figures::{BUCKETS, Series};
pub use layout::{MOST_SERIES, SLOTS, Shape};
pub use meter::{BOUNDS_US, Event, Meter};
pub use series::{SeriesKind, shown_name};
pub use silence::is_silent;
pub use slot::{LaneCell, Outcome, Slot, SlotMeters};
pub use snapshot::{Header, HeldView, LaneView, PlaceView, SlotView, Snapshot, WorkerView};
pub use states::{LaneState, Phase, PlaceState, RestartCause, WorkerState};
