//! What a storage gives back is what it was given, key by key.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::harness::{Files, Postgres, Redis, S3, Sample, Shelf};

const GENERATED: usize = 200;

/// Texts of every kind but those with NUL, which PostgreSQL cannot hold.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9 ]{0,20}",
        "[\u{1}-\u{10ffff}]{0,12}",
        Just("\"\\/\u{7f}\u{2028}😀é".to_owned()),
    ]
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1_000_000i64..1_000_000).prop_map(|n| json!(n as f64 / 64.0)),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..5)
                .prop_map(|members| Value::from(Map::from_iter(members))),
        ]
    })
}

/// Members of parts, in names of today and of before.
const NAMES: &[&str] = &[
    "type",
    "purpose",
    "mimetype",
    "mediatype",
    "schema_version",
    "must_support",
    "encoding",
    "start",
    "x",
];

/// A dialog, an analysis or an attachment.
fn part() -> impl Strategy<Value = Value> {
    let member = (prop::sample::select(NAMES), text());
    let members = prop::collection::vec(member, 0..4);
    (members, prop::option::of(value())).prop_map(|(members, body)| {
        let mut part = Map::new();
        for (name, text) in members {
            part.insert(name.to_owned(), text.into());
        }
        if let Some(body) = body {
            part.insert("body".to_owned(), body);
        }
        part.into()
    })
}

/// vCons of parts that came to nobody's mind; the same ones at every run.
fn generated() -> Vec<Sample> {
    let parts = || prop::collection::vec(part(), 0..4);
    let document = (
        prop::collection::vec(value(), 0..3),
        parts(),
        parts(),
        parts(),
        prop::option::of(text()),
        prop::collection::btree_map("[a-z_]{1,8}", value(), 0..4),
    );
    let mut runner = TestRunner::deterministic();
    let mut sample = || {
        let tree = document.new_tree(&mut runner).expect("a document");
        let (parties, dialog, analysis, attachments, subject, more) = tree.current();
        let mut document = json!({
            "vcon": "0.0.1", "created_at": "2024-05-06T07:08:09.5+02:00", "parties": parties,
            "dialog": dialog, "analysis": analysis, "attachments": attachments,
        });
        if let Some(subject) = subject {
            document["subject"] = subject.into();
        }
        for (name, value) in more {
            if document.get(&name).is_none() && name != "uuid" {
                document[name] = value;
            }
        }
        Sample::of(document)
    };
    (0..GENERATED).map(|_| sample()).collect()
}

fn gives_back_what_it_is_given(storage: &Value) {
    let mut shelf = Shelf::open(storage);
    shelf.keeps_what_it_is_given();
    for sample in generated() {
        assert_eq!(shelf.save(&sample), Ok(()), "{}", sample.document);
        shelf.has(&sample);
        assert_eq!(shelf.delete(&sample), Ok(()));
        assert_eq!(shelf.get(&sample), Ok(None));
    }
}

#[test]
fn postgres_gives_back_what_it_is_given() {
    gives_back_what_it_is_given(&Postgres::database().storage());
}

#[test]
fn files_give_back_what_they_are_given() {
    for compression in [false, true] {
        let files = Files::new();
        let mut storage = files.storage();
        storage["options"]["compression"] = compression.into();
        gives_back_what_it_is_given(&storage);
    }
}

#[test]
fn s3_gives_back_what_it_is_given() {
    gives_back_what_it_is_given(&S3::start().storage());
}

#[test]
fn redis_gives_back_what_it_is_given() {
    let redis = Redis::plain();
    let options = json!({"redis_url": redis.url()});
    gives_back_what_it_is_given(&json!({"module": "storage.redis_storage", "options": options}));
}
