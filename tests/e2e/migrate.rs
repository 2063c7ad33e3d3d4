//! `conserver migrate`: deployments of the existing worker are switched over by the plan alone, word by word, and back.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Branch, Conserver, Daemon, Files, Finished, Hook, Manner, PATIENCE, Programs, REDIS_PASSWORD,
    Redis, Sample, chain, fresh, private_folder, run, said, same, stuck, submit, wait_until,
};

/// Stands in the variables of a deployment.
const KEY: &str = "sk-GeheimerSchluessel";

/// The folder in which the existing worker runs: `config.yml` and `.env`.
struct Existing {
    folder: tempfile::TempDir,
    variables: HashMap<String, String>,
}

impl Existing {
    /// With this configuration and these lines in its `.env`.
    fn new(config: &Value, variables: &[(&str, &str)]) -> Self {
        let folder = private_folder();
        let text = serde_json::to_string_pretty(config).expect("JSON");
        fs::write(folder.path().join("config.yml"), text).expect("a file");
        let mut lines = String::from("# The existing worker\nCONSERVER_CONFIG_FILE=./config.yml\n");
        for (name, value) in variables {
            lines += &format!("export {name}=\"{value}\"\n");
        }
        fs::write(folder.path().join(".env"), lines).expect("a file");
        let variables = variables.iter();
        Self {
            folder,
            variables: variables
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.yml")
    }

    fn env_file(&self) -> String {
        self.folder.path().join(".env").display().to_string()
    }

    /// Its plan, which shows no secret and changes nothing.
    fn plan(&self, redis: &Redis, code: i32) -> Value {
        let (file, changes) = (self.env_file(), changes_of(redis));
        let conserver = Conserver::without_redis();
        let arguments = ["migrate", "--env-file", &file, "--check"];
        let for_people = run(&conserver, &arguments, code);
        let as_json = run(&conserver, &["migrate", "--env-file", &file, "--json"], 0);
        for shown in [&for_people, &as_json] {
            shows_no_secret(shown);
            assert_eq!(shown.stderr, "");
        }
        assert_eq!(changes_of(redis), changes, "it has written");
        let plan: Value = serde_json::from_str(&as_json.stdout).expect("JSON");
        assert_eq!(plan["works"], code == 0, "{plan:#}");
        for name in texts(&plan["environment"], "name") {
            said(&for_people, &[&format!("\n  {name}=")]);
        }
        for step in plan["switch"].as_array().expect("steps") {
            for command in step["commands"].as_array().expect("commands") {
                said(&for_people, &[command.as_str().expect("a command")]);
            }
        }
        plan
    }
}

/// How many changes the server has seen.
fn changes_of(redis: &Redis) -> String {
    let info: String = redis.ask(&["INFO", "persistence"]);
    let mut lines = info.lines();
    let changes = lines.find(|line| line.starts_with("rdb_changes_since_last_save:"));
    changes.expect("a number").to_owned()
}

fn shows_no_secret(finished: &Finished) {
    for secret in [KEY, REDIS_PASSWORD] {
        assert!(
            !finished.output().contains(secret),
            "{secret}: {}",
            finished.output()
        );
    }
}

/// The texts in a list of the plan.
fn texts<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    let rows = list.as_array().expect("a list").iter();
    rows.map(|row| row[key].as_str().expect("a text")).collect()
}

/// How many entries the plan sees in a list.
fn entries(plan: &Value, key: &str) -> Value {
    let lists = plan["waiting"]["lists"].as_array().expect("lists");
    let row = lists.iter().find(|row| row["key"] == key);
    row.unwrap_or_else(|| panic!("no {key}: {plan:#}"))["entries"].clone()
}

