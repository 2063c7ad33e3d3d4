//! Followers: vCons of another server, pulled over its API. Its UUIDs are gone once it has handed them
//! out, so whatever fails, none may be lost here.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Branch, Conserver, Daemon, Manner, Monitor, Nginx, PATIENCE, Redis, Sample, Terms, chain,
    command_line_of, fresh, run, said, same, wait_until,
};

const TOKEN: &str = "a-token-that-nobody-may-see";

/// A chain from `default` to `done` without links, and these followers.
fn config(followers: &[(&str, Value)]) -> Value {
    let mut config = chain(&[], &[]);
    config["chains"]["main"]["links"] = json!([]);
    let followers = followers
        .iter()
        .map(|(name, it)| ((*name).to_owned(), it.clone()));
    config["followers"] = Value::Object(followers.collect());
    config
}

fn start(redis: &Redis, branch: &Branch) -> Daemon {
    Conserver::with(redis)
        .config(&config(&[("far", branch.follower("out"))]))
        .start()
}

/// Waits until all of these, and nothing else, have gone through the chain, each once.
fn settles(redis: &Redis, samples: &[Sample]) {
    wait_until("all are done", PATIENCE, || {
        redis.length("done") >= samples.len()
    });
    let mut done = redis.list("done");
    done.sort();
    let mut ids: Vec<String> = samples.iter().map(|it| it.id.clone()).collect();
    ids.sort();
    assert_eq!(done, ids);
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    assert_eq!(redis.length("conserver:follower:far"), 0);
}

/// The reason of the only dead letter of `default`.
fn reason(redis: &Redis, id: &str) -> Value {
    wait_until("there is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [id]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", id]);
    serde_json::from_str(&reason).unwrap()
}

fn is_egress(path: &str) -> bool {
    path.ends_with("/vcon/egress")
}

/// Pulls work, and all other requests are answered in this manner.
fn to_documents(manner: Manner) -> impl FnMut(&str) -> Manner + Send {
    move |path| {
        if is_egress(path) {
            Manner::Works
        } else {
            manner.clone()
        }
    }
}

/// Pulls are answered in this manner, and all other requests work.
fn to_pulls(manner: Manner) -> impl FnMut(&str) -> Manner + Send {
    move |path| {
        if is_egress(path) {
            manner.clone()
        } else {
            Manner::Works
        }
    }
}

