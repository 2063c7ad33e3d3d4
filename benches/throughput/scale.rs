//! How the daemon stands what is far more than usual: lists, waiting vCons, lanes, instances, and large documents;
//! and whether anything grows while all sorts of vCons pass for ten minutes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use conserver::procfs::proportional_set_size;
use redis::Connection;
use serde_json::{Value, json};

use super::Effort;
use super::case;
use super::document::{Document, USUAL, ids};
use super::harness::{Conserver, Daemon, PATIENCE, wait_until};
use super::ours::{self, Done};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;
use super::usage::{commands_and_scripts, cpu_clock};

/// The size of documents where there are very many.
const SMALL: usize = 700;

const MEGABYTE: f64 = 1e6;

/// The tables of what is very many and very large.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    lists(servers, effort, report);
    waiting(servers, effort, report);
    fleets(servers, effort, report);
    large(servers, effort, report);
}

/// So many daemons alike.
#[derive(Clone, Copy)]
pub struct Fleet {
    pub instances: usize,
    pub workers: usize,
    pub lanes: usize,
}

impl Fleet {
    fn name(self) -> String {
        let Self {
            instances,
            workers,
            lanes,
        } = self;
        format!("{instances} x {workers} x {lanes}")
    }

    /// Its daemons, ready, and how long that took, in seconds.
    pub fn start(self, servers: &Servers, config: &Value) -> (Vec<Daemon>, f64) {
        let begin = Instant::now();
        let start = |number| {
            Conserver::with(&servers.redis)
                .config(config)
                .workers(self.workers)
                .lanes(self.lanes)
                .env("CONSERVER_INSTANCE", format!("scale-{number}"))
                .start()
        };
        let daemons: Vec<Daemon> = (1..=self.instances).map(start).collect();
        for daemon in &daemons {
            daemon.wait_for_workers(self.workers);
        }
        let took = begin.elapsed().as_secs_f64();
        (daemons, took)
    }
}

/// Stops them all.
pub fn stop(servers: &Servers, daemons: Vec<Daemon>) {
    for daemon in daemons {
        ours::stop(servers, daemon);
    }
}

/// The proportional set size of all processes, in megabytes.
fn memory(daemons: &[Daemon]) -> f64 {
    let family = daemons.iter().flat_map(Daemon::family);
    family.map(size).sum()
}

fn size(pid: i32) -> f64 {
    proportional_set_size(pid).unwrap_or(0) as f64 / MEGABYTE
}

/// Waits until nothing but renewals of leases is asked of Redis.
fn wait_until_quiet(redis: &mut Connection) {
    wait_until("all are idle", PATIENCE * 5, || {
        let [_, before] = commands_and_scripts(redis);
        thread::sleep(Duration::from_millis(500));
        let [_, after] = commands_and_scripts(redis);
        after - before < 20.0
    });
}

fn length(redis: &mut Connection, list: &str) -> usize {
    redis::cmd("LLEN").arg(list).query(redis).expect("Redis")
}

