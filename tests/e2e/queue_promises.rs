//! What the queue's scripts promise in a few words: nothing expires that was kept for ever, nothing is
//! announced by halves, and a claim that cannot be made leaves everything as it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use conserver::queue::{
    Chore, Claim, DeadLetters, Document, DocumentFormat, EndedWorker, Evidence, FailedStorage,
    Finish, Finished, Holder, Housekeeper, HousekeepingLease, LaneId, Lengths, ProgressRecord,
    Queue, Raw, Reason, Released, Replaced, Replacement, Server, Suspects,
};
use conserver::vcon::VconId;
use nix::sys::signal::Signal;
use redis::{Connection, RedisResult};
use serde_json::{Value, json};

use crate::harness::{
    Conserver, EXPIRY, PATIENCE, Programs, Redis, Sample, exec, lease_of, list, queue, relay,
    server_of, submit, wait_until,
};

const CONTEXT: &str = r#"{"trace_id":"0af7"}"#;

/// A vCon in the list `in`, without a time to live.
fn hand_in(redis: &Redis) -> (VconId, String) {
    let sample = Sample::small();
    submit(redis, "in", std::slice::from_ref(&sample));
    (sample.id.parse().unwrap(), format!("vcon:{}", sample.id))
}

fn claim(queue: &mut Queue) -> (Claim, DocumentFormat, String) {
    let claimed = queue.claim(&[list("in")]).unwrap();
    let (claim, document) = claimed.work.unwrap();
    match document {
        Document::Found(kind, text) => (claim, kind, String::from_utf8(text).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The time that a key has left, in seconds; -1 for ever.
fn time_left(redis: &Redis, key: &str) -> i64 {
    redis.ask(&["TTL", key])
}

fn finish<'a>(id: &'a VconId, document: Option<Replacement<'a>>) -> Finish<'a> {
    Finish {
        id,
        document,
        expire: None,
        egress: &[],
        routes: &[],
        context: None,
        failed_storages: &[],
    }
}

fn keeps_what_is_kept_for_ever(redis: &Redis) {
    let mut queue = queue(redis, "here", 1);
    for is_changed in [false, true] {
        let (id, key) = hand_in(redis);
        let (first, ..) = claim(&mut queue);
        assert_eq!(time_left(redis, &key), -1, "after a claim");
        assert_eq!(queue.release(&first, None).unwrap(), Released::Done);
        assert_eq!(time_left(redis, &key), -1, "after a release");
        let (second, ..) = claim(&mut queue);
        let postponed = queue.postpone(&second, &Evidence::NONE, 0, "storage s", None);
        assert_eq!(postponed.unwrap(), Released::Done);
        assert_eq!(time_left(redis, &key), -1, "after a round");

        let (third, kind, base) = claim(&mut queue);
        let text = base.replacen('{', r#"{"note":"new","#, 1);
        let document = Replacement {
            kind,
            base: &base,
            text: is_changed.then_some(&text),
        };
        let letters = [FailedStorage::deferred("s")];
        let finish = Finish {
            context: None,
            failed_storages: &letters,
            ..finish(&id, Some(document))
        };
        assert_eq!(queue.finish(&third, &finish).unwrap(), Finished::Done);
        assert_eq!(time_left(redis, &key), -1, "changed: {is_changed}");
        let document = redis.document(id.as_str()).unwrap();
        assert_eq!(document["note"] == "new", is_changed);
    }
}

#[test]
fn a_document_without_a_time_to_live_gets_none() {
    keeps_what_is_kept_for_ever(&Redis::plain());
}

#[test]
fn a_document_without_a_time_to_live_gets_none_with_json() {
    keeps_what_is_kept_for_ever(&Redis::with_json());
}

#[test]
fn a_document_that_is_changed_keeps_the_time_that_it_has_left() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, key) = hand_in(&redis);
    redis.ask::<i64>(&["EXPIRE", &key, "3000"]);
    let (claim, kind, base) = claim(&mut queue);
    let document = Replacement {
        kind,
        base: &base,
        text: Some("{}"),
    };
    let finished = queue.finish(&claim, &finish(&id, Some(document)));
    assert_eq!(finished.unwrap(), Finished::Done);
    let left = time_left(&redis, &key);
    assert!((2900..=3000).contains(&left), "{left}");
}

/// A finish that also claims compares and replaces documents outside its script, if the user has the right to that.
#[test]
fn a_finish_that_claims_as_well_replaces_the_document_that_was_loaded_and_no_other() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    for may_compare in [true, false] {
        if !may_compare {
            redis.ask::<()>(&["ACL", "SETUSER", "default", "-bitop"]);
        }
        let before = redis.has_run("bitop");
        for (meanwhile, is_changed, seconds, expected) in [
            ("", true, 3000, Finished::Done),
            ("", true, -1, Finished::Done),
            ("", false, 3000, Finished::Done),
            ("as long", true, -1, Finished::Changed),
            ("as long", false, -1, Finished::Changed),
            ("longer", true, 3000, Finished::Changed),
            ("empty", true, -1, Finished::Changed),
            ("new", true, 3000, Finished::Done),
            ("gone", true, -1, Finished::Deleted),
            ("gone", false, -1, Finished::Deleted),
        ] {
            let what = format!("{meanwhile}, changed: {is_changed}, may compare: {may_compare}");
            let (id, key) = hand_in(&redis);
            let (claim, kind, base) = claim(&mut queue);
            let text = base.replacen('{', r#"{"note":"\u{e9}","#, 1);
            let theirs = match meanwhile {
                "as long" => Some(base.replacen('{', "[", 1)),
                "longer" => Some(format!("{base} ")),
                "empty" => Some(String::new()),
                "new" => Some(text.clone()),
                _ => None,
            };
            if let Some(theirs) = &theirs {
                redis.ask::<()>(&["SET", &key, theirs]);
            }
            if seconds > 0 {
                redis.ask::<()>(&["EXPIRE", &key, "3000"]);
            }
            if meanwhile == "gone" {
                redis.ask::<()>(&["DEL", &key]);
            }
            let document = Replacement {
                kind,
                base: &base,
                text: is_changed.then_some(&text),
            };
            let finish = finish(&id, Some(document));
            let (finished, _) = queue
                .finish_and_claim(&claim, &finish, &[list("in")])
                .unwrap();
            assert_eq!(finished, expected, "{what}");
            let left: Option<String> = redis.ask(&["GET", &key]);
            let ours = if is_changed { &text } else { &base };
            let wanted = match expected {
                Finished::Done => Some(ours),
                _ => theirs.as_ref(),
            };
            assert_eq!(left.as_ref(), wanted, "{what}");
            let time = time_left(&redis, &key);
            let is_kept = match seconds {
                3000 => (2900..=3000).contains(&time),
                _ => time == if left.is_some() { -1 } else { -2 },
            };
            assert!(is_kept, "{time} {what}");
            if finished == Finished::Changed {
                assert_eq!(queue.release(&claim, None).unwrap(), Released::Done);
                redis.ask::<()>(&["DEL", "in"]);
            }
            for kept in ["conserver:compared:*", "conserver:new:*"] {
                assert_eq!(redis.ask::<Vec<String>>(&["KEYS", kept]), [""; 0], "{what}");
            }
        }
        // A refused call counts as none.
        assert_eq!(
            redis.has_run("bitop") - before,
            if may_compare { 3 } else { 0 }
        );
    }
}

#[test]
fn a_finish_that_one_list_refuses_announces_on_none_and_then_on_each_once() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    redis.ask::<()>(&["SET", "third", "no list"]);
    let (claim, kind, base) = claim(&mut queue);
    let egress = ["first", "second", "third"].map(list);
    let document = Replacement {
        kind,
        base: &base,
        text: Some("{}"),
    };
    let finish = Finish {
        egress: &egress,
        ..finish(&id, Some(document))
    };
    for _ in 0..2 {
        let refused = Finished::Refused {
            list: "third".to_owned(),
            holds: "string".to_owned(),
        };
        assert_eq!(queue.finish(&claim, &finish).unwrap(), refused);
        assert_eq!(redis.length("first") + redis.length("second"), 0);
        assert_eq!(redis.claims().len(), 1);
    }
    redis.ask::<i64>(&["DEL", "third"]);
    assert_eq!(queue.finish(&claim, &finish).unwrap(), Finished::Done);
    for name in ["first", "second", "third"] {
        assert_eq!(redis.list(name), [id.as_str()], "{name}");
    }
    assert_eq!(redis.claims().len(), 0);
}

#[test]
fn a_claim_that_may_not_be_kept_leaves_entry_and_context_where_they_were() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let context = format!("context:in:{id}");
    redis.ask::<i64>(&["RPUSH", &context, CONTEXT, "another"]);
    redis.ask::<()>(&["ACL", "SETUSER", "default", "-hset"]);
    queue.claim(&[list("in")]).unwrap_err();
    redis.ask::<()>(&["ACL", "SETUSER", "default", "+hset"]);
    assert_eq!(redis.list("in"), [id.as_str()]);
    assert_eq!(redis.list(&context), [CONTEXT, "another"]);
    let (claim, ..) = claim(&mut queue);
    assert_eq!(claim.context, CONTEXT.as_bytes());
}

