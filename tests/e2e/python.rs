//! Link modules of the Python worker, unchanged, beside links of our own.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Hook, Ledger, PATIENCE, Programs, REDIS_PASSWORD, Redis, Sample, chain,
    command_line_of, fresh, is_alive, processes_mentioning, same, submit, wait_until,
    wait_until_reaped,
};

/// A link with state: each interpreter counts its vCons, and writes into each what it finds there.
const COUNTING: &str = r#"
import os
import store

count = 0

def run(vcon_uuid, link_name, opts):
    global count
    count += 1
    print("at", vcon_uuid)
    vcon = store.load(vcon_uuid)
    tags = [a["body"] for a in vcon["attachments"] if a.get("purpose") == "tags"]
    body = {"n": count, "pid": os.getpid(), "link": link_name, "opts": opts, "tags": tags}
    vcon.setdefault("analysis", []).append({"type": "count", "body": body})
    store.save(vcon_uuid, vcon)
    return vcon_uuid
"#;

/// A link that does what the subject says.
const DECIDING: &str = r#"
import os, subprocess, sys, time
import store

def run(vcon_uuid, link_name, opts):
    vcon = store.load(vcon_uuid)
    vcon["seen"] = True
    store.save(vcon_uuid, vcon)
    subject = vcon.get("subject")
    if subject == "halts":
        return None
    if subject == "goes":
        return opts["other"]
    if subject == "raises":
        raise RuntimeError("no hope for it")
    if subject == "exits":
        sys.exit(3)
    if subject == "hangs":
        child = subprocess.Popen(["sleep", "1000"])
        with open(opts["pids"], "a") as file:
            print(os.getpid(), file=file)
            print(child.pid, file=file)
        time.sleep(1000)
    if subject == "leaves":
        child = subprocess.Popen(["sleep", "1000"])
        with open(opts["pids"], "a") as file:
            print(child.pid, file=file)
    return vcon_uuid
"#;

fn sample(subject: &str) -> Sample {
    let mut sample = Sample::small();
    sample.document["subject"] = subject.into();
    sample
}

/// What the counting link has put into a document.
fn counted(document: &Value) -> Value {
    let parts = document["analysis"].as_array().expect("a list");
    let part = parts.iter().find(|part| part["type"] == "count");
    let body = &part.expect("a count")["body"];
    match body {
        Value::String(text) => serde_json::from_str(text).expect("JSON"),
        body => body.clone(),
    }
}

fn a_link_with_state_sees_and_changes_every_vcon(redis: &Redis) {
    let (files, programs) = (Files::new(), Programs::new());
    let env = if redis.has_json() {
        json!({"JSON": "1"})
    } else {
        json!({})
    };
    let more = json!({"env": env, "prompt": "p", "top": 0.5});
    let counting = programs.python("counting", COUNTING, &more);
    let after = json!({"module": "links.tag", "options": {"tags": ["after"]}});
    let links = [("counts", counting), ("after", after)];
    let samples = fresh(400);
    let daemon = Conserver::with(redis)
        .config(&chain(&links, &[("files", files.storage())]))
        .workers(4)
        .lanes(4)
        .start();
    submit(redis, "default", &samples);
    Ledger::of(redis, &samples).settles();
    let mut seen = std::collections::BTreeMap::<u64, Vec<u64>>::new();
    for (id, document) in files.documents() {
        let count = counted(&document);
        assert_eq!(count["link"], "counts");
        assert_eq!(count["opts"], json!({"prompt": "p", "top": 0.5}));
        // What the link before it did was there to be read, and what it wrote is what the next
        // one worked on.
        assert!(
            count["tags"].to_string().contains("checked:checked"),
            "{count}"
        );
        assert!(document["attachments"].to_string().contains("after:after"));
        assert!(same(&document, &redis.document(&id).expect("a document")));
        let number = |key: &str| count[key].as_u64().expect("a number");
        seen.entry(number("pid")).or_default().push(number("n"));
    }
    assert!(
        (1..=16).contains(&seen.len()),
        "{} interpreters",
        seen.len()
    );
    // Each interpreter has counted its own, and each of its numbers has come once.
    for numbers in seen.values_mut() {
        numbers.sort_unstable();
        assert!(
            numbers.iter().copied().eq(1..=numbers.len() as u64),
            "{numbers:?}"
        );
    }
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), samples.len());
    wait_until_reaped(&daemon);
    daemon.stop();
    let folder = programs.folder().display().to_string();
    assert_eq!(processes_mentioning(&folder), Vec::<i32>::new());
}

#[test]
fn a_link_with_state_sees_and_changes_every_vcon_of_redis_with_json() {
    a_link_with_state_sees_and_changes_every_vcon(&Redis::with_json());
}

#[test]
fn a_link_with_state_sees_and_changes_every_vcon_of_redis_without_json() {
    a_link_with_state_sees_and_changes_every_vcon(&Redis::plain());
}

#[test]
fn what_a_module_writes_is_what_the_next_link_gets() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let (hook, programs) = (Hook::new(), Programs::new());
        let env = if redis.has_json() {
            json!({"JSON": "1"})
        } else {
            json!({})
        };
        let counting = programs.python("counting", COUNTING, &json!({"env": env}));
        let links = [("counts", counting), ("hook", hook.link())];
        let samples = fresh(4);
        let daemon = Conserver::with(&redis).config(&chain(&links, &[])).start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        hook.has_taken_each("the next link", &samples, 1);
        for (call, n) in hook.calls().iter().zip(1..) {
            assert_eq!(counted(&call.document)["n"], n);
        }
        daemon.stop();
    }
}

