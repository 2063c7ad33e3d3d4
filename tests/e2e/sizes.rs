//! Large documents. Those that are longer than Redis takes, or than a storage may bring, are dead letters
//! with a reason, while others go on; and for others, Redis is not stopped more often than it must be.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::{
    Branch, Conserver, Daemon, Files, Ledger, PATIENCE, Redis, Sample, chain, fresh, run, said,
    stuck, submit, wait_until,
};

/// The smallest limits that Redis has.
const VALUES: [&str; 2] = ["--proto-max-bulk-len", "1mb"];
const REQUESTS: [&str; 2] = ["--client-query-buffer-limit", "1mb"];

/// A vCon whose document has this many bytes.
fn of_length(length: usize) -> Sample {
    let mut sample = fresh(1).remove(0);
    sample.document["subject"] = json!("");
    let room = length - sample.text().len();
    sample.document["subject"] = json!("x".repeat(room));
    assert_eq!(sample.text().len(), length);
    sample
}

/// The reason why this is the only dead letter of `default`.
fn reason(redis: &Redis, id: &str) -> String {
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [id]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", id]);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    reason["error"].as_str().expect("text").to_owned()
}

fn is_never_away(daemon: &Daemon) {
    assert_eq!(daemon.count_in_log("is away"), 0, "{}", daemon.log());
}

fn grows_too_long(redis: &Redis, length: usize, setting: &str) {
    let (large, others) = (of_length(length), fresh(3));
    let before = redis_text(&large);
    submit(redis, "default", std::slice::from_ref(&large));
    submit(redis, "default", &others);
    let daemon = Conserver::with(redis).config(&chain(&[], &[])).start();
    let reason = reason(redis, &large.id);
    assert!(reason.contains(setting), "{reason}");
    Ledger::of(redis, &others).wait_for(3);
    Ledger::of(redis, &others).nothing_is_claimed();
    // What stands there is what was loaded, and no draft is left beside it.
    assert_eq!(redis.document(&large.id), Some(before));
    assert_eq!(redis.keys("conserver:draft:*"), Vec::<String>::new());
    is_never_away(&daemon);
    daemon.stop();
}

fn redis_text(sample: &Sample) -> Value {
    serde_json::from_str(&sample.text()).expect("JSON")
}

#[test]
fn a_document_that_grows_beyond_what_redis_takes_is_a_dead_letter() {
    let full = 1 << 20;
    let redis = || Redis::new().with(&VALUES);
    grows_too_long(&redis().started(), full, VALUES[0].trim_start_matches('-'));
    grows_too_long(
        &redis().json().started(),
        full,
        VALUES[0].trim_start_matches('-'),
    );
}

#[test]
fn a_document_that_is_longer_than_a_request_may_be_is_a_dead_letter() {
    let redis = Redis::new().with(&REQUESTS).started();
    // It has come from elsewhere, in pieces.
    let large = of_length(1_500_000);
    let key = format!("vcon:{}", large.id);
    for piece in large.text().as_bytes().chunks(500_000) {
        let piece = std::str::from_utf8(piece).expect("ASCII");
        redis.ask::<i64>(&["APPEND", &key, piece]);
    }
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("client-query-buffer-limit"), "{reason}");
    is_never_away(&daemon);
    daemon.stop();
}