#[test]
fn an_expiry_does_not_follow_to_the_vcon_that_the_chain_goes_over_to() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let (one, other) = (Sample::small(), Sample::small());
    submit(&redis, "elsewhere", std::slice::from_ref(&other));
    let text = format!(
        "while read -r _; do echo '{{\"uuid\": \"{}\"}}'; done",
        other.id
    );
    let switch = programs.write("switch.sh", &text);
    let options = json!({"command": ["sh", switch], "mode": "stream"});
    let config = json!({
        "links": {
            "expire": {"module": "links.expire_vcon", "options": {"seconds": 500}},
            "switch": exec(&options),
        },
        "chains": {"main": {"links": ["expire", "switch"], "ingress_lists": ["default"], "egress_lists": ["done"]}},
    });
    let daemon = Conserver::with(&redis).config(&config).start();
    submit(&redis, "default", std::slice::from_ref(&one));
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(redis.list("done"), [other.id.as_str()]);
    assert_eq!(time_left(&redis, &format!("vcon:{}", other.id)), -1);
    let left = time_left(&redis, &format!("vcon:{}", one.id));
    assert!((1..=500).contains(&left), "{left}");
    daemon.stop();
}

/// Requests that are sent again, as their answers may have been lost, and a lane that died in such a link.
#[test]
fn what_is_written_beside_a_link_that_does_not_look_is_told_until_it_is_merged() {
    // Two megabytes do not go through the script interpreter.
    for more in [0, 2 << 20] {
        is_told_until_it_is_merged(&Redis::plain(), more);
    }
}

fn is_told_until_it_is_merged(redis: &Redis, more: usize) {
    let (id, key) = hand_in(redis);
    let [mut first, mut second, mut other] = [1, 2, 3].map(|worker| queue(redis, "here", worker));
    let mut text: String = redis.ask(&["GET", &key]);
    text.push_str(&" ".repeat(more));
    redis.ask::<()>(&["SET", &key, &text]);
    let mut write = || {
        let next = format!("{text} ");
        // The second try is one whose first answer was lost.
        for _ in 0..2 {
            let replaced = other.replace(&id, DocumentFormat::Text, &text, &next);
            assert_eq!(replaced.unwrap(), Replaced::Done);
        }
        text = next;
        text.clone()
    };
    let first_text: String = redis.ask(&["GET", &key]);
    let told = |queue: &mut Queue| {
        let overwritten = queue.end_direct_write(&id).unwrap().unwrap();
        assert_eq!(overwritten.base, first_text);
        overwritten.texts
    };
    for _ in 0..2 {
        first.begin_direct_write(&id).unwrap();
    }
    second.begin_direct_write(&id).unwrap();
    let once = write();
    for _ in 0..2 {
        assert_eq!(told(&mut first), std::slice::from_ref(&once));
    }
    first.forget_overwritten(&id).unwrap();
    let twice = write();
    // The second was made of the first.
    assert_eq!(told(&mut second), [twice]);
    second.forget_overwritten(&id).unwrap();
    assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:foreign"), Vec::<String>::new());

    // The time of a lane that died is over, whoever begins meanwhile.
    redis.ask::<i64>(&["HSET", "conserver:foreign", id.as_str(), "ab-1:0+0@1 "]);
    write();
    assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
}

/// A worker has died in a link that wrote over the change of another chain, and a second such link is
/// still at work.
#[test]
fn what_a_link_of_a_dead_worker_wrote_over_is_laid_back_for_all_who_know_the_vcon() {
    for redis in [Redis::plain(), Redis::with_json()] {
        for more in [0, 2 << 20] {
            is_laid_back_for_all(&redis, more);
        }
    }
}

