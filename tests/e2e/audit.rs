//! `conserver audit`: lost vCons are found, and no others.

use std::fs;
use std::thread;
use std::time::Duration;

use conserver::queue::{Audit, AuditLists, Location};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Finished, Ledger, PATIENCE, Postgres, Redis, Sample, chain, delay, fresh,
    list, preload, queue, server_of, submit, wait_until,
};

fn audit(conserver: &Conserver, arguments: &[&str], code: i32) -> Finished {
    let arguments = [&["audit"], arguments].concat();
    let finished = conserver.run(&arguments);
    assert_eq!(finished.code, code, "{}", finished.output());
    finished
}

/// The vCons an audit found, and its summary.
fn found(conserver: &Conserver, arguments: &[&str], code: i32) -> (Vec<Value>, Value) {
    let arguments = [arguments, &["--json"]].concat();
    read(&audit(conserver, &arguments, code).stdout)
}

fn read(stdout: &str) -> (Vec<Value>, Value) {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut lines: Vec<Value> = stdout.lines().map(parse).collect();
    let mut last = lines.pop().expect("a summary");
    (lines, last["summary"].take())
}

fn ids(found: &[Value]) -> Vec<&str> {
    let mut ids: Vec<&str> = found
        .iter()
        .filter_map(|one| one["uuid"].as_str())
        .collect();
    ids.sort_unstable();
    ids
}

/// Puts documents into Redis and nothing else.
fn put(redis: &Redis, samples: &[Sample]) {
    submit(redis, "aside", samples);
    redis.ask::<i64>(&["DEL", "aside"]);
}

fn only_lost_vcons_are_found(redis: &Redis) {
    let (database, files) = (Postgres::database(), Files::new());
    let mut config = chain(
        &[],
        &[("pg", database.storage()), ("files", files.storage())],
    );
    config["chains"]["main"]["storages"] = json!(["files"]);
    config["chains"]["second"] = json!({"links": [], "storages": ["pg"], "enabled": 1,
        "ingress_lists": ["second"], "egress_lists": ["done"]});
    let (in_files, in_pg) = (fresh(3), fresh(3));
    submit(redis, "default", &in_files);
    submit(redis, "second", &in_pg);
    let daemon = Conserver::with(redis).config(&config).start();
    wait_until("they are stored", PATIENCE, || redis.length("done") == 6);
    daemon.stop();
    redis.ask::<i64>(&["DEL", "done"]);

    // A vCon in each place where it may be.
    let held = fresh(6);
    put(redis, &held);
    for (sample, list) in
        held.iter()
            .zip(["default", "second", "done", "DLQ:default", "DLQ:of nobody"])
    {
        redis.ask::<i64>(&["RPUSH", list, &sample.id]);
    }
    let record = json!({"list": "default", "uuid": held[5].id, "since": 1.5}).to_string();
    redis.ask::<i64>(&["HSET", "conserver:claims:there:7", "1", &record]);

    let lost = fresh(3);
    put(redis, &lost);
    redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", lost[0].id), "600"]);
    // Keys that are no vCons.
    redis.ask::<()>(&["SET", "vcon:hello", "world"]);
    redis.ask::<()>(&["SET", "vcon_storage:x", "y"]);

    let conserver = Conserver::with(redis).config(&config);
    let (reported, summary) = found(&conserver, &["--settle", "1"], 65);
    let mut expected: Vec<&str> = lost.iter().map(|sample| sample.id.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(ids(&reported), expected);
    assert_eq!(
        (&summary["documents"], &summary["found"]),
        (&json!(15), &json!(3))
    );
    assert_eq!(summary["shelves"], json!({"pg": 3, "files": 3}));
    assert_eq!(summary["unknown"], json!([]));
    for one in &reported {
        let sample = lost.iter().find(|sample| one["uuid"] == sample.id);
        let sample = sample.expect("one that is lost");
        assert_eq!(one["created_at"], sample.document["created_at"]);
        assert!(one["bytes"].as_u64() > Some(100), "{one}");
        assert_eq!(
            one["ttl_seconds"].is_null(),
            sample.id != lost[0].id,
            "{one}"
        );
    }
    let table = audit(&conserver, &["--settle", "0"], 65).stdout;
    for text in [
        "for ever",
        "9 min",
        "Looked for 15 vCons",
        "in no storage: 3",
        "Storage pg has 3",
    ] {
        assert!(table.contains(text), "{text}: {table}");
    }

    let (reported, summary) = found(&conserver, &["--settle", "0", "--requeue", "second"], 0);
    assert_eq!(ids(&reported), expected);
    assert!(reported.iter().all(|one| one["requeued"] == true));
    assert_eq!(summary["requeued"], 3);
    let ttl: i64 = redis.ask(&["TTL", &format!("vcon:{}", lost[0].id)]);
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    assert_eq!(found(&conserver, &["--settle", "0"], 0).0, [] as [Value; 0]);
    let daemon = conserver.start();
    wait_until("they are stored", PATIENCE, || {
        database.rows().len() == 3 + 1 + 3
    });
    daemon.stop();
}

#[test]
fn only_lost_vcons_are_found_among_plain_documents() {
    only_lost_vcons_are_found(&Redis::plain());
}

#[test]
fn only_lost_vcons_are_found_among_json_documents() {
    only_lost_vcons_are_found(&Redis::with_json());
}

#[test]
fn nothing_in_redis_steers_the_terminal_or_ends_the_audit() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let samples = [Sample::small(), Sample::small(), Sample::small()];
    let key = |n: usize| format!("vcon:{}", samples[n].id);
    redis.ask::<()>(&["SET", &key(0), "{\"created_at\": \"\\u001b[2J\\n\"}"]);
    redis.ask::<()>(&["SET", &key(1), "\u{1b}[2J"]);
    redis.ask::<i64>(&["HSET", &key(2), "a", "b"]);
    for (list, value) in [
        ("default", "text"),
        ("done", "text"),
        ("DLQ:default", "text"),
    ] {
        redis.ask::<()>(&["SET", list, value]);
    }
    redis.ask::<i64>(&["SADD", "conserver:instances", "here", "there"]);
    redis.ask::<()>(&["SET", "conserver:workers:here", "text"]);
    redis.ask::<i64>(&["SADD", "conserver:workers:there", "\u{1b}", "1"]);
    redis.ask::<()>(&["SET", "conserver:claims:here:1", "text"]);
    redis.ask::<i64>(&["HSET", "conserver:claims:here:2", "1", "\u{1b}{{{"]);
    let finished = audit(&conserver, &["--settle", "0"], 65);
    let is_fit = |c: char| c == '\n' || !c.is_control();
    assert!(
        finished.output().chars().all(is_fit),
        "{:?}",
        finished.output()
    );
    for sample in &samples {
        assert!(
            finished.stdout.contains(&sample.id),
            "{}",
            finished.output()
        );
    }
    assert!(
        finished.stdout.contains("Note: chain main has no storages"),
        "{}",
        finished.output()
    );
}

