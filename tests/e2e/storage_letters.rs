//! Dead letters and backlog of storages, from the operator's side: what stands in
//! `DLQ:storage:<name>` is seen, saved and dropped.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use conserver::queue::{Chore, Expiry, Housekeeper, HousekeepingLease, Reason, Released};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Finished, Format, Monitor, PATIENCE, Postgres, Redis, Sample, Scrape,
    Terminal, Webhook, chain, fresh, list, queue, run, said, server_of, wait_until,
};

const LOCK: &str = "DLQ:storage:hook:replay-lock";

const REASON: Reason<'static> = Reason {
    stage: "storage files",
    error: "too large",
    attempts: 1,
    worker: "Worker-1",
};

/// A storage that posts to this server.
fn hook(server: &Webhook) -> (&'static str, Value) {
    let options = json!({"webhook-urls": [server.url()]});
    (
        "hook",
        json!({"module": "storage.webhook", "options": options}),
    )
}

fn deferring((name, mut storage): (&'static str, Value)) -> (&'static str, Value) {
    storage["on_outage"] = json!("defer");
    (name, storage)
}

/// The program with pauses that a test can wait for.
fn conserver(redis: &Redis, storages: &[(&str, Value)]) -> Conserver {
    Conserver::with(redis)
        .config(&chain(&[], storages))
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "10")
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
}

fn json_of(finished: &Finished) -> Value {
    let parsed = serde_json::from_str(&finished.stdout);
    parsed.unwrap_or_else(|error| panic!("{error}: {}", finished.output()))
}

/// Puts a document into Redis, and nothing else.
fn put(redis: &Redis, sample: &Sample) {
    let key = format!("vcon:{}", sample.id);
    if redis.has_json() {
        redis.ask::<()>(&["JSON.SET", &key, "$", &sample.text()]);
    } else {
        redis.ask::<()>(&["SET", &key, &sample.text()]);
    }
}

/// Puts vCons into the queue of a storage, as backlog.
fn defer(redis: &Redis, storage: &str, samples: &[Sample]) {
    for sample in samples {
        put(redis, sample);
        redis.ask::<i64>(&["RPUSH", &format!("DLQ:storage:{storage}"), &sample.id]);
    }
}

/// Gives an entry of that queue a reason.
fn give_reason(redis: &Redis, storage: &str, entry: &str) {
    let reason = json!({"stage": format!("storage {storage}"), "error": "too large", "attempts": 1,
        "worker": "Worker-1", "at": 1_710_605_360.25});
    let key = format!("conserver:dlq:storage:{storage}");
    redis.ask::<i64>(&["HSET", &key, entry, &reason.to_string()]);
}

fn reason(redis: &Redis, storage: &str, entry: &str) -> Option<Value> {
    let key = format!("conserver:dlq:storage:{storage}");
    let text: Option<String> = redis.ask(&["HGET", &key, entry]);
    text.map(|text| serde_json::from_str(&text).expect("JSON"))
}

fn ids(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(|sample| sample.id.clone()).collect()
}

fn dead_letters_are_saved_to_their_storage_alone(redis: &Redis) {
    let (files, others) = (Files::new(), Files::new());
    let storages = [("files", files.storage()), ("others", others.storage())];
    let conserver = conserver(redis, &storages);
    let samples = fresh(25);
    defer(redis, "files", &samples);
    give_reason(redis, "files", &samples[0].id);
    redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", samples[1].id), "30"]);
    redis.ask::<i64>(&["HSET", "conserver:deaths", &samples[0].id, "1"]);

    let table = run(&conserver, &["dlq", "ls", "storage:files", "--all"], 0);
    said(
        &table,
        &[&samples[24].id, "storage:files", "too large", "Worker-1"],
    );
    let shown = run(&conserver, &["dlq", "show", &samples[0].id], 0);
    said(&shown, &["DLQ:storage:files, number 1 of 25", "too large"]);
    let queue = run(&conserver, &["dlq", "show", "storage:files", "--json"], 0);
    let queue = json_of(&queue);
    assert_eq!(
        (&queue["dead_letters"], &queue["backlog"]),
        (&json!(25), &json!(0))
    );
    assert_eq!(queue["oldest"]["uuid"], json!(samples[0].id));

    let finished = run(&conserver, &["dlq", "retry", "storage:files", "--all"], 0);
    said(&finished, &["Saved 25 to storage files"]);
    let mut saved: Vec<String> = files.documents().into_iter().map(|(id, _)| id).collect();
    let mut expected = ids(&samples);
    saved.sort_unstable();
    expected.sort_unstable();
    assert_eq!(saved, expected);
    // As the storage would have got it, and no link ran.
    for (_, document) in files.documents() {
        assert_eq!(document["vcon"], "0.4.0");
        assert!(!document.to_string().contains("checked:checked"));
    }
    assert_eq!(others.paths().len(), 0);
    assert_eq!(redis.keys("*DLQ*"), Vec::<String>::new());
    // What the same vCon may be doing elsewhere is not touched.
    assert_eq!(redis.keys("conserver:*"), ["conserver:deaths"]);
    let ttl: i64 = redis.ask(&["TTL", &format!("vcon:{}", samples[1].id)]);
    assert!((1..=30).contains(&ttl), "{ttl}");
    let nothing = run(&conserver, &["dlq", "retry", "storage:files"], 0);
    said(&nothing, &["Nothing was put back"]);
}

