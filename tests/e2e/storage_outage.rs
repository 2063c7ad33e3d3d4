//! Storages with `on_outage: defer`, and vCons that one storage alone does not take: everybody else
//! goes on, and nothing is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Blocked, Conserver, Daemon, Files, Hook, Monitor, PATIENCE, Proxy, Redis, Sample, chain,
    deferring, fresh, number_from_env, storage_at, submit, wait_until,
};

const QUEUE: &str = "DLQ:storage:later";
const REASONS: &str = "conserver:dlq:storage:later";

/// A chain with a link and a storage that work, and one that defers.
struct Chain {
    link: Hook,
    files: Files,
    later: Hook,
    door: Proxy,
}

impl Chain {
    fn new() -> Self {
        let later = Hook::new();
        Self {
            link: Hook::new(),
            files: Files::new(),
            door: Proxy::before(later.port()),
            later,
        }
    }

    fn config(&self) -> Value {
        let later = deferring(storage_at(self.door.port()));
        let storages = [("files", self.files.storage()), ("later", later)];
        chain(&[("hook", self.link.link())], &storages)
    }

    fn conserver(&self, redis: &Redis) -> Conserver {
        conserver(redis, &self.config())
    }
}

fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .workers(2)
        .lanes(4)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "200")
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
}

fn queue_in_status(daemon: &Daemon) -> Value {
    let finished = daemon.conserver().run(&["status", "--json", "--queues"]);
    let status: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    status["queues"]["storages"]["later"].clone()
}

fn ids(samples: &[Sample]) -> BTreeSet<String> {
    samples.iter().map(|sample| sample.id.clone()).collect()
}

/// Waits until all are announced, and fails if one is a dead letter or announced twice. A claim may be
/// held for a moment by a lane that has not found the storage away yet.
fn are_announced(redis: &Redis, samples: &[Sample]) {
    wait_until("all are announced or dead", PATIENCE, || {
        redis.length("done") + redis.length("DLQ:default") >= samples.len()
    });
    assert_eq!(redis.length("DLQ:default"), 0);
    let done = redis.list("done");
    assert_eq!(done.len(), samples.len());
    assert_eq!(done.into_iter().collect::<BTreeSet<_>>(), ids(samples));
}

fn waits_all(redis: &Redis, samples: &[Sample]) {
    wait_until("all wait for the storage", PATIENCE, || {
        redis.length(QUEUE) == samples.len() && redis.keys("conserver:claims:*").is_empty()
    });
    let queue = redis.list(QUEUE);
    assert_eq!(queue.into_iter().collect::<BTreeSet<_>>(), ids(samples));
}

/// Fails unless the outage is shown, and not as a hold: the chain goes on.
fn is_no_hold(daemon: &Daemon, monitor: &Monitor) {
    let mut status = Value::Null;
    wait_until("the outage is shown", PATIENCE, || {
        status = daemon.status().unwrap_or_default();
        status["outages"][0]["storage"] == "later"
    });
    assert_eq!(status["holds"], json!([]));
    let states = status["workers"].as_array().into_iter().flatten();
    assert!(
        states.clone().all(|worker| worker["state"] != "holding"),
        "{status}"
    );
    let shown = daemon.conserver().run(&["status", "--queues"]).stdout;
    said_in(&shown, "Storage later is unavailable (since ");
    said_in(&shown, "100 vCons wait in its backlog, chains go on");
    assert!(!shown.contains("On hold"), "{shown}");
    assert_eq!(monitor.wait_for("/readyz", 200).body, "ready\n");
    let metrics = monitor.get("/metrics").body;
    assert!(!metrics.contains("conserver_hold_seconds{"), "{metrics}");
}

fn said_in(text: &str, words: &str) {
    assert!(text.contains(words), "{words}: {text}");
}

