//! A link or storage that refuses every vCon for one reason is to blame itself: they wait until it takes
//! them. A vCon that is refused while others are taken is a dead letter.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Hook, Ledger, PATIENCE, Redis, Sample, chain, deferring, fresh, submit,
    wait_until,
};

const REFUSES: &str = "refuses one vCon after the other for the same reason";

fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
}

/// A configuration with the hook in it.
type Configure = fn(&Hook) -> Value;

fn as_link(hook: &Hook) -> Value {
    chain(&[("hook", hook.link())], &[])
}

fn as_storage(hook: &Hook) -> Value {
    chain(&[], &[("hook", hook.storage())])
}

fn is_held(daemon: &Daemon, stage: &str) -> bool {
    workers_that_hold(daemon, stage) > 0
}

fn workers_that_hold(daemon: &Daemon, stage: &str) -> usize {
    let holds = daemon.status().unwrap_or_default()["holds"].clone();
    let holds = holds.as_array().cloned().unwrap_or_default();
    let hold = holds.iter().find(|hold| hold["stage"] == stage);
    let workers = hold.and_then(|hold| hold["workers"].as_array());
    workers.map_or(0, Vec::len)
}

/// The hook answers these with a refusal, and takes all others.
fn refuses_some(hook: &Hook, bad: &[Sample]) {
    let bad: Vec<String> = bad.iter().map(|sample| sample.id.clone()).collect();
    hook.decides(move |id| {
        if bad.iter().any(|it| it == id) {
            422
        } else {
            200
        }
    });
}

/// All that were refused are back in the list, and are tried now and then.
fn all_wait(redis: &Redis, hook: &Hook, samples: &[Sample]) {
    let refused = hook.refused();
    wait_until("they are tried now and then", PATIENCE, || {
        hook.refused() >= refused + 5
    });
    wait_until("all are in the list", PATIENCE, || {
        redis.length("default") == samples.len()
    });
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
}

#[test]
fn a_webhook_that_refuses_everything_costs_no_dead_letter() {
    let kinds: [(&str, Configure); 2] = [("link hook", as_link), ("storage hook", as_storage)];
    for (stage, config) in kinds {
        for (workers, lanes) in [(1, 1), (1, 4), (2, 2)] {
            let (redis, hook, samples) = (Redis::plain(), Hook::new(), fresh(20));
            hook.answers(400);
            submit(&redis, "default", &samples);
            let conserver = conserver(&redis, &config(&hook)).workers(workers);
            let daemon = conserver.lanes(lanes).start();
            wait_until("every worker finds it", PATIENCE, || {
                workers_that_hold(&daemon, stage) == workers
            });
            all_wait(&redis, &hook, &samples);
            let told = daemon.count_in_log(&format!("{stage} {REFUSES}"));
            assert_eq!(told, 1, "{}", daemon.log());
            hook.answers(200);
            Ledger::of(&redis, &samples).settles();
            hook.has_taken_each(stage, &samples, 1);
            assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
            wait_until("no hold is shown", PATIENCE, || !is_held(&daemon, stage));
            daemon.stop();
        }
    }
}

#[test]
fn a_worker_that_has_nothing_left_to_try_goes_on_as_others_have_got_through() {
    let (redis, hook) = (Redis::plain(), Hook::new());
    hook.decides(|_| 401);
    let daemon = conserver(&redis, &as_link(&hook))
        .workers(2)
        .lanes(1)
        .start();
    let samples = fresh(6);
    submit(&redis, "default", &samples);
    wait_until("both workers hold it", PATIENCE, || {
        workers_that_hold(&daemon, "link hook") == 2
    });
    let late = daemon.workers()[&2];
    let send = |signal| kill(Pid::from_raw(late), signal).expect("the worker runs");
    wait_until("one is stopped with nothing in hand", PATIENCE, || {
        send(Signal::SIGSTOP);
        let is_idle = daemon.status().unwrap_or_default()["workers"][1]["lanes"] == json!([]);
        if !is_idle {
            send(Signal::SIGCONT);
        }
        is_idle
    });
    hook.decides(|_| 200);
    wait_until("the other one has done all", PATIENCE, || {
        redis.length("done") == samples.len()
    });
    send(Signal::SIGCONT);
    wait_until("nothing is held any more", PATIENCE, || {
        !is_held(&daemon, "link hook")
    });
    assert_eq!(daemon.workers()[&2], late);
    Ledger::of(&redis, &samples).settles();
    daemon.wait_for_log("link hook works again after", PATIENCE);
    daemon.stop();
}

#[test]
fn bad_vcons_that_come_together_hold_up_the_good_ones_until_the_first_of_those() {
    let kinds: [Configure; 2] = [as_link, as_storage];
    for config in kinds {
        for lanes in [1, 4] {
            let (redis, hook, samples) = (Redis::plain(), Hook::new(), fresh(15));
            let (bad, good) = samples.split_at(5);
            refuses_some(&hook, bad);
            submit(&redis, "default", &samples);
            let daemon = conserver(&redis, &config(&hook)).lanes(lanes).start();
            wait_until("the good ones are done", PATIENCE, || {
                redis.length("done") == good.len()
            });
            wait_until("the bad ones are dead letters", PATIENCE, || {
                redis.length("DLQ:default") == bad.len()
            });
            hook.has_taken_each("the hook", good, 1);
            let mut dead = redis.list("DLQ:default");
            let mut expected: Vec<String> = bad.iter().map(|it| it.id.clone()).collect();
            dead.sort_unstable();
            expected.sort_unstable();
            assert_eq!(dead, expected);
            wait_until("nothing is held", PATIENCE, || {
                redis.length("default") == 0
                    && !is_held(&daemon, "link hook")
                    && !is_held(&daemon, "storage hook")
            });
            daemon.stop();
        }
    }
}

