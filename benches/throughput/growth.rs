//! How the rate grows, or falls, with what there is of everything, and what keeps it from growing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use redis::Script;
use serde_json::json;

use super::Effort;
use super::case;
use super::document::{Document, USUAL, ids};
use super::floor::{self, Loops};
use super::harness::{Conserver, Daemon};
use super::ours::{self, Done, Way, watch};
use super::report::{Report, median, print, progress, table};
use super::scale::{self, Fleet};
use super::servers::Servers;
use super::usage::Usage;

/// The tables of growth.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    documents(servers, effort, report);
    lists(servers, effort, report);
    waiting(servers, effort, report);
    workers(servers, effort, report);
    instances(servers, effort, report);
}

fn documents(servers: &Servers, effort: &Effort, report: &mut Report) {
    let sizes = [
        1_000,
        4_500,
        32_000,
        256_000,
        1_000_000,
        10_000_000,
        50_000_000,
        200_000_000,
    ];
    let sizes = if effort.quick {
        &sizes[..6]
    } else {
        &sizes[..]
    };
    let mut table = table(&[
        "bytes",
        "storages",
        "single floor/s",
        "ours/s",
        "MB/s",
        "ratio",
        "limited by",
    ]);
    report.begin("growth_documents");
    for size in sizes {
        let document = Document::of_size(*size);
        let most = if effort.quick { 300 } else { 1000 };
        let count = (200_000_000 / size).clamp(4, most);
        for case in [case::NONE, case::FILE] {
            progress(&format!("growth: documents of {size} bytes, {}", case.name));
            let (mut rates, mut floors, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            let mut usage = Vec::new();
            for _ in 0..effort.rounds.min(3) {
                let floor = floor::rate(servers, &case, Loops::single(1), &document, (count, 60.0));
                let (rate, used) = ours::rate(servers, &case, Way::of(1, 1), &document, count);
                rates.push(rate);
                floors.push(floor);
                ratios.push(rate / floor);
                usage.push(used);
                if *size >= 1_000_000 {
                    servers.remove_files();
                }
            }
            let (rate, floor, ratio) = (median(&rates), median(&floors), median(&ratios));
            let megabytes = rate * *size as f64 / 1e6;
            let limit = Usage::mean(&usage).limit();
            table.add_row([
                size.to_string(),
                case.name.to_owned(),
                format!("{floor:.1}"),
                format!("{rate:.1}"),
                format!("{megabytes:.1}"),
                format!("{ratio:.2}"),
                limit.clone(),
            ]);
            report.add(
                "growth_documents",
                json!({"number": size, "storages": case.name, "floor": floor, "ours": rate, "megabytes": megabytes,
                    "ratio": ratio, "limit": limit}),
            );
        }
    }
    print(
        "How the rate falls with the size of the document",
        &table,
        "one lane, through a link that tags; the floor is a tight loop on one connection",
    );
}

/// A table of one number against the rate.
struct Curve<'a> {
    section: &'a str,
    title: &'a str,
    what: &'a str,
    remark: &'a str,
}

impl Curve<'_> {
    fn measure(
        &self,
        effort: &Effort,
        report: &mut Report,
        numbers: &[usize],
        mut rate: impl FnMut(usize) -> (f64, Usage),
    ) {
        let mut measured = vec![Vec::new(); numbers.len()];
        for round in 1..=effort.rounds.min(3) {
            for (number, measured) in numbers.iter().zip(&mut measured) {
                progress(&format!("growth, round {round}: {number} {}", self.what));
                measured.push(rate(*number));
            }
        }
        let mut table = table(&[self.what, "vCons/s", "of the first", "limited by"]);
        report.begin(self.section);
        let mut first = None;
        for (number, measured) in numbers.iter().zip(measured) {
            let (rates, usage): (Vec<f64>, Vec<Usage>) = measured.into_iter().unzip();
            let (rate, limit) = (median(&rates), Usage::mean(&usage).limit());
            let times = rate / *first.get_or_insert(rate);
            table.add_row([
                number.to_string(),
                format!("{rate:.0}"),
                format!("{times:.2}"),
                limit.clone(),
            ]);
            report.add(
                self.section,
                json!({"number": number, "ours": rate, "limit": limit}),
            );
        }
        print(self.title, &table, self.remark);
    }
}

fn lists(servers: &Servers, effort: &Effort, report: &mut Report) {
    let curve = Curve {
        section: "growth_lists",
        title: "How the rate falls with the ingress lists",
        what: "ingress lists",
        remark: "all work is in the last list; one lane, no storage, no link",
    };
    let document = Document::of_size(USUAL);
    let count = if effort.quick { 2000 } else { 6000 };
    curve.measure(effort, report, &[1, 2, 4, 8, 16, 32, 64], |number| {
        let names: Vec<String> = (1..=number)
            .map(|number| format!("list-{number}"))
            .collect();
        let mut config = case::BARE.config(servers);
        config["chains"]["main"]["ingress_lists"] = json!(names);
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let daemon = Conserver::with(&servers.redis).config(&config).start();
        let family = daemon.family();
        servers.push(&names[number - 1], &ids);
        finish(servers, daemon, family, count)
    });
}

