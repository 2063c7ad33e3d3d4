//! What is no vCon becomes a dead letter with its reason, and the work goes on.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use redis::Commands;
use serde_json::Value;

use crate::harness::{
    Conserver, Daemon, Files, Monitor, PATIENCE, Postgres, Redis, Sample, chain, fresh, submit,
    wait_until,
};

/// A daemon that has work to refuse.
struct Bench {
    redis: Redis,
    files: Files,
    daemon: Daemon,
}

impl Bench {
    fn start() -> Self {
        Self::on(Redis::plain(), &[])
    }

    fn on(redis: Redis, storages: &[(&str, Value)]) -> Self {
        Self::with_format(redis, storages, "auto")
    }

    /// The same, where a new key is of this format.
    fn with_format(redis: Redis, storages: &[(&str, Value)], format: &str) -> Self {
        let files = Files::new();
        let mut all = storages.to_vec();
        all.push(("files", files.storage()));
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &all))
            .env("VCON_REDIS_FORMAT", format)
            .start();
        Self {
            redis,
            files,
            daemon,
        }
    }

    /// Queues an entry, and waits until it is a dead letter; gives the reason.
    fn refused(&self, entry: &str) -> Value {
        let redis = &self.redis;
        redis.ask::<i64>(&["RPUSH", "default", entry]);
        wait_until("there is a dead letter", PATIENCE, || {
            redis.length("DLQ:default") == 1
        });
        assert_eq!(redis.list("DLQ:default"), [entry]);
        let reason: String = redis.ask(&["HGET", "conserver:dlq:default", entry]);
        let reason: Value = serde_json::from_str(&reason).expect("JSON");
        assert!(
            reason["stage"].is_string() && reason["error"].is_string(),
            "{reason}"
        );
        assert!(
            reason["at"].is_number() && reason["attempts"].is_number(),
            "{reason}"
        );
        assert_eq!(reason["worker"], "Worker-1");
        assert_eq!((redis.length("default"), redis.length("done")), (0, 0));
        assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
        self.goes_on();
        reason
    }

    /// The same for a document in Redis.
    fn refused_document(&self, text: &str) -> Value {
        let id = uuid::Uuid::new_v4().to_string();
        let key = format!("vcon:{id}");
        self.redis.ask::<()>(&["SET", &key, text]);
        let reason = self.refused(&id);
        let kept: String = self.redis.ask(&["GET", &key]);
        assert_eq!(kept, text);
        let left: i64 = self.redis.ask(&["TTL", &key]);
        assert!((604_000..=604_800).contains(&left), "{left}");
        reason
    }

    /// A good vCon is processed, by the same worker as ever.
    fn goes_on(&self) {
        let sample = Sample::small();
        submit(&self.redis, "default", std::slice::from_ref(&sample));
        let done = || self.redis.list("done").contains(&sample.id);
        wait_until("a good vCon is done", PATIENCE, done);
        assert!(self.files.text(&sample.id).contains("checked:checked"));
        let log = self.daemon.log();
        assert!(
            !log.contains("panic") && !log.contains("died unexpectedly"),
            "{log}"
        );
    }
}

fn says(reason: &Value, words: &str) {
    let error = reason["error"].as_str().unwrap_or_default();
    assert!(error.contains(words), "{words:?} is not in {error:?}");
}

#[test]
fn an_entry_that_is_not_a_uuid() {
    says(&Bench::start().refused("hello world"), "not a UUID");
}