#[test]
fn dead_letters_are_saved_to_their_storage_alone_from_plain_documents() {
    dead_letters_are_saved_to_their_storage_alone(&Redis::plain());
}

#[test]
fn dead_letters_are_saved_to_their_storage_alone_from_json_documents() {
    dead_letters_are_saved_to_their_storage_alone(&Redis::with_json());
}

#[test]
fn what_is_refused_again_stays_and_the_others_are_saved() {
    let redis = Redis::plain();
    let samples = fresh(5);
    let bad = samples[1].id.clone();
    let server = Webhook::deciding(move |body| if body.contains(&bad) { 422 } else { 200 });
    let conserver = conserver(&redis, &[hook(&server)]);
    defer(&redis, "hook", &samples);
    give_reason(&redis, "hook", &samples[1].id);
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:hook", "no UUID"]);
    redis.ask::<i64>(&["DEL", &format!("vcon:{}", samples[2].id)]);
    redis.ask::<()>(&["SET", &format!("vcon:{}", samples[3].id), "{"]);

    let finished = run(&conserver, &["dlq", "retry", "storage:hook", "--json"], 65);
    assert_eq!(
        json_of(&finished),
        json!({"retried": 0, "lists": [], "storages": [{"storage": "hook", "saved": 2, "refused": 4}]})
    );
    said(&finished, &["document gone", "is not a UUID", "not JSON"]);
    let left = [&samples[1].id, &samples[2].id, &samples[3].id, "no UUID"];
    assert_eq!(redis.list("DLQ:storage:hook"), left);
    let again = reason(&redis, "hook", &samples[1].id).expect("a reason");
    assert_eq!(again["attempts"], 2);
    assert_eq!(again["stage"], "storage hook");
    assert_eq!(again["worker"], "conserver dlq retry");
    assert!(
        again["error"].as_str().expect("text").contains("422"),
        "{again}"
    );
    assert!(again["at"].as_f64().expect("a time") > 1_710_605_361.0);
    let gone = reason(&redis, "hook", &samples[2].id).expect("a reason");
    assert_eq!(
        (&gone["stage"], &gone["error"]),
        (&json!("load"), &json!("document gone"))
    );
    assert_eq!(redis.keys(LOCK), Vec::<String>::new());

    // Chosen ones alone.
    put(&redis, &samples[2]);
    put(&redis, &samples[3]);
    let (second, third) = (&samples[2].id, &samples[3].id);
    let finished = run(&conserver, &["dlq", "retry", "storage:hook", third], 0);
    said(&finished, &["Saved 1 to storage hook"]);
    let finished = run(&conserver, &["dlq", "retry", second], 0);
    said(&finished, &["Saved 1 to storage hook"]);
    assert_eq!(redis.list("DLQ:storage:hook"), [&samples[1].id, "no UUID"]);
    run(&conserver, &["dlq", "retry", "storage:hook", second], 65);
    let finished = run(
        &conserver,
        &["dlq", "retry", "storage:hook", "--count", "1"],
        65,
    );
    said(&finished, &["Saved 0 to storage hook; 1 stay"]);
    let posted: Vec<String> = server.requests().into_iter().map(|it| it.body).collect();
    let count = |id: &String| {
        posted
            .iter()
            .filter(|body| body.contains(id.as_str()))
            .count()
    };
    assert_eq!(
        samples.iter().map(|it| count(&it.id)).collect::<Vec<_>>(),
        [1, 2, 1, 1, 1]
    );
}

