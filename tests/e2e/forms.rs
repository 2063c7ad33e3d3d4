//! Documents of every age and form: what the daemon makes of them, in RedisJSON and as plain strings.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Elastic, Files, PATIENCE, Postgres, Redis, S3, Sample, Webhook, same,
    submit, wait_until,
};

/// A daemon with a chain for each thing that a chain does to a document.
struct Bench {
    redis: Redis,
    files: Files,
    daemon: Daemon,
}

/// What became of a vCon.
#[derive(Debug, PartialEq)]
enum End {
    /// It is announced, and stored with this text.
    Stored(String),
    /// A dead letter, for this reason.
    Dead(String),
    /// Its chain ended before its storage.
    Halted,
}

impl Bench {
    fn start(redis: Redis, env: &[(&str, &str)]) -> Self {
        let files = Files::new();
        let links = json!({
            "tag": {"module": "links.tag", "options": {"tags": {"desk": "north"}}},
            "route": {"module": "links.tag_router", "options": {"tag_routes": {"lang": "routed"}}},
            "jq": {"module": "links.jq_link", "options": {"filter": ".analysis[0].body.score >= 60"}},
            "diet": {"module": "links.diet", "options": {"remove_dialog_body": true, "remove_analysis": true}},
            "expire": {"module": "links.expire_vcon", "options": {"seconds": 7200}},
            "program": {"module": "links.exec", "options": {"command": ["sed", "s/first/second/"]}},
        });
        let names = ["none", "tag", "route", "jq", "diet", "expire", "program"];
        let chain = |name: &&str| {
            let links = if *name == "none" { vec![] } else { vec![*name] };
            let chain = json!({"links": links, "storages": ["files"], "ingress_lists": [name],
                "egress_lists": [format!("{name}_done")]});
            ((*name).to_owned(), chain)
        };
        let chains: serde_json::Map<String, Value> = names.iter().map(chain).collect();
        let config =
            json!({"links": links, "storages": {"files": files.storage()}, "chains": chains});
        let mut conserver = Conserver::with(&redis).config(&config).lanes(4);
        for (name, value) in env {
            conserver = conserver.env(name, *value);
        }
        let daemon = conserver.start();
        Self {
            redis,
            files,
            daemon,
        }
    }

    /// Puts a document under a new key, as RedisJSON if the server has it and takes it.
    fn put(&self, text: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let (key, text) = (format!("vcon:{id}"), text.replace("ID", &id));
        let json = ["JSON.SET", &key, "$", &text];
        if !(self.redis.has_json() && self.redis.try_ask::<()>(&json).is_ok()) {
            self.redis.ask::<()>(&["SET", &key, &text]);
        }
        id
    }

    /// Takes a vCon through a chain.
    fn through(&self, chain: &str, id: &str) -> End {
        self.redis.ask::<i64>(&["RPUSH", chain, id]);
        let (done, dead) = (format!("{chain}_done"), format!("DLQ:{chain}"));
        let halted = format!("Halted {id}");
        let mut end = None;
        wait_until("it is through", PATIENCE, || {
            if self.redis.list(&done).contains(&id.to_owned()) {
                end = Some(End::Stored(self.files.text(id)));
            } else if self.redis.list(&dead).contains(&id.to_owned()) {
                let reasons = format!("conserver:dlq:{chain}");
                let reason: String = self.redis.ask(&["HGET", &reasons, id]);
                let reason: Value = serde_json::from_str(&reason).expect("JSON");
                end = Some(End::Dead(
                    reason["error"].as_str().expect("text").to_owned(),
                ));
            } else if self.daemon.log().contains(&halted) {
                end = Some(End::Halted);
            }
            end.is_some()
        });
        end.expect("an end")
    }

    /// What a new vCon with this text becomes.
    fn takes(&self, chain: &str, text: &str) -> (String, End) {
        let id = self.put(text);
        let end = self.through(chain, &id);
        (id, end)
    }

    /// The text that stands in Redis, read as its kind is.
    fn in_redis(&self, id: &str) -> String {
        let key = format!("vcon:{id}");
        let kind: String = self.redis.ask(&["TYPE", &key]);
        match kind.as_str() {
            "string" => self.redis.ask(&["GET", &key]),
            _ => self.redis.ask(&["JSON.GET", &key]),
        }
    }
}

