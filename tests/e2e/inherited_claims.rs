//! Claims that a worker finds from before its time: whose they are, and who is to blame.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use ::conserver::child::{Assignment, OrphanedClaims, Task};
use ::conserver::queue::{EndedWorker, Holder, QueueError, Suspects};
use ::conserver::scoreboard::BoardId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Ledger, PATIENCE, Proxy, Redis, Sample, chain, delay, fresh, is_alive, preload,
    queue, submit, wait_until,
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
        let changed = format!("number of workers from {} to {wanted}", wanted - 1);
        daemon.wait_for_log(&changed, PATIENCE);
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
            // A spawned child finds there what it is to do.
            char line[8192] = "";
            pread(0, line, sizeof line - 1, 0);
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
    let mut successor = before[&2];
    wait_until("there is a successor", PATIENCE, || {
        successor = *daemon.workers().get(&2).unwrap_or(&before[&2]);
        successor != before[&2]
    });
    daemon.wait_for_log("Redis is away", PATIENCE);
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
fn what_a_worker_cannot_give_back_before_it_ends_is_returned_by_the_supervisor() {
    let redis = Redis::plain();
    let door = Proxy::before(redis.port());
    let daemon = Conserver::with(&redis)
        .env("REDIS_URL", format!("redis://127.0.0.1:{}", door.port()))
        .config(&chain(&[delay(600.0)], &[]))
        .workers(2)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("CONSERVER_RETRY_MAX_MS", "50")
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start();
    let workers = daemon.wait_for_workers(2);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    redis.wait_for_claims(2);
    door.refuse();
    door.reset();
    daemon.signal(Signal::SIGTTOU);
    let gone = || !is_alive(workers[&2]);
    wait_until("a worker has drained", PATIENCE, gone);
    assert_eq!(redis.claims().len(), 2);
    door.pass();
    wait_until("its claim is back", PATIENCE, || {
        redis.length("default") == 1
    });
    // It did as it was told.
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
    assert_eq!(daemon.count_in_log("died unexpectedly"), 0);
    redis.wait_for_claims(1);
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
            daemon.process("conserver-fork")
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
        let dead = EndedWorker {
            worker: 3,
            blame: Suspects::These(vec![in_hand]),
            end: "killed",
        };
        let recovered = queue.retire_worker(dead, 5).expect("Redis runs");
        assert_eq!(recovered.len(), 1);
        assert_eq!(deaths_of(&redis, sample), deaths);
        redis.ask::<i64>(&["DEL", "default"]);
    }
}

/// A claim of this entry, taken at this time.
fn claim(redis: &Redis, worker: u32, lane: u32, entry: &str, since: &str) {
    let record = format!(r#"{{"list":"default","uuid":"{entry}","since":{since}}}"#);
    let key = format!("conserver:claims:here:{worker}");
    redis.ask::<i64>(&["HSET", &key, &lane.to_string(), &record]);
    redis.ask::<i64>(&["SADD", "conserver:workers:here", &worker.to_string()]);
}

fn dead(worker: u32, blame: Suspects) -> EndedWorker<'static> {
    let end = "killed";
    EndedWorker { worker, blame, end }
}

fn workers_known(redis: &Redis) -> Vec<String> {
    let mut known: Vec<String> = redis.ask(&["SMEMBERS", "conserver:workers:here"]);
    known.sort();
    known
}

#[test]
fn what_was_claimed_first_is_first_in_its_list_again() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 9);
    queue.take_lease().expect("the name is free");
    redis.ask::<i64>(&["RPUSH", "default", "waiting"]);
    // In no order of their lanes; what has no time was first, or nobody knows.
    for (lane, number) in [7, 3, 9, 1, 5, 8, 2, 6, 4].into_iter().enumerate() {
        let lane = u32::try_from(lane).expect("a number") * 2 + 1;
        claim(&redis, 3, lane, &number.to_string(), &format!("{number}.5"));
        claim(&redis, 3, lane + 1, &format!("nan {number}"), "\"nan\"");
    }
    queue
        .retire_worker(dead(3, Suspects::ALL), 5)
        .expect("Redis runs");
    let list = redis.list("default");
    let (timeless, rest) = list.split_at(9);
    assert!(
        timeless.iter().all(|entry| entry.starts_with("nan")),
        "{list:?}"
    );
    let expected = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "waiting"];
    assert_eq!(rest, expected, "{list:?}");
}

