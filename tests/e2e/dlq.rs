//! `conserver dlq`: dead letters are seen, tried again and dropped, whoever wrote them.

use std::time::{Duration, Instant};

use conserver::queue::{DeadLetters, Moved, Owner, Raw, RawDeadLetter, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Hook, Monitor, PATIENCE, Redis, Sample, chain, fresh, run, said, submit, wait_until,
};

fn conserver(redis: &Redis) -> Conserver {
    Conserver::with(redis).config(&chain(&[], &[]))
}

/// What `ls --all --json` says.
fn listed(conserver: &Conserver) -> Vec<Value> {
    listed_by(conserver, &["--all"])
}

fn listed_by(conserver: &Conserver, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["dlq", "ls", "--json"], arguments].concat();
    let finished = run(conserver, &arguments, 0);
    let lines = finished.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Puts a UUID into the dead letter queue of `default`, with a reason as the daemon writes it.
fn bury(redis: &Redis, entry: &str) {
    redis.ask::<i64>(&["RPUSH", "DLQ:default", entry]);
    let reason = json!({"stage": "storage pg", "error": "refused\nfor good", "attempts": 3,
        "worker": "Worker-2", "at": 1_710_605_360.25});
    redis.ask::<i64>(&["HSET", "conserver:dlq:default", entry, &reason.to_string()]);
}

fn put(redis: &Redis, sample: &Sample) {
    let key = format!("vcon:{}", sample.id);
    if redis.has_json() {
        redis.ask::<()>(&["JSON.SET", &key, "$", &sample.text()]);
    } else {
        redis.ask::<()>(&["SET", &key, &sample.text()]);
    }
}

fn a_failure_is_seen_mended_and_tried_again(redis: &Redis) {
    let samples = [Sample::small()];
    let key = format!("vcon:{}", samples[0].id);
    redis.ask::<()>(&["SET", &key, "{\"uuid\": "]);
    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    let daemon = conserver(redis).start();
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let id = samples[0].id.as_str();
    let table = run(daemon.conserver(), &["dlq", "ls", "--all"], 0);
    said(
        &table,
        &[id, "default", "parse", "not JSON", "Worker-1", "ago)"],
    );
    let letters = listed(daemon.conserver());
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0]["uuid"], &letters[0]["attempts"]),
        (&json!(id), &json!(1))
    );
    let shown = run(daemon.conserver(), &["dlq", "show", id], 0);
    said(
        &shown,
        &[
            "DLQ:default, number 1 of 1",
            "parse",
            "expires in",
            "{\"uuid\": ",
        ],
    );

    let json = run(daemon.conserver(), &["dlq", "show", id, "--json"], 0).stdout;
    let shown: Value = serde_json::from_str(&json).expect("JSON");
    let ttl = shown["ttl_seconds"].as_u64().expect("a time");
    assert!((604_000..=604_800).contains(&ttl), "{ttl}");
    assert_eq!(shown["text"], "{\"uuid\": ");

    redis.ask::<i64>(&["DEL", &key]);
    put(redis, &samples[0]);
    said(
        &run(daemon.conserver(), &["dlq", "retry", id], 0),
        &["Put 1 back on list default"],
    );
    wait_until("it is done", PATIENCE, || redis.list("done") == [id]);
    assert_eq!(redis.keys("*dlq*"), Vec::<String>::new());
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    said(
        &run(daemon.conserver(), &["dlq", "ls"], 0),
        &["There are no dead letters"],
    );
    daemon.stop();
}

#[test]
fn a_failure_is_seen_mended_and_tried_again_with_plain_documents() {
    a_failure_is_seen_mended_and_tried_again(&Redis::plain());
}

#[test]
fn a_failure_is_seen_mended_and_tried_again_with_json_documents() {
    a_failure_is_seen_mended_and_tried_again(&Redis::with_json());
}

