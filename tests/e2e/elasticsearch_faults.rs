//! What can go wrong with Elasticsearch: what ails the place is waited out, what a vCon is to blame
//! for makes a dead letter. On the servers of `elasticsearch`, neither of which is Elastic's.

use std::time::Duration;

use conserver::deadline::Deadline;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::elasticsearch::{open, outgoing};
use crate::harness::{
    Conserver, Daemon, Direction, Elastic, Ledger, Nginx, PATIENCE, Proxy, Redis, Sample, Terms,
    chain, fresh, submit, wait_until,
};

const PASSWORD: &str = "GeheimesSuchWort";

fn conserver(redis: &Redis, storage: &Value) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], &[("es", storage.clone())]))
        .lanes(2)
}

fn is_away(redis: &Redis, daemon: &Daemon, why: &str) {
    daemon.wait_for_log("storage es is away", PATIENCE);
    assert!(daemon.log().contains(why), "the log does not say {why:?}");
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(!daemon.output().contains(PASSWORD));
}

/// Fails unless every vCon is done and its first party, which all samples have, is indexed.
fn all_is_stored(redis: &Redis, elastic: &Elastic, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    let documents = elastic.documents();
    for sample in samples {
        let id = format!("{}_0", sample.id);
        let is_party = |index: &str| index.starts_with("calls_vcon_parties");
        let found = documents
            .keys()
            .any(|(index, it)| *it == id && is_party(index));
        assert!(found, "{} is not indexed", sample.id);
    }
}

/// The one dead letter, and why it is one.
fn the_dead_letter(redis: &Redis, daemon: &Daemon, sample: &Sample) -> String {
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") > 0
    });
    assert_eq!(redis.list("DLQ:default"), [sample.id.as_str()]);
    let shown = daemon.conserver().run(&["dlq", "show", &sample.id]);
    shown
        .output()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_wrong_password_is_waited_out_and_mended_by_a_reload() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(10));
    elastic.prepare();
    let terms = Terms {
        login: Some(("keeper", PASSWORD)),
        tls: true,
        ..Terms::default()
    };
    let nginx = Nginx::before(elastic.port(), &terms);
    let storage = |password: &str| {
        elastic.storage_with(json!({"url": nginx.url(), "ca_certs": nginx.authority(),
            "username": "keeper", "password": password}))
    };
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &storage("FalschesWort")).start();
    is_away(
        &redis,
        &daemon,
        "HTTP 401; see to `username` and `password`, or `api_key`",
    );
    assert!(!daemon.output().contains("FalschesWort"));
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 69, "{}", checked.output());
    daemon.reconfigure(&chain(&[], &[("es", storage(PASSWORD))]));
    daemon.signal(Signal::SIGHUP);
    all_is_stored(&redis, &elastic, &samples);
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 0, "{}", checked.output());
    assert!(!(daemon.output() + &checked.output()).contains(PASSWORD));
    daemon.stop();
}

#[test]
fn an_unknown_host_is_waited_out_and_named() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(3));
    submit(&redis, "default", &samples);
    let storage = elastic.storage_with(json!({"url": "http://nowhere.invalid:9200"}));
    let mut daemon = conserver(&redis, &storage).start();
    is_away(&redis, &daemon, "nowhere.invalid");
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn something_else_than_elasticsearch_is_waited_out() {
    let (redis, elastic) = (Redis::plain(), Elastic::osmem());
    let storage =
        elastic.storage_with(json!({"url": format!("http://127.0.0.1:{}", redis.port())}));
    let failure = open(&storage)
        .save(&outgoing(&Sample::small()), Deadline::NONE)
        .unwrap_err();
    assert!(failure.is_transient(), "{failure}");
}