#[test]
fn a_storage_that_is_unavailable_ends_the_retry_and_the_rest_stays() {
    let redis = Redis::plain();
    // Two are taken; then each is tried as often as a worker would, and the second storage is not.
    let server = Webhook::answering(&[200, 200, 503, 503]);
    let conserver = conserver(&redis, &[hook(&server)]);
    let samples = fresh(5);
    defer(&redis, "hook", &samples);
    let finished = run(&conserver, &["dlq", "retry", "storage:hook"], 69);
    said(
        &finished,
        &[
            "storage hook: stopped",
            "is unavailable",
            "503",
            &samples[2].id,
            "Saved 2 to storage hook",
        ],
    );
    assert_eq!(redis.list("DLQ:storage:hook"), ids(&samples[2..]));
    assert_eq!(server.requests().len(), 4);
    assert_eq!(reason(&redis, "hook", &samples[2].id), None);
    assert_eq!(redis.keys(LOCK), Vec::<String>::new());
    run(&conserver, &["dlq", "retry"], 0);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
}

#[test]
fn a_storage_that_cannot_be_reached_is_not_asked_to_save() {
    let redis = Redis::plain();
    let database = Postgres::own();
    let storage = database.new_database().storage();
    let conserver = conserver(&redis, &[("pg", storage)]);
    let samples = fresh(2);
    defer(&redis, "pg", &samples);
    database.stop();
    let finished = run(&conserver, &["dlq", "retry", "storage:pg"], 69);
    said(&finished, &["storage pg is unavailable", "Saved 0"]);
    assert_eq!(redis.list("DLQ:storage:pg"), ids(&samples));
    assert_eq!(redis.keys("*lock*"), Vec::<String>::new());
    database.start();
    run(&conserver, &["dlq", "retry", "storage:pg"], 0);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
}

#[test]
fn a_storage_that_is_not_configured_can_be_looked_at_and_emptied() {
    let redis = Redis::plain();
    let conserver = conserver(&redis, &[]);
    let samples = fresh(3);
    defer(&redis, "former", &samples);
    said(
        &run(&conserver, &["dlq", "ls", "--all"], 0),
        &["storage:former", &samples[0].id],
    );
    let finished = run(&conserver, &["dlq", "retry", "storage:former"], 65);
    said(&finished, &["no storage of this name"]);
    run(&conserver, &["dlq", "retry"], 65);
    assert_eq!(redis.keys("storage:*"), Vec::<String>::new());
    assert_eq!(redis.list("DLQ:storage:former"), ids(&samples));
    let all = ["dlq", "drop", "storage:former", "--all"];
    run(&conserver, &all, 64);
    let finished = conserver.run_on_terminal(&all, "n\n");
    said(
        &finished,
        &[
            "Drop all 3 entries of DLQ:storage:former?",
            "Nothing was dropped",
        ],
    );
    let finished = conserver.run_on_terminal(&all, "y\n");
    said(&finished, &["Dropped 3 entries of DLQ:storage:former"]);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    assert_eq!(redis.keys("vcon:*").len(), 3);
}

#[test]
fn the_configuration_says_whether_it_is_an_ingress_list() {
    let redis = Redis::plain();
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["ingress_lists"] = json!(["default", "storage:odd"]);
    let conserver = Conserver::with(&redis).config(&config);
    let sample = Sample::small();
    defer(&redis, "odd", std::slice::from_ref(&sample));
    let finished = run(&conserver, &["dlq", "retry", "storage:odd"], 0);
    said(&finished, &["Put 1 back on list storage:odd"]);
    assert_eq!(redis.list("storage:odd"), [sample.id.as_str()]);
}

