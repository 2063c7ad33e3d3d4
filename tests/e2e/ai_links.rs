//! The links that ask language models, and the one that posts to Slack, against services that answer well and
//! badly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Asked, Conserver, Daemon, Ledger, PATIENCE, Redis, SERVICE_KEY, Sample, Scripted, Services,
    chain, fresh, submit, wait_until,
};

/// A vCon whose dialogs have these transcripts.
pub(super) fn sample(transcripts: &[&str]) -> Sample {
    let mut sample = Sample::small();
    let analyses = transcripts.iter().enumerate().map(|(dialog, text)| {
        json!({"type": "transcript", "dialog": dialog, "vendor": "deepgram", "encoding": "json",
            "body": {"paragraphs": {"transcript": text}}})
    });
    sample.document["analysis"] = analyses.collect();
    let dialog = json!({"type": "recording", "start": "2024-03-16T16:09:20Z", "parties": [0], "body": "c291bmQ"});
    sample.document["dialog"] = vec![dialog; transcripts.len()].into();
    sample
}

/// The options of an OpenAI-like server, and others.
pub(super) fn openai(services: &Services, others: Value) -> Value {
    let mut options = json!({"OPENAI_API_KEY": "${SERVICE_KEY}", "base_url": services.url("/v1")});
    let members = options.as_object_mut().expect("an object");
    members.extend(others.as_object().expect("an object").clone());
    options
}

pub(super) fn link(module: &str, options: Value) -> Value {
    json!({"module": format!("links.{module}"), "options": options})
}

/// A chain of one link that summarizes.
fn summarizing(services: &Services, others: Value) -> Value {
    let options = openai(services, others);
    chain(&[("summarize", link("analyze", options))], &[])
}

/// Quick to try again.
fn conserver(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .env("SERVICE_KEY", SERVICE_KEY)
        .env("CONSERVER_RETRY_FIRST_MS", "10")
        .env("CONSERVER_RETRY_MAX_MS", "100")
}

fn work(redis: &Redis, samples: &[Sample]) {
    submit(redis, "default", samples);
    Ledger::of(redis, samples).settles();
}

fn document(redis: &Redis, sample: &Sample) -> Value {
    redis.document(&sample.id).expect("a document")
}

/// The bodies of the analyses of a type, in their order.
fn bodies(document: &Value, kind: &str) -> Vec<Value> {
    let analyses = document["analysis"].as_array().expect("analyses");
    let found = analyses.iter().filter(|it| it["type"] == kind);
    found.map(|it| it["body"].clone()).collect()
}

pub(super) fn error(status: u16, code: &str, message: &str) -> Scripted {
    let error = json!({"message": message, "type": "t", "param": null, "code": code});
    Scripted::Status(status, json!({"error": error}))
}

/// Waits until the vCon is a dead letter, and returns why.
fn dead_letter(redis: &Redis, sample: &Sample) -> Value {
    wait_until("it is a dead letter", PATIENCE, || {
        redis.list("DLQ:default").contains(&sample.id)
    });
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &sample.id]);
    serde_json::from_str(&reason).expect("JSON")
}

/// What a model says of each of the questions of these links.
fn model(asked: &Asked) -> String {
    let question = asked.question();
    let reply = if question.starts_with("Question: Is anybody angry?") {
        r#"{"applies": true}"#
    } else if question.starts_with("Label") {
        r#"{"labels": ["größe", "billing"]}"#
    } else if question.starts_with("Did both") {
        "true"
    } else if question.starts_with("All of it") {
        r#"{"mood": {"score": 0.5}}"#
    } else {
        "NEEDS REVIEW: Zoë rief an, 漢字 😀"
    };
    reply.to_owned()
}

