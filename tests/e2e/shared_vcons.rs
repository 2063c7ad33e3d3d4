//! One vCon in several hands: two chains, a chain and a producer. No change of anyone's is lost.

mod kills;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, PATIENCE, Programs, Redis, Sample, Webhook, delay, exec,
    number_from_env, relay, submit, wait_until,
};

/// vCons at work at one time.
const AT_ONCE: usize = 20;

/// A file storage, and a Redis of either kind.
fn places() -> [(Redis, Files); 2] {
    [Redis::plain(), Redis::with_json()].map(|redis| (redis, Files::new()))
}

fn samples() -> Vec<Sample> {
    let count = number_from_env("CONSERVER_TEST_SHARED", 20);
    (0..count).map(|_| Sample::small()).collect()
}

/// A link that adds this tag.
fn tag(tag: &str) -> Value {
    json!({"module": "links.tag", "options": {"tags": [tag]}})
}

/// Chains, each from the list of its name to the list `<name>_done`, and what they are made of.
fn config(files: &Files, links: Value, chains: &[(&str, &[&str])]) -> Value {
    let chain = |(name, links): &(&str, &[&str])| {
        let chain = json!({"links": links, "storages": ["files"], "ingress_lists": [name],
            "egress_lists": [format!("{name}_done")]});
        ((*name).to_owned(), chain)
    };
    let chains: serde_json::Map<String, Value> = chains.iter().map(chain).collect();
    json!({"links": links, "storages": {"files": files.storage()}, "chains": chains})
}

/// A daemon with so many lanes for each vCon that is at work at one time.
fn daemon(redis: &Redis, config: &Value, method: &str, hands: usize) -> Daemon {
    Conserver::with(redis)
        .config(config)
        .method(method)
        .workers(2)
        .lanes(AT_ONCE * hands / 2)
        .start()
}

/// Waits until these vCons are through, and fails unless each list has each of them once for each
/// time it was pushed, and nothing is left.
fn settles(redis: &Redis, samples: &[Sample], lists: &[(&str, usize)]) {
    for (list, times) in lists {
        let done = format!("{list}_done");
        wait_until(&format!("{done} has all"), PATIENCE * 5, || {
            let dead = redis.list(&format!("DLQ:{list}"));
            assert!(dead.is_empty(), "dead letters: {dead:?}");
            redis.length(&done) >= samples.len() * times
        });
        let mut found = redis.list(&done);
        let ids = samples.iter().map(|sample| sample.id.clone());
        let mut expected: Vec<String> = ids.cycle().take(samples.len() * times).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert!(found == expected, "{done} has not each vCon {times} times");
        assert_eq!(redis.length(list), 0);
    }
    assert_eq!(redis.keys("conserver:claims:*"), Vec::<String>::new());
}

/// The names of a document's tags, of which there is one attachment.
fn tags_of(document: &Value) -> BTreeSet<String> {
    let attachments = document["attachments"].as_array().expect("a list");
    let tags: Vec<&Value> = attachments
        .iter()
        .filter(|attachment| attachment["purpose"] == "tags")
        .collect();
    assert_eq!(tags.len(), 1, "{document}");
    let tags: Vec<String> =
        serde_json::from_str(tags[0]["body"].as_str().expect("text")).expect("tags");
    let count = tags.len();
    let name = |tag: &String| tag.split_once(':').expect("a tag").0.to_owned();
    let names: BTreeSet<String> = tags.iter().map(name).collect();
    assert_eq!(names.len(), count, "{tags:?}");
    names
}

/// Fails unless `is_right` holds for each document in Redis and in the file storage.
fn all_are(
    what: &str,
    redis: &Redis,
    files: &Files,
    samples: &[Sample],
    is_right: impl Fn(&Value) -> bool,
) {
    let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
    let in_redis = redis.documents(&ids).into_iter();
    let in_redis: Vec<Value> = in_redis.map(|it| it.expect("a document")).collect();
    let in_files: Vec<Value> = files.documents().into_iter().map(|(_, it)| it).collect();
    for (place, documents) in [("Redis", in_redis), ("the files", in_files)] {
        assert_eq!(documents.len(), samples.len(), "{place}");
        let wrong: Vec<&Value> = documents.iter().filter(|it| !is_right(it)).collect();
        let (first, wrong) = (wrong.first(), wrong.len());
        assert!(
            wrong == 0,
            "in {place} {wrong} of {} have not {what}, as {first:?}",
            documents.len()
        );
    }
}

fn has_tags(document: &Value, tags: &[&str]) -> bool {
    tags_of(document)
        .iter()
        .map(String::as_str)
        .eq(tags.iter().copied())
}

/// Waits until both chains are through with so many.
fn both_are_through(redis: &Redis, count: usize) {
    wait_until("both chains are through", PATIENCE, || {
        let through = |list: &&str| redis.length(list) >= count;
        ["left_done", "right_done"].iter().all(through)
    });
}

