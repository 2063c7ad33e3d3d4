//! A daemon that has nothing to do: what it takes, what one RPUSH costs it, and how fast it wakes.

use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, Script};
use serde_json::{Value, json};

use super::Effort;
use super::case;
use super::document::{Document, USUAL, ids};
use super::harness::{Conserver, Daemon, PATIENCE, wait_until};
use super::ours::{self, Way};
use super::report::{Report, median, percentile, print, progress, table};
use super::servers::Servers;
use super::usage::{commands_and_scripts, cpu_clock, cpu_seconds};

/// From one vCon's announcement to the next RPUSH: all who were woken sleep again by then.
const PAUSE: Duration = Duration::from_millis(30);

/// vCons of one burst.
const BURST: usize = 1000;

/// Gives the time by the clock of Redis.
const TIME: &str = "local t = redis.call('TIME') return t[1] .. '.' .. ('%06d'):format(t[2])";

/// Pushes its arguments, and gives the time.
const PUSH: &str = "\
    redis.call('RPUSH', 'default', unpack(ARGV)) \
    local t = redis.call('TIME') return t[1] .. '.' .. ('%06d'):format(t[2])";

/// Daemons that are idle together.
#[derive(Clone, Copy)]
pub struct Fleet {
    instances: usize,
    workers: usize,
    lanes: usize,
    /// Whether their user of Redis may use CLIENT, and so CLIENT TRACKING.
    client: bool,
}

/// Forked workers whose user of Redis may do all.
pub const fn fleet(instances: usize, workers: usize, lanes: usize) -> Fleet {
    Fleet {
        instances,
        workers,
        lanes,
        client: true,
    }
}

const fn without_client(workers: usize) -> Fleet {
    Fleet {
        client: false,
        ..fleet(1, workers, 1)
    }
}

/// The first is what the others are held against.
const FLEETS: [Fleet; 7] = [
    fleet(1, 1, 1),
    fleet(1, 8, 1),
    fleet(1, 32, 1),
    fleet(1, 64, 1),
    fleet(4, 8, 1),
    without_client(1),
    without_client(32),
];

/// Those of the bursts: 64 lanes each.
const BURSTS: [Fleet; 3] = [fleet(1, 64, 1), fleet(1, 8, 8), fleet(4, 8, 2)];

impl Fleet {
    fn name(self) -> String {
        let mut name = self.workers.to_string();
        if self.instances > 1 {
            name = format!("{} instances x {name}", self.instances);
        }
        if self.lanes > 1 {
            name += &format!(" x {} lanes", self.lanes);
        }
        if !self.client {
            name += " without CLIENT";
        }
        name
    }

    fn size(self) -> usize {
        self.instances * self.workers * self.lanes
    }

    fn instance(number: usize) -> String {
        format!("fleet-{number}")
    }

    /// Its daemons, ready; a link holds each vCon for so many seconds.
    fn start(self, servers: &Servers, delay: f64) -> Vec<Daemon> {
        servers.empty();
        let mut config = case::BARE.config(servers);
        if delay > 0.0 {
            let link = json!({"module": "links.delay", "options": {"seconds": delay}});
            config["links"] = json!({"slowly": link});
            config["chains"]["main"]["links"] = json!(["slowly"]);
        }
        let url = self.url(servers);
        let daemons: Vec<Daemon> = (1..=self.instances)
            .map(|number| {
                Conserver::with(&servers.redis)
                    .config(&config)
                    .workers(self.workers)
                    .lanes(self.lanes)
                    .env("REDIS_URL", &url)
                    .env("CONSERVER_INSTANCE", Self::instance(number))
                    .start()
            })
            .collect();
        for daemon in &daemons {
            daemon.wait_for_workers(self.workers);
        }
        daemons
    }

    fn url(self, servers: &Servers) -> String {
        let url = servers.redis.url();
        if self.client {
            return url;
        }
        servers.redis.ask::<()>(&[
            "ACL", "SETUSER", "plain", "on", ">plain", "~*", "&*", "+@all", "-client",
        ]);
        url.replace("redis://", "redis://plain:plain@")
    }