#[test]
fn one_dead_letter_is_shown_whole() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let conserver = conserver(&redis);
        let mut sample = Sample::small();
        sample.document["subject"] = json!("red \u{1b}[31m, \u{9b}2J and \u{202e}back");
        put(&redis, &sample);
        bury(&redis, "before");
        bury(&redis, &sample.id);
        let shown = run(&conserver, &["dlq", "show", &sample.id], 0);
        said(
            &shown,
            &[
                "number 2 of 2",
                "storage pg",
                "refused\n          for good",
                "Worker-2",
                "2024-03-1",
                "lives for ever",
                "\n  \"subject\": \"red \\u001b[31m, \\u009b2J and \\u202eback\"",
            ],
        );
        let shown = run(&conserver, &["dlq", "show", &sample.id, "--json"], 0);
        let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
        assert_eq!(shown["document"]["subject"], sample.document["subject"]);
        assert_eq!(shown["letters"][0]["number"], 2);
        assert_eq!(shown["letters"][0]["error"], "refused\nfor good");

        redis.ask::<i64>(&["DEL", &format!("vcon:{}", sample.id)]);
        let shown = run(&conserver, &["dlq", "show", &sample.id], 0);
        said(&shown, &["no longer in Redis"]);
        let shown = run(&conserver, &["dlq", "show", "before"], 0);
        said(&shown, &["not a UUID"]);
    }
}

/// Anybody may have pushed it.
#[test]
fn an_entry_that_is_too_long_is_shown_cut() {
    let redis = Redis::plain();
    let mut push = redis::cmd("RPUSH");
    push.arg("DLQ:default").arg(b"\x01".repeat(16 << 20));
    push.query::<()>(&mut redis.connection())
        .expect("Redis takes it");
    let listed = listed(&conserver(&redis));
    let [letter] = &listed[..] else {
        panic!("{} dead letters", listed.len())
    };
    let shown = letter["uuid"].as_str().expect("text");
    assert_eq!(shown, "\\u{1}".repeat(16 * 1024 + 1));
}

#[test]
fn what_others_have_written_is_listed() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let ids: Vec<String> = fresh(2).into_iter().map(|sample| sample.id).collect();
    redis.ask::<i64>(&["RPUSH", "DLQ:default", &ids[0], &ids[1]]);
    redis.ask::<i64>(&["HSET", "conserver:dlq:default", &ids[1], "because\u{1b}[2J"]);
    redis.ask::<i64>(&["RPUSH", "DLQ:of another", "entry"]);
    let letters = listed(&conserver);
    assert_eq!(letters.len(), 3);
    assert_eq!(
        (&letters[0]["uuid"], &letters[0]["error"]),
        (&json!(ids[0]), &Value::Null)
    );
    assert_eq!(letters[1]["error"], "because\u{1b}[2J");
    assert_eq!(letters[2]["list"], "of another");
    let table = run(&conserver, &["dlq", "ls", "--all"], 0);
    said(
        &table,
        &["no reason was kept", "because\\u{1b}[2J", "of another"],
    );
    let table = run(&conserver, &["dlq", "ls", "of another"], 0);
    assert!(!table.stdout.contains(&ids[0]));
    let table = run(&conserver, &["dlq", "ls", "--all", "--count", "1"], 0);
    said(&table, &["2 more are not shown"]);

    // A hash of reasons that is none.
    redis.ask::<()>(&["SET", "conserver:dlq:of another", "text"]);
    redis.ask::<()>(&["SET", "DLQ:text", "text"]);
    assert_eq!(listed(&conserver).len(), 3);
    run(&conserver, &["dlq", "ls", "text"], 65);
    said(
        &run(&conserver, &["dlq", "retry", "of another"], 0),
        &["Put 1 back"],
    );
    assert_eq!(redis.list("of another"), ["entry"]);
}

/// A reason as the daemon writes it, of a failure some seconds ago.
fn fail(redis: &Redis, list: &str, entry: &str, stage: &str, error: &str, seconds: u64) {
    let (now, _): (u64, u64) = redis.ask(&["TIME"]);
    let [stage, error] = [stage, error].map(|text| json!(text));
    // In the order of the daemon.
    let reason = format!(
        "{{\"stage\":{stage},\"error\":{error},\"attempts\":1,\"worker\":\"Worker-1\",\"at\":{}.5}}",
        now - seconds
    );
    redis.ask::<i64>(&["RPUSH", &format!("DLQ:{list}"), entry]);
    let reasons = format!("conserver:dlq:{list}");
    redis.ask::<i64>(&["HSET", &reasons, entry, &reason]);
}

