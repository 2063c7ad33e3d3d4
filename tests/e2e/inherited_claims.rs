//! Claims that a worker finds from before its time: whose they are, and who is to blame.

use std::fs;

use ::conserver::queue::{Blame, Dead};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Ledger, PATIENCE, Redis, Sample, chain, delay, fresh, is_alive, preload, queue,
    submit, wait_until,
};

/// Puts a submitted vCon into the hands of a worker that is no more.
fn leave_claimed(redis: &Redis, sample: &Sample, worker: u32) {
    submit(redis, "default", std::slice::from_ref(sample));
    let entry: String = redis.ask(&["LPOP", "default"]);
    let record = json!({"list": "default", "uuid": entry, "since": 1.5}).to_string();
    let key = format!("conserver:claims:here:{worker}");
    redis.ask::<i64>(&["HSET", &key, "1", &record]);
    redis.ask::<i64>(&["SADD", "conserver:workers:here", &worker.to_string()]);
}

fn deaths_of(redis: &Redis, sample: &Sample) -> Option<i64> {
    redis.ask(&["HGET", "conserver:deaths", &sample.id])
}

#[test]
fn workers_added_while_redis_is_away_wait_for_the_sweep() {
    let redis = Redis::new().durable().started();
    let left = fresh(1);
    leave_claimed(&redis, &left[0], 4);
    redis.kill9();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .start();
    for wanted in [3, 4] {
        daemon.signal(Signal::SIGTTIN);
        daemon.wait_for_log(&format!("{wanted} workers are wanted"), PATIENCE);
    }
    // Answered in a later turn of the loop than the one that could have started them.
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for_log("0 of 4 workers ready", PATIENCE);
    for number in [3, 4] {
        assert_eq!(daemon.count_in_log(&format!("Started Worker-{number}")), 0);
    }
    redis.start();
    daemon.wait_for_workers(4);
    Ledger::of(&redis, &left).settles();
    // Nothing but what the earlier daemon left behind was taken from anyone.
    assert_eq!(daemon.count_in_log("left behind by a worker that ended"), 1);
    daemon.stop();
}

#[test]
fn the_sweep_is_not_lost_when_the_first_start_fails() {
    let redis = Redis::plain();
    let left = fresh(1);
    leave_claimed(&redis, &left[0], 7);
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn");
    let library = preload(
        conserver.folder(),
        r#"
        #include <fcntl.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        __attribute__((constructor)) static void crash_once(void) {
            char line[8192] = "";
            int file = open("/proc/self/cmdline", O_RDONLY);
            long count = read(file, line, sizeof line - 1);
            for (long at = 0; at < count; at++) if (!line[at]) line[at] = ' ';
            if (strstr(line, "\"sweep_above\":1") && open("crashed", O_CREAT | O_EXCL, 0600) >= 0) abort();
        }"#,
    );
    let daemon = conserver.env("LD_PRELOAD", library).start();
    Ledger::of(&redis, &left).settles();
    assert_eq!(daemon.count_in_log("died unexpectedly"), 1);
    daemon.wait_for_workers(1);
    daemon.stop();
}

#[test]
fn a_worker_that_drains_before_it_has_recovered_leaves_its_predecessors_claims_on_record() {
    let redis = Redis::new().durable().started();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &[]))
        .workers(2)
        .start();
    let before = daemon.wait_for_workers(2);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    wait_until("both have work", PATIENCE, || {
        redis.keys("conserver:claims:*").len() == 2
    });
    redis.kill9();
    kill(Pid::from_raw(before[&2]), Signal::SIGKILL).expect("the worker runs");
    daemon.wait_for_log("Redis is away", PATIENCE);
    let successor = daemon.workers()[&2];
    assert_ne!(successor, before[&2]);
    daemon.signal(Signal::SIGTTOU);
    let gone = || !is_alive(successor);
    wait_until("the successor has drained", PATIENCE, gone);
    redis.start();
    wait_until("the claim is back", PATIENCE, || {
        redis.length("default") == 1
    });
    let returned: String = redis.ask(&["LINDEX", "default", "0"]);
    let sample = samples.iter().find(|sample| sample.id == returned);
    let sample = sample.expect("one of them");
    assert_eq!(deaths_of(&redis, sample), Some(1));
}

#[test]
fn a_host_that_is_renamed_keeps_its_claims() {
    for method in ["spawn", "forkserver"] {
        let redis = Redis::plain();
        let conserver = Conserver::with(&redis)
            .config(&chain(&[delay(600.0)], &[]))
            .method(method);
        let library = preload(
            conserver.folder(),
            r#"
            #include <fcntl.h>
            #include <string.h>
            #include <unistd.h>
            int gethostname(char *name, size_t room) {
                memset(name, 0, room);
                int file = open("hostname", O_RDONLY);
                long count = read(file, name, room - 1);
                close(file);
                return count > 0 ? 0 : -1;
            }"#,
        );
        let name = conserver.folder().join("hostname");
        fs::write(&name, "one").expect("a file");
        let daemon = conserver
            .env("LD_PRELOAD", library)
            .env("CONSERVER_INSTANCE", "")
            .start();
        daemon.wait_for_log("All 1 workers ready", PATIENCE);
        let samples = fresh(1);
        submit(&redis, "default", &samples);
        let claims = || redis.keys("conserver:claims:*");
        wait_until("it is claimed", PATIENCE, || {
            claims() == ["conserver:claims:one:1"]
        });
        fs::write(&name, "two").expect("a file");
        // The forkserver too is started anew, and reads what the host is called now.
        let victim = if method == "forkserver" {
            daemon.process("conserver: forkserver")
        } else {
            daemon.workers()[&1]
        };
        kill(Pid::from_raw(victim), Signal::SIGKILL).expect("it runs");
        daemon.wait_for_log("Restarted Worker-1", PATIENCE);
        daemon.wait_for_log("left behind by a worker that ended", PATIENCE);
        wait_until("it is claimed again", PATIENCE, || {
            claims() == ["conserver:claims:one:1"]
        });
    }
}

#[test]
fn a_lane_that_has_gone_on_to_the_next_vcon_does_not_pass_the_blame_on() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 9);
    queue.take_lease().expect("the name is free");
    let samples = fresh(2);
    let in_hand = samples[0].id.parse().expect("a UUID");
    for (sample, deaths) in [(&samples[1], None), (&samples[0], Some(1))] {
        leave_claimed(&redis, sample, 3);
        let dead = Dead {
            worker: 3,
            blame: Blame::These(vec![in_hand]),
            end: "killed",
        };
        let recovered = queue.recover_seat(dead, 5).expect("Redis runs");
        assert_eq!(recovered.len(), 1);
        assert_eq!(deaths_of(&redis, sample), deaths);
        redis.ask::<i64>(&["DEL", "default"]);
    }
}
