//! All modules of a deployment at once, built-in links and storages among them: a few vCons without any
//! trouble, and many while workers and hosts are killed.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::calls::{Course, Excess, Expected, begin_with_imports, by_original, count_from_one};
use super::{bare, hosts, module, sample, told};
use crate::harness::{
    Call, Conserver, Daemon, Deployment, Files, Mongo, PATIENCE, Redis, Sample, Sshd,
    number_from_env, same, submit, wait_until,
};

/// Every so-manyth of the vCons has such a subject; all others are `plain`.
const SUBJECTS: [&str; 6] = [
    "moves on", "stops", "refused", "falters", "skipped", "unwanted",
];

/// How often the link `falters` does not reach its server.
const TIMES: usize = 2;

/// How often each of workers and hosts is killed.
const KILLS: usize = 4;

const WORKERS: usize = 2;
const LANES: usize = 2;

/// Names and modules of the links, in the order of the chain; those of `links.tag` are built in.
const LINKS: [(&str, &str); 12] = [
    ("tagger", "links.tag"),
    ("first mark", "links.marks"),
    ("waits", "links.awaits"),
    ("counts", "links.counts"),
    ("measures", "links.packaged"),
    ("talks", "links.talks"),
    ("falters", "links.falters"),
    ("stops", "links.stops"),
    ("refuses", "links.refuses"),
    ("rests", "links.sleeps"),
    ("moves", "links.moves_on"),
    ("last", "links.tag"),
];

/// Names and modules of the storages of the deployment.
const STORAGES: [(&str, &str); 5] = [
    ("shelf", "storage.shelf"),
    ("drawer", "storage.drawer"),
    ("moody", "storage.moody"),
    ("papers", "storage.papers"),
    ("remote", "storage.sftp"),
];

/// A deployment with all its servers.
struct Scene {
    redis: Redis,
    deployment: Deployment,
    files: Files,
    shelf: Files,
    mongo: Mongo,
    sshd: Sshd,
    config: Value,
    samples: Vec<Sample>,
}