fn stored(end: &End) -> Value {
    match end {
        End::Stored(text) => serde_json::from_str(text).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

fn vcon(more: &str) -> String {
    format!(
        r#"{{"vcon":"0.4.0","uuid":"ID","created_at":"2025-03-04T05:06:07Z","parties":[],{more}}}"#
    )
}

#[test]
fn both_generations_in_one_matrix() {
    let text = vcon(concat!(
        r#""dialog":[{"type":"text","body":"x","encoding":"text"}],"#,
        r#""analysis":[{"type":"score","body":{"score": 71},"encoding":"none"},"#,
        r#"{"type":"old","body":"{\"score\": 1}","encoding":"json"}],"#,
        r#""attachments":[{"type":"tags","body":{"lang": "fr"},"encoding":"none"}]"#
    ));
    for kind in ["string", "ReJSON-RL"] {
        for bodies in ["native", "text"] {
            let server = match kind {
                "string" => Redis::plain(),
                _ => Redis::with_json(),
            };
            let bench = Bench::start(server, &[("VCON_JSON_BODIES", bodies)]);
            for chain in ["none", "tag", "route", "jq"] {
                let (id, end) = bench.takes(chain, &text);
                let kept = stored(&end);
                let what = format!("{kind} {bodies} {chain}: {kept}");
                let native = json!({"score": 71});
                let expected = match bodies {
                    "native" => native,
                    _ => json!(kept["analysis"][0]["body"].as_str().expect(&what)),
                };
                assert_eq!(kept["analysis"][0]["body"], expected, "{what}");
                if bodies == "text" {
                    let inside = expected.as_str().expect("text");
                    let inside: Value = serde_json::from_str(inside).expect("JSON");
                    assert_eq!(inside, json!({"score": 71}));
                }
                for part in kept["analysis"].as_array().expect("a list") {
                    assert_eq!(part["encoding"], "json", "{what}");
                }
                assert!(kept["analysis"][1]["body"].is_string(), "{what}");
                assert_eq!(kept["dialog"][0]["encoding"], "none", "{what}");
                let tags = &kept["attachments"][0];
                assert_eq!(tags["purpose"], "tags");
                if chain == "tag" {
                    let list = r#"["lang:fr","desk:north"]"#;
                    assert_eq!(tags["body"], list, "{what}");
                }
                let found: String = bench.redis.ask(&["TYPE", &format!("vcon:{id}")]);
                assert_eq!(found, kind, "{what}");
                let in_redis: Value = serde_json::from_str(&bench.in_redis(&id)).expect("JSON");
                if chain == "tag" {
                    assert_eq!(in_redis, kept, "{what}");
                }
            }
            assert_eq!(bench.redis.length("routed"), 1);
            bench.daemon.stop();
        }
    }
}

#[test]
fn a_filter_that_does_not_match_a_value_ends_the_chain() {
    let bench = Bench::start(Redis::plain(), &[]);
    let low = vcon(r#""analysis":[{"body":{"score": 12},"encoding":"json"}]"#);
    assert_eq!(bench.takes("jq", &low).1, End::Halted);
}

/// What a chain is to make of a document.
#[derive(Clone)]
enum Becomes {
    /// It is stored with this text.
    Text(String),
    /// It is a dead letter whose reason has this.
    Dead(&'static str),
}

type Case = (&'static str, String, Becomes);

fn unchanged(chain: &'static str, text: &str) -> Case {
    (chain, text.to_owned(), Becomes::Text(text.to_owned()))
}

fn to(chain: &'static str, text: &str, becomes: &str) -> Case {
    (chain, text.to_owned(), Becomes::Text(becomes.to_owned()))
}

fn dead(chain: &'static str, text: &str, why: &'static str) -> Case {
    (chain, text.to_owned(), Becomes::Dead(why))
}

/// An attachment of tags with this body.
fn tags(body: &str) -> String {
    vcon(&format!(r#""attachments":[{{"purpose":"tags",{body}}}]"#))
}

const TAG: &str = r#"{"purpose":"tags","body":"[\"desk:north\"]","encoding":"json"}"#;

/// Members that are no list where one is expected.
fn no_lists() -> Vec<Case> {
    vec![
        unchanged(
            "none",
            &vcon(r#""dialog":null,"analysis":null,"attachments":null"#),
        ),
        unchanged(
            "none",
            &vcon(r#""dialog":{"a":1},"analysis":"x","attachments":7"#),
        ),
        unchanged("none", r#"{"vcon":"0.4.0","uuid":"ID","parties":null}"#),
        unchanged(
            "none",
            r#"{"vcon":"0.4.0","uuid":"ID","parties":{"tel":"1"}}"#,
        ),
        to(
            "tag",
            &vcon(r#""analysis":null,"attachments":null"#),
            &vcon(&format!(r#""analysis":null,"attachments":[{TAG}]"#)),
        ),
        dead(
            "tag",
            &vcon(r#""attachments":{"purpose":"tags"}"#),
            "`attachments`",
        ),
        dead(
            "route",
            &vcon(r#""attachments":{"purpose":"tags"}"#),
            "`attachments`",
        ),
        dead("diet", &vcon(r#""dialog":{"body":"x"}"#), "`dialog`"),
        unchanged("route", &vcon(r#""attachments":null"#)),
        unchanged("diet", &vcon(r#""dialog":null"#)),
        to(
            "tag",
            &vcon(r#""attachments":["loose",null,7]"#),
            &vcon(&format!(r#""attachments":["loose",null,7,{TAG}]"#)),
        ),
    ]
}

/// Who names extensions in `critical` is only carried.
fn critical() -> Vec<Case> {
    let with = |more: &str| vcon(&format!(r#""critical":["x_rules"],{more}"#));
    let known = vcon(r#""critical":["CC","WTF"],"attachments":[]"#);
    vec![
        to("tag", &known, &known.replace("[]}", &format!("[{TAG}]}}"))),
        unchanged("tag", &with(r#""attachments":[]"#)),
        unchanged("diet", &with(r#""dialog":[{"body":"x"}],"analysis":[]"#)),
        unchanged("program", &with(r#""subject":"first""#)),
        to(
            "tag",
            &vcon(r#""must_support":["x_rules"]"#),
            &vcon(r#""critical":["x_rules"]"#),
        ),
        to(
            "program",
            &vcon(r#""subject":"first""#),
            &vcon(r#""subject":"second""#),
        ),
        to(
            "tag",
            &vcon(r#""critical":[],"attachments":[]"#),
            &vcon(&format!(r#""critical":[],"attachments":[{TAG}]"#)),
        ),
    ]
}

/// Tags in every shape.
fn shapes() -> Vec<Case> {
    let mut cases = Vec::new();
    for body in [
        r#""body":{"lang":"fr"},"encoding":"json""#,
        r#""body":["lang:fr"],"encoding":"json""#,
        r#""body":"{\"lang\": \"fr\"}","encoding":"json""#,
        r#""body":"[\"lang:fr\"]","encoding":"json""#,
        r#""body":"lang:fr","encoding":"none""#,
    ] {
        let both = r#""body":"[\"lang:fr\",\"desk:north\"]","encoding":"json""#;
        cases.push(to("tag", &tags(body), &tags(both)));
        cases.push(unchanged("route", &tags(body)));
    }
    for body in [
        r#""body":"","encoding":"none""#,
        r#""body":null,"encoding":"json""#,
    ] {
        let one = r#""body":"[\"desk:north\"]","encoding":"json""#;
        cases.push(to("tag", &tags(body), &tags(one)));
    }
    let other = vcon(
        r#""attachments":[{"purpose":"note","type":"tags","body":[{"n":1}],"encoding":"json"}]"#,
    );
    let tagged = other.replace("[{\"n\":1}]", r#""[{\"n\":1},\"desk:north\"]""#);
    cases.push(to("tag", &other, &tagged));
    cases
}

/// Odd, and legal.
fn odd() -> Vec<Case> {
    vec![
        unchanged("none", &vcon(r#""subject":"cut \ud83d off""#)),
        unchanged(
            "none",
            &vcon(r#""n":[-0.0,1E400,0.10,170141183460469231731687303715884105727]"#),
        ),
        unchanged(
            "none",
            r#"{"vcon":"0.4.0","uuid":"5d2f1c1e-0000-4000-8000-00000000000a"}"#,
        ),
        to(
            "none",
            "\u{feff}{\"vcon\":\"0.4.0\"}",
            "{\"vcon\":\"0.4.0\"}",
        ),
        to(
            "none",
            r#"{"vcon":"0.4.0","subject":"one","subject":"two"}"#,
            r#"{"vcon":"0.4.0","subject":"two"}"#,
        ),
        dead("none", r#""{\"vcon\":\"0.4.0\"}""#, "encoded twice"),
        to(
            "none",
            &vcon(r#""analysis":[{"body":[1.5],"encoding":"none"}]"#),
            &vcon(r#""analysis":[{"body":[1.5],"encoding":"json"}]"#),
        ),
        to(
            "none",
            &vcon(r#""attachments":[{"body":"b","encoding":"text"}]"#),
            &vcon(r#""attachments":[{"body":"b","encoding":"none"}]"#),
        ),
    ]
}

#[test]
fn every_form_becomes_what_it_should() {
    for redis in [Redis::plain(), Redis::with_json()] {
        let bench = Bench::start(redis, &[]);
        for (chain, text, becomes) in [no_lists(), critical(), shapes(), odd()].concat() {
            let (id, end) = bench.takes(chain, &text);
            let what = format!("{chain}: {text} -> {end:?}");
            match (becomes, &end) {
                (Becomes::Dead(why), End::Dead(error)) => assert!(error.contains(why), "{what}"),
                (Becomes::Text(expected), End::Stored(found)) => {
                    let expected = expected.replace("ID", &id);
                    if bench.redis.has_json() && serde_json::from_str::<Value>(found).is_ok() {
                        // RedisJSON spells some numbers and texts in its own way.
                        let value = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
                        assert!(same(&value(found), &value(&expected)), "{what}");
                    } else {
                        assert_eq!(found, &expected, "{what}");
                    }
                    let kept = bench.in_redis(&id);
                    assert!(
                        !kept.contains("desk:north") || kept == *found || bench.redis.has_json()
                    );
                }
                _ => panic!("{what}"),
            }
        }
        let told = bench.daemon.count_in_log("its `critical` names x_rules");
        assert_eq!(told, 4, "{}", bench.daemon.log());
        assert_eq!(bench.redis.length("routed"), 5);
        bench.daemon.stop();
    }
}

#[test]
fn a_uuid_stays_in_the_letters_it_is_written_in() {
    let bench = Bench::start(Redis::plain(), &[]);
    let id = uuid::Uuid::new_v4().to_string().to_uppercase();
    let text = vcon(r#""attachments":[]"#).replace("ID", &id);
    bench
        .redis
        .ask::<()>(&["SET", &format!("vcon:{id}"), &text]);
    let end = bench.through("tag", &id);
    let tagged = text.replace("[]}", &format!("[{TAG}]}}"));
    assert_eq!(end, End::Stored(tagged.clone()));
    assert_eq!(bench.in_redis(&id), tagged);
    assert_eq!(bench.redis.keys("vcon:*"), [format!("vcon:{id}")]);
    bench.daemon.stop();
}

#[test]
fn unknown_critical_extensions_are_refused_on_demand() {
    let bench = Bench::start(Redis::plain(), &[("VCON_CRITICAL", "refuse")]);
    let text = vcon(r#""critical":["x_rules"],"subject":"first","attachments":[],"dialog":[]"#);
    for chain in ["tag", "diet", "program"] {
        let (id, end) = bench.takes(chain, &text);
        let End::Dead(why) = end else {
            panic!("{chain}: {end:?}");
        };
        assert!(why.contains("x_rules"), "{why}");
        assert_eq!(bench.in_redis(&id), text.replace("ID", &id));
    }
    for chain in ["none", "route", "expire"] {
        let (id, end) = bench.takes(chain, &text);
        assert_eq!(end, End::Stored(text.replace("ID", &id)), "{chain}");
    }
    bench.daemon.stop();
}

const SEALED: [(&str, &str); 4] = [
    (
        "signed",
        "{\"payload\": \"eyJ9\",\n \"signatures\": [{\"protected\":\"eyJ9\", \"signature\":\"c2ln\"}]}",
    ),
    (
        "signed",
        r#"{ "payload":"eyJ9","protected":"eyJ9","signature":"c2ln" }"#,
    ),
    (
        "encrypted",
        r#"{"protected":"eyJ9", "recipients":[{"encrypted_key":"a2V5"}],"iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}"#,
    ),
    (
        "encrypted",
        r#"{"protected":"eyJ9","encrypted_key":"a2V5","iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}"#,
    ),
];

#[test]
fn sealed_vcons_go_through_byte_for_byte_and_links_that_change_them_refuse_them() {
    for env in [
        &[][..],
        &[
            ("EGRESS_FORMAT_VERSION", "0.0.1"),
            ("VCON_JSON_BODIES", "text"),
        ],
    ] {
        let bench = Bench::start(Redis::plain(), env);
        for (word, text) in SEALED {
            for chain in ["none", "route", "expire", "program"] {
                let (id, end) = bench.takes(chain, text);
                assert_eq!(end, End::Stored(text.to_owned()), "{chain}");
                assert_eq!(bench.in_redis(&id), text);
                let path = bench
                    .files
                    .paths()
                    .into_iter()
                    .find(|path| path.to_string_lossy().contains(&id));
                let day = chrono::Utc::now().format("%Y/").to_string();
                let path = path.expect("a file").display().to_string();
                assert!(path.contains(&day), "{path}");
                let left: i64 = bench.redis.ask(&["TTL", &format!("vcon:{id}")]);
                assert_eq!(left > 0, chain == "expire", "{chain} {left}");
            }
            for chain in ["tag", "diet"] {
                let (id, end) = bench.takes(chain, text);
                let End::Dead(why) = end else {
                    panic!("{chain}: {end:?}");
                };
                assert!(why.contains(word), "{why}");
                assert_eq!(bench.in_redis(&id), text);
            }
        }
        bench.daemon.stop();
    }
}

#[test]
fn every_storage_and_webhook_takes_sealed_vcons() {
    let (redis, keeper) = (Redis::plain(), Redis::plain());
    let (s3, database, hook) = (S3::start(), Postgres::database(), Webhook::answering(&[]));
    let [elastic, _] = Elastic::both();
    elastic.prepare();
    let urls = json!({"webhook-urls": [hook.url()]});
    let config = json!({
        "links": {"hook": {"module": "links.webhook", "options": urls}},
        "storages": {
            "s3": s3.storage(), "pg": database.storage(), "es": elastic.storage(),
            "post": {"module": "storage.webhook", "options": urls},
            "redis": {"module": "storage.redis_storage", "options": {"redis_url": keeper.url()}},
        },
        "chains": {"main": {"links": ["hook"], "storages": ["s3", "pg", "es", "post", "redis"],
            "ingress_lists": ["default"], "egress_lists": ["done"]}},
    });
    let daemon = Conserver::with(&redis).config(&config).start();
    for (number, (word, text)) in SEALED.into_iter().enumerate() {
        let id = uuid::Uuid::new_v4().to_string();
        redis.ask::<()>(&["SET", &format!("vcon:{id}"), text]);
        redis.ask::<i64>(&["RPUSH", "default", &id]);
        wait_until("it is announced", PATIENCE, || {
            redis.list("done").contains(&id)
        });
        for storage in ["s3", "pg", "es", "post", "redis"] {
            assert_eq!(
                redis.length(&format!("DLQ:storage:{storage}")),
                0,
                "{storage}"
            );
        }
        let kept: String = keeper.ask(&["GET", &format!("vcon_storage:{id}")]);
        assert_eq!(kept, text);
        let day = std::fs::read_to_string(s3.object(&format!("archive/lookup/{id}.txt")));
        let key = format!("archive/{}/{id}.vcon", day.expect("a pointer"));
        assert_eq!(
            std::fs::read_to_string(s3.object(&key)).expect("an object"),
            text
        );
        let row = database.client().query_one(
            "select vcon, subject, vcon_json::text, created_at::text from vcons where id::text = $1",
            &[&id],
        );
        let row = row.expect("a row");
        assert_eq!(row.get::<_, String>(0), word);
        assert_eq!(row.get::<_, Option<String>>(1), None);
        let json: Value = serde_json::from_str(&row.get::<_, String>(2)).expect("JSON");
        assert_eq!(json, serde_json::from_str::<Value>(text).expect("JSON"));
        let posted = hook.requests();
        assert_eq!(posted.len(), 2 * (number + 1));
        assert!(posted.iter().rev().take(2).all(|it| it.body == text));
    }
    assert_eq!(elastic.documents().len(), 0);
    assert_eq!(daemon.count_in_log("is indexed in no part"), SEALED.len());
    daemon.stop();
}

#[test]
fn a_new_key_is_of_the_format_that_is_set_or_seen() {
    for (redis, format, is_seen, expected) in [
        (Redis::plain(), "auto", false, "string"),
        (Redis::plain(), "json", false, "string"),
        (Redis::with_json(), "auto", false, "string"),
        (Redis::with_json(), "auto", true, "ReJSON-RL"),
        (Redis::with_json(), "plain", true, "string"),
        (Redis::with_json(), "json", false, "ReJSON-RL"),
    ] {
        let bench = Bench::start(redis, &[("VCON_REDIS_FORMAT", format)]);
        if is_seen {
            // By any worker of the daemon.
            bench.takes("none", &vcon(r#""dialog":[]"#));
        }
        let text = vcon(r#""dialog":[]"#);
        let id = bench.put(&text);
        let key = format!("vcon:{id}");
        bench
            .redis
            .ask::<()>(&["SET", &key, &text.replace("ID", &id)]);
        bench.through("none", &id);
        bench.redis.ask::<i64>(&["DEL", &key, "none_done"]);
        bench.through("tag", &id);
        let kind: String = bench.redis.ask(&["TYPE", &key]);
        assert_eq!(kind, expected, "{format} {is_seen}");
        let kept: Value = serde_json::from_str(&bench.in_redis(&id)).expect("JSON");
        assert_eq!(kept["attachments"][0]["purpose"], "tags");

        // The same for what is submitted: of a new key, and of one that is there.
        let conserver = bench.daemon.conserver();
        for found in [None, Some("string"), Some("ReJSON-RL")] {
            let sample = Sample::small();
            let key = format!("vcon:{}", sample.id);
            match found {
                Some("string") => bench.redis.ask::<()>(&["SET", &key, "{}"]),
                Some(_) if !bench.redis.has_json() => continue,
                Some(_) => bench.redis.ask::<()>(&["JSON.SET", &key, "$", "{}"]),
                None => {}
            }
            let submitted =
                conserver.run_with_input(&["submit", "-", "--list", "aside"], &sample.text());
            assert_eq!(submitted.code, 0, "{}", submitted.output());
            let kind: String = bench.redis.ask(&["TYPE", &key]);
            let new = if format == "json" { expected } else { "string" };
            assert_eq!(kind, found.unwrap_or(new), "{format}");
        }
        bench.daemon.stop();
    }
}

#[test]
fn submit_keeps_to_the_format_of_a_deployment() {
    let redis = Redis::with_json();
    submit(&redis, "aside", &[Sample::small()]);
    let conserver = Conserver::with(&redis);
    let sample = Sample::small();
    let submitted = conserver.run_with_input(&["submit", "-", "--list", "aside"], &sample.text());
    assert_eq!(submitted.code, 0, "{}", submitted.output());
    let kind: String = redis.ask(&["TYPE", &format!("vcon:{}", sample.id)]);
    assert_eq!(kind, "ReJSON-RL");
}

#[test]
fn a_dead_letter_gets_the_time_to_live_that_is_set_or_keeps_its_own() {
    for (expiry, own, expected) in [("1000", "9000", 1000), ("0", "9000", 9000), ("0", "", -1)] {
        let bench = Bench::start(Redis::plain(), &[("VCON_DLQ_EXPIRY", expiry)]);
        let id = bench.put(&vcon(r#""attachments":{}"#));
        let key = format!("vcon:{id}");
        if !own.is_empty() {
            bench.redis.ask::<i64>(&["EXPIRE", &key, own]);
        }
        let end = bench.through("tag", &id);
        assert!(matches!(end, End::Dead(_)), "{end:?}");
        let left: i64 = bench.redis.ask(&["TTL", &key]);
        assert!(
            (expected - 20..=expected).contains(&left),
            "{expiry}: {left}"
        );
        bench.daemon.stop();
    }
}
