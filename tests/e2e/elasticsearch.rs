//! `storage.elasticsearch` on both servers: its layout, and what an update leaves.
//!
//! The servers speak the API of Elasticsearch, but neither is Elastic's: one shows what was
//! written only after a refresh, as the real one does, the other is as strict about names and
//! types.

use std::collections::BTreeMap;
use std::path::Path;

use conserver::config::Config;
use conserver::deadline::Deadline;
use conserver::storage::Storage;
use conserver::vcon::{Vcon, Version};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Elastic, Ledger, Nginx, Redis, Sample, Terms, chain, fresh, same, submit,
};

/// The storage as a lane opens it.
pub fn open(storage: &Value) -> Box<dyn Storage> {
    let text = chain(&[], &[("es", storage.clone())]).to_string();
    let config = Config::parse(&text, Path::new("config.yml"));
    let config = config.unwrap_or_else(|errors| panic!("{errors}"));
    config.storages["es"].open_storage()
}

/// A vCon as it leaves.
pub fn outgoing(sample: &Sample) -> conserver::vcon::Outgoing {
    let id = sample.id.parse().expect("an id");
    let mut vcon = Vcon::parse(id, sample.text()).expect("a vCon");
    vcon.outgoing(Version::Current)
}

/// A vCon with so many dialogs, a party of this role and an attachment of this purpose.
fn with(dialogs: usize, role: &str, purpose: &str) -> Sample {
    Sample::of(json!({
        "parties": [{"role": role}],
        "dialog": vec![json!({"start": "2024-03-16T16:09:20Z"}); dialogs],
        "attachments": [{"purpose": purpose, "body": "x"}],
    }))
}

/// The vCon, as an update of the other one.
fn in_place_of(former: &Sample, mut update: Sample) -> Sample {
    update.id.clone_from(&former.id);
    update
}

/// The documents that the parts of a vCon in Redis make.
fn expected(id: &str, vcon: &Value) -> BTreeMap<(String, String), Value> {
    let text = |part: &Value, key| part[key].as_str().map(str::to_lowercase);
    let mut documents = BTreeMap::new();
    for list in ["parties", "dialog", "analysis", "attachments"] {
        let parts = vcon[list].as_array().cloned().unwrap_or_default();
        for (number, mut part) in parts.into_iter().enumerate() {
            let word = match list {
                "parties" => text(&part, "role"),
                "analysis" => text(&part, "type"),
                "attachments" => text(&part, "type").or(text(&part, "purpose")),
                _ => None,
            };
            let word = word.map_or(String::new(), |word| format!("_{}", word.replace(' ', "_")));
            if ["analysis", "attachments"].contains(&list) && part["encoding"] == "json" {
                part["body"] = value_of(&part["body"]);
            }
            part["vcon_id"] = id.into();
            part["started_at"] = vcon["dialog"][0]["start"].clone();
            if let Some(tenant) = tenant(vcon) {
                part["tenant_id"] = tenant;
            }
            let key = (format!("calls_vcon_{list}{word}"), format!("{id}_{number}"));
            documents.insert(key, part);
        }
    }
    documents
}

fn tenant(vcon: &Value) -> Option<Value> {
    let attachments = vcon["attachments"].as_array()?;
    let tenant = attachments.iter().find(|it| it["purpose"] == "tenant")?;
    let id = value_of(&tenant["body"])["id"].take();
    (!id.is_null()).then_some(id)
}

/// What a body says that is JSON, or the text of some.
fn value_of(body: &Value) -> Value {
    let text = body.as_str();
    let value = text.and_then(|text| serde_json::from_str(text).ok());
    value.unwrap_or_else(|| body.clone())
}

#[test]
fn every_part_of_every_sample_is_a_document() {
    for elastic in Elastic::both() {
        elastic.prepare();
        let (redis, samples) = (Redis::plain(), fresh(21));
        submit(&redis, "default", &samples);
        let config = chain(&[], &[("es", elastic.storage())]);
        let daemon = Conserver::with(&redis).config(&config).lanes(2).start();
        Ledger::of(&redis, &samples).settles();
        let mut wanted = BTreeMap::new();
        for sample in &samples {
            let vcon = redis.document(&sample.id).expect("a document");
            wanted.append(&mut expected(&sample.id, &vcon));
        }
        let found = elastic.documents();
        let keys = |documents: &BTreeMap<(String, String), Value>| -> Vec<_> {
            documents.keys().cloned().collect()
        };
        assert_eq!(keys(&found), keys(&wanted));
        for (key, wanted) in &wanted {
            assert!(
                same(&found[key], wanted),
                "{key:?}: {} {wanted}",
                found[key]
            );
        }
        daemon.stop();
    }
}

