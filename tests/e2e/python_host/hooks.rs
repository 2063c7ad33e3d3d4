//! Hooks and tracers of a deployment: when they are called, and that a failure of theirs loses no vCon.

use serde_json::{Value, json};

use super::{bare, conserver, module, sample, told};
use crate::harness::{
    Call, Conserver, Daemon, Deployment, Files, PATIENCE, Redis, Sample, chain, submit, wait_until,
};

/// A daemon with hooks that do something.
fn with_hooks(redis: &Redis, deployment: &Deployment, config: &Value) -> Daemon {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_PYTHON_PATH", deployment.path_with_hooks())
        .start()
}

/// Waits for so many calls of the hook at the end; gives the calls about each of these.
fn calls_of(redis: &Redis, samples: &[&Sample]) -> Vec<Vec<Call>> {
    wait_until("all have come to an end", PATIENCE, || {
        let calls = redis.calls();
        let ends = calls.iter().filter(|it| it.call == "hook.after_processing");
        ends.count() >= samples.len()
    });
    wait_until("nothing is in hand", PATIENCE, || {
        redis.length("default") == 0 && redis.keys("conserver:claims:*").is_empty()
    });
    let mut calls = redis.calls_by_vcon();
    let of = |sample: &&Sample| calls.remove(&sample.id).unwrap_or_default();
    samples.iter().map(of).collect()
}

fn names(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.call.as_str()).collect()
}

#[test]
fn hooks_are_called_around_the_chain_and_after_each_link() {
    let (redis, deployment, files) = (Redis::plain(), Deployment::new(), Files::new());
    let links = [
        (
            "marks",
            module(
                "links.marks",
                json!({"tag": "x", "after_link": {"deep": [1]}}),
            ),
        ),
        ("refuses", bare("links.refuses")),
    ];
    let config = chain(&links, &[("files", files.storage())]);
    let daemon = with_hooks(&redis, &deployment, &config);
    let all = ["plain", "refused", "skipped"].map(sample);
    let [plain, refused, skipped] = all.each_ref();
    submit(&redis, "default", &all);
    let [of_plain, of_refused, of_skipped]: [Vec<Call>; 3] =
        calls_of(&redis, &[plain, refused, skipped])
            .try_into()
            .expect("three");

    assert_eq!(
        names(&of_plain),
        [
            "hook.before_processing",
            "after_link_hook.after_link",
            "links.marks.run",
            "after_link_hook.after_link",
            "links.refuses.run",
            "after_link_hook.after_link",
            "hook.after_processing"
        ]
    );
    let chain = told(&config, "main");
    let id = json!(plain.id);
    assert_eq!(
        of_plain[0].arguments,
        [
            id.clone(),
            chain.clone(),
            json!({"ingress_list": "default"})
        ]
    );
    let parties = json!(["+15550100", "ole@example.org"]);
    let after = |name: &str, path: &str, options: Value, of_hook: Value| {
        [
            id.clone(),
            json!(name),
            json!({"module": path}),
            options,
            of_hook,
            json!("success"),
            Value::Null,
            parties.clone(),
        ]
    };
    let tags = json!({"tags": ["checked"]});
    assert_eq!(
        of_plain[1].arguments,
        after("tagger", "links.tag", tags, json!({}))
    );
    let options = json!({"tag": "x", "after_link": {"deep": [1]}});
    assert_eq!(
        of_plain[3].arguments,
        after("marks", "links.marks", options, json!({"deep": [1]}))
    );
    assert_eq!(
        of_plain[5].arguments,
        after("refuses", "links.refuses", Value::Null, json!({}))
    );
    // It is the same object that the hook before was given.
    let context = json!({"ingress_list": "default", "seen before": plain.id});
    assert_eq!(of_plain[6].arguments, [id.clone(), chain.clone(), context]);
    assert_eq!(of_plain[6].named, json!({"error": null}));

    assert_eq!(names(&of_refused), names(&of_plain));
    let error = &of_refused[5].arguments;
    let text = format!("nothing can be done\nfor {}", refused.id);
    let raised = json!({"exception": "ValueError", "text": text});
    assert_eq!((&error[5], &error[6]), (&json!("error"), &raised));
    assert_eq!(of_refused[6].named, json!({"error": raised}));

    assert_eq!(
        names(&of_skipped),
        ["hook.before_processing", "hook.after_processing"]
    );
    assert_eq!(of_skipped[1].named, json!({"error": null}));

    assert_eq!(redis.list("done"), [plain.id.as_str()]);
    assert_eq!(redis.list("DLQ:default"), [refused.id.as_str()]);
    let stored: Vec<String> = files.documents().into_iter().map(|(id, _)| id).collect();
    assert_eq!(stored, [plain.id.as_str()]);
    daemon.stop();
}

