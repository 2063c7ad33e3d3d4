//! `conserver demo`: the whole job on sample vCons, with nothing but a `redis-server` binary.
//!
//! A private Redis on a Unix socket, this same program as the daemon, chain tag -> file storage,
//! all in one temporary folder. The result is read from the daemon's own log.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::Table;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use super::interruption;
use super::output::{counted, eprint_line, megabytes, print_line, print_lines, progress_bar};
use super::submit::parse_vcon;
use crate::child::MONITOR_SLOT;
use crate::config::ListName;
use crate::exit::Exit;
use crate::queue::{QueueError, Server, Submitter};
use crate::scoreboard::{SlotView, Snapshot};
use crate::settings::{RedisFormat, RedisUrl};
use crate::sys;
use crate::vcon::{Outgoing, VconId};

const SAMPLES: &[&str] = &[
    include_str!("../../packaging/examples/vcons/25d53a9b-c0ce-40be-a649-324f8d9fa480.vcon.json"),
    include_str!("../../packaging/examples/vcons/292d6185-bb23-4a5d-b2c9-df840d49dafa.vcon.json"),
    include_str!("../../packaging/examples/vcons/4ae53be2-d516-4d59-bfcf-a22bbd8d1383.vcon.json"),
    include_str!("../../packaging/examples/vcons/5dde19c0-4053-4c3f-a853-db71cf5081df.vcon.json"),
    include_str!("../../packaging/examples/vcons/6819d7dd-ddda-4781-a90b-84916fa5beec.vcon.json"),
    include_str!("../../packaging/examples/vcons/8097c4d4-b04c-4848-b53b-7c105410cf0d.vcon.json"),
    include_str!("../../packaging/examples/vcons/a47ef570-c49d-4e82-a95a-bc306ce65d21.vcon.json"),
    include_str!("../../packaging/examples/vcons/ab039aea-b989-4424-81b1-61eab92fd76d.vcon.json"),
    include_str!("../../packaging/examples/vcons/fc46348b-3f80-4a48-a3c3-910852a04575.vcon.json"),
    include_str!("../../packaging/examples/vcons/fd050974-282c-446d-9340-9677c13ab2bc.vcon.json"),
];

/// The daemon has failed if no vCon finishes for this long.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// A signal is noticed after at most this long.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// The size of the demonstration.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How often each of the ten samples is submitted, with a fresh UUID every time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,

    /// Worker processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,

    /// Leave the stored files where they are
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("could not {0}: {1}")]
    System(&'static str, #[source] io::Error),
    #[error(
        "there is no redis-server in PATH: install the package redis-server (Debian, Ubuntu) or redis (Fedora, RHEL)"
    )]
    NoRedis,
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("a sample {0}")]
    Sample(String),
    #[error("a sample was refused: {0}")]
    Refused(String),
    #[error("interrupted; nothing is left of the demonstration")]
    Interrupted,
    #[error("the daemon did not finish its work: {0}")]
    Daemon(String),
}

impl DemoArgs {
    /// Runs the demonstration and prints what happened.
    pub fn run(&self) -> Exit {
        match self.run_demo() {
            Ok(()) => Exit::Ok,
            Err(error) => {
                eprint_line(&error);
                match error {
                    DemoError::NoRedis | DemoError::Queue(_) => Exit::Unavailable,
                    _ => Exit::Internal,
                }
            }
        }
    }

    fn run_demo(&self) -> Result<(), DemoError> {
        let system = |what| move |error| DemoError::System(what, error);
        let mut folder = tempfile::Builder::new()
            .prefix("conserver-demo-")
            .tempdir()
            .map_err(system("make a temporary folder"))?;
        folder.disable_cleanup(self.keep);
        let files = folder.path().join("vcons");
        print_line(format_args!(
            "Starting a private Redis, and storing files under {}",
            files.display()
        ));
        // From here on a signal must not end it without a clean-up.
        let interrupted = interruption().map_err(system("listen for signals"))?;
        let redis = DemoRedis::start(folder.path())?;
        let vcons = self.samples()?;
        submit_all(&redis, &vcons, &interrupted)?;
        print_line(format_args!(
            "Submitted {} to list default",
            counted(vcons.len(), "vCon")
        ));

        let config = write_config(&folder, &files).map_err(system("write the configuration"))?;
        let start = Instant::now();
        let mut daemon = DemoDaemon::start(folder.path(), &config, redis.url(), self.workers)
            .map_err(system("start the daemon"))?;
        let report = follow(&daemon, vcons.len(), start, &interrupted)?;
        let memory = daemon.memory_of_workers();
        daemon.stop()?;
        report.print(&memory, stored(&files).map_err(system("count the files"))?);
        if self.keep {
            print_line(format_args!("The files are left under {}", files.display()));
        }
        report
            .check_complete(vcons.len())
            .map_err(DemoError::Daemon)
    }