fn pulls(redis: &Redis) {
    let branch = Branch::new(TOKEN);
    let samples = fresh(30);
    branch.announce("out & done", &samples);
    let monitor = Monitor::at_a_port();
    let daemon = Conserver::with(redis)
        .config(&config(&[("far", branch.follower("out & done"))]))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("LOG_LEVEL", "DEBUG")
        .start();
    settles(redis, &samples);
    assert_eq!(branch.length("out & done"), 0);
    for sample in &samples {
        let kept = redis.document(&sample.id).expect("a document");
        assert!(same(&kept, &sample.document), "{kept}");
        let key = format!("vcon:{}", sample.id);
        let score: Option<f64> = redis.ask(&["ZSCORE", "vcons", &key]);
        assert!(score.is_some(), "{key} is not in the sorted set");
        assert_eq!(redis.ask::<i64>(&["TTL", &key]), -1);
    }
    assert_eq!(
        branch.asked("/api/vcon/egress?egress_list=out%20%26%20done&limit=7 "),
        branch.asked("egress")
    );
    assert_eq!(branch.asked("/api/vcon/"), branch.heads().len());
    // Each was fetched once.
    assert_eq!(branch.heads().len() - branch.asked("egress"), samples.len());
    let metrics = monitor.wait_for("/metrics", 200).body;
    assert!(
        metrics.contains("conserver_follower_pulled_total{follower=\"far\"} 30\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("conserver_follower_up{follower=\"far\"} 1\n"),
        "{metrics}"
    );
    let checked = run(daemon.conserver(), &["check"], 0);
    said(
        &checked,
        &["follower far", "from list out & done of http://127.0.0.1:"],
    );
    let status = monitor.get("/status").body;
    let shown = run(daemon.conserver(), &["status", "--json"], 0).output();
    let family = daemon.family().into_iter();
    let lines: Vec<String> = family.map(command_line_of).collect();
    for said in [
        daemon.output(),
        metrics,
        status,
        checked.output(),
        shown,
        lines.join("\n"),
    ] {
        assert!(!said.contains(TOKEN), "{said}");
    }
    daemon.stop();
}

#[test]
fn vcons_are_pulled_and_processed() {
    pulls(&Redis::plain());
}

#[test]
fn vcons_are_pulled_and_processed_as_redisjson() {
    pulls(&Redis::with_json());
}

#[test]
fn whatever_the_other_server_does_wrong_is_waited_out() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    branch.behaves(|_| Manner::Status(500));
    let mut follower = branch.follower("out");
    follower["timeout"] = json!(1);
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", follower)]))
        .start();
    daemon.wait_for_log("vcon/egress: it answered 500; if it has taken", PATIENCE);
    branch.behaves(|_| Manner::Status(403));
    daemon.wait_for_log("it answered 403; see to `auth_token`", PATIENCE);
    branch.behaves(|_| Manner::Says("<html>".to_owned()));
    daemon.wait_for_log("did not answer with a list of UUIDs; if it", PATIENCE);
    branch.behaves(|_| Manner::Cuts(0));
    daemon.wait_for_log("broke off before a list of UUIDs", PATIENCE);
    assert_eq!(daemon.count_in_log("it answered 403"), 1);

    let samples = fresh(7);
    branch.announce("out", &samples);
    branch.behaves(to_documents(Manner::Status(401)));
    daemon.wait_for_log("it answered 401; see to `auth_token`", PATIENCE);
    // What it has handed out waits here, and nobody else has it.
    assert_eq!(branch.length("out"), 0);
    assert_eq!(redis.length("conserver:follower:far"), 7);
    branch.behaves(to_documents(Manner::Cuts(20)));
    daemon.wait_for_log("broke off", PATIENCE);
    branch.behaves(to_documents(Manner::Says("<html>".into())));
    daemon.wait_for_log("is not a JSON object", PATIENCE);
    branch.behaves(to_documents(Manner::Waits));
    daemon.wait_for_log("no response within 1s", PATIENCE);
    branch.works();
    branch.go_on();
    settles(&redis, &samples);
    daemon.wait_for_log("follower far: works again", PATIENCE);
    daemon.stop();
}

#[test]
fn a_wrong_token_takes_nothing() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(3);
    branch.announce("out", &samples);
    let mut follower = branch.follower("out");
    follower["auth_token"] = json!("wrong");
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", follower)]))
        .start();
    daemon.wait_for_log("it answered 403; see to `auth_token`", PATIENCE);
    assert_eq!(branch.length("out"), 3);
    daemon.reconfigure(&config(&[("far", branch.follower("out"))]));
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn a_server_whose_certificate_is_not_trusted_gets_no_token() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(3);
    branch.announce("out", &samples);
    let terms = Terms {
        tls: true,
        ..Terms::default()
    };
    let nginx = Nginx::before(branch.port(), &terms);
    let mut follower = branch.follower("out");
    follower["url"] = json!(format!("{}/api", nginx.url()));
    let conserver = Conserver::with(&redis).config(&config(&[("far", follower)]));
    let again = conserver.again();
    let daemon = conserver.start();
    daemon.wait_for_log("could not GET https://127.0.0.1:", PATIENCE);
    let log = daemon.log().to_lowercase();
    assert!(
        log.contains("certificate") && !log.contains("are lost"),
        "{log}"
    );
    assert_eq!(branch.heads(), Vec::<String>::new());
    daemon.signal(Signal::SIGTERM);
    let mut daemon = daemon;
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    let trusting = again.env("SSL_CERT_FILE", nginx.authority()).start();
    settles(&redis, &samples);
    trusting.stop();
}

#[test]
fn the_token_goes_in_the_header_that_the_environment_names() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", branch.follower("out"))]))
        .env("CONSERVER_HEADER_NAME", "X-Who")
        .start();
    wait_until("it asks", PATIENCE, || branch.asked("egress") > 0);
    let head = &branch.heads()[0];
    assert!(head.contains(&format!("\r\nx-who: {TOKEN}\r\n")), "{head}");
    daemon.stop();
}

