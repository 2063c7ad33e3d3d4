//! The worker daemon for vCon conversations.
//!
//! A *vCon* is a JSON document that holds a conversation. Producers store it in Redis and push
//! its UUID onto an ingress list; `conserver` takes it from there, runs the *chain* configured for
//! that list (its *links*, one after another), writes the vCon to every *storage* of the chain,
//! and pushes the UUID onto the chain's egress lists.
//!
//! ```text
//! conserver (supervisor: one thread, no Redis, no storage)
//!   ├─ worker 1 ── lane 1 … lane M   claim ─► load ─► links ─► storages ─► finish
//!   ├─ worker N ── lane 1 … lane M
//!   └─ monitor                       holds the instance's name, recovers dead instances,
//!                                    watches the ingress lists for idle lanes, answers by HTTP
//! ```
//!
//! The modules, in the order in which data flows; arrows point downwards only:
//!
//! - [`cli`]: one file for each command (`run`: all processes of the daemon); [`exit`]: how a command
//!   ends; [`logging`].
//! - [`settings`]: environment -> `Settings`, every variable in one table.
//! - [`config`]: `config.yml` -> `Config`, checked against the known links and storages.
//! - [`supervisor`]: starts, watches, replaces and drains the workers and the monitor.
//! - [`child`]: what each of those is told, and does first.
//! - [`scoreboard`]: what all processes show each other, in a file in the [`runtime_dir`].
//! - [`worker`]: lanes, and the way of a vCon from claim to finish; [`monitor`].
//! - [`view`]: what a daemon does, in words and numbers, as `status` and the monitor show it.
//! - [`queue`]: the work in Redis: claims, dead letters, recovery, each step one atomic script.
//! - [`link`] and [`storage`]: the steps of a chain and the places where vCons are kept; they
//!   know nothing of the queue, and share [`failure`], [`deadline`] and [`http_client`].
//! - [`redis_server`]: connections to Redis, for the queue and for a storage.
//! - [`vcon`]: the document: parse, normalise, downgrade, tags, merge.
//! - [`backoff`]: the pause between attempts, for everything that tries again.
//! - [`visible`]: text from elsewhere, as people may see it.
//! - [`secret`]: text that is never shown; [`spelling`]: what a wrong name was meant to be; [`procfs`]: what the system says of a process;
//!   [`sys`]: the only unsafe code.
//!
//! What must never happen is that a vCon is lost. A UUID is at any instant in exactly one of: an
//! ingress list, a claims hash, a dead letter queue, or finished. Nor is a change to one ever lost: the
//! finish replaces a document only if it is the one that was loaded, and else merges.

pub mod backoff;
pub mod child;
pub mod cli;
pub mod config;
pub mod deadline;
pub mod exit;
pub mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http_client;
pub mod link;
pub mod list_name;
pub mod logging;
pub mod monitor;
pub mod options;
pub mod procfs;
pub mod queue;
pub mod redis_server;
pub mod runtime_dir;
pub mod scoreboard;
pub mod secret;
pub mod settings;
pub mod spelling;
pub mod storage;
pub mod supervisor;
#[allow(unsafe_code)]
pub mod sys;
pub mod vcon;
pub mod view;
pub mod visible;
pub mod worker;