impl Scene {
    fn new(redis: Redis, count: usize) -> Self {
        let (files, shelf) = (Files::new(), Files::new());
        let (mongo, sshd) = (Mongo::start(), Sshd::start());
        let options = |name: &str| match name {
            "tagger" => json!({"tags": ["checked"]}),
            "first mark" => {
                json!({"tag": "first", "list": [1, "2", null, 1.5, true], "ä": {"ö": "ü"}})
            }
            "counts" => json!({"after_link": {"note": "counted"}}),
            "talks" => json!({"program": false}),
            "falters" => json!({"times": TIMES}),
            "rests" => json!({"seconds": 0.002}),
            "last" => json!({"tags": ["last"]}),
            "papers" => mongo.options(),
            "remote" => sshd.options(),
            "moody" => json!({"every": 40}),
            _ => Value::Null,
        };
        let section = |rows: &[(&str, &str)]| -> Value {
            let entry = |(name, path): &(&str, &str)| {
                let options = options(name);
                let entry = if options.is_null() {
                    bare(path)
                } else {
                    module(path, options)
                };
                ((*name).to_owned(), entry)
            };
            rows.iter()
                .map(entry)
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let names = |rows: &[(&str, &str)]| -> Vec<String> {
            rows.iter().map(|(name, _)| (*name).to_owned()).collect()
        };
        let mut storages = section(&STORAGES);
        storages["files"] = files.storage();
        let mut of_chain = names(&STORAGES);
        of_chain.push("files".to_owned());
        let config = json!({
            "links": section(&LINKS),
            "storages": storages,
            "tracers": {"audit": {"module": "tracers.audit", "options": {"to": "nobody"}}},
            "imports": {"opening": {"module": "practice.opening"}},
            "chains": {"main": {"links": names(&LINKS), "storages": of_chain,
                "ingress_lists": ["default"], "egress_lists": ["done"], "enabled": 1}},
        });
        let subject = |n: usize| match n % 20 {
            rest if rest < SUBJECTS.len() => SUBJECTS[rest],
            _ => "plain",
        };
        let samples = (0..count).map(|n| sample(subject(n))).collect();
        Self {
            redis,
            deployment: Deployment::new(),
            files,
            shelf,
            mongo,
            sshd,
            config,
            samples,
        }
    }

    fn start(&self) -> Daemon {
        Conserver::with(&self.redis)
            .config(&self.config)
            .env("CONSERVER_PYTHON_PATH", self.deployment.path_with_hooks())
            .env("SHELF_FOLDER", self.shelf.folder())
            // No vCon is to blame for what the tests kill.
            .env("CONSERVER_MAX_DEATHS", "0")
            .workers(WORKERS)
            .lanes(LANES)
            .start()
    }

    fn with_subject(&self, subject: &str) -> Vec<&Sample> {
        let is_it = |sample: &&Sample| sample.document["subject"] == subject;
        self.samples.iter().filter(is_it).collect()
    }

    /// Waits until every vCon is where it ends.
    fn settles(&self) {
        let lost = self.with_subject("stops").len() + self.with_subject("skipped").len();
        let dead = self.with_subject("refused").len();
        let done = self.samples.len() - lost - dead;
        wait_until("all is over", PATIENCE * 20, || {
            self.redis.length("default") == 0
                && self.redis.length("done") >= done
                && self.redis.length("DLQ:default") >= dead
                && self.redis.length("DLQ:storage:moody") >= self.with_subject("unwanted").len()
                && self.redis.keys("conserver:claims:*").is_empty()
        });
    }

    /// Fails unless each vCon is where its subject sends it, once, and nowhere else. Returns the ids that the
    /// copies stand for, by copy.
    fn ledger_is_exact(&self) -> BTreeMap<String, String> {
        let redis = &self.redis;
        let mut copies = BTreeMap::new();
        let mut done: Vec<String> = redis.list("done");
        let ids: Vec<&str> = done.iter().map(String::as_str).collect();
        let documents = redis.documents(&ids);
        let mut expected: BTreeMap<String, Value> = BTreeMap::new();
        for (id, document) in ids.iter().zip(documents) {
            let document = document.unwrap_or_else(|| panic!("{id} has no document"));
            if let Some(original) = document["copy_of"].as_str() {
                copies.insert((*id).to_owned(), original.to_owned());
            }
            is_worked_on(&document);
            expected.insert((*id).to_owned(), document);
        }
        let original = |id: &String| copies.get(id).unwrap_or(id).clone();
        let mut originals: Vec<String> = done.iter().map(original).collect();
        originals.sort_unstable();
        assert_eq!(
            originals,
            sorted(&self.ids_of(&["plain", "moves on", "falters", "unwanted"]))
        );
        let moved: BTreeSet<String> = copies.values().cloned().collect();
        assert_eq!(moved, self.ids_of(&["moves on"]).into_iter().collect());
        let lists = [
            ("DLQ:default", "refused"),
            ("DLQ:storage:moody", "unwanted"),
        ];
        for (list, subject) in lists {
            assert_eq!(
                sorted(&redis.list(list)),
                sorted(&self.ids_of(&[subject])),
                "{list}"
            );
        }
        assert_eq!(redis.length("default"), 0);
        assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());

        done.sort_unstable();
        let by_id =
            |of: &Value, key: &str| (of[key].as_str().unwrap_or_default().to_owned(), of.clone());
        let drawer: BTreeMap<String, String> = redis.ask(&["HGETALL", "drawer"]);
        let parse = |text: &String| serde_json::from_str(text).expect("JSON");
        let drawer = drawer
            .iter()
            .map(|(id, text)| (id.clone(), parse(text)))
            .collect();
        let mut papers: BTreeMap<String, Value> = self
            .mongo
            .documents()
            .iter()
            .map(|it| by_id(it, "_id"))
            .collect();
        for paper in papers.values_mut() {
            paper.as_object_mut().expect("an object").remove("_id");
        }
        let folder = |files: &Files| files.documents().into_iter().collect();
        let copies_of: [(&str, BTreeMap<String, Value>); 5] = [
            ("files", folder(&self.files)),
            ("shelf", folder(&self.shelf)),
            ("remote", folder(&self.sshd.files())),
            ("drawer", drawer),
            ("papers", papers),
        ];
        for (storage, stored) in copies_of {
            let ids: Vec<&String> = stored.keys().collect();
            assert!(
                ids.iter().copied().eq(&done),
                "{storage} has not what is done: {ids:?}"
            );
            for (id, document) in &stored {
                let in_redis = &expected[id];
                assert!(
                    same(document, in_redis),
                    "{storage} has {document}, not {in_redis}"
                );
            }
        }
        let moody: BTreeSet<String> = redis.ask(&["SMEMBERS", "moody"]);
        let unwanted: BTreeSet<String> = self.ids_of(&["unwanted"]).into_iter().collect();
        let wanted: BTreeSet<String> = done
            .into_iter()
            .filter(|id| !unwanted.contains(id))
            .collect();
        assert_eq!(moody, wanted);
        copies
    }

