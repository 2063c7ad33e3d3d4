//! One suite for every way of starting workers, with one of them and with four.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Files, Ledger, PATIENCE, Redis, chain, delay, descriptors_of, fresh,
    is_alive, name_of, number_from_env, submit, wait_until, zombies_of,
};

/// The suite.
fn start_process_crash_reload_scale_drain(method: &str, count: usize) {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[delay(0.01)], &[("files", files.storage())]);
    let mut daemon = Conserver::with(&redis)
        .config(&config)
        .method(method)
        .workers(count)
        .lanes(2)
        .start();
    let first = daemon.wait_for_workers(count);
    assert_eq!(daemon.status().unwrap_or_default()["start_method"], method);
    processes_have_names(&daemon, method, &first);
    nothing_is_inherited(&daemon);

    let samples = fresh(200 * count);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    ledger.wait_for(10 * count);

    let victim = first[&count];
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("the worker runs");
    let died = format!("Worker-{count} (PID {victim}) died unexpectedly, restarting");
    daemon.wait_for_log(&died, PATIENCE);
    let second = daemon.wait_for_workers(count);
    assert_ne!(second[&count], victim);
    ledger.wait_for(30 * count);

    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("All workers are replaced", PATIENCE);
    let third = daemon.wait_for_workers(count);
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (second.values().collect(), third.values().collect());
    assert!(old.is_disjoint(&new), "{old:?} {new:?}");
    assert!(second.values().all(|pid| !is_alive(*pid)));

    daemon.signal(Signal::SIGTTIN);
    let scaled_up = daemon.wait_for_workers(count + 1);
    assert!(third.iter().all(|(number, pid)| scaled_up[number] == *pid));
    daemon.signal(Signal::SIGTTOU);
    assert_eq!(daemon.wait_for_workers(count), third);

    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    let done = daemon.status().unwrap_or_default()["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .map(|worker| worker["done"].as_u64().unwrap_or(0))
        .sum::<u64>();
    assert!(done > 0 && done <= samples.len() as u64, "{done}");

    let family = daemon.family();
    assert!(family.len() > count + 1);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert!(daemon.log().contains("All workers stopped"));
    assert!(family.iter().all(|pid| !is_alive(*pid)), "{family:?}");
    assert_eq!(daemon.status(), None);
}

fn processes_have_names(
    daemon: &Daemon,
    method: &str,
    workers: &std::collections::BTreeMap<usize, i32>,
) {
    assert_eq!(name_of(daemon.pid()), "conserver");
    for (number, pid) in workers {
        assert_eq!(name_of(*pid), format!("conserver-w{number}"));
    }
    let names: Vec<String> = daemon.family().into_iter().map(name_of).collect();
    assert!(names.iter().any(|it| it == "conserver-mon"), "{names:?}");
    let forkserver = names.iter().any(|it| it == "conserver-fork");
    assert_eq!(forkserver, method == "forkserver", "{names:?}");
}

/// No process has a descriptor of another above standard error.
fn nothing_is_inherited(daemon: &Daemon) {
    // What this test's own process was given from outside goes to all.
    let given: BTreeSet<String> = descriptors_of(std::process::id().cast_signed())
        .into_iter()
        .collect();
    let mut seen = BTreeSet::new();
    for pid in daemon.family() {
        let own: BTreeSet<String> = descriptors_of(pid)
            .into_iter()
            .filter(|target| !target.starts_with("anon_inode") && !given.contains(target))
            .collect();
        let shared: Vec<&String> = own.intersection(&seen).collect();
        assert!(
            shared.is_empty(),
            "{} has inherited {shared:?}",
            name_of(pid)
        );
        seen.extend(own);
    }
}

/// Kills random workers under load, as often as `CONSERVER_TEST_KILLS` says.
fn survives_many_kills(method: &str) {
    let kills = number_from_env("CONSERVER_TEST_KILLS", 30);
    let count = 4;
    let (redis, files) = (Redis::plain(), Files::new());
    let config = chain(&[], &[("files", files.storage())]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .method(method)
        .workers(count)
        .lanes(2)
        .env("CONSERVER_MAX_DEATHS", "0")
        .start();
    daemon.wait_for_workers(count);
    let descriptors = descriptors_of(daemon.pid()).len();
    let batch = 40;
    let samples = fresh(kills * batch);
    let ledger = Ledger::of(&redis, &samples);
    let mut random = fastrand::Rng::with_seed(4711);
    for (round, batch_of_round) in samples.chunks(batch).enumerate() {
        submit(&redis, "default", batch_of_round);
        // Under load all the time, and with time for most workers to do something.
        ledger.wait_for((round * batch).saturating_sub(batch / 2));
        let workers = daemon.workers();
        let number = random.usize(1..=count);
        let victim = workers[&number];
        kill(Pid::from_raw(victim), Signal::SIGKILL).expect("the worker runs");
        wait_until("the worker is replaced", PATIENCE, || {
            daemon.workers()[&number] != victim
        });
    }
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.wait_for_workers(count);
    assert!(zombies_of(daemon.pid()).is_empty());
    assert_eq!(descriptors_of(daemon.pid()).len(), descriptors);
    daemon.stop();
}

/// The supervisor is killed: nobody outlives it by a second.
fn nobody_outlives_the_supervisor(method: &str) {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[delay(600.0)], &[]))
        .method(method)
        .workers(4)
        .start();
    daemon.wait_for_workers(4);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    wait_until("work is in hand", PATIENCE, || redis.length("default") == 0);
    let family = daemon.family();
    daemon.signal(Signal::SIGKILL);
    let gone = || family.iter().all(|pid| !is_alive(*pid));
    wait_until("all processes are gone", Duration::from_secs(1), gone);
    drop(daemon);

    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

