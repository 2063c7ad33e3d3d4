//! A backend that is reachable and does not do its work costs one lane at a time, and no dead letter.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Hook, Ledger, PATIENCE, Proxy, Redis, Sample, chain, fresh, storage_at,
    submit, wait_until,
};

/// How many attempts a vCon gets in a row.
const ATTEMPTS: usize = 3;

fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .lanes(4)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .env("CONSERVER_RETRY_ATTEMPTS", ATTEMPTS.to_string())
}

/// Eight chains that need `sick`, each with a list of its own, and one that does not.
fn nine_chains(sick: &Hook) -> Value {
    let mut config = chain(&[], &[("sick", sick.storage())]);
    let mut chains = json!({});
    for number in 1..=8 {
        chains[format!("sick{number}")] = json!({"links": ["tagger"], "storages": ["sick"],
            "ingress_lists": [format!("in{number}")], "egress_lists": ["done"]});
    }
    chains["healthy"] = json!({"links": ["tagger"], "ingress_lists": ["healthy"],
        "egress_lists": ["healthy_done"]});
    config["chains"] = chains;
    config
}

fn is_shown(daemon: &Daemon, what: &str) -> bool {
    let holds = daemon.status().unwrap_or_default()["holds"].clone();
    let holds = holds.as_array().cloned().unwrap_or_default();
    holds.iter().any(|hold| hold["stage"] == what)
}

/// The ids of calls, each with how often it was called in a row.
fn runs(calls: &[String]) -> Vec<(&str, usize)> {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for id in calls {
        match runs.last_mut() {
            Some((last, count)) if last == id => *count += 1,
            _ => runs.push((id, 1)),
        }
    }
    runs
}

#[test]
fn a_storage_that_fails_for_eight_chains_leaves_lanes_for_the_ninth() {
    let redis = Redis::plain();
    let sick = Hook::new();
    sick.answers(503);
    let mut samples = Vec::new();
    for number in 1..=8 {
        let some = fresh(5);
        submit(&redis, &format!("in{number}"), &some);
        samples.extend(some);
    }
    let daemon = conserver(&redis, &nine_chains(&sick)).start();
    daemon.wait_for_log("storage sick has failed for 3 vCons in a row", PATIENCE);
    let start = Instant::now();
    let healthy = fresh(20);
    submit(&redis, "healthy", &healthy);
    wait_until("the ninth chain is through", PATIENCE, || {
        redis.length("healthy_done") == healthy.len()
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");

    // What was in work by then has failed; from then on one lane is at it.
    let known = sick.refused() + 4 * ATTEMPTS;
    wait_until("some are tried one at a time", PATIENCE, || {
        sick.refused() >= known + 6 * ATTEMPTS
    });
    let calls: Vec<String> = sick.calls().into_iter().map(|call| call.id).collect();
    let runs = runs(&calls[known..]);
    // The first and the last are not seen as a whole.
    for (id, count) in &runs[1..runs.len() - 1] {
        assert_eq!(count % ATTEMPTS, 0, "{id} was not tried alone: {runs:?}");
    }
    assert!(is_shown(&daemon, "storage sick"));

    sick.answers(200);
    Ledger::of(&redis, &samples).settles();
    sick.has_taken_each("the storage", &samples, 1);
    wait_until("no hold is shown", PATIENCE, || {
        !is_shown(&daemon, "storage sick")
    });
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:tries"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn two_storages_of_one_chain_that_fail_do_not_wait_for_each_other() {
    let redis = Redis::plain();
    let (one, other) = (Hook::new(), Hook::new());
    one.answers(503);
    other.answers(503);
    let storages = [("one", one.storage()), ("other", other.storage())];
    let daemon = conserver(&redis, &chain(&[], &storages)).start();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    for name in ["one", "other"] {
        let failing = format!("storage {name} has failed for 3 vCons in a row");
        daemon.wait_for_log(&failing, PATIENCE);
    }
    only_trials_are_left(&redis, &one, &samples);
    only_trials_are_left(&redis, &other, &samples);
    one.answers(200);
    daemon.wait_for_log("storage one works again", PATIENCE);
    other.answers(200);
    Ledger::of(&redis, &samples).settles();
    one.has_taken_each("one", &samples, 1);
    other.has_taken_each("the other", &samples, 1);
    daemon.stop();
}

/// Waits until what was in work when a storage was found to fail is back in its list, and a vCon is
/// tried.
fn only_trials_are_left(redis: &Redis, hook: &Hook, samples: &[Sample]) {
    wait_until("all wait", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    let refused = hook.refused();
    wait_until("one is tried", PATIENCE, || {
        hook.refused() > refused + 2 * ATTEMPTS
    });
}

/// A storage that fails, with vCons that wait for it.
fn failing(redis: &Redis, hook: &Hook, port: u16) -> (Daemon, Vec<Sample>) {
    hook.answers(503);
    let storages = [("sick", storage_at(port))];
    // A pause that idle lanes should wait for.
    let conserver = conserver(redis, &chain(&[], &storages));
    let daemon = conserver.env("CONSERVER_RETRY_MAX_MS", "1000").start();
    let samples = fresh(6);
    submit(redis, "default", &samples);
    daemon.wait_for_log("storage sick has failed for 3 vCons in a row", PATIENCE);
    only_trials_are_left(redis, hook, &samples);
    (daemon, samples)
}

/// How many commands Redis is sent in a second.
fn commands_in_a_second(redis: &Redis) -> u64 {
    let count = || -> u64 {
        let stats: String = redis.ask(&["INFO", "stats"]);
        let mut lines = stats.lines();
        let count = lines.find_map(|line| line.strip_prefix("total_commands_processed:"));
        count.expect("a count").trim().parse().expect("a number")
    };
    let before = count();
    // The time is what is measured.
    std::thread::sleep(Duration::from_secs(1));
    count() - before
}

#[test]
fn a_storage_that_fails_and_then_is_away_is_tried_when_it_is_back() {
    let redis = Redis::plain();
    let sick = Hook::new();
    let door = Proxy::before(sick.port());
    let (daemon, samples) = failing(&redis, &sick, door.port());
    door.refuse();
    daemon.wait_for_log("storage sick is away, on hold until it is back", PATIENCE);
    // Nobody looks for a vCon to try it with, also when the pause before the next trial is over.
    let commands = [(); 3].map(|()| commands_in_a_second(&redis));
    let few = commands.iter().all(|commands| *commands < 30);
    assert!(few, "{commands:?} commands in a second");
    sick.answers(200);
    door.pass();
    Ledger::of(&redis, &samples).settles();
    sick.has_taken_each("the storage", &samples, 1);
    daemon.stop();
}
