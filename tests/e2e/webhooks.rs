//! The link and the storage that post vCons, against servers that answer well and badly.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Ledger, PATIENCE, Proxy, Redis, Sample, Shelf, Webhook, chain, fresh, submit,
    wait_until,
};

fn options(url: &str) -> Value {
    json!({"webhook-urls": [url], "headers": {"X-Key": "GeheimerKopf"}})
}

fn posting_to(webhook: &Webhook) -> Value {
    let options = options(&webhook.url());
    chain(
        &[(
            "post",
            json!({"module": "links.webhook", "options": options}),
        )],
        &[],
    )
}

fn handing_on_to(url: &str) -> Value {
    let storage = json!({"module": "storage.webhook", "options": options(url)});
    chain(&[], &[("post", storage)])
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
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
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

#[test]
fn a_storage_posts_what_the_links_have_made_of_the_vcon() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[503, 401]));
    let daemon = Conserver::with(&redis)
        .config(&handing_on_to(&webhook.url()))
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let requests = webhook.requests();
    assert_eq!(requests.len(), 3);
    let sent: Value = serde_json::from_str(&requests[2].body).expect("JSON");
    assert_eq!(sent["uuid"], json!(samples[0].id));
    assert_eq!(sent["attachments"][0]["purpose"], json!("tags"));
    assert!(requests[2].head.contains("x-key: geheimerkopf"));
    assert!(!daemon.output().contains("GeheimerKopf"));
    daemon.stop();
}

#[test]
fn a_vcon_that_a_storage_refuses_is_a_dead_letter_and_others_are_not() {
    let (redis, samples) = (Redis::plain(), fresh(5));
    let refused = samples[2].id.clone();
    let webhook = Webhook::deciding(move |body| if body.contains(&refused) { 422 } else { 200 });
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis)
        .config(&handing_on_to(&webhook.url()))
        .start();
    wait_until("all are done or dead", PATIENCE, || {
        redis.length("done") == 4 && redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [samples[2].id.clone()]);
    daemon.stop();
}

#[test]
fn a_webhook_that_is_away_is_waited_out() {
    let (redis, webhook, samples) = (Redis::plain(), Webhook::answering(&[]), fresh(20));
    let port = webhook
        .url()
        .rsplit(':')
        .next()
        .and_then(|end| end.split('/').next()?.parse().ok());
    let proxy = Proxy::before(port.expect("a port"));
    let url = format!("http://127.0.0.1:{}/calls", proxy.port());
    proxy.refuse();
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis).config(&handing_on_to(&url)).start();
    daemon.wait_for_log("storage post is away", PATIENCE);
    proxy.pass();
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    assert_eq!(webhook.requests().len(), samples.len());
    daemon.stop();
}

#[test]
fn a_storage_that_keeps_no_documents_is_not_asked_for_them() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let storage = json!({"module": "storage.webhook", "options": options(&webhook.url())});
    let mut shelf = Shelf::open(&storage);
    let sample = Sample::small();
    assert_eq!(shelf.save(&sample), Ok(()));
    assert_eq!(
        (shelf.get(&sample), shelf.delete(&sample)),
        (Ok(None), Ok(()))
    );
    assert_eq!(shelf.probe(), Ok(()));
    let audited = Conserver::with(&redis)
        .config(&handing_on_to(&webhook.url()))
        .run(&["audit", "--settle", "0"]);
    assert_eq!(audited.code, 0, "{}", audited.output());
    assert!(
        audited.output().contains("storage post cannot be asked"),
        "{}",
        audited.output()
    );
    assert_eq!(webhook.requests().len(), 1);
}

/// Pauses grow from round to round, also for one that is alone in its list and back there at once.
#[test]
fn a_webhook_that_always_leads_elsewhere_is_asked_less_and_less_often() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&times);
    let webhook = Webhook::deciding(move |_| {
        asked.lock().unwrap().push(Instant::now());
        307
    });
    for links in [false, true] {
        let redis = Redis::plain();
        times.lock().unwrap().clear();
        let urls = json!({"webhook-urls": [webhook.url()]});
        let config = if links {
            chain(
                &[("hook", json!({"module": "links.webhook", "options": urls}))],
                &[],
            )
        } else {
            chain(
                &[],
                &[(
                    "hook",
                    json!({"module": "storage.webhook", "options": urls}),
                )],
            )
        };
        let daemon = Conserver::with(&redis)
            .config(&config)
            .env("CONSERVER_RETRY_ATTEMPTS", "2")
            .env("CONSERVER_RETRY_FIRST_MS", "1")
            .env("CONSERVER_RETRY_MAX_MS", "50")
            .start();
        submit(&redis, "default", &fresh(1));
        wait_until("it is asked again and again", PATIENCE, || {
            times.lock().unwrap().len() >= 12
        });
        let times = times.lock().unwrap().clone();
        let pauses: Vec<Duration> = times.windows(2).map(|it| it[1] - it[0]).collect();
        // Each second pause is one between two rounds: half of 50 ms at least, then of twice that, and so on.
        for (round, pause) in pauses.iter().skip(1).step_by(2).take(5).enumerate() {
            let least = Duration::from_millis(25 << round);
            assert!(*pause >= least, "{round}: {pauses:?}");
        }
        daemon.stop();
    }
}