    fn ids_of(&self, subjects: &[&str]) -> Vec<String> {
        let of = |subject: &&str| self.with_subject(subject).into_iter();
        let ids = subjects.iter().flat_map(of);
        ids.map(|sample| sample.id.clone()).collect()
    }

    /// Fails unless each module was called with the right arguments in the right order. Returns what came
    /// beyond that.
    fn calls_are_right(&self, copies: &BTreeMap<String, String>) -> Excess {
        let calls = self.redis.calls();
        begin_with_imports(&calls);
        count_from_one(&calls);
        for call in calls.iter().filter(|call| call.call.ends_with(".save")) {
            assert_eq!(call.found, Some(true), "no document for {call:?}");
        }
        let mut by_vcon = by_original(calls, copies);
        let mut sum = Excess::default();
        for sample in &self.samples {
            let calls = by_vcon.remove(&sample.id).unwrap_or_default();
            let copy = copies.iter().find(|(_, original)| **original == sample.id);
            let course = self.course(sample, copy.map(|(copy, _)| copy.as_str()));
            let excess = course.follows(sample, &calls);
            sum.repeated += excess.repeated;
            sum.left_out += excess.left_out;
        }
        assert!(
            by_vcon.is_empty(),
            "calls about others: {:?}",
            by_vcon.keys()
        );
        sum
    }

    /// What a vCon is to go through.
    fn course(&self, sample: &Sample, copy: Option<&str>) -> Course {
        let subject = sample.document["subject"].as_str().expect("a subject");
        let mut course = Course::default();
        let mut id: &str = &sample.id;
        let chain = told(&self.config, "main");
        let fresh = json!({"ingress_list": "default"});
        let seen = json!({"ingress_list": "default", "seen before": id});
        let none = json!({});
        let before = [json!(id), chain.clone(), fresh.clone()];
        course.looks(vec![Expected::new(
            "hook.before_processing",
            &before,
            none.clone(),
        )]);
        // Where the process is another by now, it has another context, too.
        let after = |id: &str, error: &Value| {
            let form = |context: &Value| {
                let arguments = [json!(id), chain.clone(), context.clone()];
                Expected::new("hook.after_processing", &arguments, json!({"error": error}))
            };
            vec![form(&seen), form(&fresh)]
        };
        if subject == "skipped" {
            course.looks(after(id, &Value::Null));
            return course;
        }
        let names: Vec<&str> = LINKS.iter().map(|(name, _)| *name).collect();
        let trace = |inward: &str, outward: &str, index: i64| {
            let options = self.config["tracers"]["audit"]["options"].clone();
            let arguments = [
                json!(inward),
                json!(outward),
                json!("audit"),
                json!(names),
                json!(index),
                options,
            ];
            vec![Expected::new("tracers.audit.run", &arguments, json!({}))]
        };
        course.looks(trace(id, id, -1));
        for (index, (name, path)) in LINKS.iter().enumerate() {
            let options = self.config["links"][name]["options"].clone();
            if *path != "links.tag" {
                let arguments = [json!(id), json!(name), options.clone()];
                let call = Expected::new(&format!("{path}.run"), &arguments, none.clone());
                course.works(vec![call]);
            }
            let told = |status: &str, error: Value| {
                let of_hook = options.get("after_link").cloned().unwrap_or(json!({}));
                let parties = json!(["+15550100", "ole@example.org"]);
                let arguments = [
                    json!(id),
                    json!(name),
                    json!({"module": path}),
                    options.clone(),
                    of_hook,
                    json!(status),
                    error,
                    parties,
                ];
                Expected::new("after_link_hook.after_link", &arguments, none.clone())
            };
            if subject == "refused" && *path == "links.refuses" {
                let text = format!("nothing can be done\nfor {id}");
                let shown = format!("ValueError: nothing can be done for {id}");
                // What was raised; where its process is gone by now, what is known of it.
                let raised = json!({"exception": "ValueError", "text": text});
                let known = json!({"exception": "Exception", "text": shown});
                let errors = [raised, known];
                let forms = errors.iter().map(|error| told("error", error.clone()));
                course.looks(forms.collect());
                let forms = errors.iter().flat_map(|error| after(id, error));
                course.looks(forms.collect());
                return course;
            }
            course.looks(vec![told("success", Value::Null)]);
            let from = id;
            if let (Some(copy), "links.moves_on") = (copy, *path) {
                id = copy;
            }
            course.looks(trace(id, from, index.try_into().expect("small")));
            if subject == "stops" && *path == "links.stops" {
                course.looks(after(id, &Value::Null));
                return course;
            }
        }
        let saves = STORAGES.iter().map(|(name, path)| {
            let options = &self.config["storages"][name]["options"];
            let options = match *path {
                "storage.shelf" => json!({"folder": self.shelf.folder(), "indent": 1}),
                "storage.drawer" => json!({"drawer": "drawer", "locked": false}),
                _ => options.clone(),
            };
            Expected::new(&format!("{path}.save"), &[json!(id), options], none.clone())
        });
        course.works(saves.collect());
        course.looks(after(id, &Value::Null));
        course
    }
}

