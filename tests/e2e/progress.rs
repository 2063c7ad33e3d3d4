//! What was done for a vCon is not done again: a claim that was let go before its end goes on where
//! it stopped, until another version of the document, another chain or a death voids that.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Files, Hook, Ledger, PATIENCE, Programs, Proxy, Redis, Sample, chain, exec,
    fresh, number_from_env, storage_at, submit, wait_until,
};

/// A chain whose link and storages count, and whose last storage can fail.
struct Chain {
    link: Hook,
    healthy: Hook,
    files: Files,
    failing: Hook,
    door: Proxy,
}

/// How that storage fails.
#[derive(Clone, Copy)]
enum Failing {
    /// Nothing can be reached there.
    Refuses,
    /// It is reachable, and has no time for anyone.
    Busy,
}

impl Chain {
    fn new() -> Self {
        let failing = Hook::new();
        let door = Proxy::before(failing.port());
        Self {
            link: Hook::new(),
            healthy: Hook::new(),
            files: Files::new(),
            failing,
            door,
        }
    }

    fn config(&self) -> Value {
        let storages = [
            ("healthy", self.healthy.storage()),
            ("files", self.files.storage()),
            ("failing", storage_at(self.door.port())),
        ];
        chain(&[("hook", self.link.link())], &storages)
    }

    fn conserver(&self, redis: &Redis) -> Conserver {
        conserver(redis, &self.config())
    }

    fn fails(&self, how: Failing) {
        match how {
            Failing::Refuses => self.door.refuse(),
            Failing::Busy => self.failing.answers(503),
        }
    }

    fn works(&self) {
        self.failing.answers(200);
        self.door.pass();
    }

    /// Fails unless the link and each storage had each vCon once.
    fn had_each_once(&self, samples: &[Sample]) {
        self.link.has_taken_each("the link", samples, 1);
        self.healthy
            .has_taken_each("the healthy storage", samples, 1);
        self.failing.has_taken_each("the other storage", samples, 1);
        assert_eq!(self.files.paths().len(), samples.len());
    }
}

/// Quick to give up, with three lanes.
fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .lanes(3)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "200")
        .env("CONSERVER_RETRY_ATTEMPTS", "3")
}

/// Waits until all of these are back in their list, each with what was done for it.
fn all_wait(redis: &Redis, samples: &[Sample]) {
    wait_until("all wait with their progress", PATIENCE, || {
        let kept: usize = redis.ask(&["HLEN", "conserver:progress"]);
        kept == samples.len() && redis.length("default") == samples.len()
    });
}

/// Waits until all are through; then nothing is kept any more.
fn settles(redis: &Redis, samples: &[Sample]) {
    Ledger::of(redis, samples).settles();
    let kept = ["conserver:progress", "conserver:tries", "conserver:deaths"];
    for key in kept {
        assert_eq!(redis.keys(key), Vec::<String>::new());
    }
}

/// Stores a version of a vCon as a producer does.
fn store(redis: &Redis, id: &str, text: &str) {
    let key = format!("vcon:{id}");
    if redis.has_json() {
        redis.ask::<()>(&["JSON.SET", &key, "$", text]);
    } else {
        redis.ask::<()>(&["SET", &key, text]);
    }
}

fn text_of(document: &Value) -> String {
    document.to_string()
}

fn servers() -> [Redis; 2] {
    [Redis::plain(), Redis::with_json()]
}

fn nothing_is_done_twice_in_an_outage(redis: &Redis, how: Failing) {
    let parts = Chain::new();
    let samples = fresh(30);
    parts.fails(how);
    submit(redis, "default", &samples);
    let daemon = parts.conserver(redis).start();
    wait_until("some are given up for now", PATIENCE, || {
        redis.ask::<usize>(&["HLEN", "conserver:progress"]) >= 3
    });
    // The length of the outage is what is tested.
    let seconds = number_from_env("CONSERVER_TEST_REFUSED_SECONDS", 5);
    thread::sleep(Duration::from_secs(seconds as u64));
    parts.works();
    settles(redis, &samples);
    parts.had_each_once(&samples);
    for call in parts.failing.calls() {
        assert!(text_of(&call.document).contains("checked:checked"));
    }
    daemon.stop();
}