#[test]
fn an_entry_that_is_a_path() {
    let bench = Bench::start();
    says(&bench.refused("../../etc/passwd"), "not a UUID");
    let names = bench.files.paths();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn an_empty_entry() {
    says(&Bench::start().refused(""), "not a UUID");
}

#[test]
fn a_uuid_without_a_document() {
    let reason = Bench::start().refused(&uuid::Uuid::new_v4().to_string());
    says(&reason, "no document");
}

#[test]
fn a_document_that_is_not_json() {
    says(&Bench::start().refused_document("{\"uuid\": "), "not JSON");
}

#[test]
fn a_document_that_is_not_an_object() {
    says(&Bench::start().refused_document("[1, 2]"), "object");
}

#[test]
fn a_document_whose_attachments_are_no_list() {
    let bench = Bench::start();
    for (attachments, kind) in [("{}", "an object"), ("\"text\"", "a string")] {
        let text = format!(r#"{{"attachments": {attachments}}}"#);
        let reason = bench.refused_document(&text);
        assert_eq!(reason["stage"], "link tagger");
        says(&reason, &format!("`attachments` is {kind}"));
        bench
            .redis
            .ask::<i64>(&["DEL", "DLQ:default", "conserver:dlq:default", "done"]);
    }
}

#[test]
fn a_document_that_was_encoded_twice() {
    let text = serde_json::json!(r#"{"vcon": "0.4.0"}"#).to_string();
    says(&Bench::start().refused_document(&text), "encoded twice");
}

#[test]
fn a_document_in_another_encoding_than_utf_8() {
    let bench = Bench::start();
    let units = "{\"vcon\": \"0.4.0\"}".encode_utf16();
    let text: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
    let id = uuid::Uuid::new_v4().to_string();
    let mut set = redis::cmd("SET");
    set.arg(format!("vcon:{id}")).arg(text);
    set.exec(&mut bench.redis.connection())
        .expect("Redis takes it");
    says(&bench.refused(&id), "UTF-16");
}

#[test]
fn a_json_document_that_is_not_an_object() {
    let bench = Bench::on(Redis::with_json(), &[]);
    let id = uuid::Uuid::new_v4().to_string();
    bench
        .redis
        .ask::<()>(&["JSON.SET", &format!("vcon:{id}"), "$", "\"text\""]);
    says(&bench.refused(&id), "object");
}

#[test]
fn a_character_that_postgres_cannot_hold() {
    let database = Postgres::database();
    let bench = Bench::on(Redis::plain(), &[("pg", database.storage())]);
    let redis = &bench.redis;
    let id = uuid::Uuid::new_v4().to_string();
    let text = r#"{"created_at": "2024-03-16T16:09:20Z", "subject": "a\u0000b", "dialog": []}"#;
    redis.ask::<()>(&["SET", &format!("vcon:{id}"), text]);
    redis.ask::<i64>(&["RPUSH", "default", &id]);
    // The other storage has it, so it is finished.
    wait_until("it is announced", PATIENCE, || redis.list("done") == [&*id]);
    assert_eq!(redis.list("DLQ:storage:pg"), [&*id]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:storage:pg", &id]);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    assert_eq!(reason["stage"], "storage pg", "{reason}");
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(bench.files.text(&id).contains("checked:checked"));
    bench.goes_on();
    assert_eq!(database.rows().len(), 1);
}

#[test]
fn a_document_of_the_wrong_redis_type() {
    let bench = Bench::start();
    let id = uuid::Uuid::new_v4().to_string();
    bench
        .redis
        .ask::<i64>(&["HSET", &format!("vcon:{id}"), "a", "b"]);
    says(&bench.refused(&id), "hash");
}

#[test]
fn a_list_of_the_wrong_redis_type_does_not_stop_the_others() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = serde_json::json!(["broken", "default"]);
    redis.ask::<()>(&["SET", "broken", "not a list"]);
    let daemon = Conserver::with(&redis).config(&config).start();
    let told = || daemon.count_in_log("an ingress list cannot be read");
    let samples = fresh(5);
    for (sample, done) in samples[..4].iter().zip(1..) {
        submit(&redis, "default", std::slice::from_ref(sample));
        wait_until("the other list is served", PATIENCE, || {
            redis.length("done") == done
        });
        // At each look it is so, which is no news.
        wait_until("it is told once", PATIENCE, || told() == 1);
    }
    redis.ask::<i64>(&["DEL", "broken"]);
    submit(&redis, "broken", &samples[4..]);
    wait_until("the list is served again", PATIENCE, || {
        redis.length("done") == 5
    });
    redis.ask::<()>(&["SET", "broken", "no list again"]);
    submit(&redis, "default", &fresh(1));
    wait_until("that is told too", PATIENCE, || told() == 2);
}

#[test]
fn an_egress_list_of_the_wrong_redis_type_is_waited_for() {
    let redis = Redis::plain();
    redis.ask::<()>(&["SET", "done", "not a list"]);
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    submit(&redis, "default", &[Sample::small()]);
    daemon.wait_for_log("the egress list done holds a string", PATIENCE);
    wait_until("it is not ready for that alone", PATIENCE, || {
        let ready = monitor.get("/readyz");
        let body = ready.body.as_str();
        let names_it = body.starts_with("list done is not a list (since ");
        ready.status == 503 && names_it && body.ends_with("; chains on hold: main\n")
    });
    wait_until("its worker has nothing in hand", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        status["holds"][0]["stage"] == "list done" && status["workers"][0]["state"] == "holding"
    });
    let shown = daemon.conserver().run(&["status"]).stdout;
    for words in [
        "list done is not a list (since ",
        "; worker 1), chain main waits",
    ] {
        assert!(shown.contains(words), "{shown}");
    }
    wait_until("it is back in its list", PATIENCE, || {
        redis.length("default") == 1 && redis.keys("conserver:claims:*").is_empty()
    });
    redis.ask::<i64>(&["DEL", "done"]);
    wait_until("it is announced", PATIENCE, || redis.length("done") == 1);
    assert_eq!(redis.length("DLQ:default"), 0);
}

#[test]
fn a_stored_document_too_deep_for_redis() {
    let bench = Bench::with_format(Redis::with_json(), &[], "json");
    let id = uuid::Uuid::new_v4().to_string();
    let deep = format!(
        r#"{{"uuid":"{id}","x":{}{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    let folder = bench.files.folder().join("2024/01/02");
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(format!("{id}.json"));
    std::fs::write(&path, deep).expect("a file");
    bench.redis.ask::<i64>(&["RPUSH", "default", &id]);
    wait_until("it is a dead letter", PATIENCE, || {
        bench.redis.length("DLQ:default") == 1
    });
    let reason: String = bench.redis.ask(&["HGET", "conserver:dlq:default", &id]);
    assert!(reason.contains("Redis refuses the document"), "{reason}");
    std::fs::remove_file(&path).expect("it stays in the storage");
    bench.goes_on();
}

#[test]
fn a_document_that_became_a_string_while_its_vcon_was_in_work() {
    let (redis, files) = (Redis::with_json(), Files::new());
    let slowly = crate::harness::delay(1.0);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[slowly], &[("files", files.storage())]))
        .start();
    let sample = Sample::small();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it is claimed", PATIENCE, || {
        !redis.keys("conserver:claims:*").is_empty()
    });
    redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), "{}"]);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    // It stays what its writer has made of it, with the chain's change laid over that.
    let text: String = redis.ask(&["GET", &format!("vcon:{}", sample.id)]);
    assert!(text.contains("checked:checked"), "{text}");
    daemon.stop();
}

