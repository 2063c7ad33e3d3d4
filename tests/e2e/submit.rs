//! `conserver submit` and `conserver demo`.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Finished, Ledger, PATIENCE, Redis, Sample, chain, children_of, delay,
    processes_mentioning, same, wait_until, wait_until_gone,
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
    for (redis, format) in [(Redis::plain(), "plain"), (Redis::with_json(), "json")] {
        let conserver = Conserver::with(&redis).env("VCON_REDIS_FORMAT", format);
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
    let conserver = Conserver::with(&redis).env("VCON_REDIS_FORMAT", "json");
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

/// Files with vCons of these names in a folder, and the folder's path.
fn folder(conserver: &Conserver, files: &[(&str, &[u8])]) -> String {
    let folder = conserver.folder().join("calls");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).expect("a file");
    }
    folder.display().to_string()
}

#[test]
fn a_folder_stands_for_its_files_of_all_three_endings_and_must_have_one() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let samples: Vec<Sample> = (0..3).map(|_| Sample::small()).collect();
    let texts: Vec<String> = samples.iter().map(Sample::text).collect();
    let path = folder(
        &conserver,
        &[
            ("a.json", texts[0].as_bytes()),
            ("b.vcon", texts[1].as_bytes()),
            ("c.vcon.json", texts[2].as_bytes()),
            ("d.txt", b"no vCon"),
        ],
    );
    fs::create_dir(conserver.folder().join("calls/e.json")).expect("a folder");
    ended_with(&conserver.run(&["submit", &path, LIST[0], LIST[1]]), 0);
    is_submitted(&redis, &samples);

    let empty = conserver.folder().join("empty");
    fs::create_dir(&empty).expect("a folder");
    fs::write(empty.join("d.txt"), "no vCon").expect("a file");
    let empty = empty.display().to_string();
    let finished = conserver.run(&["submit", &empty, LIST[0], LIST[1]]);
    ended_with(&finished, 65);
    assert!(
        finished.stderr.contains(&empty) && finished.stderr.contains("*.vcon"),
        "{}",
        finished.output()
    );
}

#[test]
fn every_form_in_which_a_vcon_is_written_down_is_read_or_refused_by_name() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let samples: Vec<Sample> = (0..3).map(|_| Sample::small()).collect();
    let marked = format!("\u{feff}{}", samples[0].text());
    let string = serde_json::to_string(&samples[1].text()).expect("JSON");
    let marked_string = format!("\u{feff}{}", json!(samples[2].text()));
    let wide: Vec<u8> = std::iter::once(0xfeff)
        .chain(Sample::small().text().encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let path = folder(
        &conserver,
        &[
            ("marked.json", marked.as_bytes()),
            ("string.json", string.as_bytes()),
            ("marked-string.json", marked_string.as_bytes()),
            ("wide.json", &wide),
            ("latin.json", b"{\"uuid\": \"\xe9\"}"),
            ("words.json", b"\"hello\""),
        ],
    );
    let finished = conserver.run(&["submit", &path, LIST[0], LIST[1]]);
    ended_with(&finished, 65);
    for (file, why) in [
        ("wide.json", "UTF-16"),
        ("latin.json", "not UTF-8"),
        ("words.json", "a JSON string that holds no vCon"),
    ] {
        let mut lines = finished.stderr.lines();
        let line = lines.find(|line| line.contains(file));
        let line = line.unwrap_or_else(|| panic!("{file}: {}", finished.output()));
        assert!(line.contains(why), "{line}");
    }
    is_submitted(&redis, &samples);
}

