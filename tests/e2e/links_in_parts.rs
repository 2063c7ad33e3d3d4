//! Links that make several requests for a vCon, and do a part of their work at a time.

use serde_json::json;

use super::ai_links::{error, link, openai, sample};
use crate::harness::{
    Conserver, Hook, Ledger, PATIENCE, Redis, SERVICE_KEY, Services, chain, submit, wait_until,
};

#[test]
fn a_vcon_that_goes_back_in_the_middle_of_a_link_keeps_what_links_have_done_and_asked_for() {
    let (redis, hook) = (Redis::plain(), Hook::new());
    let services = Services::saying("short");
    let routes = json!({"tag_routes": {"checked": "routed"}, "forward_original": true});
    let mut summarize = link("analyze", openai(&services, json!({})));
    summarize["limit"] = json!({"rate": "90/min", "burst": 1});
    let links = [
        ("hook", hook.link()),
        ("expire", link("expire_vcon", json!({"seconds": 5000}))),
        ("router", link("tag_router", routes)),
        ("summarize", summarize),
    ];
    let samples = [sample(&["a", "b", "c"]), sample(&["d", "e"])];
    submit(&redis, "default", &samples);
    let conserver = Conserver::with(&redis).config(&chain(&links, &[]));
    let daemon = conserver.env("SERVICE_KEY", SERVICE_KEY).lanes(1).start();
    wait_until("a part is done, and the vCon is back", PATIENCE, || {
        (1..5).contains(&services.requests().len()) && redis.claims().is_empty()
    });
    Ledger::of(&redis, &samples).settles();
    // The other links have run once, and nothing is paid for twice.
    hook.has_taken_each("link hook", &samples, 1);
    assert_eq!(services.requests().len(), 5);
    let ids: Vec<&str> = samples.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(redis.list("done"), ids);
    assert_eq!(redis.list("routed"), ids);
    for id in ids {
        let left: i64 = redis.ask(&["TTL", &format!("vcon:{id}")]);
        assert!((4900..=5000).contains(&left), "{left}");
    }
    daemon.stop();
}

#[test]
fn a_service_that_refuses_each_dialog_of_each_vcon_costs_no_dead_letter() {
    let (redis, services) = (Redis::plain(), Services::saying("short"));
    let refusal = || error(400, "invalid_value", "this does not work");
    services.script((0..10_000).map(|_| refusal()));
    let summarize = link("analyze", openai(&services, json!({})));
    let samples: Vec<_> = (0..8).map(|_| sample(&["a", "b"])).collect();
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("summarize", summarize)], &[]))
        .env("SERVICE_KEY", SERVICE_KEY)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .lanes(2)
        .start();
    wait_until("it is on hold", PATIENCE, || {
        daemon.status().unwrap_or_default()["holds"][0]["stage"] == "link summarize"
    });
    wait_until("all wait", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    daemon.stop();
}
