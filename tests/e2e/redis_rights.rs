//! What Redis has to have and to allow: the rights that the manual lists are enough for everything, and
//! what is lacking is named.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Files, Hook, Ledger, PATIENCE, Redis, Sample, chain, deferring, delay,
    free_port, fresh, run, said, submit, wait_until,
};

const PASSWORD: &str = "GeheimesRedisWort";

/// The words of the manual in the block between two marks.
fn manual(mark: &str) -> String {
    let page = include_str!("../../packaging/manual/conserver-operations.7.md");
    let (begin, end) = (format!("<!-- {mark} -->"), format!("<!-- /{mark} -->"));
    let (_, rest) = page.split_once(&begin).expect("the mark");
    let block = rest.split_once(&end).expect("the end").0;
    block
        .lines()
        .filter(|line| !line.starts_with("```"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The command of the manual that makes the user, without the rights that `is_lost` names.
fn rights(redis: &Redis, is_lost: impl Fn(&str) -> bool) -> Vec<String> {
    let text = manual("acl").replace("PASSWORD", PASSWORD);
    let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if redis.has_json() {
        let more = manual("acl-json");
        words.extend(more.split_whitespace().map(str::to_owned));
    }
    words.retain(|word| !is_lost(word));
    words
}

fn make_user(redis: &Redis, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    redis.ask::<()>(&words);
}

/// The program as that user.
fn conserver(redis: &Redis) -> Conserver {
    let url = format!("redis://conserver:{PASSWORD}@127.0.0.1:{}", redis.port());
    Conserver::with(redis).env("REDIS_URL", url)
}

/// The commands and keys that the server has refused, whoever asked for them.
fn refusals(redis: &Redis) -> BTreeSet<String> {
    let log: Vec<HashMap<String, redis::Value>> = redis.ask(&["ACL", "LOG", "128"]);
    let object = |entry: &HashMap<String, redis::Value>| {
        redis::from_redis_value::<String>(entry["object"].clone()).expect("a text")
    };
    log.iter().map(object).collect()
}

/// All that a daemon and its operator do, as the user of the manual.
fn everything_works(redis: &Redis, without: &[&str]) {
    let is_lost = |word: &str| without.iter().any(|lost| word.starts_with(lost));
    make_user(redis, &rights(redis, is_lost));
    let (files, later) = (Files::new(), Hook::new());
    let storages = [
        ("files", files.storage()),
        ("later", deferring(later.storage())),
    ];
    let conserver = conserver(redis)
        .config(&chain(&[delay(0.02)], &storages))
        .workers(2)
        .lanes(2)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .env("CONSERVER_RETRY_ATTEMPTS", "2");
    run(&conserver, &["check"], 0);

    // Submitted by that user, with contexts; one storage is unavailable.
    later.answers(503);
    let samples = fresh(20);
    let folder = conserver.folder().join("vcons");
    fs::create_dir(&folder).expect("a folder");
    for sample in &samples {
        fs::write(folder.join(format!("{}.json", sample.id)), sample.text()).expect("a file");
        redis.ask::<i64>(&["RPUSH", &format!("context:default:{}", sample.id), "{}"]);
    }
    let daemon = conserver.launch();
    let conserver = daemon.conserver();
    daemon.wait_for_log("All 2 workers started", PATIENCE);
    run(conserver, &["submit", "vcons", "--list", "default"], 0);
    let ledger = Ledger::of(redis, &samples);
    wait_until("all are announced", PATIENCE, || {
        redis.length("done") == samples.len()
    });
    for sample in &samples {
        assert_eq!(redis.length(&format!("context:done:{}", sample.id)), 1);
    }
    wait_until("all wait for the storage", PATIENCE, || {
        redis.length("DLQ:storage:later") == samples.len()
    });
    run(conserver, &["status", "--queues"], 0);
    run(conserver, &["dlq", "show", "storage:later"], 0);
    later.answers(200);
    wait_until("the storage has all of them", PATIENCE, || {
        redis.length("DLQ:storage:later") == 0
            && later.taken().len() == samples.len()
            && redis.claims().is_empty()
    });
    ledger.settles();

    // A vCon that only a storage has.
    let id = samples[0].id.as_str();
    redis.ask::<i64>(&["DEL", &format!("vcon:{id}")]);
    redis.ask::<i64>(&["RPUSH", "default", id]);
    wait_until("it is fetched from the storage", PATIENCE, || {
        redis.document(id).is_some() && redis.length("done") == samples.len() + 1
    });

    // A dead letter, which is mended and tried again.
    let broken = Sample::small();
    let key = format!("vcon:{}", broken.id);
    redis.ask::<()>(&["SET", &key, "{\"uuid\": "]);
    redis.ask::<i64>(&["RPUSH", "default", &broken.id]);
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    said(&run(conserver, &["dlq", "ls"], 0), &[&broken.id, "parse"]);
    redis.ask::<()>(&["SET", &key, &broken.text()]);
    run(conserver, &["dlq", "retry", "default"], 0);
    // The deferring storage may get it later than it is announced.
    wait_until("it is done", PATIENCE, || {
        redis.list("done").contains(&broken.id) && later.taken().contains(&broken.id)
    });

    // A storage that refuses one for good.
    later.answers(400);
    let refused = [Sample::small()];
    submit(redis, "default", &refused);
    wait_until("the storage has a dead letter", PATIENCE, || {
        redis.ask::<i64>(&["HLEN", "conserver:dlq:storage:later"]) == 1
    });
    later.answers(200);
    run(conserver, &["dlq", "retry", "storage:later"], 0);
    assert_eq!(redis.length("DLQ:storage:later"), 0);

    // A document too large for the script interpreter, as it is read and as it is written.
    let mut large = Sample::small();
    large.document["subject"] = "x".repeat(3 << 20).into();
    submit(redis, "default", std::slice::from_ref(&large));
    wait_until("the large one is done", PATIENCE, || {
        redis.list("done").contains(&large.id)
    });

    run(conserver, &["get", id], 0);
    run(conserver, &["where", id], 0);
    run(conserver, &["delete", id, "--yes"], 0);
    run(conserver, &["audit", "--settle", "0"], 0);

    // Killed in the midst of the work.
    redis.ask::<i64>(&["DEL", "done"]);
    let more = fresh(40);
    submit(redis, "default", &more);
    wait_until("some are done", PATIENCE, || redis.length("done") >= 5);
    daemon.kill_family();
    assert!(!redis.keys("conserver:claims:*").is_empty());
    let again = conserver.launch_again();
    Ledger::of(redis, &more).settles();
    for daemon in [&daemon, &again] {
        let log = daemon.log();
        for word in ["is not enough", "Redis is away"] {
            assert!(!log.contains(word), "{word}: {log}");
        }
    }
    again.stop();

    // What is done in another way if it is refused.
    let mut refused = refusals(redis);
    for optional in [
        "sort",
        "bitop",
        "info",
        "zscore",
        "client",
        "client|setname",
        "client|id",
    ] {
        refused.remove(optional);
    }
    for optional in [
        "client|tracking",
        "client|unblock",
        "config|get",
        "json.get",
    ] {
        refused.remove(optional);
    }
    assert_eq!(refused, BTreeSet::new());
}

#[test]
fn the_rights_of_the_manual_are_enough() {
    everything_works(&Redis::plain(), &[]);
}

#[test]
fn the_rights_of_the_manual_are_enough_with_json() {
    everything_works(&Redis::with_json(), &[]);
}

#[test]
fn rights_that_are_not_needed_may_be_missing() {
    everything_works(&Redis::plain(), &["+client", "+bitop", "+bitpos"]);
}

/// Redis says nothing of a script, and forgets it all the time.
#[test]
fn scripts_are_sent_without_the_right_to_load_them() {
    let redis = Redis::plain();
    make_user(&redis, &rights(&redis, |_| false));
    let daemon = conserver(&redis)
        .config(&chain(&[delay(0.005)], &[]))
        .workers(2)
        .lanes(2)
        .start();
    let samples = fresh(100);
    submit(&redis, "default", &samples);
    for done in (0..100).step_by(5) {
        wait_until("some are done", PATIENCE, || redis.length("done") >= done);
        redis.ask::<()>(&["SCRIPT", "FLUSH"]);
    }
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// One line of the log names all of these as missing.
fn misses(daemon: &Daemon, named: &[&str]) {
    daemon.wait_for_log("is not enough for the work", PATIENCE);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("is not enough"));
    let line = line.expect("the line");
    for name in named {
        assert!(line.contains(name), "{name}: {line}");
    }
}

#[test]
fn a_command_that_the_user_may_not_call_is_named_and_waited_for() {
    let redis = Redis::plain();
    let lost = ["+lpos", "+rename", "+exec", "+blpop", "~done"];
    let mut words = rights(&redis, |word| lost.contains(&word));
    make_user(&redis, &words);
    let conserver = conserver(&redis).config(&chain(&[], &[]));
    let checked = run(&conserver, &["check"], 69);
    let named = ["LPOS", "RENAME", "EXEC", "BLPOP", "done"];
    said(&checked, &named);
    let daemon = conserver.start();
    misses(&daemon, &named);
    words.extend(lost.map(str::to_owned));
    make_user(&redis, &words);
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn a_command_that_the_server_does_not_have_is_named() {
    for (command, others) in [
        ("EVALSHA", &[][..]),
        ("EVAL", &[]),
        ("LPOS", &["HSET"]),
        ("WATCH", &[]),
    ] {
        let mut redis = Redis::new();
        for name in others.iter().chain([&command]) {
            redis = redis.with(&["--rename-command", name, ""]);
        }
        let redis = redis.started();
        let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
        let checked = run(&conserver, &["check"], 69);
        said(&checked, others);
        said(&checked, &[command]);
        let daemon = conserver.start();
        daemon.wait_for_log("is not enough for the work", PATIENCE);
        daemon.wait_for_log(command, PATIENCE);
        daemon.stop();
    }
}

#[test]
fn a_step_that_fails_is_named_and_leaves_nothing() {
    let redis = Redis::plain();
    let mut words = rights(&redis, |word| word == "~conserver:*");
    let keys = [
        "preflight:*",
        "check:*",
        "instance*",
        "workers:*",
        "taken:*",
    ];
    words.extend(keys.map(|key| format!("~conserver:{key}")));
    make_user(&redis, &words);
    let conserver = conserver(&redis).config(&chain(&[], &[]));
    let checked = run(&conserver, &["check"], 69);
    said(&checked, &["could not claim a vCon"]);
    assert_eq!(redis.keys("*"), Vec::<String>::new());
}

/// A server that is a cluster of its own.
fn cluster(has_slots: bool) -> Redis {
    // By itself it would take the port 10,000 above its own, which may be in use.
    let port = free_port().to_string();
    let redis = Redis::new()
        .with(&["--cluster-enabled", "yes", "--cluster-port", &port])
        .started();
    if has_slots {
        redis.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        wait_until("the cluster is well", PATIENCE, || {
            redis
                .ask::<String>(&["CLUSTER", "INFO"])
                .contains("cluster_state:ok")
        });
    }
    redis
}

#[test]
fn a_cluster_is_refused() {
    for has_slots in [true, false] {
        let redis = cluster(has_slots);
        for url in [redis.url(), format!("{}/1", redis.url())] {
            let conserver = Conserver::with(&redis)
                .config(&chain(&[], &[]))
                .env("REDIS_URL", url);
            for command in ["check", "run"] {
                let finished = run(&conserver, &[command], 78);
                said(&finished, &["Redis Cluster is not supported"]);
                assert!(finished.took < Duration::from_secs(4));
            }
        }
    }
}

#[test]
fn a_login_that_is_refused_later_is_waited_for() {
    let redis = Redis::plain();
    let words = rights(&redis, |_| false);
    make_user(&redis, &words);
    let daemon = conserver(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HEARTBEAT_TTL", "3")
        .start();
    // The monitor must know that it held it: it asks for the next time when it has the answer to the time before. The
    // very first time may have been somebody else's.
    let (mut last, mut renewals) = (i64::MAX, 0);
    wait_until("the monitor has renewed the lease twice", PATIENCE, || {
        let left = redis.ask::<i64>(&["PTTL", "conserver:instance:here"]);
        let before = std::mem::replace(&mut last, if left > 0 { left } else { i64::MAX });
        renewals += i32::from(left > before);
        renewals == 2
    });
    let monitor = Pid::from_raw(daemon.process("conserver-mon"));
    redis.ask::<()>(&["ACL", "SETUSER", "conserver", "resetpass", ">other"]);
    redis.ask::<i64>(&["CLIENT", "KILL", "USER", "conserver"]);
    daemon.wait_for_log("Redis is away", PATIENCE);
    // A monitor that begins anew does not take this for the first look either.
    kill(monitor, Signal::SIGKILL).expect("the monitor runs");
    wait_until("the new one is refused", PATIENCE, || {
        let log = daemon.log();
        let (_, after) = log.split_once("Restarted Monitor").unwrap_or_default();
        let mut lines = after.lines();
        lines
            .any(|line| line.contains("cannot show that it is alive") && line.contains("WRONGPASS"))
    });
    make_user(&redis, &words);
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// A server without a command answers with its arguments; those of a login are secret.
#[test]
fn what_a_server_repeats_of_a_login_is_not_shown() {
    let redis = Redis::new()
        .with(&["--rename-command", "AUTH", "LOGIN"])
        .started();
    let url = format!("redis://conserver:{PASSWORD}@127.0.0.1:{}", redis.port());
    let kept = json!({"module": "storage.redis_storage", "options": {"redis_url": url}});
    let conserver = conserver(&redis).config(&chain(&[], &[("kept", kept)]));
    let checked = run(&conserver, &["check"], 69);
    let output = checked.output();
    assert!(!output.contains(PASSWORD), "{output}");
    let said_so = output.matches("does not have AUTH").count();
    assert_eq!(said_so, 2, "{output}");
    let daemon = conserver.launch();
    daemon.wait_for_log("does not have AUTH", PATIENCE);
    assert!(!daemon.output().contains(PASSWORD), "{}", daemon.output());
    daemon.stop();

    // The monitor logs in with this one, to be told of changes.
    let redis = Redis::new()
        .with(&["--rename-command", "HELLO", ""])
        .started();
    make_user(&redis, &rights(&redis, |_| false));
    let daemon = self::conserver(&redis)
        .config(&chain(&[], &[]))
        .env("LOG_LEVEL", "DEBUG")
        .start();
    daemon.wait_for_log("unknown command 'HELLO'", PATIENCE);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(!daemon.output().contains(PASSWORD), "{}", daemon.output());
    daemon.stop();
}

/// How vCons are kept is looked up before one is submitted, and not guessed.
#[test]
fn vcons_are_submitted_as_json_where_others_are_kept_so() {
    let redis = Redis::with_json();
    make_user(&redis, &rights(&redis, |_| false));
    let samples = fresh(3);
    let submits = |sample: &Sample, format: &str, code: i32| {
        let conserver = conserver(&redis).env("VCON_REDIS_FORMAT", format);
        let finished = conserver.run_with_input(&["submit", "-"], &sample.text());
        assert_eq!(finished.code, code, "{}", finished.output());
        finished
    };
    let kind = |sample: &Sample| redis.ask::<String>(&["TYPE", &format!("vcon:{}", sample.id)]);
    submits(&samples[0], "json", 0);
    submits(&samples[1], "auto", 0);
    assert_eq!(kind(&samples[1]), "ReJSON-RL");
    make_user(&redis, &rights(&redis, |word| word == "+zrevrange"));
    let refused = submits(&samples[2], "auto", 69);
    said(&refused, &["NOPERM", "zrevrange"]);
    assert_eq!(kind(&samples[2]), "none");
}

#[test]
fn what_followers_and_tag_routers_need_is_tried() {
    let redis = Redis::with_json();
    let lost = ["~vcons", "+zadd", "+zrevrange"];
    let mut words = rights(&redis, |word| lost.contains(&word));
    make_user(&redis, &words);
    let router = json!({
        "module": "links.tag_router", "options": {"tag_routes": {"urgent": "routed"}},
    });
    let mut config = chain(&[("router", router)], &[]);
    config["followers"] = json!({"far": {
        "url": "http://127.0.0.1:9", "egress_list": "out", "follower_ingress_list": "pulled",
        "pulling_interval": 60,
    }});
    let conserver = conserver(&redis).config(&config);
    let checked = run(&conserver, &["check"], 69);
    let named = ["ZADD", "ZREVRANGE", "vcons", "pulled", "routed"];
    said(&checked, &named);
    let daemon = conserver.start();
    misses(&daemon, &named);
    words.extend(lost.map(str::to_owned));
    words.extend(["~pulled", "~routed"].map(str::to_owned));
    make_user(&redis, &words);
    let checked = run(daemon.conserver(), &["check"], 69);
    // The follower's server alone is away.
    let output = checked.output();
    assert!(!output.contains("does not let"), "{output}");
    daemon.stop();
}