#[test]
fn dead_letters_that_failed_alike_are_a_group() {
    let redis = Redis::plain();
    let monitor = Monitor::at_a_port();
    let mut config = chain(&[], &[("hook", Hook::new().storage())]);
    // Nobody takes what is put back there.
    config["chains"]["parked"] = json!({"ingress_lists": ["parked"], "enabled": 0});
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let conserver = daemon.conserver();
    let status = monitor.wait_for("/status", 200).json();
    assert_eq!(status["queues"]["dead_letter_groups"], json!([]));
    assert_eq!(status["queues"]["dead_letter_groups_complete"], true);

    let ids: Vec<String> = (0..5).map(|_| Sample::small().id).collect();
    for (number, id) in ids.iter().enumerate() {
        let error = format!("{id} is not JSON: EOF at line {number} column 7");
        fail(
            &redis,
            "parked",
            id,
            "parse",
            &error,
            7200 - 60 * number as u64,
        );
    }
    // What a program has said is longer than what is read of it.
    let long = format!("it said \u{1b}[2J{}", " é".repeat(9000));
    fail(&redis, "parked", "long", "link a b", &long, 30);
    redis.ask::<i64>(&["RPUSH", "DLQ:parked", "of others"]);
    fail(
        &redis,
        "storage:hook",
        "refused",
        "storage hook",
        "too large",
        5,
    );

    let listed = run(conserver, &["dlq", "ls", "--groups", "--json"], 0);
    let groups: Vec<Value> = (listed.stdout.lines())
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(groups.len(), 4, "{groups:?}");
    let largest = &groups[0];
    assert_eq!(
        (
            &largest["queue"],
            &largest["stage"],
            &largest["error"],
            &largest["count"]
        ),
        (
            &json!("parked"),
            &json!("parse"),
            &json!("UUID is not JSON: EOF at line N column N"),
            &json!(5)
        )
    );
    assert_eq!(largest["examples"], json!([ids[4], ids[3], ids[2]]));
    let oldest = largest["oldest_seconds"].as_u64().expect("an age");
    assert!((7199..7260).contains(&oldest), "{oldest}");
    let of = |stage: Value| groups.iter().find(|group| group["stage"] == stage);
    let others = of(Value::Null).expect("a group");
    assert_eq!(
        (&others["count"], &others["examples"]),
        (&json!(1), &json!(["of others"]))
    );
    let long = of(json!("link a b")).expect("a group");
    assert_eq!(long["newest_seconds"], long["oldest_seconds"]);
    assert!(
        long["error"]
            .as_str()
            .is_some_and(|it| it.starts_with("it said \u{1b}[NJ é"))
    );
    assert_eq!(
        of(json!("storage hook")).expect("a group")["queue"],
        "storage:hook"
    );

    let text = run(conserver, &["dlq", "ls"], 0);
    let show = format!("conserver dlq show {}", ids[4]);
    said(
        &text,
        &[
            "parked: 7 dead letters",
            "5  parse: UUID is not JSON",
            &show,
            "conserver dlq retry --stage 'link a b' parked",
            "storage:hook: 1 dead letter",
            "no reason was kept",
            "conserver dlq show 'of others'",
        ],
    );
    let text = run(conserver, &["dlq", "ls", "storage:hook"], 0);
    assert!(!text.stdout.contains("parked"), "{}", text.stdout);
    // Each of one list, without a look at every key.
    let scans = redis.has_run("scan");
    assert_eq!(listed_by(conserver, &["parked", "--all"]).len(), 7);
    assert_eq!(redis.has_run("scan"), scans);

    let text = run(conserver, &["status", "--queues"], 0);
    said(
        &text,
        &[
            "DLQ:parked: 5 dead letters: parse: UUID is not JSON",
            "DLQ:storage:hook: 1 dead letter",
        ],
    );
    let mut status = Value::Null;
    wait_until("the monitor shows them", PATIENCE, || {
        status = monitor.get("/status").json();
        status["queues"]["dead_letter_groups"]
            .as_array()
            .is_some_and(|it| it.len() == 4)
    });
    assert_eq!(status["queues"]["dead_letter_groups_complete"], true);
    assert_eq!(
        status["queues"]["dead_letter_groups"][0]["examples"],
        largest["examples"]
    );
    // However often somebody asks, it looks now and then.
    let looks = redis.has_run("hscan");
    for _ in 0..5 {
        monitor.get("/status");
    }
    assert_eq!(redis.has_run("hscan"), looks);

    let some = [
        "dlq", "retry", "parked", "--stage", "parse", "--error", "line N", "--count", "2",
    ];
    said(&run(conserver, &some, 0), &["Put 2 back on list parked"]);
    assert_eq!(redis.list("parked"), ids[..2]);
    said(
        &run(
            conserver,
            &["dlq", "retry", "parked", "--error", "line 3"],
            0,
        ),
        &["Put 1 back on list parked"],
    );
    run(conserver, &["dlq", "retry", "parked", "--stage", "load"], 0);
    run(
        conserver,
        &["dlq", "retry", "nowhere", "--stage", "load"],
        65,
    );
    run(conserver, &["dlq", "retry", "--stage", "load"], 64);
    assert_eq!(redis.length("DLQ:parked"), 4);
    daemon.stop();
}

