//! Links that decide where a vCon goes and what of it is kept.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, Sample, Webhook, chain, delay, fresh, submit,
    wait_until,
};

const CONTEXT: &str = r#"{"trace_id": "0af7"}"#;

fn router(options: Value) -> (&'static str, Value) {
    (
        "router",
        json!({"module": "links.tag_router", "options": options}),
    )
}

#[test]
fn a_routed_vcon_is_on_its_list_once_with_its_context_and_goes_on() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(30);
    for sample in &samples {
        redis.ask::<i64>(&["RPUSH", &format!("context:default:{}", sample.id), CONTEXT]);
    }
    // The tag is the one that the first link of the chain has added.
    let routes = router(json!({"tag_routes": {"checked": "seen", "other": "unseen"}}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[routes], &[("files", files.storage())]))
        .lanes(4)
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    Ledger::of(&redis, &samples).is_split_between(&["seen"]);
    assert_eq!(redis.length("unseen"), 0);
    assert_eq!(files.paths().len(), samples.len());
    for sample in &samples {
        for list in ["done", "seen"] {
            let context = redis.list(&format!("context:{list}:{}", sample.id));
            assert_eq!(context, [CONTEXT], "{list}");
        }
    }
    daemon.stop();
}

#[test]
fn a_router_that_does_not_forward_ends_the_chain() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(10);
    let routes = router(json!({"tag_routes": {"checked": "seen"}, "forward_original": false}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[routes], &[("files", files.storage())]))
        .start();
    submit(&redis, "default", &samples);
    wait_until("all are routed", PATIENCE, || {
        redis.length("seen") == samples.len()
    });
    Ledger::of(&redis, &samples).is_split_between(&["seen"]);
    assert_eq!((redis.length("done"), files.paths().len()), (0, 0));
    // What the links before it did is in Redis.
    let document = redis.document(&samples[0].id).expect("a document");
    assert!(document.to_string().contains("checked:checked"));
    daemon.stop();
}

#[test]
fn killed_workers_route_each_vcon_once() {
    let redis = Redis::plain();
    let samples = fresh(200);
    let routes = router(json!({"tag_routes": {"checked": "seen"}}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[routes, delay(0.01)], &[]))
        .workers(2)
        .lanes(2)
        .env("CONSERVER_MAX_DEATHS", "0")
        .start();
    submit(&redis, "default", &samples);
    for done in (20..180).step_by(20) {
        Ledger::of(&redis, &samples).wait_for(done);
        let worker = daemon.workers()[&(1 + done / 20 % 2)];
        // It may be on its way out from the kill before.
        let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
    }
    Ledger::of(&redis, &samples).settles();
    Ledger::of(&redis, &samples).is_split_between(&["seen"]);
    daemon.stop();
}

#[test]
fn a_filter_lets_pass_halts_and_fails() {
    let (redis, files) = (Redis::with_json(), Files::new());
    let filter = json!({"module": "links.jq_link", "options": {"filter":
        "if .subject == \"broken\" then error(\"no good\") else .subject == \"wanted\" end"}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("filter", filter)], &[("files", files.storage())]))
        .start();
    let [wanted, other, broken] = ["wanted", "other", "broken"].map(|subject| {
        let mut sample = Sample::small();
        sample.document["subject"] = subject.into();
        sample
    });
    let samples = [other, broken, wanted];
    submit(&redis, "default", &samples);
    let [_, broken, wanted] = &samples;
    wait_until("the last is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(redis.list("done"), std::slice::from_ref(&wanted.id));
    assert_eq!(redis.list("DLQ:default"), std::slice::from_ref(&broken.id));
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &broken.id]);
    assert!(
        reason.contains("link filter") && reason.contains("no good"),
        "{reason}"
    );
    assert_eq!(files.paths().len(), 1);
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_sampler_with_a_seed_draws_the_same_whoever_works() {
    let samples = fresh(60);
    let options = json!({"method": "percentage", "value": 50, "seed": 7});
    let sampler = json!({"module": "links.sampler", "options": options});
    let drawn: Vec<Vec<String>> = [1, 3]
        .into_iter()
        .map(|workers| {
            let redis = Redis::plain();
            let daemon = Conserver::with(&redis)
                .config(&chain(&[("sampler", sampler.clone())], &[]))
                .workers(workers)
                .start();
            submit(&redis, "default", &samples);
            wait_until("all are drawn", PATIENCE, || {
                let settled = redis.length("default") == 0;
                settled && redis.keys("conserver:claims:*").is_empty()
            });
            daemon.stop();
            let mut passed = redis.list("done");
            passed.sort_unstable();
            passed
        })
        .collect();
    assert_eq!(drawn[0], drawn[1]);
    assert!(!drawn[0].is_empty() && drawn[0].len() < samples.len());
}

#[test]
fn a_diet_keeps_bodies_elsewhere_or_waits() {
    let (redis, files) = (Redis::plain(), Files::new());
    let mut busy = 2;
    let server = Webhook::saying(move |_| {
        if busy > 0 {
            busy -= 1;
            return (503, String::new());
        }
        (200, json!({"url": "http://media/1"}).to_string())
    });
    let options = json!({"remove_dialog_body": true, "post_media_to_url": server.url()});
    let diet = json!({"module": "links.diet", "options": options});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("diet", diet)], &[("files", files.storage())]))
        .start();
    let mut sample = Sample::small();
    sample.document["dialog"] = json!([{"type": "text", "id": "d1", "body": "Grüße"}]);
    let samples = [sample];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    let posted: Value = serde_json::from_str(&requests[2].body).expect("JSON");
    let expected = json!({"content": "Grüße", "vcon_uuid": samples[0].id, "dialog_id": "d1"});
    assert_eq!(posted, expected);
    for text in [
        files.text(&samples[0].id),
        redis.document(&samples[0].id).expect("it").to_string(),
    ] {
        let kept: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(kept["dialog"][0]["body"], "http://media/1");
        assert_eq!(kept["dialog"][0]["body_type"], "url");
    }
    daemon.stop();
}
