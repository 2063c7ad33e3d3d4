//! Lanes of one worker that finish in the usual way and take their next vCons, several in one request.

use std::sync::{Arc, Barrier};
use std::thread;

use conserver::config::ListName;
use conserver::queue::{
    Claim, Claimed, Document, DocumentFormat, EndedWorker, Finish, Finished, Holder, LaneId,
    ProgressRecord, Queue, QueueError, Released, RequestBatcher, Suspects,
};
use conserver::vcon::VconId;

use crate::harness::{
    EXPIRY, PATIENCE, Redis, Sample, lease_of, list, queue, server_of, submit, wait_until,
};

const LANES: u32 = 4;

const TAKEN: &str = "conserver:taken:here:1";

fn samples(count: u32) -> Vec<Sample> {
    (0..count).map(|_| Sample::small()).collect()
}

/// The lanes of one worker, each with a claim.
fn lanes(redis: &Redis) -> Vec<(Queue, Claim)> {
    submit(redis, "in", &samples(LANES));
    let exchange = Arc::new(RequestBatcher::default());
    let lane = |lane| {
        let seat = LaneId {
            instance: "here".to_owned(),
            worker: 1,
            lane,
        };
        let lease = lease_of("here", &Holder::this_process(1));
        let queue = Queue::new(server_of(redis), seat, EXPIRY, lease);
        let mut queue = queue.sharing(Arc::clone(&exchange));
        let claim = claim_of(&mut queue);
        (queue, claim)
    };
    (1..=LANES).map(lane).collect()
}

fn claim_of(queue: &mut Queue) -> Claim {
    queue.claim(&[list("in")]).unwrap().work.unwrap().0
}

/// A finish in the usual way.
fn finish<'a>(id: &'a VconId, egress: &'a [ListName]) -> Finish<'a> {
    Finish {
        id,
        document: None,
        expire: None,
        egress,
        routes: &[],
        context: None,
        failed_storages: &[],
    }
}

type Turned = (Finished, Option<Result<Claimed, QueueError>>);

fn turn(queue: &mut Queue, claim: &Claim) -> Result<Turned, QueueError> {
    let id: VconId = claim.id().unwrap();
    let out = [list("out")];
    queue.finish_and_claim(claim, &finish(&id, &out), &[list("in")])
}

/// What a turn has taken: the entry and its document.
fn next(turned: Result<Turned, QueueError>) -> Option<(Claim, Document)> {
    let (finished, next) = turned.unwrap();
    assert_eq!(finished, Finished::Done);
    next.unwrap().unwrap().work
}

fn text(sample: &Sample) -> Document {
    Document::Found(DocumentFormat::Text, sample.text().into_bytes())
}

/// A turn of all lanes at once. Those that got nothing are out.
fn take_turns(lanes: Vec<(Queue, Claim)>) -> Vec<(Queue, Claim, Document)> {
    let start = Arc::new(Barrier::new(lanes.len()));
    let threads: Vec<_> = lanes
        .into_iter()
        .map(|(mut queue, claim)| {
            let start = Arc::clone(&start);
            thread::spawn(move || {
                start.wait();
                let (claim, document) = next(turn(&mut queue, &claim))?;
                Some((queue, claim, document))
            })
        })
        .collect();
    threads
        .into_iter()
        .filter_map(|it| it.join().unwrap())
        .collect()
}

#[test]
fn lanes_that_ask_at_once_each_get_their_own_vcon() {
    let redis = Redis::plain();
    let mut lanes = lanes(&redis);
    let mut turns = 0;
    // Whether their requests meet is up to the machine.
    wait_until("lanes share a request", PATIENCE, || {
        let samples = samples(LANES);
        submit(&redis, "in", &samples);
        let mut open: Vec<&Sample> = samples.iter().collect();
        lanes = take_turns(std::mem::take(&mut lanes))
            .into_iter()
            .map(|(queue, claim, document)| {
                let at = open.iter().position(|it| it.id == claim.shown());
                assert_eq!(document, text(open.remove(at.unwrap())));
                (queue, claim)
            })
            .collect();
        assert_eq!(open.len(), 0);
        turns += u64::from(LANES);
        redis.has_run("sort") < turns
    });
    assert_eq!(redis.length("out") as u64, turns);
    assert_eq!(redis.claims().len(), LANES as usize);
}