#[test]
fn a_storage_that_is_away_leaves_nothing_to_say() {
    let (redis, server, files) = (Redis::plain(), Postgres::own(), Files::new());
    let storage = server.new_database().storage();
    let config = chain(&[], &[("files", files.storage()), ("pg", storage)]);
    let conserver = Conserver::with(&redis).config(&config);
    put(&redis, &fresh(3));
    server.stop();
    let finished = audit(&conserver, &["--settle", "0"], 69);
    assert_eq!(finished.stdout, "");
    let said = "the audit cannot go on without storage pg";
    assert!(finished.stderr.contains(said), "{}", finished.stderr);
    redis.kill9();
    audit(&conserver, &["--settle", "0"], 69);
}

#[test]
fn only_lists_that_are_served_get_vcons_back() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["off"] = json!({"ingress_lists": ["off"], "enabled": 0});
    let conserver = Conserver::with(&redis).config(&config);
    put(&redis, &fresh(1));
    for list in ["off", "done", "nowhere"] {
        let finished = audit(&conserver, &["--settle", "0", "--requeue", list], 64);
        assert!(
            finished.stderr.contains("there is default"),
            "{}",
            finished.stderr
        );
    }
    audit(&Conserver::with(&redis).config_text("chains: ["), &[], 78);
    assert_eq!(redis.length("default") + redis.length("off"), 0);
}

