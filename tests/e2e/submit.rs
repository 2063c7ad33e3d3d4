//! `conserver submit` and `conserver demo`.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Conserver, Finished, Ledger, PATIENCE, Redis, Sample, chain, children_of, processes_mentioning,
    same, wait_until, wait_until_gone,
};

const LIST: [&str; 2] = ["--list", "default"];

/// Fails unless Redis holds these vCons as the API server would have put them there.
fn is_submitted(redis: &Redis, samples: &[Sample]) {
    let mut listed = redis.list("default");
    listed.sort();
    let mut ids: Vec<String> = samples.iter().map(|sample| sample.id.clone()).collect();
    ids.sort();
    assert_eq!(listed, ids);
    for sample in samples {
        let kept = redis.document(&sample.id).expect("a document");
        assert!(
            same(&kept["parties"], &sample.document["parties"]),
            "{kept}"
        );
        let score: f64 = redis.ask(&["ZSCORE", "vcons", &format!("vcon:{}", sample.id)]);
        assert!((score - 1_710_605_360.0).abs() < 1.0, "{score}");
    }
}

fn ended_with(finished: &Finished, code: i32) {
    assert_eq!(finished.code, code, "{}", finished.output());
}

#[test]
fn a_file_is_submitted_and_processed() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let conserver = Conserver::with(&redis);
        let samples = [Sample::small()];
        let path = conserver.folder().join("one.json");
        fs::write(&path, samples[0].text()).expect("a file");
        let path = path.display().to_string();
        ended_with(&conserver.run(&["submit", &path, LIST[0], LIST[1]]), 0);
        is_submitted(&redis, &samples);
        let _daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
        Ledger::of(&redis, &samples).settles();
    }
}

#[test]
fn a_folder_is_submitted() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    let samples: Vec<Sample> = (0..5).map(|_| Sample::small()).collect();
    for sample in &samples {
        let path = folder.join(format!("{}.vcon.json", sample.id));
        fs::write(path, sample.text()).expect("a file");
    }
    ended_with(
        &conserver.run(&["submit", &folder.display().to_string(), LIST[0], LIST[1]]),
        0,
    );
    is_submitted(&redis, &samples);
}

#[test]
fn standard_input_is_submitted() {
    let redis = Redis::plain();
    let samples = [Sample::small()];
    let conserver = Conserver::with(&redis);
    ended_with(
        &conserver.run_with_input(&["submit", "-", LIST[0], LIST[1]], &samples[0].text()),
        0,
    );
    is_submitted(&redis, &samples);
}

#[test]
fn a_bad_file_is_named_and_the_others_are_submitted() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let samples = [Sample::small()];
    let texts = [
        ("broken.json", "{\"uuid\": ".to_owned()),
        ("list.json", "[]".to_owned()),
        (
            "nameless.json",
            "{\"uuid\": \"../x\", \"parties\": []}".to_owned(),
        ),
        ("good.json", samples[0].text()),
    ];
    let mut arguments = vec!["submit".to_owned()];
    for (name, text) in texts {
        let path = conserver.folder().join(name);
        fs::write(&path, text).expect("a file");
        arguments.push(path.display().to_string());
    }
    arguments.extend(LIST.map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let finished = conserver.run(&arguments);
    ended_with(&finished, 65);
    for name in ["broken.json", "list.json", "nameless.json"] {
        assert!(finished.stderr.contains(name), "{}", finished.stderr);
    }
    is_submitted(&redis, &samples);
}

#[test]
fn a_document_that_redis_refuses_is_named_and_the_others_are_submitted() {
    let redis = Redis::with_json();
    let conserver = Conserver::with(&redis);
    let (refused, taken) = (Sample::small(), [Sample::small(), Sample::small()]);
    let key = format!("vcon:{}", refused.id);
    redis.ask::<i64>(&["RPUSH", &key, "not a document"]);
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    for (name, sample) in [("a", &taken[0]), ("b", &refused), ("c", &taken[1])] {
        fs::write(folder.join(format!("{name}.json")), sample.text()).expect("a file");
    }
    let finished = conserver.run(&["submit", &folder.display().to_string(), LIST[0], LIST[1]]);
    ended_with(&finished, 65);
    assert!(finished.stderr.contains("b.json"), "{}", finished.stderr);
    assert!(
        finished.stdout.contains("Submitted 2 of 3 vCons"),
        "{}",
        finished.output()
    );
    is_submitted(&redis, &taken);
    assert_eq!(
        redis.ask::<Option<f64>>(&["ZSCORE", "vcons", &key]),
        None,
        "a vCon that was refused is announced"
    );
}

