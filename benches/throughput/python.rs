//! What a Python link costs that does nothing, in time and memory.

use std::fs;

use serde_json::json;

use super::Effort;
use super::document::{Document, ids};
use super::harness::{Conserver, name_of, private_folder, resident_set_of};
use super::ours::{Done, stop};
use super::report::{Report, median, print, progress, table};
use super::servers::Servers;

/// Workers and lanes.
const SHAPES: [(usize, usize); 2] = [(1, 1), (2, 2)];

/// How many such links a chain has.
const LINKS: [usize; 3] = [0, 1, 4];

/// The table of costs: chains without links and with some take turns.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let (rounds, count) = if effort.quick { (3, 1_000) } else { (9, 4_000) };
    let mut table = table(&[
        "workers x lanes",
        "links",
        "ms for each vCon and lane",
        "for each link",
        "memory of an interpreter, MB",
    ]);
    report.begin("python");
    for (workers, lanes) in SHAPES {
        let mut runs: [Vec<Run>; LINKS.len()] = Default::default();
        for number in 1..=rounds {
            for (links, runs) in LINKS.into_iter().zip(&mut runs) {
                progress(&format!(
                    "python, round {number} of {rounds}: {workers} x {lanes}, {links} links"
                ));
                runs.push(run(servers, workers, lanes, links, count));
            }
        }
        let middle = |runs: &[Run], of: fn(&Run) -> f64| {
            let values: Vec<f64> = runs.iter().map(of).collect();
            median(&values)
        };
        let without = middle(&runs[0], |run| run.time);
        for (links, runs) in LINKS.into_iter().zip(&runs) {
            let time = middle(runs, |run| run.time);
            let each = (time - without) / links.max(1) as f64;
            let memory = middle(runs, |run| run.memory);
            table.add_row([
                format!("{workers} x {lanes}"),
                links.to_string(),
                format!("{:.3}", time * 1e3),
                format!("{:.3}", each * 1e3),
                format!("{:.1}", memory / 1e6),
            ]);
            report.add(
                "python",
                json!({"workers": workers, "lanes": lanes, "links": links, "time": time, "each": each, "memory": memory}),
            );
        }
    }
    print(
        "What a Python link costs that does nothing",
        &table,
        "medians of rounds in which the chains take turns; documents of 10 kB, no storage, one egress list; memory: the \
         resident set of each interpreter when all is done",
    );
}

struct Run {
    /// Seconds for each vCon and lane.
    time: f64,
    /// Bytes of one interpreter.
    memory: f64,
}

fn run(servers: &Servers, workers: usize, lanes: usize, links: usize, count: usize) -> Run {
    let folder = private_folder();
    fs::write(
        folder.path().join("nothing.py"),
        "def run(uuid, name, options):\n    return uuid\n",
    )
    .expect("a module");
    servers.empty();
    let ids = ids(count);
    servers.load(&Document::of_size(10_000), &ids);
    let names: Vec<String> = (0..links)
        .map(|number| format!("nothing-{number}"))
        .collect();
    let modules: serde_json::Map<_, _> = names
        .iter()
        .map(|name| (name.clone(), json!({"module": "nothing"})))
        .collect();
    let chain = json!({"links": names, "ingress_lists": ["default"], "egress_lists": ["done"]});
    let daemon = Conserver::with(&servers.redis)
        .config(&json!({"links": modules, "chains": {"main": chain}}))
        .workers(workers)
        .lanes(lanes)
        .env("CONSERVER_PYTHON_PATH", folder.path())
        .start();
    daemon.wait_for_workers(workers);
    servers.push("default", &ids);
    let rate = Done::of(&servers.redis).rate(count / 5, count);
    let mut interpreters = daemon.family();
    interpreters.retain(|pid| name_of(*pid).starts_with("python"));
    let memory: u64 = interpreters.iter().map(|pid| resident_set_of(*pid)).sum();
    let memory = memory as f64 / interpreters.len().max(1) as f64;
    stop(servers, daemon);
    Run {
        time: (workers * lanes) as f64 / rate,
        memory,
    }
}
