//! What can go wrong with S3: the vCons wait, and none is a dead letter.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Direction, Ledger, PATIENCE, Proxy, Redis, S3, S3_SECRET, Sample, chain,
    fresh, submit, wait_until,
};

fn conserver(redis: &Redis, storage: &Value) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], &[("s3", storage.clone())]))
        .lanes(2)
}

fn fails(redis: &Redis, daemon: &Daemon, why: &str) {
    daemon.wait_for_log("storage s3 is away", PATIENCE);
    assert!(daemon.log().contains(why), "the log does not say {why:?}");
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(!daemon.output().contains(S3_SECRET));
}

/// Fails unless every vCon is done, and its document and pointer are objects of s3s-fs.
fn all_is_stored(redis: &Redis, s3: &S3, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    for sample in samples {
        let pointer = s3.object(&format!("archive/lookup/{}.txt", sample.id));
        let day = std::fs::read_to_string(pointer).expect("a pointer");
        let document = s3.object(&format!("archive/{day}/{}.vcon", sample.id));
        let text = std::fs::read_to_string(document).expect("a document");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["uuid"], json!(sample.id));
    }
}

#[test]
fn a_wrong_secret_is_waited_out_and_mended_by_a_reload() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(10));
    let wrong = s3.storage_with(json!({"aws_secret_access_key": "FalscherSchluessel"}));
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &wrong).start();
    fails(&redis, &daemon, "SignatureDoesNotMatch");
    assert!(daemon.log().contains("see to `aws_access_key_id`"));
    assert!(!daemon.output().contains("FalscherSchluessel"));
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 69, "{}", checked.output());
    daemon.reconfigure(&chain(&[], &[("s3", s3.storage())]));
    daemon.signal(Signal::SIGHUP);
    all_is_stored(&redis, &s3, &samples);
    daemon.stop();
}

#[test]
fn a_session_token_goes_with_the_signature() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(5));
    submit(&redis, "default", &samples);
    let storage = s3.storage_with(json!({"aws_session_token": "SitzungsMarke"}));
    let daemon = conserver(&redis, &storage).start();
    all_is_stored(&redis, &s3, &samples);
    assert!(!daemon.output().contains("SitzungsMarke"));
    daemon.stop();
}

#[test]
fn a_missing_bucket_is_waited_out() {
    let (redis, s3, samples) = (Redis::plain(), S3::without_bucket(), fresh(10));
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &s3.storage()).start();
    fails(&redis, &daemon, "NoSuchBucket");
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 69, "{}", checked.output());
    s3.make_bucket();
    Ledger::of(&redis, &samples).settles();
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 0, "{}", checked.output());
    daemon.stop();
}

#[test]
fn a_certificate_must_be_from_an_authority_that_is_trusted() {
    let (redis, s3, samples) = (Redis::plain(), S3::with_tls(), fresh(5));
    s3.make_bucket();
    let stranger = conserver(&redis, &s3.storage())
        .env("COLUMNS", "1000")
        .run(&["check"]);
    assert_eq!(stranger.code, 69, "{}", stranger.output());
    assert!(
        stranger.output().contains("certificate"),
        "{}",
        stranger.output()
    );
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &s3.storage())
        .env("SSL_CERT_FILE", s3.authority())
        .start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn an_unknown_host_is_waited_out_and_named() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(3));
    submit(&redis, "default", &samples);
    let storage = s3.storage_with(json!({"endpoint_url": "http://nowhere.invalid"}));
    let mut daemon = conserver(&redis, &storage).start();
    fails(&redis, &daemon, "nowhere.invalid");
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
}

#[test]
fn a_server_that_is_killed_under_load_again_and_again_loses_nothing() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(200));
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &s3.storage()).start();
    for done in [20, 80, 140] {
        ledger.wait_for(done);
        daemon.wait_until_back("storage s3");
        let before = daemon.count_in_log("storage s3 is away");
        s3.kill9();
        let noticed = || daemon.count_in_log("storage s3 is away") > before;
        wait_until("the daemon notices", PATIENCE, noticed);
        s3.start_again();
    }
    all_is_stored(&redis, &s3, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_breaks_off_at_any_byte_of_its_answers_loses_nothing() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(30));
    let proxy = Proxy::before(s3.port());
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let storage = s3.storage_with(json!({"endpoint_url": endpoint}));
    let ledger = Ledger::of(&redis, &samples);
    let daemon = conserver(&redis, &storage)
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    for (done, sample) in samples.iter().enumerate() {
        proxy.cut_after(Direction::ToClient, 7 * done as u64);
        submit(&redis, "default", std::slice::from_ref(sample));
        ledger.wait_for(done + 1);
    }
    assert!(proxy.cuts() > 20, "{} cuts", proxy.cuts());
    proxy.pass();
    all_is_stored(&redis, &s3, &samples);
    daemon.stop();
}

#[test]
fn a_slow_server_is_used_and_one_that_hangs_is_waited_out() {
    let (redis, s3, samples) = (Redis::plain(), S3::start(), fresh(10));
    let proxy = Proxy::before(s3.port());
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let storage = s3.storage_with(json!({"endpoint_url": endpoint, "timeout": 1}));
    proxy.delay(Duration::from_millis(50));
    let daemon = conserver(&redis, &storage).start();
    let (slowly, later) = samples.split_at(4);
    submit(&redis, "default", slowly);
    Ledger::of(&redis, slowly).settles();
    assert_eq!(daemon.count_in_log("is away"), 0);
    proxy.black_hole();
    submit(&redis, "default", later);
    fails(&redis, &daemon, "no answer within 1s");
    proxy.pass();
    all_is_stored(&redis, &s3, &samples);
    daemon.stop();
}