fn a_deferring_storage_that_is_away_costs_nobody_anything(redis: &Redis) {
    let parts = Chain::new();
    parts.door.refuse();
    // Pauses that would be noticed if every vCon had to wait for them.
    let conserver = parts.conserver(redis);
    let monitor = Monitor::at_a_port();
    let daemon = conserver
        .env("CONSERVER_RETRY_FIRST_MS", "500")
        .env("CONSERVER_RETRY_MAX_MS", "500")
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(100);
    submit(redis, "default", &samples);
    are_announced(redis, &samples);
    waits_all(redis, &samples);
    assert_eq!(redis.keys(REASONS), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:progress"), Vec::<String>::new());
    // Three attempts for each lane that found it away, and none for the others.
    parts.link.has_taken_each("the link", &samples, 1);
    assert_eq!(parts.files.paths().len(), samples.len());
    wait_until("the backlog is shown", PATIENCE, || {
        queue_in_status(&daemon) == json!({"dead_letters": 0, "backlog": samples.len()})
    });

    let order = redis.list(QUEUE);
    daemon.wait_for_log(
        "storage later is away, its vCons wait in its queue until it is back",
        PATIENCE,
    );
    is_no_hold(&daemon, &monitor);
    parts.door.pass();
    wait_until("the backlog is gone", PATIENCE, || redis.length(QUEUE) == 0);
    wait_until("all are saved", PATIENCE, || {
        parts.later.taken().len() == samples.len()
    });
    parts.later.has_taken_each("the storage", &samples, 1);
    parts.link.has_taken_each("the link", &samples, 1);
    assert_eq!(redis.length("done"), samples.len());
    // Oldest first: eight lanes may pass each other by a little.
    let taken = parts.later.taken();
    for (place, id) in taken.iter().enumerate() {
        let was = order.iter().position(|it| it == id).expect("it waited");
        assert!(
            place.abs_diff(was) < 40,
            "number {was} came as number {place}"
        );
    }
    for call in parts.later.calls() {
        assert!(call.document.to_string().contains("checked:checked"));
    }
    wait_until("no claim is left", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    daemon.stop();
}

#[test]
fn a_deferring_storage_that_is_away_costs_nobody_anything_with_plain_documents() {
    a_deferring_storage_that_is_away_costs_nobody_anything(&Redis::plain());
}

#[test]
fn a_deferring_storage_that_is_away_costs_nobody_anything_with_json_documents() {
    a_deferring_storage_that_is_away_costs_nobody_anything(&Redis::with_json());
}

#[test]
fn a_backlog_is_gone_soon_after_the_storage_is_back() {
    let redis = Redis::plain();
    let blocked = Blocked::new();
    let (name, storage) = blocked.storage();
    let config = chain(&[], &[(name, deferring(storage))]);
    let daemon = conserver(&redis, &config).start();
    let count = number_from_env("CONSERVER_TEST_BACKLOG", 200);
    let samples = fresh(count);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    wait_until("all wait for the storage", PATIENCE, || {
        redis.length("DLQ:storage:files") == count && redis.keys("conserver:claims:*").is_empty()
    });
    let start = Instant::now();
    blocked.free();
    wait_until("the backlog is gone", PATIENCE, || {
        redis.length("DLQ:storage:files") == 0
    });
    let took = start.elapsed();
    println!("a backlog of {count} vCons is gone after {took:?}");
    // A quiet machine takes less than 2 s, also for 1,000.
    assert!(took < Duration::from_secs(10), "{took:?}");
    wait_until("nothing is in work", PATIENCE, || {
        redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(blocked.files().paths().len(), count);
    daemon.stop();
}

#[test]
fn one_lane_works_the_backlog_off_in_its_order() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let conserver = parts.conserver(&redis).workers(1).lanes(1);
    // A tick that would be noticed.
    let daemon = conserver.env("TICK_INTERVAL", "3600000").start();
    let samples = fresh(30);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    parts.door.pass();
    wait_until("all are saved", PATIENCE, || {
        parts.later.taken().len() == samples.len()
    });
    let expected: Vec<String> = samples.iter().map(|it| it.id.clone()).collect();
    assert_eq!(parts.later.taken(), expected);
    daemon.stop();
}

#[test]
fn nothing_is_taken_from_the_backlog_while_somebody_replays_it() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let daemon = parts.conserver(&redis).env("TICK_INTERVAL", "50").start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    let lock = format!("{QUEUE}:replay-lock");
    redis.ask::<()>(&["SET", &lock, "api"]);
    parts.door.pass();
    daemon.wait_for_log("storage later is back after", PATIENCE);
    wait_until("both workers know", PATIENCE, || {
        daemon.status().unwrap_or_default()["outages"] == json!([])
    });
    // Lanes look for work: what comes to the list goes through, to that storage, too.
    for round in 1..=5 {
        let more = fresh(4);
        submit(&redis, "default", &more);
        wait_until("new vCons go through", PATIENCE, || {
            parts.later.taken().len() == 4 * round
        });
        waits_all(&redis, &samples);
    }
    let taken: BTreeSet<String> = parts.later.taken().into_iter().collect();
    assert!(taken.is_disjoint(&ids(&samples)));
    redis.ask::<i64>(&["DEL", &lock]);
    wait_until("the backlog is gone", PATIENCE, || redis.length(QUEUE) == 0);
    wait_until("all are saved", PATIENCE, || {
        parts.later.taken().len() == samples.len() + 20
    });
    daemon.stop();
}

#[test]
fn a_backlog_is_worked_off_beside_other_work() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let conserver = parts.conserver(&redis).workers(1).lanes(1);
    let daemon = conserver.env("TICK_INTERVAL", "3600000").start();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    redis.ask::<()>(&["SET", &format!("{QUEUE}:replay-lock"), "api"]);
    parts.door.pass();
    wait_until("it is known to be back", PATIENCE, || {
        daemon.status().unwrap_or_default()["outages"] == json!([])
    });
    redis.ask::<i64>(&["DEL", &format!("{QUEUE}:replay-lock")]);
    // The lane sleeps; the next vCon wakes it, and behind that the backlog has its turn.
    submit(&redis, "default", &fresh(1));
    wait_until("the backlog is gone", PATIENCE, || redis.length(QUEUE) == 0);
    wait_until("all are saved", PATIENCE, || {
        parts.later.taken().len() == samples.len() + 1
    });
    daemon.stop();
}

/// What the storage says of vCons that it refuses.
const STATUSES: [u16; 4] = [422, 400, 409, 415];

/// Two storages, of which `later` refuses these vCons for good.
fn refusing(redis: &Redis, on_outage: &str, expiry: &str, samples: &[Sample]) -> (Chain, Daemon) {
    let parts = Chain::new();
    let bad: Vec<String> = samples.iter().map(|it| it.id.clone()).collect();
    // Each for a reason of its own: one for all would be the storage's own fault.
    parts.later.decides(move |id| {
        let place = bad.iter().position(|bad| bad == id);
        place.map_or(200, |place| STATUSES[place])
    });
    let mut config = parts.config();
    config["storages"]["later"]["on_outage"] = json!(on_outage);
    let conserver = conserver(redis, &config).env("VCON_DLQ_EXPIRY", expiry);
    (parts, conserver.start())
}

fn ttl(redis: &Redis, sample: &Sample) -> i64 {
    redis.ask(&["TTL", &format!("vcon:{}", sample.id)])
}

fn expire(redis: &Redis, sample: &Sample, seconds: &str) {
    redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), seconds]);
}