#[test]
fn parts_that_an_update_has_dropped_are_gone_without_a_refresh() {
    for elastic in Elastic::both() {
        elastic.prepare();
        let mut storage = open(&elastic.storage());
        let first = with(100, "agent", "Order/Form");
        let second = in_place_of(&first, with(2, "customer", "note"));
        let other = with(3, "agent", "note");
        storage
            .save(&outgoing(&other), Deadline::NONE)
            .expect("saved");
        storage
            .save(&outgoing(&first), Deadline::NONE)
            .expect("saved");
        storage
            .save(&outgoing(&second), Deadline::NONE)
            .expect("saved");
        let mut wanted = expected(&second.id, &second.document);
        wanted.append(&mut expected(&other.id, &other.document));
        // As it is now, without a refresh.
        for number in 0..100 {
            let id = format!("{}_{number}", first.id);
            let document = elastic.document("calls_vcon_dialog", &id);
            assert_eq!(document.is_some(), number < 2, "{id}");
        }
        for index in ["parties_agent", "attachments_order_form"] {
            let index = format!("calls_vcon_{index}");
            assert_eq!(elastic.document(&index, &format!("{}_0", first.id)), None);
        }
        let found = elastic.documents();
        assert_eq!(found, wanted);
        // Saved again as it is, nothing changes.
        storage
            .save(&outgoing(&second), Deadline::NONE)
            .expect("saved");
        assert_eq!(elastic.documents(), wanted);
    }
}

#[test]
fn parts_that_others_have_written_are_replaced() {
    for elastic in Elastic::both() {
        let sample = with(1, "agent", "note");
        for index in [
            "parties",
            "parties_boss",
            "attachments_tags",
            "analysis_summary",
        ] {
            let path = format!("calls_vcon_{index}/_doc/{}_0", sample.id);
            elastic.put(&path, &json!({"vcon_id": sample.id}));
        }
        elastic.put(
            &format!("calls_vcon_archive/_doc/{}_0", sample.id),
            &json!({}),
        );
        open(&elastic.storage())
            .save(&outgoing(&sample), Deadline::NONE)
            .expect("saved");
        let mut wanted = expected(&sample.id, &sample.document);
        // No index of the layout.
        let archive = ("calls_vcon_archive".to_owned(), format!("{}_0", sample.id));
        wanted.insert(archive, json!({}));
        assert_eq!(elastic.documents(), wanted);
    }
}

#[test]
fn an_index_behind_an_alias_keeps_what_is_written() {
    for elastic in Elastic::both() {
        let aliases = json!({"aliases": {"calls_vcon_dialog": {"is_write_index": true}}});
        elastic.put("calls_vcon_dialog-000001", &aliases);
        let mut storage = open(&elastic.storage());
        let first = with(3, "agent", "note");
        let second = in_place_of(&first, with(1, "agent", "note"));
        storage
            .save(&outgoing(&first), Deadline::NONE)
            .expect("saved");
        storage
            .save(&outgoing(&second), Deadline::NONE)
            .expect("saved");
        let found = elastic.documents();
        let dialogs = found
            .keys()
            .filter(|(index, _)| index == "calls_vcon_dialog-000001");
        let ids: Vec<&String> = dialogs.map(|(_, id)| id).collect();
        assert_eq!(ids, [&format!("{}_0", first.id)]);
    }
}

#[test]
fn a_deleted_vcon_leaves_nothing_and_the_others_stay() {
    for elastic in Elastic::both() {
        let mut storage = open(&elastic.storage());
        let (one, other) = (with(70, "agent", "note"), with(2, "agent", "note"));
        storage
            .delete(&one.id.parse().expect("an id"))
            .expect("nothing to do");
        for sample in [&one, &other] {
            storage
                .save(&outgoing(sample), Deadline::NONE)
                .expect("saved");
        }
        storage
            .delete(&one.id.parse().expect("an id"))
            .expect("deleted");
        assert_eq!(elastic.documents(), expected(&other.id, &other.document));
        storage
            .delete(&one.id.parse().expect("an id"))
            .expect("nothing to do");
    }
}

#[test]
fn nothing_can_be_got_back() {
    let elastic = Elastic::osmem();
    let mut storage = open(&elastic.storage());
    let sample = with(1, "agent", "note");
    storage
        .save(&outgoing(&sample), Deadline::NONE)
        .expect("saved");
    assert!(!storage.keeps_documents());
    assert_eq!(
        storage.get(&sample.id.parse().expect("an id"), Deadline::NONE),
        Ok(None)
    );
}

#[test]
fn a_vcon_without_dialogs_or_without_parts_is_saved() {
    for elastic in Elastic::both() {
        let mut storage = open(&elastic.storage());
        let empty = Sample::of(json!({"parties": []}));
        storage
            .save(&outgoing(&empty), Deadline::NONE)
            .expect("saved");
        assert_eq!(elastic.documents(), BTreeMap::new());
        let silent = Sample::of(json!({"parties": [{"name": "Zoë"}]}));
        storage
            .save(&outgoing(&silent), Deadline::NONE)
            .expect("saved");
        let key = ("calls_vcon_parties".to_owned(), format!("{}_0", silent.id));
        let party = json!({"name": "Zoë", "vcon_id": silent.id});
        assert_eq!(elastic.documents(), BTreeMap::from([(key, party)]));
    }
}

