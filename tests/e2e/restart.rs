//! Deaths: of a worker, of the supervisor.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, Webhook, chain, delay, fresh, is_alive,
    number_from_env, preload, submit, wait_until, zombies_of,
};

#[test]
fn a_killed_worker_is_replaced_at_once_and_its_vcons_are_processed() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(300);
    let ledger = Ledger::of(&redis, &samples);
    let config = chain(&[delay(0.02)], &[("files", files.storage())]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .workers(4)
        .lanes(2)
        .start();
    submit(&redis, "default", &samples);
    for round in 1..=4 {
        ledger.wait_for(round * 50);
        let before = daemon.workers()[&round];
        let start = Instant::now();
        kill(Pid::from_raw(before), Signal::SIGKILL).expect("the worker runs");
        let died = format!("Worker-{round} (PID {before}) died unexpectedly, restarting");
        daemon.wait_for_log(&died, PATIENCE);
        let replaced = || daemon.workers()[&round] != before;
        wait_until("the worker is replaced", PATIENCE, replaced);
        let (after, took) = (daemon.workers()[&round], start.elapsed());
        println!("SIGKILL to the replacement of Worker-{round}: {took:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
        assert!(
            daemon
                .log()
                .contains(&format!("Restarted Worker-{round} (new PID {after})"))
        );
        let reaped = || zombies_of(daemon.pid()).is_empty();
        wait_until("the dead worker is reaped", Duration::from_secs(1), reaped);
    }
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

#[test]
fn a_vcon_on_which_workers_keep_dying_is_a_dead_letter() {
    let redis = Redis::plain();
    let samples = fresh(1);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &[]))
        .env("CONSERVER_MAX_DEATHS", "2")
        .start();
    submit(&redis, "default", &samples);
    for _ in 0..2 {
        let claimed = || !redis.keys("conserver:claims:*").is_empty();
        wait_until("the vCon is claimed", PATIENCE, claimed);
        let before = daemon.workers()[&1];
        kill(Pid::from_raw(before), Signal::SIGKILL).expect("the worker runs");
        wait_until("the worker is replaced", PATIENCE, || {
            daemon.workers()[&1] != before
        });
        let key = ["HGET", "conserver:deaths", samples[0].id.as_str()];
        let counted =
            || redis.ask::<Option<i64>>(&key).is_some() || redis.length("DLQ:default") > 0;
        wait_until("the death is counted", PATIENCE, counted);
    }
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &samples[0].id]);
    assert!(reason.contains("died"), "{reason}");
    Ledger::of(&redis, &samples).is_split_between(&["DLQ:default"]);
}

#[test]
fn workers_do_not_outlive_their_supervisor() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &[]))
        .workers(4)
        .start();
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    wait_until("work is in hand", PATIENCE, || redis.length("default") == 0);
    let workers = daemon.workers();
    assert!(workers.values().all(|pid| is_alive(*pid)));
    daemon.signal(Signal::SIGKILL);
    let gone = || workers.values().all(|pid| !is_alive(*pid));
    wait_until("all workers are gone", Duration::from_secs(1), gone);
    drop(daemon);

    let _daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    Ledger::of(&redis, &samples).settles();
}

/// Under this, a process that sends the marker aborts.
const ABORT: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <unistd.h>
    static void look(const void *bytes, size_t count) {
        if (memmem(bytes, count, "MARKER", strlen("MARKER"))) abort();
    }
    ssize_t send(int socket, const void *bytes, size_t count, int flags) {
        static ssize_t (*next)(int, const void *, size_t, int);
        if (!next) next = dlsym(RTLD_NEXT, "send");
        look(bytes, count);
        return next(socket, bytes, count, flags);
    }
    ssize_t write(int file, const void *bytes, size_t count) {
        static ssize_t (*next)(int, const void *, size_t);
        if (!next) next = dlsym(RTLD_NEXT, "write");
        look(bytes, count);
        return next(file, bytes, count);
    }"#;

#[test]
fn a_link_that_aborts_its_worker_for_one_vcon_costs_only_that_one() {
    costs_only_one(4, 1);
}

#[test]
fn a_link_that_aborts_its_worker_does_not_take_the_vcons_of_other_lanes_along() {
    costs_only_one(1, 8);
}