#[test]
fn lanes_for_which_there_is_nothing_get_nothing() {
    let redis = Redis::plain();
    let lanes = lanes(&redis);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let work = take_turns(lanes);
    assert_eq!(work.len(), 2);
    for (_, claim, document) in work {
        let id = claim.shown();
        let sample = samples.iter().find(|it| it.id == id).unwrap();
        assert_eq!(document, text(sample));
    }
    assert_eq!(redis.length("out"), LANES as usize);
    assert_eq!(redis.claims().len(), 2);
}

#[test]
fn a_user_who_may_not_sort_gets_the_documents_all_the_same() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(4);
    submit(&redis, "in", &samples);
    // Redis lets only those get documents by a pattern who may read all keys.
    let keys = [
        "resetkeys",
        "~conserver:*",
        "~vcon:*",
        "~context:*",
        "~in",
        "~out",
    ];
    let restrict = [&["ACL", "SETUSER", "default"], &keys[..]].concat();
    redis.ask::<()>(&restrict);
    let mut claim = claim_of(&mut queue);
    let mut tries = None;
    for sample in &samples[1..] {
        let (taken, document) = next(turn(&mut queue, &claim)).unwrap();
        assert_eq!(document, text(sample));
        claim = taken;
        // What was refused at the first turn is not tried again.
        assert_eq!(
            *tries.get_or_insert_with(|| redis.has_run("sort")),
            redis.has_run("sort")
        );
    }
    assert!(tries > Some(0));
    assert_eq!(redis.length("out"), 3);
}

#[test]
fn a_key_in_the_way_of_what_was_taken_costs_nothing_but_time() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    redis.ask::<()>(&["SET", TAKEN, "text"]);
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), samples[1].id);
    assert_eq!(document, text(&samples[1]));
}

/// Requests that the server answers too late run behind those of the next connection.
#[test]
fn a_document_of_another_entry_is_not_taken_for_ours() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (samples, other) = (samples(2), Sample::small());
    submit(&redis, "in", &samples);
    submit(&redis, "elsewhere", std::slice::from_ref(&other));
    let claim = claim_of(&mut queue);
    // With this right gone, what a turn has taken is not told, and what stands there is somebody else's.
    redis.ask::<i64>(&["LPUSH", TAKEN, &other.id]);
    redis.ask::<()>(&["ACL", "SETUSER", "default", "-lpush"]);
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), samples[1].id);
    assert_eq!(document, text(&samples[1]));
}

#[test]
fn what_is_not_usual_is_looked_at_alone() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let mut large = Sample::small();
    large.document["subject"] = "x".repeat(2 << 20).into();
    let [first, gone, is_set, last] = std::array::from_fn(|_| Sample::small());
    let all = [&first, &gone, &is_set, &large].map(Clone::clone);
    submit(&redis, "in", &all);
    redis.ask::<()>(&["RPUSH", "in", "not a UUID"]);
    submit(&redis, "in", std::slice::from_ref(&last));
    redis.ask::<()>(&["DEL", &format!("vcon:{}", gone.id)]);
    let key = format!("vcon:{}", is_set.id);
    redis.ask::<()>(&["DEL", &key]);
    redis.ask::<()>(&["SADD", &key, "member"]);

    let claim = claim_of(&mut queue);
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!((claim.shown(), document), (gone.id, Document::Missing));
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), is_set.id);
    assert!(matches!(document, Document::Unusable(_)), "{document:?}");
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), large.id);
    assert!(document == text(&large), "not the large document");
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), "not a UUID");
    assert_eq!(document, Document::NotAnId);
    assert_eq!(redis.length("out"), 4);
    assert_eq!(redis.claims().len(), 1);
}

