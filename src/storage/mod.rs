//! Where vCons are kept: one trait, one file for each backend, one table that lists them.
//!
//! A backend knows its server and its layout, nothing of queues, workers or the supervisor.
//! It belongs to one lane, connects when first used, keeps its connection, and is opened anew by
//! the lane after a panic.

mod bounded;
pub mod crowd;
mod elasticsearch;
pub mod fanout;
mod file;
mod not_built_in;
mod postgres;
mod redis_storage;
mod s3;
mod webhook;

/// What fuzzers run.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::elasticsearch::fuzz::answer as elasticsearch;
    pub use super::postgres::fuzz::{answer as postgres, options as postgres_options};
    pub use super::s3::fuzz::answer as s3;
}

use std::time::Duration;

use chrono::NaiveDate;

pub use not_built_in::NOT_BUILT_IN;

use crate::config::Options;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::vcon::{LARGEST_DOCUMENT, Outgoing, VconId};

/// A place where vCons are kept.
///
/// Saving is idempotent: the same vCon saved twice leaves one copy, the later one. A call takes no
/// longer than its own limits and the deadline allow; one that reaches the deadline is a transient
/// failure.
pub trait Storage: Send {
    /// Stores the document, replacing what was kept under its id.
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure>;

    /// The document as it is kept, or `None` where there is none under this id.
    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure>;

    /// Whether there is a document under this id. The day of its `created_at` tells where to look
    /// first; nothing is wrong if it is unknown or another one.
    fn has(
        &mut self,
        id: &VconId,
        day: Option<NaiveDate>,
        deadline: Deadline,
    ) -> Result<bool, Failure> {
        let _ = day;
        self.get(id, deadline).map(|found| found.is_some())
    }

    /// Whether [`Storage::has`] is faster if it is told the day.
    fn is_kept_by_day(&self) -> bool {
        false
    }

    /// Removes what is kept under the id; nothing there is no error.
    fn delete(&mut self, id: &VconId) -> Result<(), Failure>;

    /// Answers whether the backend could be used now, within a few seconds and without writing
    /// a document.
    fn probe(&mut self) -> Result<(), Failure>;

    /// Another one that probes what this one would, for another thread; `None` if a new one does, as
    /// it needs to know nothing of what was refused.
    fn prober(&self) -> Option<Box<dyn Storage>> {
        None
    }

    /// Says whether the backend could be used, for a person who may be another user than the
    /// service: unlike [`Storage::probe`], this makes nothing that would stay.
    fn check(&mut self) -> Result<String, Failure> {
        self.probe().map(|()| "answers".to_owned())
    }

    /// How many connections its server has room for, as [`Storage::check`] has found.
    fn room(&mut self) -> Vec<Room> {
        Vec::new()
    }

    /// The longest time that one save or get may take by its own limits.
    fn longest_call(&self) -> Duration;

    /// Whether what is saved can be got back. One that hands documents on, and keeps none, is not
    /// asked for them.
    fn keeps_documents(&self) -> bool {
        true
    }

    /// Whether what is saved can be removed again. One that hands documents on has nothing to remove.
    fn can_delete(&self) -> bool {
        true
    }
}

/// A limit on connections, for all processes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// What is limited: two storages with the same share it.
    pub of: String,
    /// How many connections there may be.
    pub most: u64,
    /// Where the limit is set, for a person.
    pub by: String,
}

/// The document as a storage keeps it, or `None` where there is none under this id.
///
/// # Errors
/// As [`Storage::get`]; a document that no Redis takes is a permanent failure.
pub fn get(
    storage: &mut dyn Storage,
    id: &VconId,
    deadline: Deadline,
) -> Result<Option<String>, Failure> {
    let found = storage.get(id, deadline)?;
    match &found {
        Some(text) if text.len() as u64 > LARGEST_DOCUMENT => Err(Failure::permanent(format!(
            "vCon {id} has {} bytes there, more than the {LARGEST_DOCUMENT} that Redis takes",
            text.len()
        ))),
        _ => Ok(found),
    }
}

/// One row of the table of known storages.
pub struct Module {
    /// The name in `config.yml`, as in `module: storage.file`.
    pub name: &'static str,
    /// Reads the options and makes a backend that has not connected yet. What is wrong with the
    /// options is recorded there; the backend made then is not used.
    pub open: fn(&mut Options) -> Box<dyn Storage>,
}

/// Every storage there is.
pub const MODULES: &[Module] = &[
    Module {
        name: "storage.postgres",
        open: postgres::open,
    },
    Module {
        name: "storage.s3",
        open: s3::open,
    },
    Module {
        name: "storage.elasticsearch",
        open: elasticsearch::open,
    },
    Module {
        name: "storage.file",
        open: file::open,
    },
    Module {
        name: "storage.redis_storage",
        open: redis_storage::open,
    },
    Module {
        name: "storage.webhook",
        open: webhook::open,
    },
];

/// The storages that get the version of `EGRESS_FORMAT_VERSION`; the others get that of Redis.
pub const DOWNGRADED: [&str; 3] = ["storage.postgres", "storage.s3", "storage.elasticsearch"];