/// Many ingress lists, the work in the last: what a start, a push and a vCon cost.
fn lists(servers: &Servers, effort: &Effort, report: &mut Report) {
    let numbers = [1, 100, 1_000, 15_000];
    let numbers = if effort.quick {
        &numbers[..3]
    } else {
        &numbers[..]
    };
    let mut table = table(&[
        "ingress lists",
        "start, s",
        "PSS, MB",
        "Redis for a push, ms",
        "commands for a push",
        "Redis for a vCon, µs",
        "vCons/s",
        "longest command, ms",
    ]);
    report.begin("scale_lists");
    let document = Document::of_size(SMALL);
    let (pushes, count) = if effort.quick {
        (20, 1000)
    } else {
        (100, 5000)
    };
    let fleet = Fleet {
        instances: 1,
        workers: 2,
        lanes: 2,
    };
    for number in numbers {
        progress(&format!("scale: {number} ingress lists"));
        // Each of them is looked at for a vCon, as the order is strict.
        let count = (count * 100 / number).clamp(200, count);
        servers.empty();
        for command in [
            &["CONFIG", "SET", "slowlog-log-slower-than", "1000"][..],
            &["SLOWLOG", "RESET"],
        ] {
            servers.redis.ask::<()>(command);
        }
        let names: Vec<String> = (1..=*number).map(|n| format!("list-{n}")).collect();
        let mut config = case::BARE.config(servers);
        config["chains"]["main"]["ingress_lists"] = json!(names);
        let ids = ids(pushes + count);
        servers.load(&document, &ids);
        let (daemons, start) = fleet.start(servers, &config);
        let mut redis = servers.redis.connection();
        wait_until_quiet(&mut redis);
        let pss = memory(&daemons);
        let last = &names[number - 1];
        let (single, many) = ids.split_at(pushes);
        let (cpu, [commands, _]) = (
            cpu_clock(servers.redis.pid()),
            commands_and_scripts(&mut redis),
        );
        for id in single {
            servers.push(last, std::slice::from_ref(id));
            let mut pop = redis::cmd("BLPOP");
            pop.arg("done").arg(PATIENCE.as_secs());
            let popped: Option<(String, String)> = pop.query(&mut redis).expect("Redis");
            assert_eq!(popped.expect("it is announced").1, *id);
        }
        wait_until_quiet(&mut redis);
        let push = (cpu_clock(servers.redis.pid()) - cpu) / pushes as f64;
        let [after, _] = commands_and_scripts(&mut redis);
        let commands = (after - commands) / pushes as f64;
        let (cpu, begin) = (cpu_clock(servers.redis.pid()), Instant::now());
        servers.push(last, many);
        let end = Done::of(&servers.redis).wait_for(count);
        let each = (cpu_clock(servers.redis.pid()) - cpu) / count as f64;
        let rate = count as f64 / (end - begin).as_secs_f64();
        let longest = slowest(&mut redis);
        stop(servers, daemons);
        table.add_row([
            number.to_string(),
            format!("{start:.2}"),
            format!("{pss:.0}"),
            format!("{:.3}", push * 1e3),
            format!("{commands:.1}"),
            format!("{:.0}", each * 1e6),
            format!("{rate:.0}"),
            format!("{longest:.1}"),
        ]);
        report.add(
            "scale_lists",
            json!({"lists": number, "start": start, "pss": pss, "push": push, "commands": commands,
                "vcon": each, "ours": rate, "longest": longest}),
        );
    }
    print(
        "Very many ingress lists",
        &table,
        "1 instance x 2 workers x 2 lanes, no link, no storage; all work is in the last list; a push: one vCon at a time to \
         idle lanes, from RPUSH until all are idle again; longest command: by the SLOWLOG of Redis, of all since the start",
    );
}

/// The longest time of any command since the SLOWLOG was emptied, in milliseconds.
fn slowest(redis: &mut Connection) -> f64 {
    let log: Vec<Vec<redis::Value>> = redis::cmd("SLOWLOG")
        .arg(&["GET", "1000"])
        .query(redis)
        .expect("Redis");
    let times = log.iter().filter_map(|entry| match entry.get(2) {
        Some(redis::Value::Int(micros)) => Some(*micros as f64 / 1e3),
        _ => None,
    });
    times.fold(0.0, f64::max)
}

/// Very many waiting vCons, and daemons that start: the rate over time, and what Redis pays.
fn waiting(servers: &Servers, effort: &Effort, report: &mut Report) {
    let number = if effort.quick { 200_000 } else { 1_000_000 };
    let seconds = if effort.quick { 8 } else { 20 };
    let mut table = table(&[
        "instances",
        "start, s",
        "vCons/s, second by second",
        "least of the median",
        "Redis for a vCon, µs",
        "longest command, ms",
    ]);
    report.begin("scale_waiting");
    let document = Document::of_size(SMALL);
    for instances in [1, 4, 8] {
        progress(&format!("scale: {number} waiting, {instances} instances"));
        servers.empty();
        servers.redis.ask::<()>(&["SLOWLOG", "RESET"]);
        let ids = ids(number);
        // Half of their time has gone: each of them is due to be kept.
        load_expiring(servers, &document, &ids, 1200);
        servers.push("default", &ids);
        let fleet = Fleet {
            instances,
            workers: 1,
            lanes: 1,
        };
        let (daemons, start) = fleet.start(servers, &case::BARE.config(servers));
        let mut redis = servers.redis.connection();
        let (cpu, before) = (cpu_clock(servers.redis.pid()), length(&mut redis, "done"));
        let mut rates = Vec::new();
        let mut done = before;
        for _ in 0..seconds {
            let begin = Instant::now();
            thread::sleep(Duration::from_secs(1));
            let now = length(&mut redis, "done");
            rates.push((now - done) as f64 / begin.elapsed().as_secs_f64());
            done = now;
        }
        let each = (cpu_clock(servers.redis.pid()) - cpu) / (done - before) as f64;
        let longest = slowest(&mut redis);
        servers.redis.ask::<()>(&["DEL", "default"]);
        stop(servers, daemons);
        let least = percentile(&rates, 0.0) / median(&rates);
        let shown: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
        table.add_row([
            instances.to_string(),
            format!("{start:.2}"),
            shown.join(" "),
            format!("{least:.2}"),
            format!("{:.0}", each * 1e6),
            format!("{longest:.1}"),
        ]);
        report.add(
            "scale_waiting",
            json!({"waiting": number, "instances": instances, "start": start, "rates": rates, "least": least,
                "vcon": each, "longest": longest}),
        );
    }
    let remark = format!(
        "{number} wait, and less than half of the time of each document is left; 1 worker x 1 lane each, no link, no \
         storage; from the moment at which all are ready"
    );
    print("Very many waiting vCons", &table, &remark);
}