#[test]
fn a_dead_letter_queue_of_the_wrong_redis_type() {
    let redis = Redis::plain();
    redis.ask::<()>(&["SET", "DLQ:default", "not a list"]);
    redis.ask::<()>(&["SET", "conserver:dlq:default", "not a hash"]);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    redis.ask::<i64>(&["RPUSH", "default", "hello world"]);
    submit(&redis, "default", &[Sample::small()]);
    wait_until("the work goes on", PATIENCE, || redis.length("done") == 1);
    let aside = redis.list("conserver:unreadable");
    assert!(
        aside.len() == 1 && aside[0].contains("hello world"),
        "{aside:?}"
    );
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
    daemon.stop();
}

/// Entries that are no UUIDs: any bytes, nearly a UUID, nothing, as long as one may be.
fn entries() -> Vec<Vec<u8>> {
    let uuid = "05cec3d4-0561-4010-9fb8-23cc7edef146";
    let near = (0..uuid.len(), any::<u8>()).prop_map(move |(at, byte)| {
        let mut bytes = uuid.as_bytes().to_vec();
        bytes[at] = byte;
        bytes
    });
    let entry = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        near,
        "(?s).{0,60}".prop_map(String::into_bytes),
        "[{}\"\\\\a,:\\[\\]\0\n]{1,40}".prop_map(String::into_bytes),
    ];
    let mut runner = TestRunner::default();
    let mut entries: Vec<Vec<u8>> = (0..300)
        .map(|_| entry.new_tree(&mut runner).expect("an entry").current())
        .filter(|entry| uuid::Uuid::try_parse_ascii(entry).is_err() || entry.len() != 36)
        .collect();
    let large = [&b"\xff"[..], b"\0", b"\"", b"x"].map(|byte| byte.repeat(1024));
    entries.extend(large);
    entries.extend([
        Vec::new(),
        b"\0".to_vec(),
        [uuid.as_bytes(), b"\0"].concat(),
    ]);
    entries
}