#[test]
fn what_came_of_a_list_that_broke_off_is_kept() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(4);
    branch.announce("out", &samples);
    // After two whole UUIDs of 39 bytes each, in the middle of the third.
    let mut cuts = 1;
    branch.behaves(move |path| {
        if is_egress(path) && cuts > 0 {
            cuts -= 1;
            return Manner::Cuts(100);
        }
        Manner::Works
    });
    let daemon = start(&redis, &branch);
    daemon.wait_for_log("broke off after 2, and those behind are lost", PATIENCE);
    settles(&redis, &samples[..2]);
    daemon.stop();
}

#[test]
fn a_document_that_is_not_there_is_a_dead_letter() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let missing = Sample::small();
    branch.push("out", &missing.id);
    let samples = fresh(5);
    branch.announce("out", &samples);
    let daemon = start(&redis, &branch);
    let reason = reason(&redis, &missing.id);
    assert_eq!(reason["stage"], "follower far");
    let error = reason["error"].as_str().unwrap();
    assert!(
        error.contains(&format!("/vcon/{}: it answered 404", missing.id)),
        "{error}"
    );
    daemon.wait_for_log(
        &format!(
            "{}: follower far moved it to the dead letter queue of list default",
            missing.id
        ),
        PATIENCE,
    );
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") == samples.len()
    });
    run(daemon.conserver(), &["dlq", "show", &missing.id], 0);
    daemon.stop();
}

#[test]
fn one_document_that_fails_holds_up_no_other_and_is_given_up_at_last() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let bad = Sample::small();
    let path = bad.id.clone();
    branch.behaves(move |asked| {
        if asked.ends_with(&path) {
            Manner::Status(500)
        } else {
            Manner::Works
        }
    });
    branch.announce("out", std::slice::from_ref(&bad));
    let daemon = start(&redis, &branch);
    daemon.wait_for_log("it answered 500", PATIENCE);
    // Alone it is not to blame, however often it fails.
    wait_until("it was tried more than once", PATIENCE, || {
        branch.asked(&bad.id) > 2
    });
    assert_eq!(redis.list("conserver:follower:far"), [bad.id.as_str()]);
    // Beside others that can be had, it is: in five rounds.
    let mut done = 0;
    wait_until("it is given up", PATIENCE * 2, || {
        if redis.length("done") == done {
            branch.announce("out", &fresh(1));
            done += 1;
        }
        redis.length("DLQ:default") == 1
    });
    let reason = reason(&redis, &bad.id);
    assert_eq!(reason["attempts"], 5);
    assert!(
        reason["error"]
            .as_str()
            .unwrap()
            .contains("it answered 500"),
        "{reason}"
    );
    daemon.stop();
}

#[test]
fn a_killed_monitor_loses_nothing_that_was_handed_out() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(20);
    branch.announce("out", &samples);
    branch.behaves(to_documents(Manner::Waits));
    let daemon = start(&redis, &branch);
    let fetched = || branch.heads().len() - branch.asked("egress");
    for number in 1..=3 {
        wait_until("it fetches", PATIENCE, || fetched() == number);
        assert_eq!(redis.length("conserver:follower:far"), 7);
        let monitor = daemon.process("conserver-mon");
        kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    }
    wait_until("it fetches once more", PATIENCE, || fetched() == 4);
    branch.works();
    branch.go_on();
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn nothing_is_lost_if_redis_goes_away_after_the_other_server_has_handed_out() {
    let (redis, branch) = (Redis::plain().durable().started(), Branch::new(TOKEN));
    let samples = fresh(5);
    branch.announce("out", &samples);
    branch.behaves(to_pulls(Manner::Waits));
    let daemon = start(&redis, &branch);
    wait_until("it pulls", PATIENCE, || branch.waiting() == 1);
    redis.kill9();
    branch.go_on();
    daemon.wait_for_log("could not note 5 UUIDs that it took in Redis yet", PATIENCE);
    assert_eq!(branch.length("out"), 0);
    redis.start();
    settles(&redis, &samples);
    assert_eq!(spools(&daemon), 0);
    daemon.stop();
}

/// How many files keep what Redis did not.
fn spools(daemon: &Daemon) -> usize {
    let files = fs::read_dir(daemon.conserver().runtime_folder()).unwrap();
    let names = files.map(|file| file.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().contains(".taken-"))
        .count()
}