#[test]
fn a_server_that_hides_its_limits_has_the_usual_ones() {
    let redis = Redis::new()
        .with(&["--rename-command", "CONFIG", ""])
        .started();
    let samples = [of_length(1_500_000)];
    submit(&redis, "default", &samples);
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn submit_says_which_document_redis_does_not_take_and_hands_in_the_others() {
    let redis = Redis::new().with(&VALUES).started();
    let conserver = Conserver::with(&redis);
    let samples = [fresh(1).remove(0), of_length(3_000_000), fresh(1).remove(0)];
    let folder = conserver.folder().join("calls");
    fs::create_dir(&folder).expect("a folder");
    for sample in &samples {
        fs::write(folder.join(format!("{}.json", sample.id)), sample.text()).expect("a file");
    }
    let folder = folder.display().to_string();
    let finished = conserver.run(&["submit", &folder, "--list", "default"]);
    assert_ne!(finished.code, 0, "{}", finished.output());
    said(&finished, &[&samples[1].id, "proto-max-bulk-len"]);
    let mut listed = redis.list("default");
    listed.sort();
    let mut ids = [samples[0].id.clone(), samples[2].id.clone()];
    ids.sort();
    assert_eq!(listed, ids);
}

#[test]
fn a_follower_makes_a_dead_letter_of_what_redis_does_not_take() {
    let redis = Redis::new().with(&VALUES).started();
    let branch = Branch::new("token");
    let samples = [of_length(3_000_000), fresh(1).remove(0)];
    branch.announce("out", &samples);
    let mut config = chain(&[], &[]);
    config["followers"] = json!({"far": branch.follower("out")});
    let daemon = Conserver::with(&redis).config(&config).start();
    let reason = reason(&redis, &samples[0].id);
    assert!(reason.contains("proto-max-bulk-len"), "{reason}");
    Ledger::of(&redis, &samples[1..]).wait_for(1);
    daemon.stop();
}

/// A file of a few kilobytes that unpacks to so many bytes, and has no end.
fn bomb(files: &Files, id: &str, length: usize) {
    let path = files.folder().join(format!("{id}.json.gz"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&vec![b' '; length]).expect("in memory");
    let mut packed = gzip.finish().expect("in memory");
    packed.truncate(packed.len() - 8);
    let mut file = File::create(path).expect("a file");
    file.write_all(&packed).expect("room on the disk");
}

#[test]
fn a_small_file_that_unpacks_to_very_much_is_read_no_further_than_it_may_be() {
    let (redis, files) = (Redis::plain(), Files::new());
    let (large, others) = (fresh(1).remove(0), fresh(2));
    bomb(&files, &large.id, 30_000_000);
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    submit(&redis, "default", &others);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", files.storage())]))
        .start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("max_file_size"), "{reason}");
    Ledger::of(&redis, &others).wait_for(2);
    let got = run(daemon.conserver(), &["get", &large.id], 65);
    said(&got, &["max_file_size"]);
    daemon.stop();
}

/// What is too large stays where it is, is named, and keeps no command from the others.
#[test]
fn commands_name_what_is_too_large_and_go_on() {
    let (redis, keeper) = (Redis::plain(), Redis::new().with(&VALUES).started());
    let files = Files::new();
    let kept = json!({"module": "storage.redis_storage", "options": {"redis_url": keeper.url()}});
    let conserver = Conserver::with(&redis)
        .config(&chain(&[], &[("files", files.storage()), ("kept", kept)]))
        .env("CONSERVER_RETRY_ATTEMPTS", "1");
    let (large, other, packed) = (of_length(3_000_000), fresh(1).remove(0), fresh(1).remove(0));
    submit(&redis, "DLQ:storage:kept", &[large.clone(), other.clone()]);
    let retried = run(&conserver, &["dlq", "retry", "storage:kept", "--json"], 65);
    let done: Value = serde_json::from_str(&retried.stdout).expect("JSON");
    assert_eq!(done["storages"][0]["saved"], 1, "{done}");
    said(&retried, &[&large.id, "proto-max-bulk-len"]);
    assert_eq!(redis.list("DLQ:storage:kept"), [large.id.as_str()]);
    assert_eq!(
        keeper.keys("vcon_storage:*"),
        [format!("vcon_storage:{}", other.id)]
    );
    let shown = run(&conserver, &["dlq", "show", &large.id, "--json"], 0);
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let error = shown["letters"][0]["error"].as_str().expect("a reason");
    assert!(error.contains("proto-max-bulk-len"), "{error}");
    assert_eq!(shown["document"]["subject"], large.document["subject"]);

    // It is there, whatever is in it.
    bomb(&files, &packed.id, 30_000_000);
    redis.ask::<()>(&["SET", &format!("vcon:{}", packed.id), "{}"]);
    let audited = run(&conserver, &["audit", "--settle", "0"], 0);
    said(&audited, &["Storage files has 1 of the others"]);
    let from_files = ["get", &packed.id, "--from", "files"];
    said(&run(&conserver, &from_files, 65), &["max_file_size"]);
    let path = files.paths().remove(0).display().to_string();
    let submitted = run(&conserver, &["submit", &path, "--list", "default"], 65);
    said(&submitted, &[&path, "Submitted 0 of 1 vCons"]);
    let delete = ["delete", &packed.id, "--yes", "--from", "files"];
    said(&run(&conserver, &delete, 0), &["storage files: deleted"]);
    assert_eq!(files.paths().len(), 0);
}

#[test]
fn a_document_of_a_storage_that_redis_does_not_take_is_a_dead_letter() {
    let (redis, files) = (Redis::new().with(&VALUES).started(), Files::new());
    let large = of_length(3_000_000);
    let path = files.folder().join(format!("{}.json", large.id));
    fs::write(path, large.text()).expect("a file");
    redis.ask::<i64>(&["RPUSH", "default", &large.id]);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", files.storage())]))
        .start();
    let reason = reason(&redis, &large.id);
    assert!(reason.contains("proto-max-bulk-len"), "{reason}");
    is_never_away(&daemon);
    daemon.stop();
}

/// The commands that a server runs from now on.
struct Commands {
    redis: u16,
    lines: thread::JoinHandle<Vec<String>>,
}

const LAST: &str = "the last command";

impl Commands {
    fn of(redis: &Redis) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).expect("a connection");
        stream.write_all(b"MONITOR\r\n").expect("a connection");
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        assert_eq!(lines.next().as_deref(), Some("+OK"));
        let lines = thread::spawn(move || lines.take_while(|line| !line.contains(LAST)).collect());
        Self {
            redis: redis.port(),
            lines,
        }
    }

    /// The commands up to now that name this vCon, and how often its document was written out: by a script,
    /// and by itself.
    fn reads(self, sample: &Sample) -> (usize, usize) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.redis)).expect("a connection");
        let last = format!("*2\r\n$4\r\nECHO\r\n${}\r\n{LAST}\r\n", LAST.len());
        stream.write_all(last.as_bytes()).expect("a connection");
        let lines = self.lines.join().expect("no panic");
        let read = format!("\"JSON.GET\" \"vcon:{}\"", sample.id);
        let reads: Vec<&String> = lines.iter().filter(|it| it.contains(&read)).collect();
        let by_scripts = reads.iter().filter(|it| it.contains(" lua] ")).count();
        (by_scripts, reads.len() - by_scripts)
    }
}