fn is_laid_back_for_all(redis: &Redis, more: usize) {
    let kind = if redis.has_json() {
        DocumentFormat::Json
    } else {
        DocumentFormat::Text
    };
    let mut sample = Sample::small();
    sample.document["subject"] = "x".repeat(more + 1).into();
    submit(redis, "in", std::slice::from_ref(&sample));
    let id: VconId = sample.id.parse().unwrap();
    let [mut dead, mut alive, mut other] = [1, 2, 3].map(|worker| queue(redis, "here", worker));
    other.take_lease().unwrap();
    let mut loaded = || match other.load(&id).unwrap() {
        Document::Found(_, text) => String::from_utf8(text).unwrap(),
        missing => panic!("{missing:?}"),
    };
    let base = loaded();
    let with = |name: &str| {
        let mut document = sample.document.clone();
        document["analysis"] = json!([{"type": name, "body": name, "encoding": "none"}]);
        document.to_string()
    };
    dead.begin_direct_write(&id).unwrap();
    alive.begin_direct_write(&id).unwrap();
    let replaced = queue(redis, "here", 4).replace(&id, kind, &base, &with("theirs"));
    assert_eq!(replaced.unwrap(), Replaced::Done);
    let over = with("link");
    match kind {
        DocumentFormat::Text => redis.ask::<()>(&["SET", &id.key(), &over]),
        DocumentFormat::Json => redis.ask::<()>(&["JSON.SET", &id.key(), "$", &over]),
    }
    // A chain was let go with that document.
    let progress = redis::Script::new(concat!(
        include_str!("../../src/queue/scripts/progress.lua"),
        "keep_progress(KEYS[1], KEYS[2], 'words', 100)"
    ));
    let field = format!("some list\n{id}");
    let mut keep = progress.key(&field);
    let kept = keep.key(id.key()).invoke::<()>(&mut redis.connection());
    kept.unwrap();

    let end = "killed";
    let blame = Suspects::ALL;
    let worker = 1;
    other
        .recover(EndedWorker { worker, blame, end }, 3)
        .unwrap();
    let document = redis.document(id.as_str()).unwrap();
    let names: Vec<&str> = document["analysis"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["type"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["theirs", "link"]);
    let progress: String = redis.ask(&["HGET", "conserver:progress", &field]);
    assert!(progress.ends_with(" ~words"), "{progress}");
    // The one that is alive may write over it yet.
    let told = alive.end_direct_write(&id).unwrap().unwrap();
    assert_eq!((told.base, told.texts.len()), (base, 2));
    let last: Value = serde_json::from_str(&told.texts[1]).unwrap();
    assert_eq!(last, document);
    alive.forget_overwritten(&id).unwrap();
    assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:foreign"), Vec::<String>::new());
}

#[test]
fn what_is_none_of_ours_keeps_no_claim_from_its_list() {
    let redis = Redis::plain();
    let (id, _) = hand_in(&redis);
    let overwritten = format!("conserver:overwritten:{id}");
    let mut queue = queue(&redis, "here", 1);
    queue.take_lease().unwrap();
    let mut recover = || {
        claim(&mut queue);
        let (worker, blame, end) = (1, Suspects::NOBODY, "killed");
        queue
            .recover(EndedWorker { worker, blame, end }, 3)
            .unwrap();
        assert_eq!(redis.list("in"), [id.as_str()]);
    };
    redis.ask::<()>(&["SET", "conserver:foreign", "no hash"]);
    recover();
    redis.ask::<i64>(&["DEL", "conserver:foreign"]);
    for kept in [
        &["SET", &overwritten, "no list"][..],
        &["RPUSH", &overwritten, "=no vCon", "+either"],
    ] {
        let mut link = self::queue(&redis, "here", 1);
        link.begin_direct_write(&id).unwrap();
        redis.ask::<redis::Value>(kept);
        recover();
        assert_eq!(redis.keys("conserver:foreign"), Vec::<String>::new());
        assert_eq!(redis.keys(&overwritten), Vec::<String>::new());
    }
}

/// The document of a sample with an analysis of each name, and this subject.
fn analysed(sample: &Sample, names: &[&str], subject: &str) -> String {
    let items = names
        .iter()
        .map(|name| json!({"type": name, "body": name, "encoding": "none"}));
    let mut document = sample.document.clone();
    document["analysis"] = items.collect();
    document["subject"] = subject.into();
    document.to_string()
}

fn analyses(redis: &Redis, id: &VconId) -> Vec<String> {
    let document = redis.document(id.as_str()).unwrap();
    let items = document["analysis"].as_array().unwrap().iter();
    items
        .map(|it| it["type"].as_str().unwrap().to_owned())
        .collect()
}

fn loaded(queue: &mut Queue, id: &VconId) -> String {
    match queue.load(id).unwrap() {
        Document::Found(_, text) => String::from_utf8(text).unwrap(),
        missing => panic!("{missing:?}"),
    }
}

/// A link writes by itself: it does not look at what stands there.
fn write_over(redis: &Redis, id: &VconId, text: &str) {
    redis.ask::<()>(&["SET", &id.key(), text]);
}

fn killed(worker: u32) -> EndedWorker<'static> {
    EndedWorker {
        worker,
        blame: Suspects::ALL,
        end: "killed",
    }
}

fn nothing_is_kept_for_links(redis: &Redis) {
    assert_eq!(redis.keys("conserver:foreign"), Vec::<String>::new());
    assert_eq!(redis.keys("conserver:overwritten:*"), Vec::<String>::new());
}

/// A host that was asleep goes on: its link writes, once or twice, and then its worker is killed.
#[test]
fn what_a_link_writes_over_after_the_lease_ran_out_is_laid_back_too() {
    for writes_before in [false, true] {
        let redis = Redis::plain();
        let sample = Sample::small();
        submit(&redis, "in", std::slice::from_ref(&sample));
        let id: VconId = sample.id.parse().unwrap();
        let [mut asleep, mut back] = [1, 0].map(|worker| queue(&redis, "there", worker));
        let [mut other, mut writer] = [1, 4].map(|worker| queue(&redis, "here", worker));
        asleep.take_lease().unwrap();
        claim(&mut asleep);
        let base = loaded(&mut asleep, &id);
        asleep.begin_direct_write(&id).unwrap();
        let theirs = analysed(&sample, &["theirs"], "s");
        let replaced = writer.replace(&id, DocumentFormat::Text, &base, &theirs);
        assert_eq!(replaced.unwrap(), Replaced::Done);
        if writes_before {
            write_over(&redis, &id, &analysed(&sample, &["link"], "s"));
        }
        redis.ask::<i64>(&["DEL", "conserver:instance:there"]);
        other.take_lease().unwrap();
        other
            .recover_instance("there", 10, &mut |_| Ok(()))
            .unwrap();
        let all = ["theirs", "link"];
        let until_now = &all[..if writes_before { 2 } else { 1 }];
        assert_eq!(analyses(&redis, &id), until_now);

        write_over(&redis, &id, &analysed(&sample, &["link", "more"], "s"));
        back.take_lease().unwrap();
        back.recover(killed(1), 3).unwrap();
        assert_eq!(analyses(&redis, &id), ["theirs", "link", "more"]);
        nothing_is_kept_for_links(&redis);
    }
}

