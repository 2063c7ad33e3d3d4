//! The link that posts vCons, against servers that answer well and badly.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Ledger, PATIENCE, Redis, Sample, Webhook, chain, submit, wait_until,
};

fn posting_to(webhook: &Webhook) -> Value {
    let options = json!({"webhook-urls": [webhook.url()], "headers": {"X-Key": "GeheimerKopf"}});
    chain(
        &[(
            "post",
            json!({"module": "links.webhook", "options": options}),
        )],
        &[],
    )
}

#[test]
fn a_webhook_gets_the_vcon_with_the_headers() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let daemon = Conserver::with(&redis)
        .config(&posting_to(&webhook))
        .env("EGRESS_FORMAT_VERSION", "0.0.1")
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let requests = webhook.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].head.starts_with("post /calls "),
        "{}",
        requests[0].head
    );
    assert!(
        requests[0].head.contains("x-key: geheimerkopf"),
        "{}",
        requests[0].head
    );
    let sent: Value = serde_json::from_str(&requests[0].body).expect("JSON");
    assert_eq!(
        (&sent["uuid"], &sent["vcon"]),
        (&json!(samples[0].id), &json!("0.0.1"))
    );
    assert!(!daemon.output().contains("GeheimerKopf"));
}

#[test]
fn a_webhook_that_is_busy_is_tried_again() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[503, 429]));
    let _daemon = Conserver::with(&redis)
        .config(&posting_to(&webhook))
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(webhook.requests().len(), 3);
}

#[test]
fn a_webhook_that_refuses_the_credentials_or_is_not_deployed_is_waited_out() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[401, 403, 404, 302]));
    let daemon = Conserver::with(&redis)
        .config(&posting_to(&webhook))
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(webhook.requests().len(), 5);
    assert!(daemon.log().contains("see to the credentials"));
}

#[test]
fn a_webhook_that_refuses_makes_a_dead_letter() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[400]));
    let _daemon = Conserver::with(&redis)
        .config(&posting_to(&webhook))
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    assert_eq!(webhook.requests().len(), 1);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &samples[0].id]);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    let (stage, error) = (reason["stage"].to_string(), reason["error"].to_string());
    assert!(stage.contains("post") && error.contains("400"), "{reason}");
    assert_eq!(redis.length("done"), 0);
}
