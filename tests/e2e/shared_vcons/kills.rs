//! The same while workers are killed with SIGKILL again and again: some while all their vCons are in
//! the middle of the chain, some on the way from there to the finish.
//!
//! No kill loses a change, and nothing is announced twice, as one step announces a vCon and lets go of
//! its claim. What a killed worker had in work begins anew.

mod barrier;
mod history;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::barrier::Barrier;
use self::history::History;
use super::{all_are, config, has_tags, is_newer, newer, settles, tag};
use crate::harness::{
    Conserver, Daemon, Files, PATIENCE, Redis, Sample, name_of, running_in_group, same, submit,
    wait_until,
};

const WORKERS: usize = 2;

/// The longest pause, in milliseconds, between the opening of the barrier and a kill, and between two
/// kills.
const LATEST: u64 = 12;

/// Keys, without their `conserver:`, of which none is left in the end.
const TRACES: [&str; 10] = [
    "claims:*",
    "deaths",
    "draft:*",
    "foreign",
    "lapses",
    "overwritten:*",
    "progress",
    "taken:*",
    "tries",
    "unreadable",
];

/// A list and the UUID of a vCon that was pushed onto it.
type Entry = (String, String);

/// vCons that are at work at one time.
struct Batch {
    number: usize,
    some: Vec<Sample>,
    /// How many there are up to the last of them.
    sofar: usize,
}

impl Batch {
    /// Every other batch. The supervisor restarts a worker later and later if it keeps dying with
    /// nothing done; so workers are killed late only in every other batch.
    fn is_odd(&self) -> bool {
        self.number % 2 == 1
    }

    /// How many workers are killed at the barrier: not always all of them, as Redis finishes a vCon
    /// without any deaths by another script.
    fn kills(&self) -> usize {
        if self.is_odd() { WORKERS } else { 1 }
    }
}

/// A daemon whose workers are killed, and where its vCons wait.
struct Scene {
    redis: Redis,
    files: Files,
    barrier: Barrier,
    daemon: Daemon,
    samples: Vec<Sample>,
    /// vCons at work at one time.
    at_once: usize,
    random: fastrand::Rng,
    /// The workers; the one that was killed last comes last.
    turns: Vec<usize>,
    /// Kills of workers all of whose vCons were at the barrier.
    certain: usize,
    /// The claims that these had.
    held: usize,
    /// Kills of workers whose vCons were on the way from the barrier to the finish.
    late: usize,
    /// Batches with late kills.
    rounds: usize,
}

impl Scene {
    /// A daemon with `hands` lanes for each vCon of a batch, and chains as [`config`] takes them. The
    /// link that has the name of its chain is the barrier.
    fn begin(
        redis: Redis,
        method: &str,
        hands: usize,
        mut links: Value,
        chains: &[(&str, &[&str])],
    ) -> Self {
        let (files, barrier, samples) = (Files::new(), Barrier::new(), super::samples());
        let at_once = (samples.len() / 4).clamp(4, super::AT_ONCE) / WORKERS * WORKERS;
        for (list, _) in chains {
            links[list] = barrier.link(list);
        }
        let mut config = config(&files, links, chains);
        if chains.iter().any(|(list, _)| *list == "start") {
            config["chains"]["start"]["egress_lists"] = json!(["left"]);
        }
        let redis = redis.with_journal().started();
        let daemon = Conserver::with(&redis)
            .config(&config)
            .method(method)
            .workers(WORKERS)
            .lanes(at_once * hands / WORKERS)
            .env("CONSERVER_MAX_DEATHS", "0")
            // Else what was deleted from Redis comes back from a storage, if its worker dies.
            .env("VCON_STORAGE_FALLBACK_ENABLED", "false")
            // A wake token that dies with its worker costs no more time than this.
            .env("TICK_INTERVAL", "500")
            .start();
        Self {
            redis,
            files,
            barrier,
            daemon,
            samples,
            at_once,
            random: fastrand::Rng::with_seed(4711),
            turns: (1..=WORKERS).collect(),
            certain: 0,
            held: 0,
            late: 0,
            rounds: 0,
        }
    }

    fn batches(&self) -> Vec<Batch> {
        let mut sofar = 0;
        let batch = |(number, some): (usize, &[Sample])| {
            sofar += some.len();
            Batch {
                number,
                some: some.to_vec(),
                sofar,
            }
        };
        let batches = self.samples.chunks(self.at_once).enumerate();
        batches.map(batch).collect()
    }