fn two_lists(method: &str) {
    for (redis, files) in places() {
        let (slowly, wait) = delay(0.2);
        let links = json!({slowly: wait, "first": tag("a"), "second": tag("b")});
        let chains: [(&str, &[&str]); 2] =
            [("left", &[slowly, "first"]), ("right", &[slowly, "second"])];
        let daemon = daemon(&redis, &config(&files, links, &chains), method, 2);
        let samples = samples();
        for (done, some) in samples.chunks(AT_ONCE).enumerate() {
            submit(&redis, "left", some);
            // The document as it is; only the entry is new.
            for sample in some {
                redis.ask::<i64>(&["RPUSH", "right", &sample.id]);
            }
            both_are_through(&redis, done * AT_ONCE + some.len());
        }
        settles(&redis, &samples, &[("left", 1), ("right", 1)]);
        all_are("both tags", &redis, &files, &samples, |it| {
            has_tags(it, &["a", "b"])
        });
        assert_eq!(daemon.count_in_log("[WARN]"), 0, "{}", daemon.log());
        daemon.stop();
    }
}

#[test]
fn two_chains_on_one_vcon_keep_each_others_tags_with_fork() {
    two_lists("fork");
}

#[test]
fn two_chains_on_one_vcon_keep_each_others_tags_with_spawn() {
    two_lists("spawn");
}

#[test]
fn two_chains_on_one_vcon_keep_each_others_tags_with_forkserver() {
    two_lists("forkserver");
}

/// A link that holds vCons until they are let go.
struct Gate {
    programs: Programs,
    open: PathBuf,
}

impl Gate {
    fn new() -> Self {
        let programs = Programs::new();
        let open = programs.folder().join("open");
        Self { programs, open }
    }

    /// A link that waits at the gate with what `change` makes of its vCon.
    fn link(&self, change: &str) -> Value {
        let text = format!(
            "{change} >\"$TMP.$$\"; echo $$ >>\"$SEEN\"\n\
             until [ -e \"$OPEN\" ]; do sleep 0.1; done\n\
             cat \"$TMP.$$\"; rm \"$TMP.$$\""
        );
        let program = self.programs.shell("gate", &text);
        let folder = self.programs.folder();
        exec(&json!({"command": [program], "timeout": 300, "env": {
            "SEEN": folder.join("seen"), "OPEN": self.open, "TMP": folder.join("out")}}))
    }

    /// Waits until so many vCons are at the gate, has something done, and lets them go.
    fn meanwhile(&self, count: usize, what: impl FnOnce()) {
        wait_until(&format!("{count} vCons are at the gate"), PATIENCE, || {
            self.programs.lines("seen").len() >= count
        });
        what();
        fs::write(&self.open, "").expect("a file");
    }

    /// The gate is closed again, and nobody has been there.
    fn close(&self) {
        fs::remove_file(&self.open).expect("a file");
        fs::remove_file(self.programs.folder().join("seen")).expect("a file");
    }
}

/// Takes all vCons through the chain `main`, a tag and then the gate; while they are at the gate,
/// `meanwhile` happens. Each is to come out so many times.
fn at_the_gate(
    redis: &Redis,
    files: &Files,
    change: &str,
    times: usize,
    meanwhile: impl Fn(&[Sample]),
) -> (Daemon, Vec<Sample>) {
    let gate = Gate::new();
    let links = json!({"tagger": tag("a"), "gate": gate.link(change)});
    let config = config(files, links, &[("main", &["tagger", "gate"])]);
    // A lane for each: what is pushed meanwhile waits until they are through.
    let daemon = daemon(redis, &config, "fork", 1);
    let samples = samples();
    for (done, some) in samples.chunks(AT_ONCE).enumerate() {
        submit(redis, "main", some);
        gate.meanwhile(some.len(), || meanwhile(some));
        let sofar = (done * AT_ONCE + some.len()) * times;
        wait_until("they are through", PATIENCE, || {
            redis.length("main_done") >= sofar
        });
        gate.close();
    }
    settles(redis, &samples, &[("main", times)]);
    (daemon, samples)
}

/// Another version of a vCon, with another subject and an analysis.
fn newer(sample: &Sample, subject: &str) -> Sample {
    let mut newer = sample.clone();
    newer.document["subject"] = subject.into();
    newer.document["analysis"] = json!([{"type": "sentiment", "body": "good", "encoding": "none"}]);
    newer
}

/// Stores documents as a producer does, and announces nothing.
fn store(redis: &Redis, samples: &[Sample]) {
    for sample in samples {
        let (key, text) = (format!("vcon:{}", sample.id), sample.text());
        if redis.has_json() {
            redis.ask::<()>(&["JSON.SET", &key, "$", &text]);
        } else {
            redis.ask::<()>(&["SET", &key, &text]);
        }
    }
}