#[test]
fn what_one_storage_alone_refuses_is_announced_and_a_dead_letter_of_that_storage() {
    for redis in [Redis::plain(), Redis::with_json()] {
        for on_outage in ["hold", "defer"] {
            redis.ask::<()>(&["FLUSHALL"]);
            let (bad, good) = (fresh(4), fresh(4));
            // Stored before they are pushed, so that their time to live is set by then.
            submit(&redis, "aside", &bad);
            let (parts, daemon) = refusing(&redis, on_outage, "5000", &bad);
            expire(&redis, &bad[0], "1000");
            expire(&redis, &bad[1], "9000");
            redis.ask::<()>(&["RENAME", "aside", "default"]);
            submit(&redis, "default", &good);
            let all = [&bad[..], &good[..]].concat();
            are_announced(&redis, &all);
            waits_all(&redis, &bad);
            parts.link.has_taken_each("the link", &all, 1);
            parts.later.has_taken_each("the storage", &good, 1);
            assert_eq!(parts.files.paths().len(), all.len());
            for (sample, status) in bad.iter().zip(STATUSES) {
                let reason: String = redis.ask(&["HGET", REASONS, &sample.id]);
                let reason: Value = serde_json::from_str(&reason).expect("JSON");
                assert_eq!(reason["stage"], "storage later");
                assert_eq!(reason["attempts"], 1);
                let error = reason["error"].as_str().expect("text");
                assert!(error.contains(&status.to_string()), "{reason}");
                assert!(reason["at"].as_f64().expect("a time") > 1.7e9, "{reason}");
            }
            assert!((4_900..=5_000).contains(&ttl(&redis, &bad[0])));
            assert!((8_900..=9_000).contains(&ttl(&redis, &bad[1])));
            assert_eq!(ttl(&redis, &bad[2]), -1);
            let shown = json!({"dead_letters": 4, "backlog": 0});
            wait_until("the dead letters are shown", PATIENCE, || {
                queue_in_status(&daemon) == shown
            });

            // They do not go round by themselves.
            let more = fresh(20);
            submit(&redis, "default", &more);
            wait_until("others go through", PATIENCE, || {
                parts.later.taken().len() == good.len() + more.len()
            });
            assert_eq!(parts.later.refused(), bad.len());

            parts.later.answers(200);
            let retry = ["dlq", "retry", "storage:later", "--all"];
            let finished = daemon.conserver().run(&retry);
            assert_eq!(finished.code, 0, "{}", finished.output());
            let all = [&all[..], &more[..]].concat();
            parts.later.has_taken_each("the storage", &all, 1);
            parts.link.has_taken_each("the link", &all, 1);
            assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
            assert_eq!(redis.keys(REASONS), Vec::<String>::new());
            are_announced(&redis, &all);
            daemon.stop();
        }
    }
}