#[test]
fn bad_vcons_among_good_ones_are_dead_letters_and_nothing_is_held() {
    let (redis, hook, samples) = (Redis::plain(), Hook::new(), fresh(60));
    let bad: Vec<Sample> = samples.iter().step_by(3).cloned().collect();
    refuses_some(&hook, &bad);
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &as_storage(&hook)).lanes(1).start();
    wait_until("all are done or dead", PATIENCE, || {
        redis.length("done") == samples.len() - bad.len()
            && redis.length("DLQ:default") == bad.len()
    });
    assert_eq!(hook.refused(), bad.len());
    assert_eq!(daemon.count_in_log(REFUSES), 0);
    daemon.stop();
}

#[test]
fn bad_vcons_that_are_left_alone_are_dead_letters_after_the_next_good_one() {
    let (redis, hook, bad, good) = (Redis::plain(), Hook::new(), fresh(4), fresh(1));
    refuses_some(&hook, &bad);
    submit(&redis, "default", &bad);
    let daemon = conserver(&redis, &as_storage(&hook)).lanes(2).start();
    daemon.wait_for_log(REFUSES, PATIENCE);
    all_wait(&redis, &hook, &bad);
    submit(&redis, "default", &good);
    wait_until("all are done or dead", PATIENCE, || {
        redis.length("done") == good.len() && redis.length("DLQ:default") == bad.len()
    });
    daemon.stop();
}

#[test]
fn bad_vcons_of_one_list_do_not_hold_up_those_of_another() {
    let (redis, hook, bad, good) = (Redis::plain(), Hook::new(), fresh(6), fresh(6));
    refuses_some(&hook, &bad);
    let mut config = as_storage(&hook);
    let mut other = config["chains"]["main"].clone();
    other["ingress_lists"] = json!(["other"]);
    config["chains"]["other"] = other;
    submit(&redis, "default", &bad);
    let daemon = conserver(&redis, &config).lanes(2).start();
    daemon.wait_for_log(REFUSES, PATIENCE);
    all_wait(&redis, &hook, &bad);
    submit(&redis, "other", &good);
    wait_until("all are done or dead", PATIENCE, || {
        redis.length("done") == good.len() && redis.length("DLQ:default") == bad.len()
    });
    daemon.stop();
}

#[test]
fn one_or_two_bad_vcons_are_dead_letters_at_once() {
    let (redis, hook, bad) = (Redis::plain(), Hook::new(), fresh(2));
    hook.answers(400);
    submit(&redis, "default", &bad);
    let daemon = conserver(&redis, &as_link(&hook)).start();
    wait_until("both are dead letters", PATIENCE, || {
        redis.length("DLQ:default") == bad.len()
    });
    assert_eq!(hook.refused(), bad.len());
    daemon.stop();
}

#[test]
fn what_a_deferring_storage_refuses_without_exception_is_its_backlog() {
    let (redis, hook, other, samples) = (Redis::plain(), Hook::new(), Hook::new(), fresh(20));
    hook.answers(400);
    let storages = [
        ("hook", deferring(hook.storage())),
        ("other", other.storage()),
    ];
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[], &storages)).lanes(2).start();
    wait_until("all are announced", PATIENCE, || {
        redis.length("done") == samples.len()
    });
    daemon.wait_for_log(REFUSES, PATIENCE);
    let refused = hook.refused();
    wait_until("the backlog is tried", PATIENCE, || {
        hook.refused() >= refused + 5
    });
    assert_eq!(redis.keys("conserver:dlq:*"), Vec::<String>::new());
    hook.answers(200);
    wait_until("the backlog is gone", PATIENCE, || {
        redis.keys("DLQ:*").is_empty() && redis.keys("conserver:claims:*").is_empty()
    });
    hook.has_taken_each("the storage", &samples, 1);
    other.has_taken_each("the other", &samples, 1);
    daemon.stop();
}

#[test]
fn a_storage_that_refuses_while_another_takes_all_holds_the_rest() {
    let (redis, hook, other, samples) = (Redis::plain(), Hook::new(), Hook::new(), fresh(20));
    hook.answers(400);
    let storages = [("hook", hook.storage()), ("other", other.storage())];
    submit(&redis, "default", &samples);
    let daemon = conserver(&redis, &chain(&[], &storages)).lanes(1).start();
    daemon.wait_for_log(REFUSES, PATIENCE);
    let refused = hook.refused();
    wait_until("they are tried now and then", PATIENCE, || {
        hook.refused() >= refused + 25
    });
    // These are stored, and known as not stored here.
    let dead = redis.length("DLQ:storage:hook");
    assert_eq!((dead, redis.length("done")), (2, 2));
    assert_eq!(redis.length("DLQ:default"), 0);
    hook.answers(200);
    Ledger::of(&redis, &samples).settles();
    other.has_taken_each("the other", &samples, 1);
    let finished = daemon.conserver().run(&["dlq", "retry", "storage:hook"]);
    assert_eq!(finished.code, 0, "{}", finished.output());
    hook.has_taken_each("the storage", &samples, 1);
    daemon.stop();
}