#[test]
fn a_turn_that_may_not_claim_leaves_entry_and_context_where_they_were() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let context = format!("context:in:{}", samples[1].id);
    redis.ask::<i64>(&["RPUSH", &context, r#"{"trace_id":"0af7"}"#]);
    let claim = claim_of(&mut queue);
    redis.ask::<()>(&["ACL", "SETUSER", "default", "-hset"]);
    let (finished, next) = turn(&mut queue, &claim).unwrap();
    assert_eq!(finished, Finished::Done);
    assert!(next.is_none(), "{next:?}");
    assert_eq!(redis.list("in"), [samples[1].id.as_str()]);
    assert_eq!(redis.list(&context).len(), 1);
    assert_eq!(redis.list("out"), [samples[0].id.as_str()]);
    assert_eq!(redis.claims().len(), 0);
}

#[test]
fn nothing_is_left_of_what_was_taken_once_the_daemon_has_ended() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    let (claim, _) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(redis.list(TAKEN), [samples[1].id.as_str()]);
    assert!(next(turn(&mut queue, &claim)).is_none());
    queue.release_lease().unwrap();
    assert_eq!(redis.keys("conserver:taken:*"), Vec::<String>::new());
}

/// How many bytes the server has sent.
fn sent(redis: &Redis) -> usize {
    let stats: String = redis.ask(&["INFO", "stats"]);
    let of = |line: &str| line.strip_prefix("total_net_output_bytes:")?.parse().ok();
    stats.lines().find_map(of).unwrap()
}

#[test]
fn no_document_is_sent_that_nobody_asked_for() {
    const LARGE: usize = 2 << 20;
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let (mut small, mut large) = (Sample::small(), Sample::small());
    small.document["subject"] = "x".repeat(LARGE / 4).into();
    large.document["subject"] = "x".repeat(LARGE).into();
    submit(&redis, "in", &[Sample::small(), small, large]);
    let claim = claim_of(&mut queue);
    let (claim, _) = next(turn(&mut queue, &claim)).unwrap();
    let before = sent(&redis);
    let (claim, _) = next(turn(&mut queue, &claim)).unwrap();
    let once = sent(&redis) - before;
    assert!((LARGE..LARGE + LARGE / 8).contains(&once), "{once}");
    assert!(next(turn(&mut queue, &claim)).is_none());
    let nothing = sent(&redis) - before - once;
    assert!(nothing < LARGE / 8, "{nothing}");
}

#[test]
fn a_lease_that_cannot_be_read_has_nothing_announced() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    submit(&redis, "in", &samples(1));
    let claim = claim_of(&mut queue);
    redis.ask::<()>(&["DEL", "conserver:instance:here"]);
    redis.ask::<()>(&["SADD", "conserver:instance:here", "member"]);
    turn(&mut queue, &claim).unwrap_err();
    assert_eq!(redis.length("out"), 0);
    assert_eq!(redis.claims().len(), 1);
}

#[test]
fn nothing_is_left_of_what_was_taken_by_a_worker_without_a_successor() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    submit(&redis, "in", &samples(2));
    let claim = claim_of(&mut queue);
    next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(redis.length(TAKEN), 1);
    let dead = EndedWorker {
        worker: 1,
        blame: Suspects::ALL,
        end: "it was killed",
    };
    queue.retire_worker(dead, 0).unwrap();
    assert_eq!(redis.keys("conserver:taken:*"), Vec::<String>::new());
    assert_eq!(redis.length("in"), 1);
}