/// The service that the plan describes, on a machine where files and commands stand elsewhere.
struct Service {
    conserver: Conserver,
    /// In the place of /var/lib/conserver.
    state: tempfile::TempDir,
    daemon: Option<Daemon>,
    /// The exit codes of commands that do not end with 0.
    codes: Vec<(&'static str, i32)>,
    /// The server that a follower pulls from, if it gives documents again once it is asked for them by the way back.
    branch: Option<Branch>,
    /// The Redis of that server.
    other: Option<Redis>,
}

impl Service {
    /// With the settings of the plan, the values that it does not show from the deployment, and a copy of its
    /// configuration.
    fn of(plan: &Value, existing: &Existing) -> Self {
        let config = fs::read_to_string(existing.config()).expect("a file");
        let state = private_folder();
        let conserver = Conserver::without_redis().config_text(&config);
        let mut conserver = conserver.env("STATE_DIRECTORY", state.path());
        for line in plan["environment"].as_array().expect("lines") {
            let name = line["name"].as_str().expect("a name");
            let value = match &line["value"] {
                Value::Null => existing.variables[name].clone(),
                value => value.as_str().expect("a value").to_owned(),
            };
            conserver = match name {
                "CONSERVER_WORKERS" => conserver.workers(value.parse().expect("a number")),
                name => conserver.env(name, value),
            };
        }
        Self {
            conserver,
            state,
            daemon: None,
            codes: Vec::new(),
            branch: None,
            other: None,
        }
    }

    /// A command that ends with another exit code than 0.
    fn ends(mut self, command: &'static str, code: i32) -> Self {
        self.codes.push((command, code));
        self
    }

    /// Does what the steps say, one command after another. What belongs to the system is done as far as a test can.
    fn follow(&mut self, steps: &Value, existing: &Existing) {
        for step in steps.as_array().expect("steps") {
            for command in step["commands"].as_array().expect("commands") {
                self.run(command.as_str().expect("a command"), existing);
            }
        }
    }

    fn run(&mut self, command: &str, existing: &Existing) {
        let command = command.split("    #").next().unwrap_or_default().trim();
        if let Some(arguments) = command.strip_prefix("as_service ") {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            let code = self.codes.iter().find(|(known, _)| *known == command);
            let finished = run(
                &self.conserver,
                &arguments,
                code.map_or(0, |(_, code)| *code),
            );
            shows_no_secret(&finished);
            return;
        }
        match command {
            "sudoedit /etc/conserver/config.yml" => {
                let text = fs::read_to_string(existing.config()).expect("a file");
                let mut config: Value = serde_json::from_str(&text).expect("JSON");
                for (section, key, value) in [
                    ("chains", "enabled", json!(false)),
                    ("followers", "pulling_interval", json!(604_800)),
                ] {
                    for (_, entry) in config[section].as_object_mut().expect("entries") {
                        entry[key] = value.clone();
                    }
                }
                self.daemon.as_ref().expect("it runs").reconfigure(&config);
            }
            "sudo systemctl reload conserver" => {
                let daemon = self.daemon.as_ref().expect("it runs");
                daemon.signal(Signal::SIGHUP);
                daemon.wait_for_log("was read and is in force", PATIENCE);
            }
            command if command.starts_with("redis-cli ") && command.contains(" LLEN ") => {
                if let Some(branch) = &self.branch {
                    branch.works();
                    let is_empty = || self.shell(command).trim() == "0";
                    wait_until("it has fetched all", PATIENCE, is_empty);
                }
            }
            command if command.starts_with("redis-cli ") && command.contains("follower") => {
                self.shell(command);
            }
            command if command.starts_with("sudo find /var/lib/conserver ") => {
                assert_eq!(self.shell(command), "", "{command}");
            }
            "sudo systemctl enable --now conserver" => {
                self.daemon = Some(self.conserver.again().start());
            }
            "sudo systemctl disable --now conserver" => self.daemon.take().expect("it runs").stop(),
            "sudoedit /etc/conserver/conserver.env" => {}
            command if command.starts_with("sudo -u conserver python3 -m pip install ") => {
                self.shell(command);
            }
            command if command.starts_with("sudo install ") => {
                let config = existing.config().display().to_string();
                let copied = command.split(' ').any(|word| {
                    Path::new(word)
                        .canonicalize()
                        .is_ok_and(|it| Some(it) == existing.config().canonicalize().ok())
                });
                assert!(copied, "{command} does not copy {config}");
            }
            command => {
                let known = [
                    "sudo systemctl mask conserver",
                    "sudo systemctl unmask conserver",
                    "sudo systemctl disable conserver",
                    "sudo /usr/libexec/conserver/check-service",
                    "sudo systemctl daemon-reload",
                    "sudo apt install ",
                    "sudo mkdir -p /etc/systemd/system/conserver.service.d",
                    "printf '%s\\n' '[Service]' ",
                    "sudo chown -R ",
                    "as_service() {",
                    "docker compose stop ",
                    "docker compose start ",
                    "sudo conserver logs ",
                    "redis-cli ",
                ];
                assert!(known.iter().any(|it| command.starts_with(it)), "{command}");
            }
        }
    }
}

impl Service {
    /// Runs a command without the rights of root, with the folder and the servers of the test. Returns its output.
    fn shell(&self, command: &str) -> String {
        let command = command.replace("sudo -u conserver ", "");
        let command = command.trim_start_matches("sudo ");
        let state = self.state.path().display().to_string();
        let command = command.replace("/var/lib/conserver", &state);
        let command = match &self.other {
            Some(other) => command.replace("OTHER_REDIS_URL", &other.url()),
            None => command,
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]);
        for name in ["PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"] {
            shell.env(name, "1");
        }
        let output = shell.output().expect("a shell");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("a text")
    }
}

