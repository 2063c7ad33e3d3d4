//! What an entry of `config.yml` says of a Python module, and how it reaches the module.

use serde_json::{Value, json};

use super::{bare, conserver, module, sample, samples};
use crate::harness::{
    Call, Deployment, Files, Ledger, PATIENCE, REDIS_PASSWORD, Redis, chain, command_line_of, same,
    submit, wait_until,
};

fn calls_of(redis: &Redis, name: &str) -> Vec<Call> {
    let calls = redis.calls().into_iter();
    calls.filter(|call| call.call == name).collect()
}

#[test]
fn options_come_as_they_stand_in_the_file() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let text = "
links:
  plain: {module: links.counts}
  empty: {module: links.counts, options: {}}
  nothing: {module: links.counts, options: }
  all:
    module: links.counts
    options:
      text: 'a ''b'' \"c\" ü'
      quoted: '5432'
      number: 5432
      octal: 0644
      text too: 0o644
      half: 0.5
      exponent: 1.5e+3
      'yes': true
      'no': false
      none: null
      date: 2024-03-16
      list: [1, two, [3.0, {four: 5}], {}]
      deep: {a: {b: {c: []}}}
      from_environment: ${PRACTICE_SITE}
      lines: |
        one
        two
chains:
  main: {links: [plain, empty, nothing, all], ingress_lists: [default], egress_lists: [done]}
";
    let daemon = conserver(&redis, &deployment, &json!({}))
        .config_text(text)
        .env("PRACTICE_SITE", "north")
        .start();
    let some = samples("a", 1);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    let options = |name: &str| {
        let calls = calls_of(&redis, "links.counts.run");
        let call = calls.into_iter().find(|call| call.arguments[1] == name);
        call.expect("a call").arguments.remove(2)
    };
    assert_eq!(options("plain"), Value::Null);
    assert_eq!(options("empty"), json!({}));
    assert_eq!(options("nothing"), Value::Null);
    let all = options("all");
    let expected = json!({
        "text": "a 'b' \"c\" ü", "quoted": "5432", "number": 5432, "octal": 420, "text too": "0o644", "half": 0.5,
        "exponent": 1500.0, "yes": true, "no": false, "none": null,
        "list": [1, "two", [3.0, {"four": 5}], {}], "deep": {"a": {"b": {"c": []}}},
        "from_environment": "north", "lines": "one\ntwo\n",
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&all[key], value, "{key}");
    }
    assert_eq!(all["date"], "2024-03-16");
    daemon.stop();
}

#[test]
fn a_storage_without_options_gets_its_defaults_and_one_with_options_only_these() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let storages = [
        ("default", bare("storage.drawer")),
        (
            "empty",
            module("storage.shelf", json!({"folder": files.folder()})),
        ),
        (
            "other",
            module("storage.drawer", json!({"drawer": "other"})),
        ),
    ];
    let daemon = conserver(&redis, &deployment, &chain(&[], &storages)).start();
    let some = samples("a", 2);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    let id = some[0].id.as_str();
    let saves = |name: &str| -> Vec<Value> {
        let calls = calls_of(&redis, name).into_iter();
        let mut options: Vec<Value> = calls
            .filter(|call| call.id() == id)
            .map(|mut call| call.arguments.remove(1))
            .collect();
        options.sort_by_key(ToString::to_string);
        options
    };
    assert_eq!(
        saves("storage.drawer.save"),
        [
            json!({"drawer": "drawer", "locked": false}),
            json!({"drawer": "other"})
        ]
    );
    assert_eq!(
        saves("storage.shelf.save"),
        [json!({"folder": files.folder()})]
    );
    for key in ["drawer", "other"] {
        assert_eq!(redis.ask::<usize>(&["HLEN", key]), 2, "{key}");
    }
    assert_eq!(files.paths().len(), 2);
    // What built-in links have changed is in Redis before a storage is called.
    for sample in &some {
        let document = redis.document(&sample.id).expect("a document");
        assert!(
            document.to_string().contains("checked:checked"),
            "{document}"
        );
        let stored: String = redis.ask(&["HGET", "drawer", &sample.id]);
        let stored: Value = serde_json::from_str(&stored).expect("JSON");
        assert!(same(&stored, &document), "{stored} is not {document}");
    }
    daemon.stop();
}