#[test]
fn nothing_is_done_twice_while_a_storage_answers_503() {
    nothing_is_done_twice_in_an_outage(&Redis::plain(), Failing::Busy);
}

#[test]
fn nothing_is_done_twice_while_a_storage_refuses_connections() {
    nothing_is_done_twice_in_an_outage(&Redis::plain(), Failing::Refuses);
}

#[test]
fn nothing_is_done_twice_with_json_documents_while_a_storage_answers_503() {
    nothing_is_done_twice_in_an_outage(&Redis::with_json(), Failing::Busy);
}

#[test]
fn nothing_is_done_twice_with_json_documents_while_a_storage_refuses_connections() {
    nothing_is_done_twice_in_an_outage(&Redis::with_json(), Failing::Refuses);
}

/// RedisJSON writes numbers and letters in its own way: what a program has written in another one is the
/// same document.
#[test]
fn nothing_is_done_twice_where_redis_writes_the_same_in_another_way() {
    for redis in servers() {
        let (parts, programs) = (Chain::new(), Programs::new());
        let more = r#"sed '1s/^{/{"note": {"by": "caf\\u00e9", "cost": 1.50}, /'"#;
        let more = programs.write("more.sh", more);
        let mut config = parts.config();
        config["links"]["more"] = exec(&json!({"command": ["sh", more]}));
        config["chains"]["main"]["links"] = json!(["tagger", "more", "hook"]);
        let samples = fresh(10);
        parts.fails(Failing::Busy);
        submit(&redis, "default", &samples);
        let daemon = conserver(&redis, &config).start();
        wait_until("some are given up for now", PATIENCE, || {
            redis.ask::<usize>(&["HLEN", "conserver:progress"]) >= 3
        });
        parts.works();
        settles(&redis, &samples);
        parts.had_each_once(&samples);
        for call in parts.failing.calls() {
            assert_eq!(call.document["note"], json!({"by": "café", "cost": 1.5}));
        }
        daemon.stop();
    }
}

#[test]
fn a_drain_amid_attempts_keeps_what_was_done() {
    for redis in servers() {
        for how in [Failing::Busy, Failing::Refuses] {
            redis.ask::<()>(&["FLUSHALL"]);
            let parts = Chain::new();
            parts.fails(how);
            let samples = fresh(5);
            submit(&redis, "default", &samples);
            // More attempts than there will be time for.
            let many = parts.conserver(&redis);
            let many = many.env("CONSERVER_RETRY_ATTEMPTS", "1000");
            let mut daemon = many.start();
            wait_until("three lanes are at it", PATIENCE, || {
                parts.healthy.taken().len() == 3 && parts.files.paths().len() == 3
            });
            daemon.terminate();
            assert_eq!(daemon.wait_exit(PATIENCE), 0);
            all_wait_after_the_drain(&redis, &samples);
            parts.works();
            let daemon = daemon.conserver().launch_again();
            settles(&redis, &samples);
            parts.had_each_once(&samples);
            daemon.stop();
        }
    }
}

fn all_wait_after_the_drain(redis: &Redis, samples: &[Sample]) {
    assert_eq!(redis.length("default"), samples.len());
    Ledger::of(redis, samples).nothing_is_claimed();
    let kept: usize = redis.ask(&["HLEN", "conserver:progress"]);
    assert_eq!(kept, 3);
}