fn is_newer(document: &Value, subject: &str) -> bool {
    let analysis = document["analysis"].as_array().expect("a list");
    document["subject"] == subject && analysis.len() == 1 && analysis[0]["type"] == "sentiment"
}

#[test]
fn a_new_version_that_comes_while_the_old_one_is_in_work_stands_with_the_tag() {
    for (redis, files) in places() {
        let (daemon, samples) = at_the_gate(&redis, &files, "cat", 2, |some| {
            let versions: Vec<Sample> = some.iter().map(|it| newer(it, "newer")).collect();
            submit(&redis, "main", &versions);
        });
        all_are(
            "the new version and the tag",
            &redis,
            &files,
            &samples,
            |it| is_newer(it, "newer") && has_tags(it, &["a"]),
        );
        assert_eq!(daemon.count_in_log("[WARN]"), 0, "{}", daemon.log());
        daemon.stop();
    }
}

/// The script that has a vCon wait for its next round.
const POSTPONE: &str = concat!(
    include_str!("../../src/queue/scripts/claim_token.lua"),
    include_str!("../../src/queue/scripts/extend_ttl.lua"),
    include_str!("../../src/queue/scripts/put_back_context.lua"),
    include_str!("../../src/queue/scripts/progress.lua"),
    include_str!("../../src/queue/scripts/postpone.lua")
);

/// The links have written what they did, and the claim is let go at this moment.
#[test]
fn a_new_version_that_comes_just_before_the_next_round_gets_the_tag_too() {
    for (redis, files) in places() {
        let sample = Sample::small();
        let new = newer(&sample, "at the last moment");
        let webhook = Webhook::answering(&[503]);
        let (hash, is_stored) = (redis::Script::new(POSTPONE), AtomicBool::new(false));
        let (mut put, key) = (redis.connection(), format!("vcon:{}", sample.id));
        let put = Mutex::new(move |text: &str, has_json: bool| {
            let mut command = redis::cmd(if has_json { "JSON.SET" } else { "SET" });
            command.arg(&key).arg(has_json.then_some("$")).arg(text);
            command.query::<()>(&mut put).unwrap();
        });
        let (text, has_json) = (new.text(), redis.has_json());
        let url = relay(&redis, usize::MAX, move |bytes| {
            let hash = hash.get_hash().as_bytes();
            let is_postponed = bytes.windows(hash.len()).any(|part| part == hash);
            if is_postponed && !is_stored.swap(true, Ordering::SeqCst) {
                (put.lock().unwrap())(&text, has_json);
            }
        });
        let post = json!({"module": "links.webhook", "options": {"webhook-urls": [webhook.url()]}});
        let links = json!({"tag": tag("checked"), "post": post});
        let config = config(&files, links, &[("in", &["tag", "post"])]);
        let daemon = Conserver::with(&redis)
            .config(&config)
            .env("REDIS_URL", url)
            .env("CONSERVER_RETRY_ATTEMPTS", "1")
            .start();
        let samples = [sample];
        submit(&redis, "in", &samples);
        settles(&redis, &samples, &[("in", 1)]);
        let document = redis.document(&samples[0].id).unwrap();
        assert!(is_newer(&document, "at the last moment"), "{document}");
        assert!(has_tags(&document, &["checked"]), "{document}");
        assert_eq!(webhook.requests().len(), 2);
        daemon.stop();
    }
}

#[test]
fn a_new_version_of_a_vcon_that_no_link_has_changed_is_stored_as_well() {
    for (redis, files) in places() {
        let gate = Gate::new();
        let links = json!({"gate": gate.link("cat")});
        let config = config(&files, links, &[("main", &["gate"])]);
        let daemon = daemon(&redis, &config, "fork", 1);
        let samples = [Sample::small()];
        submit(&redis, "main", &samples);
        let new = newer(&samples[0], "new");
        gate.meanwhile(1, || store(&redis, &[new]));
        settles(&redis, &samples, &[("main", 1)]);
        let document = redis.document(&samples[0].id).unwrap();
        assert!(is_newer(&document, "new"), "{document}");
        daemon.stop();
    }
}

#[test]
fn a_vcon_that_is_deleted_while_in_work_is_not_brought_back() {
    for (redis, files) in places() {
        let (daemon, samples) = at_the_gate(&redis, &files, "cat", 1, |some| {
            for sample in some {
                redis.ask::<i64>(&["DEL", &format!("vcon:{}", sample.id)]);
            }
        });
        assert_eq!(redis.keys("vcon:*"), Vec::<String>::new());
        let in_files = files.documents();
        assert_eq!(in_files.len(), samples.len());
        for (id, document) in in_files {
            assert!(has_tags(&document, &["a"]), "{id}: {document}");
        }
        // Told after they are announced.
        wait_until("all of it is told", PATIENCE, || {
            daemon.count_in_log("was deleted from Redis") >= samples.len()
        });
        let log = daemon.log();
        for sample in &samples {
            let mut lines = log.lines().filter(|line| line.contains(&sample.id));
            let told = lines.any(|line| line.contains("[INFO]") && line.contains("deleted"));
            assert!(told, "{}: {log}", sample.id);
        }
        assert_eq!(daemon.count_in_log("[WARN]"), 0, "{log}");
        daemon.stop();
    }
}

