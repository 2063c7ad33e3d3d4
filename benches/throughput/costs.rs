//! What one vCon costs one lane: CPU, round trips to Redis, system calls.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use conserver::procfs::proportional_set_size;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::harness::{Redis, wait_until};
use super::ours::{self, Done, Way};
use super::report::{Report, print, progress, table};
use super::servers::Servers;
use super::usage::{self, cpu_seconds, kernel_seconds};

const CASES: [Case; 6] = [
    case::BARE,
    case::NONE,
    case::FILE,
    case::POSTGRES,
    case::S3,
    case::PARALLEL,
];

/// The table of costs.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let document = Document::of_size(USUAL);
    let mut table = table(&[
        "storages",
        "CPU of the worker, µs",
        "of it in the kernel",
        "round trips to Redis",
        "system calls",
        "PSS afterwards, MB",
    ]);
    report.begin("costs");
    for case in CASES {
        progress(&format!("costs: {}", case.name));
        let count = match (effort.quick, case.stores.is_empty()) {
            (true, true) => 4000,
            (true, false) => 400,
            (false, true) => 20_000,
            (false, false) => 2000,
        };
        let cost = cost(servers, &case, &document, count);
        table.add_row([
            case.name.to_owned(),
            format!("{:.0}", cost.cpu * 1e6),
            format!("{:.0} %", cost.kernel * 100.0),
            format!("{:.2}", cost.round_trips),
            cost.calls
                .as_ref()
                .map_or_else(Clone::clone, |calls| format!("{calls:.1}")),
            format!("{:.1}", cost.memory),
        ]);
        report.add(
            "costs",
            json!({"storages": case.name, "cpu": cost.cpu, "round_trips": cost.round_trips, "calls": cost.calls.ok(),
                "memory": cost.memory}),
        );
    }
    let remark = "one worker with one lane, while its list holds work; round trips as Redis counts them \
        (total_reads_processed)";
    print("What one vCon costs", &table, remark);
}

/// What one vCon has cost, and the memory that is left.
struct Cost {
    /// Seconds.
    cpu: f64,
    kernel: f64,
    round_trips: f64,
    /// Or why they were not counted.
    calls: Result<f64, String>,
    /// The worker's, in megabytes, once it has nothing to do any more.
    memory: f64,
}

/// Of so many vCons on one lane.
fn cost(servers: &Servers, case: &Case, document: &Document, count: usize) -> Cost {
    servers.empty();
    let ids = ids(count + 20);
    servers.load(document, &ids);
    let daemon = ours::start(servers, case, Way::of(1, 1));
    let (warm, rest) = ids.split_at(20);
    servers.push("default", warm);
    let mut done = Done::of(&servers.redis);
    done.wait_for(20);

    let worker = daemon.workers()[&1];
    let mut connection = servers.redis.connection();
    let (cpu, kernel, reads) = (
        cpu_seconds(worker),
        kernel_seconds(worker),
        usage::reads(&mut connection),
    );
    let counter = Counter::start(worker);
    servers.push("default", rest);
    // Two questions of ours: this one waits, the next one asks how often Redis was asked.
    wait_for_end(&servers.redis, count + 20);
    let calls = counter.and_then(Counter::end);
    let each = 1.0 / count as f64;
    let used = cpu_seconds(worker) - cpu;
    let cost = Cost {
        cpu: used * each,
        kernel: (kernel_seconds(worker) - kernel) / used,
        round_trips: (usage::reads(&mut connection) - reads) * each,
        calls: calls.map(|calls| calls * each),
        memory: proportional_set_size(worker).unwrap_or(0) as f64 / 1e6,
    };
    ours::stop(servers, daemon);
    cost
}

/// Waits until so many are done, seldom asking.
fn wait_for_end(redis: &Redis, count: usize) {
    wait_until("all are done", super::harness::PATIENCE * 5, || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        redis.length("done") == count
    });
}

/// Counts the system calls of a process, with perf.
struct Counter(Child);

impl Counter {
    fn start(pid: i32) -> Result<Self, String> {
        let mut perf = Command::new("perf");
        perf.args([
            "stat",
            "-x,",
            "-e",
            "raw_syscalls:sys_enter",
            "-p",
            &pid.to_string(),
        ]);
        perf.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = perf
            .spawn()
            .map_err(|error| format!("not counted: perf: {error}"))?;
        // It has nothing to say once it counts.
        std::thread::sleep(std::time::Duration::from_millis(300));
        Ok(Self(child))
    }

    fn end(mut self) -> Result<f64, String> {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        let _ = self.0.wait();
        let number = said.lines().find(|line| line.contains("raw_syscalls"));
        let number = number.and_then(|line| line.split(',').next()?.parse().ok());
        number.ok_or_else(|| "not counted: perf may not".to_owned())
    }
}