/// What it read had the first of what is kept already: it has not changed that.
#[test]
fn a_link_that_began_late_has_not_changed_what_was_written_before() {
    let redis = Redis::plain();
    let sample = Sample::small();
    submit(&redis, "in", std::slice::from_ref(&sample));
    let id: VconId = sample.id.parse().unwrap();
    let [mut first, mut dead, mut writer] = [1, 2, 3].map(|worker| queue(&redis, "here", worker));
    writer.take_lease().unwrap();
    let base = loaded(&mut writer, &id);
    first.begin_direct_write(&id).unwrap();
    let one = analysed(&sample, &["x"], "one");
    let replaced = writer.replace(&id, DocumentFormat::Text, &base, &one);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    dead.begin_direct_write(&id).unwrap();
    let two = analysed(&sample, &[], "two");
    let replaced = writer.replace(&id, DocumentFormat::Text, &one, &two);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    write_over(&redis, &id, &analysed(&sample, &["x", "link"], "one"));
    writer.recover(killed(2), 3).unwrap();
    assert_eq!(redis.document(id.as_str()).unwrap()["subject"], "two");
    assert_eq!(analyses(&redis, &id), ["link"]);
}

/// What it read was what another such link had left, without what that one wrote over.
#[test]
fn a_link_that_began_after_another_wrote_over_a_text_has_not_removed_that() {
    let redis = Redis::plain();
    let sample = Sample::small();
    submit(&redis, "in", std::slice::from_ref(&sample));
    let id: VconId = sample.id.parse().unwrap();
    let [mut first, mut dead, mut writer] = [1, 2, 3].map(|worker| queue(&redis, "here", worker));
    writer.take_lease().unwrap();
    let base = loaded(&mut writer, &id);
    first.begin_direct_write(&id).unwrap();
    let theirs = analysed(&sample, &["theirs"], "s");
    let replaced = writer.replace(&id, DocumentFormat::Text, &base, &theirs);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    let left = analysed(&sample, &["first"], "s");
    write_over(&redis, &id, &left);
    dead.begin_direct_write(&id).unwrap();
    let both = analysed(&sample, &["theirs", "first"], "s");
    let replaced = writer.replace(&id, DocumentFormat::Text, &left, &both);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    first.forget_overwritten(&id).unwrap();
    write_over(&redis, &id, &analysed(&sample, &["first", "link"], "s"));
    writer.recover(killed(2), 3).unwrap();
    assert_eq!(analyses(&redis, &id), ["theirs", "first", "link"]);
    nothing_is_kept_for_links(&redis);
}

#[test]
fn what_cannot_be_laid_back_now_holds_up_no_claim_and_is_laid_back_later() {
    let redis = Redis::plain();
    let samples: Vec<Sample> = (0..2).map(|_| Sample::small()).collect();
    submit(&redis, "in", &samples);
    let id: VconId = samples[0].id.parse().unwrap();
    let [mut dead, mut monitor] = [1, 0].map(|worker| queue(&redis, "here", worker));
    dead.take_lease().unwrap();
    let (_, _, base) = claim(&mut dead);
    dead.begin_direct_write(&id).unwrap();
    let theirs = analysed(&samples[0], &["theirs"], "s");
    let replaced = monitor.replace(&id, DocumentFormat::Text, &base, &theirs);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    write_over(&redis, &id, &analysed(&samples[0], &["link"], "s"));

    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    monitor.recover(killed(1), 3).unwrap();
    assert_eq!(redis.length("in"), 2);
    monitor.recover_unreturned(&mut |_| Ok(())).unwrap();
    assert_eq!(analyses(&redis, &id), ["link"]);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    monitor.recover_unreturned(&mut |_| Ok(())).unwrap();
    assert_eq!(analyses(&redis, &id), ["theirs", "link"]);
    nothing_is_kept_for_links(&redis);
}

/// The other instance may be alive: its link may write over it again.
#[test]
fn what_cannot_be_laid_back_for_another_instance_is_laid_back_later_too() {
    let redis = Redis::plain();
    let sample = Sample::small();
    submit(&redis, "in", std::slice::from_ref(&sample));
    let id: VconId = sample.id.parse().unwrap();
    let [mut monitor, mut asleep, mut back] =
        [("here", 0), ("there", 1), ("there", 0)].map(|(name, worker)| queue(&redis, name, worker));
    asleep.take_lease().unwrap();
    let (_, _, base) = claim(&mut asleep);
    asleep.begin_direct_write(&id).unwrap();
    let theirs = analysed(&sample, &["theirs"], "s");
    let replaced = monitor.replace(&id, DocumentFormat::Text, &base, &theirs);
    assert_eq!(replaced.unwrap(), Replaced::Done);
    write_over(&redis, &id, &analysed(&sample, &["link"], "s"));
    redis.ask::<i64>(&["DEL", "conserver:instance:there"]);
    monitor.take_lease().unwrap();
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let (_, is_forgotten) = monitor
        .recover_instance("there", 10, &mut |_| Ok(()))
        .unwrap();
    assert!(is_forgotten);
    assert_eq!(redis.list("in"), [id.as_str()]);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    monitor.recover_unreturned(&mut |_| Ok(())).unwrap();
    assert_eq!(analyses(&redis, &id), ["theirs", "link"]);
    write_over(&redis, &id, &analysed(&sample, &["link"], "s"));
    back.take_lease().unwrap();
    back.recover(killed(1), 3).unwrap();
    assert_eq!(analyses(&redis, &id), ["theirs", "link"]);
    nothing_is_kept_for_links(&redis);
}

