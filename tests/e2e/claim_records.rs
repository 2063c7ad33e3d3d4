//! Whatever stands in a claims hash: claiming and recovery go on, and nothing that was there is lost.

use conserver::queue::{
    EndedWorker, Finish, Finished, Holder, Queue, QueueError, Reason, RecoveredClaim, Released,
    Suspects,
};
use conserver::vcon::VconId;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::Connection;

use crate::harness::{Redis, lease_of, list, queue, queue_with};

/// Where claims are kept that no list takes.
const KEPT: &str = "conserver:claims:here:0";

const CLAIMS: &str = "conserver:claims:here:1";

/// A value where a record has a string or a number.
fn value() -> impl Strategy<Value = String> {
    let names = vec![
        "\"default\"",
        "\"done\"",
        "\"broken\"",
        "\"\"",
        "\" \"",
        "\"a\\u0000b\"",
        "\"\u{85}\"",
        "\"conserver:deaths\"",
        "\"05cec3d4-0561-4010-9fb8-23cc7edef146\"",
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "{\"err\":\"x\"}",
        "{\"ok\":\"x\"}",
        "NaN",
        "\"nan\"",
        "-Infinity",
        "0x1p4",
        "1e999999",
        "-1e999999",
        "123456789012345678901234567890",
        "\"\\ud800\"",
    ];
    prop_oneof![
        4 => prop::sample::select(names).prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        1 => "-?[0-9]{1,30}([.][0-9]{1,9})?([eE]-?[0-9]{1,6})?",
        1 => (1..3000usize).prop_map(|n| format!("{}{}", "[".repeat(n), "]".repeat(n))),
    ]
}

/// A record of any kind: bytes, JSON, or nearly one of ours.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let ours = (value(), value(), value(), value()).prop_map(|(list, uuid, since, context)| {
        format!(r#"{{"list":{list},"uuid":{uuid},"since":{since},"context":{context}}}"#)
    });
    let usual = (value(), value()).prop_map(|(since, context)| {
        let entry = uuid::Uuid::new_v4();
        format!(r#"{{"list":"default","uuid":"{entry}","since":{since},"context":{context}}}"#)
    });
    let bytes = prop::collection::vec(any::<u8>(), 0..80);
    let binary = (bytes.clone(), bytes.clone()).prop_map(|(list, uuid)| {
        [
            b"{\"list\":\"",
            &list[..],
            b"\",\"uuid\":\"",
            &uuid[..],
            b"\"}",
        ]
        .concat()
    });
    prop_oneof![
        4 => ours.prop_map(String::into_bytes),
        4 => usual.prop_map(String::into_bytes),
        2 => binary,
        1 => value().prop_map(String::into_bytes),
        1 => bytes,
    ]
}

/// Everything that is in a list of any name.
fn entries(connection: &mut Connection) -> usize {
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(connection).unwrap();
    let mut count = 0;
    for key in keys.iter().filter(|key| !key.starts_with(b"context:")) {
        let length: redis::RedisResult<usize> = redis::cmd("LLEN").arg(key).query(connection);
        count += length.unwrap_or(0);
    }
    count
}

/// A server with a key that is no list, and counts of deaths that are none.
fn prepare(connection: &mut Connection, dead_letters: bool) {
    redis::cmd("FLUSHALL").query::<()>(connection).unwrap();
    let mut steps = redis::pipe();
    steps.cmd("SET").arg("broken").arg("no list").ignore();
    for (entry, count) in [("default", "nan"), ("done", "9223372036854775807")] {
        steps.hset("conserver:deaths", entry, count).ignore();
    }
    if !dead_letters {
        steps.cmd("SET").arg("DLQ:broken").arg("no list").ignore();
        steps
            .cmd("SET")
            .arg("conserver:dlq:default")
            .arg("no hash")
            .ignore();
    }
    steps.query::<()>(connection).unwrap();
}

fn put(connection: &mut Connection, lane: u32, record: &[u8]) {
    let mut set = redis::cmd("HSET");
    set.arg(CLAIMS).arg(lane).arg(record);
    set.query::<()>(connection).unwrap();
}

fn claims(connection: &mut Connection) -> usize {
    redis::cmd("HLEN").arg(CLAIMS).query(connection).unwrap()
}

