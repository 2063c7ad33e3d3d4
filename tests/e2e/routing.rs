//! Which lists are served, by which chain, and what a chain does besides storing.

use serde_json::json;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, Sample, chain, fresh, same, submit, wait_until,
};

#[test]
fn two_chains_serve_their_own_lists() {
    let (redis, first, second) = (Redis::plain(), Files::new(), Files::new());
    let mut config = chain(
        &[],
        &[("first", first.storage()), ("second", second.storage())],
    );
    config["chains"] = json!({
        "a": {"links": ["tagger"], "storages": ["first"],
              "ingress_lists": ["one", "two"], "egress_lists": ["done"]},
        "b": {"links": [], "storages": ["second"],
              "ingress_lists": ["three"], "egress_lists": ["done"]},
    });
    let _daemon = Conserver::with(&redis).config(&config).workers(2).start();
    let samples = fresh(30);
    for (list, part) in ["one", "two", "three"].into_iter().zip(samples.chunks(10)) {
        submit(&redis, list, part);
    }
    Ledger::of(&redis, &samples).settles();
    assert_eq!((first.paths().len(), second.paths().len()), (20, 10));
    assert!(!second.text(&samples[29].id).contains("checked:checked"));
}

#[test]
fn a_disabled_chain_leaves_its_list_alone() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["off"] = json!({"links": ["tagger"], "ingress_lists": ["parked"],
        "egress_lists": ["done"], "enabled": 0});
    let _daemon = Conserver::with(&redis).config(&config).start();
    let (parked, samples) = ([Sample::small()], [Sample::small()]);
    submit(&redis, "parked", &parked);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.list("parked"), [parked[0].id.as_str()]);
}

#[test]
fn a_changed_configuration_is_followed_and_a_faulty_one_is_not() {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[], &[]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("TICK_INTERVAL", "50")
        .start();
    let first = [Sample::small()];
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();

    let mut faulty = config.clone();
    faulty["chains"]["main"]["links"] = json!(["taggr"]);
    daemon.reconfigure(&faulty);
    daemon.wait_for_log("taggr", PATIENCE);
    let second = [Sample::small()];
    submit(&redis, "default", &second);
    wait_until("the second vCon is done", PATIENCE, || {
        redis.length("done") == 2
    });

    let mut wider = chain(&[], &[("files", files.storage())]);
    wider["chains"]["main"]["ingress_lists"] = json!(["default", "also"]);
    daemon.reconfigure(&wider);
    let third = [Sample::small()];
    submit(&redis, "also", &third);
    wait_until("the new list is served", PATIENCE, || {
        redis.length("done") == 3
    });
    assert!(files.text(&third[0].id).contains("checked:checked"));
}

#[test]
fn a_vcon_that_redis_has_lost_comes_back_from_a_storage() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let files = Files::new();
        let config = chain(&[], &[("files", files.storage())]);
        let _daemon = Conserver::with(&redis)
            .config(&config)
            .env("VCON_REDIS_EXPIRY", "500")
            .start();
        let samples = [Sample::small()];
        let id = &samples[0].id;
        let key = format!("vcon:{id}");
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        let before = redis.document(id).expect("a document");

        redis.ask::<i64>(&["DEL", &key]);
        redis.ask::<i64>(&["RPUSH", "default", id]);
        wait_until("it is done again", PATIENCE, || redis.length("done") == 2);
        assert!(same(&redis.document(id).expect("a document"), &before));
        let left: i64 = redis.ask(&["TTL", &key]);
        assert!((400..=500).contains(&left), "{left}");
    }
}

#[test]
fn a_lost_vcon_comes_back_whatever_letters_it_begins_with() {
    // A server without JSON commands repeats the beginning of one, cut at a fixed byte.
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    let _daemon = Conserver::with(&redis).config(&config).start();
    let samples = ["", "x"].map(|shift| {
        let mut document = serde_json::json!({"subject": shift.to_owned() + &"ü".repeat(200)});
        let small = Sample::small().document;
        let rest = small.as_object().unwrap().clone();
        document
            .as_object_mut()
            .unwrap()
            .extend(rest.into_iter().filter(|(key, _)| key != "subject"));
        Sample::of(document)
    });
    for sample in &samples {
        // As it is stored: the subject first.
        let text = sample.text();
        redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), &text]);
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    }
    Ledger::of(&redis, &samples).settles();
    for sample in &samples {
        redis.ask::<i64>(&["DEL", &format!("vcon:{}", sample.id)]);
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    }
    wait_until("both are done again", PATIENCE, || {
        redis.length("done") == 4
    });
    for sample in &samples {
        let document = redis.document(&sample.id).expect("a document");
        assert_eq!(document["subject"], sample.document["subject"]);
    }
}

#[test]
fn without_the_fallback_a_lost_vcon_is_a_dead_letter() {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    let _daemon = Conserver::with(&redis)
        .config(&config)
        .env("VCON_STORAGE_FALLBACK_ENABLED", "false")
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    redis.ask::<i64>(&["DEL", &format!("vcon:{}", samples[0].id)]);
    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
}

#[test]
fn expire_vcon_lets_redis_forget() {
    let redis = Redis::plain();
    let forget = json!({"module": "links.expire_vcon", "options": {"seconds": "700"}});
    let config = chain(&[("forget", forget)], &[]);
    let _daemon = Conserver::with(&redis).config(&config).start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let left: i64 = redis.ask(&["TTL", &format!("vcon:{}", samples[0].id)]);
    assert!((600..=700).contains(&left), "{left}");
}