#[test]
fn a_drain_in_a_hold_keeps_what_was_done() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.fails(Failing::Refuses);
    let samples = fresh(5);
    submit(&redis, "default", &samples);
    let mut daemon = parts.conserver(&redis).start();
    wait_until("three lanes have given up", PATIENCE, || {
        let kept: usize = redis.ask(&["HLEN", "conserver:progress"]);
        kept == 3 && redis.length("default") == samples.len()
    });
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    all_wait_after_the_drain(&redis, &samples);
    parts.works();
    let daemon = daemon.conserver().launch_again();
    settles(&redis, &samples);
    parts.had_each_once(&samples);
    daemon.stop();
}

#[test]
fn a_dead_letter_that_is_retried_goes_on_where_it_stopped() {
    for redis in servers() {
        let (link, storage) = (Hook::new(), Hook::new());
        let config = chain(&[("hook", link.link())], &[("only", storage.storage())]);
        let daemon = conserver(&redis, &config).start();
        storage.answers(422);
        // Three alike would be the storage's own fault.
        let samples = fresh(2);
        submit(&redis, "default", &samples);
        let all_are_dead = || redis.length("DLQ:default") == samples.len();
        wait_until("all are dead letters", PATIENCE, all_are_dead);
        // Tried again too early: it is asked again, and the links are not.
        let retry = || {
            daemon
                .conserver()
                .run(&["dlq", "retry", "default", "--all"])
        };
        let refused = storage.refused();
        assert_eq!(retry().code, 0);
        wait_until("it is asked again", PATIENCE, || {
            storage.refused() == refused + samples.len()
        });
        wait_until("all are dead letters again", PATIENCE, all_are_dead);
        storage.answers(200);
        assert_eq!(retry().code, 0);
        settles(&redis, &samples);
        link.has_taken_each("the link", &samples, 1);
        storage.has_taken_each("the storage", &samples, 1);
        daemon.stop();
    }
}

#[test]
fn a_dead_letter_that_is_dropped_leaves_nothing_to_a_later_push() {
    let redis = Redis::plain();
    let (link, storage) = (Hook::new(), Hook::new());
    let config = chain(&[("hook", link.link())], &[("only", storage.storage())]);
    let daemon = conserver(&redis, &config).start();
    storage.answers(422);
    let samples = fresh(2);
    submit(&redis, "default", &samples);
    wait_until("all are dead letters", PATIENCE, || {
        redis.length("DLQ:default") == samples.len()
    });
    let drop = ["dlq", "drop", "default", "--all", "--yes"];
    assert_eq!(daemon.conserver().run(&drop).code, 0);
    assert_eq!(redis.keys("conserver:progress"), Vec::<String>::new());
    storage.answers(200);
    for sample in &samples {
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    }
    settles(&redis, &samples);
    link.has_taken_each("the link", &samples, 2);
    daemon.stop();
}

#[test]
fn a_link_that_fails_for_good_keeps_what_earlier_links_did() {
    for redis in servers() {
        let (first, second) = (Hook::new(), Hook::new());
        let links = [("first", first.link()), ("second", second.link())];
        let daemon = conserver(&redis, &chain(&links, &[])).start();
        second.answers(422);
        // Three alike would be the link's own fault.
        let samples = fresh(2);
        submit(&redis, "default", &samples);
        wait_until("all are dead letters", PATIENCE, || {
            redis.length("DLQ:default") == samples.len()
        });
        let ids: Vec<&str> = samples.iter().map(|it| it.id.as_str()).collect();
        for document in redis.documents(&ids) {
            let text = text_of(&document.expect("a document"));
            assert!(text.contains("checked:checked"), "{text}");
        }
        second.answers(200);
        let retry = ["dlq", "retry", "default", "--all"];
        assert_eq!(daemon.conserver().run(&retry).code, 0);
        settles(&redis, &samples);
        first.has_taken_each("the first link", &samples, 1);
        second.has_taken_each("the second link", &samples, 1);
        daemon.stop();
    }
}