#[test]
fn recovery_returns_or_sets_aside_whatever_records_there_are() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let mut queue = queue(&redis, "here", 1);
    let connection = std::cell::RefCell::new(&mut connection);
    let queue = std::cell::RefCell::new(&mut queue);
    let blame = prop_oneof![
        Just(Suspects::ALL),
        Just(Suspects::These(vec![uuid::Uuid::nil()])),
        Just(Suspects::NOBODY)
    ];
    let records = prop::collection::vec(record(), 1..12);
    let mut runner = TestRunner::new(config());
    runner
        .run(
            &(records, blame, 0..3u32, any::<bool>()),
            |(records, blame, deaths, dead_letters)| {
                let (mut connection, mut queue) = (connection.borrow_mut(), queue.borrow_mut());
                prepare(&mut connection, dead_letters);
                for (lane, record) in (1..).zip(&records) {
                    put(&mut connection, lane, record);
                }
                let recovered = recover(&mut queue, blame, deaths);
                prop_assert!(recovered.is_ok(), "{recovered:?}");
                prop_assert_eq!(recovered.unwrap().len(), records.len());
                prop_assert_eq!(claims(&mut connection), 0);
                let kept = redis::cmd("HLEN").arg(KEPT).query(&mut connection);
                let kept: usize = kept.unwrap();
                prop_assert_eq!(entries(&mut connection) + kept, records.len());
                // What still cannot be returned is not told again.
                prop_assert_eq!(queue.recover_unreturned(&mut |_| Ok(())).unwrap().len(), 0);
                redis::cmd("DEL")
                    .arg(&["broken", "conserver:deaths"])
                    .query::<()>(&mut connection)
                    .unwrap();
                let returned = queue.recover_unreturned(&mut |_| Ok(())).unwrap();
                prop_assert!(returned.iter().all(|claim| claim.outcome == "returned"));
                prop_assert_eq!(returned.len(), kept);
                prop_assert_eq!(entries(&mut connection), records.len());
                Ok(())
            },
        )
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn claiming_hands_over_or_sets_aside_whatever_record_there_is() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let mut queue = queue(&redis, "here", 1);
    let lists = [list("broken"), list("default")];
    let entry = VconId::random();
    let connection = std::cell::RefCell::new(&mut connection);
    let queue = std::cell::RefCell::new(&mut queue);
    let mut runner = TestRunner::new(config());
    runner
        .run(&(record(), 0..2usize), |(record, ending)| {
            let (mut connection, mut queue) = (connection.borrow_mut(), queue.borrow_mut());
            prepare(&mut connection, true);
            put(&mut connection, 1, &record);
            let mut push = redis::cmd("RPUSH");
            push.arg("default").arg(entry.as_str());
            push.query::<()>(&mut connection).unwrap();
            // First what the record says, where it says something, then the entry of the list.
            let mut own = false;
            for _ in 0..2 {
                let claimed = queue.claim(&lists);
                prop_assert!(claimed.is_ok(), "{claimed:?}");
                let Some((claim, _)) = claimed.unwrap().work else {
                    break;
                };
                own |= claim.entry == entry.as_str().as_bytes();
                let ended = if ending == 0 {
                    let egress = [list("egress")];
                    let finish = Finish {
                        id: &entry,
                        document: None,
                        expire: None,
                        egress: &egress,
                        routes: &[],
                        context: None,
                        failed_storages: &[],
                    };
                    let finished = queue.finish(&claim, &finish);
                    finished.map(|finished| finished == Finished::Done)
                } else {
                    let reason = Reason {
                        stage: "test",
                        error: "x",
                        attempts: 1,
                        worker: "none",
                    };
                    let released = queue.dead_letter(&claim, &reason, None);
                    released.map(|released| released == Released::Done)
                };
                prop_assert!(matches!(ended, Ok(true)), "{ended:?}");
            }
            prop_assert!(own);
            prop_assert_eq!(claims(&mut connection), 0);
            prop_assert_eq!(entries(&mut connection), 2);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_member_of_the_set_of_workers_that_is_no_number_is_passed_over() {
    let redis = Redis::plain();
    let mut queue = queue(&redis, "here", 1);
    redis.ask::<()>(&[
        "SADD",
        "conserver:workers:here",
        "4",
        "x",
        "",
        "-1",
        "4294967296",
    ]);
    redis.ask::<()>(&[
        "HSET",
        "conserver:claims:here:4",
        "1",
        r#"{"list":"default","uuid":"x","since":1}"#,
    ]);
    queue.take_lease().unwrap();
    assert_eq!(queue.recover_above(1, 3).unwrap().len(), 1);
    assert_eq!(redis.list("default"), ["x"]);
}

#[test]
fn records_that_stopped_a_lane_for_ever_are_got_rid_of() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let mut queue = queue(&redis, "here", 1);
    for record in [
        r#"{"list":"default","uuid":"x","context":null}"#,
        r#"{"list":"default","uuid":"x","context":{"a":1}}"#,
        r#"{"list":"","uuid":"x"}"#,
        r#"{"list":"a\u0000b","uuid":"x"}"#,
    ] {
        prepare(&mut connection, true);
        put(&mut connection, 1, record.as_bytes());
        if let Some((claim, _)) = queue.claim(&[]).unwrap().work {
            assert_eq!(queue.release(&claim, None).unwrap(), Released::Done);
            assert_eq!(redis.list("default"), ["x"]);
        } else {
            assert_eq!(redis.list("conserver:unreadable"), [record]);
        }
        assert_eq!(claims(&mut connection), 0);
    }
}

#[test]
fn counts_of_deaths_that_are_none_begin_again() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let mut queue = queue(&redis, "here", 1);
    for entry in ["default", "done"] {
        prepare(&mut connection, true);
        let record = format!(r#"{{"list":"l","uuid":"{entry}","since":1}}"#);
        put(&mut connection, 1, record.as_bytes());
        let recovered = recover(&mut queue, Suspects::ALL, 3).unwrap();
        assert_eq!(
            (recovered[0].deaths, recovered[0].outcome.as_str()),
            (1, "returned")
        );
    }
}

#[test]
fn a_poisonous_vcon_whose_dead_letter_queue_is_none_is_set_aside() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let mut queue = queue(&redis, "here", 1);
    prepare(&mut connection, false);
    // Each alone: together, neither would have the blame.
    for record in [
        &br#"{"list":"broken","uuid":"x","since":1}"#[..],
        br#"{"list":"default","uuid":"y","since":2}"#,
    ] {
        put(&mut connection, 1, record);
        recover(&mut queue, Suspects::ALL, 1).unwrap();
    }
    assert_eq!(redis.length("conserver:unreadable"), 1);
    assert_eq!(redis.list("DLQ:default"), ["y"]);
    assert_eq!(claims(&mut connection), 0);
}