/// What the existing worker finds: no claims, and documents of this type under the keys that it knows.
fn finds_what_it_knows(redis: &Redis, lists: &[&str], kind: &str) {
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
    for key in redis.keys("*") {
        let is: String = redis.ask(&["TYPE", &key]);
        if key.starts_with("vcon:") {
            assert_eq!(is, kind, "{key}");
        } else if !key.starts_with("conserver:") && key != "vcons" && !key.starts_with("files:") {
            let is_list = lists.contains(&&*key) || key.starts_with("context:");
            assert!(is_list && is == "list", "{key} is a {is}");
        }
    }
}

fn push(redis: &Redis, list: &str, samples: &[Sample]) {
    for sample in samples {
        redis.ask::<()>(&["RPUSH", list, &sample.id]);
    }
}

/// Stores documents as a worker of the newer generation has them.
fn store(redis: &Redis, samples: &[Sample]) {
    for sample in samples {
        let key = format!("vcon:{}", sample.id);
        redis.ask::<()>(&["SET", &key, &sample.text()]);
    }
}

fn ids(samples: &[Sample]) -> Vec<&str> {
    samples.iter().map(|sample| &*sample.id).collect()
}

#[test]
fn a_newer_deployment_is_switched_over_and_back() {
    let (redis, files, hook) = (Redis::plain(), Files::new(), Hook::new());
    let config = json!({
        "links": {
            "tagger": {"module": "links.tag", "options": {"tags": ["seen"]}},
            "pick": {"module": "links.jq_link", "options": {"filter": ".parties | length > 0"}},
            "unused": {"module": "links.sampler", "options": {"seed": 1}},
        },
        "storages": {"files": files.storage(), "hook": hook.storage()},
        "chains": {
            "main": {
                "links": ["pick", "tagger"], "storages": ["files", "hook"],
                "ingress_lists": ["default", "late"], "egress_lists": ["done"], "timeout": 60,
            },
            "off": {"links": ["tagger"], "ingress_lists": ["old"], "egress_lists": ["done"], "enabled": 0},
        },
        "ingress_auth": {"default": KEY},
    });
    let existing = Existing::new(
        &config,
        &[
            ("REDIS_URL", &redis.url()),
            ("CONSERVER_WORKERS", "2"),
            ("CONSERVER_API_TOKEN", KEY),
            ("LOGGING_CONFIG_FILE", "/app/logging.conf"),
        ],
    );
    let (waiting, late, off) = (fresh(20), fresh(5), fresh(3));
    submit(&redis, "default", &waiting);
    submit(&redis, "late", &late);
    submit(&redis, "old", &off);
    let (dead, missed, lost, announced) = (fresh(4), fresh(3), fresh(2), fresh(1));
    for samples in [&dead, &missed, &lost, &announced] {
        store(&redis, samples);
    }
    push(&redis, "DLQ:default", &dead);
    push(&redis, "DLQ:storage:hook", &missed);
    push(&redis, "done", &announced);
    // The existing worker has announced what a storage has missed.
    push(&redis, "done", &missed);
    let lock = "DLQ:storage:files:replay-lock";
    redis.ask::<()>(&["SET", lock, "left"]);

    let plan = existing.plan(&redis, 0);
    assert_eq!(plan["waiting"]["replay_locks"], json!(["files"]));
    let steps = plan["switch"].to_string();
    assert!(
        steps.contains("redis-cli -u") && steps.contains(lock),
        "{steps}"
    );
    redis.ask::<()>(&["DEL", lock]);
    assert_eq!(plan["generation"]["is"], "newer");
    assert_eq!(plan["problems"], json!([]));
    for row in plan["modules"].as_array().expect("rows") {
        assert_eq!(row["runs"], "built_in", "{row}");
    }
    for (key, count) in [
        ("default", 20),
        ("late", 5),
        ("old", 3),
        ("done", 4),
        ("DLQ:default", 4),
        ("DLQ:late", 0),
        ("DLQ:storage:hook", 3),
    ] {
        assert_eq!(entries(&plan, key), count, "{key}");
    }
    assert_eq!(plan["waiting"]["documents"]["plain"], 38);
    let differences = texts(&plan["differences"], "id");
    for id in [
        "jq_error",
        "chain_timeout",
        "chain_enabled",
        "egress_after_storage",
        "json_text",
    ] {
        assert!(differences.contains(&id), "{id}: {differences:?}");
    }
    for id in [
        "sampler_seed",
        "diet_nothing",
        "dead_letter_expiry_0",
        "webhook_status",
        "one_worker",
    ] {
        assert!(!differences.contains(&id), "{id}: {differences:?}");
    }
    let settings = texts(&plan["environment"], "name");
    assert_eq!(settings, ["CONSERVER_WORKERS", "REDIS_URL"]);

    let mut service = Service::of(&plan, &existing).ends("as_service audit", 65);
    service.follow(&plan["switch"], &existing);
    // The plan leaves it to people what of that is lost, and where it goes.
    assert!(
        !plan["switch"]
            .to_string()
            .contains("audit --requeue default")
    );
    let requeue = ["audit", "--requeue", "default"];
    run(&service.conserver, &requeue, 0);
    let done = || redis.length("done") == 4 + 20 + 5 + 4 + 2;
    wait_until("all that waited is done", PATIENCE, done);
    let all = [&waiting[..], &late, &dead, &lost].concat();
    let mut kept: Vec<String> = files.documents().into_iter().map(|(id, _)| id).collect();
    kept.sort();
    let mut expected = ids(&all);
    expected.sort_unstable();
    assert_eq!(kept, expected);
    let posted = [&all[..], &missed].concat();
    hook.has_taken_each("the hook", &posted, 1);
    assert_eq!(redis.list("old"), ids(&off));
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());

    service.follow(&plan["way_back"], &existing);
    assert!(service.daemon.is_none());
    let more = fresh(2);
    submit(&redis, "default", &more);
    finds_what_it_knows(&redis, &["default", "old", "done"], "string");
    assert_eq!(redis.list("default"), ids(&more));
}