#[test]
fn the_context_of_the_entry_is_handed_to_the_hooks() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let daemon = with_hooks(&redis, &deployment, &chain(&[], &[]));
    let one = sample("plain");
    let context = json!({"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "trace_flags": 1});
    let key = format!("context:default:{}", one.id);
    redis.ask::<i64>(&["RPUSH", &key, &context.to_string()]);
    submit(&redis, "default", std::slice::from_ref(&one));
    let calls = calls_of(&redis, &[&one]).remove(0);
    assert_eq!(calls[0].call, "hook.before_processing");
    let mut told = context.clone();
    told["ingress_list"] = json!("default");
    assert_eq!(calls[0].arguments[2], told);
    let last = calls.last().expect("calls");
    assert_eq!(last.call, "hook.after_processing");
    assert_eq!(last.arguments[2]["trace_id"], context["trace_id"]);
    assert_eq!(last.arguments[2]["seen before"], one.id.as_str());
    daemon.stop();
}

#[test]
fn a_hook_that_fails_loses_no_vcon() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let links = [("marks", bare("links.marks"))];
    let daemon = with_hooks(&redis, &deployment, &chain(&links, &[]));
    let subjects = ["after raises", "after link raises", "plain"];
    let all = subjects.map(sample);
    let [after, after_link, plain] = all.each_ref();
    submit(&redis, "default", &all);
    wait_until("all are done", PATIENCE, || {
        redis.length("done") == all.len()
    });
    let calls = calls_of(&redis, &[after, after_link, plain]);
    for calls in &calls {
        assert_eq!(
            names(calls),
            [
                "hook.before_processing",
                "after_link_hook.after_link",
                "links.marks.run",
                "after_link_hook.after_link",
                "hook.after_processing"
            ]
        );
    }
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    let log = daemon.log();
    for (sample, words) in [
        (after, "RuntimeError: no end"),
        (after_link, "RuntimeError: no matter"),
    ] {
        let told = log
            .lines()
            .any(|line| line.contains(words) && line.contains(&sample.id));
        assert!(told, "{words}: {log}");
    }
    daemon.stop();
}

/// The vCon has not been worked on, as nobody knows whether it was to be: it waits for somebody to look.
#[test]
fn a_hook_before_the_chain_that_fails_makes_a_dead_letter_that_can_be_tried_again() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let daemon = with_hooks(
        &redis,
        &deployment,
        &chain(&[("marks", bare("links.marks"))], &[]),
    );
    let all = ["before raises", "plain"].map(sample);
    submit(&redis, "default", &all);
    wait_until("one is done, one is dead", PATIENCE, || {
        redis.length("done") == 1 && redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [all[0].id.as_str()]);
    let shown = daemon
        .conserver()
        .run(&["dlq", "show", &all[0].id])
        .output();
    assert!(shown.contains("RuntimeError: no beginning"), "{shown}");
    let calls = redis.calls_by_vcon().remove(&all[0].id).expect("calls");
    assert_eq!(
        names(&calls),
        ["hook.before_processing", "hook.after_processing"]
    );
    let error = &calls[1].named["error"];
    assert!(
        error["text"]
            .as_str()
            .is_some_and(|text| text.contains("no beginning")),
        "{error}"
    );
    daemon.stop();
}

#[test]
fn a_hook_with_an_error_in_it_keeps_the_daemon_from_starting() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    deployment.write("hook.py", "import of_no_such_name\n");
    let practice = deployment.folder().join("practice");
    let path = format!("{}:{}", practice.display(), deployment.path());
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("CONSERVER_PYTHON_PATH", path)
        .launch();
    assert_eq!(daemon.wait_exit(PATIENCE), 78, "{}", daemon.log());
    assert!(
        daemon.log().contains("No module named 'of_no_such_name'"),
        "{}",
        daemon.log()
    );
}