/// A Redis with very many keys is not looked through for a few lists.
#[test]
fn lists_are_known_without_a_look_at_every_key() {
    let redis = Redis::plain();
    let mut former = chain(&[], &[]);
    former["chains"]["main"]["ingress_lists"] = json!(["former"]);
    let sample = Sample::small();
    let daemon = Conserver::with(&redis).config(&former).start();
    redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), "{\"uuid\": "]);
    redis.ask::<i64>(&["RPUSH", "former", &sample.id]);
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:former") == 1
    });
    daemon.stop();

    let conserver = conserver(&redis);
    bury(&redis, "of the configuration");
    redis.ask::<i64>(&["RPUSH", "DLQ:of another", "entry"]);
    let scans = redis.has_run("scan");
    let letters = listed_by(&conserver, &[]);
    let lists: Vec<&Value> = letters.iter().map(|letter| &letter["list"]).collect();
    assert_eq!(lists, ["default", "former"]);
    // A list that is named, an entry of one that is known.
    let named = listed_by(&conserver, &["of another"]);
    assert_eq!(named.len(), 1);
    run(&conserver, &["dlq", "show", &sample.id], 0);
    run(&conserver, &["dlq", "retry", &sample.id], 0);
    assert_eq!(redis.list("former"), [sample.id.as_str()]);
    run(&conserver, &["dlq", "retry", "of another"], 0);
    assert_eq!(redis.has_run("scan"), scans);

    redis.ask::<i64>(&["RPUSH", "DLQ:of another", "entry"]);
    let lists: Vec<Value> = listed(&conserver)
        .iter()
        .map(|letter| letter["list"].clone())
        .collect();
    assert_eq!(lists, ["default", "of another"]);
    // Nobody else knows the entry: it is looked for everywhere.
    said(
        &run(&conserver, &["dlq", "show", "entry"], 0),
        &["DLQ:of another"],
    );
    assert!(redis.has_run("scan") > scans);
}

#[test]
fn entries_that_are_no_uuids_are_listed_tried_again_and_dropped() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let long = "x".repeat(10_000);
    let hostile: Vec<&[u8]> = vec![
        b"",
        b"\x1b[31mred\x1b]0;title\x07",
        b"two\nlines\r\n",
        b"a\\n",
        b"\xff\xfe\x00",
        "\u{9b}2J\u{202e}".as_bytes(),
        b"--yes",
        b"../../etc/passwd",
        long.as_bytes(),
    ];
    let fill = || {
        let mut push = redis::cmd("RPUSH");
        push.arg("DLQ:default").arg(&hostile);
        push.query::<i64>(&mut redis.connection()).expect("a list");
    };
    fill();
    let entries = |list: &str| -> Vec<Vec<u8>> {
        let mut range = redis::cmd("LRANGE");
        range.arg(list).arg(0).arg(-1);
        range.query(&mut redis.connection()).expect("a list")
    };
    run(&conserver, &["dlq", "ls"], 0);
    let names: Vec<String> = listed(&conserver)
        .iter()
        .map(|letter| letter["uuid"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names.len(), hostile.len());
    for name in &names {
        run(&conserver, &["dlq", "show", "--", name], 0);
        run(&conserver, &["dlq", "retry", "--", name], 0);
    }
    assert_eq!(entries("default"), hostile);
    assert_eq!(redis.length("DLQ:default"), 0);
    redis.ask::<i64>(&["DEL", "default"]);
    fill();
    for name in names.iter().rev() {
        run(&conserver, &["dlq", "drop", "--yes", "--", name], 0);
    }
    assert_eq!(redis.keys("*"), Vec::<String>::new());
}

