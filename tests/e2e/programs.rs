//! Programs as links: what they do to vCons, and that nothing of them is left behind.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Programs, Redis, Sample, chain, children_of,
    descriptors_of, exec, fresh, same, submit, wait_until, wait_until_gone, wait_until_reaped,
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
        let body = &document["analysis"][0]["body"];
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
    wait_until_reaped(&daemon);
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
    assert_eq!(children.len(), 2, "the program and the reaper");
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
    // It has looked, and sees what it was to see.
    assert!(names.contains(&"SEEN"), "{names:?}");
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
    let pids = programs.wait_for_pids(2);
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
