//! `conserver where`: a vCon is found wherever it is, and `get` tells what is still to be done.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, PATIENCE, Redis, Sample, chain, deferring, free_port, fresh, run, said,
    storage_at, stuck, submit, wait_until,
};

/// What the command says of each of these, if it ends like this.
fn found(conserver: &Conserver, ids: &[&str], code: i32) -> Vec<Value> {
    let arguments = [&["where", "--json"], ids].concat();
    let finished = run(conserver, &arguments, code);
    let line = |line: &str| serde_json::from_str(line).expect("JSON");
    finished.stdout.lines().map(line).collect()
}

/// A link that hangs; a storage that defers and one that holds its chain, both of them away.
fn config(files: &Files, away: &Value, hanging: &Value) -> Value {
    let mut config = chain(
        &[("stuck", hanging.clone())],
        &[
            ("files", files.storage()),
            ("later", deferring(away.clone())),
            ("away", away.clone()),
        ],
    );
    config["chains"]["main"]["storages"] = json!(["files"]);
    for (name, storage) in [("quick", "later"), ("held", "away")] {
        config["chains"][name] = json!({"links": ["tagger"], "storages": ["files", storage],
            "ingress_lists": [name], "egress_lists": ["done"]});
    }
    config
}

#[test]
fn a_vcon_is_found_wherever_it_is() {
    let (redis, files) = (Redis::plain(), Files::new());
    let away = storage_at(free_port());
    let (_hole, (_, hanging)) = stuck();
    let daemon = Conserver::with(&redis)
        .config(&config(&files, &away, &hanging))
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start();
    let conserver = daemon.conserver();
    let samples = fresh(5);
    let [deferred, held, working, waiting, lost] = &samples[..] else {
        panic!("there are five");
    };
    let broken = Sample::small();

    // Finished, but for one storage. It is the first in its backlog.
    submit(&redis, "quick", std::slice::from_ref(deferred));
    wait_until("it waits for its storage", PATIENCE, || {
        redis.length("DLQ:storage:later") == 1 && redis.claims().is_empty()
    });
    let [report] = &found(conserver, &[&deferred.id], 0)[..] else {
        panic!("one line");
    };
    assert_eq!(report["state"], "waiting_for_storage");
    let place = json!([{"name": "later", "number": 1, "of": 1}]);
    assert_eq!(report["backlog"], place);
    assert_eq!(report["egress"][0]["name"], "done");
    assert_eq!(report["document"]["kind"], "text");
    assert_eq!(report["sorted_set"], true);
    let storages = report["storages"].as_array().expect("storages");
    let has: Vec<&Value> = storages.iter().map(|it| &it["has"]).collect();
    // Those in the order of their names: away, files, later.
    assert_eq!(has, [&Value::Null, &json!(true), &Value::Null]);

    // A dead letter.
    redis.ask::<()>(&["SET", &format!("vcon:{}", broken.id), "{\"uuid\": "]);
    redis.ask::<i64>(&["RPUSH", "quick", &broken.id]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:quick") == 1 && redis.claims().is_empty()
    });
    let shown = run(conserver, &["where", &broken.id], 0);
    let retry = format!("conserver dlq retry quick {}", broken.id);
    said(
        &shown,
        &[
            "dead letter: number 1 of 1 in DLQ:quick, since",
            "parse: the document",
            &retry,
        ],
    );

    // Back on its list after its links and one of its storages.
    submit(&redis, "held", std::slice::from_ref(held));
    wait_until("its chain is on hold", PATIENCE, || {
        let report = &found(conserver, &[&held.id], 0)[0];
        report["waiting"][0]["holds"] == json!(["storage away is unavailable"])
            && report["progress"][0]["storages_done"] == json!(["files"])
    });
    let report = &found(conserver, &[&held.id], 0)[0];
    let progress = json!({"list": "held", "links_done": 1, "links": 1,
        "storages_done": ["files"], "storages": 2});
    assert_eq!(report["progress"][0], progress);

    // One in work, and another behind it, twice.
    submit(&redis, "default", std::slice::from_ref(working));
    wait_until("it is at the link that hangs", PATIENCE, || {
        let report = &found(conserver, &[&working.id], 0)[0];
        report["in_work"][0]["step"] == "link stuck"
    });
    for _ in 0..2 {
        submit(&redis, "default", std::slice::from_ref(waiting));
    }
    let status = daemon.status().expect("a status");
    assert_eq!(status["workers"][0]["lanes"][0]["step"], "link stuck");
    let reports = found(conserver, &[&working.id, &waiting.id], 0);
    let claim = &reports[0]["in_work"][0];
    assert_eq!(
        (&claim["instance"], &claim["list"]),
        (&json!("here"), &json!("default"))
    );
    assert_eq!((&claim["worker"], &claim["lane"]), (&json!(1), &json!("1")));
    assert_eq!(claim["alive"], true);
    assert_eq!(reports[0]["state"], "in_work");
    assert_eq!(reports[1]["state"], "waiting");
    let place = json!([{"name": "default", "number": 1, "of": 2, "last": 2, "chain": "main",
        "holds": []}]);
    assert_eq!(reports[1]["waiting"], place);
    let got = run(conserver, &["get", &working.id], 0);
    said(
        &got,
        &[
            "Found in Redis",
            "in work: worker 1 of instance here, lane 1, at link stuck",
        ],
    );
    let got = run(conserver, &["get", &waiting.id], 0);
    said(
        &got,
        &["waiting: number 1 of 2 on list default, and again as number 2, for chain main"],
    );

    // Only a document; nothing at all.
    submit(&redis, "aside", std::slice::from_ref(lost));
    let [pulled, nobody] = [0; 2].map(|_| Sample::small().id);
    redis.ask::<i64>(&["SADD", "conserver:followers", "far"]);
    redis.ask::<i64>(&["RPUSH", "conserver:follower:far", &pulled]);
    let reports = found(conserver, &[&lost.id, &pulled, &nobody], 65);
    let states: Vec<&Value> = reports.iter().map(|report| &report["state"]).collect();
    assert_eq!(states, ["document_only", "pulled", "nowhere"]);
    run(conserver, &["where", "no-uuid"], 64);

    // The scoreboard and the storages tell without Redis.
    redis.kill9();
    let reports = found(conserver, &[&working.id, &deferred.id, &nobody], 69);
    let states: Vec<&Value> = reports.iter().map(|report| &report["state"]).collect();
    assert_eq!(states, ["in_work", "finished", "unknown"]);
    let errors = reports[2]["errors"][0].as_str().expect("an error");
    assert!(errors.contains("Redis"), "{errors}");
}
