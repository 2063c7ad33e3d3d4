//! Python modules of an existing deployment, which run unchanged in hosts beside the workers.
//!
//! The modules are in `tests/e2e/deployment`. Each records its calls, so that the tests see which were
//! called, in which order, with which arguments.

mod bad_modules;
mod calls;
mod configurations;
mod entries;
mod hooks;
mod kills;
mod processes;
mod servers;

use serde_json::{Value, json};

use crate::harness::{Conserver, Daemon, Deployment, Redis, Sample, children_of, command_line_of};

/// A daemon with one worker that has the modules of the deployment.
fn conserver(redis: &Redis, deployment: &Deployment, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_PYTHON_PATH", deployment.path())
}

/// A link or storage as it stands in `config.yml`.
fn module(module: &str, options: Value) -> Value {
    json!({"module": module, "options": options})
}

/// The same without options.
fn bare(module: &str) -> Value {
    json!({"module": module})
}

/// A vCon with this subject, and parties of every kind.
fn sample(subject: &str) -> Sample {
    let mut sample = Sample::small();
    sample.document["subject"] = subject.into();
    sample.document["parties"] = json!([
        {"name": "Zoë", "tel": "+15550100"}, {"name": "Ole", "mailto": "ole@example.org"}, {"name": "Nobody"},
    ]);
    sample
}

/// So many vCons with this subject.
fn samples(subject: &str, count: usize) -> Vec<Sample> {
    (0..count).map(|_| sample(subject)).collect()
}

/// What a hook is told of a chain.
fn told(config: &Value, chain: &str) -> Value {
    let mut told = config["chains"][chain].clone();
    told["name"] = chain.into();
    told
}

/// The Python hosts of a daemon: children of its workers.
fn hosts(daemon: &Daemon) -> Vec<i32> {
    let workers = daemon.workers().into_values();
    let children = workers.flat_map(children_of);
    children
        .filter(|pid| command_line_of(*pid).contains("conserver_host.py"))
        .collect()
}

/// A chain of these links from the list `odd` to the list `odd_done`, beside the chain that is there.
fn beside(config: &mut Value, links: &[(&str, Value)]) {
    for (name, link) in links {
        config["links"][name] = link.clone();
    }
    let names: Vec<&str> = links.iter().map(|(name, _)| *name).collect();
    config["chains"]["odd"] =
        json!({"links": names, "ingress_lists": ["odd"], "egress_lists": ["odd_done"]});
}