    /// Every sample `count` times, each with a UUID of its own.
    fn samples(&self) -> Result<Vec<Outgoing>, DemoError> {
        let mut vcons = Vec::new();
        for _ in 0..self.count {
            for text in SAMPLES {
                let mut sample = parse_vcon(text).map_err(DemoError::Sample)?;
                let fresh = VconId::random();
                let json = sample.json.replace(sample.id.as_str(), fresh.as_str());
                sample.json = Arc::new(json);
                sample.id = fresh;
                vcons.push(sample);
            }
        }
        Ok(vcons)
    }
}

fn submit_all(
    redis: &DemoRedis,
    vcons: &[Outgoing],
    interrupted: &AtomicBool,
) -> Result<(), DemoError> {
    let url: RedisUrl = redis.url().parse().map_err(|_| DemoError::NoRedis)?;
    let list: ListName = "default".parse().map_err(|_| DemoError::NoRedis)?;
    let server = Server::new(&url).map_err(QueueError::from)?;
    let connection = server.connect("conserver:demo").map_err(QueueError::from)?;
    let mut submitter = Submitter::new(
        connection,
        list,
        "vcons".to_owned(),
        None,
        RedisFormat::Plain,
    )?;
    for batch in vcons.chunks(100) {
        if interrupted.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        let refusals = submitter.submit(batch)?;
        if let Some(why) = refusals.into_iter().flatten().next() {
            return Err(DemoError::Refused(why));
        }
    }
    Ok(())
}