#[test]
fn a_dead_letter_of_a_storage_keeps_its_time_to_live_if_none_is_configured() {
    let redis = Redis::plain();
    let bad = fresh(2);
    submit(&redis, "aside", &bad);
    expire(&redis, &bad[0], "9000");
    let (_parts, daemon) = refusing(&redis, "hold", "0", &bad);
    redis.ask::<()>(&["RENAME", "aside", "default"]);
    are_announced(&redis, &bad);
    waits_all(&redis, &bad);
    assert!((8_900..=9_000).contains(&ttl(&redis, &bad[0])));
    assert_eq!(ttl(&redis, &bad[1]), -1);
    daemon.stop();
}

#[test]
fn what_a_storage_refuses_from_its_backlog_is_its_dead_letter() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let daemon = parts.conserver(&redis).start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    let (bad, good) = samples.split_at(5);
    let dead = ids(bad);
    parts
        .later
        .decides(move |id| if dead.contains(id) { 422 } else { 200 });
    parts.door.pass();
    wait_until("only dead letters are left", PATIENCE, || {
        queue_in_status(&daemon) == json!({"dead_letters": 5, "backlog": 0})
    });
    waits_all(&redis, bad);
    parts.later.has_taken_each("the storage", good, 1);
    // Lanes have looked at the queue again by now, and leave the dead letters where they are.
    let refused = parts.later.refused();
    let more = fresh(10);
    submit(&redis, "default", &more);
    wait_until("others go through", PATIENCE, || {
        parts.later.taken().len() == good.len() + more.len()
    });
    assert_eq!(parts.later.refused(), refused);
    assert_eq!(redis.keys("DLQ:*"), [QUEUE]);
    daemon.stop();
}