#[test]
fn a_name_that_steers_the_terminal_is_a_list_like_others() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    redis.ask::<i64>(&["RPUSH", "DLQ:\u{1b}[2J\n", "entry"]);
    assert_eq!(listed(&conserver)[0]["list"], "\\u{1b}[2J\\n");
    let finished = run(&conserver, &["dlq", "retry", "\\u{1b}[2J\\n"], 0);
    said(&finished, &["no enabled chain"]);
    assert_eq!(redis.list("\u{1b}[2J\n"), ["entry"]);
}

#[test]
fn the_oldest_are_tried_again_first_with_all_their_chances() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let samples = fresh(5);
    for (sample, ttl) in samples.iter().zip(["30", "100000", "", "30", "30"]) {
        put(&redis, sample);
        bury(&redis, &sample.id);
        if !ttl.is_empty() {
            redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), ttl]);
        }
        for hash in ["conserver:deaths", "conserver:tries", "conserver:lapses"] {
            redis.ask::<i64>(&["HSET", hash, &sample.id, "2"]);
        }
    }
    let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
    redis.ask::<i64>(&["RPUSH", "default", "waiting"]);
    let finished = run(
        &conserver,
        &["dlq", "retry", "default", "--count", "2", "--json"],
        0,
    );
    let done: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let lists = json!([{"list": "default", "retried": 2, "served": true}]);
    assert_eq!(done, json!({"retried": 2, "lists": lists}));
    assert_eq!(redis.list("default"), ["waiting", ids[0], ids[1]]);
    assert_eq!(redis.list("DLQ:default"), ids[2..]);
    run(
        &conserver,
        &["dlq", "retry", "DLQ:default", "--count", "1"],
        0,
    );
    run(&conserver, &["dlq", "retry", ids[4]], 0);
    run(&conserver, &["dlq", "retry"], 0);
    assert_eq!(
        redis.list("default"),
        ["waiting", ids[0], ids[1], ids[2], ids[4], ids[3]]
    );
    let ttl = |id: &str| -> i64 { redis.ask(&["TTL", &format!("vcon:{id}")]) };
    assert!((3500..=3600).contains(&ttl(ids[0])), "{}", ttl(ids[0]));
    assert!((99_000..=100_000).contains(&ttl(ids[1])), "{}", ttl(ids[1]));
    assert_eq!(ttl(ids[2]), -1);
    assert_eq!(redis.keys("conserver:*"), Vec::<String>::new());
    said(
        &run(&conserver, &["dlq", "retry"], 0),
        &["Nothing was put back"],
    );
}

#[test]
fn lists_of_disabled_chains_and_of_nobody_are_warned_of() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["enabled"] = json!(0);
    let conserver = Conserver::with(&redis).config(&config);
    bury(&redis, "entry");
    redis.ask::<i64>(&["RPUSH", "DLQ:nobody", "other"]);
    let finished = run(&conserver, &["dlq", "retry"], 0);
    for list in ["default", "nobody"] {
        said(
            &finished,
            &[&format!("no enabled chain takes from list {list}")],
        );
    }
    said(
        &run(&conserver, &["dlq", "ls", "default"], 0),
        &["no dead letters"],
    );
}

#[test]
fn without_a_configuration_there_is_what_redis_has() {
    let redis = Redis::plain();
    for conserver in [
        Conserver::with(&redis),
        Conserver::with(&redis).config_text("chains: ["),
    ] {
        bury(&redis, "entry");
        let finished = conserver.run(&["dlq", "ls"]);
        assert_eq!(finished.code, 0);
        said(&finished, &["entry", "warning: without the configuration"]);
        let finished = run(&conserver, &["dlq", "retry", "--json"], 0);
        let done: Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(
            (&done["retried"], &done["lists"][0]["served"]),
            (&json!(1), &Value::Null)
        );
    }
    assert_eq!(redis.list("default"), ["entry", "entry"]);
}

