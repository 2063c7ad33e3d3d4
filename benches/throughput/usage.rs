//! What the kernel says of the CPU and disk that processes use, and Redis of what it was asked.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use redis::Connection;

use super::case::Case;
use super::harness::children_of;
use super::servers::Servers;

/// Ticks in a second (`USER_HZ`).
const TICKS: f64 = 100.0;

/// What is in use for so much of the time has no more to give: the rest goes by between one
/// request and the next.
const BUSY: f64 = 0.8;

/// Parts of one core that were used on average, and the part of the time in which the disk was busy.
#[derive(Default, Clone, Copy)]
pub struct Usage {
    pub ours: f64,
    /// Of ours, what the kernel has used in our name: its file system and network.
    pub kernel: f64,
    pub redis: f64,
    pub postgres: f64,
    pub s3: f64,
    /// Of this program, which hands in and watches.
    pub bench: f64,
    /// Of all cores together, by anyone: 1 is all of them.
    pub machine: f64,
    pub disk: f64,
}

/// Watches them from now on.
pub struct Watch<'a> {
    servers: &'a Servers,
    ours: Vec<i32>,
    since: Instant,
    before: [f64; 8],
}

impl<'a> Watch<'a> {
    /// Begins; `ours` are the daemon's processes.
    pub fn begin(servers: &'a Servers, ours: Vec<i32>) -> Self {
        let mut watch = Self {
            servers,
            ours,
            since: Instant::now(),
            before: [0.0; 8],
        };
        watch.before = watch.now();
        watch
    }

    /// What was used since.
    pub fn end(self) -> Usage {
        let (seconds, now) = (self.since.elapsed().as_secs_f64(), self.now());
        let [ours, kernel, redis, postgres, s3, bench, machine, disk] =
            std::array::from_fn(|at| (now[at] - self.before[at]) / seconds);
        Usage {
            ours,
            kernel,
            redis,
            postgres,
            s3,
            bench,
            machine: machine / cores(),
            disk,
        }
    }

    fn now(&self) -> [f64; 8] {
        use super::case::Store;
        let family = |pid: Option<i32>| {
            let pids = pid
                .into_iter()
                .flat_map(|pid| [vec![pid], children_of(pid)].concat());
            pids.map(cpu_seconds).sum()
        };
        [
            self.ours.iter().copied().map(cpu_seconds).sum(),
            self.ours.iter().copied().map(kernel_seconds).sum(),
            family(Some(self.servers.redis.pid())),
            family(self.servers.pid(Store::Postgres)),
            family(self.servers.pid(Store::S3)),
            cpu_seconds(std::process::id().cast_signed()),
            machine_seconds(),
            disk_seconds(self.servers.folder()),
        ]
    }
}

impl Usage {
    /// The mean of some.
    pub fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Self {
            ours: mean(|usage| usage.ours),
            kernel: mean(|usage| usage.kernel),
            redis: mean(|usage| usage.redis),
            postgres: mean(|usage| usage.postgres),
            s3: mean(|usage| usage.s3),
            bench: mean(|usage| usage.bench),
            machine: mean(|usage| usage.machine),
            disk: mean(|usage| usage.disk),
        }
    }

    /// What keeps the rate from growing: the one thread of Redis, the disk, all cores, or else that
    /// each connection waits for its answers, with who works most in that time. Other programs on the machine spoil a
    /// measurement.
    pub fn limit(&self) -> String {
        let most = [
            (self.ours - self.kernel, "ours"),
            (self.kernel, "the kernel for us"),
            (self.redis, "Redis"),
            (self.postgres, "PostgreSQL"),
            (self.s3, "S3"),
        ];
        let shares = most.iter().map(|(share, _)| share).sum::<f64>() + self.bench;
        let others = self.machine * cores() - shares;
        let (_, name) = most
            .into_iter()
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .expect("five");
        if self.redis > BUSY {
            "Redis (one core)".to_owned()
        } else if self.machine > BUSY && others > 0.25 * cores() {
            "other programs".to_owned()
        } else if self.machine > BUSY {
            format!("all cores (most: {name})")
        } else if self.disk > BUSY {
            "disk".to_owned()
        } else {
            format!("waiting for answers (most: {name})")
        }
    }
}

fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// User and system time of a process and of its threads that have ended; 0 when it is gone.
pub fn cpu_seconds(pid: i32) -> f64 {
    user_and_kernel(pid).iter().sum()
}

/// The same by the CPU clock of the process, which counts microseconds where `/proc` counts
/// hundredths of a second.
pub fn cpu_clock(pid: i32) -> f64 {
    let time = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
    time.map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// How often Redis has read from a client; a request that comes in one piece is one.
pub fn reads(redis: &mut Connection) -> f64 {
    let stats = info(redis, "stats");
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("total_reads_processed:"));
    line.and_then(|number| number.parse().ok())
        .expect("a Redis from 6.2 on")
}

/// The commands that Redis has run, those inside scripts too, and the scripts among them.
pub fn commands_and_scripts(redis: &mut Connection) -> [f64; 2] {
    let mut counted = [0.0; 2];
    for line in info(redis, "commandstats").lines() {
        let Some((name, calls)) = line.split_once(":calls=") else {
            continue;
        };
        let calls = calls.split(',').next().unwrap_or_default();
        let calls: f64 = calls.parse().expect("a number of calls");
        counted[0] += calls;
        let name = name.trim_start_matches("cmdstat_").trim_end_matches("_ro");
        if matches!(name, "eval" | "evalsha" | "fcall") {
            counted[1] += calls;
        }
    }
    counted
}

fn info(redis: &mut Connection, section: &str) -> String {
    let mut info = redis::cmd("INFO");
    info.arg(section).query(redis).expect("Redis")
}

/// The system time of a process and of its threads that have ended; 0 when it is gone.
pub fn kernel_seconds(pid: i32) -> f64 {
    user_and_kernel(pid)[1]
}

fn user_and_kernel(pid: i32) -> [f64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut ticks = fields.split_whitespace().skip(11);
    [(); 2].map(|()| {
        let ticks: f64 = ticks.next().and_then(|t| t.parse().ok()).unwrap_or(0.0);
        ticks / TICKS
    })
}

/// Time that all cores together were not idle, nor only waited for a disk.
fn machine_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).enumerate();
    let busy = ticks.filter(|(at, _)| !matches!(at, 3 | 4 | 8 | 9));
    busy.filter_map(|(_, ticks)| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}

/// Time in which the disk of a folder had something to do.
fn disk_seconds(folder: &Path) -> f64 {
    let device = folder.metadata().map_or(0, |meta| meta.dev());
    let (major, minor) = (
        nix::sys::stat::major(device).to_string(),
        nix::sys::stat::minor(device).to_string(),
    );
    let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
    let line = text.lines().find(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(&major) && fields.next() == Some(&minor)
    });
    let milliseconds = line.and_then(|line| line.split_whitespace().nth(12)?.parse::<f64>().ok());
    milliseconds.unwrap_or(0.0) / 1e3
}