/// A deployment with a follower that has taken three UUIDs and cannot fetch them goes back.
fn goes_back_with_a_follower(is_away: bool) {
    let (redis, branch, samples) = (Redis::plain(), Branch::new(KEY), fresh(3));
    let is_pop = |path: &str| path.contains("/vcon/egress");
    branch.behaves(move |path| match is_pop(path) {
        true => Manner::Works,
        false => Manner::Status(503),
    });
    branch.announce("out", &samples);
    let config = json!({
        "chains": {"main": {"ingress_lists": ["default"], "egress_lists": ["done"]}},
        "followers": {"far": branch.follower("out")},
    });
    let existing = Existing::new(&config, &[("REDIS_URL", &redis.url())]);
    let key = "conserver:follower:far";
    let plan = existing.plan(&redis, 0);
    assert_eq!(entries(&plan, key), 0);
    let mut service = Service::of(&plan, &existing);
    service.follow(&plan["switch"], &existing);
    wait_until("it has taken all", PATIENCE, || redis.length(key) == 3);
    let arguments = ["migrate", "--env-file", &existing.env_file(), "--json"];
    let shown = run(&Conserver::without_redis(), &arguments, 0);
    let plan: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(entries(&plan, key), 3);

    service.branch = Some(branch).filter(|_| !is_away);
    service.other = Some(Redis::plain());
    service.follow(&plan["way_back"], &existing);
    assert!(service.daemon.is_none());
    assert_eq!(redis.length(key), 0);
    let back = service.other.as_ref().expect("a server").list("out");
    // One may have been worked on before the chain was out of service.
    let here = [redis.list("default"), redis.list("done")].concat();
    let (mut found, none) = if is_away { (back, here) } else { (here, back) };
    found.sort();
    let mut expected = ids(&samples);
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(none, [""; 0]);
}

#[test]
fn what_a_follower_took_is_fetched_before_the_existing_worker_is_back() {
    goes_back_with_a_follower(false);
}