#[test]
fn a_turn_with_a_claim_that_is_not_ours_any_more_does_nothing() {
    const CLAIMS: &str = "conserver:claims:here:1";
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    let lane: Vec<String> = redis.ask(&["HKEYS", CLAIMS]);
    for other in [None, Some(r#"{"list":"in","uuid":"x","since":1,"by":"y"}"#)] {
        match other {
            Some(record) => redis.ask::<i64>(&["HSET", CLAIMS, &lane[0], record]),
            None => redis.ask::<i64>(&["DEL", CLAIMS]),
        };
        let (finished, _) = turn(&mut queue, &claim).unwrap();
        assert_eq!(finished, Finished::NotOurs);
        assert_eq!(redis.length("out"), 0);
        assert_eq!(redis.list("in"), [samples[1].id.as_str()]);
        let held: Option<String> = redis.ask(&["HGET", CLAIMS, &lane[0]]);
        assert_eq!(held.as_deref(), other);
    }
}

#[test]
fn a_claim_is_known_by_its_token_however_the_rest_of_its_record_is_written() {
    const CLAIMS: &str = "conserver:claims:here:1";
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    let [lane, record]: [String; 2] = redis.ask(&["HGETALL", CLAIMS]);
    let (token, _) = record.split_once(",\"list\":").unwrap();
    let record = format!("{token},\"uuid\":\"{}\",\"list\":\"in\"}}", samples[0].id);
    redis.ask::<i64>(&["HSET", CLAIMS, &lane, &record]);
    let (finished, next) = turn(&mut queue, &claim).unwrap();
    assert_eq!(finished, Finished::Done);
    assert_eq!(redis.list("out"), [samples[0].id.as_str()]);
    let (next, _) = next.unwrap().unwrap().work.unwrap();
    assert_eq!(next.entry, samples[1].id.as_bytes());
    assert_eq!(redis.claims().len(), 1);
}

#[test]
fn a_turn_that_one_list_refuses_announces_on_none_and_then_on_each_once() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    let id: VconId = claim.id().unwrap();
    let egress = ["first", "second"].map(list);
    let finish = Finish {
        context: Some(b"{}"),
        ..finish(&id, &egress)
    };
    redis.ask::<()>(&["SET", "second", "no list"]);
    let (finished, next) = queue
        .finish_and_claim(&claim, &finish, &[list("in")])
        .unwrap();
    let refused = Finished::Refused {
        list: "second".to_owned(),
        holds: "string".to_owned(),
    };
    assert_eq!(finished, refused);
    assert!(next.is_none(), "{next:?}");
    assert_eq!(redis.length("first"), 0);
    assert_eq!(redis.claims().len(), 1);
    redis.ask::<i64>(&["DEL", "second"]);
    let turned = queue.finish_and_claim(&claim, &finish, &[list("in")]);
    let (claim, _) = self::next(turned).unwrap();
    assert_eq!(claim.shown(), samples[1].id);
    for name in ["first", "second"] {
        assert_eq!(redis.list(name), [id.as_str()], "{name}");
        assert_eq!(redis.list(&format!("context:{name}:{id}")), ["{}"]);
    }
}