    /// When each of its lanes claimed what it has, by the clock of Redis, with the id.
    fn claims(self, redis: &mut Connection) -> Vec<(String, f64)> {
        let mut steps = redis::pipe();
        for instance in 1..=self.instances {
            for worker in 1..=self.workers {
                let instance = Self::instance(instance);
                steps
                    .cmd("HVALS")
                    .arg(format!("conserver:claims:{instance}:{worker}"));
            }
        }
        let records: Vec<Vec<String>> = steps.query(redis).expect("Redis");
        let claim = |record: &String| {
            let record: Value = serde_json::from_str(record).expect("JSON");
            let id = record["uuid"].as_str().expect("a UUID").to_owned();
            (id, record["since"].as_f64().expect("a time"))
        };
        records.iter().flatten().map(claim).collect()
    }
}

/// Counted since a start, or by one RPUSH.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Those inside scripts too.
    commands: f64,
    scripts: f64,
    /// Seconds of Redis.
    redis: f64,
    /// Seconds of the daemons.
    ours: f64,
}

impl Counts {
    fn now(servers: &Servers, redis: &mut Connection, family: &[i32]) -> Self {
        let [commands, scripts] = commands_and_scripts(redis);
        Self {
            commands,
            scripts,
            redis: cpu_clock(servers.redis.pid()),
            ours: family.iter().copied().map(cpu_clock).sum(),
        }
    }

    /// What is left of it without a part of others.
    fn without(self, other: Self, part: f64) -> Self {
        Self {
            commands: self.commands - other.commands * part,
            scripts: self.scripts - other.scripts * part,
            redis: self.redis - other.redis * part,
            ours: self.ours - other.ours * part,
        }
    }

    /// Of one of so many.
    fn each(self, number: usize) -> Self {
        Self::default().without(self, -1.0 / number as f64)
    }
}

/// What was measured of one fleet.
struct Row {
    fleet: Fleet,
    costs: Vec<Counts>,
    /// From RPUSH to claim, seconds.
    claims: Vec<f64>,
}

/// The tables of what an idle daemon does.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    report.begin("idle");
    report.begin("idle_push");
    report.begin("idle_burst");
    let seconds = if effort.quick { 5 } else { 30 };
    progress("idle: CPU");
    let used = idle_cpu(servers, seconds);

    let (rounds, pushes) = if effort.quick { (3, 30) } else { (3, 150) };
    let mut rows = FLEETS.map(|fleet| Row {
        fleet,
        costs: Vec::new(),
        claims: Vec::new(),
    });
    let mut bare = Vec::new();
    for number in 1..=rounds {
        progress(&format!("idle, round {number} of {rounds}: a bare client"));
        bare.extend(bare_client(servers, pushes * 2));
        let own = own_cost(servers, pushes);
        for row in &mut rows {
            let what = format!("round {number} of {rounds}: {}", row.fleet.name());
            progress(&format!("idle, {what}"));
            if row.fleet.client {
                row.costs.push(cost(servers, row.fleet, pushes, own));
                row.claims.extend(claims(servers, row.fleet, pushes * 2));
            } else {
                // It looks at intervals: what that costs depends on them alone, and it takes its time.
                row.claims.extend(claims(servers, row.fleet, pushes / 2));
            }
        }
    }
    show_idle(report, (used, seconds), &rows[0].claims);
    show_pushes(report, &rows, rounds, &bare);
    bursts(servers, effort, report);
}

fn show_idle(report: &mut Report, (used, seconds): (f64, u64), times: &[f64]) {
    let mut table = table(&["what", "figure"]);
    table.add_row([
        format!("CPU of 4 idle workers, monitor and supervisor in {seconds} s"),
        format!("{:.0} ms", used * 1e3),
    ]);
    let mut row = json!({"cpu": used / seconds as f64});
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let time = percentile(times, part) * 1e3;
        table.add_row([format!("RPUSH to claim, {name}"), format!("{time:.3} ms")]);
        row[name] = time.into();
    }
    report.add("idle", row);
    let remark = format!(
        "RPUSH to claim: one worker, {} vCons, by the clock of Redis",
        times.len()
    );
    print("Idle", &table, &remark);
}