#[test]
fn submit_without_redis_says_so() {
    let redis = Redis::new();
    let conserver = Conserver::with(&redis);
    let finished =
        conserver.run_with_input(&["submit", "-", LIST[0], LIST[1]], &Sample::small().text());
    ended_with(&finished, 69);
}

#[test]
fn the_demo_needs_nothing_and_leaves_nothing_running() {
    let conserver = Conserver::without_redis();
    let finished = conserver.run(&["demo", "--count", "20", "--workers", "2"]);
    ended_with(&finished, 0);
    for word in ["vCons", "p50", "p99"] {
        assert!(
            finished.stdout.contains(word),
            "{word}: {}",
            finished.output()
        );
    }
    let folder = conserver.folder().display().to_string();
    assert_eq!(processes_mentioning(&folder), Vec::<i32>::new());
    let leftovers = ["sock", "rdb", "aof", "tmp"];
    let mut folders = vec![conserver.folder().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("a folder").flatten() {
            let path = entry.path();
            let name = path.display().to_string();
            assert!(!leftovers.iter().any(|end| name.ends_with(end)), "{name}");
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let conserver = Conserver::without_redis();
        let mut demo = conserver.spawn(&["demo", "--count", "2000", "--workers", "2"]);
        let demos = || {
            let entries = conserver.folder().read_dir().expect("a folder").flatten();
            let paths = entries.map(|entry| entry.path());
            let is_of_demo =
                |path: &PathBuf| path.display().to_string().contains("/conserver-demo-");
            paths.filter(is_of_demo).collect::<Vec<_>>()
        };
        wait_until("the daemon of the demo stores files", PATIENCE, || {
            demos().iter().any(|folder| folder.join("vcons").exists())
        });
        let pid = i32::try_from(demo.id()).expect("a PID");
        let (redis_and_daemon, daemons) = (children_of(pid), grandchildren_of(pid));
        kill(Pid::from_raw(pid), signal).expect("the demo runs");
        let status = demo.wait().expect("a child");
        assert!(!status.success(), "{status}");
        wait_until_gone(&redis_and_daemon);
        wait_until_gone(&daemons);
        assert_eq!(demos(), Vec::<PathBuf>::new());
    }
}

fn grandchildren_of(parent: i32) -> Vec<i32> {
    let children = children_of(parent);
    children.into_iter().flat_map(children_of).collect()
}

#[test]
fn a_list_that_no_chain_takes_from_is_said() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
    let path = conserver.folder().join("one.json");
    fs::write(&path, Sample::small().text()).expect("a file");
    let path = path.display().to_string();
    for (list, is_said) in [("nowhere", true), ("default", false)] {
        let finished = conserver.run(&["submit", &path, "--list", list]);
        ended_with(&finished, 0);
        let said = finished.stderr.contains("takes from list nowhere");
        assert_eq!(said, is_said, "{}", finished.output());
    }
}

#[test]
fn a_full_disk_does_not_undo_what_was_submitted() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let sample = Sample::small();
    let path = conserver.folder().join("one.json");
    fs::write(&path, sample.text()).expect("a file");
    let path = path.display().to_string();
    let full = fs::File::options().write(true).open("/dev/full");
    let full = full.expect("a device that is full");
    let finished = conserver.run_into(&["submit", &path, LIST[0], LIST[1]], full);
    ended_with(&finished, 0);
    assert!(
        finished.stderr.contains("No space left"),
        "{}",
        finished.output()
    );
    is_submitted(&redis, &[sample]);
}