/// Tags of a document: `checked` is what the chain adds.
fn has_tag(redis: &Redis, sample: &Sample) -> bool {
    let document = redis.document(&sample.id).expect("a document");
    document["attachments"]
        .to_string()
        .contains("checked:checked")
}

/// A daemon with a link that is at work until it is let go.
fn holding(redis: &Redis) -> (Daemon, TcpListener) {
    let (hole, link) = stuck();
    let daemon = Conserver::with(redis).config(&chain(&[link], &[])).start();
    (daemon, hole)
}

/// Waits until the link has a document of at least this many bytes.
fn wait_until_held(hole: &TcpListener, length: usize) -> TcpStream {
    let (mut held, _) = hole.accept().expect("a connection");
    let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
    while read < length {
        match held.read(&mut buffer).expect("a request") {
            0 => panic!("the request ends after {read} bytes"),
            count => read += count,
        }
    }
    held
}

fn let_go(mut held: TcpStream) {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    held.write_all(answer.as_bytes()).expect("a connection");
    // What is left of the request, or the answer would be lost with the connection.
    held.read_to_end(&mut Vec::new()).expect("a connection");
}

#[test]
fn a_large_json_document_is_written_out_once_and_never_by_a_script() {
    let (redis, sample) = (Redis::with_json(), of_length(5_000_000));
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let commands = Commands::of(&redis);
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(commands.reads(&sample), (0, 1));
    assert!(has_tag(&redis, &sample));
    // The next transaction on that connection is none of the watch's business.
    let others = fresh(2);
    submit(&redis, "default", &others);
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") == 3
    });
    is_never_away(&daemon);
    daemon.stop();
}

#[test]
fn a_large_json_document_that_is_touched_while_in_work_is_compared_once_more() {
    let (redis, sample) = (Redis::with_json(), of_length(2_000_000));
    let (daemon, hole) = holding(&redis);
    let commands = Commands::of(&redis);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let held = wait_until_held(&hole, 2_000_000);
    let key = format!("vcon:{}", sample.id);
    redis.ask::<i64>(&["EXPIRE", &key, "10000"]);
    let_go(held);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(commands.reads(&sample), (0, 2));
    assert!(has_tag(&redis, &sample));
    assert_eq!(daemon.count_in_log("was changed while it was in work"), 0);
    let left: i64 = redis.ask(&["TTL", &key]);
    assert!((9_900..=10_000).contains(&left), "{left}");
    daemon.stop();
}