/// The rate while `count` are done, and what they took; stops the daemon.
fn finish(servers: &Servers, daemon: Daemon, family: Vec<i32>, count: usize) -> (f64, Usage) {
    let measured = watch(servers, family, count / 5, count - count / 10);
    Done::of(&servers.redis).wait_for(count);
    ours::stop(servers, daemon);
    measured
}

fn waiting(servers: &Servers, effort: &Effort, report: &mut Report) {
    let curve = Curve {
        section: "growth_waiting",
        title: "How the rate falls with the vCons that wait",
        what: "waiting vCons",
        remark: "one lane, no storage, no link; a producer keeps the list that long",
    };
    let numbers = [10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    let numbers = if effort.quick {
        &numbers[..6]
    } else {
        &numbers[..]
    };
    let document = Document::of_size(USUAL);
    let count = if effort.quick { 2000 } else { 6000 };
    curve.measure(effort, report, numbers, |number| {
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let daemon = ours::start(servers, &case::BARE, Way::of(1, 1));
        let family = daemon.family();
        let over = AtomicBool::new(false);
        let measured = thread::scope(|scope| {
            fill(servers, &ids, number);
            let producer = scope.spawn(|| keep_filled(servers, &ids, number, &over));
            let measured = watch(servers, family, count / 5, count - count / 10);
            assert!(servers.redis.length("default") >= number / 2, "waiting");
            over.store(true, Ordering::Relaxed);
            producer.join().expect("the producer");
            measured
        });
        // Its name goes at once, its memory beside.
        servers.redis.ask::<()>(&["UNLINK", "default"]);
        ours::stop(servers, daemon);
        measured
    });
}

/// Pushes its arguments again and again.
const REPEAT: &str =
    "for _ = 1, tonumber(table.remove(ARGV, 1)) do redis.call('RPUSH', KEYS[1], unpack(ARGV)) end";

/// Makes a list of so many of the ids, over and over, and gives it its name at one instant.
fn fill(servers: &Servers, ids: &[String], number: usize) {
    let mut redis = servers.redis.connection();
    let whole = number / ids.len();
    // In pieces, so that Redis answers the daemon's heartbeats in between.
    for first in (0..whole).step_by(20) {
        let script = Script::new(REPEAT);
        let mut call = script.key("filling");
        call.arg((whole - first).min(20)).arg(ids);
        call.invoke::<()>(&mut redis).expect("Redis");
    }
    servers.push("filling", &ids[..number % ids.len()]);
    assert_eq!(servers.redis.length("filling"), number);
    servers.redis.ask::<()>(&["RENAME", "filling", "default"]);
}

/// Pushes the ids that follow on those of [`fill`], over and over, whenever a tenth of `number` has been taken.
fn keep_filled(servers: &Servers, ids: &[String], number: usize, over: &AtomicBool) {
    let mut redis = servers.redis.connection();
    let mut following = ids.iter().cycle().skip(number % ids.len());
    let least = number - (number / 10).clamp(1, 500);
    while !over.load(Ordering::Relaxed) {
        let mut length = redis::cmd("LLEN");
        let waiting: usize = length.arg("default").query(&mut redis).expect("Redis");
        if waiting <= least {
            let mut push = redis::cmd("RPUSH");
            push.arg("default");
            for id in following.by_ref().take(number - waiting) {
                push.arg(id);
            }
            push.query::<()>(&mut redis).expect("Redis");
        } else {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

fn workers(servers: &Servers, effort: &Effort, report: &mut Report) {
    let document = Document::of_size(USUAL);
    let numbers = [1, 2, 4, 8, 16, 32, 64];
    for (section, case, count) in [
        ("growth_workers", case::NONE, 8000),
        ("growth_workers_postgres", case::POSTGRES, 2000),
    ] {
        let title = format!(
            "How the rate grows with the workers, storages: {}",
            case.name
        );
        let curve = Curve {
            section,
            title: &title,
            what: "workers",
            remark: "one lane each",
        };
        let count = if effort.quick { count / 2 } else { count };
        curve.measure(effort, report, &numbers, |number| {
            let count = count.max(number * 40);
            ours::rate(servers, &case, Way::of(number, 1), &document, count)
        });
    }
}

fn instances(servers: &Servers, effort: &Effort, report: &mut Report) {
    let curve = Curve {
        section: "growth_instances",
        title: "How the rate grows with the instances on one Redis",
        what: "instances",
        remark: "one worker with one lane each, through a link that tags, no storage",
    };
    let document = Document::of_size(USUAL);
    let count = if effort.quick { 4000 } else { 12_000 };
    curve.measure(effort, report, &[1, 2, 3, 4, 6, 8], |instances| {
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let fleet = Fleet {
            instances,
            workers: 1,
            lanes: 1,
        };
        let (daemons, _) = fleet.start(servers, &case::NONE.config(servers));
        let family = daemons.iter().flat_map(Daemon::family).collect();
        servers.push("default", &ids);
        let measured = watch(servers, family, count / 5, count - count / 10);
        Done::of(&servers.redis).wait_for(count);
        scale::stop(servers, daemons);
        servers.check(&case::NONE, &document, count);
        measured
    });
}
