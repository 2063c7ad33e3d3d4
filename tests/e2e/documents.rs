//! What happens to a document between Redis and a storage, and what does not.

use chrono::Utc;
use serde_json::{Value, json};

use crate::harness::{Conserver, Files, Ledger, Postgres, Redis, S3, Sample, Webhook, chain};

/// Processes one vCon given as text; gives the text of its file.
fn filed(redis: &Redis, id: &str, text: &str) -> String {
    filed_in(&Files::new(), redis, id, text)
}

fn filed_in(files: &Files, redis: &Redis, id: &str, text: &str) -> String {
    let config = chain(&[], &[("files", files.storage())]);
    let daemon = Conserver::with(redis).config(&config).start();
    redis.ask::<()>(&["SET", &format!("vcon:{id}"), text]);
    redis.ask::<i64>(&["RPUSH", "default", id]);
    let sample = [Sample {
        id: id.to_owned(),
        document: Value::Null,
    }];
    Ledger::of(redis, &sample).settles();
    daemon.stop();
    files.text(id)
}

const OLD: &str = r#"{"zebra": {"b": 1, "a": [18446744073709551616, 1.0, 1, 1e3]},
    "uuid": "ID", "vcon": "0.0.1", "created_at": "2024-03-16T16:09:20.701906",
    "group": [], "redacted": {}, "must_support": [], "subject": "Größe 漢字",
    "parties": [], "dialog": [{"type": "text", "mimetype": "text/plain", "body": "ü"}],
    "analysis": [{"type": "summary", "schema_version": "1", "body": {"k": 1.0}}],
    "attachments": [{"type": "note", "mimetype": "text/plain", "body": "n"}]}"#;

fn old() -> (String, String) {
    let id = uuid::Uuid::new_v4().to_string();
    let text = OLD.replace("ID", &id);
    (id, text)
}

#[test]
fn numbers_unknown_fields_and_the_order_of_keys_survive() {
    let (redis, (id, text)) = (Redis::plain(), old());
    let filed = filed(&redis, &id, &text);
    let kept: String = filed.split_whitespace().collect();
    let zebra = r#"{"zebra":{"b":1,"a":[18446744073709551616,1.0,1,1e3]},"uuid""#;
    assert!(kept.starts_with(zebra), "{filed}");
    assert!(filed.contains("Größe 漢字"), "{filed}");
    let in_redis: String = redis.ask(&["GET", &format!("vcon:{id}")]);
    assert_eq!(in_redis, filed);
}

#[test]
fn old_names_are_renewed_and_bodies_stay_values() {
    let (redis, (id, text)) = (Redis::plain(), old());
    let kept: Value = serde_json::from_str(&filed(&redis, &id, &text)).expect("JSON");
    assert_eq!(kept["vcon"], "0.4.0");
    assert_eq!(kept["critical"], json!([]));
    assert_eq!(kept["dialog"][0]["mediatype"], "text/plain");
    assert_eq!(kept["analysis"][0]["schema"], "1");
    assert_eq!(kept["analysis"][0]["encoding"], "json");
    assert_eq!(kept["analysis"][0]["body"], json!({"k": 1.0}));
    assert_eq!(kept["attachments"][0]["purpose"], "note");
    for gone in ["group", "redacted", "must_support"] {
        assert!(kept.get(gone).is_none(), "{gone}");
    }
    let tags = &kept["attachments"][1];
    assert_eq!(tags["purpose"], "tags");
    let body = tags["body"].as_str().expect("text");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body, json!(["checked:checked"]));
}

#[test]
fn what_leaves_is_downgraded_for_some_and_redis_and_the_others_keep_the_new_form() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let (files, s3, database) = (Files::new(), S3::start(), Postgres::database());
    let (link, storage) = (Webhook::answering(&[]), Webhook::answering(&[]));
    let hook = |module: &str, to: &Webhook| json!({"module": module, "options": {"webhook-urls": [to.url()]}});
    let kept = json!({"module": "storage.redis_storage", "options": {"redis_url": keeper.url()}});
    let config = chain(
        &[("hook", hook("links.webhook", &link))],
        &[
            ("files", files.storage()),
            ("pg", database.storage()),
            ("s3", s3.storage()),
            ("post", hook("storage.webhook", &storage)),
            ("redis", kept),
        ],
    );
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("EGRESS_FORMAT_VERSION", "0.0.1")
        .start();
    let (id, text) = old();
    redis.ask::<()>(&["SET", &format!("vcon:{id}"), &text]);
    redis.ask::<i64>(&["RPUSH", "default", &id]);
    let sample = [Sample {
        id: id.clone(),
        document: Value::Null,
    }];
    Ledger::of(&redis, &sample).settles();
    daemon.stop();

    let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let object = s3.object(&format!("archive/2024/03/16/{id}.vcon"));
    let object = std::fs::read_to_string(object).expect("an object");
    for (name, older) in [
        ("links.webhook", json(&link.requests()[0].body)),
        ("storage.postgres", database.rows()[0].1.clone()),
        ("storage.s3", json(&object)),
    ] {
        assert_eq!(older["vcon"], "0.0.1", "{name}");
        assert_eq!(older["must_support"], json!([]));
        let empty = (&json!([]), &json!({}));
        assert_eq!((&older["group"], &older["redacted"]), empty, "{name}");
        assert_eq!(older.get("appended"), Some(&Value::Null));
        assert_eq!(older["dialog"][0]["mimetype"], "text/plain");
        assert_eq!(older["analysis"][0]["body"], json!({"k": 1.0}));
        assert_eq!(older["analysis"][0]["encoding"], "none", "{name}");
        assert_eq!(older["attachments"][0]["type"], "note");
        let tags = &older["attachments"][1];
        assert_eq!(tags["body"], json!(["checked:checked"]), "{name}");
        assert_eq!(tags["encoding"], "none");
    }
    let in_redis = redis.document(&id).expect("a document");
    assert_eq!(in_redis["vcon"], "0.4.0");
    assert_eq!(in_redis["attachments"][0]["purpose"], "note");
    let copy: String = keeper.ask(&["GET", &format!("vcon_storage:{id}")]);
    for (name, current) in [
        ("storage.file", json(&files.text(&id))),
        ("storage.webhook", json(&storage.requests()[0].body)),
        ("storage.redis_storage", json(&copy)),
    ] {
        assert_eq!(current, in_redis, "{name}");
    }
}

#[test]
fn a_vcon_without_a_readable_date_is_stored_under_today() {
    let redis = Redis::plain();
    let id = uuid::Uuid::new_v4().to_string();
    let text = format!(r#"{{"uuid": "{id}", "created_at": "yesterday", "parties": []}}"#);
    let files = Files::new();
    let day = || Utc::now().format("%Y/%m/%d").to_string();
    let before = day();
    let filed = filed_in(&files, &redis, &id, &text);
    let kept: Value = serde_json::from_str(&filed).expect("JSON");
    assert_eq!(kept["created_at"], "yesterday");
    let path = files.paths()[0].display().to_string();
    assert!(
        [before, day()].iter().any(|day| path.contains(day)),
        "{path}"
    );
}
