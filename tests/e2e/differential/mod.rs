//! Two hundred documents of every kind, through the running daemon, against the facts about
//! existing deployments: what then stands in Redis, in the rows of PostgreSQL, in files and in
//! objects of S3.
//!
//! `generate` makes the documents, `facts` says what is to become of them.

mod facts;
mod generate;
mod json;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use chrono::{NaiveDate, Utc};
use serde_json::{Value, json};

use self::facts::{Bodies, downgraded, tagged, written};
use self::generate::{Made, documents};
use self::json::Json;
use crate::harness::{Conserver, Files, Ledger, Postgres, Redis, S3, Sample, run, same};

const COUNT: usize = 200;
const SEED: u64 = 20_250_211;

/// The one tag that the link adds.
const TAG: &str = "checked:checked";

/// A score of the API server's, which is not ours to change.
const SCORE: i64 = 1_710_605_360;

/// How a deployment is set up.
struct Setup {
    redis: Redis,
    bodies: Bodies,
    /// Whether `EGRESS_FORMAT_VERSION` is 0.0.1.
    is_older: bool,
}

/// What is to become of one document.
struct Outcome {
    in_redis: Json,
    in_files: Json,
    in_s3: Json,
}

fn outcome(made: &Made, setup: &Setup) -> Outcome {
    let changed = made
        .is_tagged
        .then(|| tagged(&made.document, TAG))
        .flatten();
    let current = written(changed.as_ref().unwrap_or(&made.document), setup.bodies);
    Outcome {
        // What no link changes is not written to Redis.
        in_redis: if changed.is_some() {
            current.clone()
        } else {
            made.document.clone()
        },
        in_s3: if setup.is_older {
            downgraded(&current)
        } else {
            current.clone()
        },
        in_files: current,
    }
}

/// Hands the documents in as the API server does, each to the list of its chain.
fn hand_in(redis: &Redis, all: &[Made]) {
    let mut steps = redis::pipe();
    for made in all {
        let key = format!("vcon:{}", made.id);
        let text = made.document.written();
        if redis.has_json() {
            steps.cmd("JSON.SET").arg(&key).arg("$").arg(text).ignore();
        } else {
            steps.cmd("SET").arg(&key).arg(text).ignore();
        }
        steps.cmd("ZADD").arg("vcons").arg(SCORE).arg(&key).ignore();
        let list = if made.is_tagged { "tagging" } else { "default" };
        steps.cmd("RPUSH").arg(list).arg(&made.id).ignore();
    }
    let handed_in = steps.query::<()>(&mut redis.connection());
    handed_in.expect("Redis takes the vCons");
}

fn config(storages: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = storages.iter().map(|(name, _)| *name).collect();
    let storages: BTreeMap<&str, &Value> = storages.iter().map(|(name, it)| (*name, it)).collect();
    json!({
        "links": {"tagger": {"module": "links.tag", "options": {"tags": ["checked"]}}},
        "storages": storages,
        "chains": {
            "plain": {"links": [], "storages": names, "ingress_lists": ["default"],
                "egress_lists": ["done"], "enabled": 1},
            "tagging": {"links": ["tagger"], "storages": names, "ingress_lists": ["tagging"],
                "egress_lists": ["done"], "enabled": 1},
        },
    })
}

/// The day of a vCon; the test may go on at midnight.
fn days(made: &Made, today: [NaiveDate; 2]) -> Vec<String> {
    let days = match made.date {
        Some((local, _)) => vec![local.date()],
        None => today.to_vec(),
    };
    let days = days.iter().map(|day| day.format("%Y/%m/%d").to_string());
    days.collect()
}

/// Fails unless a text is this document: letter by letter, or, if `is_exact` is false, in content.
fn is_document(text: &str, expected: &Json, is_exact: bool, place: &str, made: &Made) {
    let told = || format!("{place} of {}", made.document.written());
    if is_exact {
        assert_eq!(text, expected.written(), "{}", told());
    } else {
        let value: Value = serde_json::from_str(text).expect("JSON");
        let expected = expected.value();
        assert!(
            same(&value, &expected),
            "{value} is not {expected}: {}",
            told()
        );
    }
}

