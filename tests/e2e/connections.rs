//! The ways to Redis that `REDIS_URL` can name.

use std::fs;

use crate::harness::{
    Conserver, Ledger, Monitor, PATIENCE, REDIS_PASSWORD, REDIS_USER, Redis, Sample, chain, fresh,
    preload, submit, wait_until,
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

/// The name `redis.example` is this machine's, and is not looked up while there is a file `hang`.
const LOOKUP: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <netdb.h>
    #include <string.h>
    #include <unistd.h>
    int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                    struct addrinfo **found) {
        static int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
        if (!next) next = dlsym(RTLD_NEXT, "getaddrinfo");
        if (!name || strcmp(name, "redis.example") != 0) return next(name, service, hints, found);
        while (access("hang", F_OK) == 0) usleep(20000);
        return next("127.0.0.1", service, hints, found);
    }"#;

#[test]
fn a_name_that_is_not_looked_up_is_a_redis_that_is_away() {
    let (redis, monitor) = (Redis::plain(), Monitor::at_a_port());
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env(
            "REDIS_URL",
            format!("redis://redis.example:{}", redis.port()),
        )
        .env("CONSERVER_HTTP", monitor.setting());
    let library = preload(conserver.folder(), LOOKUP);
    let hang = conserver.folder().join("hang");
    let daemon = conserver.env("LD_PRELOAD", library).start();
    monitor.wait_for("/readyz", 200);
    fs::write(&hang, "").expect("a file");
    redis.kill9();
    // First the connection from before breaks off, then there is no other.
    wait_until("the status has it", PATIENCE, || {
        let answer = monitor.get("/status");
        answer.status == 200
            && answer.json()["queues"]["error"]
                .as_str()
                .is_some_and(|error| error.contains("no connection in time"))
    });
    let metrics = monitor.get("/metrics");
    assert!(
        metrics.body.contains("\nconserver_redis_up 0\n"),
        "{metrics:?}"
    );
    redis.start();
    assert_eq!(monitor.get("/readyz").status, 503);
    fs::remove_file(&hang).expect("a file");
    monitor.wait_for("/readyz", 200);
    let samples = fresh(3);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}
