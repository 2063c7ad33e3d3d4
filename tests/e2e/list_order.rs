//! The order in which ingress lists are served.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use conserver::queue::{Claimed, Queue, Reason, Released};
use serde_json::json;

use crate::harness::{
    Conserver, PATIENCE, Redis, Sample, chain, fresh, list, queue, submit, wait_until,
};

/// Has a producer keep the first of two lists full while `second` waits on the other one, until
/// the condition holds.
fn with_a_full_first_list(
    redis: &Redis,
    order: &str,
    second: &[Sample],
    mut condition: impl FnMut() -> bool,
) {
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["first", "second"]);
    submit(redis, "first", &fresh(200));
    submit(redis, "second", second);
    let conserver = Conserver::with(redis).config(&config).lanes(2);
    let daemon = conserver.env("CONSERVER_LIST_ORDER", order).start();
    let full = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while full.load(Ordering::Relaxed) {
                let missing = 200usize.saturating_sub(redis.length("first"));
                submit(redis, "first", &fresh(missing));
            }
        });
        wait_until("the lists are served", PATIENCE, || {
            assert!(redis.length("first") > 0, "the first list ran empty");
            condition()
        });
        full.store(false, Ordering::Relaxed);
    });
    wait_until("all is done", PATIENCE, || {
        redis.length("first") + redis.length("second") == 0
    });
    daemon.stop();
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
}

#[test]
fn a_full_first_list_starves_nobody_when_the_lists_take_turns() {
    let redis = Redis::plain();
    let second = fresh(20);
    with_a_full_first_list(&redis, "rotate", &second, || redis.length("second") == 0);
    let done = redis.list("done");
    for sample in &second {
        assert_eq!(done.iter().filter(|id| **id == sample.id).count(), 1);
    }
    // They took turns: a lane that is ahead by a few vCons is by no more than that.
    let place = |id: &String| second.iter().any(|sample| sample.id == *id);
    let last = done.iter().rposition(place).expect("they are done");
    assert!((30..=80).contains(&last), "the last one was number {last}");
}

#[test]
fn a_full_first_list_is_served_before_the_second_in_strict_order() {
    let redis = Redis::plain();
    let second = fresh(5);
    with_a_full_first_list(&redis, "strict", &second, || redis.length("done") > 1_000);
    let done = redis.list("done");
    let is_second = |id: &String| second.iter().any(|sample| sample.id == *id);
    let first = done.iter().position(is_second).expect("they are done");
    assert!(first > 1_000, "one was number {first}");
}

#[test]
fn of_very_many_lists_the_first_that_holds_anything_is_taken_from() {
    let redis = Redis::plain();
    // Whole blocks of them are empty, and one that is not full stands at the end.
    let lists: Vec<_> = (0..320).map(|n| list(&format!("list-{n}"))).collect();
    let mut queue = queue(&redis, "here", 1);
    let reason = Reason {
        stage: "queue",
        error: "no UUID",
        attempts: 1,
        worker: "Worker-1",
    };
    let claims = |queue: &mut Queue| {
        let Claimed { work, fault } = queue.claim(&lists).expect("Redis");
        let claim = work.map(|(claim, _)| {
            let released = queue.dead_letter(&claim, &reason, None).expect("Redis");
            assert_eq!(released, Released::Done);
            claim.list.to_string()
        });
        (claim, fault.is_some())
    };
    let places = [319, 0, 49, 50, 149, 300, 149];
    for place in places {
        redis.ask::<i64>(&["RPUSH", &format!("list-{place}"), "an entry"]);
    }
    for place in [0, 49, 50, 149, 149, 300, 319] {
        assert_eq!(claims(&mut queue), (Some(format!("list-{place}")), false));
    }
    assert_eq!(claims(&mut queue), (None, false));
    redis.ask::<()>(&["SET", "list-120", "no list"]);
    assert_eq!(claims(&mut queue), (None, true));
    redis.ask::<i64>(&["RPUSH", "list-121", "an entry"]);
    assert_eq!(claims(&mut queue), (Some("list-121".to_owned()), true));
}