fn load_expiring(servers: &Servers, document: &Document, ids: &[String], seconds: u64) {
    let mut connection = servers.redis.connection();
    for some in ids.chunks(500) {
        let mut steps = redis::pipe();
        for id in some {
            let mut set = redis::cmd("SET");
            set.arg(format!("vcon:{id}")).arg(document.plain(id));
            set.arg("EX").arg(seconds);
            steps.add_command(set).ignore();
        }
        steps.query::<()>(&mut connection).expect("Redis");
    }
}

/// Many lanes and many instances.
fn fleets(servers: &Servers, effort: &Effort, report: &mut Report) {
    let mut table = table(&[
        "instances x workers x lanes",
        "start, s",
        "PSS idle, MB",
        "PSS after work, MB",
        "idle: Redis, ms/s",
        "vCons/s",
        "Redis for a vCon, µs",
    ]);
    report.begin("scale_fleets");
    let document = Document::of_size(USUAL);
    let count = if effort.quick { 5_000 } else { 20_000 };
    for (instances, workers, lanes) in [(1, 1, 1), (1, 4, 4), (8, 2, 2), (1, 64, 8)] {
        let fleet = Fleet {
            instances,
            workers,
            lanes,
        };
        progress(&format!("scale: {}", fleet.name()));
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let (daemons, start) = fleet.start(servers, &case::NONE.config(servers));
        let mut redis = servers.redis.connection();
        wait_until_quiet(&mut redis);
        let before = memory(&daemons);
        let pause = Duration::from_secs(if effort.quick { 2 } else { 10 });
        let cpu = cpu_clock(servers.redis.pid());
        thread::sleep(pause);
        let idle = (cpu_clock(servers.redis.pid()) - cpu) / pause.as_secs_f64() * 1e3;
        let (cpu, begin) = (cpu_clock(servers.redis.pid()), Instant::now());
        servers.push("default", &ids);
        let end = Done::of(&servers.redis).wait_for(count);
        let each = (cpu_clock(servers.redis.pid()) - cpu) / count as f64 * 1e6;
        let rate = count as f64 / (end - begin).as_secs_f64();
        let after = memory(&daemons);
        stop(servers, daemons);
        table.add_row([
            fleet.name(),
            format!("{start:.2}"),
            format!("{before:.0}"),
            format!("{after:.0}"),
            format!("{idle:.2}"),
            format!("{rate:.0}"),
            format!("{each:.0}"),
        ]);
        report.add(
            "scale_fleets",
            json!({"fleet": fleet.name(), "start": start, "idle_pss": before, "pss": after, "idle_redis": idle,
                "ours": rate, "vcon": each}),
        );
    }
    let remark = format!("forked; {count} vCons through a link that tags, no storage");
    print("Very many lanes and instances", &table, &remark);
}

