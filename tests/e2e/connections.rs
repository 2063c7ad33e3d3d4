//! The ways to Redis that `REDIS_URL` can name.

use crate::harness::{
    Conserver, Ledger, PATIENCE, REDIS_PASSWORD, REDIS_USER, Redis, Sample, chain, fresh, submit,
    wait_until,
};

fn works(redis: &Redis, conserver: Conserver) {
    let daemon = conserver.config(&chain(&[], &[])).lanes(2).start();
    let samples = fresh(10);
    submit(redis, "default", &samples);
    Ledger::of(redis, &samples).settles();
    assert!(!daemon.output().contains(REDIS_PASSWORD));
    daemon.stop();
}

#[test]
fn tls_with_a_private_authority() {
    let redis = Redis::new().tls().started();
    works(
        &redis,
        Conserver::with(&redis).env("SSL_CERT_FILE", redis.authority()),
    );
}

#[test]
fn tls_with_an_authority_that_nobody_trusts_is_refused() {
    let redis = Redis::new().tls().started();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let finished = conserver.run(&["check"]);
    assert_eq!(finished.code, 69, "{}", finished.output());
}

#[test]
fn a_user_with_a_password() {
    let redis = Redis::new().locked().started();
    assert!(redis.url().contains(REDIS_USER));
    works(&redis, Conserver::with(&redis));
}

#[test]
fn a_password_alone() {
    let redis = Redis::new().locked().started();
    let url = redis.url().replace(REDIS_USER, "");
    works(&redis, Conserver::with(&redis).env("REDIS_URL", url));
}

#[test]
fn a_wrong_password_is_told_and_not_shown() {
    let redis = Redis::new().locked().started();
    let url = redis.url().replace(REDIS_PASSWORD, "FalschesWort");
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("REDIS_URL", url);
    let finished = conserver.run(&["check"]);
    assert_eq!(finished.code, 69, "{}", finished.output());
    assert!(
        !finished.output().contains("FalschesWort"),
        "{}",
        finished.output()
    );
}

#[test]
fn a_unix_socket() {
    let redis = Redis::plain();
    let url = format!("unix://{}", redis.socket().display());
    works(&redis, Conserver::with(&redis).env("REDIS_URL", url));
}

#[test]
fn another_database() {
    let redis = Redis::plain();
    let url = format!("{}/3", redis.url());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("REDIS_URL", url)
        .start();
    let sample = Sample::small();
    let key = format!("vcon:{}", sample.id);
    redis.ask_in::<()>(3, &["SET", &key, &sample.text()]);
    redis.ask_in::<i64>(3, &["RPUSH", "default", &sample.id]);
    let done =
        || redis.ask_in::<Vec<String>>(3, &["LRANGE", "done", "0", "-1"]) == [sample.id.as_str()];
    wait_until("it is done in that database", PATIENCE, done);
    assert_eq!(redis.keys("*"), Vec::<String>::new());
    daemon.stop();
}
