//! Links at their limits: filters that never end, diets that cannot be followed.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Files, Ledger, PATIENCE, Redis, Sample, Webhook, chain, fresh, same, submit,
    wait_until,
};

fn link(module: &str, options: &Value) -> Value {
    json!({"module": module, "options": options})
}

fn about(subject: &str) -> Sample {
    let mut document = Sample::small().document;
    document["subject"] = subject.into();
    Sample::of(document)
}

#[test]
fn a_filter_that_never_ends_is_ended_by_the_time_limit_of_its_chain() {
    let redis = Redis::plain();
    let options = json!({"filter": "if .subject == \"endless\" then def f: f; f else true end"});
    let mut config = chain(&[("filter", link("links.jq_link", &options))], &[]);
    config["chains"]["main"]["timeout"] = json!(1);
    let _daemon = Conserver::with(&redis)
        .config(&config)
        .env("CONSERVER_MAX_DEATHS", "1")
        .start();
    submit(&redis, "default", &[about("endless"), about("x")]);
    wait_until("one is dead, the other done", PATIENCE, || {
        redis.length("DLQ:default") == 1 && redis.length("done") == 1
    });
}

#[test]
fn a_filter_that_is_none_or_too_deep_for_words_is_told_with_its_line() {
    let text = |filter: &str| {
        format!(
            "links:\n  x:\n    module: links.jq_link\n    options:\n      filter: '{filter}'\n\
             chains: {{main: {{links: [x], ingress_lists: [default]}}}}\n"
        )
    };
    for (filter, expected) in [
        (".a |", "config.yml:5: links.x.options.filter: is not a jq filter: expected term at character 5".to_owned()),
        ("env", "undefined filter env at character 1".to_owned()),
        (&"(".repeat(4000), "expected closing parenthesis".to_owned()),
        (&"(".repeat(100_000), "longer than 4096 bytes".to_owned()),
    ] {
        let finished = Conserver::without_redis().config_text(&text(filter)).run(&["run"]);
        assert_eq!(finished.code, 78, "{}", finished.output());
        assert!(finished.output().contains(&expected), "{}", finished.output());
    }
}

#[test]
fn a_diet_takes_out_what_it_is_told_to_and_nothing_else() {
    let (redis, plain, lean) = (Redis::with_json(), Files::new(), Files::new());
    let options = json!({"remove_dialog_body": true, "remove_analysis": true,
        "remove_attachment_types": ["application/x-nothing"], "remove_system_prompts": true});
    let mut config = chain(
        &[("diet", link("links.diet", &options))],
        &[("plain", plain.storage()), ("lean", lean.storage())],
    );
    config["chains"] = json!({
        "plain": {"storages": ["plain"], "ingress_lists": ["default"], "egress_lists": ["next"]},
        "lean": {"links": ["diet"], "storages": ["lean"], "ingress_lists": ["next"], "egress_lists": ["done"]},
    });
    let _daemon = Conserver::with(&redis).config(&config).workers(2).start();
    let mut samples = fresh(21);
    samples[0].document["analysis"] = json!([{"type": "x", "body": "b"}]);
    samples[1].document["meta"] = json!({"deep": [{"system_prompt": "obey", "kept": 1.5}]});
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let before: std::collections::BTreeMap<String, Value> = plain.documents().into_iter().collect();
    let after = lean.documents();
    assert_eq!((before.len(), after.len()), (samples.len(), samples.len()));
    for (id, lean) in after {
        assert!(same(&lean, &redis.document(&id).expect("a document")));
        let mut expected = before[&id].clone();
        let members = expected.as_object_mut().expect("an object");
        members.remove("analysis");
        if let Some(deep) = members
            .get_mut("meta")
            .and_then(|meta| meta.pointer_mut("/deep/0"))
        {
            deep.as_object_mut()
                .expect("an object")
                .remove("system_prompt");
        }
        for dialog in members
            .get_mut("dialog")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if dialog.get("body").is_some_and(|body| !body.is_null()) {
                dialog["body"] = json!("");
            }
        }
        assert!(same(&lean, &expected), "{lean}\n{expected}");
    }
}

#[test]
fn a_body_that_was_taken_without_a_word_of_where_it_is_now_stays() {
    let (redis, silent) = (Redis::plain(), Webhook::answering(&[]));
    let options = json!({"remove_dialog_body": true, "post_media_to_url": silent.url()});
    let _daemon = Conserver::with(&redis)
        .config(&chain(&[("diet", link("links.diet", &options))], &[]))
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .env("CONSERVER_RETRY_MAX_MS", "100")
        .start();
    let mut document = Sample::small().document;
    document["dialog"] = json!([{"id": "d1", "type": "text", "body": "words"}]);
    let samples = [Sample::of(document)];
    submit(&redis, "default", &samples);
    wait_until("it has been tried in two rounds", PATIENCE, || {
        silent.requests().len() >= 4
    });
    let kept = redis.document(&samples[0].id).expect("a document");
    assert_eq!(kept["dialog"][0]["body"], "words");
    assert_eq!(redis.length("done"), 0);
}
