//! What `conserver status` says of chains, links and storages.

use serde_json::{Value, json};

use crate::harness::{Conserver, Files, Ledger, PATIENCE, Redis, chain, fresh, submit, wait_until};

/// The names of all of a kind, with whether each is in force.
fn names(status: &Value, kind: &str) -> Vec<(String, bool)> {
    let name = |figures: &Value| {
        let name = figures["name"].as_str().expect("a name").to_owned();
        (name, figures["in_force"] == true)
    };
    let all = status[kind].as_array().expect("figures");
    all.iter().map(name).collect()
}

#[test]
fn all_chains_and_storages_of_a_large_configuration_have_names_and_figures() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let mut config = chain(&[], &[]);
    for number in 0..300 {
        let spare = json!({"enabled": 0, "ingress_lists": [format!("in{number}")]});
        config["chains"][format!("spare{number}")] = spare;
    }
    config["storages"] = json!({});
    for number in 0..80 {
        let path = folder.folder().join(number.to_string());
        let storage = json!({"module": "storage.file", "options": {"path": path}});
        config["storages"][format!("s{number:02}")] = storage;
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", nobody.local_addr().expect("an address"));
    drop(nobody);
    config["storages"]["s80"] =
        json!({"module": "storage.webhook", "options": {"webhook-urls": [url]}});
    config["chains"]["main"]["storages"] = json!(["s79", "s80"]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .start();
    submit(&redis, "default", &fresh(1));
    let mut status = Value::Null;
    wait_until("the last storage is away", PATIENCE, || {
        status = daemon.status().unwrap_or_default();
        status["holds"][0]["stage"] == "storage s80"
    });
    assert_eq!(status["holds"][0]["chains"], json!(["main"]));
    assert_eq!(names(&status, "storages").len(), 81);
    assert_eq!(names(&status, "chains").len(), 301);
    let stored = status["storages"].as_array().expect("figures");
    let of = |name: &str| stored.iter().find(|it| it["name"] == name);
    assert_eq!(of("s79").expect("its figures")["done"], 1);
    assert!(!daemon.log().contains("no room left"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn what_a_former_configuration_had_keeps_its_figures_and_stands_last() {
    let (redis, folder) = (Redis::plain(), Files::new());
    let files = json!({"module": "storage.file", "options": {"path": folder.folder()}});
    let before = chain(&[], &[("files", files.clone())]);
    let daemon = Conserver::with(&redis).config(&before).start();
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let status = daemon.status().expect("a daemon");
    let main = &status["chains"][0];
    assert_eq!(
        (&main["received"], &main["done"], &main["halted"]),
        (&json!(5), &json!(5), &json!(0))
    );
    assert_eq!(main["returned"], 0);
    let stored = &status["storages"][0];
    assert_eq!((&stored["done"], stored.get("halted")), (&json!(5), None));
    let buckets = stored["seconds"]["buckets"].as_array().expect("buckets");
    assert_eq!(buckets.last(), Some(&json!(["+Inf", 5])));
    assert_eq!(stored["seconds"]["count"], 5);

    let mut after = chain(&[], &[("archive", files)]);
    let main = after["chains"]["main"].take();
    after["chains"] = json!({"second": {"enabled": 0, "ingress_lists": ["other"]}, "third": main});
    daemon.reconfigure(&after);
    let named = |name: &str, in_force: bool| (name.to_owned(), in_force);
    wait_until("the new ones stand first", PATIENCE, || {
        let status = daemon.status().unwrap_or_default();
        status["storages"].is_array()
            && names(&status, "storages") == [named("archive", true), named("files", false)]
    });
    let status = daemon.status().expect("a daemon");
    assert_eq!(status["storages"][1]["done"], 5);
    let chains = names(&status, "chains");
    assert_eq!(chains[0], named("third", true));
    assert!(chains.contains(&named("main", false)), "{chains:?}");
    assert!(!chains.contains(&named("second", true)), "{chains:?}");
    let table = daemon.conserver().run(&["status"]).stdout;
    assert!(table.contains("files (former)"), "{table}");
    assert!(!table.contains("archive"), "{table}");
    daemon.stop();
}