    /// The workers and their PIDs, as soon as all of them run.
    fn workers(&self) -> BTreeMap<usize, i32> {
        let number = |pid: i32| {
            let name = name_of(pid);
            Some((name.strip_prefix("conserver-w")?.parse().ok()?, pid))
        };
        let mut workers = BTreeMap::new();
        wait_until("all workers run", PATIENCE, || {
            let pids = running_in_group(self.daemon.pid());
            workers = pids.into_iter().filter_map(number).collect();
            workers.len() == WORKERS
        });
        workers
    }

    /// Waits until there are `count` claims, and all of them are at the barrier.
    fn gathers(&self, count: usize) {
        wait_until(&format!("{count} vCons wait"), PATIENCE, || {
            let text = |it: &Value| it.as_str().expect("text").to_owned();
            let claims = self.redis.claims();
            let claims = claims
                .iter()
                .map(|it| (text(&it["list"]), text(&it["uuid"])));
            let mut claims: Vec<Entry> = claims.collect();
            claims.sort();
            claims.len() == count && claims == self.barrier.waiting()
        });
    }

    /// The workers that hold claims, and how many. The one that was killed last comes last.
    fn holders(&self) -> Vec<(usize, usize)> {
        let hash = |worker: &usize| format!("conserver:claims:here:{worker}");
        let claims = |worker: usize| (worker, self.redis.ask(&["HLEN", &hash(&worker)]));
        let holders = self.turns.iter().copied().map(claims);
        holders.filter(|(_, claims)| *claims > 0).collect()
    }

    /// Kills a worker, and waits until nothing is left of it.
    fn kill(&mut self, worker: usize, pid: i32) {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGKILL).expect("the worker runs");
        // Until it is reaped, some of its threads, and with them its connections, may be left.
        wait_until("it is gone", PATIENCE, || kill(pid, None).is_err());
        self.turns.retain(|it| *it != worker);
        self.turns.push(worker);
    }

    /// Kills a worker all of whose vCons are at the barrier. Returns how many it had.
    fn kill_one_that_waits(&mut self) -> usize {
        let (worker, held) = self.holders()[0];
        let pid = self.workers()[&worker];
        self.kill(worker, pid);
        self.certain += 1;
        self.held += held;
        held
    }

    /// Lets the vCons of these lists go; with `kills`, kills the workers while these are on their way.
    fn let_go(&mut self, lists: &[&str], kills: bool) {
        let workers = self.workers();
        let (mut turns, (first, _)) = (self.turns.clone(), self.holders()[0]);
        lists.iter().for_each(|list| self.barrier.open(list));
        if !kills {
            return;
        }
        self.rounds += 1;
        if self.rounds % 2 == 1 {
            // At once: it still has its claims.
            turns.retain(|it| *it != first);
            self.kill(first, workers[&first]);
            self.late += 1;
        }
        for worker in turns {
            let pause = self.random.u64(0..=LATEST);
            thread::sleep(Duration::from_millis(pause));
            // Without claims it has nothing to lose.
            if self.holders().iter().any(|it| it.0 == worker) {
                self.kill(worker, workers[&worker]);
                self.late += 1;
            }
        }
    }

    /// Waits until each list has announced `count` vCons or buried them, and closes the barrier.
    fn is_through(&self, lists: &[&str], count: usize) {
        for list in lists {
            let (done, dead) = (format!("{list}_done"), format!("DLQ:{list}"));
            wait_until(&format!("{count} are through on {list}"), PATIENCE, || {
                self.redis.length(&done) + self.redis.length(&dead) >= count
            });
            self.barrier.close(list);
        }
    }

    /// Stops the daemon. Fails unless each file is what stands in Redis, nothing is left anywhere, and
    /// the kills have met work.
    fn end(self) -> (History, BTreeMap<Entry, usize>) {
        let log = self.daemon.log();
        self.daemon.stop();
        assert!(!log.contains("was changed in two ways"), "{log}");
        for pattern in TRACES {
            let keys = self.redis.keys(&format!("conserver:{pattern}"));
            assert_eq!(keys, Vec::<String>::new());
        }
        for (id, copy) in self.files.documents() {
            if let Some(document) = self.redis.document(&id) {
                assert!(same(&copy, &document), "{copy} is stored, not {document}");
            }
        }
        let history = History::of(&self.redis);
        let (certain, held, late) = (self.certain, self.held, self.late);
        let (deaths, met) = (history.deaths, history.returns());
        println!("{certain} kills at the barrier with {held} claims, {late} later: {met} returned");
        assert!(certain > 0 && late > 0, "{certain}, {late}");
        assert!(
            certain <= held && held <= deaths && deaths <= met,
            "{certain}, {held}, {deaths}, {met}"
        );
        (history, self.barrier.calls())
    }

    /// Ends with all announced; `chains` are ingress and egress lists.
    fn end_with_all(self, times: usize, chains: &[(&str, &str)]) {
        let merged = self
            .daemon
            .count_in_log("was changed while it was in work, both changes are kept");
        assert!(merged > 0, "no two changes have met");
        assert_eq!(self.redis.keys("DLQ:*"), Vec::<String>::new());
        let samples = self.samples.clone();
        let (history, calls) = self.end();
        for chain in chains {
            history.adds_up(*chain, times, &samples, &calls);
        }
    }
}