#[test]
fn nor_if_the_monitor_is_killed_meanwhile() {
    let (redis, branch) = (Redis::plain().durable().started(), Branch::new(TOKEN));
    let samples = fresh(5);
    branch.announce("out", &samples);
    branch.behaves(to_pulls(Manner::Waits));
    let daemon = start(&redis, &branch);
    wait_until("it pulls", PATIENCE, || branch.waiting() == 1);
    redis.kill9();
    branch.go_on();
    wait_until("they are in a file", PATIENCE, || spools(&daemon) == 1);
    let monitor = daemon.process("conserver-mon");
    kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    daemon.wait_for_log("Restarted Monitor", PATIENCE);
    redis.start();
    settles(&redis, &samples);
    daemon.wait_for_log("found 5 UUIDs that were taken before", PATIENCE);
    assert_eq!(spools(&daemon), 0);
    daemon.stop();
}

#[test]
fn nor_if_the_daemon_stops_and_its_runtime_folder_is_emptied() {
    let (redis, branch) = (Redis::plain().durable().started(), Branch::new(TOKEN));
    let state = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(state.path()).unwrap().count();
    let samples = fresh(5);
    branch.announce("out", &samples);
    branch.behaves(to_pulls(Manner::Waits));
    let mut folders = state.path().as_os_str().to_owned();
    folders.push(":/none/there");
    let mut daemon = Conserver::with(&redis)
        .config(&config(&[("far", branch.follower("out"))]))
        .env("STATE_DIRECTORY", folders)
        .start();
    wait_until("it pulls", PATIENCE, || branch.waiting() == 1);
    redis.kill9();
    branch.go_on();
    wait_until("they are in a file", PATIENCE, || files() == 1);
    assert_eq!(spools(&daemon), 0);
    daemon.terminate();
    daemon.wait_exit(PATIENCE);
    // As systemd does at a stop.
    let runtime = daemon.conserver().runtime_folder();
    for file in fs::read_dir(runtime).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    redis.start();
    let daemon = daemon.conserver().launch_again();
    settles(&redis, &samples);
    daemon.wait_for_log("found 5 UUIDs that were taken before", PATIENCE);
    assert_eq!(files(), 0);
    daemon.stop();
}

#[test]
fn nor_if_it_goes_away_while_a_document_is_fetched() {
    let (redis, branch) = (Redis::plain().durable().started(), Branch::new(TOKEN));
    let samples = fresh(5);
    branch.announce("out", &samples);
    branch.behaves(to_documents(Manner::Waits));
    let daemon = start(&redis, &branch);
    wait_until("it fetches", PATIENCE, || branch.waiting() == 1);
    redis.kill9();
    branch.go_on();
    daemon.wait_for_log("follower far: could not connect to Redis", PATIENCE);
    redis.start();
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn large_documents_come_whole_and_larger_ones_are_dead_letters() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let large = |megabytes: usize| {
        let mut sample = Sample::small();
        sample.document["subject"] = json!("x".repeat(megabytes << 20));
        sample
    };
    let samples = [large(3), large(5), large(2)];
    branch.announce("out", &samples);
    let mut follower = branch.follower("out");
    follower["max_megabytes"] = json!(4);
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", follower)]))
        .start();
    let reason = reason(&redis, &samples[1].id);
    let error = reason["error"].as_str().unwrap();
    assert!(
        error.contains("is larger than 4 MiB (option `max_megabytes`)"),
        "{error}"
    );
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") == 2
    });
    for sample in [&samples[0], &samples[2]] {
        assert!(same(&redis.document(&sample.id).unwrap(), &sample.document));
    }
    assert_eq!(redis.keys("conserver:draft:*"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_full_redis_pulls_nothing() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", branch.follower("out"))]))
        .env("LOG_LEVEL", "DEBUG")
        .start();
    wait_until("it pulls", PATIENCE, || branch.asked("egress") > 0);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    daemon.wait_for_log("OOM", PATIENCE);
    let samples = fresh(3);
    branch.announce("out", &samples);
    let tried = daemon.count_in_log("OOM");
    wait_until("it has tried once more", PATIENCE, || {
        daemon.count_in_log("OOM") > tried || branch.length("out") < 3
    });
    assert_eq!(branch.length("out"), 3);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn a_document_that_is_here_is_never_written_over() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let [mut ours, again, other] = [Sample::small(), Sample::small(), Sample::small()];
    // One has changed here, and comes with another content.
    let theirs = ours.clone();
    ours.document["subject"] = json!("changed here");
    redis.ask::<()>(&["SET", &format!("vcon:{}", ours.id), &ours.text()]);
    branch.announce("out", std::slice::from_ref(&theirs));
    // One is here with the same content, in other words.
    let text = again.text().replacen('{', "{ \n", 1);
    redis.ask::<()>(&["SET", &format!("vcon:{}", again.id), &text, "EX", "60"]);
    branch.announce("out", std::slice::from_ref(&again));
    branch.announce("out", std::slice::from_ref(&other));
    let daemon = start(&redis, &branch);
    let reason = reason(&redis, &ours.id);
    let error = reason["error"].as_str().unwrap();
    assert!(
        error.contains("with other content: it was kept as it is"),
        "{error}"
    );
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") == 2
    });
    let kept = redis.document(&ours.id).unwrap();
    assert_eq!(kept["subject"], "changed here");
    // The other one is not lost either.
    let key = format!("conserver:pulled-other:{}", ours.id);
    assert!(error.contains(&key), "{error}");
    let kept: String = redis.ask(&["GET", &key]);
    assert_eq!(kept, theirs.text());
    assert!(redis.ask::<i64>(&["TTL", &key]) > 600_000);
    // What waits lives.
    assert!(redis.ask::<i64>(&["TTL", &format!("vcon:{}", again.id)]) > 60);

    // One that was pulled and then changed here comes again: it is no new version.
    let key = format!("vcon:{}", other.id);
    let mut changed = other.document.clone();
    changed["subject"] = json!("changed since");
    redis.ask::<()>(&["SET", &key, &changed.to_string()]);
    branch.push("out", &other.id);
    wait_until("it is done again", PATIENCE, || redis.length("done") == 3);
    assert_eq!(
        redis.document(&other.id).unwrap()["subject"],
        "changed since"
    );
    assert_eq!(redis.length("DLQ:default"), 1);
    daemon.stop();
}