#[test]
fn signed_and_encrypted_vcons_are_stored_as_they_are_under_the_uuid_of_header_file_or_option() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let [by_header, by_file, by_option] = [(); 3].map(|()| uuid::Uuid::new_v4().to_string());
    // {"uuid": ...}, with white space that a writer of JSON would not make.
    let encoded = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    let protected = encoded(&format!(r#"{{"alg":"RS256","uuid":"{by_header}"}}"#));
    let signed = format!(
        "{{ \"payload\" : \"eyJ9\",\n \"signatures\":[{{\"protected\":\"{protected}\",\"signature\":\"c2ln\"}}] }}"
    );
    let encrypted = r#"{"protected":"eyJ9",  "iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}"#;
    let name = format!("{by_file}.vcon.json");
    let path = folder(
        &conserver,
        &[
            ("signed.json", signed.as_bytes()),
            (&name, encrypted.as_bytes()),
        ],
    );
    ended_with(&conserver.run(&["submit", &path, LIST[0], LIST[1]]), 0);
    let nameless = conserver.folder().join("nameless.json");
    fs::write(&nameless, encrypted).expect("a file");
    let nameless = nameless.display().to_string();
    let finished = conserver.run(&["submit", &nameless, LIST[0], LIST[1]]);
    ended_with(&finished, 65);
    assert!(
        finished.stderr.contains("nameless.json") && finished.stderr.contains("--uuid"),
        "{}",
        finished.output()
    );
    let arguments = ["submit", &nameless, "--uuid", &by_option, LIST[0], LIST[1]];
    ended_with(&conserver.run(&arguments), 0);
    for (id, text) in [
        (&by_header, signed.as_str()),
        (&by_file, encrypted),
        (&by_option, encrypted),
    ] {
        let kept: String = redis.ask(&["GET", &format!("vcon:{id}")]);
        assert_eq!(kept, text);
    }
    let mut listed = redis.list("default");
    listed.sort();
    let mut expected = [by_header, by_file, by_option];
    expected.sort();
    assert_eq!(listed, expected);
}

#[test]
fn it_prints_the_uuids_alone_if_it_is_asked_to() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let samples: Vec<Sample> = (0..2).map(|_| Sample::small()).collect();
    let text = format!("{}\n[]\n{}", samples[0].text(), samples[1].text());
    let arguments = ["submit", "-", "--print", LIST[0], LIST[1]];
    let finished = conserver.run_with_input(&arguments, &text);
    ended_with(&finished, 65);
    let printed: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(printed, [&samples[0].id, &samples[1].id]);
    assert!(
        finished.stderr.contains("Submitted 2 of 3 vCons"),
        "{}",
        finished.output()
    );
}

#[test]
fn it_waits_until_the_last_chain_has_finished() {
    let redis = Redis::plain();
    let mut config = chain(&[delay(0.5)], &[]);
    config["chains"]["second"] = json!({
        "links": ["slowly"], "ingress_lists": ["done"], "egress_lists": ["finished"],
    });
    let daemon = Conserver::with(&redis).config(&config).start();
    let sample = Sample::small();
    let arguments = ["submit", "-", "--wait", LIST[0], LIST[1]];
    let finished = daemon
        .conserver()
        .run_with_input(&arguments, &sample.text());
    ended_with(&finished, 0);
    assert_eq!(redis.list("finished"), [sample.id.as_str()]);
    assert!(
        finished.stdout.contains("1 of 1 vCons are done"),
        "{}",
        finished.output()
    );
}

#[test]
fn what_goes_to_a_dead_letter_queue_is_named_and_what_was_there_before_does_not_count() {
    let redis = Redis::plain();
    // No list for tags: this one alone is a dead letter.
    let mut document = Sample::small().document;
    document["attachments"] = json!({});
    let (bad, good) = (Sample::of(document), Sample::small());
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let arguments = ["submit", "-", "--wait", LIST[0], LIST[1]];
    let text = format!("{}{}", good.text(), bad.text());
    let finished = daemon.conserver().run_with_input(&arguments, &text);
    ended_with(&finished, 65);
    assert_eq!(redis.list("DLQ:default"), [bad.id.as_str()]);
    let mut lines = finished.stderr.lines();
    let line = lines.find(|line| line.contains(&bad.id));
    let line = line.unwrap_or_else(|| panic!("{}", finished.output()));
    assert!(
        line.contains("DLQ:default") && line.contains("attachments"),
        "{line}"
    );
    assert!(!finished.stderr.contains(&good.id), "{}", finished.output());

    let mut mended = bad.clone();
    mended.document["attachments"] = json!([]);
    let finished = daemon
        .conserver()
        .run_with_input(&arguments, &mended.text());
    ended_with(&finished, 0);
}