#[test]
fn one_is_dropped_from_one_queue() {
    let redis = Redis::plain();
    let files = Files::new();
    let conserver = conserver(&redis, &[("files", files.storage())]);
    let samples = fresh(3);
    defer(&redis, "files", &samples);
    let id = samples[0].id.as_str();
    give_reason(&redis, "files", id);
    redis.ask::<i64>(&["RPUSH", "DLQ:default", id]);
    redis.ask::<i64>(&["HSET", "conserver:tries", id, "1 2"]);
    let (second, third) = (samples[1].id.as_str(), samples[2].id.as_str());
    run(
        &conserver,
        &["dlq", "drop", "storage:files", "nobody", "--yes"],
        65,
    );
    run(
        &conserver,
        &["dlq", "drop", "storage:files", id, second, "--yes"],
        0,
    );
    assert_eq!(redis.list("DLQ:storage:files"), [third]);
    assert_eq!(redis.list("DLQ:default"), [id]);
    assert_eq!(redis.keys("conserver:*"), ["conserver:tries"]);
    // Without a queue: from all.
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:files", id]);
    let finished = run(&conserver, &["dlq", "drop", id, "--yes", "--document"], 0);
    said(&finished, &["from DLQ:default", "from DLQ:storage:files"]);
    assert_eq!(redis.keys(&format!("vcon:{id}")), Vec::<String>::new());
    run(&conserver, &["dlq", "show", "storage:files", id], 65);
    run(&conserver, &["dlq", "show", "storage:files", third], 0);
    run(&conserver, &["dlq", "show", "default", third], 65);
}

#[test]
fn who_holds_the_lock_is_left_alone() {
    let redis = Redis::plain();
    let server = Webhook::answering(&[]);
    let conserver = conserver(&redis, &[hook(&server)]);
    let samples = fresh(2);
    defer(&redis, "hook", &samples);
    redis.ask::<()>(&["SET", LOCK, "api\u{1b}[2J"]);
    for arguments in [
        &["dlq", "retry", "storage:hook"][..],
        &["dlq", "retry", &samples[0].id],
        &["dlq", "retry"],
    ] {
        let finished = run(&conserver, arguments, 69);
        said(&finished, &[LOCK, "api\\u{1b}[2J", "redis-cli DEL"]);
    }
    said(
        &run(&conserver, &["dlq", "show", "storage:hook"], 0),
        &["Replay", LOCK],
    );
    // The key is no queue for anybody.
    let listed = run(&conserver, &["dlq", "ls", "--json"], 0);
    assert_eq!(listed.stdout.lines().count(), 2);
    redis.ask::<i64>(&["DEL", LOCK]);
    redis.ask::<i64>(&["RPUSH", LOCK, "no string"]);
    said(
        &run(&conserver, &["dlq", "retry", "storage:hook"], 69),
        &[LOCK],
    );
    assert_eq!(redis.list("DLQ:storage:hook"), ids(&samples));
    assert_eq!(server.requests().len(), 0);
}

/// A server that says when it is asked, and answers when it may.
fn slow() -> (Webhook, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (asked, is_asked) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let server = Webhook::deciding(move |_| {
        let _ = asked.send(());
        let _ = may_go.recv();
        200
    });
    (server, is_asked, go)
}

#[test]
fn the_lock_is_held_meanwhile_and_released_when_a_signal_ends_the_retry() {
    let redis = Redis::plain();
    let (server, is_asked, go) = slow();
    let conserver = conserver(&redis, &[hook(&server)]);
    let samples = fresh(3);
    defer(&redis, "hook", &samples);
    let mut child = conserver.spawn(&["dlq", "retry", "storage:hook"]);
    is_asked.recv_timeout(PATIENCE).expect("a request");
    let value: String = redis.ask(&["GET", LOCK]);
    assert!(value.contains("conserver dlq retry"), "{value}");
    assert!(value.contains(&child.id().to_string()), "{value}");
    // It would not outlive a process that is killed for long.
    let ttl: i64 = redis.ask(&["PTTL", LOCK]);
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    let second = run(&conserver, &["dlq", "retry", "storage:hook"], 69);
    said(&second, &[&value, "expires by itself"]);

    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("a child");
    go.send(()).expect("the server");
    let mut status = None;
    wait_until("it ends", PATIENCE, || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(69));
    assert_eq!(redis.keys(LOCK), Vec::<String>::new());
    // What was under way was finished.
    assert_eq!(redis.list("DLQ:storage:hook"), ids(&samples[1..]));
}

#[test]
fn a_lock_that_is_lost_ends_the_retry() {
    let redis = Redis::plain();
    let (server, is_asked, go) = slow();
    let conserver = conserver(&redis, &[hook(&server)]);
    let samples = fresh(2);
    defer(&redis, "hook", &samples);
    let retry = thread::scope(|scope| {
        let retry = scope.spawn(|| conserver.run(&["dlq", "retry", "storage:hook"]));
        is_asked.recv_timeout(PATIENCE).expect("a request");
        redis.ask::<()>(&["SET", LOCK, "somebody else"]);
        go.send(()).expect("the server");
        retry.join().expect("a command")
    });
    assert_eq!(retry.code, 69, "{}", retry.output());
    said(&retry, &["removed or taken the lock"]);
    assert_eq!(redis.list("DLQ:storage:hook"), ids(&samples));
    let value: String = redis.ask(&["GET", LOCK]);
    assert_eq!(value, "somebody else");
}

