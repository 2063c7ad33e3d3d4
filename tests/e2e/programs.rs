//! Programs as links: what they do to vCons, and that nothing of them is left behind.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, LINGERING, Ledger, PATIENCE, Programs, Redis, Sample, chain,
    children_of, descriptors_of, fresh, is_alive, same, submit, title_of, wait_until, zombies_of,
};

/// A program that puts the number of its vCons so far into each.
const COUNTING: &str = r#"
import json, sys
count = 0
for line in sys.stdin:
    request = json.loads(line)
    vcon, count = request["vcon"], count + 1
    vcon["analysis"] = vcon.get("analysis", []) + [
        {"type": "count", "body": {"n": count, "link": request["link"], "by": request["options"]["by"]}}
    ]
    print(json.dumps({"vcon": vcon}), flush=True)
"#;

fn exec(options: &Value) -> Value {
    json!({"module": "links.exec", "options": options})
}

/// The processes that a program has written down, running or not.
fn pids(programs: &Programs) -> Vec<i32> {
    let lines = programs.lines("pids");
    lines
        .iter()
        .map(|line| line.parse().expect("a PID"))
        .collect()
}

/// Waits until so many processes are written down.
fn wait_for_pids(programs: &Programs, count: usize) -> Vec<i32> {
    let what = format!("{count} processes have begun");
    wait_until(&what, PATIENCE, || pids(programs).len() >= count);
    pids(programs)
}

fn wait_until_gone(pids: &[i32]) {
    let gone = || pids.iter().all(|pid| !is_alive(*pid));
    wait_until(&format!("{pids:?} are gone"), PATIENCE, gone);
}