#[test]
fn what_a_follower_could_not_fetch_goes_back_to_the_list_of_the_other_server() {
    goes_back_with_a_follower(true);
}

/// A document with a body that is a value, as a producer may send it.
fn with_value() -> Sample {
    let mut sample = Sample::small();
    sample.document["analysis"] =
        json!([{"type": "summary", "dialog": 0, "vendor": "x", "body": {"text": "short"}}]);
    sample
}

/// The same as the older generation has written it.
fn with_text() -> Sample {
    let mut sample = with_value();
    sample.document["analysis"][0]["body"] = "{\"text\": \"short\"}".into();
    sample.document["analysis"][0]["encoding"] = "json".into();
    sample
}

#[test]
fn an_older_deployment_is_switched_over_and_back() {
    let (redis, files) = (Redis::new().json().locked().started(), Files::new());
    let config = json!({
        "links": {
            "tagger": {"module": "links.tag", "options": {"tags": ["seen"]}},
            "slim": {"module": "links.diet", "options": {"remove_dialog_body": true, "remove_attachment_types": ["image/png"]}},
            "router": {"module": "links.tag_router", "options": {"tag_routes": {"seen": "special", "other": "special"}}},
        },
        "storages": {"files": files.storage()},
        "chains": {"main": {
            "links": ["tagger", "slim", "router"], "storages": ["files"],
            "ingress_lists": ["default"], "egress_lists": ["done"], "enabled": 1,
        }},
    });
    let existing = Existing::new(
        &config,
        &[
            ("REDIS_URL", &redis.url()),
            ("OPENAI_API_KEY", KEY),
            ("CONSERVER_VCON_CONCURRENCY", "2"),
            ("VCON_DLQ_EXPIRY", "0"),
        ],
    );
    let (texts_there, values) = (vec![with_text(), with_text()], vec![with_value()]);
    submit(&redis, "default", &texts_there);
    submit(&redis, "default", &values);
    let dead = fresh(2);
    submit(&redis, "DLQ:default", &dead);
    // One that only the storage has any longer.
    let stored = Sample::small();
    let folder = files.folder().join("2024/03/16");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(format!("{}.json", stored.id)), stored.text()).expect("a file");
    push(&redis, "default", std::slice::from_ref(&stored));

    let plan = existing.plan(&redis, 0);
    assert_eq!(plan["generation"]["is"], "older", "{plan:#}");
    let documents = &plan["waiting"]["documents"];
    assert_eq!(documents["redis_json"], 5, "{documents}");
    assert!(
        documents["bodies_as_text"].as_u64() >= Some(2),
        "{documents}"
    );
    let differences = texts(&plan["differences"], "id");
    for id in [
        "dead_letter_expiry_0",
        "diet_types",
        "diet_nothing",
        "route_twice",
        "one_worker",
    ] {
        assert!(differences.contains(&id), "{id}: {differences:?}");
    }
    let line = |name: &str| {
        let lines = plan["environment"].as_array().expect("lines");
        lines.iter().find(|line| line["name"] == name).cloned()
    };
    assert_eq!(line("VCON_REDIS_FORMAT").expect("a line")["value"], "json");
    assert_eq!(line("VCON_JSON_BODIES").expect("a line")["value"], "text");
    let url = line("REDIS_URL").expect("a line");
    assert_eq!(url["value"], Value::Null);
    assert!(
        url["why"].as_str().expect("a text").contains("***@"),
        "{url}"
    );
    assert_eq!(line("OPENAI_API_KEY"), None, "nothing here reads it");

    let mut service = Service::of(&plan, &existing);
    service.follow(&plan["switch"], &existing);
    let done = || redis.length("done") == 6;
    wait_until("all that waited is done", PATIENCE, done);
    let all = [
        &texts_there[..],
        &values,
        &dead,
        std::slice::from_ref(&stored),
    ]
    .concat();
    assert_eq!(files.paths().len(), all.len());
    assert_eq!(redis.length("special"), all.len());
    for sample in [&texts_there[..], &values].concat() {
        let document = redis.document(&sample.id).expect("a document");
        let part = &document["analysis"][0];
        let body: Value =
            serde_json::from_str(part["body"].as_str().expect("a text")).expect("JSON");
        assert!(same(&body, &json!({"text": "short"})), "{document}");
        assert_eq!(part["encoding"], "json");
    }

    service.follow(&plan["way_back"], &existing);
    assert!(service.daemon.is_none());
    // A document that came back from the storage expires.
    assert!(redis.ask::<i64>(&["TTL", &format!("vcon:{}", stored.id)]) > 0);
    finds_what_it_knows(&redis, &["default", "done", "special"], "ReJSON-RL");
    assert_eq!(redis.length("default"), 0);
}