#[test]
fn every_entry_that_is_no_uuid_is_a_dead_letter_byte_for_byte() {
    let bench = Bench::start();
    let mut connection = bench.redis.connection();
    let mut expected: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut push = redis::cmd("RPUSH");
    push.arg("default");
    for entry in entries() {
        push.arg(&entry);
        *expected.entry(entry).or_default() += 1;
    }
    push.query::<()>(&mut connection).expect("Redis takes them");
    let count: usize = expected.values().sum();
    wait_until("all are dead letters", PATIENCE * 2, || {
        bench.redis.length("DLQ:default") == count
    });
    let mut range = redis::cmd("LRANGE");
    range.arg("DLQ:default").arg(0).arg(-1);
    let letters: Vec<Vec<u8>> = range.query(&mut connection).expect("a list");
    let mut found: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for letter in letters {
        *found.entry(letter).or_default() += 1;
    }
    assert!(found == expected, "the dead letters are not the entries");
    let mut all = redis::cmd("HGETALL");
    all.arg("conserver:dlq:default");
    let reasons: BTreeMap<Vec<u8>, Vec<u8>> = all.query(&mut connection).expect("a hash");
    assert!(reasons.keys().eq(expected.keys()));
    for reason in reasons.values() {
        let reason: Value = serde_json::from_slice(reason).expect("JSON");
        assert_eq!(reason["stage"], "queue");
        says(&reason, "not a UUID");
    }
    bench.goes_on();
    let log = bench.daemon.log();
    assert!(
        !log.contains('\0') && !log.contains('\u{1b}'),
        "the log holds raw control characters"
    );
    assert!(log.lines().all(|line| line.len() < 4000));
}

/// In JSON it is six times as long, and each script that has to do with a claim would get it.
#[test]
fn an_entry_that_is_too_long_is_cut_before_anything_is_made_of_it() {
    let bench = Bench::start();
    let redis = &bench.redis;
    let mut connection = redis.connection();
    for (length, others) in [(1025, 0), (16 << 20, 0), (16 << 20, 40)] {
        // With others, it is taken by the script that finishes one of them.
        let samples = fresh(others);
        let (before, after) = samples.split_at(others / 2);
        let mut push = redis::pipe();
        submit(redis, "default", before);
        push.rpush("default", b"\x01".repeat(length)).ignore();
        push.query::<()>(&mut connection).expect("Redis takes it");
        submit(redis, "default", after);
        wait_until("all are done, or dead", PATIENCE, || {
            redis.length("DLQ:default") == 1 && redis.length("done") == others
        });
        let letters: Vec<Vec<u8>> = connection.lrange("DLQ:default", 0, -1).expect("a list");
        // A byte more than an entry may have: put back, it is known again.
        assert!(letters == [b"\x01".repeat(1025)]);
        let reasons: Vec<String> = redis.ask(&["HVALS", "conserver:dlq:default"]);
        let reason = serde_json::from_str(&reasons[0]).expect("JSON");
        says(&reason, "the entry has more than 1024 bytes");
        assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
        redis.ask::<()>(&["DEL", "DLQ:default", "conserver:dlq:default", "done"]);
    }
    bench.goes_on();
}

#[test]
fn a_context_that_is_too_long_makes_its_vcon_a_dead_letter() {
    let bench = Bench::start();
    let redis = &bench.redis;
    let mut connection = redis.connection();
    for (length, others) in [(65_536, 0), (65_537, 0), (16 << 20, 40)] {
        let samples = fresh(others + 1);
        let (before, rest) = samples.split_at(others / 2);
        let id = &rest[0].id;
        let context = format!("context:default:{id}");
        let mut push = redis::cmd("RPUSH");
        push.arg(&context).arg(b"\x01".repeat(length));
        push.query::<()>(&mut connection).expect("Redis takes it");
        submit(redis, "default", before);
        submit(redis, "default", rest);
        let dead = usize::from(length > 65_536);
        wait_until("all are done, or dead", PATIENCE, || {
            redis.length("DLQ:default") == dead && redis.length("done") == others + 1 - dead
        });
        assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
        if dead == 1 {
            assert_eq!(redis.list("DLQ:default"), std::slice::from_ref(id));
            let reason: String = redis.ask(&["HGET", "conserver:dlq:default", id]);
            let reason = serde_json::from_str(&reason).expect("JSON");
            says(
                &reason,
                "context that came with it has more than 65536 bytes",
            );
        }
        redis.ask::<()>(&["DEL", "DLQ:default", "conserver:dlq:default", "done"]);
    }
    bench.goes_on();
}