#[test]
fn each_link_leaves_its_result_and_a_second_pass_asks_for_nothing() {
    let (redis, services) = (Redis::plain(), Services::thinking(model));
    let links = [
        (
            "summarize",
            link(
                "analyze",
                openai(
                    &services,
                    json!({"prompt": "Sum up", "analysis_type": "customer_frustration"}),
                ),
            ),
        ),
        (
            "label",
            link(
                "analyze_and_label",
                openai(&services, json!({"prompt": "Label as JSON"})),
            ),
        ),
        (
            "angry",
            link(
                "check_and_tag",
                openai(
                    &services,
                    json!({"tag_name": "mood", "tag_value": "angry",
                "evaluation_question": "Is anybody angry?",
                "source": {"text_location": "body.paragraphs.transcript"}}),
                ),
            ),
        ),
        (
            "engaged",
            link("detect_engagement", openai(&services, json!({}))),
        ),
        (
            "whole",
            link(
                "analyze_vcon",
                openai(
                    &services,
                    json!({"prompt": "All of it", "system_prompt": "JSON, please"}),
                ),
            ),
        ),
        (
            "slack",
            link(
                "post_analysis_to_slack",
                json!({"token": "${SERVICE_KEY}", "api_url": services.url("/api"),
                "default_channel_name": "alerts", "url": "https://portal.example.org/{vcon_id}"}),
            ),
        ),
    ];
    let daemon = conserver(&redis, &chain(&links, &[])).start();
    let samples = [sample(&["Grüß Gott, 你好"])];
    work(&redis, &samples);

    let found = document(&redis, &samples[0]);
    let analysis = |kind: &str, body: Value, encoding: &str, schema: Value| {
        json!({"type": kind, "dialog": 0, "vendor": "openai", "body": body, "encoding": encoding,
            "vendor_schema": schema})
    };
    let engaged = found["analysis"][4]["vendor_schema"]["prompt"].clone();
    let mut summary = analysis(
        "customer_frustration",
        json!("NEEDS REVIEW: Zoë rief an, 漢字 😀"),
        "none",
        json!({"model": "gpt-3.5-turbo-16k", "prompt": "Sum up"}),
    );
    summary["was_posted_to_slack"] = json!(true);
    let expected = json!([
        samples[0].document["analysis"][0],
        summary,
        analysis(
            "labeled_analysis",
            json!(r#"{"labels": ["größe", "billing"]}"#),
            "json",
            json!({"model": "gpt-4-turbo", "prompt": "Label as JSON"}),
        ),
        analysis(
            "tag_evaluation",
            json!({"link_name": "angry", "tag": "mood:angry", "applies": true}),
            "json",
            json!({"model": "gpt-5", "evaluation_question": "Is anybody angry?"}),
        ),
        analysis(
            "engagement_analysis",
            json!("true"),
            "none",
            json!({"model": "gpt-4.1", "prompt": engaged, "is_engaged": "true"}),
        ),
        analysis(
            "json_analysis",
            json!({"mood": {"score": 0.5}}),
            "json",
            json!({"model": "gpt-3.5-turbo-16k", "prompt": "All of it", "system_prompt": "JSON, please"}),
        ),
    ]);
    assert_eq!(found["analysis"], expected);
    let tags =
        r#"["checked:checked","größe:größe","billing:billing","mood:angry","engagement:true"]"#;
    assert_eq!(
        found["attachments"],
        json!([{"purpose": "tags", "body": tags, "encoding": "json"}])
    );
    assert_eq!(found["dialog"], samples[0].document["dialog"]);

    let requests = services.requests();
    let lines: Vec<&str> = requests.iter().map(Asked::line).collect();
    let chat = "post /v1/chat/completions";
    let expected = [
        chat,
        chat,
        chat,
        "post /v1/responses",
        chat,
        "post /api/chat.postmessage",
    ];
    assert_eq!(lines, expected);
    assert_eq!(requests[0].question(), "Sum up\n\nGrüß Gott, 你好");
    assert!(
        !requests[4].question().contains("c291bmQ"),
        "a dialog's body"
    );
    let message = &requests[5].body;
    assert_eq!(message["channel"], "alerts");
    let url = format!("https://portal.example.org/{}", samples[0].id);
    assert_eq!(message["blocks"][2]["accessory"]["url"], json!(url));

    redis.ask::<i64>(&["RPUSH", "default", &samples[0].id]);
    wait_until("it is done again", PATIENCE, || redis.length("done") == 2);
    assert_eq!(services.requests().len(), requests.len());
    assert_eq!(document(&redis, &samples[0]), found);
    shows_no_key(&daemon, &redis, &samples);
}

/// Fails if the key can be seen anywhere.
fn shows_no_key(daemon: &Daemon, redis: &Redis, samples: &[Sample]) {
    let shown = daemon.conserver().run(&["config", "show"]).output();
    let dead = daemon.conserver().run(&["dlq", "list"]).output();
    let reasons: Vec<String> = redis.ask(&["HVALS", "conserver:dlq:default"]);
    let documents = samples.iter().map(|it| document(redis, it).to_string());
    let mut texts = vec![daemon.output(), shown, dead];
    texts.extend(reasons.into_iter().chain(documents));
    for text in texts {
        assert!(!text.contains(SERVICE_KEY), "{text}");
    }
}

#[test]
fn real_vcons_get_their_analyses_and_nothing_else_changes() {
    let (redis, services) = (Redis::plain(), Services::thinking(model));
    let source = json!({"text_location": "body"});
    let angry = json!({"tag_name": "mood", "tag_value": "angry",
        "evaluation_question": "Is anybody angry?", "source": source});
    let links = [
        (
            "summarize",
            link(
                "analyze",
                openai(
                    &services,
                    json!({"source": source, "analysis_type": "digest"}),
                ),
            ),
        ),
        ("angry", link("check_and_tag", openai(&services, angry))),
    ];
    let mut config = chain(&links, &[]);
    config["chains"]["plain"] = json!({
        "links": ["tagger"], "storages": [], "ingress_lists": ["plain"], "egress_lists": ["plain_done"],
    });
    let _daemon = conserver(&redis, &config).lanes(4).start();
    let samples = fresh(20);
    let copies: Vec<Sample> = samples
        .iter()
        .map(|it| Sample::of(it.document.clone()))
        .collect();
    submit(&redis, "plain", &copies);
    wait_until("the others are done", PATIENCE, || {
        redis.length("plain_done") == copies.len()
    });
    work(&redis, &samples);
    let mut asked = 0;
    for (sample, copy) in samples.iter().zip(&copies) {
        let (mut found, mut plain) = (document(&redis, sample), document(&redis, copy));
        plain["uuid"] = found["uuid"].clone();
        let analyses = sample.document["analysis"].as_array();
        let mut analyses = analyses.into_iter().flatten();
        let Some(transcript) = analyses.find(|it| it["type"] == "transcript") else {
            assert_eq!(found, plain);
            continue;
        };
        let dialog = &transcript["dialog"];
        asked += 2;
        let analyses = found["analysis"].as_array_mut().expect("analyses");
        let evaluation = analyses.pop().expect("an evaluation");
        let body = json!({"link_name": "angry", "tag": "mood:angry", "applies": true});
        assert_eq!(
            (&evaluation["dialog"], &evaluation["body"]),
            (dialog, &body)
        );
        let summary = analyses.pop().expect("a summary");
        assert_eq!(
            (&summary["type"], &summary["dialog"]),
            (&json!("digest"), dialog)
        );
        let tags = |document: &mut Value| {
            let attachments = document["attachments"].as_array_mut().expect("attachments");
            let at = attachments.iter().position(|it| it["purpose"] == "tags");
            attachments.remove(at.expect("tags"))["body"].clone()
        };
        let before = tags(&mut plain)
            .as_str()
            .expect("text")
            .replace(']', ",\"mood:angry\"]");
        assert_eq!(tags(&mut found), before);
        assert_eq!(found, plain);
    }
    assert_eq!(services.requests().len(), asked);
    assert!(asked > 0);
}

#[test]
fn azure_and_litellm_are_asked_in_their_own_ways() {
    let (redis, services) = (Redis::plain(), Services::saying("true"));
    let azure = json!({"AZURE_OPENAI_ENDPOINT": services.url("/"), "AZURE_OPENAI_API_KEY": "${SERVICE_KEY}",
        "model": "our-gpt"});
    let litellm = json!({"LITELLM_PROXY_URL": services.url("/proxy"), "LITELLM_MASTER_KEY": SERVICE_KEY,
        "analysis_type": "other"});
    let links = [
        ("azure", link("analyze", azure.clone())),
        ("engaged", link("detect_engagement", azure)),
        ("litellm", link("analyze", litellm)),
    ];
    let daemon = conserver(&redis, &chain(&links, &[])).start();
    let samples = [sample(&["hello"])];
    work(&redis, &samples);
    let requests = services.requests();
    let lines: Vec<&str> = requests.iter().map(Asked::line).collect();
    let expected = [
        "post /openai/deployments/our-gpt/chat/completions?api-version=2024-10-21",
        "post /openai/responses?api-version=2024-10-21",
        "post /proxy/chat/completions",
    ];
    assert_eq!(lines, expected);
    let found = document(&redis, &samples[0]);
    let vendors: Vec<&Value> = (1..4).map(|at| &found["analysis"][at]["vendor"]).collect();
    assert_eq!(vendors, ["azure", "azure", "litellm"]);
    shows_no_key(&daemon, &redis, &samples);
}

#[test]
fn what_may_pass_is_tried_again_until_it_has_passed() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let config = summarizing(&services, json!({"timeout": 1}));
    let daemon = conserver(&redis, &config).start();
    for (number, reply) in [
        Scripted::StatusWith(
            429,
            "Retry-After: 1",
            json!({"error": {"code": "rate_limit_exceeded", "message": "slow down"}}),
        ),
        Scripted::StatusWith(503, "Retry-After: 0", json!("")),
        error(500, "server_error", "oops"),
        error(408, "timeout", "late"),
        Scripted::CutBeforeHead,
        Scripted::CutInHead,
        Scripted::CutInBody,
        Scripted::Late(Duration::from_millis(1500)),
    ]
    .into_iter()
    .enumerate()
    {
        let before = services.requests().len();
        services.script([reply]);
        let sample = sample(&["hello"]);
        submit(&redis, "default", std::slice::from_ref(&sample));
        wait_until("it is done", PATIENCE, || {
            redis.length("done") == number + 1
        });
        assert_eq!(
            bodies(&document(&redis, &sample), "summary"),
            ["fine"],
            "{number}"
        );
        assert_eq!(services.requests().len(), before + 2, "{number}");
    }
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(!daemon.output().contains(SERVICE_KEY));
}

