//! `conserver demo`: the whole job on sample vCons, with nothing but a `redis-server` binary.
//!
//! A private Redis on a Unix socket, this same program as the daemon, chain tag -> file storage,
//! all in one temporary folder. What is shown is read from the daemon's own log.

mod processes;
mod report;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::RecvTimeoutError;
use tempfile::TempDir;

use super::interruption;
use super::shown::{complain, say};
use super::submit;
use crate::config::ListName;
use crate::exit::Exit;
use crate::queue::{QueueError, Server, Submitter};
use crate::settings::{RedisFormat, RedisUrl};
use crate::vcon::{Outgoing, VconId};
use processes::{Daemon, Redis};
use report::Report;

const SAMPLES: &[&str] = &[
    include_str!(
        "../../../packaging/examples/vcons/25d53a9b-c0ce-40be-a649-324f8d9fa480.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/292d6185-bb23-4a5d-b2c9-df840d49dafa.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/4ae53be2-d516-4d59-bfcf-a22bbd8d1383.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/5dde19c0-4053-4c3f-a853-db71cf5081df.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/6819d7dd-ddda-4781-a90b-84916fa5beec.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/8097c4d4-b04c-4848-b53b-7c105410cf0d.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/a47ef570-c49d-4e82-a95a-bc306ce65d21.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/ab039aea-b989-4424-81b1-61eab92fd76d.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/fc46348b-3f80-4a48-a3c3-910852a04575.vcon.json"
    ),
    include_str!(
        "../../../packaging/examples/vcons/fd050974-282c-446d-9340-9677c13ab2bc.vcon.json"
    ),
];

/// No vCon finished for so long: something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take until a signal is noticed.
const BLINK: Duration = Duration::from_millis(100);

/// How large a demonstration.
#[derive(Debug, Args)]
pub struct Demo {
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

impl Demo {
    /// Runs the demonstration and prints what happened.
    pub fn run(&self) -> Exit {
        match self.play() {
            Ok(()) => Exit::Ok,
            Err(error) => {
                complain(&error);
                match error {
                    DemoError::NoRedis | DemoError::Queue(_) => Exit::Unavailable,
                    _ => Exit::Internal,
                }
            }
        }
    }

    fn play(&self) -> Result<(), DemoError> {
        let system = |what| move |error| DemoError::System(what, error);
        let mut folder = tempfile::Builder::new()
            .prefix("conserver-demo-")
            .tempdir()
            .map_err(system("make a temporary folder"))?;
        folder.disable_cleanup(self.keep);
        let files = folder.path().join("vcons");
        say(format_args!(
            "Starting a private Redis, and storing files under {}",
            files.display()
        ));
        // From here on there is something to tidy up.
        let interrupted = interruption().map_err(system("listen for signals"))?;
        let redis = Redis::start(folder.path())?;
        let vcons = self.samples()?;
        submit_all(&redis, &vcons, &interrupted)?;
        say(format_args!(
            "Submitted {} vCons to list default",
            vcons.len()
        ));

        let config = write_config(&folder, &files).map_err(system("write the configuration"))?;
        let start = Instant::now();
        let mut daemon = Daemon::start(folder.path(), &config, redis.url(), self.workers)
            .map_err(system("start the daemon"))?;
        let report = follow(&daemon, vcons.len(), start, &interrupted)?;
        let memory = daemon.memory_of_workers();
        daemon.stop()?;
        report.print(&memory, stored(&files).map_err(system("count the files"))?);
        if self.keep {
            say(format_args!("The files are left under {}", files.display()));
        }
        report.complete(vcons.len()).map_err(DemoError::Daemon)
    }

    /// Every sample so many times, each with an identity of its own.
    fn samples(&self) -> Result<Vec<Outgoing>, DemoError> {
        let mut vcons = Vec::new();
        for _ in 0..self.count {
            for text in SAMPLES {
                let mut sample = submit::vcon(text).map_err(DemoError::Sample)?;
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
    redis: &Redis,
    vcons: &[Outgoing],
    interrupted: &AtomicBool,
) -> Result<(), DemoError> {
    let url: RedisUrl = redis.url().parse().map_err(|_| DemoError::NoRedis)?;
    let list: ListName = "default".parse().map_err(|_| DemoError::NoRedis)?;
    let server = Server::new(&url).map_err(QueueError::from)?;
    let lease = server.connect("conserver:demo").map_err(QueueError::from)?;
    let mut submitter = Submitter::new(lease, list, "vcons".to_owned(), None, RedisFormat::Plain)?;
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

fn write_config(folder: &TempDir, files: &Path) -> io::Result<std::path::PathBuf> {
    let path = folder.path().join("config.yml");
    // A JSON string is a YAML string, whatever characters the path has.
    let files = serde_json::to_string(&files.to_string_lossy())?;
    let text = format!(
        "links: {{tagger: {{module: links.tag, options: {{tags: [demo]}}}}}}\n\
         storages: {{files: {{module: storage.file, options: {{path: {files}}}}}}}\n\
         chains:\n  demo: {{links: [tagger], storages: [files], ingress_lists: [default], \
         egress_lists: [done]}}\n"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Reads the daemon's log until every vCon has come to its end.
fn follow(
    daemon: &Daemon,
    vcons: usize,
    start: Instant,
    interrupted: &AtomicBool,
) -> Result<Report, DemoError> {
    let mut report = Report::new(start);
    let progress = submit::progress(vcons);
    let mut silent_since = Instant::now();
    while report.ended() < vcons {
        if interrupted.load(Ordering::Relaxed) {
            progress.finish_and_clear();
            return Err(DemoError::Interrupted);
        }
        let line = match daemon.log().recv_timeout(BLINK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if silent_since.elapsed() < PATIENCE => continue,
            Err(_) => return Err(DemoError::Daemon(report.last_words().to_owned())),
        };
        silent_since = Instant::now();
        report.note(&line);
        progress.set_position(report.ended() as u64);
    }
    progress.finish_and_clear();
    report.stop_clock();
    Ok(report)
}

fn stored(folder: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        count += if path.is_dir() { stored(&path)? } else { 1 };
    }
    Ok(count)
}

/// Waits for a condition that is about to come true.
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