/// Workers that will not drain are killed, and what they held is back in its list.
fn a_stop_at_once_returns_the_claims(method: &str, signals: &[Signal], timeout: &str) {
    let redis = Redis::plain();
    let hole = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", hole.local_addr().expect("an address"));
    let stuck =
        json!({"module": "links.webhook", "options": {"webhook-urls": [url], "timeout": 600}});
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[("stuck", stuck)], &[]))
        .method(method)
        .workers(2)
        .lanes(2)
        .env("CONSERVER_DRAIN_TIMEOUT", timeout)
        .start();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    wait_until("work is in hand", PATIENCE, || redis.length("default") == 6);
    for signal in signals {
        let before = daemon.count_in_log("received");
        daemon.signal(*signal);
        wait_until("the signal is taken", PATIENCE, || {
            daemon.count_in_log("received") > before
        });
    }
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    let ledger = Ledger::of(&redis, &samples);
    ledger.is_split_between(&["default"]);
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
}

/// Makes a test of each function for each start method.
macro_rules! for_each_method {
    ($($method:ident),*) => { $(
        mod $method {
            use super::*;

            #[test]
            fn one_worker_starts_works_crashes_reloads_scales_and_drains() {
                start_process_crash_reload_scale_drain(stringify!($method), 1);
            }

            #[test]
            fn four_workers_start_work_crash_reload_scale_and_drain() {
                start_process_crash_reload_scale_drain(stringify!($method), 4);
            }

            #[test]
            fn many_kills_lose_nothing() {
                survives_many_kills(stringify!($method));
            }

            #[test]
            fn nobody_outlives_the_supervisor() {
                super::nobody_outlives_the_supervisor(stringify!($method));
            }

            #[test]
            fn a_second_sigterm_stops_at_once_and_returns_the_claims() {
                let signals = [Signal::SIGTERM, Signal::SIGTERM];
                a_stop_at_once_returns_the_claims(stringify!($method), &signals, "600");
            }

            #[test]
            fn sigquit_stops_at_once_and_returns_the_claims() {
                let signals = [Signal::SIGQUIT];
                a_stop_at_once_returns_the_claims(stringify!($method), &signals, "600");
            }

            #[test]
            fn the_end_of_the_drain_timeout_returns_the_claims() {
                let signals = [Signal::SIGTERM];
                a_stop_at_once_returns_the_claims(stringify!($method), &signals, "1");
            }
        }
    )* };
}

for_each_method!(fork, spawn, forkserver);

#[test]
fn the_forkserver_dies_and_its_workers_are_replaced() {
    let redis = Redis::plain();
    let config = chain(&[delay(0.01)], &[]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .method("forkserver")
        .workers(4)
        .start();
    let before = daemon.wait_for_workers(4);
    let samples = fresh(400);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    ledger.wait_for(20);
    let is_forkserver = |pid: &i32| name_of(*pid) == "conserver-fork";
    let forkserver = daemon.family().into_iter().find(is_forkserver);
    let forkserver = forkserver.expect("a forkserver");
    kill(Pid::from_raw(forkserver), Signal::SIGKILL).expect("it runs");
    daemon.wait_for_log(&format!("The forkserver (PID {forkserver}) died"), PATIENCE);
    let gone = || before.values().all(|pid| !is_alive(*pid));
    wait_until("its workers are gone", PATIENCE, gone);
    daemon.wait_for_workers(4);
    ledger.settles();
    assert!(zombies_of(daemon.pid()).is_empty());
    daemon.stop();
}

#[test]
fn spawned_workers_come_from_the_running_program_when_its_file_is_replaced() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("spawn")
        .workers(2);
    let program = conserver.folder().join("conserver");
    std::fs::copy(env!("CARGO_BIN_EXE_conserver"), &program).expect("a copy");
    let daemon = conserver.program(program.clone()).start();
    let before = daemon.wait_for_workers(2);
    std::fs::remove_file(&program).expect("a file");
    std::fs::write(&program, "not a program").expect("a file");
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until("the worker is replaced", PATIENCE, || {
        daemon.workers()[&1] != before[&1]
    });
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(daemon.count_in_log("died unexpectedly"), 1);
}
