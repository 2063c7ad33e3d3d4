//! What a router puts on other lists, where chains end, go over to another vCon or begin anew.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Programs, Redis, Sample, Webhook, chain, exec, submit,
    wait_until,
};

const CONTEXT: &str = r#"{"trace_id": "0af7", "span_id": "b7ad", "trace_flags": 1}"#;

/// A router of the tags `vip` and `urgent`, to lists of these names.
fn router(forward_original: bool) -> (&'static str, Value) {
    let options = json!({
        "tag_routes": {"vip": "vips", "urgent": "urgents", "also-vip": "vips"},
        "forward_original": forward_original,
    });
    (
        "router",
        json!({"module": "links.tag_router", "options": options}),
    )
}

fn tagged(tags: &[&str]) -> Sample {
    let mut document = Sample::small().document;
    let entries: Vec<String> = tags.iter().map(|tag| format!("{tag}:x")).collect();
    document["attachments"] = json!([{"type": "tags", "body": entries, "encoding": "none"}]);
    Sample::of(document)
}

#[test]
fn a_router_that_does_not_forward_ends_the_chain_and_takes_the_context_along() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = [tagged(&["vip", "urgent"]), tagged(&["other"])];
    for sample in &samples {
        let key = format!("context:default:{}", sample.id);
        redis.ask::<i64>(&["RPUSH", &key, CONTEXT]);
    }
    let conserver = Conserver::with(&redis)
        .config(&chain(&[router(false)], &[("files", files.storage())]))
        .env("VCON_CONTEXT_EXPIRY", "1000");
    let daemon = conserver.start();
    submit(&redis, "default", &samples);
    wait_until("both are done", PATIENCE, || {
        daemon.count_in_log("Halted ") == 2
    });
    let id = &samples[0].id;
    for list in ["vips", "urgents"] {
        assert_eq!(redis.list(list), [id.as_str()]);
        let key = format!("context:{list}:{id}");
        assert_eq!(redis.list(&key), [CONTEXT]);
        let left: i64 = redis.ask(&["TTL", &key]);
        assert!((900..=1000).contains(&left), "{left}");
    }
    assert_eq!(redis.keys("context:*").len(), 2);
    assert_eq!(redis.length("done") + redis.length("DLQ:default"), 0);
    assert_eq!(files.paths().len(), 0);
    Ledger::of(&redis, &samples).nothing_is_claimed();

    // What a route has is not lost; what went nowhere is nowhere.
    let audit = daemon
        .conserver()
        .run(&["audit", "--settle", "0", "--json"]);
    assert_eq!(audit.code, 65, "{}", audit.output());
    assert!(audit.stdout.contains(&samples[1].id) && !audit.stdout.contains(id.as_str()));
}

#[test]
fn a_list_that_the_chain_announces_on_as_well_gets_the_vcon_once() {
    let redis = Redis::plain();
    let mut config = chain(&[router(true)], &[]);
    config["chains"]["main"]["egress_lists"] = json!(["done", "vips"]);
    let _daemon = Conserver::with(&redis).config(&config).start();
    let samples = [tagged(&["vip", "urgent"])];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    for list in ["vips", "urgents"] {
        assert_eq!(redis.list(list), [samples[0].id.as_str()]);
    }
}

/// The vCon that was routed is left for another one, and what comes after fails some times.
#[test]
fn a_vcon_that_was_left_is_on_its_list_once_however_often_the_chain_begins_anew() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let webhook = Webhook::answering(&[503, 503, 503]);
    let other = Sample::small();
    submit(&redis, "elsewhere", std::slice::from_ref(&other));
    let text = format!(
        "while read -r _; do echo '{{\"uuid\": \"{}\"}}'; done",
        other.id
    );
    let switching = programs.write("switch.sh", &text);
    let links = [
        router(true),
        (
            "switch",
            exec(&json!({"command": ["sh", switching], "mode": "stream"})),
        ),
        (
            "post",
            json!({"module": "links.webhook", "options": {"webhook-urls": [webhook.url()]}}),
        ),
    ];
    let _daemon = Conserver::with(&redis)
        .config(&chain(&links, &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .start();
    let samples = [tagged(&["vip"])];
    submit(&redis, "default", &samples);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(webhook.requests().len(), 4);
    assert_eq!(redis.list("done"), [other.id.as_str()]);
    assert_eq!(redis.list("vips"), [samples[0].id.as_str()]);
    assert_eq!(redis.length("DLQ:default"), 0);
}