#[test]
fn a_text_that_a_later_one_was_made_of_is_not_laid_under_again() {
    let redis = Redis::plain();
    let id = VconId::random();
    let list = format!("conserver:overwritten:{id}");
    let mut link = queue(&redis, "here", 1);
    for (kept, texts) in [
        ("=a +b", "b"),
        ("=a +b +c", "c"),
        ("=a +b *c +d", "b d"),
        ("=a *b *c", "b c"),
        ("=a rubbish *b", "b"),
        ("=a rubbish", ""),
    ] {
        link.begin_direct_write(&id).unwrap();
        for text in kept.split(' ') {
            redis.ask::<i64>(&["RPUSH", &list, text]);
        }
        let overwritten = link.end_direct_write(&id).unwrap();
        let texts_found = overwritten.as_ref().map(|it| it.texts.join(" "));
        assert_eq!(texts_found.unwrap_or_default(), texts, "{kept}");
        assert!(overwritten.is_none_or(|it| it.base == "a"), "{kept}");
        link.forget_overwritten(&id).unwrap();
    }
}

#[test]
fn the_monitor_shows_itself_before_each_vcon_that_is_laid_back() {
    let redis = Redis::plain();
    let samples: Vec<Sample> = (0..3).map(|_| Sample::small()).collect();
    submit(&redis, "in", &samples);
    let mut dead = queue(&redis, "there", 1);
    let mut monitor = queue(&redis, "here", 0);
    dead.take_lease().unwrap();
    for sample in &samples {
        let id: VconId = sample.id.parse().unwrap();
        let base = loaded(&mut monitor, &id);
        dead.begin_direct_write(&id).unwrap();
        let theirs = analysed(sample, &["theirs"], "s");
        let replaced = monitor.replace(&id, DocumentFormat::Text, &base, &theirs);
        assert_eq!(replaced.unwrap(), Replaced::Done);
        write_over(&redis, &id, &analysed(sample, &["link"], "s"));
    }
    claim(&mut dead);
    redis.ask::<i64>(&["DEL", "conserver:instance:there"]);
    let is_laid_back = || {
        let ids = samples.iter().map(|it| it.id.parse().unwrap());
        ids.filter(|id| analyses(&redis, id).len() == 2).count()
    };
    let mut seen = Vec::new();
    let mut pause = |_: &mut Queue| {
        seen.push(is_laid_back());
        Ok(())
    };
    monitor.recover_instance("there", 10, &mut pause).unwrap();
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(is_laid_back(), 3);
}

#[test]
fn a_vcon_that_is_let_go_keeps_its_context_and_its_document_for_whoever_takes_it_next() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, key) = hand_in(&redis);
    let context = format!("context:in:{id}");
    redis.ask::<i64>(&["RPUSH", &context, CONTEXT]);
    let ways: [fn(&mut Queue, &Claim); 3] = [
        |queue, claim| {
            assert_eq!(queue.release(claim, None).unwrap(), Released::Done);
        },
        |queue, claim| {
            let postponed = queue.postpone(claim, &Evidence::NONE, 0, "storage s", None);
            assert_eq!(postponed.unwrap(), Released::Done);
        },
        |queue, _| {
            let (worker, blame, end) = (1, Suspects::NOBODY, "killed");
            queue
                .recover(EndedWorker { worker, blame, end }, 3)
                .unwrap();
        },
    ];
    for let_go in ways {
        let (claim, ..) = claim(&mut queue);
        assert_eq!(claim.context, CONTEXT.as_bytes());
        assert_eq!(redis.keys(&context), Vec::<String>::new());
        redis.ask::<i64>(&["EXPIRE", &key, "100"]);
        let_go(&mut queue, &claim);
        // It waits again, for as long as any other.
        let left = time_left(&redis, &key);
        assert!((3500..=3600).contains(&left), "{left}");
        assert_eq!(redis.list(&context), [CONTEXT]);
        let left = time_left(&redis, &context);
        assert!((1..=3600).contains(&left), "{left}");
    }
}

#[test]
fn a_dead_letter_has_nothing_counted_against_it_any_more() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let counts = ["conserver:deaths", "conserver:lapses", "conserver:tries"];
    for hash in counts {
        redis.ask::<i64>(&["HSET", hash, id.as_str(), "1", "another", "1"]);
    }
    let (claim, ..) = claim(&mut queue);
    let reason = Reason {
        stage: "link l",
        error: "no",
        attempts: 1,
        worker: "Worker-1",
    };
    let buried = queue.dead_letter(&claim, &reason, None);
    assert_eq!(buried.unwrap(), Released::Done);
    assert_eq!(redis.list("DLQ:in"), [id.as_str()]);
    for hash in counts {
        let left: Vec<String> = redis.ask(&["HKEYS", hash]);
        assert_eq!(left, ["another"], "{hash}");
    }
}

