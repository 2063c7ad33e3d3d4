//! How idle lanes wait, and what wakes them.

use std::thread;
use std::time::{Duration, Instant};

use conserver::queue::{Holder, IngressWatcher, Watched};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Postgres, Redis, Sample, chain, delay, freeze, fresh,
    lease_of, list, queue_with, server_of, submit, wait_until,
};

/// Far longer than any of these tests waits for a vCon: what is taken, is taken because a lane was
/// woken.
const TICK: &str = "3600000";

/// A lane that is woken takes far less; the machine may be busy.
const SOON: Duration = Duration::from_secs(3);

fn conserver(redis: &Redis) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], &[]))
        .env("TICK_INTERVAL", TICK)
}

/// The lines of `CLIENT LIST`.
fn clients(redis: &Redis) -> Vec<String> {
    let list: String = redis.ask(&["CLIENT", "LIST"]);
    list.lines().map(ToOwned::to_owned).collect()
}

/// Waits until the monitor is told of changes, and all lanes rely on it.
fn wait_until_idle(redis: &Redis, lanes: usize) {
    wait_until_quiet(redis);
    wait_until_blocked(redis, lanes);
}

fn wait_until_blocked(redis: &Redis, lanes: usize) {
    wait_until("all lanes block on BLPOP", PATIENCE, || {
        let clients = clients(redis);
        let blocked = clients.iter().filter(|line| line.contains(" cmd=blpop"));
        blocked.count() == lanes
    });
}

/// Submits one vCon, and gives the time until it is done.
fn time_of_one(redis: &Redis) -> Duration {
    let samples = [Sample::small()];
    let before = redis.length("done");
    let start = Instant::now();
    submit(redis, "default", &samples);
    wait_until("it is done", PATIENCE, || redis.length("done") > before);
    start.elapsed()
}

fn is_taken_soon(redis: &Redis) {
    let took = time_of_one(redis);
    assert!(took < SOON, "{took:?}");
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

/// Waits until nothing but the monitor's few scripts is run: fewer than if anyone looked at the
/// lists again and again.
fn wait_until_quiet(redis: &Redis) {
    wait_until("hardly a script is run", PATIENCE, || {
        let before = redis.has_run("evalsha");
        thread::sleep(Duration::from_millis(500));
        redis.has_run("evalsha") - before < 4
    });
}

fn ends_within(mut daemon: Daemon, time: Duration) {
    let start = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    let took = start.elapsed();
    assert!(took < time, "{took:?}");
}

#[test]
fn every_idle_lane_blocks_on_blpop_over_its_own_connection_and_there_are_few_others() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).workers(2).lanes(4).start();
    wait_until_idle(&redis, 8);
    let clients = clients(&redis);
    for (worker, lane) in (1..=2).flat_map(|worker| (1..=4).map(move |lane| (worker, lane))) {
        let name = format!(":{worker}:{lane} ");
        let lane = clients.iter().find(|line| line.contains(&name));
        let lane = lane.unwrap_or_else(|| panic!("no {name}in {clients:#?}"));
        assert!(lane.contains(" cmd=blpop"), "{lane}");
    }
    // The monitor's own, its keeper, its tracker, and the one of this test.
    assert!(clients.len() <= 8 + 5, "{clients:#?}");
    assert!(clients.iter().any(|line| line.contains(":tracker ")));
    ends_within(daemon, Duration::from_secs(1));
    assert_eq!(redis.keys("conserver:wake:*"), Vec::<String>::new());
}

#[test]
fn a_vcon_is_taken_at_once() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).workers(2).lanes(4).start();
    wait_until_idle(&redis, 8);
    let times: Vec<Duration> = (0..64).map(|_| time_of_one(&redis)).collect();
    let longest = times.iter().max().expect("64 times");
    println!("the longest of 64: {longest:?}");
    assert!(*longest < SOON, "{times:?}");
    daemon.stop();
}

#[test]
fn a_push_costs_the_same_however_many_lanes_wait() {
    const PUSHES: u64 = 20;
    let redis = Redis::plain();
    let daemon = conserver(&redis).workers(8).lanes(4).start();
    wait_until_idle(&redis, 32);
    let before = redis.has_run("evalsha");
    for _ in 0..PUSHES {
        time_of_one(&redis);
        wait_until_blocked(&redis, 32);
    }
    let cost = (redis.has_run("evalsha") - before) as f64 / PUSHES as f64;
    println!("{cost} scripts for a push");
    // Two looks, a claim that finds it, its finish, and a claim that finds nothing; a few more now
    // and then, as where the lease is renewed.
    assert!(cost < 7.0, "{cost}");
    daemon.stop();
}