#[test]
fn what_would_not_work_is_named_and_there_is_a_plan_all_the_same() {
    let (redis, files) = (Redis::plain(), Files::new());
    submit(&redis, "default", &fresh(3));
    redis.ask::<()>(&["SET", "odd", "no list"]);
    let config = json!({
        "links": {
            "tagger": {"module": "links.tag", "options": {"tags": [{"a": "b"}]}},
            "far": {"module": "links.scitt", "options": {"OPENAI_API_KEY": KEY}},
        },
        "storages": {"files": files.storage(), "mongo": {"module": "storage.mongo"}},
        "tracers": {"audit": {"module": "tracers.jlinc"}},
        "chains": {"main": {
            "links": ["tagger", "far", "gone"], "storages": ["files"], "ingress_lists": ["default", "odd"],
        }},
    });
    let existing = Existing::new(
        &config,
        &[
            ("REDIS_URL", &redis.url()),
            ("CONSERVER_WORKERS", "many"),
            ("CONSERVER_PARALLEL_STORAGE", "nope"),
            ("VCON_REDIS_FORMAT", "json"),
        ],
    );
    let plan = existing.plan(&redis, 65);
    let problems = plan["problems"].to_string();
    for word in [
        "CONSERVER_WORKERS",
        "CONSERVER_PARALLEL_STORAGE",
        "links.tagger.options.tags",
        "links.far",
        "storages.mongo",
        "tracers.audit",
        "`gone` is not defined",
        "VCON_REDIS_FORMAT=json",
        "the key odd is not a list",
    ] {
        assert!(problems.contains(word), "{word}: {plan:#}");
    }
    let runs = |section: &str, name: &str| {
        let rows = plan["modules"].as_array().expect("rows");
        let row = rows
            .iter()
            .find(|row| row["section"] == section && row["name"] == name);
        row.expect("a row")["runs"].clone()
    };
    assert_eq!(runs("links", "tagger"), "refused");
    assert_eq!(runs("links", "far"), "missing");
    assert_eq!(runs("storages", "files"), "built_in");
    assert_eq!(runs("storages", "mongo"), "missing");
    assert_eq!(runs("tracers", "audit"), "missing");
    assert_eq!(entries(&plan, "default"), 3);
    assert_eq!(entries(&plan, "odd"), Value::Null);
    assert!(!plan["switch"].as_array().expect("steps").is_empty());
}

#[test]
fn it_plans_without_redis_and_names_one_that_is_away() {
    let redis = Redis::new().locked();
    let config = json!({"chains": {"main": {"ingress_lists": ["default"]}}});
    let existing = Existing::new(&config, &[("REDIS_URL", &redis.url())]);
    let (file, conserver) = (existing.env_file(), Conserver::without_redis());
    let away = run(&conserver, &["migrate", "--env-file", &file, "--check"], 65);
    said(&away, &["could not connect to Redis", "--generation"]);
    shows_no_secret(&away);
    run(&conserver, &["migrate", "--env-file", &file], 0);
    let arguments = [
        "migrate",
        "--env-file",
        &file,
        "--check",
        "--offline",
        "--generation",
        "older",
    ];
    said(
        &run(&conserver, &arguments, 0),
        &["VCON_REDIS_FORMAT=json", "VCON_JSON_BODIES=text"],
    );
    let wrong = Existing::new(
        &config,
        &[("REDIS_URL", "redis://host:GeheimesRedisWort/x")],
    );
    let wrong = run(
        &conserver,
        &["migrate", "--env-file", &wrong.env_file(), "--check"],
        65,
    );
    said(&wrong, &["REDIS_URL"]);
    shows_no_secret(&wrong);
}