#[test]
fn what_is_refused_after_somebody_else_has_returned_it_is_no_dead_letter() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let daemon = parts.conserver(&redis).start();
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    let (mut connection, mut is_first) = (redis.connection(), true);
    parts.later.decides(move |id| {
        if !std::mem::take(&mut is_first) {
            return 200;
        }
        // As recovery returns it while the storage takes its time.
        let mut steps = redis::pipe();
        for worker in 1..=2 {
            steps
                .cmd("DEL")
                .arg(format!("conserver:claims:here:{worker}"));
        }
        steps.cmd("RPUSH").arg(QUEUE).arg(id);
        steps.exec(&mut connection).expect("Redis");
        422
    });
    parts.door.pass();
    wait_until("the second call takes it", PATIENCE, || {
        parts.later.taken().len() == samples.len()
    });
    wait_until("the backlog is gone", PATIENCE, || redis.length(QUEUE) == 0);
    assert_eq!(daemon.count_in_log("the claim was released already"), 1);
    assert_eq!(daemon.count_in_log(" went to "), 0);
    let status = daemon.status().expect("a daemon");
    let workers = status["workers"].as_array().expect("workers");
    let failed: Vec<&Value> = workers.iter().map(|worker| &worker["failed"]).collect();
    assert_eq!(failed, [0, 0], "{status}");
    assert_eq!(redis.keys(REASONS), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_backlog_survives_the_death_of_workers() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.door.refuse();
    let conserver = parts.conserver(&redis).env("CONSERVER_MAX_DEATHS", "0");
    let daemon = conserver.start();
    let samples = fresh(200);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    parts.door.pass();
    for kills in 1..=4 {
        let saved = parts.later.taken().len();
        wait_until("some more are saved", PATIENCE, || {
            parts.later.taken().len() >= (saved + 10).min(samples.len())
        });
        for pid in daemon.workers().values() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        wait_until("they are started again", PATIENCE, || {
            daemon.count_in_log("tarted Worker-") >= 2 * (kills + 1)
        });
    }
    wait_until("the backlog is gone", PATIENCE, || {
        redis.length(QUEUE) == 0 && redis.keys("conserver:claims:*").is_empty()
    });
    let taken: BTreeSet<String> = parts.later.taken().into_iter().collect();
    assert_eq!(taken, ids(&samples));
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    parts.link.has_taken_each("the link", &samples, 1);
    assert_eq!(redis.length("done"), samples.len());
    daemon.stop();
}

#[test]
fn a_deferring_storage_that_is_reachable_but_fails_is_tried_one_at_a_time() {
    const ATTEMPTS: usize = 3;
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.later.answers(503);
    let daemon = parts.conserver(&redis).workers(1).start();
    let samples = fresh(60);
    submit(&redis, "default", &samples);
    are_announced(&redis, &samples);
    daemon.wait_for_log("storage later has failed for 3 vCons in a row", PATIENCE);
    // What the other lanes had in hand by then, then trials alone.
    let known = parts.later.refused() + 4 * ATTEMPTS;
    wait_until("some are tried", PATIENCE, || {
        parts.later.refused() >= known + 6 * ATTEMPTS
    });
    let calls = parts.later.calls().split_off(known);
    let mut runs: Vec<(String, usize)> = Vec::new();
    for call in calls {
        match runs.last_mut() {
            Some((last, count)) if *last == call.id => *count += 1,
            _ => runs.push((call.id, 1)),
        }
    }
    for (id, count) in &runs[1..runs.len() - 1] {
        assert_eq!(count % ATTEMPTS, 0, "{id} was not tried alone: {runs:?}");
    }
    parts.later.answers(200);
    wait_until("the backlog is gone", PATIENCE, || {
        parts.later.taken().len() == samples.len()
    });
    parts.later.has_taken_each("the storage", &samples, 1);
    parts.link.has_taken_each("the link", &samples, 1);
    wait_until("nothing is left", PATIENCE, || {
        redis.keys("DLQ:*").is_empty() && redis.keys("conserver:tries").is_empty()
    });
    daemon.stop();
}