#[test]
fn what_is_not_there_is_said() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let id = Sample::small().id;
    for (arguments, words) in [
        (&["dlq", "ls", "nowhere"][..], "no ingress list"),
        (&["dlq", "retry", "nowhere"], "no ingress list"),
        (&["dlq", "retry", &id], "in no dead letter queue"),
        (&["dlq", "show", &id], "in no dead letter queue"),
        (&["dlq", "drop", "--yes", &id], "in no dead letter queue"),
    ] {
        said(&run(&conserver, arguments, 65), &[words]);
    }
    let away = Redis::new();
    let conserver = self::conserver(&away);
    for arguments in [
        &["dlq", "ls"][..],
        &["dlq", "show", &id],
        &["dlq", "retry"],
        &["dlq", "drop", "--yes", &id],
    ] {
        said(
            &run(&conserver, arguments, 69),
            &["could not connect to Redis"],
        );
    }
}

#[test]
fn a_list_that_is_something_else_keeps_its_dead_letters() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    bury(&redis, "entry");
    redis.ask::<()>(&["SET", "default", "text"]);
    let finished = run(&conserver, &["dlq", "retry"], 65);
    said(&finished, &["default holds a string, not a list"]);
    assert_eq!(redis.list("DLQ:default"), ["entry"]);
    assert_eq!(redis.keys("conserver:dlq:default").len(), 1);
}

#[test]
fn dead_letters_are_put_back_when_redis_is_full() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    for _ in 0..20 {
        bury(&redis, &Sample::small().id);
    }
    let entries = redis.list("DLQ:default");
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(redis.try_ask::<i64>(&["RPUSH", "default", "x"]).is_err());
    run(&conserver, &["dlq", "retry"], 0);
    assert_eq!(redis.list("default"), entries);
    assert_eq!(redis.length("DLQ:default"), 0);
}

#[test]
fn a_dead_letter_is_dropped_when_somebody_says_yes() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let sample = Sample::small();
    put(&redis, &sample);
    bury(&redis, &sample.id);
    bury(&redis, "other");
    bury(&redis, &sample.id);
    for hash in ["conserver:deaths", "conserver:lapses"] {
        redis.ask::<i64>(&["HSET", hash, &sample.id, "2"]);
    }
    let id = sample.id.as_str();
    said(&run(&conserver, &["dlq", "drop", id], 64), &["--yes"]);
    let finished = conserver.run_on_terminal(&["dlq", "drop", id], "n\n");
    assert_eq!(finished.code, 0, "{}", finished.output());
    said(
        &finished,
        &[
            &format!("Drop {id} from DLQ:default"),
            "Nothing was dropped",
        ],
    );
    assert_eq!(redis.length("DLQ:default"), 3);

    let finished = conserver.run_on_terminal(&["dlq", "drop", id], "y\n");
    assert_eq!(finished.code, 0, "{}", finished.output());
    said(&finished, &[&format!("Dropped {id} from DLQ:default")]);
    assert_eq!(redis.list("DLQ:default"), ["other"]);
    assert!(redis.document(id).is_some());
    let reasons: Vec<String> = redis.ask(&["HKEYS", "conserver:dlq:default"]);
    assert_eq!(reasons, ["other"]);
    for hash in ["conserver:deaths", "conserver:lapses"] {
        assert_eq!(redis.keys(hash), Vec::<String>::new());
    }

    bury(&redis, id);
    let finished = run(
        &conserver,
        &["dlq", "drop", id, "--yes", "--document", "--json"],
        0,
    );
    let done: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(
        done,
        json!({"uuid": id, "lists": ["default"], "document_deleted": true})
    );
    assert!(redis.document(id).is_none());
}

#[test]
fn a_retry_that_is_killed_in_the_middle_leaves_each_in_one_place() {
    let redis = Redis::plain();
    let conserver = conserver(&redis);
    let ids: Vec<String> = (0..60_000).map(|_| Sample::small().id).collect();
    let start = Instant::now();
    for round in 0.. {
        redis.ask::<i64>(&["DEL", "default", "DLQ:default"]);
        for some in ids.chunks(5000) {
            let mut push = redis::cmd("RPUSH");
            push.arg("DLQ:default").arg(some);
            push.query::<i64>(&mut redis.connection()).expect("a list");
        }
        let mut child = conserver.spawn(&["dlq", "retry", "default"]);
        wait_until("some are moved", PATIENCE, || redis.length("default") > 0);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).expect("a child");
        child.wait().expect("a child");
        // What it sent last is still carried out.
        let gone = || {
            !redis
                .ask::<String>(&["CLIENT", "LIST"])
                .contains("conserver:dlq")
        };
        wait_until("its connection is gone", PATIENCE, gone);
        let (moved, left) = (redis.list("default"), redis.list("DLQ:default"));
        let mut found = moved.clone();
        found.extend(left.iter().cloned());
        assert_eq!(found, ids, "each once, in the order they had");
        if !left.is_empty() {
            return run_again(&redis, &conserver, &ids);
        }
        assert!(
            start.elapsed() < PATIENCE * 2,
            "too fast to be killed {round} times"
        );
    }
}