#[test]
fn a_change_during_the_save_is_saved_too() {
    let redis = Redis::plain();
    let (server, is_asked, go) = slow();
    let conserver = conserver(&redis, &[hook(&server)]);
    let mut sample = Sample::small();
    defer(&redis, "hook", std::slice::from_ref(&sample));
    let retry = thread::scope(|scope| {
        let retry = scope.spawn(|| conserver.run(&["dlq", "retry", "storage:hook"]));
        is_asked.recv_timeout(PATIENCE).expect("a request");
        // A worker puts a newer one there, and defers that too.
        sample.document["subject"] = json!("newer");
        put(&redis, &sample);
        redis.ask::<i64>(&["RPUSH", "DLQ:storage:hook", &sample.id]);
        give_reason(&redis, "hook", &sample.id);
        go.send(()).expect("the server");
        drop(go);
        retry.join().expect("a command")
    });
    assert_eq!(retry.code, 0, "{}", retry.output());
    let last = server.requests().pop().expect("a request");
    assert!(last.body.contains("newer"), "{}", last.body);
    // The entry that came meanwhile is for the next time, with its reason.
    assert_eq!(redis.list("DLQ:storage:hook"), [sample.id.as_str()]);
    assert!(reason(&redis, "hook", &sample.id).is_some());
}

#[test]
fn what_leaves_has_the_version_that_is_set_if_its_storage_gets_that() {
    let redis = Redis::plain();
    let (server, database) = (Webhook::answering(&[]), Postgres::database());
    let storages = [hook(&server), ("pg", database.storage())];
    let conserver = conserver(&redis, &storages).env("EGRESS_FORMAT_VERSION", "0.0.1");
    let samples = fresh(1);
    for storage in ["hook", "pg"] {
        defer(&redis, storage, &samples);
        run(
            &conserver,
            &["dlq", "retry", &format!("storage:{storage}")],
            0,
        );
    }
    let sent: Value = serde_json::from_str(&server.requests()[0].body).expect("JSON");
    assert_eq!(sent["vcon"], "0.4.0");
    assert_eq!(database.rows()[0].1["vcon"], "0.0.1");
}

#[test]
fn dead_letters_and_backlog_are_shown_apart() {
    let redis = Redis::plain();
    let (files, others) = (Files::new(), Files::new());
    let monitor = Monitor::at_a_port();
    let storages = [
        deferring(("later", files.storage())),
        ("now", others.storage()),
    ];
    // No lane may work the backlog off: somebody else replays it.
    redis.ask::<()>(&["SET", "DLQ:storage:later:replay-lock", "test"]);
    let samples = fresh(5);
    defer(&redis, "later", &samples);
    give_reason(&redis, "later", &samples[0].id);
    give_reason(&redis, "later", &samples[1].id);
    defer(&redis, "now", &samples[..1]);
    let daemon = conserver(&redis, &storages)
        .env("CONSERVER_HTTP", monitor.setting())
        .start();

    let shown = json_of(&run(
        daemon.conserver(),
        &["status", "--queues", "--json"],
        0,
    ));
    let expected = json!({"later": {"dead_letters": 2, "backlog": 3},
        "now": {"dead_letters": 1, "backlog": 0}});
    assert_eq!(shown["queues"]["storages"], expected);
    assert_eq!(
        monitor.wait_for("/status", 200).json()["queues"]["storages"],
        expected
    );
    let table = run(daemon.conserver(), &["status", "--queues"], 0).stdout;
    let row = |list: &str, kind: &str| -> String {
        let mut lines = table.lines();
        let row = lines.find(|line| line.contains(list) && line.contains(kind));
        row.unwrap_or_default().replace([' ', '│', '┆'], "")
    };
    assert_eq!(
        row("DLQ:storage:later", "backlog"),
        "DLQ:storage:laterbacklog3"
    );
    assert_eq!(
        row("DLQ:storage:later", "dead"),
        "DLQ:storage:laterdeadletters2"
    );
    assert_eq!(
        row("DLQ:storage:now", "dead"),
        "DLQ:storage:nowdeadletters1"
    );
    assert_eq!(row("DLQ:storage:now", "backlog"), "");

    for format in [Format::Classic, Format::OpenMetrics] {
        let scrape = Scrape::of(&monitor, format);
        for (name, storage, value) in [
            ("conserver_storage_dead_letters", "later", 2.0),
            ("conserver_storage_backlog", "later", 3.0),
            ("conserver_storage_dead_letters", "now", 1.0),
            ("conserver_storage_backlog", "now", 0.0),
        ] {
            let found = scrape.get(name, &[("storage", storage)]);
            assert_eq!(found, Some(value), "{name} {storage}");
        }
    }
    let terminal = Terminal::run(daemon.conserver(), &["top", "--every=1"], (100, 40));
    terminal.wait_for(&["dead letters 3"]);
    terminal.wait_for(&["DLQ:storage:later", "backlog", "3"]);
    drop(terminal);

    let listed = run(daemon.conserver(), &["dlq", "ls", "--json"], 0).stdout;
    assert_eq!(listed.matches("\"backlog\":true").count(), 3);
    let listed = run(daemon.conserver(), &["dlq", "ls", "storage:later"], 0);
    said(&listed, &["backlog: waits until the storage is available"]);
    daemon.stop();
}