#[test]
fn native_says_whether_a_built_in_module_or_the_deployments_own_is_taken() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let tag = json!({"module": "links.tag", "options": {"tags": ["own"]}});
    let mut own_tag = tag.clone();
    own_tag["native"] = json!(false);
    let mut native_tag = tag;
    native_tag["native"] = json!(true);
    let mut own_files = files.storage();
    own_files["native"] = json!(false);
    let links = [("own", own_tag), ("native", native_tag)];
    let storages = [("own files", own_files.clone()), ("files", files.storage())];
    let config = chain(&links, &storages);
    let daemon = conserver(&redis, &deployment, &config).start();
    let some = samples("a", 2);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    for sample in &some {
        let calls = redis.calls_by_vcon().remove(&sample.id).expect("calls");
        let names: Vec<&str> = calls.iter().map(|call| call.call.as_str()).collect();
        assert_eq!(names, ["links.tag.run", "storage.file.save"]);
        assert_eq!(
            calls[0].arguments,
            [json!(sample.id), json!("own"), json!({"tags": ["own"]})]
        );
        assert_eq!(
            calls[1].arguments,
            [json!(sample.id), own_files["options"].clone()]
        );
        let document = redis.document(&sample.id).expect("a document");
        assert_eq!(
            document.to_string().matches("own:own").count(),
            1,
            "{document}"
        );
    }
    assert_eq!(files.paths().len(), some.len());
    daemon.stop();
}

#[test]
fn older_names_of_transcription_links_in_python_are_that_link_with_their_vendor() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let old = json!({"API_KEY": "placeholder", "minimum_duration": 30});
    let new = json!({"vendor_options": {"model": "m"}, "other": 1});
    let in_python = |mut link: Value| {
        link["native"] = json!(false);
        link
    };
    let links = [
        ("a", module("links.openai_transcribe", old.clone())),
        ("b", module("links.hugging_face_whisper", new)),
        ("c", bare("links.deepgram_link")),
        // There is a module of that name here.
        ("d", module("links.groq_whisper", old.clone())),
        ("e", module("links.transcribe", old.clone())),
    ]
    .map(|(name, link)| (name, in_python(link)));
    let daemon = conserver(&redis, &deployment, &chain(&links, &[])).start();
    let some = samples("a", 1);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    let calls = redis.calls();
    let called: Vec<(&str, &Value, &Value)> = calls
        .iter()
        .map(|call| (call.call.as_str(), &call.arguments[1], &call.arguments[2]))
        .collect();
    let transcribe = "links.transcribe.run";
    let openai = json!({"vendor": "openai", "vendor_options": old});
    let hugging_face =
        json!({"vendor": "hugging_face", "vendor_options": {"model": "m"}, "other": 1});
    let deepgram = json!({"vendor": "deepgram", "vendor_options": {}});
    let names = ["a", "b", "c", "d", "e"].map(|name| json!(name));
    assert_eq!(
        called,
        [
            (transcribe, &names[0], &openai),
            (transcribe, &names[1], &hugging_face),
            (transcribe, &names[2], &deepgram),
            ("links.groq_whisper.run", &names[3], &old),
            (transcribe, &names[4], &old),
        ]
    );
    daemon.stop();
}