fn write_config(folder: &TempDir, files: &Path) -> io::Result<PathBuf> {
    let path = folder.path().join("config.yml");
    // A JSON string is a YAML string, whatever characters the path has.
    let files = serde_json::to_string(&files.to_string_lossy())?;
    let text = format!(
        "links: {{tagger: {{module: links.tag, options: {{tags: [demo]}}}}}}\n\
         storages: {{files: {{module: storage.file, options: {{path: {files}}}}}}}\n\
         chains:\n  demo: {{links: [tagger], storages: [files], ingress_lists: [default], \
         egress_lists: [done]}}\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// Reads the daemon's log until every vCon is finished or has failed.
fn follow(
    daemon: &DemoDaemon,
    vcons: usize,
    start: Instant,
    interrupted: &AtomicBool,
) -> Result<DemoReport, DemoError> {
    let mut report = DemoReport::new(start);
    let bar = progress_bar(vcons);
    let mut last_line_at = Instant::now();
    while report.ended() < vcons {
        if interrupted.load(Ordering::Relaxed) {
            bar.finish_and_clear();
            return Err(DemoError::Interrupted);
        }
        let line = match daemon.log().recv_timeout(SIGNAL_CHECK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if last_line_at.elapsed() < STALL_LIMIT => continue,
            Err(_) => return Err(DemoError::Daemon(report.last_message().to_owned())),
        };
        last_line_at = Instant::now();
        report.add_line(&line);
        bar.set_position(report.ended() as u64);
    }
    bar.finish_and_clear();
    report.stop_clock();
    Ok(report)
}

fn stored(folder: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        count += if path.is_dir() { stored(&path)? } else { 1 };
    }
    Ok(count)
}

/// Waits until the condition holds; returns whether it does within the limit.
fn wait_for(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// The name of the instance.
const INSTANCE: &str = "demo";

/// The time limit for the start and the end of a process.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);

/// A private Redis on a Unix socket that keeps nothing on disk; killed on drop.
struct DemoRedis {
    process: Child,
    url: String,
}

impl DemoRedis {
    pub fn start(folder: &Path) -> Result<Self, DemoError> {
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        // Signals for this process do not reach it; it ends with this process.
        sys::bind(&mut command, None);
        let process = command
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => DemoError::NoRedis,
                _ => DemoError::System("start redis-server", error),
            })?;
        let url = format!("unix://{}", socket.display());
        let mut redis = Self { process, url };
        let up = wait_for(PROCESS_LIMIT, || {
            UnixStream::connect(&socket).is_ok() || !matches!(redis.process.try_wait(), Ok(None))
        });
        if up && matches!(redis.process.try_wait(), Ok(None)) {
            return Ok(redis);
        }
        Err(DemoError::System(
            "start redis-server",
            io::Error::other("it ended at once"),
        ))
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for DemoRedis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program as the daemon, with its log as a channel of lines; killed on drop.
struct DemoDaemon {
    process: Child,
    log: Receiver<String>,
    scoreboard: PathBuf,
}

impl DemoDaemon {
    pub fn start(folder: &Path, config: &Path, redis: &str, workers: u32) -> io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        sys::bind(&mut command, None);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CONSERVER_") || text.starts_with("VCON_") {
                command.env_remove(&name);
            }
        }
        let mut process = command
            .arg("run")
            // Away from a `.env`.
            .current_dir(folder)
            .env_remove("EGRESS_FORMAT_VERSION")
            .env("REDIS_URL", redis)
            .env("CONSERVER_CONFIG_FILE", config)
            .env("CONSERVER_WORKERS", workers.to_string())
            .env("CONSERVER_INSTANCE", INSTANCE)
            .env("RUNTIME_DIRECTORY", folder.join("run"))
            .env("CONSERVER_HTTP", "off")
            .env("CONSERVER_LOG_FORMAT", "json")
            .env("LOG_LEVEL", "INFO")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let (send, log) = unbounded();
        if let Some(stderr) = process.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let scoreboard = folder.join(format!("run/{INSTANCE}.scoreboard"));
        Ok(Self {
            process,
            log,
            scoreboard,
        })
    }

    /// The lines of its log.
    pub fn log(&self) -> &Receiver<String> {
        &self.log
    }

    /// The memory of each worker, in bytes; empty if unknown.
    pub fn memory_of_workers(&self) -> Vec<u64> {
        let Ok(snapshot) = Snapshot::take(&self.scoreboard) else {
            return Vec::new();
        };
        let workers = snapshot.slots.iter().skip(MONITOR_SLOT + 1);
        workers.filter_map(SlotView::memory).collect()
    }

    /// Drains it, as systemd would.
    pub fn stop(&mut self) -> Result<(), DemoError> {
        self.signal(Signal::SIGTERM);
        let mut code = None;
        wait_for(PROCESS_LIMIT, || {
            code = self.process.try_wait().ok().flatten();
            code.is_some()
        });
        match code {
            Some(code) if code.success() => Ok(()),
            Some(code) => Err(DemoError::Daemon(code.to_string())),
            None => Err(DemoError::Daemon("it did not stop".to_owned())),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            sys::kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for DemoDaemon {
    fn drop(&mut self) {
        // Its workers end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The fields of a log line that are used here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogLine {
    levelname: String,
    message: String,
    vcon_processing_time: Option<f64>,
    storage_name: Option<String>,
    storage_processing_time: Option<f64>,
}

/// The result so far, read from the log.
struct DemoReport {
    start: Instant,
    took: Duration,
    finished: usize,
    failed: usize,
    storages: BTreeMap<String, Vec<f64>>,
    last_message: String,
}

impl DemoReport {
    /// An empty report of a demonstration that began at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            took: Duration::ZERO,
            finished: 0,
            failed: 0,
            storages: BTreeMap::new(),
            last_message: String::new(),
        }
    }

    /// Adds a line of the log.
    pub fn add_line(&mut self, text: &str) {
        let Ok(line) = serde_json::from_str::<LogLine>(text) else {
            text.clone_into(&mut self.last_message);
            return;
        };
        if line.vcon_processing_time.is_some() {
            if line.levelname == "ERROR" {
                self.failed += 1;
            } else {
                self.finished += 1;
            }
        }
        if let (Some(name), Some(seconds)) = (line.storage_name, line.storage_processing_time) {
            self.storages.entry(name).or_default().push(seconds);
        }
        self.last_message = line.message;
    }

    /// How many vCons are finished or have failed.
    pub fn ended(&self) -> usize {
        self.finished + self.failed
    }

    /// The latest message of the log.
    pub fn last_message(&self) -> &str {
        &self.last_message
    }

    /// Ends the measured time.
    pub fn stop_clock(&mut self) {
        self.took = self.start.elapsed();
    }

    /// An error unless all `vcons` were finished.
    pub fn check_complete(&self, vcons: usize) -> Result<(), String> {
        if self.finished == vcons {
            return Ok(());
        }
        Err(format!("{} of {vcons} vCons were finished", self.finished))
    }

    /// Prints the table.
    pub fn print(&self, memory: &[u64], files: usize) {
        let seconds = self.took.as_secs_f64();
        let mut rows = vec![
            ("vCons finished".to_owned(), self.finished.to_string()),
            (
                "vCons in the dead letter queue".to_owned(),
                self.failed.to_string(),
            ),
            ("files stored".to_owned(), files.to_string()),
            (
                "seconds, start of the workers included".to_owned(),
                format!("{seconds:.2}"),
            ),
            (
                "vCons/s".to_owned(),
                format!("{:.0}", self.finished as f64 / seconds),
            ),
        ];
        for (name, times) in &self.storages {
            let (p50, p99) = (percentile(times, 0.50) * 1e3, percentile(times, 0.99) * 1e3);
            let text = format!("p50 {p50:.2} ms, p99 {p99:.2} ms");
            rows.push((format!("latency of storage {name}"), text));
        }
        if let Some(most) = memory.iter().max() {
            let average = memory.iter().sum::<u64>() / memory.len() as u64;
            let text = format!("{}, most {}", megabytes(average), megabytes(*most));
            rows.push((
                format!(
                    "memory per worker (PSS, {})",
                    counted(memory.len(), "worker")
                ),
                text,
            ));
        }
        let mut table = Table::new();
        for (name, value) in rows {
            table.add_row([name, value]);
        }
        print_lines(table);
    }
}

/// The value below which the given share of `times` lies (nearest rank).
fn percentile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (percentile(&times, 0.50), percentile(&times, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!(
            (percentile(&[7.0], 0.50), percentile(&[], 0.99)),
            (7.0, 0.0)
        );
    }
}