/// What was laid back when one daemon stopped showing itself counts as told to that daemon's links alone.
#[test]
fn what_a_link_wrote_over_is_laid_back_again_if_that_of_another_daemon_writes_over_it_and_dies() {
    let redis = Redis::plain();
    let (id, key) = hand_in(&redis);
    let [mut lapsed, mut other] = ["here", "there"].map(|name| queue(&redis, name, 1));
    let (_, _, base) = claim(&mut lapsed);
    let with = |name: &str| {
        let mut document: Value = serde_json::from_str(&base).unwrap();
        document["analysis"] = json!([{"type": name, "body": name, "encoding": "none"}]);
        document.to_string()
    };
    let names = || {
        let document = redis.document(id.as_str()).unwrap();
        let analysis = document["analysis"].as_array().unwrap();
        let names: Vec<String> = analysis.iter().map(|it| it["type"].to_string()).collect();
        names.join(" ")
    };
    other.take_lease().unwrap();
    for link in [&mut lapsed, &mut other] {
        link.begin_direct_write(&id).unwrap();
    }
    let replaced =
        queue(&redis, "there", 2).replace(&id, DocumentFormat::Text, &base, &with("theirs"));
    assert_eq!(replaced.unwrap(), Replaced::Done);

    redis.ask::<()>(&["SET", &key, &with("one")]);
    redis.ask::<i64>(&["DEL", "conserver:instance:here"]);
    let (returned, _) = other.recover_instance("here", 3, &mut |_| Ok(())).unwrap();
    assert_eq!(returned.len(), 1);
    assert_eq!(names(), r#""theirs" "one""#);

    redis.ask::<()>(&["SET", &key, &with("other")]);
    let (worker, blame, end) = (1, Suspects::ALL, "killed");
    other
        .recover(EndedWorker { worker, blame, end }, 3)
        .unwrap();
    let names = names();
    for name in ["theirs", "other"] {
        assert!(names.contains(name), "{name} is missing: {names}");
    }
}

#[test]
fn a_vcon_of_a_backlog_that_workers_died_on_is_a_dead_letter_of_its_storage() {
    const BACKLOG: &str = "DLQ:storage:s";
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let sample = Sample::small();
    submit(&redis, BACKLOG, std::slice::from_ref(&sample));
    let claimed = queue.claim_backlog(&[list(BACKLOG)]).unwrap();
    assert_eq!(claimed.work.unwrap().0.shown(), sample.id);
    assert_eq!(redis.length(BACKLOG), 0);
    let (worker, blame, end) = (1, Suspects::ALL, "killed");
    let recovered = queue
        .recover(EndedWorker { worker, blame, end }, 1)
        .unwrap();
    assert!(recovered[0].is_poison());
    assert_eq!(redis.list(BACKLOG), [sample.id.as_str()]);
    let reasons: Vec<String> = redis.ask(&["HKEYS", "conserver:dlq:storage:s"]);
    assert_eq!(reasons, [sample.id.as_str()]);
    assert_eq!(redis.keys("DLQ:*"), [BACKLOG]);
    // It is none of what waits for the storage any more.
    let claimed = queue.claim_backlog(&[list(BACKLOG)]).unwrap();
    assert!(claimed.work.is_none(), "{claimed:?}");
}

#[test]
fn a_claim_that_is_let_go_before_anything_was_done_leaves_the_progress_that_was_kept() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let (first, _, text) = claim(&mut queue);
    let progress = ProgressRecord {
        id,
        text: "words".to_owned(),
        document: Some(text),
    };
    let released = queue.release(&first, Some(&progress)).unwrap();
    assert_eq!(released, Released::Done);
    for _ in 0..2 {
        let (next, ..) = claim(&mut queue);
        assert_eq!(next.progress.as_deref(), Some(&b"words"[..]));
        assert_eq!(queue.release(&next, None).unwrap(), Released::Done);
    }
}

#[test]
fn a_vcon_that_workers_died_on_once_too_often_is_counted_from_nothing_after_that() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let counts = ["conserver:deaths", "conserver:lapses"];
    for hash in counts {
        redis.ask::<i64>(&["HSET", hash, id.as_str(), "1", "another", "1"]);
    }
    let _ = claim(&mut queue);
    let (worker, blame, end) = (1, Suspects::ALL, "killed");
    let recovered = queue
        .recover(EndedWorker { worker, blame, end }, 2)
        .unwrap();
    assert!(recovered[0].is_poison());
    assert_eq!(redis.list("DLQ:in"), [id.as_str()]);
    for hash in counts {
        let left: Vec<String> = redis.ask(&["HKEYS", hash]);
        assert_eq!(left, ["another"], "{hash}");
    }
}

#[test]
fn rounds_count_at_one_stage_alone_and_only_if_it_has_worked_in_between() {
    const MOST: u32 = 3;
    let (now, never) = (Some(Duration::ZERO), None);
    let before = Some(Duration::from_secs(3600));
    for (rounds, last) in [
        (vec![("a", now), ("a", now), ("a", now)], Released::Spent(3)),
        // Two that fail in turn.
        (
            vec![("a", now), ("b", now), ("a", now), ("b", now), ("a", now)],
            Released::Done,
        ),
        (
            vec![("a", now), ("b", now), ("b", now), ("b", now)],
            Released::Spent(3),
        ),
        // One that has not worked for anybody since.
        (
            vec![("a", now), ("a", before), ("a", before)],
            Released::Done,
        ),
        (
            vec![("a", never), ("a", never), ("a", never)],
            Released::Done,
        ),
        (
            vec![("a", now), ("a", never), ("a", now), ("a", now)],
            Released::Spent(3),
        ),
    ] {
        let redis = Redis::plain();
        let mut queue = queue(&redis, "here", 1);
        hand_in(&redis);
        let mut found = None;
        for (stage, worked) in &rounds {
            assert!(matches!(found, None | Some(Released::Done)), "{rounds:?}");
            let (claim, ..) = claim(&mut queue);
            let evidence = Evidence {
                worked: *worked,
                ..Evidence::NONE
            };
            found = queue.postpone(&claim, &evidence, MOST, stage, None).ok();
        }
        assert_eq!(found, Some(last), "{rounds:?}");
    }
}

#[test]
fn rounds_without_others_count_in_the_very_long_run_and_some_others_in_the_long_run() {
    let long = Duration::from_secs(3600);
    let of = |worked, least, longest| Evidence {
        worked,
        least,
        longest,
        ..Evidence::NONE
    };
    let at_once = Some(Duration::ZERO);
    for (evidence, last) in [
        // Served to others, but it has to go on for longer.
        (of(at_once, long, None), Released::Done),
        (of(at_once, Duration::ZERO, Some(long)), Released::Spent(3)),
        // Nobody else was there.
        (of(None, Duration::ZERO, Some(long)), Released::Done),
        (of(None, Duration::ZERO, at_once), Released::Spent(3)),
        (of(None, Duration::ZERO, None), Released::Done),
    ] {
        let redis = Redis::plain();
        let mut queue = queue(&redis, "here", 1);
        let (id, _) = hand_in(&redis);
        let entry = id.as_str().as_bytes();
        let mut found = Vec::new();
        for round in 0..3 {
            let rounds = queue.rounds(entry, "storage s").unwrap();
            let counts = evidence != Evidence::NONE;
            assert_eq!(rounds, if counts { round } else { round.min(1) });
            assert_eq!(queue.rounds(entry, "storage t").unwrap(), 0);
            let (claim, ..) = claim(&mut queue);
            found.push(
                queue
                    .postpone(&claim, &evidence, 3, "storage s", None)
                    .unwrap(),
            );
        }
        assert_eq!(found[2], last, "{evidence:?}");
        assert_eq!(found[..2], [Released::Done, Released::Done]);
    }
    // A failure is dated to when it was, not to when the vCon was let go.
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let (claim, ..) = claim(&mut queue);
    let evidence = Evidence {
        since: long,
        ..Evidence::NONE
    };
    queue
        .postpone(&claim, &evidence, 3, "storage s", None)
        .unwrap();
    let postponed = queue
        .postponed(id.as_str().as_bytes(), "storage s")
        .unwrap();
    assert!(postponed >= Some(long), "{postponed:?}");
    assert!(queue.has_work(&[list("none"), list("in")], &[]).unwrap());
    assert!(!queue.has_work(&[list("none")], &[]).unwrap());
    assert!(!queue.has_work(&[], &[]).unwrap());
    // What is no list has nothing, and a dead letter does not wait.
    redis.ask::<()>(&["SET", "text", "in"]);
    assert!(!queue.has_work(&[list("text")], &[]).unwrap());
    let letters = [list("DLQ:storage:s")];
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:s", "dead"]);
    redis.ask::<i64>(&["HSET", "conserver:dlq:storage:s", "dead", "{}"]);
    assert!(!queue.has_work(&[list("none")], &letters).unwrap());
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:s", "waits"]);
    assert!(queue.has_work(&[list("none")], &letters).unwrap());
}