#[test]
fn a_good_answer_that_cannot_be_used_is_paid_for_once() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let _daemon = conserver(&redis, &summarizing(&services, json!({}))).start();
    let before = services.requests().len();
    services.script([Scripted::Body("<html>a proxy</html>")]);
    let sample = sample(&["hello"]);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let letter = dead_letter(&redis, &sample);
    let error = letter["error"].as_str().unwrap_or_default();
    assert!(error.contains("not JSON"), "{error}");
    assert_eq!(services.requests().len(), before + 1);
}

#[test]
fn a_deployment_that_is_refused_waits_and_the_reason_is_shown() {
    for (reply, reason) in [
        (
            error(
                401,
                "invalid_api_key",
                "Incorrect API key provided: sk-te****ssel",
            ),
            "401 Unauthorized: Incorrect API key provided: ***",
        ),
        (
            error(429, "insufficient_quota", "You exceeded your current quota"),
            "You exceeded your current quota",
        ),
        (
            error(404, "model_not_found", "The model does not exist"),
            "The model does not exist",
        ),
        (
            error(403, "forbidden", "no access"),
            "403 Forbidden: no access",
        ),
    ] {
        let (redis, services) = (Redis::plain(), Services::saying("fine"));
        services.script(vec![reply; 4]);
        let config = summarizing(&services, json!({}));
        let daemon = conserver(&redis, &config)
            .env("CONSERVER_RETRY_ATTEMPTS", "2")
            .start();
        let samples = [sample(&["hello"]), sample(&["hello"])];
        work(&redis, &samples);
        assert!(daemon.log().contains(reason), "{}", daemon.log());
        for sample in &samples {
            assert_eq!(bodies(&document(&redis, sample), "summary"), ["fine"]);
        }
        assert_eq!(services.requests().len(), 6);
        shows_no_key(&daemon, &redis, &samples);
    }
}