/// A very large document: the most memory, and what is left of it.
fn large(servers: &Servers, effort: &Effort, report: &mut Report) {
    let sizes = if effort.quick {
        &[10, 100][..]
    } else {
        &[10, 100, 300]
    };
    let mut table = table(&[
        "document, MB",
        "seconds",
        "peak of the worker, MB",
        "of the document",
        "PSS of all afterwards, MB",
        "longest command, ms",
    ]);
    report.begin("scale_large");
    for megabytes in sizes {
        progress(&format!("scale: a document of {megabytes} MB"));
        servers.empty();
        servers.redis.ask::<()>(&["SLOWLOG", "RESET"]);
        let ids = ids(1);
        servers.load(&Document::of_size(megabytes * 1_000_000), &ids);
        let fleet = Fleet {
            instances: 1,
            workers: 1,
            lanes: 1,
        };
        let (daemons, _) = fleet.start(servers, &case::FILE.config(servers));
        let begin = Instant::now();
        servers.push("default", &ids);
        let end = Done::of(&servers.redis).wait_for(1);
        let worker = daemons[0].workers()[&1];
        let peak = high_water(worker);
        let after = memory_when_idle(&daemons);
        let longest = slowest(&mut servers.redis.connection());
        stop(servers, daemons);
        let seconds = (end - begin).as_secs_f64();
        table.add_row([
            megabytes.to_string(),
            format!("{seconds:.2}"),
            format!("{peak:.0}"),
            format!("{:.2}", peak / *megabytes as f64),
            format!("{after:.0}"),
            format!("{longest:.1}"),
        ]);
        report.add(
            "scale_large",
            json!({"megabytes": megabytes, "seconds": seconds, "peak": peak, "pss": after, "longest": longest}),
        );
    }
    print(
        "A very large document",
        &table,
        "one worker, one lane, through a link that tags to storage.file; peak: VmHWM",
    );
}

/// The memory once it has stopped to fall: what a document took is given back when its lane is idle.
fn memory_when_idle(daemons: &[Daemon]) -> f64 {
    let mut last = memory(daemons);
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = memory(daemons);
        if now >= last {
            return now;
        }
        last = now;
    }
}

/// The most memory that a process has had, in megabytes.
fn high_water(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.expect("a line").trim().trim_end_matches(" kB");
    kilobytes.parse::<f64>().expect("a number") * 1024.0 / MEGABYTE
}

/// What is looked at again and again in the mixed load.
struct Sample {
    seconds: f64,
    done: usize,
    supervisors: f64,
    monitors: f64,
    workers: f64,
    largest: f64,
    files: usize,
    redis: f64,
    /// Keys that are no documents.
    keys: usize,
}

/// All sorts of vCons over many lists and two instances, for ten minutes.
pub fn mixed(servers: &Servers, effort: &Effort, report: &mut Report) {
    let (total, every) = if effort.quick { (30, 3) } else { (600, 30) };
    progress(&format!("scale: {total} seconds of mixed load"));
    servers.empty();
    let names: Vec<String> = (1..=50).map(|number| format!("list-{number}")).collect();
    let mut config = case::FILE.config(servers);
    config["chains"]["main"]["ingress_lists"] = json!(names);
    let fleet = Fleet {
        instances: 2,
        workers: 2,
        lanes: 4,
    };
    let (daemons, _) = fleet.start(servers, &config);
    let documents = [USUAL, 32_000, 256_000, 5_000_000].map(Document::of_size);
    let begin = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    let mut redis = servers.redis.connection();
    let (mut pushed, mut done) = (0, 0);
    while begin.elapsed().as_secs() < total {
        // What is done is taken away, as the next consumer does.
        done += take_done(&mut redis);
        if pushed - done < 200 {
            for _ in 0..50 {
                let kind = match pushed % 500 {
                    499 => 3,
                    n if n % 50 == 0 => 2,
                    n if n % 10 == 0 => 1,
                    _ => 0,
                };
                let id = ids(1);
                let mut set = redis::cmd("SET");
                set.arg(format!("vcon:{}", id[0]));
                set.arg(documents[kind].plain(&id[0])).arg("EX").arg(3600);
                set.query::<()>(&mut redis).expect("Redis");
                let mut push = redis::cmd("RPUSH");
                push.arg(&names[pushed % names.len()]).arg(&id[0]);
                push.query::<()>(&mut redis).expect("Redis");
                pushed += 1;
            }
        } else {
            thread::sleep(Duration::from_millis(5));
        }
        let due = samples.len() as u64 * every;
        if begin.elapsed().as_secs() >= due {
            samples.push(sample(servers, &mut redis, &daemons, begin, done));
        }
    }
    wait_until("all are done", PATIENCE * 5, || {
        done += take_done(&mut redis);
        done == pushed
    });
    samples.push(sample(servers, &mut redis, &daemons, begin, done));
    stop(servers, daemons);
    show_mixed(report, &samples);
}