fn show_pushes(report: &mut Report, rows: &[Row], rounds: usize, bare: &[f64]) {
    let mut table = table(&[
        "idle workers",
        "commands",
        "scripts",
        "Redis, ms",
        "to 1 worker",
        "daemon, ms",
        "to 1 worker",
        "to claim p50, ms",
        "p99, ms",
    ]);
    let [redis, ours]: [fn(&Counts) -> f64; 2] = [|counts| counts.redis, |counts| counts.ours];
    let middle = |row: &Row, of: fn(&Counts) -> f64| {
        let values: Vec<f64> = row.costs.iter().map(of).collect();
        median(&values)
    };
    let ratio = |row: &Row, of: fn(&Counts) -> f64| {
        let pairs = row.costs.iter().zip(&rows[0].costs);
        let ratios: Vec<f64> = pairs.map(|(one, first)| of(one) / of(first)).collect();
        median(&ratios)
    };
    for row in rows {
        let (commands, scripts) = (
            middle(row, |counts| counts.commands),
            middle(row, |counts| counts.scripts),
        );
        let (redis_time, ours_time) = (middle(row, redis) * 1e3, middle(row, ours) * 1e3);
        let (redis_ratio, ours_ratio) = (ratio(row, redis), ratio(row, ours));
        let [half, most] = [0.5, 0.99].map(|part| percentile(&row.claims, part) * 1e3);
        let mut cells = vec![row.fleet.name()];
        for figure in [
            format!("{commands:.1}"),
            format!("{scripts:.1}"),
            format!("{redis_time:.3}"),
            format!("{redis_ratio:.2}"),
            format!("{ours_time:.2}"),
            format!("{ours_ratio:.2}"),
        ] {
            let known = !row.costs.is_empty();
            cells.push(if known { figure } else { String::new() });
        }
        cells.extend([format!("{half:.3}"), format!("{most:.3}")]);
        table.add_row(cells);
        report.add(
            "idle_push",
            json!({"workers": row.fleet.name(), "commands": commands, "scripts": scripts, "redis": redis_time,
                "redis_ratio": redis_ratio, "daemon": ours_time, "daemon_ratio": ours_ratio, "p50": half, "p99": most}),
        );
    }
    let [half, most] = [0.5, 0.99].map(|part| percentile(bare, part) * 1e3);
    let mut cells = vec!["a bare client".to_owned()];
    cells.resize(7, String::new());
    cells.extend([format!("{half:.3}"), format!("{most:.3}")]);
    table.add_row(cells);
    report.add(
        "idle_push",
        json!({"workers": "a bare client", "p50": half, "p99": most}),
    );
    let remark = format!(
        "one vCon without links and storages at a time, from RPUSH until all is idle again; medians of {rounds} rounds in \
         which the fleets take turns, ratios are medians of those of each round; commands with those inside scripts, \
         which count themselves too; what the same time costs without pushes, and what the benchmark's own two commands \
         cost, is taken off; to claim: {} vCons each, {} without CLIENT, by the clock of Redis; a \
         bare client: one thread that waits with BLPOP and then runs a script, which is what the machine leaves of a wake-up \
         just now",
        rows[0].claims.len(),
        rows[rows.len() - 1].claims.len()
    );
    print("What one RPUSH costs idle workers", &table, &remark);
}

/// Seconds of CPU that all processes of an idle daemon use.
pub fn idle_cpu(servers: &Servers, seconds: u64) -> f64 {
    servers.empty();
    let daemon = ours::start(servers, &case::NONE, Way::of(4, 1));
    // Starting is no idling.
    daemon.wait_for_workers(4);
    let used = || daemon.family().into_iter().map(cpu_seconds).sum::<f64>();
    let before = used();
    thread::sleep(Duration::from_secs(seconds));
    let used = used() - before;
    ours::stop(servers, daemon);
    used
}