/// An error as LiteLLM's proxy gives it: the code is the status.
fn litellm_error(status: u16, message: &str) -> Value {
    let code = status.to_string();
    json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": code}})
}

#[test]
fn what_litellm_says_of_the_deployment_holds_the_chain_until_it_is_mended() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let options = json!({"LITELLM_PROXY_URL": services.url("/proxy"), "LITELLM_MASTER_KEY": "${SERVICE_KEY}",
        "model": "nosuchmodel"});
    let config = chain(&[("summarize", link("analyze", options))], &[]);
    let said = "/chat/completions: Invalid model name passed in model=nosuchmodel. Call `/v1/models` to view \
                available models for your key.";
    let error = Scripted::Status(400, litellm_error(400, said));
    services.script(vec![error; 1000]);
    let daemon = conserver(&redis, &config).workers(1).start();
    // More than those that would make it a refusal.
    let samples: Vec<Sample> = (0..5).map(|_| sample(&["hello"])).collect();
    submit(&redis, "default", &samples);
    wait_until("the chain is on hold", PATIENCE, || {
        daemon.status().unwrap_or_default()["holds"][0]["denied"] == true
    });
    let shown = daemon.conserver().run(&["status"]).stdout;
    let what =
        "400 Bad Request: /chat/completions: Invalid model name passed in model=nosuchmodel.";
    assert!(
        shown.contains("On hold: link summarize denies access") && shown.contains(what),
        "{shown}"
    );
    assert!(!shown.contains("(400)"), "{shown}");
    services.mend();
    Ledger::of(&redis, &samples).settles();
    for sample in &samples {
        assert_eq!(bodies(&document(&redis, sample), "summary"), ["fine"]);
    }
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
    assert_eq!(daemon.count_in_log("went to DLQ"), 0, "{}", daemon.log());
    shows_no_key(&daemon, &redis, &samples);
}