#[test]
fn what_a_link_returns_or_raises_is_what_becomes_of_the_vcon() {
    let (redis, deployment, files) = (Redis::with_json(), Deployment::new(), Files::new());
    let links = [
        ("awaits", bare("links.awaits")),
        ("moves", bare("links.moves_on")),
        ("stops", bare("links.stops")),
        ("refuses", bare("links.refuses")),
        ("falters", module("links.falters", json!({"times": 3}))),
        ("talks", module("links.talks", json!({"program": true}))),
        ("last", module("links.marks", json!({"tag": "last"}))),
    ];
    let daemon = conserver(
        &redis,
        &deployment,
        &chain(&links, &[("files", files.storage())]),
    )
    .lanes(2)
    .start();
    let all = ["plain", "moves on", "stops", "refused", "falters"].map(sample);
    submit(&redis, "default", &all);
    let [plain, moves, stops, refused, falters] = all;
    wait_until("all are over", PATIENCE, || {
        redis.length("done") == 3
            && redis.length("DLQ:default") == 1
            && redis.length("default") == 0
            && redis.keys("conserver:claims:*").is_empty()
    });
    assert_eq!(redis.list("DLQ:default"), [refused.id.as_str()]);
    let shown = daemon
        .conserver()
        .run(&["dlq", "show", &refused.id])
        .output();
    let reason = format!("ValueError: nothing can be done for {}", refused.id);
    assert!(
        shown.contains(&reason) && shown.contains("link refuses"),
        "{shown}"
    );
    let done = redis.list("done");
    assert!(
        done.contains(&plain.id) && done.contains(&falters.id),
        "{done:?}"
    );
    let copy = done
        .iter()
        .find(|id| ![&plain.id, &falters.id].contains(id))
        .expect("a copy");
    let document = redis.document(copy).expect("a document");
    assert_eq!(document["copy_of"], moves.id.as_str());
    for id in &done {
        let document = redis.document(id).expect("a document");
        assert!(document.to_string().contains("marks:last"), "{document}");
        assert!(
            document.to_string().contains("checked:checked"),
            "{document}"
        );
        assert!(files.text(id).contains("marks:last"));
    }
    assert_eq!(files.paths().len(), done.len());
    let of = |id: &str, name: &str| {
        let calls = calls_of(&redis, name).into_iter();
        calls.filter(|call| call.id() == id).count()
    };
    assert_eq!(of(&falters.id, "links.falters.run"), 4);
    // What was done before it faltered is not done again.
    assert_eq!(of(&falters.id, "links.awaits.run"), 1);
    assert_eq!(of(&stops.id, "links.stops.run"), 1);
    assert_eq!(of(&stops.id, "links.refuses.run"), 0);
    assert_eq!(of(&refused.id, "links.refuses.run"), 1);
    daemon.stop();
}

#[test]
fn a_storage_that_refuses_a_vcon_has_its_own_dead_letters() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let storages = [
        (
            "moody",
            module("storage.moody", json!({"every": 1_000_000})),
        ),
        ("files", files.storage()),
    ];
    let daemon = conserver(&redis, &deployment, &chain(&[], &storages)).start();
    let all = ["plain", "unwanted"].map(sample);
    submit(&redis, "default", &all);
    wait_until("one is refused", PATIENCE, || {
        redis.length("DLQ:storage:moody") == 1
    });
    Ledger::of(&redis, &all).settles();
    assert_eq!(redis.list("DLQ:storage:moody"), [all[1].id.as_str()]);
    let reason = format!("ValueError: {} is not wanted here", all[1].id);
    let shown = daemon
        .conserver()
        .run(&["dlq", "show", &all[1].id])
        .output();
    assert!(shown.contains(&reason), "{shown}");
    assert_eq!(files.paths().len(), 2);
    daemon.stop();
}

