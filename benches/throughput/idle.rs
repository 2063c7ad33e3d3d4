//! A daemon that has nothing to do: what it takes, and how fast it wakes.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Effort;
use super::case;
use super::document::{Document, USUAL, ids};
use super::harness::{Conserver, PATIENCE, wait_until};
use super::ours::{self, Way};
use super::report::{Report, percentile, print, progress, table};
use super::servers::Servers;
use super::usage::cpu_seconds;

/// The table of what an idle daemon does.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let mut table = table(&["what", "figure"]);
    report.begin("idle");
    let seconds = if effort.quick { 5 } else { 30 };
    progress("idle: CPU");
    let used = idle_cpu(servers, seconds);
    table.add_row([
        format!("CPU of 4 idle workers, monitor and supervisor in {seconds} s"),
        format!("{:.0} ms", used * 1e3),
    ]);
    progress("idle: RPUSH to claim");
    let times = claims(servers, if effort.quick { 200 } else { 1000 });
    let mut row = json!({"cpu": used / seconds as f64});
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let time = percentile(&times, part) * 1e3;
        table.add_row([format!("RPUSH to claim, {name}"), format!("{time:.3} ms")]);
        row[name] = time.into();
    }
    report.add("idle", row);
    let remark = format!(
        "RPUSH to claim: {} vCons, by the clock of Redis",
        times.len()
    );
    print("Idle", &table, &remark);
}

fn idle_cpu(servers: &Servers, seconds: u64) -> f64 {
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

/// From RPUSH to the claim that its record tells; a link holds each vCon long enough to read that.
fn claims(servers: &Servers, count: usize) -> Vec<f64> {
    servers.empty();
    let document = Document::of_size(USUAL);
    let ids = ids(count);
    servers.load(&document, &ids);
    let mut config = case::BARE.config(servers);
    config["links"] = json!({"slowly": {"module": "links.delay", "options": {"seconds": 0.01}}});
    config["chains"]["main"]["links"] = json!(["slowly"]);
    let daemon = Conserver::with(&servers.redis).config(&config).start();
    daemon.wait_for_workers(1);
    let mut connection = servers.redis.connection();
    let push = redis::Script::new(
        "redis.call('RPUSH', 'default', ARGV[1]) local t = redis.call('TIME') return t[1] .. '.' .. ('%06d'):format(t[2])",
    );
    let mut times = Vec::new();
    for (id, number) in ids.iter().zip(1..) {
        let pushed: String = push.arg(id).invoke(&mut connection).expect("Redis");
        let mut record = None;
        wait_until("the vCon is claimed", PATIENCE, || {
            let mut get = redis::cmd("HGET");
            get.arg("conserver:claims:here:1").arg(1);
            record = get.query::<Option<String>>(&mut connection).expect("Redis");
            record = record.take().filter(|record| record.contains(id.as_str()));
            // It may have been done while we were not given the processor.
            record.is_some() || servers.redis.length("done") == number
        });
        if let Some(record) = record {
            let record: Value = serde_json::from_str(&record).expect("JSON");
            times.push(
                record["since"].as_f64().expect("a time") - pushed.parse::<f64>().expect("a time"),
            );
        }
        wait_until("the vCon is done", PATIENCE, || {
            servers.redis.length("done") == number
        });
        // Its lane looks once more, and goes to sleep.
        thread::sleep(Duration::from_millis(2));
    }
    ours::stop(servers, daemon);
    times
}
