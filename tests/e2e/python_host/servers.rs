//! Storages of a deployment that reach real servers with the libraries everybody uses: pymongo, paramiko.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{bare, conserver, module, samples};
use crate::harness::{
    Daemon, Deployment, Ledger, Mongo, PATIENCE, Redis, Sample, Sshd, chain, run, said, same,
    submit, wait_until,
};

/// Both servers, and a daemon that stores in both.
struct Scene {
    redis: Redis,
    mongo: Mongo,
    sshd: Sshd,
    deployment: Deployment,
}

impl Scene {
    fn new() -> Self {
        Self {
            redis: Redis::plain(),
            mongo: Mongo::start(),
            sshd: Sshd::start(),
            deployment: Deployment::new(),
        }
    }

    fn start(&self) -> Daemon {
        let papers = module("storage.papers", self.mongo.options());
        let remote = module("storage.sftp", self.sshd.options());
        let storages = [("papers", papers), ("remote", remote)];
        let config = chain(&[("marks", bare("links.marks"))], &storages);
        conserver(&self.redis, &self.deployment, &config)
            .workers(2)
            .lanes(2)
            .start()
    }

    /// What MongoDB has of a vCon.
    fn paper(&self, id: &str) -> Option<Value> {
        paper_of(&self.mongo.documents(), id)
    }

    /// Fails unless both servers have each of these as it is in Redis.
    fn have_all(&self, samples: &[Sample]) {
        let (files, papers) = (self.sshd.files().documents(), self.mongo.documents());
        assert_eq!(papers.len(), samples.len());
        assert_eq!(files.len(), samples.len());
        for sample in samples {
            let document = self.redis.document(&sample.id).expect("a document");
            assert!(document.to_string().contains("marks:default"), "{document}");
            let paper = paper_of(&papers, &sample.id).expect("a document of MongoDB");
            assert!(same(&paper, &document), "{paper}");
            let (_, file) = files
                .iter()
                .find(|(id, _)| *id == sample.id)
                .expect("a file");
            assert!(same(file, &document), "{file}");
        }
    }
}

fn paper_of(papers: &[Value], id: &str) -> Option<Value> {
    let mut paper = papers.iter().find(|paper| paper["_id"] == id)?.clone();
    paper.as_object_mut().expect("an object").remove("_id");
    Some(paper)
}

#[test]
fn documents_come_to_mongodb_and_by_sftp_and_back() {
    let scene = Scene::new();
    let (redis, all) = (&scene.redis, samples("a", 12));
    let daemon = scene.start();
    submit(redis, "default", &all);
    Ledger::of(redis, &all).settles();
    scene.have_all(&all);

    // A vCon that Redis has forgotten comes back from the first storage that has it, and goes its way again.
    let back = &all[7];
    let key = format!("vcon:{}", back.id);
    let stored = scene.paper(&back.id).expect("a document of MongoDB");
    let before = redis.calls().len();
    redis.ask::<i64>(&["DEL", &key]);
    redis.ask::<i64>(&["RPUSH", "default", &back.id]);
    wait_until("it is done again", PATIENCE, || {
        redis.length("done") == all.len() + 1
    });
    assert!(same(
        &redis.document(&back.id).expect("a document"),
        &stored
    ));
    let calls = redis.calls().split_off(before);
    let names: Vec<&str> = calls.iter().map(|call| call.call.as_str()).collect();
    assert_eq!(names[..2], ["storage.papers.get", "links.marks.run"]);
    let options = scene.mongo.options();
    assert_eq!(calls[0].arguments, [json!(back.id), options]);
    assert_eq!(calls[0].named, json!({}));

    // Nor is it lost where only the second one has it.
    let conserver = daemon.conserver();
    let get = |arguments: &[&str], place: &str| -> Value {
        let finished = run(conserver, &[&["get", &back.id], arguments].concat(), 0);
        said(&finished, &[&format!("Found in {place}")]);
        serde_json::from_str(&finished.stdout).expect("JSON")
    };
    assert!(same(&get(&["--from", "papers"], "storage papers"), &stored));
    redis.ask::<i64>(&["DEL", &key]);
    assert!(same(&get(&[], "storage papers"), &stored));
    assert!(same(&get(&["--from", "remote"], "storage remote"), &stored));
    run(conserver, &["delete", &back.id, "--yes"], 0);
    assert_eq!(scene.paper(&back.id), None);
    let files = scene.sshd.files().documents();
    assert_eq!(files.len(), all.len() - 1);
    assert!(files.iter().all(|(id, _)| *id != back.id));
    let missing = run(conserver, &["get", &back.id, "--from", "remote"], 65);
    said(&missing, &["it is not in storage remote"]);
    daemon.stop();
}

/// Ends the server, waits until the storage has failed again and again, and lets the server come back.
fn vcons_wait_for_a_server(end: impl Fn(&Scene), storage: &str, start_again: impl Fn(&Scene)) {
    let scene = Scene::new();
    let mut all = samples("a", 6);
    let daemon = scene.start();
    submit(&scene.redis, "default", &all);
    Ledger::of(&scene.redis, &all).settles();
    end(&scene);
    let more = samples("b", 6);
    submit(&scene.redis, "default", &more);
    // Nobody but the module knows how its server is reached: the vCons themselves try.
    let words = format!("storage {storage} has failed for 3 vCons in a row");
    daemon.wait_for_log(&words, PATIENCE);
    assert_eq!(
        scene.redis.keys("DLQ:*"),
        Vec::<String>::new(),
        "{}",
        daemon.log()
    );
    let ids: Vec<String> = more.iter().map(|sample| sample.id.clone()).collect();
    let done = scene.redis.list("done");
    assert!(
        !done.iter().any(|id| ids.contains(id)),
        "announced before they are stored"
    );
    start_again(&scene);
    all.extend(more);
    Ledger::of(&scene.redis, &all).settles();
    assert_eq!(scene.redis.keys("DLQ:*"), Vec::<String>::new());
    scene.have_all(&all);
    daemon.stop();
}

#[test]
fn vcons_wait_for_mongodb() {
    let end = |scene: &Scene| scene.mongo.end(Signal::SIGTERM);
    vcons_wait_for_a_server(end, "papers", |scene| scene.mongo.start_again());
}

#[test]
fn vcons_wait_for_a_server_of_sftp() {
    let end = |scene: &Scene| scene.sshd.kill9();
    vcons_wait_for_a_server(end, "remote", |scene| scene.sshd.start_again());
}

#[test]
fn a_storage_that_can_only_save_is_written_to_and_not_read() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let storages = [(
        "moody",
        module("storage.moody", json!({"every": 1_000_000})),
    )];
    let daemon = conserver(&redis, &deployment, &chain(&[], &storages)).start();
    let all = samples("a", 3);
    submit(&redis, "default", &all);
    Ledger::of(&redis, &all).settles();
    let id = all[0].id.as_str();
    redis.ask::<i64>(&["DEL", &format!("vcon:{id}")]);
    run(daemon.conserver(), &["get", id], 65);
    redis.ask::<i64>(&["RPUSH", "default", id]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let names: Vec<String> = redis.calls().into_iter().map(|call| call.call).collect();
    assert!(
        names.iter().all(|name| name == "storage.moody.save"),
        "{names:?}"
    );
    daemon.stop();
}