#[test]
fn a_queue_that_is_something_else_has_no_figures() {
    let redis = Redis::plain();
    let files = Files::new();
    let daemon = conserver(&redis, &[deferring(("files", files.storage()))]).start();
    redis.ask::<()>(&["SET", "DLQ:storage:files", "text"]);
    let shown = json_of(&run(
        daemon.conserver(),
        &["status", "--queues", "--json"],
        0,
    ));
    assert_eq!(shown["queues"]["storages"], json!({"files": null}));
    said(
        &run(daemon.conserver(), &["status", "--queues"], 0),
        &["DLQ:storage:files", "not a list"],
    );
    let finished = run(daemon.conserver(), &["dlq", "retry", "storage:files"], 69);
    said(&finished, &["not a list"]);
    run(daemon.conserver(), &["dlq", "show", "storage:files"], 65);
    redis.ask::<i64>(&["DEL", "DLQ:storage:files"]);
    daemon.stop();
}

/// Does a chore as the only keeper, and gives how much was kept or dropped.
fn keep(keeper: &mut Housekeeper, chore: &Chore) -> u64 {
    assert_eq!(keeper.take().expect("Redis"), HousekeepingLease::Ours);
    let count = keeper.run(chore, &mut |_| true).expect("Redis");
    keeper.release().expect("Redis");
    count.expect("the lease is ours")
}

#[test]
fn the_documents_of_a_backlog_are_kept_and_those_of_dead_letters_run_out() {
    let redis = Redis::plain();
    let expiry = Expiry {
        document: 3600,
        context: 3600,
        dead_letter: 604_800,
    };
    let mut keeper = Housekeeper::new(server_of(&redis), expiry, "here", PATIENCE);
    // More than two pages.
    let samples: Vec<Sample> = (0..450).map(|_| Sample::small()).collect();
    defer(&redis, "files", &samples);
    let key = |n: usize| format!("vcon:{}", samples[n].id);
    for n in 0..450 {
        redis.ask::<i64>(&["EXPIRE", &key(n), "1000"]);
    }
    redis.ask::<i64>(&["PERSIST", &key(7)]);
    redis.ask::<i64>(&["EXPIRE", &key(8), "400000"]);
    give_reason(&redis, "files", &samples[9].id);
    assert_eq!(keep(&mut keeper, &Chore::Backlog("files".to_owned())), 447);
    let ttl = |n: usize| -> i64 { redis.ask(&["TTL", &key(n)]) };
    for n in 0..450 {
        let expected = match n {
            7 => -1..=-1,
            8 => 399_000..=400_000,
            9 => 900..=1000,
            _ => 604_700..=604_800,
        };
        assert!(expected.contains(&ttl(n)), "{n}: {}", ttl(n));
    }
    redis.ask::<()>(&["SET", "DLQ:storage:files", "text"]);
    assert_eq!(keep(&mut keeper, &Chore::Backlog("files".to_owned())), 0);
}

