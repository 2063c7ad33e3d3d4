//! How the cost of a vCon grows with what there is of everything.

use serde_json::{Value, json};

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::floor;
use super::harness::{Conserver, Daemon};
use super::ours::{self, Done, Way};
use super::report::{Report, median, print, progress, table};
use super::servers::Servers;

/// The tables of growth.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    documents(servers, effort, report);
    lists(servers, effort, report);
    waiting(servers, effort, report);
    workers(servers, effort, report);
}

fn documents(servers: &Servers, effort: &Effort, report: &mut Report) {
    let sizes = [
        1_000, 4_500, 32_000, 256_000, 1_000_000, 10_000_000, 50_000_000,
    ];
    let sizes = if effort.quick {
        &sizes[..5]
    } else {
        &sizes[..]
    };
    let mut table = table(&["bytes", "storages", "floor/s", "ours/s", "MB/s", "ratio"]);
    report.begin("growth_documents");
    for size in sizes {
        let document = Document::of_size(*size);
        let count = (200_000_000 / size).clamp(8, 1000);
        for case in [case::NONE, case::FILE] {
            progress(&format!("growth: documents of {size} bytes, {}", case.name));
            let (mut rates, mut floors, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..effort.rounds.min(3) {
                let floor = floor::rate(servers, &case, 1, &document, (count, 60.0));
                let (rate, _) = ours::rate(servers, &case, Way::of(1, 1), &document, count);
                rates.push(rate);
                floors.push(floor);
                ratios.push(rate / floor);
            }
            let (rate, floor, ratio) = (median(&rates), median(&floors), median(&ratios));
            let megabytes = rate * *size as f64 / 1e6;
            table.add_row([
                size.to_string(),
                case.name.to_owned(),
                format!("{floor:.1}"),
                format!("{rate:.1}"),
                format!("{megabytes:.1}"),
                format!("{ratio:.2}"),
            ]);
            report.add(
                "growth_documents",
                json!({"bytes": size, "storages": case.name, "floor": floor, "ours": rate, "ratio": ratio}),
            );
        }
    }
    print(
        "How the cost grows with the document",
        &table,
        "one lane, through a link that tags",
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
        mut rate: impl FnMut(usize) -> f64,
    ) {
        let mut rates = vec![Vec::new(); numbers.len()];
        for round in 1..=effort.rounds.min(3) {
            for (number, rates) in numbers.iter().zip(&mut rates) {
                progress(&format!("growth, round {round}: {number} {}", self.what));
                rates.push(rate(*number));
            }
        }
        let mut table = table(&[self.what, "vCons/s", "of the first"]);
        report.begin(self.section);
        let first = median(&rates[0]);
        for (number, rates) in numbers.iter().zip(&rates) {
            let rate = median(rates);
            table.add_row([
                number.to_string(),
                format!("{rate:.0}"),
                format!("{:.2}", rate / first),
            ]);
            report.add(self.section, json!({"number": number, "ours": rate}));
        }
        print(self.title, &table, self.remark);
    }
}

fn lists(servers: &Servers, effort: &Effort, report: &mut Report) {
    let curve = Curve {
        section: "growth_lists",
        title: "How the cost grows with the ingress lists",
        what: "ingress lists",
        remark: "all work is in the last list; one lane, no storage, no link",
    };
    let document = Document::of_size(USUAL);
    curve.measure(effort, report, &[1, 4, 16, 64], |number| {
        let names: Vec<String> = (1..=number)
            .map(|number| format!("list-{number}"))
            .collect();
        let mut config = case::BARE.config(servers);
        config["chains"]["main"]["ingress_lists"] = json!(names);
        let count = if effort.quick { 2000 } else { 5000 };
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let daemon = Conserver::with(&servers.redis).config(&config).start();
        servers.push(&names[number - 1], &ids);
        timed(servers, daemon, count)
    });
}

fn waiting(servers: &Servers, effort: &Effort, report: &mut Report) {
    let curve = Curve {
        section: "growth_waiting",
        title: "How the cost grows with the vCons that wait",
        what: "waiting vCons",
        remark: "one lane, no storage, no link; the list is kept that long by producers",
    };
    let numbers = [10, 1_000, 100_000, 1_000_000, 10_000_000];
    let numbers = if effort.quick {
        &numbers[..4]
    } else {
        &numbers[..]
    };
    let document = Document::of_size(USUAL);
    let count = if effort.quick { 2000 } else { 5000 };
    curve.measure(effort, report, numbers, |number| {
        servers.empty();
        let ids = ids(count);
        servers.load(&document, &ids);
        let daemon = ours::start(servers, &case::BARE, Way::of(1, 1));
        let rate = if number <= count {
            keep_filled(servers, &ids, number)
        } else {
            fill(servers, &ids, number);
            let rate = Done::of(&servers.redis).rate(count / 5, count);
            servers.redis.ask::<()>(&["DEL", "default"]);
            rate
        };
        servers.redis.ask::<()>(&["DEL", "default"]);
        ours::stop(servers, daemon);
        rate
    });
}

/// Fills the list at one instant with the ids, over and over.
fn fill(servers: &Servers, ids: &[String], number: usize) {
    let mut left = number;
    while left > 0 {
        let some = &ids[..left.min(ids.len())];
        servers.push("filling", some);
        left -= some.len();
    }
    servers.redis.ask::<()>(&["RENAME", "filling", "default"]);
}

/// Adds as many as are done, so that about so many wait at any time.
fn keep_filled(servers: &Servers, ids: &[String], number: usize) -> f64 {
    let start = std::time::Instant::now();
    let mut connection = servers.redis.connection();
    let mut handed_in = 0;
    while handed_in < ids.len() {
        let waiting: usize = redis::cmd("LLEN")
            .arg("default")
            .query(&mut connection)
            .expect("Redis");
        let room = number.saturating_sub(waiting).min(ids.len() - handed_in);
        if room > 0 {
            let mut push = redis::cmd("RPUSH");
            push.arg("default").arg(&ids[handed_in..handed_in + room]);
            push.query::<()>(&mut connection).expect("Redis");
            handed_in += room;
        } else {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
    let end = Done::of(&servers.redis).wait_for(ids.len());
    ids.len() as f64 / (end - start).as_secs_f64()
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
            ours::rate(servers, &case, Way::of(number, 1), &document, count).0
        });
    }
}

fn timed(servers: &Servers, daemon: Daemon, count: usize) -> f64 {
    let rate = Done::of(&servers.redis).rate(count / 5, count);
    ours::stop(servers, daemon);
    rate
}