/// Takes away what is done, with its documents; returns how many.
fn take_done(redis: &mut Connection) -> usize {
    let mut pop = redis::cmd("LPOP");
    let ids: Option<Vec<String>> = pop.arg("done").arg(1000).query(redis).expect("Redis");
    let ids = ids.unwrap_or_default();
    for id in &ids {
        let mut remove = redis::cmd("UNLINK");
        remove.arg(format!("vcon:{id}"));
        remove.query::<()>(redis).expect("Redis");
    }
    ids.len()
}

fn sample(
    servers: &Servers,
    redis: &mut Connection,
    daemons: &[Daemon],
    begin: Instant,
    done: usize,
) -> Sample {
    let workers: Vec<i32> = daemons
        .iter()
        .flat_map(|daemon| daemon.workers().into_values())
        .collect();
    let monitors: Vec<i32> = daemons
        .iter()
        .map(|daemon| daemon.process("conserver-mon"))
        .collect();
    let family: Vec<i32> = daemons.iter().flat_map(Daemon::family).collect();
    let files = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let sum = |pids: &[i32]| pids.iter().copied().map(size).sum::<f64>();
    let mut info = redis::cmd("INFO");
    let info: String = info.arg("memory").query(redis).expect("Redis");
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: f64 = used.and_then(|it| it.parse().ok()).expect("a number");
    let keys = servers.redis.keys("*");
    Sample {
        seconds: begin.elapsed().as_secs_f64(),
        done,
        supervisors: daemons.iter().map(|daemon| size(daemon.pid())).sum(),
        monitors: sum(&monitors),
        workers: sum(&workers),
        largest: workers.iter().copied().map(size).fold(0.0, f64::max),
        files: family.iter().map(files).sum(),
        redis: used / MEGABYTE,
        keys: keys.iter().filter(|key| !key.starts_with("vcon:")).count(),
    }
}

fn show_mixed(report: &mut Report, samples: &[Sample]) {
    let mut table = table(&[
        "seconds",
        "done",
        "vCons/s",
        "PSS of supervisors, MB",
        "of monitors",
        "of workers",
        "largest worker",
        "open files",
        "Redis, MB",
        "other keys",
    ]);
    report.begin("scale_mixed");
    let mut before: Option<&Sample> = None;
    for sample in samples {
        let rate = before.map_or(0.0, |before| {
            (sample.done - before.done) as f64 / (sample.seconds - before.seconds).max(0.001)
        });
        before = Some(sample);
        table.add_row([
            format!("{:.0}", sample.seconds),
            sample.done.to_string(),
            format!("{rate:.0}"),
            format!("{:.1}", sample.supervisors),
            format!("{:.1}", sample.monitors),
            format!("{:.1}", sample.workers),
            format!("{:.1}", sample.largest),
            sample.files.to_string(),
            format!("{:.1}", sample.redis),
            sample.keys.to_string(),
        ]);
        report.add(
            "scale_mixed",
            json!({"seconds": sample.seconds, "done": sample.done, "rate": rate, "supervisors": sample.supervisors,
                "monitors": sample.monitors, "workers": sample.workers, "largest": sample.largest,
                "files": sample.files, "redis": sample.redis, "keys": sample.keys}),
        );
    }
    // The first third is for warming up.
    let part = |from: usize, to: usize, of: fn(&Sample) -> f64| {
        let some = &samples[samples.len() * from / 3..samples.len() * to / 3];
        some.iter().map(of).fold(0.0, f64::max)
    };
    let growth = |of: fn(&Sample) -> f64| part(2, 3, of) / part(1, 2, of).max(0.001);
    let remark = format!(
        "2 instances x 2 workers x 4 lanes, 50 lists, through a link that tags to storage.file; of 500 vCons 441 have 4.5 kB, \
         49 32 kB, 9 256 kB, one 5 MB; the most in the last third by the most in the second: supervisors {:.2}, monitors \
         {:.2}, workers {:.2}, open files {:.2}, Redis {:.2}",
        growth(|it| it.supervisors),
        growth(|it| it.monitors),
        growth(|it| it.workers),
        growth(|it| it.files as f64),
        growth(|it| it.redis),
    );
    print("Mixed load", &table, &remark);
}