#[test]
fn two_instances_pull_each_vcon_once() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let config = config(&[("far", branch.follower("out"))]);
    let start = |name: &str| {
        Conserver::with(&redis)
            .config(&config)
            .env("CONSERVER_INSTANCE", name)
            .start()
    };
    let (one, two) = (start("one"), start("two"));
    wait_until("one of them waits for the other", PATIENCE, || {
        one.count_in_log("instance \"two\" holds the lease")
            + two.count_in_log("instance \"one\" holds the lease")
            == 1
    });
    let samples = fresh(20);
    branch.announce("out", &samples);
    settles(&redis, &samples);
    assert_eq!(branch.heads().len() - branch.asked("egress"), samples.len());
    // The other one goes on soon after this one has ended.
    let (first, second) = if two.count_in_log("instance \"one\" holds the lease") == 1 {
        (one, two)
    } else {
        (two, one)
    };
    first.stop();
    second.wait_for_log("this instance pulls from now on", PATIENCE);
    let more = fresh(3);
    branch.announce("out", &more);
    settles(&redis, &[samples, more].concat());
    second.stop();
}

#[test]
fn a_new_configuration_is_followed() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let daemon = start(&redis, &branch);
    wait_until("it pulls", PATIENCE, || branch.asked("egress_list=out") > 0);
    let samples = fresh(2);
    branch.announce("elsewhere", &samples);
    // Percent-encoded, this name is longer than the name of a file can be.
    let long = "ж".repeat(60);
    daemon.reconfigure(&config(&[(&long, branch.follower("elsewhere"))]));
    settles(&redis, &samples);
    daemon.wait_for_log("follower far: stops", PATIENCE);
    // What a follower that is gone has left is named.
    redis.ask::<()>(&["RPUSH", "conserver:follower:far", &samples[0].id]);
    let board = fs::read_dir(daemon.conserver().runtime_folder())
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|it| it == "scoreboard"))
        .unwrap();
    let spool = board.with_extension("taken-far%2Faway");
    fs::write(&spool, format!("{}\n{}\n", fresh(1)[0].id, fresh(1)[0].id)).unwrap();
    daemon.reconfigure(&config(&[]));
    daemon.wait_for_log(
        "follower \"far\" is no longer in the configuration, and 1 vCons that it took",
        PATIENCE,
    );
    daemon.wait_for_log(
        "taken-far%2Faway still holds 2 UUIDs that follower \"far/away\" took",
        PATIENCE,
    );
    assert!(spool.exists());
    daemon.stop();
}