#[test]
fn it_waits_no_longer_than_it_is_told() {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis);
    let arguments = ["submit", "-", "--wait", "--timeout", "1", LIST[0], LIST[1]];
    let finished = conserver.run_with_input(&arguments, &Sample::small().text());
    ended_with(&finished, 69);
    assert!(
        finished.stdout.contains("0 of 1 vCons are done"),
        "{}",
        finished.output()
    );
    let arguments = ["submit", "-", "--timeout", "1", LIST[0], LIST[1]];
    ended_with(&conserver.run_with_input(&arguments, "{}"), 64);
}

/// What a command in the background has said so far.
fn said_so_far(conserver: &Conserver) -> String {
    let read = |kind| fs::read_to_string(conserver.folder().join(format!("spawned.{kind}")));
    ["stdout", "stderr"]
        .map(|kind| read(kind).unwrap_or_default())
        .concat()
}

#[test]
fn it_waits_on_while_redis_is_away() {
    for is_durable in [true, false] {
        let redis = Redis::new();
        let redis = if is_durable { redis.durable() } else { redis };
        let redis = redis.started();
        let conserver = Conserver::with(&redis).config(&chain(&[], &[]));
        let sample = Sample::small();
        let path = conserver.folder().join("one.json");
        fs::write(&path, sample.text()).expect("a file");
        let path = path.display().to_string();
        let mut waiting = conserver.spawn(&["submit", &path, "--wait", LIST[0], LIST[1]]);
        let says = |words: &str| {
            wait_until(words, PATIENCE, || said_so_far(&conserver).contains(words));
        };
        says("Submitted 1 of 1 vCons");
        redis.kill9();
        says("trying again");
        redis.start();
        says("Redis is back");
        // What is lost needs none.
        let daemon = is_durable.then(|| conserver.launch_again());
        let status = waiting.wait().expect("a child");
        let said = said_so_far(&conserver);
        if is_durable {
            assert_eq!(status.code(), Some(0), "{said}");
            assert_eq!(redis.list("done"), [sample.id.as_str()]);
        } else {
            assert_eq!(status.code(), Some(69), "{said}");
            assert!(
                said.contains("1 of them are not in Redis any more"),
                "{said}"
            );
        }
        daemon.into_iter().for_each(Daemon::stop);
    }
}

#[test]
fn it_does_not_wait_for_a_chain_out_of_service() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["spare"] = json!({
        "links": ["tagger"], "ingress_lists": ["done"], "enabled": 0,
    });
    // Dead letters from when it was in service.
    let key = format!("vcon:{}", Sample::small().id);
    redis.ask::<i64>(&["RPUSH", "DLQ:done", &key]);
    let daemon = Conserver::with(&redis).config(&config).start();
    let (passed, left) = (Sample::small(), Sample::small());
    let arguments = ["submit", "-", "--wait", "--timeout", "20", LIST[0], LIST[1]];
    let finished = daemon.conserver();
    let finished = finished.run_with_input(&arguments, &passed.text());
    ended_with(&finished, 0);
    assert_eq!(redis.list("done"), [passed.id.as_str()]);

    let arguments = ["submit", "-", "--wait", "--list", "done"];
    let finished = daemon.conserver();
    let finished = finished.run_with_input(&arguments, &left.text());
    ended_with(&finished, 69);
    for words in ["no enabled chain", "Not waiting"] {
        assert!(finished.stderr.contains(words), "{}", finished.output());
    }
    assert_eq!(redis.list("done"), [passed.id, left.id]);
}