fn run_again(redis: &Redis, conserver: &Conserver, ids: &[String]) {
    run(conserver, &["dlq", "retry"], 0);
    assert_eq!(redis.list("default"), ids);
    assert_eq!(redis.length("DLQ:default"), 0);
}

#[test]
fn dead_letters_that_fail_again_are_not_put_back_for_ever() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).start();
    for entry in 0..700 {
        redis.ask::<i64>(&["RPUSH", "DLQ:default", &format!("no uuid {entry}")]);
    }
    let finished = run(daemon.conserver(), &["dlq", "retry"], 0);
    said(&finished, &["Put 700 back on list default"]);
    wait_until("all have failed again", PATIENCE, || {
        redis.length("DLQ:default") == 700
    });
    let sample = Sample::small();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("the daemon goes on", Duration::from_secs(60), || {
        redis.list("done") == [sample.id.as_str()]
    });
    daemon.stop();
}

/// As the API server does it: what is taken from the dead letters goes back on the list, until there is no
/// dead letter left.
#[test]
fn an_endless_reprocessing_comes_to_an_end() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).lanes(4).start();
    let samples: Vec<Sample> = (0..20).map(|_| Sample::small()).collect();
    for sample in &samples {
        redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), "{\"uuid\": "]);
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    }
    wait_until("all are dead letters", PATIENCE, || {
        redis.length("DLQ:default") == samples.len()
    });
    let mut moved = 0;
    while let Some(entry) = redis.ask::<Option<String>>(&["LPOP", "DLQ:default"]) {
        redis.ask::<i64>(&["RPUSH", "default", &entry]);
        moved += 1;
        assert!(moved < 1000, "there is always another dead letter");
        // It has to ask for each by itself, and does other things besides.
        std::thread::sleep(Duration::from_millis(2));
    }
    wait_until("all are dead letters again", PATIENCE, || {
        redis.length("DLQ:default") == samples.len()
    });
    let reasons: Vec<String> = redis.ask(&["HVALS", "conserver:dlq:default"]);
    assert_eq!(reasons.len(), samples.len());
    assert!(reasons.iter().all(|reason| reason.contains("\"again\":")));
    assert_eq!(listed(daemon.conserver()).len(), samples.len());

    // What an operator puts back has no past.
    run(daemon.conserver(), &["dlq", "retry", "default"], 0);
    wait_until("all are dead letters once more", PATIENCE, || {
        redis.length("DLQ:default") == samples.len()
    });
    let reasons: Vec<String> = redis.ask(&["HVALS", "conserver:dlq:default"]);
    assert!(!reasons.iter().any(|reason| reason.contains("\"again\":")));
    daemon.stop();
}

#[test]
fn a_drain_does_not_wait_for_what_becomes_a_dead_letter_again() {
    let redis = Redis::plain();
    let daemon = conserver(&redis)
        .env("CONSERVER_RETRY_FIRST_MS", "3600000")
        .env("CONSERVER_RETRY_MAX_MS", "3600000")
        .start();
    let sample = Sample::small();
    redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), "[]"]);
    redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    redis.ask::<String>(&["LMOVE", "DLQ:default", "default", "LEFT", "RIGHT"]);
    wait_until("it is held", PATIENCE, || {
        redis.length("default") == 0 && redis.keys("conserver:claims:*").len() == 1
    });
    daemon.stop();
    assert_eq!(redis.list("DLQ:default"), [sample.id.as_str()]);
}