#[test]
fn waiting_documents_and_their_contexts_are_kept_however_many_there_are() {
    let redis = Redis::plain();
    let expiry = Expiry {
        document: 3600,
        context: 86_400,
        dead_letter: 0,
    };
    let mut keeper = Housekeeper::new(server_of(&redis), expiry, "here", PATIENCE);
    let samples: Vec<Sample> = (0..450).map(|_| Sample::small()).collect();
    for sample in &samples {
        put(&redis, sample);
        redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
        redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), "1000"]);
        let context = format!("context:default:{}", sample.id);
        redis.ask::<i64>(&["RPUSH", &context, "{}"]);
        redis.ask::<i64>(&["EXPIRE", &context, "1000"]);
    }
    assert_eq!(keep(&mut keeper, &Chore::Waiting(list("default"))), 450);
    for sample in &samples {
        let ttl = |key: String| -> i64 { redis.ask(&["TTL", &key]) };
        let (document, context) = (
            ttl(format!("vcon:{}", sample.id)),
            ttl(format!("context:default:{}", sample.id)),
        );
        assert!((3500..=3600).contains(&document), "{document}");
        assert!((86_300..=86_400).contains(&context), "{context}");
    }
    assert_eq!(keep(&mut keeper, &Chore::Waiting(list("default"))), 0);
}

#[test]
fn reasons_whose_entries_others_have_taken_are_dropped() {
    let redis = Redis::plain();
    let expiry = Expiry {
        document: 3600,
        context: 3600,
        dead_letter: 0,
    };
    let mut keeper = Housekeeper::new(server_of(&redis), expiry, "here", PATIENCE);
    let samples: Vec<Sample> = (0..450).map(|_| Sample::small()).collect();
    defer(&redis, "files", &samples);
    for sample in &samples {
        give_reason(&redis, "files", &sample.id);
    }
    assert_eq!(
        keep(&mut keeper, &Chore::StorageReasons("files".to_owned())),
        0
    );
    // As the API server does it.
    for sample in samples.iter().step_by(2) {
        redis.ask::<i64>(&["LREM", "DLQ:storage:files", "1", &sample.id]);
    }
    assert_eq!(
        keep(&mut keeper, &Chore::StorageReasons("files".to_owned())),
        225
    );
    let mut left: Vec<String> = redis.ask(&["HKEYS", "conserver:dlq:storage:files"]);
    let mut listed = redis.list("DLQ:storage:files");
    left.sort_unstable();
    listed.sort_unstable();
    assert_eq!(left, listed);
    // What stands there says nothing of the reasons.
    redis.ask::<()>(&["SET", "DLQ:storage:files", "text"]);
    assert_eq!(
        keep(&mut keeper, &Chore::StorageReasons("files".to_owned())),
        0
    );
    redis.ask::<i64>(&["DEL", "DLQ:storage:files"]);
    assert_eq!(
        keep(&mut keeper, &Chore::StorageReasons("files".to_owned())),
        225
    );
    assert_eq!(redis.keys("conserver:*"), Vec::<String>::new());
}

/// A queue with very many dead letters is looked through piece by piece, and the next look goes on.
#[test]
fn backlog_behind_very_many_dead_letters_is_found_piece_by_piece() {
    const QUEUE: &str = "DLQ:storage:files";
    const REASONS: &str = "conserver:dlq:storage:files";
    const HINT: &str = "conserver:backlog:storage:files";
    let redis = Redis::plain();
    let mut fill = redis::pipe();
    for _ in 0..25_000 {
        let dead = Sample::small();
        fill.cmd("RPUSH").arg(QUEUE).arg(&dead.id).ignore();
        fill.cmd("HSET")
            .arg(REASONS)
            .arg(&dead.id)
            .arg("{}")
            .ignore();
    }
    fill.query::<()>(&mut redis.connection()).expect("Redis");
    let (first, second, early) = (Sample::small(), Sample::small(), Sample::small());
    defer(&redis, "files", &[first.clone(), second.clone()]);
    let mut queue = queue(&redis, "here", 1);
    let mut look = || {
        let claimed = queue.claim_backlog(&[list(QUEUE)]).expect("Redis");
        let (claim, _) = claimed.work?;
        let entry = claim.shown();
        assert_eq!(
            queue.dead_letter(&claim, &REASON, None).expect("Redis"),
            Released::Done
        );
        Some(entry)
    };
    let hint = || redis.ask::<Option<u64>>(&["GET", HINT]);
    assert_eq!((look(), hint()), (None, Some(10_000)));
    assert_eq!((look(), hint()), (None, Some(20_000)));
    assert_eq!((look(), hint()), (Some(first.id), Some(25_000)));
    assert_eq!(look(), Some(second.id));
    // Of those before the hint, some are taken, and another one comes.
    redis.ask::<()>(&["LTRIM", QUEUE, "24990", "-1"]);
    redis.ask::<i64>(&["LPUSH", QUEUE, &early.id]);
    put(&redis, &early);
    redis.ask::<()>(&["DEL", REASONS]);
    for dead in &redis.list(QUEUE)[1..] {
        give_reason(&redis, "files", dead);
    }
    redis.ask::<()>(&["SET", HINT, "5"]);
    assert_eq!((look(), hint()), (None, None));
    assert_eq!(look(), Some(early.id));
    redis.ask::<()>(&["SET", HINT, "rubbish"]);
    assert_eq!(look(), None);
}