#[test]
fn it_takes_the_environment_of_the_process_and_the_file_on_the_command_line() {
    let redis = Redis::plain();
    submit(&redis, "default", &fresh(1));
    let config = json!({"chains": {"main": {"ingress_lists": ["default"]}}});
    let conserver = Conserver::with(&redis).config(&config).workers(2);
    let shown = run(&conserver, &["migrate", "--check"], 0);
    said(&shown, &["CONSERVER_WORKERS", &redis.url()]);
    assert!(!shown.output().contains("TMPDIR"), "{}", shown.output());
    let missing = conserver.folder().join("none.yml").display().to_string();
    let without = run(
        &conserver,
        &["migrate", "--check", "--config", &missing],
        65,
    );
    said(&without, &["there is no such file"]);
    // Nothing is a plan for a file of variables that is not there.
    let refused = run(&conserver, &["migrate", "--env-file", "/none/there"], 64);
    said(&refused, &["/none/there: could not be read"]);
    fs::write(conserver.folder().join("odd.env"), format!("{KEY} {KEY}\n")).expect("a file");
    let refused = run(&conserver, &["migrate", "--env-file", "odd.env"], 64);
    said(&refused, &["odd.env:1:"]);
    shows_no_secret(&refused);
}

/// Modules after those of a deployment. Each writes what it is called with to the file `calls`.
const COMMON: &str = r#"
import json, os

def called(*what):
    with open(os.environ["CALLS"], "a") as file:
        print(json.dumps(what), file=file)
"#;

const LINK: &str = r#"
import os
import store
from lib.calls import called

called("has its key", os.environ["OPENAI_API_KEY"].startswith("sk-"))

def run(vcon_uuid, link_name, opts):
    vcon = store.load(vcon_uuid)
    body = {"by": link_name, "prompt": opts["prompt"]}
    vcon["analysis"].append({"type": "summary", "dialog": 0, "vendor": "x", "body": body})
    store.save(vcon_uuid, vcon)
    called("link", vcon_uuid, link_name)
    return vcon_uuid
"#;

const STORAGE: &str = r#"
import store
from lib.calls import called

default_options = {"shelf": "usual"}

def save(vcon_uuid, opts=default_options):
    parts = [part["type"] for part in store.load(vcon_uuid)["analysis"]]
    called("storage", vcon_uuid, opts["shelf"], parts[-2:])
"#;

const TRACER: &str = r#"
from lib.calls import called

def run(in_vcon_uuid, out_vcon_uuid, tracer_name, links, link_index, opts={}):
    called("tracer", in_vcon_uuid, tracer_name, link_index)
    return True
"#;

const IMPORT: &str = r#"
from lib.calls import called

called("import")
"#;

const PACKAGED: &str = r#"
import store

def run(vcon_uuid, link_name, opts):
    vcon = store.load(vcon_uuid)
    vcon["analysis"].append({"type": "rating", "dialog": 0, "vendor": "x", "body": {"scale": opts["scale"]}})
    store.save(vcon_uuid, vcon)
    return vcon_uuid
"#;

/// Packs a module as pip installs it.
const WHEEL: &str = r#"
import sys, zipfile

path, module, text = sys.argv[1:]
info = f"{module}-1.0.dist-info"
with zipfile.ZipFile(path, "w") as wheel:
    wheel.writestr(f"{module}.py", text)
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;