/// Returns what the first worker held, as its successor does.
fn recover(
    queue: &mut Queue,
    blame: Suspects,
    max_deaths: u32,
) -> Result<Vec<RecoveredClaim>, QueueError> {
    queue.take_lease()?;
    let dead = EndedWorker {
        worker: 1,
        blame,
        end: "killed",
    };
    queue.recover(dead, max_deaths)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn a_claim_of_another_daemon_that_had_the_name_is_not_taken_for_ones_own() {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    let one = |nonce| {
        let lease = lease_of("here", &Holder::this_process(nonce));
        queue_with(&redis, "here", 1, lease)
    };
    let (mut ours, mut theirs) = (one(1), one(2));
    let lists = [list("default")];
    let mut push = redis::cmd("RPUSH");
    push.arg("default").arg("x").arg("y");
    push.query::<()>(&mut connection).unwrap();
    let (their, _) = theirs.claim(&lists).unwrap().work.unwrap();
    // Their lease runs out, and we, who had the name before, find it free.
    redis.ask::<i64>(&["DEL", "conserver:instance:here"]);
    let (our, _) = ours.claim(&lists).unwrap().work.unwrap();
    assert_eq!((&their.entry[..], &our.entry[..]), (&b"x"[..], &b"x"[..]));
    assert_eq!(theirs.release(&their, None).unwrap(), Released::NotOurs);
    assert_eq!(ours.release(&our, None).unwrap(), Released::Done);
    assert_eq!(redis.list("default"), ["x", "y"]);
}