fn no_process_waits_to_be_reaped(daemon: &Daemon) {
    wait_until("every process is reaped", PATIENCE, || {
        daemon
            .family()
            .iter()
            .all(|pid| zombies_of(*pid).is_empty())
    });
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
    let found = || pids(programs).len();
    wait_until("each lane has its program", PATIENCE, || {
        submit(redis, "default", &fresh(8));
        found() >= 8
    });
    wait_until("all vCons are done", PATIENCE, || {
        redis.length("default") == 0 && redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(found(), 8);
    (daemon, pids(programs))
}

#[test]
fn programs_of_both_modes_change_every_vcon_under_load() {
    let (redis, files, programs) = (Redis::with_json(), Files::new(), Programs::new());
    let counting = programs.write("counting.py", COUNTING);
    let links = [
        (
            "marker",
            exec(&json!({"command": ["sed", r#"s/"subject":/"was":1,&/"#]})),
        ),
        (
            "counter",
            exec(
                &json!({"command": ["python3", counting], "mode": "stream", "options": {"by": 7}}),
            ),
        ),
        (
            "last",
            exec(&json!({"command": ["sh", "-c", "cat >/dev/null"]})),
        ),
    ];
    let samples: Vec<Sample> = (0..400).map(|_| Sample::small()).collect();
    let daemon = Conserver::with(&redis)
        .config(&chain(&links, &[("files", files.storage())]))
        .workers(4)
        .lanes(4)
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let mut counts = Vec::new();
    for (id, document) in files.documents() {
        assert_eq!(document["was"], 1, "{document}");
        assert_eq!(document["uuid"], id.as_str());
        let body = document["analysis"][0]["body"].as_str().expect("JSON text");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&body["link"], &body["by"]), (&json!("counter"), &json!(7)));
        counts.push(body["n"].as_u64().expect("a number"));
        assert!(same(&document, &redis.document(&id).expect("a document")));
    }
    assert_eq!(counts.len(), samples.len());
    // Each lane's program has counted for itself: each number is there once for every lane that
    // has come so far.
    let most = usize::try_from(*counts.iter().max().expect("some")).expect("small");
    let with = |n: usize| counts.iter().filter(|c| **c == n as u64).count();
    assert!(with(1) <= 16, "{counts:?}");
    assert!((2..=most).all(|n| with(n) <= with(n - 1)), "{counts:?}");
    no_process_waits_to_be_reaped(&daemon);
    daemon.stop();
}

#[test]
fn halting_switching_and_failing_programs_have_their_way() {
    let (redis, files, programs) = (Redis::plain(), Files::new(), Programs::new());
    let other = Sample::small();
    submit(&redis, "elsewhere", std::slice::from_ref(&other));
    let text = format!(
        "while read -r line; do case $line in \
         *halts*) echo '{{\"halt\":true}}';; \
         *goes*) echo '{{\"uuid\":\"{}\"}}';; \
         *fails*) echo '{{\"error\":\"no hope for it\"}}';; \
         *dies*) echo \"$line\" >>\"$TRIES\"; [ \"$(wc -l <\"$TRIES\")\" -gt 1 ] || exit 3; echo '{{}}';; \
         *) echo '{{}}';; esac; done",
        other.id
    );
    let program = programs.shell("decides", &text);
    let tries = programs.folder().join("tries");
    let options = json!({"command": [program], "mode": "stream", "env": {"TRIES": tries}});
    let config = chain(
        &[("decides", exec(&options))],
        &[("files", files.storage())],
    );
    let daemon = Conserver::with(&redis).config(&config).start();
    let sample = |subject: &str| {
        let mut sample = Sample::small();
        sample.document["subject"] = subject.into();
        sample
    };
    let [halts, goes, fails, dies] = ["halts", "goes", "fails", "dies"].map(sample);
    submit(
        &redis,
        "default",
        &[halts.clone(), goes, fails.clone(), dies.clone()],
    );
    wait_until("two are done, one has failed", PATIENCE, || {
        redis.length("done") == 2
            && redis.length("DLQ:default") == 1
            && redis.length("default") == 0
    });
    assert_eq!(redis.list("done"), [other.id, dies.id]);
    assert_eq!(redis.list("DLQ:default"), [fails.id.as_str()]);
    let reason = daemon.conserver().run(&["dlq", "show", &fails.id]).stdout;
    assert!(
        reason.contains("no hope for it") && reason.contains("link decides"),
        "{reason}"
    );
    assert_eq!(files.paths().len(), 2);
    assert!(
        !files
            .paths()
            .iter()
            .any(|path| path.ends_with(format!("{}.json", halts.id)))
    );
    assert_eq!(programs.lines("tries").len(), 2);
    daemon.stop();
}

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
    wait_until_gone(&wait_for_pids(&programs, 2));
    let reason = daemon.conserver().run(&["dlq", "show", &sample.id]).stdout;
    assert!(reason.contains("time limit of 0.5 s: working"), "{reason}");
    no_process_waits_to_be_reaped(&daemon);
    daemon.stop();
}

#[test]
fn nothing_is_left_of_programs_after_the_drain() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (mut daemon, pids) = with_lingering(&redis, &programs);
    let family = daemon.family();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    // Before the supervisor ends, not some time after it.
    let left: Vec<&i32> = pids
        .iter()
        .chain(&family)
        .filter(|pid| is_alive(**pid))
        .collect();
    assert!(left.is_empty(), "{left:?}");
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
    let warden = children_of(workers[&1]);
    let warden = warden.iter().find(|pid| title_of(**pid).contains("warden"));
    let warden = *warden.expect("a warden");
    kill(Pid::from_raw(workers[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until_gone(&killed);
    wait_until_gone(&[warden]);
    assert!(kept.iter().all(|pid| is_alive(*pid)));
    daemon.wait_for_workers(2);
    no_process_waits_to_be_reaped(&daemon);
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
fn a_warden_that_is_killed_is_replaced_and_knows_what_it_is_to_watch() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (daemon, pids) = with_lingering(&redis, &programs);
    let workers = daemon.wait_for_workers(2);
    let wardens = || -> Vec<i32> {
        let children = workers.values().flat_map(|pid| children_of(*pid));
        children
            .filter(|pid| is_alive(*pid) && title_of(*pid).contains("warden"))
            .collect()
    };
    let first = wardens();
    assert_eq!(first.len(), 2);
    for pid in &first {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the warden runs");
    }
    wait_until_gone(&first);
    // The leaders end, and are started again.
    for pid in pids
        .iter()
        .filter(|pid| nix::unistd::getpgid(Some(Pid::from_raw(**pid))) == Ok(Pid::from_raw(**pid)))
    {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the program runs");
    }
    wait_until("new programs and wardens have begun", PATIENCE, || {
        submit(&redis, "default", &fresh(4));
        wardens().len() == 2 && self::pids(&programs).len() >= 12
    });
    daemon.kill_family();
    wait_until_gone(&self::pids(&programs));
}

#[test]
fn a_program_gets_no_descriptor_and_no_variable_of_the_daemons() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let text = "env >\"$SEEN\"; while read -r line; do echo '{}'; done";
    let program = programs.shell("looks", text);
    let seen = programs.folder().join("seen");
    let options = json!({"command": [program], "mode": "stream", "env": {"SEEN": seen}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("looks", exec(&options))], &[]))
        .start();
    let samples = [Sample::small()];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let worker = daemon.wait_for_workers(1)[&1];
    let children = children_of(worker);
    assert_eq!(children.len(), 2, "the program and the warden");
    for pid in children {
        let found = descriptors_of(pid);
        // A shell keeps its script open.
        assert!(found.iter().all(|it| it.ends_with("/looks")), "{found:?}");
    }
    let mut names: Vec<String> = programs.lines("seen");
    names.retain(|line| !line.starts_with("PWD=") && !line.starts_with("_="));
    let names: Vec<&str> = names
        .iter()
        .filter_map(|line| line.split('=').next())
        .collect();
    let known = ["PATH", "HOME", "LANG", "SEEN", "SHLVL", "OLDPWD"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
    daemon.stop();
}

#[test]
fn vcons_wait_for_a_program_that_is_not_there() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let program = programs.folder().join("later");
    let options = json!({"command": [program]});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("later", exec(&options))], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start();
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(
        "link later is away, on hold until it is back: chain main",
        PATIENCE,
    );
    assert!(
        daemon.log().contains("No such file or directory"),
        "{}",
        daemon.log()
    );
    programs.shell("later", "cat");
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn a_stop_lets_programs_finish_and_puts_back_what_takes_too_long() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let text = "echo $$ >>\"$PIDS\"; grep -q quick || exec sleep 1000; sleep 0.5";
    let program = programs.shell("mixed", text);
    let file = programs.folder().join("pids");
    let options = json!({"command": [program], "timeout": 900, "env": {"PIDS": file}});
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[("mixed", exec(&options))], &[]))
        .lanes(2)
        .env("CONSERVER_DRAIN_TIMEOUT", "10")
        .start();
    let (mut quick, slow) = (Sample::small(), Sample::small());
    quick.document["subject"] = "quick".into();
    submit(&redis, "default", &[slow.clone(), quick.clone()]);
    let pids = wait_for_pids(&programs, 2);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert_eq!(redis.list("done"), [quick.id]);
    assert_eq!(redis.list("default"), [slow.id.as_str()]);
    let log = daemon.log();
    assert!(
        log.contains(&format!("Returned {} to the head", slow.id)),
        "{log}"
    );
    assert!(!log.contains("has not ended in time"), "{log}");
    wait_until_gone(&pids);
}

#[test]
fn what_a_program_says_is_logged_and_what_it_was_given_in_secret_is_not() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let program = programs.shell("tells", "echo \"one $WORD\" >&2; echo two >&2; exit 3");
    let options = json!({"command": [program], "env": {"WORD": "GeheimesProgrammWort"}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("tells", exec(&options))], &[]))
        .env("LOG_LEVEL", "DEBUG")
        .start();
    let sample = Sample::small();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it has failed", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let reason = daemon.conserver().run(&["dlq", "show", &sample.id]).stdout;
    assert!(reason.contains("exit code 3: one *** | two"), "{reason}");
    daemon.wait_for_log("tells: one ***", Duration::from_secs(20));
    assert!(!daemon.output().contains("Geheimes"));
    daemon.stop();
}
