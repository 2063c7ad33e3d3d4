//! The daemon from outside: private servers, real processes, and what its documents promise.
//!
//! `tests/run.sh` installs what these tests need and runs them. One group alone (a file here):
//! `tests/run.sh outages`. Larger runs, by variables:
//!
//! | variable | default | |
//! |---|---|---|
//! | `CONSERVER_TEST_COUNT` | 500 | vCons of `processing` |
//! | `CONSERVER_TEST_OUTAGE_SECONDS` | 3 | how long PostgreSQL or Redis is stopped |
//! | `CONSERVER_TEST_REFUSED_SECONDS` | 5 | how long a storage answers 503 or refuses connections |
//! | `CONSERVER_TEST_BACKLOG` | 200 | vCons that wait for a storage that defers |
//! | `CONSERVER_TEST_KILLS` | 30 | kills of workers for each start method |
//! | `CONSERVER_TEST_DEPLOYED` | 80 | vCons through all Python modules of a deployment, while workers and hosts are killed |
//! | `CONSERVER_TEST_OTHERS` | 199 | vCons beside one that kills its workers |
//! | `CONSERVER_TEST_SHARED` | 20 | vCons that several have in hand at one time |
//! | `CONSERVER_TEST_POOLED` | 300 | vCons that four daemons write through a pooler of PostgreSQL |
//! | `CONSERVER_TEST_WORKERS` | 350 | workers of one forkserver |
//! | `CONSERVER_TEST_CUTS` | 40 | bytes at which connections to Redis are cut, each way; a large number is every byte |
//! | `CONSERVER_TEST_BUDGET` | 12 | seconds for which two instances share a budget |
//! | `CONSERVER_TEST_SEED` | by lot | which bytes these are |
//! | `CONSERVER_TORTURE_SECONDS` | 40 | of `torture` |
//! | `CONSERVER_TORTURE_SEED` | by lot | its random events |
//! | `CONSERVER_TEST_SCREENSHOTS` | | a folder for pictures of the monitor's page, and of `pictures` for the manual |
//! | `CONSERVER_TEST_VCONS` | the project's own | a folder of other vCons |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ai_documents;
mod ai_links;
mod alert_rules;
mod answers;
mod audit;
mod bad_configuration;
mod bad_input;
mod budgets;
mod check;
mod circuit_breaker;
mod claim_model;
mod claim_records;
mod config_commands;
mod connections;
mod context;
mod control;
mod deadlines;
mod dependencies;
mod differential;
mod disk_faults;
mod dlq;
mod documents;
mod elasticsearch;
mod elasticsearch_answers;
mod elasticsearch_faults;
mod env_file;
mod everything;
mod failover;
mod figures;
mod followers;
mod forged_lines;
mod forms;
mod get_delete;
mod harness;
mod holds;
mod identity;
mod inherited_claims;
mod instances;
mod interrupted;
mod keeper;
mod layout;
mod lease;
mod link_faults;
mod links_in_parts;
mod list_order;
mod local_links;
mod logging;
mod long_values;
mod migrate;
mod monitor_attacks;
mod monitor_http;
mod monitor_metrics;
mod other_users;
mod outages;
mod page;
mod pgbouncer;
mod pictures;
mod postgres_batches;
mod postgres_faults;
mod postgres_hosts;
mod postgres_late;
mod postgres_table;
mod postgres_tls;
mod process_faults;
mod process_model;
mod processing;
mod program_ends;
mod programs;
mod progress;
mod prompt_drains;
mod proxy;
mod python;
mod python_host;
mod python_reload;
mod queue_promises;
mod redis_cuts;
mod redis_faults;
mod redis_full;
mod redis_rights;
mod redis_storage;
mod redis_urls;
mod refusals;
mod restart;
mod round_trip;
mod routes;
mod routing;
mod runtime_folder;
mod s3_faults;
mod secrets;
mod shared_folder;
mod shared_vcons;
mod sizes;
mod stop;
mod storage_letters;
mod storage_outage;
mod submit;
mod supervision;
mod systemd;
mod telemetry;
mod top;
mod torture;
mod transcribe;
mod turns;
mod wakeup;
mod webhooks;
mod where_is;
mod wrong_keys;