#[test]
fn only_vcons_with_the_blame_have_a_death_to_their_name() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 9);
    queue.take_lease().expect("the name is free");
    let (one, other) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    // An entry stands in Redis as its producer wrote it.
    let entries = [one.to_string().to_uppercase(), other.to_string()];
    for (blame, expected) in [
        (Suspects::ALL, [Some(1), Some(1)]),
        (Suspects::NOBODY, [None, None]),
        (Suspects::These(vec![one]), [Some(1), None]),
        (Suspects::These(vec![other]), [None, Some(1)]),
        (Suspects::AllBut(vec![one]), [None, Some(1)]),
        (Suspects::AllBut(vec![one, other]), [None, None]),
    ] {
        redis.ask::<i64>(&["DEL", "conserver:deaths"]);
        for (lane, entry) in (1..).zip(&entries) {
            claim(&redis, 3, lane, entry, "1");
        }
        let recovered = queue.recover(dead(3, blame.clone()), 5);
        let recovered = recovered.expect("Redis runs");
        let found = [0, 1].map(|number: usize| -> Option<u32> {
            redis.ask(&["HGET", "conserver:deaths", &entries[number]])
        });
        assert_eq!(found, expected, "{blame:?}");
        for (entry, count) in entries.iter().zip(expected) {
            let told = recovered.iter().find(|told| told.entry == *entry);
            let told = told.expect("it was returned");
            assert_eq!((told.deaths, told.lapses), (count.unwrap_or(0), 0));
        }
    }
}

#[test]
fn a_death_with_several_vcons_in_work_makes_none_a_dead_letter() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 9);
    queue.take_lease().expect("the name is free");
    let ids = [(); 2].map(|()| uuid::Uuid::new_v4());
    let entries = ids.map(|id| id.to_string());
    for most in [1, 2, 3] {
        // However often that is: each is then one death before its last, for which it is worked on alone.
        for _ in 0..5 {
            for (lane, entry) in (1..).zip(&entries) {
                claim(&redis, 3, lane, entry, "1");
            }
            let recovered = queue.recover(dead(3, Suspects::ALL), most);
            let recovered = recovered.expect("Redis runs");
            assert!(recovered.iter().all(|told| told.outcome == "returned"));
        }
        let deaths = (most - 1).max(1).to_string();
        for entry in &entries {
            let found: String = redis.ask(&["HGET", "conserver:deaths", entry]);
            assert_eq!(found, deaths, "of at most {most}");
        }
        // Alone, or as the one that the supervisor names, it has the blame.
        claim(&redis, 3, 1, &entries[0], "1");
        claim(&redis, 3, 2, &entries[1], "1");
        let blame = match most {
            2 => Suspects::These(vec![ids[0]]),
            _ => Suspects::AllBut(vec![ids[1]]),
        };
        let recovered = queue.recover(dead(3, blame), most).expect("Redis runs");
        for told in recovered {
            assert_eq!(told.is_poison(), told.entry == entries[0], "{told:?}");
        }
        redis.ask::<i64>(&["DEL", "conserver:deaths"]);
    }
}

#[test]
fn the_sweep_takes_nothing_from_the_workers_that_there_are() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    queue.take_lease().expect("the name is free");
    for worker in 1..=5 {
        claim(
            &redis,
            worker,
            1,
            &format!("of {worker}"),
            &worker.to_string(),
        );
    }
    let recovered = queue.recover_above(3, 5).expect("Redis runs");
    let mut entries: Vec<&str> = recovered.iter().map(|told| told.entry.as_str()).collect();
    entries.sort_unstable();
    assert_eq!(entries, ["of 4", "of 5"]);
    let mut claims = redis.keys("conserver:claims:here:*");
    claims.sort();
    let expected = [1, 2, 3].map(|worker| format!("conserver:claims:here:{worker}"));
    assert_eq!(claims, expected);
    // Who will have no successor is no worker any more; the others are.
    assert_eq!(workers_known(&redis), ["1", "2", "3"]);
    queue
        .recover(dead(2, Suspects::ALL), 5)
        .expect("Redis runs");
    assert_eq!(workers_known(&redis), ["1", "2", "3"]);
    queue
        .retire_worker(dead(2, Suspects::ALL), 5)
        .expect("Redis runs");
    assert_eq!(workers_known(&redis), ["1", "3"]);
}