fn costs_only_one(workers: usize, lanes: usize) {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let options = json!({"webhook-urls": [webhook.url()]});
    let post = json!({"module": "links.webhook", "options": options});
    let conserver = Conserver::with(&redis)
        .config(&chain(&[("post", post)], &[]))
        .workers(workers)
        .lanes(lanes);
    let marker = "kills-its-worker";
    let library = preload(conserver.folder(), &ABORT.replace("MARKER", marker));
    let daemon = conserver.env("LD_PRELOAD", library).start();

    let others = number_from_env("CONSERVER_TEST_OTHERS", 199);
    let mut samples = fresh(others + 1);
    let poison = others / 2;
    samples[poison].document["subject"] = marker.into();
    submit(&redis, "default", &samples);
    let poison = samples.remove(poison);
    let over = || redis.length("done") + redis.length("DLQ:default") > others;
    wait_until("all are done or dead", PATIENCE * 5, over);
    assert_eq!(redis.list("DLQ:default"), std::slice::from_ref(&poison.id));
    Ledger::of(&redis, &samples).is_split_between(&["done"]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &poison.id]);
    for part in ["3 workers died", "killed by SIGABRT"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(daemon.count_in_log("died unexpectedly"), 3);
    daemon.stop();
}

#[test]
fn a_worker_that_says_it_left_claims_behind_costs_no_vcon_a_death() {
    let (redis, webhook) = (Redis::plain(), Webhook::answering(&[]));
    let options = json!({"webhook-urls": [webhook.url()]});
    let post = json!({"module": "links.webhook", "options": options});
    let conserver = Conserver::with(&redis)
        .config(&chain(&[("post", post)], &[]))
        .env("CONSERVER_MAX_DEATHS", "1");
    let marker = "leaves-its-claim";
    // The exit code for it, with a claim in hand.
    let leave = "if (!access(\"leave\", F_OK) && !unlink(\"leave\")) _exit(74)";
    let code = ABORT.replace("abort()", &format!("{{ {leave}; }}"));
    let library = preload(conserver.folder(), &code.replace("MARKER", marker));
    fs::write(conserver.folder().join("leave"), "").expect("a file");
    let daemon = conserver.env("LD_PRELOAD", library).start();
    let mut samples = fresh(1);
    samples[0].document["subject"] = marker.into();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert!(!daemon.conserver().folder().join("leave").exists());
    daemon.wait_for_log("left behind by a worker that ended", PATIENCE);
    assert_eq!(daemon.count_in_log("has drained by itself"), 1);
    assert_eq!(daemon.count_in_log("died unexpectedly"), 0);
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    daemon.stop();
}

/// What the kernel does to a worker that takes more memory than the unit may have.
#[test]
fn a_worker_killed_with_several_vcons_in_work_is_replaced_and_none_is_a_dead_letter() {
    let (redis, samples) = (Redis::plain(), fresh(3));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(0.8)], &[]))
        .lanes(3)
        .env("CONSERVER_MAX_DEATHS", "1")
        .start();
    submit(&redis, "default", &samples);
    let in_work = || redis.ask::<usize>(&["HLEN", "conserver:claims:here:1"]);
    wait_until("all are in work", PATIENCE, || in_work() == samples.len());
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).expect("the worker runs");
    daemon.wait_for_log("Restarted Worker-1", PATIENCE);
    // One after another, as any of them may be what it died of.
    let ledger = Ledger::of(&redis, &samples);
    ledger.settles();
    assert_eq!(redis.length("DLQ:default"), 0);

    // Who is alone in work has the blame.
    let last = fresh(1);
    submit(&redis, "default", &last);
    wait_until("it is in work", PATIENCE, || in_work() == 1);
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    daemon.stop();
}

#[test]
fn the_vcons_of_a_worker_that_died_once_are_worked_on_together() {
    let redis = Redis::plain();
    let samples = fresh(8);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(1.5)], &[]))
        .lanes(8)
        .start();
    submit(&redis, "default", &samples);
    wait_until("all are in work", PATIENCE, || redis.length("default") == 0);
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).expect("the worker runs");
    let claimed = || redis.ask::<usize>(&["HLEN", "conserver:claims:here:1"]) == samples.len();
    daemon.wait_for_log("left behind by a worker that ended", PATIENCE);
    wait_until("all are in work again at once", PATIENCE, claimed);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}