#[test]
fn tracers_are_called_before_the_first_link_and_after_each() {
    let (redis, deployment) = (Redis::plain(), Deployment::new());
    let links = [
        ("moves", bare("links.moves_on")),
        ("stops", bare("links.stops")),
    ];
    let mut config = chain(&links, &[]);
    config["tracers"] = json!({
        "first": {"module": "tracers.audit", "options": {"to": "a"}},
        "second": {"module": "tracers.audit"},
    });
    let daemon = conserver(&redis, &deployment, &config).start();
    let all = ["plain", "moves on", "stops"].map(sample);
    let [plain, moves, stops] = all.each_ref();
    submit(&redis, "default", &all);
    wait_until("all are over", PATIENCE, || {
        redis.length("done") == 2
            && redis.length("default") == 0
            && redis.keys("conserver:claims:*").is_empty()
    });
    let copy = redis
        .list("done")
        .into_iter()
        .find(|id| *id != plain.id)
        .expect("a copy");
    let calls = redis.calls();
    let names = json!(["tagger", "moves", "stops"]);
    let traces = |ids: &[&str]| -> Vec<Vec<Value>> {
        let is_about = |call: &&Call| call.call == "tracers.audit.run" && ids.contains(&call.id());
        calls
            .iter()
            .filter(is_about)
            .map(|call| call.arguments.clone())
            .collect()
    };
    let expected = |steps: &[(&str, &str, i64)]| -> Vec<Vec<Value>> {
        let call = |(inward, outward, index): &(&str, &str, i64), tracer: &str, options: Value| {
            vec![
                json!(inward),
                json!(outward),
                json!(tracer),
                names.clone(),
                json!(index),
                options,
            ]
        };
        let both = steps.iter().flat_map(|step| {
            [
                call(step, "first", json!({"to": "a"})),
                call(step, "second", Value::Null),
            ]
        });
        both.collect()
    };
    let id = plain.id.as_str();
    assert_eq!(
        traces(&[id]),
        expected(&[(id, id, -1), (id, id, 0), (id, id, 1), (id, id, 2)])
    );
    let (id, copy) = (moves.id.as_str(), copy.as_str());
    assert_eq!(
        traces(&[id, copy]),
        expected(&[(id, id, -1), (id, id, 0), (copy, id, 1), (copy, copy, 2)])
    );
    let id = stops.id.as_str();
    let of_stops = traces(&[id]);
    assert_eq!(
        of_stops[..6],
        expected(&[(id, id, -1), (id, id, 0), (id, id, 1)])
    );
    daemon.stop();
}

#[test]
fn a_tracer_that_fails_is_logged_and_fails_a_vcon_only_where_it_is_told_to() {
    for (fails_vcon, index) in [(false, -1), (false, 0), (true, -1), (true, 0)] {
        let (redis, deployment) = (Redis::plain(), Deployment::new());
        let mut config = chain(&[("marks", bare("links.marks"))], &[]);
        let options = json!({"fails_at": index, "dlq_vcon_on_error": fails_vcon});
        config["tracers"] = json!({"audit": {"module": "tracers.audit", "options": options}});
        let daemon = conserver(&redis, &deployment, &config).start();
        let one = sample("plain");
        submit(&redis, "default", std::slice::from_ref(&one));
        let (list, other) = if fails_vcon {
            ("DLQ:default", "done")
        } else {
            ("done", "DLQ:default")
        };
        wait_until(&format!("it is in {list}"), PATIENCE, || {
            redis.length(list) == 1
        });
        assert_eq!(redis.length(other), 0);
        let words = format!("RuntimeError: no audit at {index}");
        if fails_vcon {
            let shown = daemon.conserver().run(&["dlq", "show", &one.id]).output();
            assert!(shown.contains(&words) && shown.contains("audit"), "{shown}");
        }
        let log = daemon.log();
        let told = log
            .lines()
            .any(|line| line.contains(&words) && line.contains(&one.id));
        assert!(told, "{words}: {log}");
        let calls = redis.calls();
        let worked = calls.iter().any(|call| call.call == "links.marks.run");
        assert_eq!(worked, !fails_vcon, "{:?}", names(&calls));
        daemon.stop();
    }
}