#[test]
fn the_monitor_keeps_a_backlog_and_a_vcon_that_is_returned_lives_on() {
    let redis = Redis::plain();
    let database = Postgres::own();
    let storage = database.new_database().storage();
    database.stop();
    let files = Files::new();
    let storages = [("pg", storage), deferring(("files", files.storage()))];
    redis.ask::<()>(&["SET", "DLQ:storage:files:replay-lock", "test"]);
    let backlog = Sample::small();
    defer(&redis, "files", std::slice::from_ref(&backlog));
    give_reason(&redis, "pg", "gone");
    let expire = |sample: &Sample| {
        redis.ask::<i64>(&["EXPIRE", &format!("vcon:{}", sample.id), "1000"]);
    };
    expire(&backlog);
    let daemon = conserver(&redis, &storages).start();
    let ttl = |sample: &Sample| -> i64 { redis.ask(&["TTL", &format!("vcon:{}", sample.id)]) };
    wait_until("the backlog is kept", PATIENCE, || ttl(&backlog) > 604_000);
    wait_until("the reason is dropped", PATIENCE, || {
        redis.keys("conserver:dlq:*").is_empty()
    });
    // The keeper has looked, and looks again in ten minutes: what keeps this one is its return.
    let sample = Sample::small();
    put(&redis, &sample);
    expire(&sample);
    redis.ask::<i64>(&["RPUSH", "default", &sample.id]);
    daemon.wait_for_log("storage pg is away", PATIENCE);
    wait_until("it is back in its list", PATIENCE, || {
        redis.list("default") == [sample.id.as_str()]
    });
    assert!(ttl(&sample) > 3000, "{}", ttl(&sample));
    daemon.stop();
}

#[test]
fn a_long_queue_is_saved_to_its_end() {
    let redis = Redis::plain();
    let samples: Vec<Sample> = (0..450).map(|_| Sample::small()).collect();
    let refused: Vec<String> = samples.iter().step_by(3).map(|it| it.id.clone()).collect();
    let bad = refused.clone();
    let is_bad = move |body: &str| bad.iter().any(|id| body.contains(id.as_str()));
    let server = Webhook::deciding(move |body| if is_bad(body) { 400 } else { 200 });
    let conserver = conserver(&redis, &[hook(&server)]);
    defer(&redis, "hook", &samples);
    let finished = run(&conserver, &["dlq", "retry", "storage:hook", "--json"], 65);
    let done = &json_of(&finished)["storages"][0];
    assert_eq!(
        (&done["saved"], &done["refused"]),
        (&json!(300), &json!(150))
    );
    assert_eq!(redis.list("DLQ:storage:hook"), refused);
    assert_eq!(server.requests().len(), 450);
    assert!(
        finished.took < Duration::from_secs(60),
        "{:?}",
        finished.took
    );
}

#[test]
fn dead_letters_are_saved_when_redis_is_full() {
    let redis = Redis::plain();
    let samples = fresh(3);
    let bad = samples[0].id.clone();
    let server = Webhook::deciding(move |body| if body.contains(&bad) { 422 } else { 200 });
    let conserver = conserver(&redis, &[hook(&server)]);
    defer(&redis, "hook", &samples);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(redis.try_ask::<i64>(&["RPUSH", "default", "x"]).is_err());
    let finished = run(&conserver, &["dlq", "retry", "storage:hook"], 65);
    said(&finished, &["Saved 2 to storage hook; 1 stay"]);
    assert_eq!(redis.list("DLQ:storage:hook"), [samples[0].id.as_str()]);
    assert!(reason(&redis, "hook", &samples[0].id).is_some());
    assert_eq!(redis.keys(LOCK), Vec::<String>::new());
}