/// From RPUSH to the script that a client runs when BLPOP wakes it: the least that a wake-up takes.
fn bare_client(servers: &Servers, count: usize) -> Vec<f64> {
    servers.empty();
    let client = redis::Client::open(servers.redis.url()).expect("a URL");
    let mut waiting = client.get_connection().expect("a connection");
    let mut redis = servers.redis.connection();
    let (push, claim) = (Script::new(PUSH), Script::new(TIME));
    thread::scope(|scope| {
        let claims = scope.spawn(move || {
            let claim = |_| {
                let mut pop = redis::cmd("BLPOP");
                pop.arg("default").arg(PATIENCE.as_secs());
                let popped: Option<(String, String)> = pop.query(&mut waiting).expect("Redis");
                popped.expect("it is pushed in time");
                time(claim.invoke(&mut waiting))
            };
            (0..count).map(claim).collect::<Vec<f64>>()
        });
        let pushed = |_| {
            thread::sleep(PAUSE);
            time(push.arg("token").invoke(&mut redis))
        };
        let pushed: Vec<f64> = (0..count).map(pushed).collect();
        let claims = claims.join().expect("the bare client");
        let pairs = claims.iter().zip(&pushed);
        pairs.map(|(claim, push)| claim - push).collect()
    })
}

/// A time by the clock of Redis, as its scripts give it.
fn time(answer: redis::RedisResult<String>) -> f64 {
    answer.expect("Redis").parse().expect("a time")
}

/// What one RPUSH costs a fleet.
fn cost(servers: &Servers, fleet: Fleet, pushes: usize, own: Counts) -> Counts {
    const WARM: usize = 5;
    let daemons = fleet.start(servers, 0.0);
    let ids = ids(pushes + WARM);
    servers.load(&Document::of_size(USUAL), &ids);
    let family: Vec<i32> = daemons.iter().flat_map(Daemon::family).collect();
    let mut redis = servers.redis.connection();
    // The first pushes load scripts.
    let (warm, ids) = ids.split_at(WARM);
    one_by_one(&mut redis, warm, "done");

    let (before, start) = (Counts::now(servers, &mut redis, &family), Instant::now());
    thread::sleep(PAUSE * pushes as u32);
    let (idle, idle_time) = (
        Counts::now(servers, &mut redis, &family).without(before, 1.0),
        start.elapsed(),
    );

    let (before, start) = (Counts::now(servers, &mut redis, &family), Instant::now());
    one_by_one(&mut redis, ids, "done");
    let used = Counts::now(servers, &mut redis, &family).without(before, 1.0);
    let part = start.elapsed().as_secs_f64() / idle_time.as_secs_f64();
    for daemon in daemons {
        ours::stop(servers, daemon);
    }
    used.without(idle, part).each(pushes).without(own, 1.0)
}

/// What the pushes cost where nobody waits for them.
fn own_cost(servers: &Servers, pushes: usize) -> Counts {
    servers.empty();
    let mut redis = servers.redis.connection();
    let ids = ids(pushes);
    let before = Counts::now(servers, &mut redis, &[]);
    one_by_one(&mut redis, &ids, "default");
    let used = Counts::now(servers, &mut redis, &[]).without(before, 1.0);
    used.each(pushes)
}

/// Pushes each of them when the one before is announced, and all sleep again.
fn one_by_one(redis: &mut Connection, ids: &[String], announced: &str) {
    for id in ids {
        let mut push = redis::cmd("RPUSH");
        push.arg("default")
            .arg(id)
            .query::<()>(redis)
            .expect("Redis");
        let mut pop = redis::cmd("BLPOP");
        pop.arg(announced).arg(PATIENCE.as_secs());
        let popped: Option<(String, String)> = pop.query(redis).expect("Redis");
        assert_eq!(popped.expect("it is announced").1, *id);
        thread::sleep(PAUSE);
    }
}

