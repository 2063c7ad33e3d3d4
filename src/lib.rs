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
//! A vCon is never lost. Its UUID is at any instant in exactly one of: an ingress list, a claims hash,
//! a dead letter queue, or it is finished. Nor is a change to one ever lost: the finish replaces a
//! document only if it is the one that was loaded, and otherwise merges.
//!
//! This page says which files do that, and which to touch for a link, a storage or a setting. Files
//! are named from the top of the repository.
//!
//! # The way of a vCon
//!
//! 1. **It comes in.** A producer, `conserver submit` (`src/cli/submit/mod.rs`) or a follower
//!    (`src/monitor/followers/mod.rs`) writes the document and pushes the UUID onto an ingress list:
//!    `src/queue/intake.rs`.
//! 2. **A lane wakes.** The monitor watches the lists (`src/monitor/ingress_watch.rs`) and adds wake-up tokens
//!    (`src/queue/wake_list.rs`), for which idle lanes wait (`src/worker/wakeup.rs`).
//! 3. **The lane claims it**, in `src/worker/lane.rs`. `src/queue/claim.rs` calls
//!    `src/queue/scripts/claim.lua`: in one step the UUID moves from the list to the claims hash, and the
//!    document comes back.
//! 4. **The pipeline loads it**, in `src/worker/pipeline.rs`, which tells the rest of the way. `src/worker/job.rs`
//!    holds the document and how far it has come. `src/vcon/document.rs` parses it, `src/vcon/normalise.rs` gives
//!    old properties their names of today. If Redis no longer has it, it is restored from a storage.
//! 5. **Its links run**, one after another, in memory: `src/worker/links.rs`. `src/worker/modules.rs` has them open;
//!    `src/link/mod.rs` has the trait, the table of all links, and a file for each beside it. One that is not
//!    built in is a Python module (`src/link/python.rs`), as a storage may be (`src/storage/python.rs`): the
//!    lane's host (`src/python/host.rs`) has `packaging/python/conserver_host.py` call it, in an interpreter
//!    that only this lane uses. `src/worker/hooks.rs` calls the deployment's hooks and tracers around the links.
//! 6. **The storages save it**, at the same time: `src/worker/storages.rs`, `src/storage/fan_out.rs`.
//!    `src/storage/mod.rs` has the trait and the table, with a file or folder for each beside it.
//!    `src/vcon/outgoing.rs` writes the version that each of them gets.
//! 7. **It is finished.** `src/queue/finish.rs` calls `src/queue/scripts/finish.lua`: in one step the
//!    document is replaced, the UUID is pushed onto the egress lists, and the claim ends. If somebody
//!    has changed the document meanwhile, `src/vcon/merge/mod.rs` merges first.
//!
//! ## If something goes wrong
//!
//! - **A link or storage fails.** Its `errors.rs`, or `src/http_client/status.rs` (what a 429 means), says
//!   what the error means, as a kind of `src/failure.rs`. `src/worker/retry.rs` tries again, with the pauses
//!   of `src/backoff.rs`, until the deadline of `src/deadline.rs`.
//! - **It still fails.** `src/worker/backend_health.rs` tells a bad vCon from a bad backend,
//!   `src/worker/circuit_breaker.rs` puts the chain on hold, `src/worker/release.rs` decides how the claim
//!   ends: back to its list, or a dead letter. `src/queue/release.rs` does that in Redis.
//! - **It is a dead letter.** `src/queue/dead_letters.rs` lists, retries and discards it, for
//!   `src/cli/dlq/mod.rs`; `src/queue/dead_letter_groups.rs` groups those that failed alike.
//! - **Python or a program hangs or dies.** `src/program/process.rs` kills it with all that it has started,
//!   `src/program/mod.rs` says whose fault it is, and `src/program/stream.rs` starts it again for the next call.
//!   `src/program/reaper.rs` kills what a dead worker leaves.
//! - **A Python module is missing.** `src/config/python.rs` has an interpreter import all of them, before the
//!   daemon starts and, in a process of `src/supervisor/candidate.rs`, before a changed configuration is in
//!   force. `src/python/pip.rs` installs what is missing.
//! - **The worker dies.** `src/supervisor/children.rs` starts another as `src/supervisor/restart_policy.rs`
//!   decides, by a method of `src/supervisor/start_method.rs`. `src/queue/recovery.rs` returns its claims.
//!   `src/worker/quarantine.rs` works on suspects alone.
//! - **The host dies.** The lease on the instance's name runs out (`src/queue/lease.rs`), and the monitor
//!   of another daemon returns its claims (`src/monitor/mod.rs`).
//! - **The wait is long.** `src/monitor/ttl.rs` keeps the documents of waiting vCons from expiring.
//! - **The daemon stops, or gets a new configuration.** `src/supervisor/drain.rs`,
//!   `src/supervisor/rolling_restart.rs`.
//!
//! # The modules
//!
//! Each uses only modules that stand after it.
//!
//! - [`cli`]: one file for each command (`run`: all processes of the daemon).
//! - [`supervisor`]: starts, watches, replaces and drains the workers and the monitor.
//! - [`monitor`]: the process beside the workers, and its HTTP.
//! - [`worker`]: lanes, and the way of a vCon from claim to finish.
//! - [`telemetry`]: traces and metrics for a collector of OpenTelemetry.
//! - [`view`]: what a daemon does, in words and numbers, as `status` and the monitor show it.
//! - [`child`]: what a child process of the supervisor is told, and does first.
//! - [`queue`]: the work in Redis: claims, dead letters, recovery, each step one atomic script.
//! - [`config`]: `config.yml` -> `Config`, checked against the known links and storages.
//! - [`link`] and [`storage`]: the steps of a chain and the places where vCons are kept; they know nothing of
//!   the queue.
//! - [`python`]: the host of Python modules, one process for each lane; [`program`]: programs that links run.
//! - [`options`]: one mapping of `config.yml`, read with every fault recorded.
//! - [`redis_server`] and [`http_client`]: connections, for the queue, links and storages; [`failure`]: what
//!   went wrong, and whose fault it is; [`deadline`]: by when a vCon must be done.
//! - [`scoreboard`]: what all processes show each other, in a file in the [`runtime_dir`].
//! - [`logging`]: log lines for people, or as JSON.
//! - [`settings`]: environment -> `Settings`, every variable in one table.
//! - [`vcon`]: the document: parse, normalise, downgrade, tags, merge.
//! - [`backoff`]: the pause between attempts; [`exit`]: exit codes; [`list_name`]: the name of a list, checked;
//!   [`visible`]: text from elsewhere, made fit for people; [`secret`]: text that is never shown; [`spelling`]:
//!   what a wrong name was meant to be; [`lock`]: locks that outlive a panic; [`procfs`]: facts about a
//!   process; [`sys`]: the only unsafe code.
//!
//! # To follow one vCon
//!
//! In a running daemon: `conserver where UUID` tells where it is (`src/queue/find.rs`), `conserver status` shows what
//! each lane has in work, `conserver get UUID` the document, `conserver dlq show UUID` why it is a dead letter. Each line of the log about a vCon names it
//! (`vcon_id` with `CONSERVER_LOG_FORMAT=json`); `LOG_LEVEL=DEBUG` has a line for each attempt.
//!
//! In the code: read `Lane::work` (`src/worker/lane.rs`), then `Pipeline::run` (`src/worker/pipeline.rs`)
//! and the functions that it calls, in their order. Each call of `Queue` there is one script of
//! `src/queue/scripts`.
//!
//! In a test: `tests/run.sh processing` runs the end-to-end tests of that way. `tests/e2e/processing.rs` shows
//! how a test starts servers and a daemon, submits vCons and waits for them.
//!
//! # To add a link
//!
//! A link in another language, and a Python module of an existing deployment, need no change here: see
//! conserver-links(7). To build one in:
//!
//! 1. `src/link/NAME.rs`: the head of the file says what the link reads and writes. `open` reads the options
//!    ([`options::Options`] has an accessor for each type, and records what is wrong) and returns a struct,
//!    for which [`link::Link::run`] does the work. `src/link/tag.rs` is one that changes the vCon,
//!    `src/link/tag_router.rs` reads it, `src/link/diet.rs` calls a server.
//!    - [`vcon::Vcon`] has [`dialog`](vcon::Vcon::dialog), [`analysis`](vcon::Vcon::analysis),
//!      [`attachments`](vcon::Vcon::attachments), [`tags`](vcon::Vcon::tags),
//!      [`add_tags`](vcon::Vcon::add_tags), [`add_attachment`](vcon::Vcon::add_attachment) and
//!      [`add_analysis`](vcon::Vcon::add_analysis). Their errors pass on with `?` and make a dead letter.
//!    - A link that does nothing but change the vCon returns `true` from [`link::Link::rewrites`].
//!    - A link that calls a server gives each call a limit from the deadline of its
//!      [`link::Context`], returns that limit from [`link::Link::longest_call`], and asks the server in
//!      [`link::Link::probe`]. [`failure::FailureKind`] says which error is which.
//!    - Its unit tests open and run it by `link::testing`.
//! 2. `src/link/mod.rs`: `mod NAME;` and the line `module("links.NAME", NAME::open),` in
//!    [`link::MODULES`].
//! 3. `packaging/manual/conserver.yml.5.md`: a section `### links.NAME` with a table of its options and an
//!    example, and its name in the contents. `cargo test --test packaging` says what is missing, and runs
//!    the example through `check`. The schema of config.yml follows from the accessors and the table.
//!
//! That is all it needs. `CHANGELOG.md` gets a line, and `tests/e2e/local_links.rs` (or `tests/e2e/link_faults.rs`,
//! if there is a server) a test.
//!
//! # To add a storage
//!
//! 1. `src/storage/NAME.rs`: the head says what the layout is and what the options are. `open` reads the
//!    options and does not connect yet; [`storage::Storage`] has the rest. `save` is idempotent, every call
//!    ends by its own limit and the deadline, and every error of the server becomes a
//!    [`failure::FailureKind`]: what concerns all vCons must not be blamed on one.
//!    `src/storage/redis_storage.rs` is the shortest, `src/storage/s3/mod.rs` one with a client library.
//! 2. `src/storage/mod.rs`: `mod NAME;` and a line in [`storage::MODULES`]. If it gets the version of
//!    `EGRESS_FORMAT_VERSION`, its name in [`storage::DOWNGRADED`] too.
//! 3. `packaging/manual/conserver.yml.5.md`: a section `### storage.NAME`, as for a link.
//! 4. `tests/e2e/NAME.rs` and its `mod` line in `tests/e2e/main.rs`: what a save leaves, what happens while the
//!    server is down, slow, or refuses. A server for it goes to `tests/e2e/harness`, its installation to
//!    `tests/run.sh`.
//!
//! # To add a setting
//!
//! 1. `src/settings/table.rs`: a row with its default, its values and what it does.
//! 2. `src/settings/mod.rs`: a field of [`settings::Settings`], and the line in `Settings::read` that reads
//!    it.
//! 3. `src/settings/tests.rs`: its default and its values; the tests there and of the manual say what is
//!    missing.
//! 4. `cargo run --example generate -- --update-manual` writes the table of conserver-settings(7).
//!
//! The settings file of the packages and the warning of misspelt variables follow from the table. To add a
//! metric, it is a row of the table in `src/monitor/server/metrics.rs`, and the same command.

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
pub mod lock;
pub mod logging;
pub mod monitor;
pub mod options;
pub mod procfs;
pub mod program;
pub mod python;
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
pub mod telemetry;
pub mod vcon;
pub mod view;
pub mod visible;
pub mod worker;
