//! What operators tell running daemons by name: pause, resume, scale, reload, drain.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Redis, chain, delay, fresh, run, said, submit, wait_until,
};

/// Two chains: `default` takes its time over each vCon, `light` does not.
fn config() -> Value {
    let mut config = chain(&[delay(0.05)], &[]);
    config["chains"]["other"] = json!({
        "links": ["tagger"], "storages": [], "ingress_lists": ["light"], "egress_lists": ["lit"],
    });
    config
}

fn start(redis: &Redis, instance: &str, workers: usize) -> Daemon {
    let daemon = Conserver::with(redis)
        .config(&config())
        .env("CONSERVER_INSTANCE", instance)
        .env("CONSERVER_LIST_ORDER", "rotate")
        .workers(workers)
        .lanes(3)
        .start();
    daemon.wait_for_workers(workers);
    daemon
}

/// Fails unless this many wait in `default`, and go on to do so once nothing is in work any more.
fn stay(redis: &Redis, waiting: usize) {
    wait_until("nothing is in work", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(redis.length("default"), waiting);
}

#[test]
fn nothing_is_claimed_from_a_paused_list_by_any_instance() {
    let redis = Redis::plain();
    let (here, there) = (start(&redis, "here", 1), start(&redis, "there", 1));
    let samples = fresh(800);
    submit(&redis, "default", &samples);
    let ledger = Ledger::of(&redis, &samples);
    // Under load, again and again: from the instant at which the command has returned.
    for name in ["default", "chain:main"] {
        let before = ledger.done();
        ledger.wait_for(before + 20);
        let paused = run(here.conserver(), &["pause", name], 0);
        let waiting = redis.length("default");
        said(&paused, &["paused: ", "(instances: here, there)"]);
        assert!(waiting > 0, "too few vCons for this machine");
        stay(&redis, waiting);
        assert_eq!(ledger.done() + waiting, samples.len());
        run(there.conserver(), &["resume", name], 0);
    }

    run(here.conserver(), &["pause", "default"], 0);
    let waiting = redis.length("default");
    // The other chain goes on, on lanes that are woken for it.
    let others = fresh(3);
    submit(&redis, "light", &others);
    wait_until("the other chain goes on", PATIENCE, || {
        redis.length("lit") == 3
    });
    // What a worker that is killed has in work comes back.
    stay(&redis, waiting);
    // Workers and monitors that take the place of others follow, and so does a daemon that starts.
    let killed = [here.workers()[&1], there.process("conserver-mon")];
    for pid in killed {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    }
    here.wait_for_log("Worker-1 (PID", PATIENCE);
    wait_until("the worker is replaced", PATIENCE, || {
        here.workers()[&1] != killed[0]
    });
    here.wait_for_workers(1);
    let later = start(&redis, "later", 1);
    let more = fresh(3);
    submit(&redis, "light", &more);
    wait_until("there is work for it", PATIENCE, || {
        redis.length("lit") == 6
    });
    stay(&redis, waiting);

    // It is told.
    let status = later.status().expect("it runs");
    let paused = &status["paused"][0];
    assert_eq!(
        (&paused["kind"], &paused["name"]),
        (&json!("list"), &json!("default"))
    );
    let since = paused["since"].as_str().unwrap_or_default();
    assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
    assert!(
        paused["by"].as_str().unwrap_or_default().contains('@'),
        "{paused}"
    );
    let text = here.conserver().run(&["status"]).stdout;
    assert!(text.contains("Paused: list default (by "), "{text}");
    let listed = run(there.conserver(), &["pause", "--json"], 0).stdout;
    assert_eq!(
        serde_json::from_str::<Value>(&listed).expect("JSON"),
        status["paused"]
    );
    assert_eq!(later.count_in_log("list default is paused by "), 1);
    let wrong = run(here.conserver(), &["pause", "defautl"], 64);
    said(
        &wrong,
        &["no list or chain defautl", "did you mean `default`?"],
    );
    let again = run(here.conserver(), &["pause", "default"], 0);
    said(&again, &["paused before: list default (by "]);

    // One that does not confirm is named.
    redis.ask::<i64>(&["SADD", "conserver:instances", "ghost"]);
    redis.ask::<String>(&["SET", "conserver:instance:ghost", "{}"]);
    let late = run(here.conserver(), &["pause", "light", "--timeout", "1"], 69);
    said(
        &late,
        &["paused: list light", "not confirmed within 1 s by ghost"],
    );
    redis.ask::<i64>(&["DEL", "conserver:instance:ghost"]);

    // What cannot be read changes nothing.
    let key: Vec<String> = redis.ask(&["HKEYS", "conserver:paused"]);
    assert_eq!(key.len(), 2);
    redis.ask::<String>(&["RENAME", "conserver:paused", "aside"]);
    redis.ask::<String>(&["SET", "conserver:paused", "no hash"]);
    here.wait_for_log("the pauses in force stay", PATIENCE);
    stay(&redis, waiting);
    redis.ask::<String>(&["RENAME", "aside", "conserver:paused"]);

    run(there.conserver(), &["resume", "--all"], 0);
    ledger.settles();
    assert_eq!(here.status().expect("it runs")["paused"], json!([]));
    assert!(redis.keys("conserver:paused*").is_empty());
    for daemon in [here, there, later] {
        daemon.stop();
    }
}

#[test]
fn a_daemon_scales_reloads_and_drains_by_name_and_loses_nothing() {
    let redis = Redis::plain();
    let mut daemon = start(&redis, "here", 2);
    let samples = fresh(700);
    submit(&redis, "default", &samples);
    let ledger = Ledger::of(&redis, &samples);
    let tell = |daemon: &Daemon, arguments: &[&str], code: i32, words: &[&str]| {
        said(&run(daemon.conserver(), arguments, code), words);
    };
    tell(&daemon, &["scale", "4"], 0, &["4 workers instead of 2"]);
    daemon.wait_for_workers(4);
    tell(&daemon, &["scale", "4"], 0, &["has 4 workers already"]);
    tell(&daemon, &["scale", "0"], 64, &["0"]);
    tell(&daemon, &["scale", "1"], 0, &["1 worker instead of 4"]);
    daemon.wait_for_workers(1);

    let before = daemon.workers();
    let mut changed = config();
    changed["links"]["tagger"]["options"]["tags"] = json!(["changed"]);
    daemon.reconfigure(&changed);
    tell(
        &daemon,
        &["reload", "--wait"],
        0,
        &["every worker has the new"],
    );
    assert_ne!(daemon.workers()[&1], before[&1]);
    let after = fresh(1);
    submit(&redis, "light", &after);
    wait_until("it is done", PATIENCE, || redis.length("lit") == 1);
    let document = redis.document(&after[0].id).expect("it is in Redis");
    assert!(document.to_string().contains("changed"), "{document}");
    let mut broken = changed.clone();
    broken["chains"]["main"]["links"] = json!(["none"]);
    daemon.reconfigure(&broken);
    let words = ["none", "not reloaded: the former configuration stays"];
    tell(&daemon, &["reload", "--wait"], 78, &words);
    daemon.reconfigure(&changed);

    ledger.wait_for(1);
    tell(&daemon, &["drain", "--wait"], 0, &["the daemon has ended"]);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    ledger.is_split_between(&["default", "done"]);
    assert!(
        redis.length("default") > 0,
        "too few vCons for this machine"
    );
    for command in [&["scale", "2"][..], &["reload"], &["drain"]] {
        tell(&daemon, command, 69, &["no conserver"]);
    }
}