/// A daemon on hold, with as many vCons waiting as it has lanes, all of them with progress.
fn on_hold(redis: &Redis, parts: &Chain) -> (Daemon, Vec<Sample>) {
    parts.fails(Failing::Refuses);
    let samples = fresh(3);
    submit(redis, "default", &samples);
    let daemon = parts.conserver(redis).start();
    all_wait(redis, &samples);
    (daemon, samples)
}

#[test]
fn a_new_version_begins_anew() {
    for redis in servers() {
        let parts = Chain::new();
        let (daemon, samples) = on_hold(&redis, &parts);
        let mut newer = samples.clone();
        for sample in &mut newer {
            sample.document["subject"] = json!("a newer version");
            store(&redis, &sample.id, &sample.text());
        }
        parts.works();
        settles(&redis, &samples);
        parts.link.has_taken_each("the link", &samples, 2);
        parts
            .healthy
            .has_taken_each("the healthy storage", &samples, 2);
        parts
            .failing
            .has_taken_each("the other storage", &samples, 1);
        let mut last = parts.failing.calls();
        last.extend(parts.link.calls().into_iter().skip(samples.len()));
        for call in last {
            assert_eq!(call.document["subject"], "a newer version");
            assert!(text_of(&call.document).contains("checked:checked"));
        }
        daemon.stop();
    }
}

/// The server compares no texts of that length.
#[test]
fn a_new_version_of_a_large_document_begins_anew_though_it_is_as_long() {
    for redis in servers() {
        let parts = Chain::new();
        let samples = large(1);
        parts.fails(Failing::Refuses);
        submit(&redis, "default", &samples);
        let daemon = parts.conserver(&redis).start();
        all_wait(&redis, &samples);
        let key = format!("vcon:{}", samples[0].id);
        let text: String = if redis.has_json() {
            redis.ask(&["JSON.GET", &key])
        } else {
            redis.ask(&["GET", &key])
        };
        let newer = text.replacen("xxxxxxxxxx", "newer text", 1);
        store(&redis, &samples[0].id, &newer);
        parts.works();
        settles(&redis, &samples);
        parts.link.has_taken_each("the link", &samples, 2);
        parts
            .healthy
            .has_taken_each("the healthy storage", &samples, 2);
        for call in parts.failing.calls() {
            let subject = call.document["subject"].as_str().unwrap();
            assert!(subject.starts_with("newer text"));
        }
        daemon.stop();
    }
}

#[test]
fn a_changed_chain_begins_anew() {
    let redis = Redis::plain();
    let parts = Chain::new();
    let (daemon, samples) = on_hold(&redis, &parts);
    let mut config = parts.config();
    config["links"]["late"] = json!({"module": "links.tag", "options": {"tags": ["late"]}});
    config["chains"]["main"]["links"] = json!(["tagger", "late", "hook"]);
    daemon.reconfigure(&config);
    daemon.signal(Signal::SIGHUP);
    wait_until("the link runs in the new chain", PATIENCE, || {
        parts.link.taken().len() == 2 * samples.len()
    });
    all_wait(&redis, &samples);
    parts.works();
    settles(&redis, &samples);
    parts.link.has_taken_each("the link", &samples, 2);
    for call in parts.failing.calls() {
        assert!(text_of(&call.document).contains("late:late"));
    }
    daemon.stop();
}

#[test]
fn a_vcon_on_which_a_worker_died_begins_anew() {
    let redis = Redis::plain();
    let parts = Chain::new();
    parts.fails(Failing::Busy);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    let conserver = parts.conserver(&redis).lanes(1);
    let daemon = conserver.env("CONSERVER_RETRY_ATTEMPTS", "1").start();
    wait_until("it has been given up for now", PATIENCE, || {
        redis.ask::<usize>(&["HLEN", "conserver:progress"]) == 1
    });
    parts.door.black_hole();
    let claim = || -> Option<String> { redis.ask(&["HGET", "conserver:claims:here:1", "1"]) };
    // Not one that is given up at once.
    wait_until("a claim stays", PATIENCE, || {
        let before = claim();
        thread::sleep(Duration::from_millis(500));
        before.is_some() && claim() == before
    });
    assert_eq!(parts.link.taken().len(), 1);
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).expect("a worker");
    wait_until("the link runs again", PATIENCE, || {
        parts.link.taken().len() == 2
    });
    parts.works();
    settles(&redis, &samples);
    parts.link.has_taken_each("the link", &samples, 2);
    daemon.stop();
}