#[test]
fn a_link_ends_the_chain_goes_over_fails_and_is_killed_at_its_limit() {
    let (redis, files, programs) = (Redis::plain(), Files::new(), Programs::new());
    let other = Sample::small();
    submit(&redis, "elsewhere", std::slice::from_ref(&other));
    let pids = programs.folder().join("pids");
    let more = json!({"timeout": 5, "other": other.id, "pids": pids});
    let link = programs.python("deciding", DECIDING, &more);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("decides", link)], &[("files", files.storage())]))
        .lanes(2)
        .start();
    let subjects = ["halts", "goes", "raises", "exits", "hangs", "leaves"];
    let samples = subjects.map(sample);
    let [halts, goes, raises, exits, hangs, leaves] = samples.clone();
    submit(&redis, "default", &samples);
    wait_until("all have ended", PATIENCE, || {
        redis.length("done") == 2
            && redis.length("DLQ:default") == 3
            && redis.length("default") == 0
    });
    let mut dead = redis.list("DLQ:default");
    dead.sort();
    let mut expected = [&raises, &exits, &hangs].map(|sample| sample.id.clone());
    expected.sort();
    assert_eq!(dead, expected);
    for (sample, reason) in [
        (&raises, "RuntimeError: no hope for it"),
        (&exits, "SystemExit: 3"),
        (&hangs, "`deciding` was killed at its time limit of 5 s"),
    ] {
        let shown = daemon.conserver().run(&["dlq", "show", &sample.id]).stdout;
        assert!(shown.contains(reason), "{shown}");
    }
    let mut done = redis.list("done");
    done.sort();
    let mut expected = [other.id, leaves.id.clone()];
    expected.sort();
    assert_eq!(done, expected);
    // What it wrote stays, however the link ended.
    for sample in [&halts, &goes, &raises, &leaves] {
        let document = redis.document(&sample.id).expect("a document");
        assert_eq!(document["seen"], true, "{document}");
        assert!(
            document.to_string().contains("checked:checked"),
            "{document}"
        );
    }
    let stored: Vec<String> = files.documents().into_iter().map(|(id, _)| id).collect();
    assert!(
        !stored.contains(&halts.id) && stored.len() == 2,
        "{stored:?}"
    );
    daemon.stop();
    let left: Vec<i32> = programs
        .lines("pids")
        .iter()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    assert_eq!(left.len(), 3);
    wait_until("nothing is left of it", PATIENCE, || {
        left.iter().all(|pid| !is_alive(*pid))
    });
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed_while_links_work() {
    let (redis, files, programs) = (Redis::plain(), Files::new(), Programs::new());
    let counting = programs.python("counting", COUNTING, &json!({}));
    let config = chain(&[("counts", counting)], &[("files", files.storage())]);
    let samples = fresh(300);
    submit(&redis, "default", &samples);
    let ledger = Ledger::of(&redis, &samples);
    let conserver = Conserver::with(&redis).config(&config).workers(2).lanes(2);
    let daemon = conserver.start();
    ledger.wait_for(30);
    let family = daemon.family();
    daemon.signal(Signal::SIGKILL);
    wait_until("the whole family is gone", PATIENCE, || {
        family.iter().skip(1).all(|pid| !is_alive(*pid))
    });
    let daemon = daemon.conserver().launch_again();
    ledger.settles();
    assert_eq!(files.paths().len(), samples.len());
    daemon.stop();
}

#[test]
fn vcons_wait_for_a_module_that_cannot_be_imported() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let link = programs.python("counting", "import of_no_such_name", &json!({}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("counts", link)], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start();
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(
        "link counts is away, on hold until it is back: chain main",
        PATIENCE,
    );
    assert!(
        daemon.log().contains("No module named 'of_no_such_name'"),
        "{}",
        daemon.log()
    );
    programs.write("counting.py", COUNTING);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn the_password_of_redis_reaches_the_module_and_nobody_else() {
    let (redis, programs) = (Redis::new().locked().started(), Programs::new());
    let text = format!(
        "{COUNTING}\n_run = run\ndef run(uuid, name, opts):\n    _run(uuid, name, opts)\n    \
         raise RuntimeError(os.environ['REDIS_URL'])\n"
    );
    let link = programs.python("telling", &text, &json!({}));
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("tells", link)], &[]))
        .env("LOG_LEVEL", "DEBUG")
        .start();
    let sample = Sample::small();
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it has failed", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let shown = daemon
        .conserver()
        .run(&["dlq", "show", &sample.id])
        .output();
    assert!(shown.contains("RuntimeError: redis://***"), "{shown}");
    for text in [shown, daemon.output()] {
        assert!(!text.contains(REDIS_PASSWORD), "{text}");
    }
    let lines: Vec<String> = daemon.family().into_iter().map(command_line_of).collect();
    assert!(
        lines.iter().any(|line| line.ends_with(" telling")),
        "{lines:?}"
    );
    assert!(!lines.concat().contains(REDIS_PASSWORD), "{lines:?}");
    daemon.stop();
}