#[test]
fn where_both_changed_the_same_the_chains_value_stands_and_the_log_says_so() {
    let change = r#"sed 's/"subject":"[^"]*"/"subject":"chain"/'"#;
    for (redis, files) in places() {
        let (daemon, samples) = at_the_gate(&redis, &files, change, 1, |some| {
            let versions: Vec<Sample> = some.iter().map(|it| newer(it, "producer")).collect();
            store(&redis, &versions);
        });
        all_are(
            "the chain's subject and the rest",
            &redis,
            &files,
            &samples,
            |it| is_newer(it, "chain") && has_tags(it, &["a"]),
        );
        let log = daemon.log();
        for sample in &samples {
            let mut lines = log.lines().filter(|line| line.contains(&sample.id));
            let told = lines.any(|line| line.contains("[WARN]") && line.contains("subject"));
            assert!(told, "{}: {log}", sample.id);
        }
        daemon.stop();
    }
}

#[test]
fn a_vcon_that_goes_on_and_is_routed_into_another_chain_keeps_the_tags_of_all() {
    for (redis, files) in places() {
        let (slowly, wait) = delay(0.2);
        let routes = json!({"tag_routes": {"a": "right"}});
        let links = json!({slowly: wait, "first": tag("a"), "second": tag("b"),
            "third": tag("c"), "router": {"module": "links.tag_router", "options": routes}});
        let chains: [(&str, &[&str]); 3] = [
            ("start", &["first", "router"]),
            ("left", &[slowly, "second"]),
            ("right", &[slowly, "third"]),
        ];
        let mut config = config(&files, links, &chains);
        config["chains"]["start"]["egress_lists"] = json!(["left"]);
        let daemon = daemon(&redis, &config, "fork", 2);
        let samples = samples();
        for (done, some) in samples.chunks(AT_ONCE).enumerate() {
            submit(&redis, "start", some);
            both_are_through(&redis, done * AT_ONCE + some.len());
        }
        settles(&redis, &samples, &[("left", 1), ("right", 1)]);
        all_are("all tags", &redis, &files, &samples, |it| {
            has_tags(it, &["a", "b", "c"])
        });
        assert_eq!(daemon.count_in_log("[WARN]"), 0, "{}", daemon.log());
        daemon.stop();
    }
}

/// A process that slept for longer than its lease goes on where it was: another one has worked on its
/// vCons meanwhile, and stored what it made of them.
#[test]
fn a_lane_that_has_lost_its_claim_leaves_no_old_document_in_a_storage() {
    for (redis, files) in places() {
        let gate = Gate::new();
        let links = json!({"tagger": tag("a"), "gate": gate.link("cat")});
        let config = config(&files, links, &[("main", &["tagger", "gate"])]);
        let daemon = daemon(&redis, &config, "fork", 1);
        let samples: Vec<Sample> = samples().into_iter().take(AT_ONCE).collect();
        submit(&redis, "main", &samples);
        gate.meanwhile(samples.len(), || {
            for claims in redis.keys("conserver:claims:*") {
                redis.ask::<i64>(&["DEL", &claims]);
            }
            let versions: Vec<Sample> = samples.iter().map(|it| newer(it, "newer")).collect();
            store(&redis, &versions);
        });
        wait_until("all lanes have found it", PATIENCE, || {
            daemon.count_in_log("released already") >= samples.len()
        });
        let is_new = |(_, document): &(String, Value)| is_newer(document, "newer");
        wait_until("the storage has the new ones", PATIENCE, || {
            let stored = files.documents();
            stored.iter().filter(|it| is_new(it)).count() >= samples.len()
        });
        assert_eq!(redis.length("main_done"), 0);
        daemon.stop();
        let stored = files.documents();
        assert!(stored.iter().all(is_new), "{stored:?}");
    }
}