/// Fails unless the document shows what all links have written.
fn is_worked_on(document: &Value) {
    for tag in ["checked:checked", "marks:first", "last:last"] {
        let attachments = document["attachments"].to_string();
        assert_eq!(attachments.matches(tag).count(), 1, "{tag}: {document}");
    }
    assert!(document["bson_size"].is_u64(), "{document}");
}

fn sorted(ids: &[String]) -> Vec<String> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

fn every_module_is_called_in_order(redis: Redis) {
    let scene = Scene::new(redis, 40);
    let daemon = scene.start();
    submit(&scene.redis, "default", &scene.samples);
    scene.settles();
    let copies = scene.ledger_is_exact();
    let excess = scene.calls_are_right(&copies);
    assert_eq!(excess.left_out, 0);
    // A link and a storage do not always reach their servers; nothing else is done twice.
    let faltering = scene.with_subject("falters").len() * TIMES;
    let calls = scene.redis.calls();
    let moods = calls
        .iter()
        .filter(|it| it.call == "storage.moody.save")
        .count()
        / 40;
    assert!(
        excess.repeated <= faltering * 3 + moods,
        "{excess:?}: {faltering} failures of a link and {moods} of a storage"
    );
    // The copy of a vCon stands for it from then on.
    assert_eq!(copies.len(), scene.with_subject("moves on").len());
    daemon.stop();
}

#[test]
fn every_module_is_called_in_order_where_documents_are_strings() {
    every_module_is_called_in_order(Redis::plain());
}

#[test]
fn every_module_is_called_in_order_where_documents_are_of_redisjson() {
    every_module_is_called_in_order(Redis::with_json());
}

/// Kills one of these processes, the one that the number falls on.
fn kill_one(pids: &[i32], number: usize) {
    if let Some(pid) = pids.get(number % pids.len().max(1)) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

#[test]
fn nothing_is_lost_or_called_out_of_order_while_workers_and_hosts_are_killed() {
    let count = number_from_env("CONSERVER_TEST_DEPLOYED", 80);
    let scene = Scene::new(Redis::plain(), count);
    let daemon = scene.start();
    submit(&scene.redis, "default", &scene.samples);
    let mut killed_workers = BTreeSet::new();
    for n in 0..2 * KILLS {
        let left = count - count * (n + 1) / (2 * KILLS + 2);
        let what = format!("{left} of {count} vCons are left");
        wait_until(&what, PATIENCE * 5, || {
            scene.redis.length("default") <= left
        });
        let number = fastrand::usize(..);
        if n % 2 == 0 {
            let mut pids = Vec::new();
            wait_until("a host runs", PATIENCE, || {
                pids = hosts(&daemon);
                !pids.is_empty()
            });
            kill_one(&pids, number);
        } else {
            let workers: Vec<i32> = daemon.workers().into_values().collect();
            let worker = workers[number % workers.len()];
            killed_workers.insert(worker);
            kill_one(&workers, number);
            wait_until("the worker is replaced", PATIENCE, || {
                !daemon.workers().values().any(|pid| *pid == worker)
            });
        }
    }
    scene.settles();
    let copies = scene.ledger_is_exact();
    let excess = scene.calls_are_right(&copies);
    println!(
        "{count} vCons, {} workers and {KILLS} hosts killed: {excess:?}",
        killed_workers.len()
    );
    assert_eq!(killed_workers.len(), KILLS);
    // A killed host takes one call of a hook or tracer along at most.
    assert!(excess.left_out <= KILLS, "{excess:?}");
    assert!(daemon.log().contains("died unexpectedly"));
    daemon.stop();
    let calls: Vec<Call> = scene.redis.calls();
    let processes: BTreeSet<i32> = calls.iter().map(|call| call.pid).collect();
    assert!(
        processes.len() > WORKERS * LANES,
        "{} hosts",
        processes.len()
    );
}