/// Counts in a file how often a directory is listed.
const LISTINGS: &str = r#"
    #define _GNU_SOURCE
    #include <dirent.h>
    #include <dlfcn.h>
    #include <fcntl.h>
    #include <stdlib.h>
    #include <unistd.h>
    DIR *opendir(const char *name) {
        int file = open(getenv("LISTINGS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (write(file, ".", 1) != 1) abort();
        close(file);
        DIR *(*next)(const char *) = dlsym(RTLD_NEXT, "opendir");
        return next(name);
    }"#;

/// The document in Redis tells the day under which its file is.
#[test]
fn a_file_is_looked_for_under_its_day_and_not_under_three_years_of_others() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let files = Files::new();
        let conserver = Conserver::with(&redis).config(&chain(&[], &[("files", files.storage())]));
        for month in 0..36 {
            let month = format!("{}/{:02}", 2023 + month / 12, month % 12 + 1);
            for day in 1..=28 {
                let day = files.folder().join(format!("{month}/{day:02}"));
                fs::create_dir_all(day).expect("folders");
            }
        }
        let samples: Vec<Sample> = (0..60).map(|_| Sample::small()).collect();
        put(&redis, &samples);
        for sample in &samples {
            let path = format!("2024/03/16/{}.json", sample.id);
            let path = files.folder().join(path);
            fs::write(path, sample.text()).expect("a file");
        }
        let listings = conserver.folder().join("listings");
        let library = preload(conserver.folder(), LISTINGS);
        let conserver = conserver
            .env("LISTINGS", &listings)
            .env("LD_PRELOAD", library);
        let (reported, summary) = found(&conserver, &["--settle", "0"], 0);
        assert_eq!(reported, [] as [Value; 0]);
        assert_eq!(summary["shelves"], json!({"files": 60}));
        // The look at whether the storage answers takes about 40.
        let count = fs::metadata(&listings).expect("a file").len();
        assert!((30..150).contains(&count), "{count} listings");
    }
}

#[test]
fn a_vcon_that_is_just_being_submitted_is_not_lost() {
    let redis = Redis::plain();
    let files = Files::new();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("files", files.storage())]));
    let samples = fresh(2);
    put(&redis, &samples);
    let mut child = conserver.spawn(&["audit", "--settle", "5", "--json"]);
    let is_looking = || {
        let statistics: String = redis.ask(&["INFO", "commandstats"]);
        statistics.contains("cmdstat_smembers")
    };
    wait_until("the audit has looked at the lists", PATIENCE, is_looking);
    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    redis.ask::<i64>(&["DEL", &format!("vcon:{}", samples[1].id)]);
    wait_until("the audit ends", PATIENCE, || {
        child.try_wait().expect("a child").is_some()
    });
    let output = fs::read_to_string(conserver.folder().join("spawned.stdout")).expect("output");
    let (reported, summary) = read(&output);
    assert_eq!(reported, [] as [Value; 0]);
    assert_eq!(summary["documents"], 2);
}

/// The vCons are in work for longer than the audit waits, and a reload gives some of them back.
fn nothing_is_lost_while_the_daemon_works(redis: &Redis) {
    let files = Files::new();
    let config = chain(&[delay(1.2)], &[("files", files.storage())]);
    let samples = fresh(320);
    let ledger = Ledger::of(redis, &samples);
    let daemon = Conserver::with(redis)
        .config(&config)
        .workers(2)
        .lanes(32)
        .start();
    thread::scope(|scope| {
        scope.spawn(|| {
            for some in samples.chunks(10) {
                submit(redis, "default", some);
                thread::sleep(Duration::from_millis(40));
            }
            daemon.signal(Signal::SIGHUP);
        });
        let mut audits = 0;
        while ledger.done() < samples.len() || audits == 0 {
            let (reported, _) = found(daemon.conserver(), &["--settle", "1"], 0);
            assert_eq!(reported, [] as [Value; 0]);
            audits += 1;
        }
    });
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    redis.ask::<i64>(&["DEL", "done"]);
    let (reported, summary) = found(daemon.conserver(), &["--settle", "0"], 0);
    assert_eq!(reported, [] as [Value; 0]);
    assert_eq!(summary["shelves"]["files"], samples.len());
    fs::remove_file(&files.paths()[0]).expect("a file");
    let (reported, _) = found(daemon.conserver(), &["--settle", "0"], 65);
    assert_eq!(reported.len(), 1);
    daemon.stop();
}

#[test]
fn nothing_is_lost_while_the_daemon_works_on_plain_documents() {
    nothing_is_lost_while_the_daemon_works(&Redis::plain());
}

#[test]
fn nothing_is_lost_while_the_daemon_works_on_json_documents() {
    nothing_is_lost_while_the_daemon_works(&Redis::with_json());
}