/// One chain has stored what it made of a vCon, and waits for another storage; a second one, which
/// changes nothing, stores the vCon meanwhile, and is done before the first.
#[test]
fn a_chain_that_changes_nothing_leaves_no_old_document_while_another_waits_for_a_storage() {
    for (redis, files) in places() {
        let refuses = Arc::new(AtomicBool::new(true));
        let is_refused = Arc::clone(&refuses);
        let server = Webhook::unrecorded(move |_| {
            if is_refused.load(Ordering::SeqCst) {
                503
            } else {
                200
            }
        });
        let chains: [(&str, &[&str]); 2] = [("slow", &["tagger"]), ("plain", &[])];
        let mut config = config(&files, json!({"tagger": tag("a")}), &chains);
        config["storages"]["hook"] = json!({"module": "storage.webhook",
            "options": {"webhook-urls": [server.url()]}});
        config["chains"]["slow"]["storages"] = json!(["files", "hook"]);
        let daemon = Conserver::with(&redis)
            .config(&config)
            .workers(2)
            .lanes(AT_ONCE)
            .env("CONSERVER_RETRY_MAX_MS", "100")
            .env("CONSERVER_RETRY_ATTEMPTS", "1000")
            .start();
        let samples: Vec<Sample> = samples().into_iter().take(AT_ONCE).collect();
        submit(&redis, "slow", &samples);
        let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
        wait_until(
            "the slow chain waits for its other storage",
            PATIENCE,
            || {
                let documents = redis.documents(&ids).into_iter().flatten();
                let is_tagged = |document: &Value| document.to_string().contains("a:a");
                documents.filter(is_tagged).count() == samples.len()
            },
        );
        for sample in &samples {
            redis.ask::<i64>(&["RPUSH", "plain", &sample.id]);
        }
        wait_until("the other chain is done with them", PATIENCE, || {
            redis.length("plain_done") == samples.len()
        });
        refuses.store(false, Ordering::SeqCst);
        settles(&redis, &samples, &[("slow", 1), ("plain", 1)]);
        all_are("the tag", &redis, &files, &samples, |it| {
            has_tags(it, &["a"])
        });
        let stored = |storage: &str| daemon.count_in_log(&format!(" in {storage} in "));
        assert_eq!(stored("hook"), samples.len(), "{}", daemon.log());
        assert_eq!(stored("files"), 2 * samples.len(), "{}", daemon.log());
        daemon.stop();
    }
}

/// The same, but the other storage is only slow.
#[test]
fn a_chain_that_changes_nothing_leaves_no_old_document_beside_a_slow_storage() {
    for (redis, files) in places() {
        let is_slow = Arc::new(AtomicBool::new(true));
        let slow = Arc::clone(&is_slow);
        let server = Webhook::unrecorded(move |_| {
            wait_until("the server may answer", PATIENCE, || {
                !slow.load(Ordering::SeqCst)
            });
            200
        });
        let chains: [(&str, &[&str]); 2] = [("slow", &["tagger"]), ("plain", &[])];
        let mut config = config(&files, json!({"tagger": tag("a")}), &chains);
        config["storages"]["hook"] = json!({"module": "storage.webhook",
            "options": {"webhook-urls": [server.url()], "timeout": 60}});
        config["chains"]["slow"]["storages"] = json!(["files", "hook"]);
        let daemon = daemon(&redis, &config, "fork", 2);
        let samples: Vec<Sample> = samples().into_iter().take(AT_ONCE).collect();
        submit(&redis, "slow", &samples);
        wait_until("the slow chain has saved them", PATIENCE, || {
            files.documents().len() == samples.len()
        });
        for sample in &samples {
            redis.ask::<i64>(&["RPUSH", "plain", &sample.id]);
        }
        wait_until("the other chain is done with them", PATIENCE, || {
            redis.length("plain_done") == samples.len()
        });
        is_slow.store(false, Ordering::SeqCst);
        settles(&redis, &samples, &[("slow", 1), ("plain", 1)]);
        all_are("the tag", &redis, &files, &samples, |it| {
            has_tags(it, &["a"])
        });
        daemon.stop();
    }
}