#[test]
fn a_change_of_a_large_json_document_while_in_work_is_kept() {
    let (redis, sample) = (Redis::with_json(), of_length(2_000_000));
    let (daemon, hole) = holding(&redis);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let held = wait_until_held(&hole, 2_000_000);
    let key = format!("vcon:{}", sample.id);
    redis.ask::<()>(&["JSON.SET", &key, "$.extra", "\"kept\""]);
    let_go(held);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert!(has_tag(&redis, &sample));
    let document = redis.document(&sample.id).expect("a document");
    assert_eq!(document["extra"], json!("kept"));
    daemon.stop();
}

#[test]
fn a_small_document_that_others_make_large_is_never_written_out_by_a_script() {
    let (redis, sample) = (Redis::with_json(), fresh(1).remove(0));
    let (daemon, hole) = holding(&redis);
    let commands = Commands::of(&redis);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let held = wait_until_held(&hole, 500);
    let key = format!("vcon:{}", sample.id);
    let extra = json!("x".repeat(2_000_000)).to_string();
    redis.ask::<()>(&["JSON.SET", &key, "$.extra", &extra]);
    let_go(held);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    let (by_scripts, _) = commands.reads(&sample);
    // By the claim, when it was small.
    assert_eq!(by_scripts, 1);
    assert!(has_tag(&redis, &sample));
    let document = redis.document(&sample.id).expect("a document");
    assert_eq!(document["extra"].as_str().map(str::len), Some(2_000_000));
    daemon.stop();
}

#[test]
fn a_large_json_document_that_becomes_a_plain_string_while_in_work_is_merged_with_it() {
    let (redis, sample) = (Redis::with_json(), of_length(2_000_000));
    let (daemon, hole) = holding(&redis);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let held = wait_until_held(&hole, 2_000_000);
    redis.ask::<()>(&["SET", &format!("vcon:{}", sample.id), &sample.text()]);
    let_go(held);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert!(has_tag(&redis, &sample));
    is_never_away(&daemon);
    daemon.stop();
}

/// A vCon with about so many bytes of short dialogs.
fn of_small_parts(length: usize) -> Sample {
    let mut sample = fresh(1).remove(0);
    let dialog = |number: usize| {
        json!({"type": "text", "start": "2024-03-16T16:09:20Z", "parties": [0, 1],
            "mediatype": "text/plain", "body": format!("words {number}")})
    };
    let count = length / dialog(0).to_string().len();
    sample.document["dialog"] = (0..count).map(dialog).collect();
    sample
}

/// What a lane may keep for its next document.
const KEPT: usize = 6 << 20;

/// A figure of a process's memory, in bytes.
fn memory(pid: i32, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .expect("a line");
    let kilobytes = line.trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().expect("a number") * 1024
}

#[test]
fn a_document_of_many_small_parts_takes_little_more_than_others_and_gives_it_back() {
    const SIZE: usize = 5_000_000;
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis).config(&chain(&[], &[])).start();
    let worker = daemon.workers()[&1];
    let idle = memory(worker, "RssAnon:");
    let sample = of_small_parts(SIZE);
    submit(&redis, "default", std::slice::from_ref(&sample));
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert!(has_tag(&redis, &sample));
    // Opened up, its parts alone would take seven times its size.
    let peak = memory(worker, "VmHWM:") - memory(worker, "RssFile:");
    assert!(peak < idle + 4 * SIZE + 8_000_000, "{peak}");
    wait_until("the memory is given back", PATIENCE, || {
        memory(worker, "RssAnon:") < idle + KEPT
    });
    daemon.stop();
}

#[test]
fn what_a_filter_makes_of_large_documents_is_given_back() {
    const LANES: usize = 4;
    let redis = Redis::plain();
    let filter = json!({"module": "links.jq_link", "options": {"filter": ".dialog | length > 0"}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[("filter", filter)], &[]))
        .lanes(LANES)
        .start();
    let worker = daemon.workers()[&1];
    let idle = memory(worker, "RssAnon:");
    let samples: Vec<Sample> = (0..LANES).map(|_| of_small_parts(1_500_000)).collect();
    submit(&redis, "default", &samples);
    wait_until("all are done", PATIENCE, || redis.length("done") == LANES);
    let peak = memory(worker, "VmHWM:") - memory(worker, "RssFile:");
    assert!(peak > idle + (LANES + 1) * KEPT, "{peak}");
    wait_until("the memory is given back", PATIENCE, || {
        memory(worker, "RssAnon:") < idle + LANES * KEPT
    });
    daemon.stop();
}