/// From RPUSH to the claim that its record tells; a link holds each vCon long enough to read that.
pub fn claims(servers: &Servers, fleet: Fleet, count: usize) -> Vec<f64> {
    const DELAY: f64 = 0.03;
    let daemons = fleet.start(servers, DELAY);
    let ids = ids(count);
    servers.load(&Document::of_size(USUAL), &ids);
    let mut redis = servers.redis.connection();
    let push = Script::new(PUSH);
    let mut times = Vec::new();
    for id in &ids {
        let pushed = time(push.arg(id).invoke(&mut redis));
        let mut done = false;
        // Whoever asks takes some of the server's time: not before most claims are made.
        thread::sleep(Duration::from_millis(5));
        wait_until("the vCon is claimed", PATIENCE, || {
            let claims = fleet.claims(&mut redis);
            let since = claims.iter().find(|(claimed, _)| claimed == id);
            times.extend(since.map(|(_, since)| since - pushed));
            // It may have been done while we were not given the processor.
            done = length(&mut redis, "done") > 0;
            since.is_some() || done
        });
        wait_until("the vCon is done", PATIENCE, || {
            done = done || length(&mut redis, "done") > 0;
            done
        });
        redis::cmd("DEL")
            .arg("done")
            .query::<()>(&mut redis)
            .expect("Redis");
        // Its lane looks once more, and goes to sleep; where lanes look at intervals, not always at one point of them.
        let more = if fleet.client { 0 } else { fastrand::u64(..60) };
        thread::sleep(Duration::from_millis(5 + more));
    }
    for daemon in daemons {
        ours::stop(servers, daemon);
    }
    times
}

fn length(redis: &mut Connection, list: &str) -> usize {
    redis::cmd("LLEN").arg(list).query(redis).expect("Redis")
}

/// The table of bursts.
fn bursts(servers: &Servers, effort: &Effort, report: &mut Report) {
    let number = if effort.quick { 3 } else { 10 };
    let mut table = table(&[
        "idle workers",
        "first lane at work, ms",
        "half of them",
        "all",
        "all, the slowest burst",
    ]);
    for fleet in BURSTS {
        progress(&format!("idle: bursts on {}", fleet.name()));
        let times = burst(servers, fleet, number);
        let size = fleet.size();
        let mut row = json!({"workers": fleet.name()});
        let mut cells = vec![fleet.name()];
        for (name, lane, part) in [
            ("first", 0, 0.5),
            ("half", size / 2 - 1, 0.5),
            ("all", size - 1, 0.5),
            ("slowest", size - 1, 1.0),
        ] {
            let times: Vec<f64> = times.iter().map(|times| times[lane]).collect();
            let time = percentile(&times, part) * 1e3;
            row[name] = time.into();
            cells.push(format!("{time:.1}"));
        }
        table.add_row(cells);
        report.add("idle_burst", row);
    }
    let remark = format!(
        "{BURST} vCons in one RPUSH on 64 idle lanes, a link holds each vCon; medians of {number} bursts; from RPUSH to the \
         claim, by the clock of Redis"
    );
    print("A burst on idle lanes", &table, &remark);
}

/// From RPUSH to the claim of each lane, in order of time, burst by burst.
fn burst(servers: &Servers, fleet: Fleet, number: usize) -> Vec<Vec<f64>> {
    // So long that every lane has claimed before the first claims again.
    const DELAY: f64 = 1.0;
    let daemons = fleet.start(servers, DELAY);
    let ids = ids(BURST);
    servers.load(&Document::of_size(USUAL), &ids);
    let mut redis = servers.redis.connection();
    let push = Script::new(PUSH);
    let mut bursts = Vec::new();
    for _ in 0..number {
        // All lanes are asleep.
        thread::sleep(Duration::from_millis(300));
        let mut call = push.prepare_invoke();
        call.arg(&ids);
        let pushed = time(call.invoke(&mut redis));
        // Whoever asks takes some of the server's time: not before most claims are made.
        thread::sleep(Duration::from_millis(100));
        let mut claims = Vec::new();
        wait_until("all lanes are at work", PATIENCE, || {
            claims = fleet.claims(&mut redis);
            claims.len() == fleet.size()
        });
        redis::cmd("DEL")
            .arg("default")
            .query::<()>(&mut redis)
            .expect("Redis");
        let mut times: Vec<f64> = claims.iter().map(|(_, since)| since - pushed).collect();
        times.sort_by(f64::total_cmp);
        bursts.push(times);
        wait_until("all lanes are idle", PATIENCE, || {
            fleet.claims(&mut redis).is_empty()
        });
    }
    for daemon in daemons {
        ours::stop(servers, daemon);
    }
    bursts
}