#[test]
fn a_server_that_comes_back_and_refuses_the_key_is_said_to_refuse_it() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let daemon = conserver(&redis, &summarizing(&services, json!({}))).start();
    let holds = |what: &str, is_so: &dyn Fn(&Value) -> bool| {
        wait_until(what, PATIENCE, || {
            is_so(&daemon.status().unwrap_or_default()["holds"][0])
        });
    };
    services.script_all(&error(500, "server_error", "out of order"));
    let samples = [sample(&["hello"]), sample(&["hello"])];
    submit(&redis, "default", &samples);
    holds("it is away", &|hold| {
        hold["denied"] == false && hold["failing"] == false
    });
    services.script_all(&error(401, "invalid_api_key", "Incorrect API key"));
    holds("it denies", &|hold| {
        let reason = hold["error"].as_str().unwrap_or_default();
        hold["denied"] == true && reason.contains("Incorrect API key")
    });
    daemon.wait_for_log("link summarize denies access", PATIENCE);
    services.mend();
    Ledger::of(&redis, &samples).settles();
    for sample in &samples {
        assert_eq!(bodies(&document(&redis, sample), "summary"), ["fine"]);
    }
    assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new());
}

#[test]
fn the_time_that_a_provider_behind_litellm_asks_for_is_waited_for() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let _daemon = conserver(&redis, &summarizing(&services, json!({}))).start();
    for status in [429, 503] {
        let body = litellm_error(
            status,
            "litellm.RateLimitError: OpenAIException - slow down",
        );
        services.script([Scripted::StatusWith(
            status,
            "llm_provider-retry-after: 2",
            body,
        )]);
        let before = services.requests().len();
        let asked = |count: usize| {
            wait_until("it is asked", PATIENCE, || {
                services.requests().len() == before + count
            });
            Instant::now()
        };
        submit(&redis, "default", &[sample(&["hello"])]);
        let first = asked(1);
        let wait = asked(2) - first;
        assert!(wait > Duration::from_millis(1500), "{status}: {wait:?}");
    }
    wait_until("both are done", PATIENCE, || redis.length("done") == 2);
}

