//! Sample vCons with ids of their own, and the producer's side of the queue.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Redis;

/// A vCon as a producer has it.
#[derive(Clone)]
pub struct Sample {
    pub id: String,
    pub document: Value,
}

impl Sample {
    /// A vCon with little in it, and an id that no other has.
    pub fn small() -> Self {
        let document = serde_json::json!({
            "vcon": "0.0.1", "created_at": "2024-03-16T16:09:20Z", "subject": "Grüße",
            "parties": [{"name": "Zoë"}], "dialog": [], "analysis": [], "attachments": [],
        });
        Self::of(document)
    }

    /// The document under a new id.
    pub fn of(mut document: Value) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        document["uuid"] = id.clone().into();
        Self { id, document }
    }

    /// The document as text.
    pub fn text(&self) -> String {
        self.document.to_string()
    }
}

/// The samples of the folder in `CONSERVER_TEST_VCONS`, else of the project.
fn samples() -> Vec<Value> {
    let folder = std::env::var_os("CONSERVER_TEST_VCONS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples/vcons"),
        PathBuf::from,
    );
    let entries = folder.read_dir();
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(".vcon.json"));
    paths.sort();
    assert!(
        !paths.is_empty(),
        "{} holds no *.vcon.json",
        folder.display()
    );
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a text file");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}

/// As many vCons as asked for, the samples over and over, each with a new id.
pub fn fresh(count: usize) -> Vec<Sample> {
    samples()
        .into_iter()
        .cycle()
        .take(count)
        .map(Sample::of)
        .collect()
}

/// Puts vCons into Redis as the API server does: the document, the sorted set, the list.
pub fn submit(redis: &Redis, list: &str, samples: &[Sample]) {
    let mut connection = redis.connection();
    for some in samples.chunks(200) {
        let mut steps = redis::pipe();
        for sample in some {
            let key = format!("vcon:{}", sample.id);
            if redis.has_json() {
                steps
                    .cmd("JSON.SET")
                    .arg(&key)
                    .arg("$")
                    .arg(sample.text())
                    .ignore();
            } else {
                steps.cmd("SET").arg(&key).arg(sample.text()).ignore();
            }
            steps
                .cmd("ZADD")
                .arg("vcons")
                .arg(1_710_605_360)
                .arg(&key)
                .ignore();
            steps.cmd("RPUSH").arg(list).arg(&sample.id).ignore();
        }
        steps
            .query::<()>(&mut connection)
            .expect("Redis takes the vCons");
    }
}

/// Whether two documents are the same JSON: the order of keys and the way numbers are written do
/// not count.
pub fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, value)| other.get(key).is_some_and(|it| same(value, it)))
        }
        (one, other) => one == other,
    }
}