#[test]
fn a_server_that_goes_under_load_again_and_again_loses_nothing() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::noida(), fresh(200));
    elastic.prepare();
    let proxy = Proxy::before(elastic.port());
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &elastic.storage_with(json!({"url": url}))).start();
    for done in [20, 80, 140] {
        ledger.wait_for(done);
        daemon.wait_until_back("storage es");
        let before = daemon.count_in_log("storage es is away");
        // This server writes its files when it ends, and goes on answering meanwhile: what it
        // takes then is lost. So it is cut off first, as by its death.
        proxy.refuse();
        proxy.reset();
        elastic.end(Signal::SIGTERM);
        let noticed = || daemon.count_in_log("storage es is away") > before;
        wait_until("the daemon notices", PATIENCE, noticed);
        elastic.start_again();
        proxy.pass();
    }
    all_is_stored(&redis, &elastic, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_breaks_off_at_any_byte_of_its_answers_loses_nothing() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::noida(), fresh(40));
    elastic.prepare();
    let proxy = Proxy::before(elastic.port());
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let ledger = Ledger::of(&redis, &samples);
    let daemon = conserver(&redis, &elastic.storage_with(json!({"url": url})))
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    for (done, sample) in samples.iter().enumerate() {
        proxy.cut_after(Direction::ToClient, 31 * done as u64);
        submit(&redis, "default", std::slice::from_ref(sample));
        ledger.wait_for(done + 1);
    }
    assert!(proxy.cuts() > 20, "{} cuts", proxy.cuts());
    proxy.pass();
    all_is_stored(&redis, &elastic, &samples);
    daemon.stop();
}

#[test]
fn a_slow_server_is_used_and_one_that_hangs_is_waited_out() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(10));
    elastic.prepare();
    let proxy = Proxy::before(elastic.port());
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let storage = |timeout: u32| elastic.storage_with(json!({"url": url, "timeout": timeout}));
    proxy.delay(Duration::from_millis(50));
    // A machine with much to do may take longer than the server.
    let daemon = conserver(&redis, &storage(30)).start();
    let (slowly, later) = samples.split_at(4);
    submit(&redis, "default", slowly);
    Ledger::of(&redis, slowly).settles();
    assert_eq!(daemon.count_in_log("is away"), 0);
    daemon.reconfigure(&chain(&[], &[("es", storage(1))]));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("was read and is in force", PATIENCE);
    proxy.black_hole();
    submit(&redis, "default", later);
    is_away(&redis, &daemon, "no answer within 1s");
    proxy.pass();
    all_is_stored(&redis, &elastic, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_is_too_busy_is_waited_out() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(10));
    elastic.prepare();
    let nginx = Nginx::before(elastic.port(), &Terms::default());
    nginx.be_busy(true);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &elastic.storage_with(json!({"url": nginx.url()}))).start();
    is_away(
        &redis,
        &daemon,
        "HTTP 429: es_rejected_execution_exception: queue full",
    );
    nginx.be_busy(false);
    all_is_stored(&redis, &elastic, &samples);
    daemon.stop();
}

#[test]
fn an_index_that_is_blocked_is_waited_out() {
    for elastic in Elastic::both() {
        let (redis, samples) = (Redis::plain(), fresh(10));
        elastic.prepare();
        elastic.put("calls_vcon_dialog", &json!({}));
        let block = |blocked: bool| {
            let settings = json!({"index.blocks.write": blocked});
            elastic.put("calls_vcon_dialog/_settings", &settings);
        };
        block(true);
        submit(&redis, "default", &samples);
        let daemon = conserver(&redis, &elastic.storage())
            .env("CONSERVER_RETRY_MAX_MS", "200")
            .env("LOG_LEVEL", "DEBUG")
            .start();
        is_away(
            &redis,
            &daemon,
            "in index calls_vcon_dialog: HTTP 403: cluster_block_exception",
        );
        assert!(daemon.log().contains("lift the block of the index"));
        // It is asked again and again, and the hold lasts as long as the block.
        let asked = daemon.count_in_log("storage es is still away");
        wait_until("it is asked some times", PATIENCE, || {
            daemon.count_in_log("storage es is still away") >= asked + 4
        });
        assert_eq!(daemon.count_in_log("storage es is back"), 0);
        block(false);
        all_is_stored(&redis, &elastic, &samples);
        daemon.stop();
    }
}

#[test]
fn an_index_that_takes_no_vcon_is_waited_out() {
    let elastic = Elastic::osmem();
    let (redis, samples) = (Redis::plain(), fresh(10));
    elastic.prepare();
    // No UUID is a number.
    let mapping = json!({"mappings": {"properties": {"vcon_id": {"type": "long"}}}});
    elastic.put("calls_vcon_dialog", &mapping);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &elastic.storage()).start();
    let failing = "storage es has failed for 3 vCons in a row";
    daemon.wait_for_log(failing, PATIENCE);
    assert!(daemon.log().contains("failed to parse field [vcon_id]"));
    assert_eq!(redis.length("DLQ:default"), 0);
    elastic.delete("calls_vcon_dialog");
    all_is_stored(&redis, &elastic, &samples);
    assert_eq!(redis.length("DLQ:default"), 0);
    // Nothing else is left there.
    let documents = elastic.documents();
    let is_ours = |id: &String| samples.iter().any(|sample| id.starts_with(&sample.id));
    assert!(documents.keys().all(|(_, id)| is_ours(id)));
    daemon.stop();
}