#[test]
fn reasons_of_entries_that_others_have_taken_are_dropped() {
    let redis = Redis::plain();
    let samples: Vec<Sample> = (0..3).map(|_| Sample::small()).collect();
    for sample in &samples {
        bury(&redis, &sample.id);
    }
    let [taken, kept, young] = &samples[..] else {
        panic!("there are three");
    };
    redis.ask::<i64>(&["LREM", "DLQ:default", "0", &taken.id]);
    redis.ask::<i64>(&["LREM", "DLQ:default", "0", &young.id]);
    let (seconds, _): (String, String) = redis.ask(&["TIME"]);
    let reason = format!("{{\"stage\":\"parse\",\"at\":{seconds}.5}}");
    redis.ask::<i64>(&["HSET", "conserver:dlq:default", &young.id, &reason]);
    let daemon = conserver(&redis).env("VCON_REDIS_EXPIRY", "6").start();
    let reasons = || -> Vec<String> { redis.ask(&["HKEYS", "conserver:dlq:default"]) };
    wait_until("the reason is dropped", PATIENCE, || {
        !reasons().contains(&taken.id)
    });
    // It tells that its entry has failed just before.
    assert!(reasons().contains(&young.id));
    assert!(reasons().contains(&kept.id));
    daemon.stop();
}

#[test]
fn queues_that_were_there_before_are_found_once_and_listed_without_all() {
    let redis = Redis::plain();
    // Enough for several steps.
    let fill = "for i = 1, 3000 do redis.call('SET', 'other:' .. i, '') end";
    redis.ask::<()>(&["EVAL", fill, "0"]);
    redis.ask::<i64>(&["RPUSH", "DLQ:former", "entry"]);
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:former", "entry"]);
    redis.ask::<()>(&["SET", "DLQ:text", "text"]);
    let names = || -> Vec<Value> {
        let letters = listed_by(&conserver(&redis), &[]).into_iter();
        letters.map(|letter| letter["list"].clone()).collect()
    };
    assert!(names().is_empty());
    let round = || {
        let daemon = conserver(&redis).start();
        // Its lease then runs out when the next round is due.
        wait_until("the keeper has done its work", PATIENCE, || {
            let keys = redis.keys("conserver:keeper:*");
            let left = |key| redis.ask::<i64>(&["PTTL", key]);
            keys.iter().any(|key| left(key) > 60_000)
        });
        daemon.stop();
        for key in redis.keys("conserver:keeper:*") {
            redis.ask::<i64>(&["DEL", &key]);
        }
    };
    round();
    assert_eq!(names(), ["former", "storage:former"]);

    // The next start does not look again: its one SCAN is the one that tries whether the user may call it.
    let scans = || redis.has_run("scan");
    let before = scans();
    assert!(before >= 4);
    redis.ask::<i64>(&["RPUSH", "DLQ:later", "entry"]);
    round();
    assert_eq!(scans(), before + 1);
    assert_eq!(names(), ["former", "storage:former"]);
}

#[test]
fn what_has_failed_for_another_reason_meanwhile_is_not_dropped() {
    let redis = Redis::plain();
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:pg", "a", "b", "c", "d"]);
    let long = "x".repeat(5000);
    redis.ask::<i64>(&[
        "HSET",
        "conserver:dlq:storage:pg",
        "a",
        "new",
        "b",
        "same",
        "d",
        &long,
    ]);
    let server = Server::new(&redis.url().parse().expect("a URL")).expect("a server");
    let connection = server.connect("test").expect("a connection");
    let mut letters = DeadLetters::new(connection, 60);
    // The third only waits for its storage now.
    for (entry, reason, expected) in [
        ("a", Some("old"), 0),
        ("a", None, 0),
        ("b", Some("same"), 1),
        ("c", Some("old"), 0),
        ("d", Some(&*long), 1),
    ] {
        let letter = RawDeadLetter {
            entry: Raw::new(entry),
            reason: reason.map(|text| text.as_bytes().to_vec()),
        };
        let dropped = letters.drop_known(Owner::Storage, &Raw::new("storage:pg"), &letter);
        let dropped = dropped.expect("an answer");
        assert!(
            matches!(dropped, Moved::Some(count) if count == expected),
            "{entry}: {dropped:?}"
        );
    }
    assert_eq!(redis.list("DLQ:storage:pg"), ["a", "c"]);
    assert_eq!(redis.ask::<i64>(&["HLEN", "conserver:dlq:storage:pg"]), 1);
}