/// Both kinds of documents at the same time.
fn with_both(case: impl Fn(Redis) + Sync) {
    thread::scope(|scope| {
        scope.spawn(|| case(Redis::new()));
        case(Redis::new().json());
    });
}

fn two_lists(redis: Redis, method: &str) {
    let links = json!({"first": tag("a"), "second": tag("b")});
    let chains: [(&str, &[&str]); 2] = [
        ("left", &["left", "first"]),
        ("right", &["right", "second"]),
    ];
    let mut scene = Scene::begin(redis, method, 2, links, &chains);
    for batch in scene.batches() {
        let Batch { some, sofar, .. } = &batch;
        submit(&scene.redis, "left", some);
        // The document as it is; only the entry is new.
        for sample in some {
            scene.redis.ask::<i64>(&["RPUSH", "right", &sample.id]);
        }
        for _ in 0..batch.kills() {
            scene.gathers(some.len() * 2);
            scene.kill_one_that_waits();
        }
        scene.gathers(some.len() * 2);
        scene.let_go(&["left", "right"], batch.is_odd());
        scene.is_through(&["left", "right"], *sofar);
    }
    let Scene { redis, files, .. } = &scene;
    settles(redis, &scene.samples, &[("left", 1), ("right", 1)]);
    all_are("both tags", redis, files, &scene.samples, |it| {
        has_tags(it, &["a", "b"])
    });
    scene.end_with_all(1, &[("left", "left_done"), ("right", "right_done")]);
}

fn routed(redis: Redis, method: &str) {
    let routes = json!({"tag_routes": {"a": "right"}});
    let links = json!({"first": tag("a"), "second": tag("b"), "third": tag("c"),
        "router": {"module": "links.tag_router", "options": routes}});
    let chains: [(&str, &[&str]); 3] = [
        ("start", &["start", "first", "router"]),
        ("left", &["left", "second"]),
        ("right", &["right", "third"]),
    ];
    let mut scene = Scene::begin(redis, method, 2, links, &chains);
    for batch in scene.batches() {
        let Batch { some, sofar, .. } = &batch;
        submit(&scene.redis, "start", some);
        scene.gathers(some.len());
        scene.kill_one_that_waits();
        scene.gathers(some.len());
        scene.let_go(&["start"], batch.is_odd());
        scene.gathers(some.len() * 2);
        scene.barrier.close("start");
        scene.kill_one_that_waits();
        scene.gathers(some.len() * 2);
        scene.let_go(&["left", "right"], !batch.is_odd() && batch.number > 0);
        scene.is_through(&["left", "right"], *sofar);
    }
    let Scene { redis, files, .. } = &scene;
    settles(redis, &scene.samples, &[("left", 1), ("right", 1)]);
    assert_eq!(redis.length("start"), 0);
    all_are("all tags", redis, files, &scene.samples, |it| {
        has_tags(it, &["a", "b", "c"])
    });
    let chains = [
        ("start", "left"),
        ("left", "left_done"),
        ("right", "right_done"),
    ];
    scene.end_with_all(1, &chains);
}