#[test]
fn a_dialog_that_is_refused_makes_a_dead_letter_and_the_others_keep_their_results() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let daemon = conserver(&redis, &summarizing(&services, json!({}))).start();
    for (reply, reason) in [
        (
            error(400, "context_length_exceeded", "too many tokens"),
            "too many tokens",
        ),
        (error(413, "x", "too large"), "too large"),
        (error(400, "content_filter", "filtered"), "filtered"),
        (
            Scripted::Status(
                200,
                json!({"choices": [{"message": {"content": null, "refusal": "I will not"}}]}),
            ),
            "refuses to answer",
        ),
        (
            error(400, "invalid_value", "no such thing"),
            "no such thing",
        ),
    ] {
        services.script([Scripted::Says("first".to_owned()), reply]);
        let sample = sample(&["one", "two", "three"]);
        submit(&redis, "default", std::slice::from_ref(&sample));
        let letter = dead_letter(&redis, &sample);
        let error = letter["error"].as_str().unwrap_or_default();
        assert!(
            error.starts_with("dialog 1: ") && error.contains(reason),
            "{letter}"
        );
        assert!(
            letter["stage"].to_string().contains("summarize"),
            "{letter}"
        );
        assert_eq!(
            bodies(&document(&redis, &sample), "summary"),
            ["first", "fine"]
        );
        shows_no_key(&daemon, &redis, &[sample]);
    }
}

#[test]
fn a_dialog_that_was_refused_is_not_asked_about_again_after_a_wait_for_the_budget() {
    let (redis, services) = (Redis::plain(), Services::saying("fine"));
    let mut config = summarizing(&services, json!({}));
    config["links"]["summarize"]["limit"] = json!({"rate": "2/s", "burst": 1});
    let daemon = conserver(&redis, &config).workers(1).start();
    services.script([error(400, "content_filter", "filtered")]);
    let sample = sample(&["one", "two"]);
    submit(&redis, "default", std::slice::from_ref(&sample));
    let letter = dead_letter(&redis, &sample);
    let why = letter["error"].as_str().unwrap_or_default();
    assert!(why.starts_with("dialog 0: "), "{letter}");
    let asked = || -> Vec<String> {
        let requests = services.requests();
        requests
            .iter()
            .map(|it| it.question().trim().to_owned())
            .collect()
    };
    assert_eq!(asked(), ["one", "two"]);
    // Whoever retries it wants it tried again.
    daemon.conserver().run(&["dlq", "retry", "default"]);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(asked(), ["one", "two", "one"]);
    daemon.stop();
}

#[test]
fn a_worker_that_is_killed_in_a_request_pays_for_that_one_alone_again() {
    let (redis, services) = (
        Redis::plain(),
        Services::thinking(|asked| asked.question().to_owned()),
    );
    let mut config = summarizing(&services, json!({}));
    config["chains"]["main"]["links"] = json!(["summarize"]);
    let daemon = conserver(&redis, &config).start();
    let late = Scripted::Late(Duration::from_secs(3));
    services.script([Scripted::Says("first".to_owned()), late]);
    let samples = [sample(&["one", "two", "three"])];
    submit(&redis, "default", &samples);
    wait_until("the second dialog is asked about", PATIENCE, || {
        services.requests().len() == 2
    });
    let pid = daemon.workers()[&1];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
        .expect("it runs");
    Ledger::of(&redis, &samples).settles();
    let requests = services.requests();
    let questions: Vec<&str> = requests.iter().map(|it| it.question().trim()).collect();
    assert_eq!(questions, ["one", "two", "two", "three"]);
    let found = bodies(&document(&redis, &samples[0]), "summary");
    assert_eq!(found, ["first", "\n\ntwo", "\n\nthree"]);
}

