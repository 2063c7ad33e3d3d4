//! The main job: many vCons, many workers, every storage, each vCon once.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{
    Conserver, Files, Ledger, Postgres, Redis, S3, Sample, chain, fresh, number_from_env, same,
    submit,
};

/// Fails unless every storage and Redis hold the same documents, one for each vCon.
fn all_hold_the_same(redis: &Redis, copies: &[(&str, Vec<(String, Value)>)], samples: &[Sample]) {
    for (name, documents) in copies {
        assert_eq!(documents.len(), samples.len(), "{name}");
        let by_id: BTreeMap<&String, &Value> = documents.iter().map(|(id, it)| (id, it)).collect();
        for sample in samples {
            let kept = by_id.get(&sample.id);
            let kept = kept.unwrap_or_else(|| panic!("{} is not in {name}", sample.id));
            let in_redis = redis.document(&sample.id).expect("a document in Redis");
            assert!(same(kept, &in_redis), "{name} has {kept}, Redis {in_redis}");
        }
    }
}

fn every_vcon_is_stored_once(redis: &Redis) {
    let (files, database) = (Files::new(), Postgres::database());
    let storages = [("pg", database.storage()), ("files", files.storage())];
    let samples = fresh(number_from_env("CONSERVER_TEST_COUNT", 500));
    let daemon = Conserver::with(redis)
        .config(&chain(&[], &storages))
        .workers(4)
        .lanes(2)
        .start();
    submit(redis, "default", &samples);
    Ledger::of(redis, &samples).settles();
    let copies = [("pg", database.rows()), ("files", files.documents())];
    all_hold_the_same(redis, &copies, &samples);
    assert_eq!(files.with_hidden().len(), samples.len());
    daemon.stop();
}

#[test]
fn every_vcon_is_stored_once_from_redis_with_json() {
    every_vcon_is_stored_once(&Redis::with_json());
}

#[test]
fn every_vcon_is_stored_once_from_redis_without_json() {
    every_vcon_is_stored_once(&Redis::plain());
}

#[test]
fn work_that_waits_before_the_start_is_done_in_order_by_one_lane() {
    let (redis, files) = (Redis::plain(), Files::new());
    let samples = fresh(30);
    submit(&redis, "default", &samples);
    let config = chain(&[], &[("files", files.storage())]);
    let _daemon = Conserver::with(&redis).config(&config).start();
    Ledger::of(&redis, &samples).settles();
    let order: Vec<String> = samples.iter().map(|sample| sample.id.clone()).collect();
    assert_eq!(redis.list("done"), order);
}

#[test]
fn parallel_and_inline_storage_give_the_same_results() {
    let samples = fresh(40);
    let results = ["true", "no"].map(|parallel| {
        let (redis, files, database) = (Redis::plain(), Files::new(), Postgres::database());
        let storages = [("pg", database.storage()), ("files", files.storage())];
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &storages))
            .lanes(2)
            .env("CONSERVER_PARALLEL_STORAGE", parallel)
            .start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        daemon.stop();
        let copies = [("pg", database.rows()), ("files", files.documents())];
        all_hold_the_same(&redis, &copies, &samples);
        let [_, (_, mut documents)] = copies;
        documents.sort_by(|(one, _), (other, _)| one.cmp(other));
        documents
    });
    let [parallel, inline] = results;
    let pairs = parallel.iter().zip(&inline);
    let differ = pairs.filter(|((one, is), (other, was))| one != other || !same(is, was));
    assert_eq!(differ.count(), 0);
}

#[test]
fn s3_gets_the_document_and_the_pointer_to_it() {
    let (redis, s3) = (Redis::plain(), S3::start());
    let samples = [Sample::small()];
    let config = chain(&[], &[("archive", s3.storage())]);
    let _daemon = Conserver::with(&redis).config(&config).start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let id = &samples[0].id;
    let object = s3.object(&format!("archive/2024/03/16/{id}.vcon"));
    let text = std::fs::read_to_string(object).expect("the object");
    let kept = serde_json::from_str(&text).expect("JSON");
    assert!(same(&kept, &redis.document(id).expect("a document")));
    let pointer = s3.object(&format!("archive/lookup/{id}.txt"));
    assert_eq!(
        std::fs::read_to_string(pointer).expect("the pointer"),
        "2024/03/16"
    );
}
