//! One of all daemons keeps waiting vCons from running out, and another one takes over from it.

use std::thread;
use std::time::{Duration, Instant};

use conserver::queue::{Chore, Expiry, Housekeeper, HousekeepingLease};

use crate::harness::{
    Conserver, Daemon, PATIENCE, Redis, Sample, chain, delay, fresh, list, server_of, submit,
    wait_until,
};

/// Daemons that keep what they have claimed in hand.
fn start(redis: &Redis, names: &[&'static str], expiry: &str) -> Vec<Daemon> {
    let start = |name: &&str| {
        Conserver::with(redis)
            .config(&chain(&[delay(600.0)], &[]))
            .env("CONSERVER_INSTANCE", name)
            .env("VCON_REDIS_EXPIRY", expiry)
            .start()
    };
    let daemons: Vec<Daemon> = names.iter().map(start).collect();
    for daemon in &daemons {
        daemon.wait_for_workers(1);
    }
    daemons
}

/// Who keeps the documents, and how long the lease lives, in milliseconds.
fn keeper(redis: &Redis) -> Option<(String, i64)> {
    let keys = redis.keys("conserver:keeper:*");
    assert!(keys.len() <= 1, "{keys:?}");
    let key = keys.first()?;
    // It may have run out since.
    let name: Option<String> = redis.ask(&["GET", key]);
    Some((name?, redis.ask(&["PTTL", key])))
}

/// Small vCons that wait in a list, and live for so many seconds.
fn waiting(redis: &Redis, list: &str, count: usize, seconds: &str) -> Vec<Sample> {
    let samples: Vec<Sample> = (0..count).map(|_| Sample::small()).collect();
    for sample in &samples {
        let key = format!("vcon:{}", sample.id);
        redis.ask::<()>(&["SET", &key, &sample.text(), "EX", seconds]);
        redis.ask::<i64>(&["RPUSH", list, &sample.id]);
    }
    samples
}

#[test]
fn of_several_daemons_one_keeps_what_waits_and_not_all_the_time() {
    let redis = Redis::plain();
    let samples = waiting(&redis, "default", 1000, "1000");
    let before = redis.has_run("pttl");
    let daemons = start(&redis, &["one", "two", "three"], "3600");
    let ttl = |sample: &Sample| -> i64 { redis.ask(&["TTL", &format!("vcon:{}", sample.id)]) };
    // It begins at the end of the list, and rests after the work.
    wait_until("all are kept", PATIENCE, || {
        keeper(&redis).is_some_and(|(_, ttl)| ttl > 30_000)
    });
    let waiting = redis.list("default");
    let waits = |sample: &&Sample| waiting.contains(&sample.id);
    assert!(samples.iter().filter(waits).all(|it| ttl(it) > 3000));
    // Each document and its context once, and a few for those that lanes took.
    let asked = redis.has_run("pttl") - before;
    assert!((2 * 990..2 * 1100).contains(&asked), "{asked}");
    // The name of the keeper has ended cleanly: the next one need not wait for the lease to run out.
    let (first, _) = keeper(&redis).expect("a keeper");
    for daemon in daemons {
        daemon.stop();
    }
    assert_eq!(keeper(&redis), None, "{first}");
}

#[test]
fn nothing_runs_out_when_the_keeper_dies() {
    let redis = Redis::plain();
    let mut daemons = start(&redis, &["one", "two"], "6");
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(2);
    let waits = waiting(&redis, "default", 450, "6");
    let begun = Instant::now();
    wait_until("there is a keeper", PATIENCE, || keeper(&redis).is_some());
    let (first, _) = keeper(&redis).expect("a keeper");
    let dead = daemons.remove(usize::from(first == "two"));
    dead.kill_family();
    wait_until("the other one keeps them", PATIENCE, || {
        keeper(&redis).is_some_and(|(now, _)| now != first)
    });
    // Longer than they would live: that they do not run out is what is tested.
    thread::sleep(Duration::from_secs(7).saturating_sub(begun.elapsed()));
    let left = waits
        .iter()
        .filter(|it| redis.document(&it.id).is_some())
        .count();
    assert_eq!(left, waits.len());
    drop(daemons);
}

#[test]
fn only_the_holder_of_the_lease_does_a_step() {
    let redis = Redis::plain();
    let server = server_of(&redis);
    let expiry = Expiry {
        document: 3600,
        context: 3600,
        dead_letter: 0,
    };
    waiting(&redis, "in", 450, "1000");
    let chore = Chore::Waiting(list("in"));
    let keeper = |name: &str, lists: &[&str]| {
        let mut keeper = Housekeeper::new(server.clone(), expiry, name, Duration::from_secs(30));
        let chores = lists.iter().map(|name| Chore::Waiting(list(name)));
        keeper.set_chores(chores.collect());
        keeper
    };
    let (mut one, mut two) = (keeper("one", &["in", "out"]), keeper("two", &["out", "in"]));
    assert_eq!(one.take().expect("Redis"), HousekeepingLease::Ours);
    let held = two.take().expect("Redis");
    assert!(
        matches!(held, HousekeepingLease::Held(left) if left > Duration::from_secs(20)),
        "{held:?}"
    );
    assert_eq!(two.run(&chore, &mut |_| true).expect("Redis"), None);
    // What is not its own, it does not give up.
    two.release().expect("Redis");
    // Who keeps other lists is another keeper.
    let mut other = keeper("other", &["elsewhere"]);
    assert_eq!(other.take().expect("Redis"), HousekeepingLease::Ours);

    let (filled, steps) = one.filled().expect("Redis");
    assert_eq!((filled, steps), (vec![chore.clone()], 3));
    // The lease is lost after the first step.
    let mut calls = 0;
    let mut pace = |_| {
        calls += 1;
        for key in redis.keys("conserver:keeper:*") {
            redis.ask::<i64>(&["DEL", &key]);
        }
        true
    };
    assert_eq!(one.run(&chore, &mut pace).expect("Redis"), None);
    assert_eq!(calls, 1);
    assert_eq!(two.take().expect("Redis"), HousekeepingLease::Ours);
    // The first step of the other one kept 200.
    assert_eq!(two.run(&chore, &mut |_| true).expect("Redis"), Some(250));
    two.rest(Duration::from_millis(1)).expect("Redis");
    wait_until("the next round is due", PATIENCE, || {
        one.take().expect("Redis") == HousekeepingLease::Ours
    });
    // Somebody's key that never runs out is no lease.
    let key = &redis.keys("conserver:keeper:*")[0];
    redis.ask::<()>(&["SET", key, "for ever"]);
    assert_eq!(one.take().expect("Redis"), HousekeepingLease::Ours);
    redis.ask::<i64>(&["DEL", key]);
    redis.ask::<i64>(&["HSET", key, "a", "b"]);
    assert_eq!(one.take().expect("Redis"), HousekeepingLease::Ours);
}

#[test]
fn the_head_of_a_list_is_reached_however_fast_it_grows() {
    let redis = Redis::plain();
    let samples = waiting(&redis, "default", 450, "1000");
    let expiry = Expiry {
        document: 3600,
        context: 3600,
        dead_letter: 0,
    };
    let mut keeper = Housekeeper::new(server_of(&redis), expiry, "one", PATIENCE);
    assert_eq!(keeper.take().expect("Redis"), HousekeepingLease::Ours);
    let mut steps = 0;
    let entries = vec!["no UUID"; 250];
    let mut pace = |took: Duration| {
        steps += 1;
        assert!(steps < 100, "it does not come to the head");
        // While it rests, more is added than it has looked at.
        if took > Duration::ZERO {
            let push = [&["RPUSH", "default"], &entries[..]].concat();
            redis.ask::<i64>(&push);
        }
        true
    };
    let chore = Chore::Waiting(list("default"));
    let kept = keeper.run(&chore, &mut pace).expect("Redis");
    assert_eq!(kept, Some(samples.len() as u64));
}

#[test]
fn what_waits_is_kept_on_a_server_that_is_full() {
    let redis = Redis::plain();
    let samples = waiting(&redis, "default", 10, "1000");
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let expiry = Expiry {
        document: 3600,
        context: 3600,
        dead_letter: 0,
    };
    let mut keeper = Housekeeper::new(server_of(&redis), expiry, "one", PATIENCE);
    assert_eq!(keeper.take().expect("Redis"), HousekeepingLease::Ours);
    let chore = Chore::Waiting(list("default"));
    let kept = keeper.run(&chore, &mut |_| true).expect("Redis");
    assert_eq!(kept, Some(samples.len() as u64));
}