fn new_version(redis: Redis, method: &str) {
    let links = json!({"tagger": tag("a")});
    let mut scene = Scene::begin(redis, method, 1, links, &[("main", &["tagger", "main"])]);
    for batch in scene.batches() {
        let Batch { some, sofar, .. } = &batch;
        submit(&scene.redis, "main", some);
        for _ in 1..batch.kills() {
            scene.gathers(some.len());
            scene.kill_one_that_waits();
        }
        scene.gathers(some.len());
        let versions: Vec<Sample> = some.iter().map(|it| newer(it, "newer")).collect();
        submit(&scene.redis, "main", &versions);
        // Those that find no lane wait in the list.
        let in_work = scene.at_once.min(some.len() * 2);
        scene.gathers(in_work);
        scene.kill_one_that_waits();
        scene.gathers(in_work);
        scene.let_go(&["main"], batch.is_odd());
        scene.is_through(&["main"], sofar * 2);
    }
    let Scene { redis, files, .. } = &scene;
    settles(redis, &scene.samples, &[("main", 2)]);
    let what = "the new version and the tag";
    all_are(what, redis, files, &scene.samples, |it| {
        is_newer(it, "newer") && has_tags(it, &["a"])
    });
    scene.end_with_all(2, &[("main", "main_done")]);
}

/// A vCon is announced and stored as it was in work, unless its worker dies after the document was
/// deleted: then there is nothing left to begin anew with, and it becomes a dead letter.
fn deleted(redis: Redis, method: &str) {
    let links = json!({"tagger": tag("a")});
    let mut scene = Scene::begin(redis, method, 1, links, &[("main", &["tagger", "main"])]);
    for batch in scene.batches() {
        let Batch { some, sofar, .. } = &batch;
        submit(&scene.redis, "main", some);
        for _ in 1..batch.kills() {
            scene.gathers(some.len());
            scene.kill_one_that_waits();
        }
        scene.gathers(some.len());
        for sample in some {
            let key = format!("vcon:{}", sample.id);
            scene.redis.ask::<i64>(&["DEL", &key]);
        }
        let gone = scene.kill_one_that_waits();
        scene.gathers(some.len() - gone);
        scene.let_go(&["main"], batch.is_odd());
        scene.is_through(&["main"], *sofar);
    }
    let Scene { redis, files, .. } = &scene;
    assert_eq!(redis.length("main"), 0);
    assert_eq!(redis.keys("vcon:*"), Vec::<String>::new());
    let stored: BTreeMap<String, Value> = files.documents().into_iter().collect();
    let announced = redis.list("main_done");
    let dead = redis.list("DLQ:main");
    let reasons: BTreeMap<String, String> = redis.ask(&["HGETALL", "conserver:dlq:main"]);
    let samples = scene.samples.clone();
    let (history, calls) = scene.end();
    history.adds_up(("main", "main_done"), 1, &samples, &calls);
    assert!(!announced.is_empty(), "none was announced");
    for id in &announced {
        assert!(stored.contains_key(id), "{id} is not stored");
    }
    for (id, document) in &stored {
        assert!(has_tags(document, &["a"]), "{id}: {document}");
    }
    let mut dead_in_order = dead;
    dead_in_order.sort();
    let doomed: Vec<String> = history.doomed("main").into_iter().collect();
    assert_eq!(dead_in_order, doomed);
    assert_eq!(reasons.len(), doomed.len());
    for (id, reason) in reasons {
        let expected = "there is no document under its key in Redis";
        assert!(reason.contains(expected), "{id}: {reason}");
    }
}

/// Makes a test of each case for each start method.
macro_rules! for_each_method {
    ($($method:ident),*) => { $(
        mod $method {
            use super::*;

            #[test]
            fn two_chains_on_one_vcon_keep_each_others_tags() {
                with_both(|redis| two_lists(redis, stringify!($method)));
            }

            #[test]
            fn a_vcon_that_is_routed_into_another_chain_keeps_the_tags_of_all() {
                with_both(|redis| routed(redis, stringify!($method)));
            }

            #[test]
            fn a_new_version_stands_with_the_tag() {
                with_both(|redis| new_version(redis, stringify!($method)));
            }

            #[test]
            fn a_vcon_that_is_deleted_is_not_brought_back() {
                with_both(|redis| deleted(redis, stringify!($method)));
            }
        }
    )* };
}

for_each_method!(fork, spawn, forkserver);