#[test]
fn without_the_lease_no_claim_is_returned() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    claim(&redis, 1, 1, "x", "1");
    for _ in 0..2 {
        let refused = queue.recover(dead(1, Suspects::ALL), 5);
        let error = refused.expect_err("the lease is not there");
        assert!(
            matches!(&error, QueueError::Lapsed(name) if name == "here"),
            "{error}"
        );
        assert!(error.is_about_the_lease());
        assert_eq!(redis.keys("conserver:claims:*").len(), 1);
        // Also one that it had.
        queue.take_lease().expect("the name is free");
        redis.ask::<i64>(&["DEL", "conserver:instance:here"]);
    }
    queue.take_lease().expect("the name is free");
    let recovered = queue
        .recover(dead(1, Suspects::ALL), 5)
        .expect("Redis runs");
    assert_eq!(recovered.len(), 1);
}

/// What a supervisor, this process, tells a child to return: the claims of a worker that had more
/// vCons in hand than a command line has room for, the last of which is in Redis.
fn long_assignment(last: &Sample) -> Assignment {
    let mut vcons: Vec<uuid::Uuid> = (1..10_000).map(uuid::Uuid::from_u128).collect();
    vcons.push(last.id.parse().expect("a UUID"));
    let left = OrphanedClaims {
        worker: 3,
        blame: Suspects::AllBut(vcons),
        end: "killed".to_owned(),
    };
    Assignment {
        task: Task::Recover {
            orphaned: vec![left],
        },
        generation: 1,
        instance: "here".to_owned(),
        supervisor: std::process::id().cast_signed(),
        holder: Holder::this_process(1),
        board: BoardId {
            path: "none".into(),
            nonce: 1,
        },
        config_generation: 1,
        config_file: "none".into(),
    }
}

/// Two claims, of which the long assignment blames the first alone.
fn leave_two(redis: &Redis) -> Vec<Sample> {
    let samples = fresh(2);
    for (lane, sample) in (1..).zip(&samples) {
        claim(redis, 3, lane, &sample.id, "1");
    }
    samples
}

fn the_first_alone_was_blamed(redis: &Redis, samples: &[Sample]) {
    Ledger::of(redis, samples).is_split_between(&["default"]);
    let deaths = [0, 1].map(|number: usize| deaths_of(redis, &samples[number]));
    assert_eq!(deaths, [Some(1), None]);
}

#[test]
fn a_spawned_child_is_told_of_ten_thousand_vcons() {
    let redis = Redis::plain();
    let samples = leave_two(&redis);
    let text = serde_json::to_string(&long_assignment(&samples[1])).expect("JSON");
    assert!(text.len() > 128 << 10);
    let finished = Conserver::with(&redis).run_with_input(&["child", "Recovery"], &text);
    assert_eq!(finished.code, 0, "{}", finished.output());
    the_first_alone_was_blamed(&redis, &samples);
}

#[test]
fn a_child_of_the_forkserver_is_told_of_ten_thousand_vcons() {
    let redis = Redis::plain();
    let samples = leave_two(&redis);
    let (mut here, theirs) = UnixStream::pair().expect("sockets");
    let mut server = Command::new(env!("CARGO_BIN_EXE_conserver"))
        .args(["forkserver", &std::process::id().to_string()])
        .env("REDIS_URL", redis.url())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("the program");
    // Three of them are more than the megabyte that was once too long.
    let assignment = long_assignment(&samples[1]);
    let Task::Recover { orphaned } = &assignment.task else {
        panic!("there is something to recover");
    };
    let task = Task::Recover {
        orphaned: vec![orphaned[0].clone(); 3],
    };
    let assignment = Assignment { task, ..assignment };
    let mut text = json!({"Start": assignment}).to_string();
    assert!(text.len() > 1 << 20);
    text.push('\n');
    here.write_all(text.as_bytes()).expect("it listens");
    let mut told = BufReader::new(here.try_clone().expect("a socket")).lines();
    for expected in ["Started", "Ended"] {
        let line = told.next().expect("it answers").expect("a line");
        assert!(line.contains(expected), "{line}");
        assert!(
            expected == "Started" || line.contains(r#""end":{"Exited":0}"#),
            "{line}"
        );
    }
    here.shutdown(Shutdown::Write).expect("a socket");
    assert!(server.wait().expect("a child").success());
    the_first_alone_was_blamed(&redis, &samples);
}