#[test]
fn a_push_costs_the_same_however_many_lists_there_are() {
    const LISTS: usize = 1500;
    const PUSHES: usize = 20;
    let redis = Redis::plain();
    let names: Vec<String> = (0..LISTS).map(|number| format!("list-{number}")).collect();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(names);
    // Whatever a look does, it holds nobody up for long; the machine may be busy.
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "100000"]);
    let daemon = conserver(&redis).config(&config).lanes(2).start();
    wait_until_idle(&redis, 2);
    let before = redis.has_run("llen");
    for number in 1..=PUSHES {
        let place = number * 7919 % LISTS;
        let start = Instant::now();
        submit(&redis, &names[place], &[Sample::small()]);
        wait_until("it is done", PATIENCE, || redis.length("done") == number);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        wait_until_blocked(&redis, 2);
    }
    // Those of this test are among them; a look reads the list that was pushed to, and once more what the claim
    // has changed.
    let read = redis.has_run("llen") - before;
    assert!(read < 2000, "{read} lengths were read for {PUSHES} pushes");
    let slow: Vec<redis::Value> = redis.ask(&["SLOWLOG", "GET", "10"]);
    assert!(slow.is_empty(), "{slow:?}");
    daemon.stop();
}

#[test]
fn a_burst_brings_all_lanes_to_work() {
    let redis = Redis::plain();
    let daemon = conserver(&redis)
        .config(&chain(&[delay(20.0)], &[]))
        .env("CONSERVER_DRAIN_TIMEOUT", "1")
        .workers(2)
        .lanes(4)
        .start();
    wait_until_idle(&redis, 8);
    let start = Instant::now();
    submit(&redis, "default", &fresh(8));
    wait_until("all are in work", PATIENCE, || {
        let claims = redis.keys("conserver:claims:*");
        let claims = claims.iter().map(|key| redis.ask::<usize>(&["HLEN", key]));
        claims.sum::<usize>() == 8
    });
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(daemon);
}

#[test]
fn a_token_that_is_lost_costs_moments() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).workers(2).start();
    wait_until_idle(&redis, 2);
    let frozen = daemon.workers()[&1];
    freeze(frozen);
    // Its lane takes a token with it. A thread that had not stopped yet could claim a vCon.
    for _ in 0..4 {
        is_taken_soon(&redis);
    }
    signal(frozen, Signal::SIGCONT);
    daemon.stop();
}

#[test]
fn lanes_look_by_themselves_while_the_monitor_is_frozen() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).lanes(2).start();
    wait_until_idle(&redis, 2);
    let monitor = daemon.process("conserver-mon");
    freeze(monitor);
    for _ in 0..3 {
        is_taken_soon(&redis);
    }
    signal(monitor, Signal::SIGCONT);
    wait_until_quiet(&redis);
    is_taken_soon(&redis);
    daemon.stop();
}

#[test]
fn lanes_are_woken_while_the_monitor_is_restarted() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).lanes(2).start();
    for _ in 0..3 {
        wait_until_blocked(&redis, 2);
        signal(daemon.process("conserver-mon"), Signal::SIGKILL);
        is_taken_soon(&redis);
        wait_until("there is another monitor", PATIENCE, || {
            daemon.status().unwrap_or_default()["monitor"]["pid"].is_i64()
        });
    }
    daemon.stop();
}

const UNTOLD: &str = "Redis does not report changes";

/// Has a daemon work that logs in as a user with all rights but one; gives its log.
fn works_without(right: &str) -> String {
    let redis = Redis::plain();
    let user = ["limited", "on", ">secret", "~*", "&*", "+@all", right];
    redis.ask::<String>(&[&["ACL", "SETUSER"], &user[..]].concat());
    let url = redis.url().replace("://", "://limited:secret@");
    let daemon = conserver(&redis).lanes(4).env("REDIS_URL", url).start();
    for _ in 0..3 {
        is_taken_soon(&redis);
    }
    let samples = fresh(50);
    submit(&redis, "default", &samples);
    wait_until("all are done", PATIENCE, || redis.length("done") == 53);
    if right.contains("client") {
        daemon.wait_for_log(UNTOLD, PATIENCE);
        is_taken_soon(&redis);
    }
    let log = daemon.log();
    ends_within(daemon, SOON);
    assert!(!log.contains("is away"), "{log}");
    log
}