/// A Python link that does nothing: before it is run, what the links have done is written to Redis.
const IDLE: &str = "def run(vcon_uuid, link_name, opts):\n    return vcon_uuid\n";

#[test]
fn a_change_by_another_chain_is_no_new_version() {
    for redis in servers() {
        another_chain_changes(&redis, &fresh(3), false);
    }
}

/// It goes to Redis past the scripts.
#[test]
fn a_change_of_a_large_document_by_another_chain_is_no_new_version() {
    for redis in servers() {
        another_chain_changes(&redis, &large(3), false);
    }
}

#[test]
fn a_change_that_another_chain_writes_on_its_way_is_no_new_version() {
    for redis in servers() {
        another_chain_changes(&redis, &fresh(3), true);
    }
}

#[test]
fn a_change_of_a_large_document_that_another_chain_writes_on_its_way_is_no_new_version() {
    for redis in servers() {
        another_chain_changes(&redis, &large(3), true);
    }
}

/// vCons of more than a megabyte.
fn large(count: usize) -> Vec<Sample> {
    let mut samples = fresh(count);
    for sample in &mut samples {
        sample.document["subject"] = "x".repeat(1_200_000).into();
    }
    samples
}

/// One chain waits for a storage; meanwhile another one changes its vCons, and writes that at its end,
/// or on its way.
fn another_chain_changes(redis: &Redis, samples: &[Sample], on_its_way: bool) {
    let parts = Chain::new();
    let other = Hook::new();
    let mut config = parts.config();
    config["links"]["second"] = json!({"module": "links.tag", "options": {"tags": ["second"]}});
    let programs = Programs::new();
    config["links"]["idle"] = programs.python("idle", IDLE, &json!({}));
    let links = if on_its_way {
        json!(["second", "idle"])
    } else {
        json!(["second"])
    };
    config["storages"]["other"] = other.storage();
    config["chains"]["other"] = json!({"links": links, "storages": ["other"],
        "ingress_lists": ["also"], "egress_lists": ["also_done"]});
    parts.fails(Failing::Refuses);
    submit(redis, "default", samples);
    let daemon = conserver(redis, &config).start();
    // The chain may be on hold before a lane has begun with the last of them.
    wait_until("they wait, and progress is kept", PATIENCE, || {
        redis.length("default") == samples.len()
            && redis.ask::<usize>(&["HLEN", "conserver:progress"]) > 0
    });
    for sample in samples {
        redis.ask::<i64>(&["RPUSH", "also", &sample.id]);
    }
    wait_until("the other chain is through", PATIENCE, || {
        redis.length("also_done") == samples.len()
    });
    parts.works();
    settles(redis, samples);
    parts.link.has_taken_each("the link", samples, 1);
    other.has_taken_each("the other chain's storage", samples, 1);
    parts.failing.has_taken_each("the storage", samples, 1);
    for call in parts.failing.calls() {
        let text = text_of(&call.document);
        assert!(text.contains("checked:checked"), "{text}");
        assert!(text.contains("second:second"), "{text}");
    }
    // It had them before the other chain changed them.
    for sample in samples {
        let calls = parts.healthy.calls().into_iter();
        let mut last = calls
            .map(|call| text_of(&call.document))
            .filter(|it| it.contains(&sample.id));
        let last = last.next_back().unwrap();
        assert!(last.contains("second:second"), "{last}");
    }
    daemon.stop();
}
