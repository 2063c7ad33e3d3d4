//! Nothing of a program outlives its work, its worker or its daemon.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, LINGERING, PATIENCE, Programs, Redis, Sample, chain, children_of,
    command_line_of, exec, fresh, is_alive, submit, wait_until, wait_until_gone, wait_until_reaped,
};

#[test]
fn a_program_at_its_limit_is_killed_with_what_it_has_started() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let program = programs.shell("slow", &format!("{LINGERING}\necho working >&2; wait"));
    let file = programs.folder().join("pids");
    let options = json!({"command": [program], "timeout": 0.5, "env": {"PIDS": file}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("slow", exec(&options))], &[]))
        .start();
    let sample = Sample::small();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it has failed", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    wait_until_gone(&programs.wait_for_pids(2));
    let reason = daemon.conserver().run(&["dlq", "show", &sample.id]).stdout;
    assert!(reason.contains("time limit of 0.5 s: working"), "{reason}");
    wait_until_reaped(&daemon);
    daemon.stop();
}

#[test]
fn a_program_that_is_killed_with_each_vcon_makes_a_dead_letter_of_it_after_longer_and_longer_pauses()
 {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let program = programs.shell("dies", "date +%s%3N >>\"$RUNS\"; kill -9 $$");
    let runs = programs.folder().join("runs");
    let options = json!({"command": [program], "env": {"RUNS": runs}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("dies", exec(&options))], &[]))
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .env("CONSERVER_MAX_ROUNDS", "4")
        .start();
    submit(&redis, "default", &[Sample::small()]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let runs = std::fs::read_to_string(runs).expect("its runs");
    let times: Vec<u64> = runs
        .lines()
        .map(|time| time.parse().expect("a time"))
        .collect();
    // More than the fewest rounds: it has to go on for 300 of the longest pauses.
    assert!((5..40).contains(&times.len()), "{times:?}");
    assert!(times[times.len() - 1] - times[0] > 5_500, "{times:?}");
    // At least half of 20, 40, 80, 160 and 320 ms.
    for (pause, least) in times.windows(2).zip([10, 20, 40, 80, 160]) {
        assert!(pause[1] - pause[0] >= least, "{times:?}");
    }
    daemon.stop();
}

/// A program that stays, with a child that lingers, in each lane.
fn lingering(programs: &Programs) -> Value {
    let text = format!("{LINGERING}\nwhile read -r line; do echo '{{}}'; done");
    let program = programs.shell("lingering", &text);
    let file = programs.folder().join("pids");
    exec(&json!({"command": [program], "mode": "stream", "env": {"PIDS": file}}))
}

/// A daemon, two workers of two lanes each, in which each lane has its program.
fn with_lingering(redis: &Redis, programs: &Programs) -> (Daemon, Vec<i32>) {
    let daemon = Conserver::with(redis)
        .config(&chain(&[("stays", lingering(programs))], &[]))
        .workers(2)
        .lanes(2)
        .start();
    daemon.wait_for_workers(2);
    let found = || programs.pids().len();
    wait_until("each lane has its program", PATIENCE, || {
        submit(redis, "default", &fresh(8));
        found() >= 8
    });
    wait_until("all vCons are done", PATIENCE, || {
        redis.length("default") == 0 && redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(found(), 8);
    (daemon, programs.pids())
}

#[test]
fn nothing_is_left_of_programs_after_the_drain() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (mut daemon, pids) = with_lingering(&redis, &programs);
    let family = daemon.family();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    wait_until_gone(&pids);
    wait_until_gone(&family);
}

#[test]
fn nothing_is_left_of_the_programs_of_a_worker_that_is_killed() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (daemon, pids) = with_lingering(&redis, &programs);
    let workers = daemon.wait_for_workers(2);
    let theirs = |worker: i32| -> Vec<i32> {
        let started = children_of(worker);
        let within = |pid: &&i32| {
            let leader = nix::unistd::getpgid(Some(Pid::from_raw(**pid)));
            leader.is_ok_and(|leader| started.contains(&leader.as_raw()))
        };
        pids.iter().filter(within).copied().collect()
    };
    let (killed, kept) = (theirs(workers[&1]), theirs(workers[&2]));
    assert_eq!((killed.len(), kept.len()), (4, 4));
    let reaper = children_of(workers[&1]);
    let reaper = reaper
        .iter()
        .find(|pid| command_line_of(**pid).contains("reaper"));
    let reaper = *reaper.expect("a reaper");
    kill(Pid::from_raw(workers[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until_gone(&killed);
    wait_until_gone(&[reaper]);
    assert!(kept.iter().all(|pid| is_alive(*pid)));
    daemon.wait_for_workers(2);
    wait_until_reaped(&daemon);
    daemon.stop();
    wait_until_gone(&kept);
}

#[test]
fn nothing_is_left_of_programs_when_the_supervisor_is_killed() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (mut daemon, pids) = with_lingering(&redis, &programs);
    let family = daemon.family();
    daemon.signal(Signal::SIGKILL);
    assert_eq!(daemon.wait_exit(PATIENCE), -1);
    wait_until_gone(&pids);
    wait_until_gone(&family);
}

#[test]
fn a_reaper_that_is_killed_is_replaced_and_knows_what_it_is_to_watch() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (daemon, pids) = with_lingering(&redis, &programs);
    let workers = daemon.wait_for_workers(2);
    let reapers = || -> Vec<i32> {
        let children = workers.values().flat_map(|pid| children_of(*pid));
        children
            .filter(|pid| is_alive(*pid) && command_line_of(*pid).contains("reaper"))
            .collect()
    };
    let first = reapers();
    assert_eq!(first.len(), 2);
    for pid in &first {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the reaper runs");
    }
    wait_until_gone(&first);
    // The leaders end, and are started again.
    for pid in pids
        .iter()
        .filter(|pid| nix::unistd::getpgid(Some(Pid::from_raw(**pid))) == Ok(Pid::from_raw(**pid)))
    {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the program runs");
    }
    wait_until("new programs and reapers have begun", PATIENCE, || {
        submit(&redis, "default", &fresh(4));
        reapers().len() == 2 && programs.pids().len() >= 12
    });
    daemon.kill_family();
    wait_until_gone(&programs.pids());
}