#[test]
fn without_the_right_to_client_the_lists_are_looked_at() {
    for right in ["-client", "-client|tracking"] {
        let log = works_without(right);
        assert_eq!(log.matches(UNTOLD).count(), 1, "{right}: {log}");
    }
}

#[test]
fn without_the_right_to_wait_lanes_look_by_themselves() {
    let log = works_without("-blpop");
    let refused = log.matches("does not let idle lanes wait").count();
    assert_eq!(refused, 1, "{log}");
}

#[test]
fn a_server_that_does_not_know_the_commands_is_worked_with() {
    for command in ["CLIENT", "HELLO"] {
        let rename = ["--rename-command", command, ""];
        let redis = Redis::new().with(&rename).started();
        let daemon = conserver(&redis).lanes(4).start();
        daemon.wait_for_log(UNTOLD, PATIENCE);
        for _ in 0..3 {
            is_taken_soon(&redis);
        }
        ends_within(daemon, SOON);
    }
}

#[test]
fn idle_lanes_end_although_redis_does_not_answer() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).workers(2).lanes(4).start();
    wait_until_idle(&redis, 8);
    redis.signal(Signal::SIGSTOP);
    // The monitor gives the name up last, and has its own limit.
    ends_within(daemon, Duration::from_secs(10));
    redis.signal(Signal::SIGCONT);
}

#[test]
fn no_lane_is_woken_for_what_all_workers_have_on_hold() {
    let (redis, server) = (Redis::plain(), Postgres::own());
    let database = server.new_database();
    server.stop();
    let daemon = conserver(&redis)
        .config(&chain(&[], &[("pg", database.storage())]))
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "200")
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
        .workers(2)
        .start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    wait_until("both workers hold", PATIENCE, || {
        daemon.status().unwrap_or_default()["holds"][0]["workers"] == json!([1, 2])
    });
    wait_until_quiet(&redis);
    assert_eq!(redis.length("default"), samples.len());
    server.start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn lists_of_a_new_configuration_are_watched() {
    let redis = Redis::plain();
    let daemon = conserver(&redis).lanes(2).start();
    wait_until_idle(&redis, 2);
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["default", "express"]);
    daemon.reconfigure(&config);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("All workers are replaced", PATIENCE);
    let start = Instant::now();
    submit(&redis, "express", &fresh(1));
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    daemon.stop();
}

#[test]
fn a_look_sets_a_token_for_each_entry_and_tells_of_those_that_nobody_has_taken() {
    const TOKENS: &str = "conserver:wake:here";
    let redis = Redis::plain();
    let (server, lease) = (
        server_of(&redis),
        lease_of("here", &Holder::this_process(1)),
    );
    let lists = ["in", "express"].map(list);
    let lookout = |lease| {
        let mut lookout =
            IngressWatcher::connect(&server, "looker", lease, PATIENCE).expect("Redis");
        lookout.watch(&lists);
        lookout
    };
    let mut ours = lookout(lease.clone());
    queue_with(&redis, "here", 1, lease)
        .take_lease()
        .expect("the lease");
    let look = |lookout: &mut IngressWatcher, lanes| {
        let Watched {
            waiting,
            has_tokens_left,
        } = lookout.look(lanes).expect("Redis");
        (waiting, has_tokens_left, redis.length(TOKENS))
    };
    assert_eq!(look(&mut ours, 4), (0, false, 0));
    redis.ask::<i64>(&["RPUSH", "in", "a", "b"]);
    redis.ask::<i64>(&["RPUSH", "express", "c"]);
    assert_eq!(look(&mut ours, 4), (3, false, 3));
    assert_eq!(look(&mut ours, 2), (3, true, 2));
    redis.ask::<i64>(&["DEL", TOKENS]);
    assert_eq!(look(&mut ours, 1), (3, false, 1));
    // Another daemon that has lost its name looks, and wakes nobody.
    let theirs = lease_of("here", &Holder::this_process(2));
    assert_eq!(look(&mut lookout(theirs), 4), (3, false, 1));
    redis.ask::<i64>(&["DEL", "in", "express"]);
    assert_eq!(look(&mut ours, 4), (0, true, 0));
}