/// A vCon comes again, in a new version, while the old one is on its way to a slow storage. Both wait for
/// another storage after that, and what one of them has done is kept where the other finds it.
#[test]
fn no_old_document_stays_where_a_vcon_is_twice_on_its_list() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let (is_slow, refuses) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicBool::new(true)),
        );
        let given = Arc::new(Mutex::new(Vec::new()));
        let first = Webhook::unrecorded({
            let (is_slow, given) = (Arc::clone(&is_slow), Arc::clone(&given));
            move |request| {
                let document: Value = serde_json::from_str(&request.body).unwrap();
                let is_new = is_newer(&document, "newer");
                if !is_new {
                    given.lock().unwrap().push("asked");
                    wait_until("it may take the old one", PATIENCE, || {
                        !is_slow.load(Ordering::SeqCst)
                    });
                }
                given
                    .lock()
                    .unwrap()
                    .push(if is_new { "new" } else { "old" });
                200
            }
        });
        let second = Webhook::unrecorded({
            let (refuses, waiting) = (Arc::clone(&refuses), AtomicUsize::new(0));
            move |_| {
                if refuses.load(Ordering::SeqCst) {
                    return 503;
                }
                // Both are in work at one time.
                waiting.fetch_add(1, Ordering::SeqCst);
                wait_until("both are here", PATIENCE, || {
                    waiting.load(Ordering::SeqCst) >= 2
                });
                200
            }
        });
        let storage = |server: &Webhook| {
            json!({"module": "storage.webhook",
                "options": {"webhook-urls": [server.url()], "timeout": 60}})
        };
        let config = json!({
            "storages": {"first": storage(&first), "second": storage(&second)},
            "chains": {"in": {"storages": ["first", "second"], "ingress_lists": ["in"],
                "egress_lists": ["in_done"]}},
        });
        let daemon = Conserver::with(&redis)
            .config(&config)
            .lanes(2)
            .env("CONSERVER_RETRY_FIRST_MS", "5")
            .env("CONSERVER_RETRY_MAX_MS", "20")
            .env("CONSERVER_RETRY_ATTEMPTS", "2")
            .start();
        let has = |what: &str| given.lock().unwrap().contains(&what);
        let old = Sample::small();
        let new = [newer(&old, "newer")];
        submit(&redis, "in", &[old]);
        wait_until("the old one is on its way", PATIENCE, || has("asked"));
        store(&redis, &new);
        redis.ask::<i64>(&["RPUSH", "in", &new[0].id]);
        wait_until("what was done for the new one is kept", PATIENCE, || {
            redis.ask::<i64>(&["EXISTS", "conserver:progress"]) == 1
        });
        assert!(has("new"));
        is_slow.store(false, Ordering::SeqCst);
        daemon.wait_for_log("was changed while it was in work", PATIENCE);
        assert!(has("old"));
        refuses.store(false, Ordering::SeqCst);
        settles(&redis, &new, &[("in", 2)]);
        let given = given.lock().unwrap();
        assert_eq!(given.last(), Some(&"new"), "{given:?}");
        daemon.stop();
    }
}

/// A Python link that reads the vCon, waits until it may go on, and writes it: without a look at what
/// has been written meanwhile.
const SLOW: &str = r#"
import os, time
import store

def run(vcon_uuid, link_name, opts):
    vcon = store.load(vcon_uuid)
    with open(opts["folder"] + "/read", "a") as file:
        print(vcon_uuid, file=file)
    while not os.path.exists(opts["folder"] + "/go"):
        time.sleep(0.01)
    vcon.setdefault("analysis", []).append({"type": "slow", "body": "seen", "encoding": "none"})
    store.save(vcon_uuid, vcon)
    return vcon_uuid
"#;

#[test]
fn what_a_python_link_writes_over_is_not_lost() {
    for (redis, files) in places() {
        let programs = Programs::new();
        let env = if redis.has_json() {
            json!({"JSON": "1"})
        } else {
            json!({})
        };
        let more = json!({"folder": programs.folder(), "env": env});
        let slow = programs.python("slow", SLOW, &more);
        let links = json!({"slow": slow, "first": tag("a"), "second": tag("b")});
        let chains: [(&str, &[&str]); 2] = [("left", &["first"]), ("right", &["slow", "second"])];
        let daemon = daemon(&redis, &config(&files, links, &chains), "fork", 1);
        let samples: Vec<Sample> = (0..5).map(|_| Sample::small()).collect();
        submit(&redis, "right", &samples);
        wait_until("the link has read all", PATIENCE, || {
            programs.lines("read").len() == samples.len()
        });
        for sample in &samples {
            redis.ask::<i64>(&["RPUSH", "left", &sample.id]);
        }
        wait_until("the other chain is through", PATIENCE, || {
            redis.length("left_done") == samples.len()
        });
        programs.write("go", "");
        settles(&redis, &samples, &[("left", 1), ("right", 1)]);
        all_are(
            "both tags and the analysis",
            &redis,
            &files,
            &samples,
            |it| {
                let analysis = it["analysis"].as_array();
                let slow = analysis.is_some_and(|all| all.iter().any(|one| one["type"] == "slow"));
                slow && has_tags(it, &["a", "b"])
            },
        );
        assert_eq!(redis.keys("conserver:foreign"), Vec::<String>::new());
        assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
        daemon.stop();
    }
}

/// A Python link that reads the vCon, and writes it when it may go on: over what has been written
/// meanwhile. It ends when it may.
const WRITES_OVER: &str = r#"
import os, time
import store

def run(vcon_uuid, link_name, opts):
    def tell(what):
        with open(opts["folder"] + "/" + what, "a") as file:
            print(vcon_uuid, file=file)

    def wait_for(what):
        while not os.path.exists(opts["folder"] + "/" + what):
            time.sleep(0.01)

    vcon = store.load(vcon_uuid)
    tell("read")
    wait_for("go")
    vcon.setdefault("analysis", []).append({"type": "slow", "body": "seen", "encoding": "none"})
    store.save(vcon_uuid, vcon)
    tell("saved")
    wait_for("end")
    return vcon_uuid
"#;

/// The chain `right` with such a link, the chain `left` that adds a tag to its vCons meanwhile, and the
/// chain `last` that makes another of it.
struct WrittenOver {
    programs: Programs,
    config: Value,
    samples: Vec<Sample>,
}