#[test]
fn a_context_that_is_too_long_goes_back_with_its_vcon_and_is_known_again() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (id, _) = hand_in(&redis);
    let context = format!("context:in:{id}");
    redis.ask::<i64>(&["RPUSH", &context, &"x".repeat(70_000)]);
    for _ in 0..2 {
        let claimed = queue.claim(&[list("in")]).unwrap();
        let (claim, document) = claimed.work.expect("a claim");
        assert!(matches!(document, Document::Unusable(_)), "{document:?}");
        assert_eq!(queue.release(&claim, None).unwrap(), Released::Done);
        let kept: String = redis.ask(&["LINDEX", &context, "0"]);
        assert_eq!(kept.len(), 65_537);
    }
}

/// Which of two claims of a vCon was the last to give a storage its document, nobody knows.
#[test]
fn what_two_claims_of_a_vcon_say_of_its_progress_is_marked_unless_it_is_the_same() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let mut lanes = [queue(&redis, "here", 1), queue(&redis, "here", 2)];
        let (id, key) = hand_in(&redis);
        redis.ask::<i64>(&["RPUSH", "in", id.as_str()]);
        // Lets go of the claims in this order, each with what is said, and gives what the next claims are handed.
        let mut turn = |says: [&str; 2], handed: &str| {
            let claims = [0, 1].map(|lane: usize| claim(&mut lanes[lane]));
            for (lane, says) in says.into_iter().enumerate() {
                let (claim, _, text) = &claims[lane];
                let progress = ProgressRecord {
                    id: id.clone(),
                    text: says.to_owned(),
                    document: Some(text.clone()),
                };
                let void = ProgressRecord::void(id.clone());
                let progress = if says == void.text { void } else { progress };
                let released = lanes[lane].release(claim, Some(&progress)).unwrap();
                assert_eq!(released, Released::Done);
            }
            let (next, ..) = claim(&mut lanes[0]);
            let found = String::from_utf8(next.progress.clone().unwrap()).unwrap();
            assert_eq!(found, handed, "{says:?}");
            assert_eq!(lanes[0].release(&next, None).unwrap(), Released::Done);
        };
        turn(["a", "a"], "a");
        turn(["b", "b"], "b");
        // What the first says is not what the second was handed, nor what it says.
        turn(["c", "d"], "^d");
        // Both have given all storages the document again, and say so.
        turn(["e", "e"], "e");
        turn(["!", "f"], "^f");
        turn(["g", "!"], "!");
        turn(["h", "h"], "h");
        // Whatever is kept of another document is none of it.
        let kept = redis.document(id.as_str()).unwrap();
        let other = json!({"uuid": kept["uuid"], "subject": "other"}).to_string();
        if redis.has_json() {
            redis.ask::<()>(&["JSON.SET", &key, "$", &other]);
        } else {
            redis.ask::<()>(&["SET", &key, &other]);
        }
        turn(["i", "i"], "i");
    }
}

#[test]
fn a_vcon_whose_worker_died_begins_anew_also_after_another_claim_of_it_has_ended() {
    let redis = Redis::plain();
    let mut lanes = [queue(&redis, "here", 1), queue(&redis, "here", 2)];
    let (id, _) = hand_in(&redis);
    redis.ask::<i64>(&["RPUSH", "in", id.as_str()]);
    claim(&mut lanes[0]);
    let (other, _, text) = claim(&mut lanes[1]);
    lanes[1].recover(killed(1), 3).unwrap();
    let progress = ProgressRecord {
        id,
        text: "words".to_owned(),
        document: Some(text),
    };
    let released = lanes[1].release(&other, Some(&progress)).unwrap();
    assert_eq!(released, Released::Done);
    for lane in &mut lanes {
        let (next, ..) = claim(lane);
        assert_eq!(next.progress.as_deref(), Some(&b"^words"[..]));
    }
}

/// What the server does not let us see is not taken for nothing, nor for something else.
#[test]
fn what_may_not_be_looked_at_is_an_error_and_not_an_absence() {
    let redis = Redis::plain();
    let deny = |command: &str| {
        redis.ask::<()>(&["ACL", "SETUSER", "default", &format!("-{command}")]);
    };
    let server = server_of(&redis);
    let mut queue = queue(&redis, "here", 1);
    let mut large = Sample::small();
    large.document["subject"] = "x".repeat(2 << 20).into();
    submit(&redis, "in", std::slice::from_ref(&large));
    let (claimed, kind, base) = claim(&mut queue);
    let id = claimed.id().unwrap();
    let letter = Raw::new(id.as_str());
    redis.ask::<i64>(&["RPUSH", "DLQ:in", id.as_str()]);
    redis.ask::<i64>(&["RPUSH", "DLQ:storage:s", id.as_str()]);
    redis.ask::<i64>(&["HSET", "conserver:dlq:storage:s", id.as_str(), "{}"]);

    let mut letters = DeadLetters::new(server.connect("letters").unwrap(), 3600);
    deny("lpos");
    letters.find(&Raw::new("in"), &letter).unwrap_err();

    deny("lrange");
    let mut keeper = Housekeeper::new(server.clone(), EXPIRY, "here", PATIENCE);
    assert_eq!(keeper.take().unwrap(), HousekeepingLease::Ours);
    let chore = Chore::StorageReasons("s".to_owned());
    keeper.run(&chore, &mut |_| true).unwrap_err();
    assert_eq!(redis.ask::<usize>(&["HLEN", "conserver:dlq:storage:s"]), 1);

    // Without the right to ask whether it is there, it is.
    deny("ping");
    let mut lengths = Lengths::new(server, PATIENCE);
    let (counts, _) = lengths.ask(&["DLQ:in".to_owned()], &[]).unwrap();
    assert_eq!(counts, [Some(1)]);

    deny("strlen");
    // Who has touched it is compared with.
    redis.ask::<i64>(&["EXPIRE", &id.key(), "1000"]);
    queue.replace(&id, kind, &base, "{}").unwrap_err();
}