#[test]
fn a_drain_waits_for_what_is_handed_out_and_for_nothing_else() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(5);
    branch.announce("out", &samples);
    branch.behaves(to_documents(Manner::Waits));
    let mut daemon = start(&redis, &branch);
    wait_until("it fetches", PATIENCE, || branch.waiting() == 1);
    let start = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(redis.length("conserver:follower:far"), 5);

    // Now in the middle of a pop.
    let more = fresh(5);
    branch.announce("out", &more);
    branch.works();
    branch.go_on();
    let branch = {
        let later = Branch::new(TOKEN);
        later.announce("late", &more);
        later.behaves(to_pulls(Manner::Waits));
        later
    };
    let mut second = Conserver::with(&redis)
        .config(&config(&[("late", branch.follower("late"))]))
        .start();
    wait_until("it pulls", PATIENCE, || branch.waiting() == 1);
    second.terminate();
    second.wait_for_log("SIGTERM received", PATIENCE);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(second.has_exited(), None);
    branch.go_on();
    assert_eq!(second.wait_exit(PATIENCE), 0);
    assert_eq!(redis.length("conserver:follower:late"), 5);
}

#[test]
fn what_is_no_uuid_is_refused_and_shown_harmlessly() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(2);
    branch.push("out", "../../etc\n\u{1b}[2Jpasswd");
    branch.announce("out", &samples);
    branch.push("out", &samples[0].id);
    let daemon = start(&redis, &branch);
    daemon.wait_for_log(r"../../etc\n\u{1b}[2Jpasswd", PATIENCE);
    settles(&redis, &samples);
    assert!(!daemon.output().contains('\u{1b}'));
    daemon.stop();
}

#[test]
fn a_redirect_is_not_followed_and_its_host_gets_no_token() {
    let (redis, branch, thief) = (Redis::plain(), Branch::new(TOKEN), Branch::new(TOKEN));
    let samples = fresh(3);
    branch.announce("out", &samples);
    thief.announce("out", &fresh(1));
    let to = format!("{}/vcon/egress?egress_list=out&limit=7", thief.url());
    branch.behaves(to_pulls(Manner::Redirects(to)));
    let daemon = start(&redis, &branch);
    daemon.wait_for_log("it answered 307; give `url` as it leads to", PATIENCE);
    branch.behaves(to_documents(Manner::Redirects(format!(
        "{}/x",
        thief.url()
    ))));
    wait_until("it fetches", PATIENCE, || branch.asked(&samples[0].id) > 1);
    assert_eq!(thief.heads(), Vec::<String>::new());
    branch.works();
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn a_server_that_never_ends_its_answer_holds_nobody_up() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(3);
    branch.announce("out", &samples);
    branch.behaves(to_documents(Manner::Drips));
    let mut follower = branch.follower("out");
    follower["timeout"] = json!(1);
    let daemon = Conserver::with(&redis)
        .config(&config(&[("far", follower)]))
        .start();
    daemon.wait_for_log("broke off", PATIENCE);
    assert_eq!(redis.length("conserver:follower:far"), 3);
    branch.works();
    settles(&redis, &samples);
    daemon.stop();
}

#[test]
fn of_a_list_that_is_far_too_long_what_was_read_is_kept_and_shows_no_token() {
    let (redis, branch) = (Redis::plain(), Branch::new(TOKEN));
    let samples = fresh(2);
    branch.announce("elsewhere", &samples);
    let mut entries = vec![
        samples[0].id.clone(),
        format!("your {TOKEN}"),
        samples[1].id.clone(),
    ];
    entries.push("x".repeat(2 << 20));
    let list = json!(entries).to_string();
    let mut lists = vec![list];
    branch.behaves(
        move |path| match is_egress(path).then(|| lists.pop()).flatten() {
            Some(list) => Manner::Says(list),
            None => Manner::Works,
        },
    );
    let daemon = start(&redis, &branch);
    daemon.wait_for_log("it is longer than 1048576 bytes", PATIENCE);
    settles(&redis, &samples);
    daemon.wait_for_log("sent 1 more entries that are not UUIDs: refused", PATIENCE);
    assert!(!daemon.output().contains(TOKEN));
    daemon.stop();
}