#[test]
fn a_deployment_with_python_modules_is_switched_over_and_back() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    for folder in ["links", "storage", "tracers", "lib"] {
        fs::create_dir(programs.folder().join(folder)).expect("a folder");
    }
    programs.write("lib/calls.py", COMMON);
    programs.write("links/scitt.py", LINK);
    programs.write("storage/shelf.py", STORAGE);
    programs.write("tracers/audit.py", TRACER);
    programs.write("helper.py", IMPORT);
    let wheel = programs.folder().join("visit_rating-1.0-py3-none-any.whl");
    let packed = Command::new("python3")
        .args(["-c", WHEEL])
        .arg(&wheel)
        .args(["visit_rating", PACKAGED])
        .status();
    assert!(packed.expect("Python").success());
    let config = json!({
        "imports": {"helper": {"module": "helper"}},
        "tracers": {"audit": {"module": "tracers.audit", "options": {"dlq_vcon_on_error": true}}},
        "links": {
            "tagger": {"module": "links.tag", "options": {"tags": ["seen"]}},
            "analyze": {"module": "links.scitt", "options": {"prompt": "Sum it up"}},
            "rate": {"module": "visit_rating", "pip_name": &wheel, "options": {"scale": 5}},
            "spare": {"module": "links.never_there"},
        },
        "storages": {"shelf": {"module": "storage.shelf"}},
        "chains": {"main": {
            "links": ["tagger", "analyze", "rate"], "storages": ["shelf"],
            "ingress_lists": ["default"], "egress_lists": ["done"],
        }},
    });
    let existing = Existing::new(
        &config,
        &[
            ("REDIS_URL", &redis.url()),
            ("OPENAI_API_KEY", KEY),
            ("PYTHONPATH", &programs.folder().display().to_string()),
            (
                "CALLS",
                &programs.folder().join("calls").display().to_string(),
            ),
        ],
    );
    let samples = fresh(10);
    submit(&redis, "default", &samples);

    let plan = existing.plan(&redis, 65);
    let rows = plan["modules"].as_array().expect("rows").iter();
    let runs: Vec<(&str, &str)> = rows
        .map(|row| {
            (
                row["name"].as_str().expect("a name"),
                row["runs"].as_str().expect("a word"),
            )
        })
        .collect();
    assert_eq!(
        runs,
        [
            ("analyze", "python"),
            ("rate", "missing"),
            ("spare", "missing"),
            ("tagger", "built_in"),
            ("shelf", "python"),
            ("audit", "python"),
            ("helper", "python"),
        ]
    );
    let problems = plan["problems"].to_string();
    assert!(
        problems.contains("visit_rating") && !problems.contains("never_there"),
        "{problems}"
    );
    let differences = texts(&plan["differences"], "id");
    for id in ["pip_name", "python_hangs"] {
        assert!(differences.contains(&id), "{id}: {differences:?}");
    }
    let settings = texts(&plan["environment"], "name");
    assert_eq!(
        settings,
        [
            "CALLS",
            "OPENAI_API_KEY",
            "REDIS_URL",
            "CONSERVER_PYTHON_PATH"
        ]
    );

    fs::write(programs.folder().join("calls"), "").expect("a file");
    let mut service = Service::of(&plan, &existing);
    service.follow(&plan["switch"], &existing);
    let done = || redis.length("done") == samples.len();
    wait_until("all that waited is done", PATIENCE, done);
    let calls: Vec<Value> = programs
        .lines("calls")
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(calls.contains(&json!(["import"])) && calls.contains(&json!(["has its key", true])));
    for sample in &samples {
        let of_it: Vec<&Value> = calls.iter().filter(|call| call[1] == *sample.id).collect();
        let expected = [
            json!(["tracer", sample.id, "audit", -1]),
            json!(["tracer", sample.id, "audit", 0]),
            json!(["link", sample.id, "analyze"]),
            json!(["tracer", sample.id, "audit", 1]),
            json!(["tracer", sample.id, "audit", 2]),
            json!(["storage", sample.id, "usual", ["summary", "rating"]]),
        ];
        assert_eq!(of_it, expected.iter().collect::<Vec<_>>());
    }

    service.follow(&plan["way_back"], &existing);
    assert!(service.daemon.is_none());
    finds_what_it_knows(&redis, &["default", "done"], "string");
}

#[test]
fn it_tells_of_claims_that_are_left() {
    let (redis, (_hole, link)) = (Redis::plain(), stuck());
    let daemon = Conserver::with(&redis).config(&chain(&[link], &[])).start();
    submit(&redis, "default", &fresh(1));
    let is_claimed = || !redis.keys("conserver:claims:*").is_empty();
    wait_until("the vCon is claimed", PATIENCE, is_claimed);
    daemon.kill_family();
    let shown = run(daemon.conserver(), &["migrate"], 0);
    said(&shown, &["conserver here has 1 claim"]);
    let shown = run(daemon.conserver(), &["migrate", "--json"], 0);
    let plan: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let claims = json!([{"instance": "here", "entries": 1}]);
    assert_eq!(plan["waiting"]["claims"], claims);
}

#[test]
fn it_names_a_right_that_the_user_of_redis_lacks() {
    let redis = Redis::new().locked().started();
    submit(&redis, "default", &fresh(1));
    let rules = [
        "ACL",
        "SETUSER",
        "worker",
        "resetkeys",
        "~vcon:*",
        "~DLQ:*",
        "~conserver:*",
    ];
    redis.ask::<()>(&rules);
    let config = json!({"chains": {"main": {"ingress_lists": ["default"]}}});
    let existing = Existing::new(&config, &[("REDIS_URL", &redis.url())]);
    let plan = existing.plan(&redis, 65);
    assert!(plan["problems"].to_string().contains("NOPERM"), "{plan:#}");
}
