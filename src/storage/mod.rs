//! Storages: one trait, one file or folder for each backend, and the table that lists them
//! ([`MODULES`]).
//!
//! To add a storage: a file here, a row in that table, a row in the documentation. A backend knows its
//! server and its layout, nothing of queues, workers or the supervisor. It belongs to one lane, connects
//! at its first use, keeps its connection, and is opened anew by the lane after a panic. What the errors
//! of its server mean for a vCon is in the `errors` module of each backend, or in its head.

mod elasticsearch;
pub mod fan_out;
mod file;
mod postgres;
mod python;
mod redis_storage;
mod s3;
mod timed_call;
pub(crate) mod webhook;

/// What fuzzers run.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::elasticsearch::fuzz::answer as elasticsearch;
    pub use super::postgres::fuzz::{answer as postgres, options as postgres_options};
    pub use super::s3::fuzz::answer as s3;
}

use std::time::Duration;

use chrono::NaiveDate;

pub use self::postgres::share_latest_refusal;
pub(crate) use self::python::PythonStorage;

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::scoreboard::AnswerTimes;
use crate::vcon::{LARGEST_DOCUMENT, Outgoing, VconId};

/// A place where vCons are kept.
///
/// Saving is idempotent: the same vCon saved twice leaves one copy, the later one. A call takes no
/// longer than its own limits and the deadline allow; one that reaches the deadline is a transient
/// failure.
pub trait Storage: Send {
    /// Stores the document, replacing what was kept under its id.
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure>;

    /// The document as it is stored, or `None` if there is none under this id.
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

    /// Removes the document under the id; it is no error if there is none.
    fn delete(&mut self, id: &VconId) -> Result<(), Failure>;

    /// Checks that the backend can be used now, within a few seconds and without writing a document.
    fn probe(&mut self) -> Result<(), Failure>;

    /// A second one for another thread, which probes what this one would; `None` if a new one does, as
    /// its probes depend on nothing that was refused.
    fn prober(&self) -> Option<Box<dyn Storage>> {
        None
    }

    /// Says whether the backend could be used, for a person who may be another user than the
    /// service: unlike [`Storage::probe`], this makes nothing that would stay.
    fn check(&mut self) -> Result<String, Failure> {
        self.probe().map(|()| "answers".to_owned())
    }

    /// The limits on connections of its server, as found by [`Storage::check`].
    fn connection_limits(&mut self) -> Vec<ConnectionLimit> {
        Vec::new()
    }

    /// From now on its saves may go to the server, or to the disk, together with those of other lanes of the
    /// worker that wait at the same time. Nothing changes where each save needs a request of its own.
    fn batch_saves(&mut self) {}

    /// From now on the time of each answer to a post is counted there, by its status. Nothing changes for one that
    /// posts nothing to a webhook.
    fn count_answers(&mut self, _: &AnswerTimes) {}

    /// The longest time that one save or get may take by its own limits.
    fn longest_call(&self) -> Duration;

    /// Whether saved documents can be read again. One that passes documents on, and keeps none, is not
    /// asked for them.
    fn keeps_documents(&self) -> bool {
        true
    }

    /// Whether it reads the vCon in Redis by itself, so that it must be written there before a save.
    fn reads_redis(&self) -> bool {
        false
    }

    /// Whether saved documents can be removed. One that passes documents on has nothing to remove.
    fn can_delete(&self) -> bool {
        true
    }
}

/// A limit on the connections of all processes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// What is limited: two storages with the same share the limit.
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

const fn module(name: &'static str, open: fn(&mut Options) -> Box<dyn Storage>) -> Module {
    Module { name, open }
}

/// Every storage there is, one line each.
pub const MODULES: &[Module] = &[
    module("storage.postgres", postgres::open),
    module("storage.s3", s3::open),
    module("storage.elasticsearch", elasticsearch::open),
    module("storage.file", file::open),
    module("storage.redis_storage", redis_storage::open),
    module("storage.webhook", webhook::open),
];

/// The storages that get the version of `EGRESS_FORMAT_VERSION`; the others get that of Redis.
pub const DOWNGRADED: [&str; 3] = ["storage.postgres", "storage.s3", "storage.elasticsearch"];

/// Storages of the existing deployment that are not here: the name in `config.yml`, and what to do instead.
pub const NOT_BUILT_IN: &[(&str, &str)] = &[
    (
        "storage.mongo",
        "the client library of MongoDB works only inside an asynchronous runtime, which this daemon \
         does without; use `storage.postgres`, whose column `vcon_json` can be queried and indexed",
    ),
    (
        "storage.sftp",
        "the SSH libraries either work only inside an asynchronous runtime, which this daemon does \
         without, or need OpenSSL and an unreleased version of libssh2; use `storage.file` with a \
         `path` on a file system mounted with sshfs",
    ),
    (
        "storage.vcon_mcp",
        "its service takes vCons as JSON; use `storage.webhook` with `<base_url>/vcons` among the \
         `webhook-urls`, and `Authorization: Bearer <api_key>` among the `headers`",
    ),
    (
        "storage.supabase_direct",
        "it fills tables of its own; use `storage.postgres`, which keeps whole vCons in one table of \
         the same database",
    ),
    (
        "storage.milvus",
        "it has OpenAI compute embeddings of each vCon; let a program of your own do that with the \
         vCons of an egress list",
    ),
    (
        "storage.chatgpt_files",
        "it uploads each vCon to OpenAI; let a program of your own do that with the vCons of an \
         egress list",
    ),
    (
        "storage.dataverse",
        "it needs tokens of Microsoft's login service; use `storage.webhook` with a service that \
         writes to Dataverse",
    ),
    (
        "storage.spaceandtime",
        "it needs the client library of Space and Time; use `storage.webhook` with a service that \
         writes there",
    ),
    (
        "storage.scitt",
        "it signs and registers statements about a vCon, and keeps none; let a program of your own do \
         that with the vCons of an egress list",
    ),
];
