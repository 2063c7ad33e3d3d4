//! The trace context that travels beside a vCon.

use serde_json::json;

use crate::harness::{Conserver, Files, Ledger, Redis, Sample, chain, submit};

const FIRST: &str = r#"{"trace_id": "0af7", "span_id": "b7ad", "trace_flags": 1}"#;
const SECOND: &str = r#"{"trace_id": "ffff", "span_id": "0000", "trace_flags": 0}"#;

#[test]
fn the_oldest_context_moves_to_every_egress_list_and_expires() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = [Sample::small()];
    let id = &samples[0].id;
    redis.ask::<i64>(&["RPUSH", &format!("context:default:{id}"), FIRST, SECOND]);
    let mut config = chain(&[], &[("files", files.storage())]);
    config["chains"]["main"]["egress_lists"] = json!(["done", "copy"]);
    let _daemon = Conserver::with(&redis)
        .config(&config)
        .env("VCON_CONTEXT_EXPIRY", "1000")
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.list("copy"), [id.as_str()]);
    assert_eq!(redis.list(&format!("context:default:{id}")), [SECOND]);
    for list in ["done", "copy"] {
        let key = format!("context:{list}:{id}");
        assert_eq!(redis.list(&key), [FIRST]);
        let left: i64 = redis.ask(&["TTL", &key]);
        assert!((900..=1000).contains(&left), "{left}");
    }
}

#[test]
fn a_vcon_without_context_gets_none() {
    let redis = Redis::plain();
    let samples = [Sample::small()];
    let _daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.keys("context:*"), Vec::<String>::new());
}
