//! Deaths: of a worker, of the supervisor.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, chain, delay, fresh, is_alive, submit, wait_until,
    zombies_of,
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