#[test]
fn the_interpreter_is_the_one_of_the_setting_and_sees_the_whole_environment() {
    let (redis, deployment) = (Redis::new().locked().started(), Deployment::new());
    deployment.write(
        "looks.py",
        "import os, sys\nfrom lib.calls import record\n\
         def run(*arguments):\n    names = ('REDIS_URL', 'CONSERVER_CONFIG_FILE', 'PRACTICE_SITE', 'CHOSEN')\n    \
         record(__name__, 'run', arguments, {name: os.environ.get(name) for name in names})\n    \
         raise RuntimeError(os.environ['REDIS_URL'] + os.environ['PRACTICE_TOKEN'])\n",
    );
    let chosen = deployment.write("chosen", "#!/bin/sh\nCHOSEN=1 exec python3 \"$@\"\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&chosen, mode).expect("a file");
    let daemon = conserver(
        &redis,
        &deployment,
        &chain(&[("looks", bare("looks"))], &[]),
    )
    .env("CONSERVER_PYTHON", chosen)
    .env("PRACTICE_SITE", "north")
    .env("PRACTICE_TOKEN", "GeheimesKennwort")
    .env("LOG_LEVEL", "DEBUG")
    .start();
    let one = sample("a");
    submit(&redis, "default", std::slice::from_ref(&one));
    wait_until("it has failed", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let seen = calls_of(&redis, "looks.run").remove(0).named;
    assert_eq!(seen["REDIS_URL"], redis.url());
    assert_eq!(
        (&seen["PRACTICE_SITE"], &seen["CHOSEN"]),
        (&json!("north"), &json!("1"))
    );
    let config = seen["CONSERVER_CONFIG_FILE"].as_str().expect("a path");
    assert!(config.ends_with("config.yml"), "{config}");
    let shown = daemon.conserver().run(&["dlq", "show", &one.id]).output();
    assert!(shown.contains("RuntimeError: redis://"), "{shown}");
    let lines: Vec<String> = daemon.family().into_iter().map(command_line_of).collect();
    for text in [shown, lines.concat()] {
        for secret in [REDIS_PASSWORD, "GeheimesKennwort"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    // Of the traceback in the log, too.
    for secret in [REDIS_PASSWORD, "GeheimesKennwort"] {
        assert!(!daemon.output().contains(secret), "{}", daemon.output());
    }
    daemon.stop();
}

#[test]
fn a_module_of_the_first_folder_is_taken_before_one_of_the_second() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let first = deployment.folder().join("first/links/counts");
    std::fs::create_dir_all(&first).expect("a folder");
    let text = "from lib.calls import record\n\
                def run(*arguments):\n    record('first', 'run', arguments)\n    return arguments[0]\n";
    std::fs::write(first.join("__init__.py"), text).expect("a file");
    let init = deployment.folder().join("first/links/__init__.py");
    std::fs::write(init, "").expect("a file");
    let path = format!(
        "{}:{}",
        deployment.folder().join("first").display(),
        deployment.path()
    );
    let daemon = conserver(
        &redis,
        &deployment,
        &chain(&[("counts", bare("links.counts"))], &[]),
    )
    .env("CONSERVER_PYTHON_PATH", path)
    .start();
    let some = samples("a", 1);
    submit(&redis, "default", &some);
    Ledger::of(&redis, &some).settles();
    assert_eq!(calls_of(&redis, "first.run").len(), 1);
    daemon.stop();
}

#[test]
fn a_link_that_names_a_vcon_which_cannot_be_fetched_now_does_not_run_again() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let other = sample("other");
    deployment.write(
        "names.py",
        &format!(
            "from lib.calls import record\n\
             def run(uuid, name, options):\n    record('names', 'run', [uuid, name, options])\n    return '{}'\n",
            other.id
        ),
    );
    let flag = deployment.folder().join("is-there");
    deployment.write(
        "away.py",
        &format!(
            "import json, os\nfrom lib.calls import record\n\
             def save(uuid, options): pass\n\
             def get(uuid, options):\n    record('away', 'get', [uuid, options])\n\
             \x20   if not os.path.exists({:?}): raise ConnectionError('away')\n\
             \x20   return json.loads({:?})\n",
            flag.display().to_string(),
            other.document.to_string()
        ),
    );
    let config = chain(&[("names", bare("names"))], &[("away", bare("away"))]);
    let daemon = conserver(&redis, &deployment, &config)
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "5")
        .start();
    let some = samples("a", 1);
    submit(&redis, "default", &some);
    // More than one claim has looked for it.
    wait_until("it is looked for", PATIENCE, || {
        calls_of(&redis, "away.get").len() > 20
    });
    assert_eq!(calls_of(&redis, "names.run").len(), 1);
    std::fs::write(flag, "").expect("a file");
    wait_until("the chain ends", PATIENCE, || redis.length("done") == 1);
    assert_eq!(redis.list("done").concat(), other.id);
    assert_eq!(calls_of(&redis, "names.run").len(), 1);
    daemon.stop();
}