#[test]
fn contexts_go_on_with_their_vcons_in_a_turn() {
    const OWN: &str = r#"{"trace_id":"ffff"}"#;
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(4);
    // Of the producer, and as Redis may encode it in the record of a claim.
    let brought = [None, Some(r#"{"a/b":"\"ü\u0007:"}"#), None, Some("}")];
    let stored = [None, None, Some(OWN), Some(OWN)];
    submit(&redis, "in", &samples);
    for (sample, context) in samples.iter().zip(brought) {
        if let Some(context) = context {
            redis.ask::<i64>(&["RPUSH", &format!("context:in:{}", sample.id), context]);
        }
    }
    let egress = ["out", "copy"].map(list);
    let mut claim = claim_of(&mut queue);
    for (at, own) in stored.into_iter().enumerate() {
        assert_eq!(claim.shown(), samples[at].id);
        assert_eq!(claim.context, brought[at].unwrap_or_default().as_bytes());
        let id: VconId = claim.id().unwrap();
        let finish = Finish {
            context: own.map(str::as_bytes),
            ..finish(&id, &egress)
        };
        let turned = queue.finish_and_claim(&claim, &finish, &[list("in")]);
        let taken = next(turned);
        let expected: Vec<&str> = own.or(brought[at]).into_iter().collect();
        for list in &egress {
            let key = format!("context:{list}:{id}");
            assert_eq!(redis.list(&key), expected, "{key}");
            let left: i64 = redis.ask(&["TTL", &key]);
            assert_eq!(left > 0, !expected.is_empty(), "{key}: {left}");
        }
        match taken {
            Some((next, _)) => claim = next,
            None => assert_eq!(at, samples.len() - 1),
        }
    }
    assert_eq!(redis.length("copy"), samples.len());
    assert_eq!(redis.keys("context:in:*"), Vec::<String>::new());
    assert_eq!(redis.claims().len(), 0);
    // None went alone.
    assert!(redis.has_run("sort") >= samples.len() as u64);
}

#[test]
fn what_was_counted_of_an_entry_is_forgotten_once_it_is_finished() {
    for hash in ["conserver:deaths", "conserver:lapses", "conserver:tries"] {
        let redis = Redis::plain();
        let mut queue = queue(&redis, "here", 1);
        let samples = samples(2);
        submit(&redis, "in", &samples);
        redis.ask::<i64>(&["HSET", hash, &samples[1].id, "1"]);
        let claim = claim_of(&mut queue);
        let (claim, _) = next(turn(&mut queue, &claim)).unwrap();
        assert_eq!(claim.shown(), samples[1].id);
        assert_eq!(redis.keys(hash), [hash], "forgotten too early");
        assert!(next(turn(&mut queue, &claim)).is_none());
        assert_eq!(redis.keys(hash), Vec::<String>::new());
    }
}

#[test]
fn what_was_kept_of_an_entry_goes_on_in_a_turn() {
    let redis = Redis::plain();
    let [mut queue, mut other] = [1, 2].map(|worker| queue(&redis, "here", worker));
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let claim = claim_of(&mut queue);
    let begun = claim_of(&mut other);
    let progress = ProgressRecord {
        id: begun.id().unwrap(),
        text: "words".to_owned(),
        document: Some(samples[1].text()),
    };
    let released = other.release(&begun, Some(&progress)).unwrap();
    assert_eq!(released, Released::Done);
    let (claim, document) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.shown(), samples[1].id);
    assert_eq!(document, text(&samples[1]));
    assert_eq!(claim.progress.as_deref(), Some(&b"words"[..]));
}

#[test]
fn a_key_that_is_no_list_keeps_no_turn_from_the_lists_behind_it() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    redis.ask::<()>(&["SET", "wrong", "no list"]);
    let lists = ["wrong", "in"].map(list);
    let (claim, _) = queue.claim(&lists).unwrap().work.unwrap();
    let id: VconId = claim.id().unwrap();
    let (finished, claimed) = queue
        .finish_and_claim(&claim, &finish(&id, &[]), &lists)
        .unwrap();
    assert_eq!(finished, Finished::Done);
    let claimed = claimed.unwrap().unwrap();
    let fault = claimed.fault.unwrap();
    assert!(fault.starts_with("wrong: "), "{fault}");
    let (claim, document) = claimed.work.unwrap();
    assert_eq!(claim.shown(), samples[1].id);
    assert_eq!(document, text(&samples[1]));
    let id: VconId = claim.id().unwrap();
    let (finished, claimed) = queue
        .finish_and_claim(&claim, &finish(&id, &[]), &lists)
        .unwrap();
    assert_eq!(finished, Finished::Done);
    let claimed = claimed.unwrap().unwrap();
    assert!(claimed.work.is_none(), "{claimed:?}");
    assert!(claimed.fault.is_some());
    assert_eq!(redis.claims().len(), 0);
}

#[test]
fn what_a_turn_takes_lives_on_and_has_its_context_whatever_becomes_of_the_worker() {
    const CONTEXT: &str = r#"{"trace_id":"0af7"}"#;
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    let samples = samples(2);
    submit(&redis, "in", &samples);
    let context = format!("context:in:{}", samples[1].id);
    redis.ask::<i64>(&["RPUSH", &context, CONTEXT]);
    let key = format!("vcon:{}", samples[1].id);
    redis.ask::<i64>(&["EXPIRE", &key, "100"]);
    let claim = claim_of(&mut queue);
    let (claim, _) = next(turn(&mut queue, &claim)).unwrap();
    assert_eq!(claim.context, CONTEXT.as_bytes());
    let left: i64 = redis.ask(&["TTL", &key]);
    assert!((3500..=3600).contains(&left), "{left}");
    let (worker, blame, end) = (1, Suspects::ALL, "it was killed");
    queue
        .recover(EndedWorker { worker, blame, end }, 0)
        .unwrap();
    assert_eq!(redis.list("in"), [samples[1].id.as_str()]);
    assert_eq!(redis.list(&context), [CONTEXT]);
}
