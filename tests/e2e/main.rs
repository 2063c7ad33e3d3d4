//! The daemon from outside: private servers, real processes, and what its documents promise.
//!
//! `tests/run.sh` installs what these tests need and runs them. One area alone:
//! `cargo test --test e2e outages`. Larger runs: `CONSERVER_TEST_COUNT` vCons for those of
//! `processing` (500), `CONSERVER_TEST_OUTAGE_SECONDS` of a stopped PostgreSQL or Redis (3),
//! `CONSERVER_TEST_KILLS` of workers for each start method (40),
//! `CONSERVER_TEST_OTHERS` vCons beside one that kills its workers (199),
//! `CONSERVER_TORTURE_SECONDS` of `torture` (60), whose random events `CONSERVER_TORTURE_SEED`
//! repeats. Other vCons
//! than the project's own: a folder in `CONSERVER_TEST_VCONS`.
//! `processing` (500), `CONSERVER_TEST_OUTAGE_SECONDS` of a stopped PostgreSQL (3),
//! `CONSERVER_TEST_KILLS` of workers for each start method (40), `CONSERVER_TEST_WORKERS` of one
//! forkserver (350). Other vCons than the project's own: a folder in `CONSERVER_TEST_VCONS`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod bad_configuration;
mod bad_input;
mod check;
mod claim_model;
mod claim_records;
mod connections;
mod context;
mod dependencies;
mod disk_faults;
mod dlq;
mod documents;
mod failover;
mod harness;
mod holds;
mod instances;
mod lease;
mod logging;
mod outages;
mod postgres_faults;
mod postgres_table;
mod postgres_tls;
mod process_faults;
mod process_model;
mod processing;
mod proxy;
mod redis_cuts;
mod redis_faults;
mod redis_full;
mod restart;
mod routing;
mod s3_faults;
mod stop;
mod submit;
mod supervision;
mod systemd;
mod torture;
mod webhooks;
