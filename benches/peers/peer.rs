//! Who is measured: what starts each, hands it jobs, and tells what it has not finished.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use redis::Connection;

use super::harness::{PATIENCE, cached_if_there};
use super::service::Site;

/// The name of this daemon's instance.
const INSTANCE: &str = "bench";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// This daemon
    Conserver,
    /// BullMQ, from npm
    Bullmq,
    /// dramatiq, from PyPI
    Dramatiq,
    /// RQ, from PyPI
    Rq,
    /// The existing Python worker daemon, in the folder that CONSERVER_PEER names
    Existing,
}

/// Processes, and vCons that each has in work at once.
#[derive(Clone, Copy)]
pub struct Shape {
    pub processes: usize,
    pub concurrency: usize,
}

impl Shape {
    pub fn slots(self) -> usize {
        self.processes * self.concurrency
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.processes, self.concurrency)
    }
}

impl Peer {
    /// All but this daemon.
    pub const OTHERS: [Self; 4] = [Self::Bullmq, Self::Dramatiq, Self::Rq, Self::Existing];

    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conserver => "conserver",
            Self::Bullmq => "BullMQ",
            Self::Dramatiq => "dramatiq",
            Self::Rq => "RQ",
            Self::Existing => "Python worker",
        }
    }

    /// How it is set up, where that is not its default.
    pub fn remark(self) -> &'static str {
        match self {
            Self::Conserver => "as it comes",
            Self::Bullmq => {
                "processes of Node's `cluster`, which starts a dead one again; `concurrency`; `removeOnComplete`; \
                 automatic pipelining for the job's commands, one libuv thread for each slot"
            }
            Self::Dramatiq => {
                "processes x threads; ends when one of its processes dies, and is started again after 100 ms, as \
                 systemd does"
            }
            Self::Rq => {
                "`rq worker-pool` of `SimpleWorker`, which does not fork for each job and has no threads: a process \
                 for each slot; `result_ttl=0`, `retry=Retry(max=3)`, log level WARNING"
            }
            Self::Existing => {
                "processes x threads; announces before it saves, syncs no files, and takes vCons off their list \
                 without an acknowledgement"
            }
        }
    }

    /// Its processes and what they do at once, for so many slots.
    pub fn shape(self, slots: usize) -> Shape {
        let processes = if self == Self::Rq { slots } else { 4 };
        Shape {
            processes,
            concurrency: slots / processes,
        }
    }

    /// Why it cannot be measured, and what to do about that.
    pub fn missing(self) -> Option<String> {
        let name = self.name();
        match self {
            Self::Conserver => None,
            Self::Bullmq if self.libraries().is_some() && is_in_path("node") => None,
            Self::Dramatiq | Self::Rq if self.libraries().is_some() => None,
            Self::Bullmq | Self::Dramatiq | Self::Rq => Some(format!(
                "{name} is missing: run `tests/run.sh --peers`, which installs it into the cache of the tests"
            )),
            Self::Existing => match existing_folder() {
                Some(folder) if folder.join("main.py").is_file() => None,
                Some(folder) => Some(format!(
                    "CONSERVER_PEER={}: there is no main.py",
                    folder.display()
                )),
                None => Some(
                    "CONSERVER_PEER must name the folder of the existing daemon's main.py"
                        .to_owned(),
                ),
            },
        }
    }

    /// Where `tests/run.sh --peers` has put its packages.
    fn libraries(self) -> Option<PathBuf> {
        cached_if_there(match self {
            Self::Bullmq => "peers-node/node_modules/bullmq",
            Self::Dramatiq => "peers-python/dramatiq",
            Self::Rq => "peers-python/rq",
            Self::Conserver | Self::Existing => return None,
        })
        .and_then(|package| Some(package.parent()?.to_owned()))
    }

    /// What works.
    pub fn work(self, site: &Site<'_>, shape: Shape) -> Command {
        let [processes, concurrency] =
            [shape.processes, shape.concurrency].map(|number| number.to_string());
        match self {
            Self::Conserver => {
                let mut command = self.command(site, env!("CARGO_BIN_EXE_conserver"));
                command
                    .arg("run")
                    .env("CONSERVER_INSTANCE", INSTANCE)
                    .env("CONSERVER_HTTP", "off")
                    .env("RUNTIME_DIRECTORY", site.runtime_folder())
                    .env("CONSERVER_WORKERS", processes)
                    .env("CONSERVER_VCON_CONCURRENCY", concurrency);
                command
            }
            Self::Bullmq => {
                let mut command = self.program(site, "work");
                command
                    .args([&processes, &concurrency])
                    .env("UV_THREADPOOL_SIZE", shape.concurrency.max(4).to_string());
                command
            }
            Self::Dramatiq => {
                let mut command = self.command(site, "python3");
                command
                    .args(["-m", "dramatiq", "with_dramatiq", "--path"])
                    .arg(programs())
                    .args(["--processes", &processes, "--threads", &concurrency]);
                command
            }
            Self::Rq => {
                let mut command = self.command(site, "python3");
                command
                    .args(["-m", "rq.cli", "worker-pool", "vcons", "--path"])
                    .arg(programs())
                    .args(["--num-workers", &processes, "--url", &site.redis_url()])
                    .args(["--worker-class", "rq.SimpleWorker"])
                    .args(["--logging-level", "WARNING"]);
                command
            }
            Self::Existing => {
                let folder = existing_folder().expect("looked for before");
                let python = std::env::var_os("CONSERVER_PYTHON");
                let mut command = self.command(site, python.unwrap_or_else(|| "python3".into()));
                let above = folder.parent().unwrap_or(&folder);
                let modules = [above.to_owned(), above.join("common"), folder.clone()];
                command
                    .arg("main.py")
                    .current_dir(&folder)
                    .env("PYTHONPATH", std::env::join_paths(modules).expect("paths"))
                    .env("CONSERVER_WORKERS", processes)
                    .env("CONSERVER_VCON_CONCURRENCY", concurrency);
                command
            }
        }
    }

    /// Hands in these jobs by its own client.
    pub fn hand_in(self, site: &Site<'_>, ids: &[String]) {
        if self.takes_ids_from_a_list() {
            site.servers.push("default", ids);
        } else {
            talk(self.program(site, "enqueue"), ids);
        }
    }

    /// Hands in these jobs by its own client, one by one; gives the milliseconds that each took until it was announced.
    pub fn probe(self, site: &Site<'_>, ids: &[String]) -> Vec<f64> {
        if self.takes_ids_from_a_list() {
            return ids.iter().map(|id| push_and_wait(site, id)).collect();
        }
        let said = talk(self.program(site, "probe"), ids);
        let times = said.lines().map(|line| line.parse().expect("a number"));
        times.collect()
    }

    /// How many jobs are waiting or not acknowledged.
    pub fn unfinished(self, redis: &mut Connection, shape: Shape) -> usize {
        let claims = |worker| ("HLEN", format!("conserver:claims:{INSTANCE}:{worker}"));
        let fixed = |keys: &[(&'static str, &str)]| {
            let keys = keys.iter().map(|(ask, key)| (*ask, (*key).to_owned()));
            keys.collect::<Vec<_>>()
        };
        let keys = match self {
            Self::Conserver => {
                let mut keys: Vec<_> = (0..=shape.processes).map(claims).collect();
                keys.push(("LLEN", "default".to_owned()));
                keys
            }
            Self::Bullmq => fixed(&[
                ("LLEN", "bull:vcons:wait"),
                ("LLEN", "bull:vcons:active"),
                ("ZCARD", "bull:vcons:delayed"),
            ]),
            Self::Dramatiq => fixed(&[
                ("HLEN", "dramatiq:default.msgs"),
                ("HLEN", "dramatiq:default.DQ.msgs"),
            ]),
            Self::Rq => fixed(&[
                ("LLEN", "rq:queue:vcons"),
                ("LLEN", "rq:queue:vcons:intermediate"),
                ("ZCARD", "rq:wip:vcons"),
                ("ZCARD", "rq:scheduled:vcons"),
            ]),
            Self::Existing => fixed(&[("LLEN", "default")]),
        };
        let mut steps = redis::pipe();
        for (ask, key) in keys {
            steps.cmd(ask).arg(key);
        }
        let counts: Vec<usize> = steps.query(redis).expect("Redis");
        counts.iter().sum()
    }

    fn takes_ids_from_a_list(self) -> bool {
        matches!(self, Self::Conserver | Self::Existing)
    }

    /// Our program for it.
    fn program(self, site: &Site<'_>, what: &str) -> Command {
        let (interpreter, file) = match self {
            Self::Bullmq => ("node", "with_bullmq.js"),
            Self::Dramatiq => ("python3", "with_dramatiq.py"),
            Self::Rq => ("python3", "with_rq.py"),
            Self::Conserver | Self::Existing => unreachable!("takes ids from a list"),
        };
        let mut command = self.command(site, interpreter);
        command.arg(programs().join(file)).arg(what);
        command
    }

    /// A program with the environment of all of them.
    fn command(self, site: &Site<'_>, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        let kept = ["PATH", "HOME"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        command
            .env_clear()
            .envs(kept)
            .env("REDIS_URL", site.redis_url())
            .env("CONSERVER_CONFIG_FILE", site.config_file())
            .env("PEER_STORAGE", site.storage())
            .env("TMPDIR", site.folder())
            // Nothing is written beside the programs.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(site.folder());
        if let Some(libraries) = self.libraries() {
            command
                .env("NODE_PATH", &libraries)
                .env("PYTHONPATH", &libraries);
        }
        command
    }
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The folder of our programs for them.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers")
}

fn existing_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CONSERVER_PEER").filter(|folder| !folder.is_empty())?;
    // Its processes start elsewhere.
    std::path::absolute(folder).ok()
}

/// Runs a program with these ids as its input; gives what it writes.
fn talk(mut command: Command, ids: &[String]) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(ids.join("\n").as_bytes()).expect("a pipe");
    drop(input);
    let output = child.wait_with_output().expect("a child");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// What the programs of the others do to probe: waits a random time, and times one vCon.
fn push_and_wait(site: &Site<'_>, id: &str) -> f64 {
    let mut connection = site.servers.redis.connection();
    let pause = (-(1.0 - fastrand::f64()).ln() / 20.0).min(0.25);
    thread::sleep(Duration::from_secs_f64(pause));
    let start = Instant::now();
    let mut push = redis::cmd("RPUSH");
    push.arg("default").arg(id);
    push.query::<()>(&mut connection).expect("Redis");
    let mut pop = redis::cmd("BLPOP");
    pop.arg("done").arg(PATIENCE.as_secs());
    let popped: Option<(String, String)> = pop.query(&mut connection).expect("Redis");
    popped.expect("a vCon in time");
    start.elapsed().as_secs_f64() * 1e3
}