#[test]
fn a_vcon_that_does_not_fit_the_mapping_is_a_dead_letter_and_the_others_are_stored() {
    for elastic in Elastic::both() {
        let (redis, samples) = (Redis::plain(), fresh(5));
        elastic.prepare();
        let mapping = json!({"mappings": {"properties": {"length": {"type": "long"}}}});
        elastic.put("calls_vcon_attachments_strict", &mapping);
        let mut misfit = Sample::small();
        misfit.document["attachments"] = json!([{"purpose": "strict", "length": "long"}]);
        submit(&redis, "default", std::slice::from_ref(&misfit));
        submit(&redis, "default", &samples);
        let daemon = conserver(&redis, &elastic.storage()).start();
        let shown = the_dead_letter(&redis, &daemon, &misfit);
        let count = "1 of 3 parts were refused, first attachments 0 in index";
        assert!(shown.contains(count), "{shown}");
        assert!(
            shown.contains("mend the vCon, or the mapping of the index"),
            "{shown}"
        );
        Ledger::of(&redis, &samples).wait_for(samples.len());
        assert_eq!(daemon.count_in_log("is away"), 0);
        // The minimal document that told is gone.
        let documents = elastic.documents();
        let strict = |(index, id): &&(String, String)| {
            index == "calls_vcon_attachments_strict" && !id.starts_with(&misfit.id)
        };
        assert_eq!(documents.keys().filter(strict).count(), 0);
        // The mapping cannot be changed, but the vCon can.
        misfit.document["attachments"] = json!([{"purpose": "strict", "length": 3}]);
        redis.ask::<()>(&["SET", &format!("vcon:{}", misfit.id), &misfit.text()]);
        let retried = daemon.conserver().run(&["dlq", "retry", &misfit.id]);
        assert_eq!(retried.code, 0, "{}", retried.output());
        let mut all = samples.clone();
        all.push(misfit);
        all_is_stored(&redis, &elastic, &all);
        daemon.stop();
    }
}

#[test]
fn a_vcon_with_something_else_than_parts_is_a_dead_letter() {
    let (redis, elastic) = (Redis::plain(), Elastic::osmem());
    let mut odd = Sample::small();
    odd.document["dialog"] = json!([{}, 7]);
    submit(&redis, "default", std::slice::from_ref(&odd));
    let daemon = conserver(&redis, &elastic.storage()).start();
    let shown = the_dead_letter(&redis, &daemon, &odd);
    assert!(
        shown.contains("`dialog[1]` is a number, not an object"),
        "{shown}"
    );
    daemon.stop();
}

#[test]
fn a_vcon_that_is_too_large_is_a_dead_letter_and_the_others_are_stored() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(5));
    elastic.prepare();
    let terms = Terms {
        largest_body: Some("2m"),
        ..Terms::default()
    };
    let nginx = Nginx::before(elastic.port(), &terms);
    let mut large = Sample::small();
    large.document["dialog"] = json!([{"body": "x".repeat(3 << 20)}]);
    submit(&redis, "default", std::slice::from_ref(&large));
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &elastic.storage_with(json!({"url": nginx.url()}))).start();
    let shown = the_dead_letter(&redis, &daemon, &large);
    assert!(
        shown.contains("HTTP 413; raise http.max_content_length"),
        "{shown}"
    );
    Ledger::of(&redis, &samples).wait_for(samples.len());
    daemon.stop();
}

#[test]
fn a_vcon_that_redis_has_lost_is_not_looked_for() {
    let (redis, elastic, samples) = (Redis::plain(), Elastic::osmem(), fresh(1));
    elastic.prepare();
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &elastic.storage()).start();
    Ledger::of(&redis, &samples).settles();
    let audit = daemon.conserver().run(&["audit", "--settle", "0"]);
    let note = "storage es cannot be asked for a vCon";
    assert!(audit.output().contains(note), "{}", audit.output());
    redis.ask::<i64>(&["DEL", &format!("vcon:{}", samples[0].id)]);
    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    let shown = the_dead_letter(&redis, &daemon, &samples[0]);
    assert!(shown.contains("in none of the storages"), "{shown}");
    daemon.stop();
}