#[test]
fn a_list_known_from_its_dead_letters_alone_is_looked_in_and_that_of_a_storage_is_none() {
    let (redis, files) = (Redis::plain(), Files::new());
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("files", files.storage())]));
    let samples = fresh(6);
    put(&redis, &samples);
    for (sample, list) in samples.iter().zip([
        "of nobody",
        "DLQ:of nobody",
        "DLQ:storage:files",
        "DLQ:storage:former",
        // No ingress list, though a dead letter queue seems to belong to it.
        "storage:files",
    ]) {
        redis.ask::<i64>(&["RPUSH", list, &sample.id]);
    }
    redis.ask::<()>(&["SET", "DLQ:storage:files:replay-lock", "test"]);
    let (reported, _) = found(&conserver, &["--settle", "0"], 65);
    let mut expected = vec![samples[4].id.as_str(), &samples[5].id];
    expected.sort_unstable();
    assert_eq!(ids(&reported), expected);

    // The configuration says that it is one.
    let mut config = chain(&[], &[("others", files.storage())]);
    config["chains"]["main"]["ingress_lists"] = json!(["default", "storage:files"]);
    let conserver = Conserver::with(&redis).config(&config);
    let (reported, _) = found(&conserver, &["--settle", "0"], 65);
    assert_eq!(ids(&reported), [samples[5].id.as_str()]);
}

#[test]
fn the_last_look_finds_a_vcon_at_both_ends_of_a_long_list() {
    let redis = Redis::plain();
    let samples = fresh(3);
    put(&redis, &samples);
    let lists = AuditLists {
        ingress: vec![list("default")],
        ..AuditLists::default()
    };
    let lease = server_of(&redis).connect("test").expect("a connection");
    let mut audit = Audit::new(lease, &lists, 3600).expect("Redis");
    let id = |n: usize| samples[n].id.parse().expect("a UUID");
    assert_eq!(audit.locate(&id(0)).expect("Redis"), Location::Nowhere);
    // More entries than are looked at from one end.
    let others = vec!["other"; 10_500];
    let mut push = redis::cmd("RPUSH");
    push.arg("default").arg(&samples[0].id).arg(&others);
    push.arg(&samples[1].id);
    push.query::<i64>(&mut redis.connection()).expect("a list");
    for (n, place) in [
        (0, Location::List),
        (1, Location::List),
        (2, Location::Nowhere),
    ] {
        assert_eq!(audit.locate(&id(n)).expect("Redis"), place, "{n}");
    }
}

#[test]
fn what_a_worker_takes_that_began_after_the_audit_is_in_its_hands() {
    let redis = Redis::plain();
    let samples = fresh(2);
    put(&redis, &samples);
    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    let lists = AuditLists {
        ingress: vec![list("default")],
        ..AuditLists::default()
    };
    let lease = server_of(&redis).connect("test").expect("a connection");
    let mut audit = Audit::new(lease, &lists, 3600).expect("Redis");
    let mut ids = audit.next(10).expect("Redis");
    assert_eq!(ids.len(), 2);
    let mut worker = queue(&redis, "new", 3);
    let claimed = worker.claim(&[list("default")]).expect("Redis");
    assert!(claimed.work.is_some());
    audit.strike_queued(&mut ids).expect("Redis");
    let lost: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    assert_eq!(lost, [samples[1].id.as_str()]);
    let taken = samples[0].id.parse().expect("a UUID");
    assert!(audit.whereabouts(&taken).expect("Redis").is_claimed);
}

#[test]
fn a_long_list_is_looked_at_from_end_to_end() {
    let redis = Redis::plain();
    let samples = fresh(7);
    put(&redis, &samples);
    // More than two pages of other entries between each of them and the next.
    let mut connection = redis.connection();
    for sample in &samples[..5] {
        let mut push = redis::cmd("RPUSH");
        push.arg("default")
            .arg(&sample.id)
            .arg(vec!["other"; 4_500]);
        push.query::<i64>(&mut connection).expect("a list");
    }
    redis.ask::<i64>(&["RPUSH", "default", &samples[5].id]);
    let lists = AuditLists {
        ingress: vec![list("default")],
        ..AuditLists::default()
    };
    let lease = server_of(&redis).connect("test").expect("a connection");
    let mut audit = Audit::new(lease, &lists, 3600).expect("Redis");
    assert!(audit.estimate().expect("Redis") >= 8);
    let mut ids = audit.next(10).expect("Redis");
    assert_eq!(ids.len(), 7);
    audit.strike_queued(&mut ids).expect("Redis");
    let lost: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    assert_eq!(lost, [samples[6].id.as_str()]);
}