fn all_becomes_what_the_facts_say(setup: &Setup) {
    let redis = &setup.redis;
    let all = documents(SEED, COUNT);
    let (database, s3, files) = (Postgres::database(), S3::start(), Files::new());
    let storages = [
        ("pg", database.storage()),
        ("s3", s3.storage()),
        ("files", files.storage()),
    ];
    let before = Utc::now();
    hand_in(redis, &all);
    let daemon = Conserver::with(redis)
        .config(&config(&storages))
        .lanes(4)
        .env(
            "EGRESS_FORMAT_VERSION",
            if setup.is_older { "0.0.1" } else { "" },
        )
        .env(
            "VCON_JSON_BODIES",
            if setup.bodies == Bodies::Text {
                "text"
            } else {
                "native"
            },
        )
        .start();
    let samples: Vec<Sample> = all
        .iter()
        .map(|made| Sample {
            id: made.id.clone(),
            document: Value::Null,
        })
        .collect();
    Ledger::of(redis, &samples).settles();
    daemon.stop();
    let today = [before.date_naive(), Utc::now().date_naive()];

    // A server with RedisJSON writes numbers in its own way.
    let is_exact = !redis.has_json();
    let mut expected_files = BTreeSet::new();
    let mut expected_objects = BTreeSet::new();
    for made in &all {
        let outcome = outcome(made, setup);
        let id = &made.id;
        let key = format!("vcon:{id}");
        let (kind, read) = if redis.has_json() {
            ("ReJSON-RL", "JSON.GET")
        } else {
            ("string", "GET")
        };
        assert_eq!(redis.ask::<String>(&["TYPE", &key]), kind);
        let text: String = redis.ask(&[read, &key]);
        is_document(&text, &outcome.in_redis, is_exact, "Redis", made);
        assert_eq!(redis.ask::<i64>(&["TTL", &key]), -1);
        assert_eq!(redis.ask::<i64>(&["ZSCORE", "vcons", &key]), SCORE);

        let days = days(made, today);
        let file = |day: &String| files.folder().join(format!("{day}/{id}.json"));
        let file = days.iter().map(file).find(|path| path.exists());
        let file = file.unwrap_or_else(|| panic!("no file under {days:?}: {:?}", made.document));
        let text = fs::read_to_string(&file).expect("a text file");
        is_document(&text, &outcome.in_files, is_exact, "the file", made);
        expected_files.insert(file);

        let pointer = s3.object(&format!("archive/lookup/{id}.txt"));
        let day = fs::read_to_string(&pointer).expect("a pointer");
        assert!(days.contains(&day), "{day}: {:?}", made.document);
        let object = s3.object(&format!("archive/{day}/{id}.vcon"));
        let text = fs::read_to_string(&object).expect("a document");
        is_document(&text, &outcome.in_s3, is_exact, "the object", made);
        expected_objects.extend([pointer, object]);
    }
    assert_eq!(redis.keys("vcon:*").len(), COUNT);
    assert_eq!(redis.ask::<usize>(&["ZCARD", "vcons"]), COUNT);
    let found: BTreeSet<PathBuf> = files.with_hidden().into_iter().collect();
    assert_eq!(found, expected_files);
    let objects = Files::in_folder(&s3.object(""));
    let found: BTreeSet<PathBuf> = objects.with_hidden().into_iter().collect();
    assert_eq!(found, expected_objects);
    rows_are(&mut database.client(), &all, setup, today);
}

fn rows_are(client: &mut postgres::Client, all: &[Made], setup: &Setup, today: [NaiveDate; 2]) {
    let select = "SELECT id::text, uuid::text, vcon, created_at, updated_at IS NOT NULL, subject, \
                  vcon_json::text FROM vcons";
    let rows = client.query(select, &[]).expect("the table vcons");
    assert_eq!(rows.len(), all.len());
    let rows: BTreeMap<String, _> = rows.into_iter().map(|row| (row.get(0), row)).collect();
    for made in all {
        let row = &rows[&made.id];
        let told = made.document.written();
        assert_eq!(row.get::<_, String>(1), made.id);
        let version = if setup.is_older { "0.0.1" } else { "0.4.0" };
        assert_eq!(row.get::<_, String>(2), version);
        let local: chrono::NaiveDateTime = row.get(3);
        match made.date {
            Some((date, _)) => assert_eq!(local, date, "{told}"),
            None => assert!(today.contains(&local.date()), "{local}: {told}"),
        }
        assert!(row.get::<_, bool>(4));
        assert_eq!(row.get::<_, Option<String>>(5), made.subject, "{told}");
        let outcome = outcome(made, setup);
        is_document(row.get(6), &outcome.in_s3, false, "the row", made);
    }
}

#[test]
fn two_hundred_documents_become_what_the_facts_say() {
    all_becomes_what_the_facts_say(&Setup {
        redis: Redis::plain(),
        bodies: Bodies::Values,
        is_older: false,
    });
}

#[test]
fn two_hundred_documents_become_what_the_facts_say_with_bodies_as_text() {
    all_becomes_what_the_facts_say(&Setup {
        redis: Redis::plain(),
        bodies: Bodies::Text,
        is_older: false,
    });
}

#[test]
fn two_hundred_documents_become_what_the_facts_say_as_redis_json() {
    all_becomes_what_the_facts_say(&Setup {
        redis: Redis::with_json(),
        bodies: Bodies::Values,
        is_older: false,
    });
}

#[test]
fn two_hundred_documents_become_what_the_facts_say_in_the_older_version() {
    all_becomes_what_the_facts_say(&Setup {
        redis: Redis::with_json(),
        bodies: Bodies::Values,
        is_older: true,
    });
}

#[test]
fn documents_that_are_handed_in_have_their_form_and_score_in_redis() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&config(&[]));
    let all = documents(SEED, COUNT);
    let folder = conserver.folder().join("handed_in");
    fs::create_dir(&folder).expect("a folder");
    for made in &all {
        let path = folder.join(format!("{}.json", made.id));
        fs::write(path, made.document.written()).expect("a file");
    }
    let before = Utc::now().timestamp();
    run(&conserver, &["submit", &folder.display().to_string()], 0);
    let now = before..=Utc::now().timestamp();
    for made in &all {
        let key = format!("vcon:{}", made.id);
        let text: String = redis.ask(&["GET", &key]);
        let expected = written(&made.document, Bodies::Values);
        is_document(&text, &expected, true, "Redis", made);
        let score: i64 = redis.ask(&["ZSCORE", "vcons", &key]);
        match made.date {
            Some((_, unix)) => assert_eq!(score, unix, "{}", made.document.written()),
            None => assert!(now.contains(&score), "{score}"),
        }
    }
    let waiting: BTreeSet<String> = redis.list("default").into_iter().collect();
    assert_eq!(waiting.len(), COUNT);
}