#[test]
fn indices_get_legal_names_whatever_a_vcon_says() {
    for elastic in Elastic::both() {
        let mut storage = open(&elastic.storage());
        let long = "é".repeat(300);
        let purposes = [
            "a b", "../../x", "*", "_all", "-", "A,B", "x#y", "q?r=s", "\u{1}", &long,
        ];
        let attachments = purposes.map(|purpose| json!({"purpose": purpose}));
        let sample = Sample::of(json!({"attachments": attachments}));
        storage
            .save(&outgoing(&sample), Deadline::NONE)
            .expect("saved");
        assert_eq!(elastic.documents().len(), purposes.len());
        for (index, _) in elastic.documents().keys() {
            assert!(index.starts_with("calls_vcon_attachments_"), "{index}");
            assert!(index.len() <= 255, "{index}");
        }
        let empty = in_place_of(&sample, Sample::of(json!({})));
        storage
            .save(&outgoing(&empty), Deadline::NONE)
            .expect("saved");
        assert_eq!(elastic.documents(), BTreeMap::new());
    }
}

#[test]
fn what_is_saved_survives_the_servers_restart() {
    for elastic in Elastic::both() {
        let mut storage = open(&elastic.storage());
        let (before, after) = (with(2, "agent", "note"), with(1, "agent", "note"));
        storage
            .save(&outgoing(&before), Deadline::NONE)
            .expect("saved");
        elastic.end(Signal::SIGTERM);
        assert!(
            storage
                .save(&outgoing(&after), Deadline::NONE)
                .unwrap_err()
                .is_transient()
        );
        elastic.start_again();
        storage
            .save(&outgoing(&after), Deadline::NONE)
            .expect("saved");
        let mut wanted = expected(&after.id, &after.document);
        if elastic.is_durable() {
            wanted.append(&mut expected(&before.id, &before.document));
        }
        assert_eq!(elastic.documents(), wanted);
    }
}

#[test]
fn a_key_or_a_login_opens_the_door() {
    let elastic = Elastic::osmem();
    let login = Terms {
        login: Some(("keeper", "Geheimwort1")),
        ..Terms::default()
    };
    let key = Terms {
        authorization: Some("ApiKey aWQ6a2V5"),
        ..Terms::default()
    };
    for (terms, right, wrong) in [
        (
            login,
            json!({"username": "keeper", "password": "Geheimwort1"}),
            json!({"username": "keeper", "password": "Falsch"}),
        ),
        (
            key,
            json!({"api_key": "id:key"}),
            json!({"api_key": "RmFsc2No"}),
        ),
    ] {
        let nginx = Nginx::before(elastic.port(), &terms);
        let at_door = |mut options: Value| {
            options["url"] = nginx.url().into();
            open(&elastic.storage_with(options))
        };
        at_door(right)
            .save(&outgoing(&with(1, "a", "b")), Deadline::NONE)
            .expect("saved");
        let mut stranger = at_door(wrong);
        for failure in [
            stranger
                .save(&outgoing(&with(1, "a", "b")), Deadline::NONE)
                .unwrap_err(),
            stranger.probe().unwrap_err(),
        ] {
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.contains("HTTP 401"), "{failure}");
            assert!(
                failure
                    .message
                    .contains("see to `username` and `password`, or `api_key`")
            );
            for secret in ["Falsch", "RmFsc2No", "keeper"] {
                assert!(!failure.message.contains(secret), "{failure}");
            }
        }
    }
    assert_eq!(elastic.documents().len(), 6);
}

#[test]
fn a_certificate_must_be_from_an_authority_that_is_trusted() {
    let elastic = Elastic::osmem();
    let nginx = Nginx::before(
        elastic.port(),
        &Terms {
            tls: true,
            ..Terms::default()
        },
    );
    let with_options = |mut options: Value| {
        options["url"] = nginx.url().into();
        open(&elastic.storage_with(options))
    };
    let sample = outgoing(&with(1, "a", "b"));
    let failure = with_options(json!({}))
        .save(&sample, Deadline::NONE)
        .unwrap_err();
    assert!(failure.is_transient());
    assert!(failure.message.contains("certificate"), "{failure}");
    with_options(json!({"ca_certs": nginx.authority()}))
        .save(&sample, Deadline::NONE)
        .expect("saved");
    with_options(json!({"verify_certs": false}))
        .save(&sample, Deadline::NONE)
        .expect("saved");
    let other = Nginx::before(
        elastic.port(),
        &Terms {
            tls: true,
            ..Terms::default()
        },
    );
    let failure = with_options(json!({"ca_certs": other.authority()}))
        .save(&sample, Deadline::NONE)
        .unwrap_err();
    assert!(failure.message.contains("certificate"), "{failure}");
}