#[test]
fn slack_gets_each_message_once_whatever_fails_between() {
    let (redis, services) = (Redis::plain(), Services::saying(""));
    let options = json!({"token": "${SERVICE_KEY}", "api_url": services.url("/api"), "timeout": 1,
        "default_channel_name": "alerts", "only_if": {"analysis_type": "summary", "includes": "REVIEW"}});
    let links = [("slack", link("post_analysis_to_slack", options))];
    let daemon = conserver(&redis, &chain(&links, &[])).start();
    let mut sample = Sample::small();
    sample.document["analysis"] = json!([
        {"type": "summary", "dialog": 0, "vendor": "v", "body": "REVIEW this", "encoding": "none"},
        {"type": "summary", "dialog": 1, "vendor": "v", "body": "all is well", "encoding": "none"}]);
    sample.document["attachments"] = json!([
        {"purpose": "strolid_dealer", "encoding": "json", "body": "{\"team\": {\"name\": \"Blue Birds\"}}"}]);
    let says = |code: &str| Scripted::Status(200, json!({"ok": false, "error": code}));
    services.script([
        Scripted::StatusWith(
            429,
            "Retry-After: 1",
            json!({"ok": false, "error": "ratelimited"}),
        ),
        Scripted::Says(String::new()),
        says("internal_error"),
        says("invalid_auth"),
    ]);
    let samples = [sample];
    work(&redis, &samples);
    let requests = services.requests();
    let channels: Vec<&str> = requests
        .iter()
        .filter_map(|it| it.body["channel"].as_str())
        .collect();
    let team = "team-blue-alerts";
    assert_eq!(channels, ["alerts", "alerts", team, team, team]);
    let found = document(&redis, &samples[0]);
    assert_eq!(found["analysis"][0]["was_posted_to_slack"], true);
    assert_eq!(found["analysis"][1].get("was_posted_to_slack"), None);
    shows_no_key(&daemon, &redis, &samples);

    services.script([Scripted::Says(String::new()), says("channel_not_found")]);
    let other = Sample::of(samples[0].document.clone());
    submit(&redis, "default", std::slice::from_ref(&other));
    let letter = dead_letter(&redis, &other);
    let error = letter["error"].as_str().unwrap_or_default();
    assert!(
        error.ends_with("Slack says channel_not_found of channel team-blue-alerts"),
        "{letter}"
    );
    let found = document(&redis, &other);
    assert_eq!(
        found["analysis"][0]["was_posted_to_slack"],
        json!(["alerts"])
    );
}

#[test]
fn options_that_are_missing_are_named_before_anything_starts() {
    let redis = Redis::plain();
    let links = [
        (
            "one",
            link("analyze", json!({"AZURE_OPENAI_API_KEY": SERVICE_KEY})),
        ),
        (
            "two",
            link("check_and_tag", json!({"api_key": SERVICE_KEY})),
        ),
        ("three", link("post_analysis_to_slack", json!({}))),
    ];
    let finished = conserver(&redis, &chain(&links, &[])).run(&["check", "--offline"]);
    assert_eq!(finished.code, 78, "{}", finished.output());
    for text in [
        "links.one.options.OPENAI_API_KEY: is required, as in",
        "links.one.options.AZURE_OPENAI_API_KEY: has no effect without `AZURE_OPENAI_ENDPOINT`",
        "links.two.options.tag_name: is required",
        "links.two.options.evaluation_question: is required",
        "links.three.options.token: is required",
        "links.three.options.default_channel_name: is required",
    ] {
        assert!(
            finished.output().contains(text),
            "{text}: {}",
            finished.output()
        );
    }
    assert!(!finished.output().contains(SERVICE_KEY));
}