impl WrittenOver {
    fn new(redis: &Redis, files: &Files) -> Self {
        let programs = Programs::new();
        let env = match redis.has_json() {
            true => json!({"JSON": "1"}),
            false => json!({}),
        };
        let more = json!({"folder": programs.folder(), "env": env});
        let slow = programs.python("slow", WRITES_OVER, &more);
        let third = exec(&json!({"command": ["sed", "s/a:a/c:c/"]}));
        let links = json!({"slow": slow, "first": tag("a"), "second": tag("b"), "third": third});
        let chains: [(&str, &[&str]); 3] = [
            ("left", &["first"]),
            ("right", &["slow", "second"]),
            ("last", &["third"]),
        ];
        let config = config(files, links, &chains);
        let samples = (0..3).map(|_| Sample::small()).collect();
        Self {
            programs,
            config,
            samples,
        }
    }

    fn conserver(&self, redis: &Redis) -> Conserver {
        Conserver::with(redis)
            .config(&self.config)
            .workers(2)
            .lanes(4)
            .env("CONSERVER_HEARTBEAT_TTL", "3")
    }

    /// Has both chains take all vCons, and the link write over what the chain `left` has written.
    fn write_over(&self, redis: &Redis) {
        submit(redis, "right", &self.samples);
        wait_until("the link has read all", PATIENCE, || {
            self.programs.lines("read").len() == self.samples.len()
        });
        self.take_through(redis, "left");
        self.programs.write("go", "");
        wait_until("the link has written all", PATIENCE, || {
            self.programs.lines("saved").len() == self.samples.len()
        });
        self.are(redis, &[]);
    }

    /// Has a chain take all vCons, beside the link.
    fn take_through(&self, redis: &Redis, chain: &str) {
        for sample in &self.samples {
            redis.ask::<i64>(&["RPUSH", chain, &sample.id]);
        }
        wait_until("the other chain is through", PATIENCE, || {
            redis.length(&format!("{chain}_done")) == self.samples.len()
        });
    }

    /// Fails unless all documents in Redis have what the link has written, and these tags.
    fn are(&self, redis: &Redis, tags: &[&str]) {
        for sample in &self.samples {
            let document = redis.document(&sample.id).unwrap();
            let text = document.to_string();
            assert!(text.contains("slow"), "{text}");
            for tag in ["a", "b", "c"] {
                let has_tag = text.contains(&format!("{tag}:{tag}"));
                assert_eq!(has_tag, tags.contains(&tag), "{tag}: {text}");
            }
        }
    }

    fn settles(&self, redis: &Redis, files: &Files) {
        self.programs.write("end", "");
        settles(redis, &self.samples, &[("left", 1), ("right", 1)]);
        all_are("both tags", redis, files, &self.samples, |it| {
            it.to_string().contains("slow") && has_tags(it, &["a", "b"])
        });
    }
}

fn nothing_is_kept(redis: &Redis) {
    wait_until("nothing is kept for links", PATIENCE, || {
        redis.keys("conserver:foreign").is_empty()
    });
    assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
}

fn kill_workers(daemon: &Daemon) {
    for pid in daemon.workers().into_values() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    }
}

#[test]
fn what_a_python_link_wrote_over_is_laid_back_after_its_worker_was_killed() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        // Also where no death counts.
        let conserver = parts.conserver(&redis).env("CONSERVER_MAX_DEATHS", "0");
        let daemon = conserver.start();
        parts.write_over(&redis);
        kill_workers(&daemon);
        parts.settles(&redis, &files);
        nothing_is_kept(&redis);
        assert_eq!(daemon.count_in_log("could not be restored"), 0);
        daemon.stop();
    }
}

#[test]
fn what_a_python_link_wrote_over_is_laid_back_into_a_dead_letter() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        // Each is alone with its worker when that dies.
        let conserver = parts.conserver(&redis).workers(4).lanes(1);
        let conserver = conserver.env("CONSERVER_MAX_DEATHS", "1");
        let daemon = conserver.start();
        parts.write_over(&redis);
        kill_workers(&daemon);
        wait_until("all are dead letters", PATIENCE, || {
            redis.length("DLQ:right") == parts.samples.len()
        });
        parts.are(&redis, &["a"]);
        nothing_is_kept(&redis);
        daemon.stop();
    }
}

#[test]
fn what_a_python_link_wrote_over_is_laid_back_when_the_daemon_is_stopped_at_once() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        let mut daemon = parts.conserver(&redis).start();
        parts.write_over(&redis);
        daemon.signal(Signal::SIGQUIT);
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
        parts.are(&redis, &["a"]);
        nothing_is_kept(&redis);
        let daemon = daemon.conserver().again().start();
        parts.settles(&redis, &files);
        daemon.stop();
    }
}