/// A document that is too large for the answer of a claim is got by a command of its own, before which
/// somebody may put something else in its place.
#[test]
fn a_large_text_that_is_something_else_a_moment_later_is_taken_for_what_it_is_then() {
    type Change = fn(&mut Connection, &str) -> RedisResult<()>;
    type Check = fn(&Document) -> bool;
    let changes: [(Change, Check); 3] = [
        (
            |redis, key| {
                redis::cmd("DEL").arg(key).query::<()>(redis)?;
                redis::cmd("JSON.SET").arg(&[key, "$", "{}"]).query(redis)
            },
            |found| matches!(found, Document::Found(DocumentFormat::Json, text) if text == b"{}"),
        ),
        (
            |redis, key| {
                redis::cmd("DEL").arg(key).query::<()>(redis)?;
                redis::cmd("HSET").arg(&[key, "a", "b"]).query(redis)
            },
            |found| matches!(found, Document::Unusable(why) if why.contains("hash")),
        ),
        (
            |redis, key| redis::cmd("DEL").arg(key).query(redis),
            |found| *found == Document::Missing,
        ),
    ];
    for (change, is_it) in changes {
        let redis = Redis::with_json();
        let mut large = Sample::small();
        large.document["subject"] = "x".repeat(2 << 20).into();
        let key = format!("vcon:{}", large.id);
        redis.ask::<()>(&["SET", &key, &large.text()]);
        redis.ask::<i64>(&["RPUSH", "in", &large.id]);
        let (connection, changed) = (Mutex::new(redis.connection()), Arc::default());
        let is_changed: Arc<AtomicBool> = Arc::clone(&changed);
        let url = relay(&redis, 1, move |bytes| {
            let is_get = bytes.windows(7).any(|part| part == b"\r\nGET\r\n");
            if is_get && !changed.swap(true, Ordering::SeqCst) {
                change(&mut connection.lock().unwrap(), &key).unwrap();
            }
        });
        let server = Server::new(&url.parse().unwrap()).unwrap();
        let seat = LaneId {
            instance: "here".to_owned(),
            worker: 1,
            lane: 1,
        };
        let lease = lease_of("here", &Holder::this_process(1));
        let mut queue = Queue::new(server, seat, EXPIRY, lease);
        let claimed = queue.claim(&[list("in")]).unwrap();
        let (_, document) = claimed.work.unwrap();
        assert!(is_changed.load(Ordering::SeqCst));
        assert!(is_it(&document), "{document:?}");
    }
}

#[test]
fn a_queue_with_a_limit_waits_no_longer_for_a_server_that_does_not_answer() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1).with_time_limit(Duration::from_millis(300));
    queue.take_lease().unwrap();
    redis.signal(Signal::SIGSTOP);
    let start = Instant::now();
    queue.take_lease().unwrap_err();
    let took = start.elapsed();
    redis.signal(Signal::SIGCONT);
    // Without one it would be many seconds.
    assert!(took < Duration::from_secs(3), "{took:?}");
    queue.take_lease().unwrap();
}

/// What is long is told from another version by its length, which the server knows.
#[test]
fn a_long_document_is_not_sent_to_let_go_of_its_claim() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let mut large = Sample::small();
    large.document["subject"] = "x".repeat(2 << 20).into();
    submit(&redis, "in", std::slice::from_ref(&large));
    let (claim, _, text) = claim(&mut queue);
    let progress = ProgressRecord {
        id: claim.id().unwrap(),
        text: "words".to_owned(),
        document: Some(text),
    };
    // The script is known to the server from then on.
    let before = received(&redis);
    let released = queue.release(&claim, Some(&progress)).unwrap();
    assert_eq!(released, Released::Done);
    let sent = received(&redis) - before;
    assert!(sent < 1 << 20, "{sent} bytes");
}

/// A figure of the server.
fn figure(redis: &Redis, name: &str) -> u64 {
    let stats: String = redis.ask(&["INFO", "stats"]);
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.parse().ok();
    stats.lines().find_map(of).unwrap()
}

/// So many bytes has the server been sent.
fn received(redis: &Redis) -> u64 {
    figure(redis, "total_net_input_bytes")
}

/// The server sends a large document a second time only if somebody has touched it, and over one connection.
#[test]
fn a_large_text_is_compared_only_if_somebody_has_touched_it() {
    const LENGTH: usize = 5 << 20;
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    queue.take_lease().unwrap();
    let connected = || {
        let clients: String = redis.ask(&["CLIENT", "LIST"]);
        let mut lines = clients.lines();
        let of_queue = lines.find(|line| line.contains("name=conserver:here:1:1"));
        of_queue.unwrap().split(' ').next().unwrap().to_owned()
    };
    let first = connected();
    let touches: [(&[&str], Finished, bool); 3] = [
        (&[], Finished::Done, false),
        (&["EXPIRE", "1000"], Finished::Done, true),
        (&["APPEND", " "], Finished::Changed, false),
    ];
    for is_changed in [true, false] {
        for (touch, expected, is_sent) in &touches {
            let mut sample = Sample::small();
            sample.document["subject"] = "x".repeat(LENGTH).into();
            submit(&redis, "in", std::slice::from_ref(&sample));
            let (claimed, kind, base) = claim(&mut queue);
            let id = claimed.id().unwrap();
            if let [command, argument] = touch {
                redis.ask::<i64>(&[command, &id.key(), argument]);
            }
            let before = figure(&redis, "total_net_output_bytes");
            let text = base.replacen('{', r#"{"note":"new","#, 1);
            let document = Replacement {
                kind,
                base: &base,
                text: is_changed.then_some(&text),
            };
            let finished = queue.finish(&claimed, &finish(&id, Some(document)));
            assert_eq!(finished.unwrap(), *expected, "{touch:?}");
            let sent = figure(&redis, "total_net_output_bytes") - before;
            assert_eq!(sent > LENGTH as u64, *is_sent, "{touch:?}: {sent}");
            if *expected == Finished::Changed {
                queue.release(&claimed, None).unwrap();
                redis.ask::<()>(&["DEL", "in"]);
            } else if is_changed {
                assert!(redis.ask::<String>(&["GET", &id.key()]) == text);
            }
        }
    }
    assert_eq!(connected(), first);
}