/// Nobody saw its workers end: they may be alive, and write over it again. So it is kept until the
/// daemon is back.
#[test]
fn what_a_python_link_wrote_over_is_laid_back_by_another_instance() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        let first = parts.conserver(&redis).start();
        parts.write_over(&redis);
        let second = parts
            .conserver(&redis)
            .env("CONSERVER_INSTANCE", "there")
            .start();
        first.kill_family();
        parts.settles(&redis, &files);
        assert_eq!(redis.keys("conserver:foreign").len(), 1);
        // What is taken away after that is not brought back by it.
        parts.take_through(&redis, "last");
        let first = first.conserver().again().start();
        nothing_is_kept(&redis);
        all_are("the last tags", &redis, &files, &parts.samples, |it| {
            has_tags(it, &["b", "c"])
        });
        first.stop();
        second.stop();
    }
}

/// The script that ends what a link writes by itself.
const END_WRITE: &str = concat!(
    include_str!("../../src/queue/scripts/direct_writes.lua"),
    include_str!("../../src/queue/scripts/direct_write_end.lua")
);

#[test]
fn what_a_python_link_wrote_over_is_laid_back_after_its_worker_was_killed_before_it_merged() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        let hash = redis::Script::new(END_WRITE);
        let victims = Arc::new(Mutex::new(Vec::new()));
        let pids = Arc::clone(&victims);
        let url = relay(&redis, usize::MAX, move |bytes| {
            let hash = hash.get_hash().as_bytes();
            if bytes.windows(hash.len()).any(|part| part == hash) {
                for pid in pids.lock().unwrap().drain(..) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        });
        let conserver = parts.conserver(&redis).env("REDIS_URL", url);
        let daemon = conserver.start();
        parts.write_over(&redis);
        let workers = daemon.workers();
        victims.lock().unwrap().extend(workers.values());
        parts.settles(&redis, &files);
        assert!(victims.lock().unwrap().is_empty());
        nothing_is_kept(&redis);
        daemon.stop();
    }
}

/// What was taken away again before the worker died is not brought back.
#[test]
fn only_the_last_of_what_was_written_meanwhile_is_laid_back() {
    for (redis, files) in places() {
        let parts = WrittenOver::new(&redis, &files);
        let daemon = parts.conserver(&redis).start();
        submit(&redis, "right", &parts.samples);
        wait_until("the link has read all", PATIENCE, || {
            parts.programs.lines("read").len() == parts.samples.len()
        });
        parts.take_through(&redis, "left");
        parts.take_through(&redis, "last");
        kill_workers(&daemon);
        // The link has not written.
        wait_until("the claims were returned", PATIENCE, || {
            daemon.count_in_log("is back in its list") == parts.samples.len()
        });
        parts.programs.write("go", "");
        parts.programs.write("end", "");
        settles(&redis, &parts.samples, &[("right", 1)]);
        parts.are(&redis, &["b", "c"]);
        nothing_is_kept(&redis);
        daemon.stop();
    }
}

/// A Python link that leaves no vCon, over what has been written meanwhile, and fails.
const LEAVES_RUBBISH: &str = r#"
import os, time
import store

def run(vcon_uuid, link_name, opts):
    with open(opts["folder"] + "/read", "a") as file:
        print(vcon_uuid, file=file)
    while not os.path.exists(opts["folder"] + "/go"):
        time.sleep(0.01)
    store.save(vcon_uuid, "rubbish")
    raise ValueError("the link's own reason")
"#;

#[test]
fn what_cannot_be_laid_under_is_told_and_hides_no_failure_of_the_link() {
    for (redis, files) in places() {
        let programs = Programs::new();
        let env = match redis.has_json() {
            true => json!({"JSON": "1"}),
            false => json!({}),
        };
        let more = json!({"folder": programs.folder(), "env": env});
        let slow = programs.python("slow", LEAVES_RUBBISH, &more);
        let links = json!({"slow": slow, "first": tag("a")});
        let chains: [(&str, &[&str]); 2] = [("left", &["first"]), ("right", &["slow"])];
        let daemon = daemon(&redis, &config(&files, links, &chains), "fork", 1);
        let sample = Sample::small();
        submit(&redis, "right", std::slice::from_ref(&sample));
        wait_until("the link has read it", PATIENCE, || {
            programs.lines("read").len() == 1
        });
        redis.ask::<i64>(&["RPUSH", "left", &sample.id]);
        wait_until("the other chain is through", PATIENCE, || {
            redis.length("left_done") == 1
        });
        programs.write("go", "");
        wait_until("it is a dead letter", PATIENCE, || {
            redis.length("DLQ:right") == 1
        });
        let why: String = redis.ask(&["HGET", "conserver:dlq:right", &sample.id]);
        assert!(why.contains("the link's own reason"), "{why}");
        assert_eq!(daemon.count_in_log("could not be restored"), 1);
        nothing_is_kept(&redis);
        daemon.stop();
    }
}
