//! `links.transcribe`, against servers that answer well and badly.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Heard, Ledger, PATIENCE, Redis, SPEECH_KEY, Sample, Say, Speech, chain, recording,
    run, said, submit, wait_until,
};

/// Each vendor with its options.
fn vendors(speech: &Speech) -> [(&'static str, Value); 4] {
    let url = |path: &str| format!("{}{path}", speech.url());
    [
        (
            "deepgram",
            json!({"DEEPGRAM_KEY": SPEECH_KEY, "base_url": url(""),
                "api": {"model": "nova-2", "smart_format": true, "keywords": ["Grüße", "b c"]}}),
        ),
        (
            "openai",
            json!({"OPENAI_API_KEY": SPEECH_KEY, "base_url": url("/v1"), "language": "de", "temperature": 0.5}),
        ),
        (
            "groq",
            json!({"API_KEY": SPEECH_KEY, "base_url": url("/groq/openai/v1")}),
        ),
        (
            "hugging_face",
            json!({"API_KEY": SPEECH_KEY, "API_URL": url("/hf")}),
        ),
    ]
}

fn link(vendor: &str, options: &Value) -> (&'static str, Value) {
    let options = json!({"vendor": vendor, "vendor_options": options, "allow_private_urls": true,
        "timeout": 2, "fetch_timeout": 30});
    (
        "transcribe",
        json!({"module": "links.transcribe", "options": options}),
    )
}

/// A daemon with one link of this vendor, which does not wait long between attempts.
fn daemon(redis: &Redis, speech: &Speech, vendor: &str) -> Conserver {
    let all = vendors(speech);
    let (_, options) = all
        .iter()
        .find(|(name, _)| *name == vendor)
        .expect("a vendor");
    configured(redis, &chain(&[link(vendor, options)], &[]))
}

fn configured(redis: &Redis, config: &Value) -> Conserver {
    Conserver::with(redis)
        .config(config)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("CONSERVER_RETRY_MAX_MS", "20")
}

fn sample(dialog: Value) -> Sample {
    let mut document = Sample::small().document;
    document["dialog"] = dialog;
    Sample::of(document)
}

fn inline(words: &str) -> Value {
    let body = URL_SAFE_NO_PAD.encode(recording(words));
    json!({"type": "recording", "body": body, "encoding": "base64url", "mimetype": "audio/x-wav",
        "filename": "Gespräch 1.wav", "duration": 90})
}

fn by_url(url: &str) -> Value {
    json!({"type": "recording", "url": url, "duration": 90.5})
}

/// The transcripts in a document, by their dialogs.
fn transcripts(redis: &Redis, sample: &Sample) -> Vec<(usize, Value)> {
    let document = redis.document(&sample.id).expect("a document");
    let analyses = document["analysis"].as_array().cloned().unwrap_or_default();
    let of = |analysis: Value| {
        assert_eq!(analysis["type"], "transcript", "{analysis}");
        (
            analysis["dialog"].as_u64().expect("a dialog") as usize,
            analysis,
        )
    };
    analyses.into_iter().map(of).collect()
}

/// The dialogs that have a transcript.
fn transcribed(redis: &Redis, sample: &Sample) -> Vec<usize> {
    transcripts(redis, sample)
        .into_iter()
        .map(|(dialog, _)| dialog)
        .collect()
}

/// Waits until a vCon is a dead letter, and returns why.
fn reason(redis: &Redis, sample: &Sample) -> String {
    wait_until("it is a dead letter", PATIENCE, || {
        redis.list("DLQ:default").contains(&sample.id)
    });
    redis.ask(&["HGET", "conserver:dlq:default", &sample.id])
}

fn texts(heard: &[Heard]) -> Vec<&str> {
    heard.iter().map(|heard| heard.text.as_str()).collect()
}

#[test]
fn each_vendor_transcribes_what_stands_in_the_vcon_and_what_a_url_leads_to() {
    for (vendor, name, field) in [
        ("deepgram", "deepgram", "transcript"),
        ("openai", "openai", "text"),
        ("groq", "groq_whisper", "text"),
        ("hugging_face", "hugging_face_whisper", "text"),
    ] {
        let (redis, speech) = (Redis::plain(), Speech::new());
        let daemon = daemon(&redis, &speech, vendor).start();
        let url = speech.file("eins.wav", recording("Grüße 漢字 😀"));
        let samples = [sample(json!([
            by_url(&format!("{url}?token=geheim")),
            inline("zweitens \"é\"")
        ]))];
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        assert_eq!(speech.faults(), [""; 0], "{vendor}");

        let heard = speech.heard();
        // Deepgram fetches by itself.
        let first = if vendor == "deepgram" {
            format!("{url}?token=geheim")
        } else {
            "Grüße 漢字 😀".to_owned()
        };
        assert_eq!(texts(&heard), [&*first, "zweitens \"é\""], "{vendor}");
        assert!(heard.iter().all(|it| it.vendor == vendor), "{heard:?}");
        let found = transcripts(&redis, &samples[0]);
        assert_eq!(found.len(), 2, "{vendor}: {found:?}");
        for ((dialog, analysis), text) in found.iter().zip([&*first, "zweitens \"é\""]) {
            assert_eq!(
                (&analysis["vendor"], &analysis["encoding"]),
                (&json!(name), &json!("json"))
            );
            assert_eq!(analysis["body"][field], text, "{vendor} {dialog}");
            let schema = &analysis["vendor_schema"]["opts"];
            assert!(schema["minimum_duration"].is_number(), "{schema}");
            assert!(!analysis.to_string().contains(SPEECH_KEY), "{analysis}");
        }
        let second = &heard[1];
        match vendor {
            "deepgram" => {
                let query = [
                    ("keywords", "Grüße"),
                    ("keywords", "b c"),
                    ("model", "nova-2"),
                    ("smart_format", "true"),
                ];
                let mut fields = second.fields.clone();
                fields.sort();
                assert_eq!(
                    fields,
                    query.map(|(name, value)| (name.to_owned(), value.to_owned()))
                );
                assert_eq!(second.media_type, "audio/x-wav");
                assert_eq!(found[0].1["body"]["detected_language"], "de");
                assert_eq!(found[0].1["body"]["paragraphs"]["transcript"], json!(first));
            }
            "hugging_face" => {}
            _ => {
                assert_eq!(
                    (&*second.file_name, &*second.media_type),
                    ("Gespräch_1.wav", "audio/x-wav")
                );
                assert_eq!(
                    (&*heard[0].file_name, &*heard[0].media_type),
                    ("eins.wav", "audio/wav")
                );
                let value = |name: &str| {
                    let mut fields = second.fields.iter();
                    fields
                        .find(|(it, _)| it == name)
                        .map_or("", |(_, value)| value.as_str())
                };
                assert_eq!(value("response_format"), "json");
                match vendor {
                    "openai" => assert_eq!(
                        ["model", "language", "temperature"].map(value),
                        ["gpt-4o-transcribe", "de", "0.5"]
                    ),
                    _ => assert_eq!(value("model"), "whisper-large-v3-turbo"),
                }
                assert!(found[0].1["body"]["usage"].is_object(), "the whole answer");
            }
        }
        let log = daemon.output();
        assert!(
            !log.contains(SPEECH_KEY) && !log.contains("geheim"),
            "{log}"
        );
        daemon.stop();
    }
}

#[test]
fn older_names_and_other_servers_of_openai_take_their_options() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let module = |module: &str, options: Value| json!({"module": module, "options": options});
    let azure = format!("{}/azure", speech.url());
    let links = [
        (
            "dg",
            module("links.deepgram_link", vendors(&speech)[0].1.clone()),
        ),
        (
            "oa",
            module(
                "links.openai_transcribe",
                json!({"AZURE_OPENAI_ENDPOINT": azure,
            "AZURE_OPENAI_API_KEY": SPEECH_KEY, "model": "whisper-1"}),
            ),
        ),
        (
            "li",
            module(
                "links.openai_transcribe",
                json!({"LITELLM_PROXY_URL": format!("{}/v1", speech.url()),
            "LITELLM_MASTER_KEY": SPEECH_KEY, "OPENAI_API_KEY": "another"}),
            ),
        ),
        (
            "gq",
            module(
                "links.groq_whisper",
                json!({"vendor_options": vendors(&speech)[2].1}),
            ),
        ),
        (
            "hf",
            module("links.hugging_face_whisper", vendors(&speech)[3].1.clone()),
        ),
    ];
    let mut config = chain(&links, &[]);
    let mut chains = serde_json::Map::new();
    for (name, _) in &links {
        let one = json!({"links": [name], "ingress_lists": [name], "egress_lists": ["done"]});
        chains.insert((*name).to_owned(), one);
    }
    config["chains"] = chains.into();
    let daemon = configured(&redis, &config).start();
    let samples: Vec<Sample> = links
        .iter()
        .map(|(name, _)| sample(json!([inline(name)])))
        .collect();
    for ((name, _), sample) in links.iter().zip(&samples) {
        submit(&redis, name, std::slice::from_ref(sample));
    }
    wait_until("all are done", PATIENCE, || {
        redis.length("done") == links.len()
    });
    assert_eq!(speech.faults(), [""; 0]);
    let mut by: Vec<(&str, String)> = speech
        .heard()
        .into_iter()
        .map(|it| (it.vendor, it.text))
        .collect();
    by.sort();
    let expected = [
        ("azure", "oa"),
        ("deepgram", "dg"),
        ("groq", "gq"),
        ("hugging_face", "hf"),
        ("openai", "li"),
    ];
    assert_eq!(by, expected.map(|(vendor, text)| (vendor, text.to_owned())));
    daemon.stop();
}

#[test]
fn what_may_pass_is_tried_again() {
    let answers = [
        Say::Status(500, "", json!({"error": {"message": "oops"}})),
        Say::Status(408, "", json!({})),
        Say::Status(
            429,
            "Retry-After: 0\r\n",
            json!({"error": {"message": "slow down"}}),
        ),
        Say::Status(
            503,
            "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            json!("loading"),
        ),
        Say::CutBefore,
        Say::CutAfter,
        Say::CutInHead,
        Say::CutInBody,
        Say::Slowly(Duration::from_secs(3)),
    ];
    let (redis, speech) = (Redis::plain(), Speech::saying(&answers));
    let daemon = daemon(&redis, &speech, "openai")
        .env("CONSERVER_RETRY_ATTEMPTS", "100")
        .start();
    let samples = [sample(json!([inline("endlich")]))];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.faults(), [""; 0]);
    // What was cut off before the body was read was not heard.
    assert_eq!(speech.heard().len(), answers.len());
    assert_eq!(
        transcripts(&redis, &samples[0])[0].1["body"]["text"],
        "endlich"
    );
    daemon.stop();
}

#[test]
fn a_refused_deployment_is_waited_out_and_the_reason_shown_without_the_key() {
    let error = |message: &str, code: &str| json!({"error": {"message": message, "code": code}});
    let answers = [
        Say::Status(
            401,
            "",
            error(
                &format!("Incorrect API key provided: {SPEECH_KEY}."),
                "invalid_api_key",
            ),
        ),
        Say::Status(402, "", error("no credit left", "x")),
        Say::Status(403, "", error("not in your country", "x")),
        Say::Status(404, "", error("no such model \u{1b}[2J", "model_not_found")),
        Say::Status(
            429,
            "",
            error("You exceeded your current quota", "insufficient_quota"),
        ),
    ];
    let (redis, speech) = (Redis::plain(), Speech::saying(&answers));
    let daemon = daemon(&redis, &speech, "openai")
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    let samples = [sample(json!([inline("endlich")]))];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.heard().len(), answers.len() + 1);
    let log = daemon.output();
    assert!(log.contains("Incorrect API key provided: ***"), "{log}");
    assert!(
        !log.contains(SPEECH_KEY) && !log.contains('\u{1b}'),
        "{log}"
    );
    daemon.stop();
}

#[test]
fn a_good_answer_without_a_transcript_is_paid_for_once() {
    let (redis, speech) = (
        Redis::plain(),
        Speech::saying(&[Say::Body("<html>a portal</html>")]),
    );
    let daemon = daemon(&redis, &speech, "openai").start();
    let one = sample(json!([inline("x")]));
    submit(&redis, "default", std::slice::from_ref(&one));
    let reason = reason(&redis, &one);
    assert!(reason.contains("has no transcript"), "{reason}");
    assert_eq!(speech.heard().len(), 1);
    daemon.stop();
}

#[test]
fn audio_that_is_refused_makes_a_dead_letter() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let daemon = daemon(&redis, &speech, "groq").start();
    let error = |message: &str| json!({"error": {"message": message}});
    for (status, body, why) in [
        (413, error("Request Entity Too Large"), "413"),
        (415, error("no"), "415"),
        (
            400,
            error("could not process file - is it a valid media file?"),
            "could not process file",
        ),
        (400, error("something else"), "something else"),
        (422, error("unprocessable"), "unprocessable"),
    ] {
        speech.say(&[Say::Status(status, "", body)]);
        let one = sample(json!([inline("x")]));
        submit(&redis, "default", std::slice::from_ref(&one));
        let reason = reason(&redis, &one);
        assert!(
            reason.contains("could not transcribe dialog 0") && reason.contains(why),
            "{reason}"
        );
        // Others are taken.
        let good = [sample(json!([inline("y")]))];
        submit(&redis, "default", &good);
        wait_until("the next one is done", PATIENCE, || {
            redis.list("done").contains(&good[0].id)
        });
    }
    assert_eq!(speech.faults(), [""; 0]);
    daemon.stop();
}

#[test]
fn audio_that_cannot_be_had_is_the_fault_of_its_dialog_or_waited_for() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let daemon = daemon(&redis, &speech, "openai").start();
    let url = |path: &str| by_url(&format!("{}{path}", speech.url()));
    speech.file("a.wav", recording("a"));
    for (dialog, why) in [
        (url("/audio/none.wav?x=geheim"), "it answered 404"),
        (url("/redirect/7/a.wav"), "more than 5 redirects"),
        (by_url("ftp://h/x.wav"), "only http and https"),
        (by_url("http://h h/"), "could not fetch"),
        (
            json!({"type": "recording", "body": "!!", "encoding": "base64url"}),
            "its body is not base64url",
        ),
        (
            json!({"type": "recording", "body": "hello", "encoding": "none"}),
            "encoding none",
        ),
    ] {
        let one = sample(json!([dialog]));
        submit(&redis, "default", std::slice::from_ref(&one));
        let reason = reason(&redis, &one);
        assert!(
            reason.contains("dialog 0: ") && reason.contains(why),
            "{why}: {reason}"
        );
        assert!(!reason.contains("geheim"), "{reason}");
    }
    assert_eq!(speech.heard().len(), 0);

    speech.files_say(&[503, 429, 500]);
    let samples = [sample(json!([url("/redirect/3/a.wav")]))];
    submit(&redis, "default", &samples);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(speech.texts(), ["a"]);
    daemon.stop();
}

#[test]
fn no_url_of_a_vcon_leads_to_where_only_this_machine_gets() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let (name, mut link) = link("openai", &vendors(&speech)[1].1);
    link["options"]["allow_private_urls"] = false.into();
    let config = chain(&[(name, link)], &[]);
    let port = speech.url().rsplit(':').next().expect("a port").to_owned();
    let refused = |daemon: &str, urls: &[String]| {
        for url in urls {
            let one = sample(json!([by_url(url)]));
            submit(&redis, "default", std::slice::from_ref(&one));
            let reason = reason(&redis, &one);
            assert!(
                reason.contains("`allow_private_urls: true`"),
                "{daemon} {url}: {reason}"
            );
        }
    };
    let url = speech.file("a.wav", recording("a"));
    let odd = [
        "127.1",
        "2130706433",
        "0x7f.1",
        "localhost",
        "[::ffff:127.0.0.1]",
    ];
    let mut urls: Vec<String> = odd
        .map(|host| format!("http://{host}:{port}/audio/a.wav"))
        .into();
    urls.push(url);
    urls.push("http://169.254.169.254/latest/meta-data/".to_owned());

    let daemon = configured(&redis, &config).start();
    refused("direct", &urls);
    daemon.stop();

    // A proxy looks names up by itself; what it brings is looked at again.
    let daemon = configured(&redis, &config)
        .env("HTTP_PROXY", speech.url())
        .env("NO_PROXY", "127.0.0.1")
        .start();
    urls.push("http://audio.example.org/redirect/inside/a.wav".to_owned());
    urls.push("http://audio.example.org/redirect/cloud/a.wav".to_owned());
    urls.push(format!("http://127.0.0.1:{port}/audio/a.wav"));
    refused("proxy", &urls);
    assert_eq!(
        speech.fetched(),
        ["/redirect/inside/a.wav", "/redirect/cloud/a.wav"]
    );
    assert_eq!(speech.heard().len(), 0);
    let samples = [sample(json!([by_url(
        "http://audio.example.org/audio/a.wav"
    )]))];
    submit(&redis, "default", &samples);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(speech.tunnels(), ["audio.example.org:80"; 3]);
    assert_eq!(speech.texts(), ["a"]);
    daemon.stop();
}

#[test]
fn thirty_megabytes_of_audio_are_sent_whole() {
    for vendor in ["groq", "deepgram", "hugging_face", "openai"] {
        let (redis, speech) = (Redis::plain(), Speech::new());
        let daemon = daemon(&redis, &speech, vendor).start();
        let long = "x".repeat(30 << 20);
        let audio = recording(&long);
        let mut dialog = inline("");
        if vendor == "openai" {
            dialog = by_url(&speech.file("long.wav", audio.clone()));
        } else {
            dialog["body"] = STANDARD.encode(&audio).into();
            dialog["encoding"] = json!("base64");
        }
        let samples = [sample(json!([dialog]))];
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        assert_eq!(speech.faults(), [""; 0]);
        let heard = speech.heard();
        assert_eq!(
            heard.last().map(|it| it.length),
            Some(audio.len()),
            "{vendor}"
        );
        assert_eq!(heard[0].text, format!("{} bytes", 30 << 20));
        daemon.stop();
    }
}

#[test]
fn one_dialog_that_fails_costs_the_others_nothing() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let daemon = daemon(&redis, &speech, "openai").start();
    let refusal = json!({"error": {"message": "Invalid file format", "code": "x"}});
    speech.say(&[Say::Yes, Say::Status(400, "", refusal), Say::Yes]);
    let one = sample(json!([inline("eins"), inline("zwei"), inline("drei")]));
    submit(&redis, "default", std::slice::from_ref(&one));
    let reason = reason(&redis, &one);
    assert!(
        reason.contains("could not transcribe dialog 1: ")
            && reason.contains("Invalid file format"),
        "{reason}"
    );
    assert!(
        !reason.contains("dialog 0") && !reason.contains("dialog 2"),
        "{reason}"
    );
    assert_eq!(speech.texts(), ["eins", "zwei", "drei"]);
    assert_eq!(transcribed(&redis, &one), [0, 2]);

    run(daemon.conserver(), &["dlq", "retry", &one.id], 0);
    wait_until("it is done", PATIENCE, || redis.length("done") == 1);
    assert_eq!(speech.texts(), ["eins", "zwei", "drei", "zwei"]);
    assert_eq!(transcribed(&redis, &one), [0, 2, 1]);
    daemon.stop();
}

#[test]
fn what_was_paid_for_is_kept_when_its_worker_is_killed() {
    let (redis, speech) = (
        Redis::plain(),
        Speech::saying(&[Say::Yes, Say::Yes, Say::Never]),
    );
    let (name, mut link) = link("openai", &vendors(&speech)[1].1);
    link["options"]["timeout"] = 60.into();
    let daemon = configured(&redis, &chain(&[(name, link)], &[])).start();
    let samples = [sample(json!([
        inline("eins"),
        inline("zwei"),
        inline("drei")
    ]))];
    submit(&redis, "default", &samples);
    wait_until("the third is asked for", PATIENCE, || {
        speech.heard().len() == 3
    });
    kill(Pid::from_raw(daemon.workers()[&1]), Signal::SIGKILL).expect("a worker");
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.texts(), ["eins", "zwei", "drei", "drei"]);
    assert_eq!(transcribed(&redis, &samples[0]), [0, 1, 2]);
    daemon.stop();
}

#[test]
fn what_passed_once_is_not_paid_for_again_after_an_outage() {
    let gone = Say::Status(500, "", json!({}));
    let (redis, speech) = (
        Redis::plain(),
        Speech::saying(&[Say::Yes, gone.clone(), gone]),
    );
    let daemon = daemon(&redis, &speech, "deepgram")
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    let samples = [sample(json!([inline("eins"), inline("zwei")]))];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.texts(), ["eins", "zwei", "zwei", "zwei"]);
    daemon.stop();
}

#[test]
fn what_is_short_uncertain_or_transcribed_already_is_passed_over() {
    let (redis, speech) = (
        Redis::plain(),
        Speech::saying(&[Say::Confidence(0.4), Say::Yes]),
    );
    let daemon = daemon(&redis, &speech, "deepgram").start();
    let mut short = inline("short");
    short["duration"] = 59.9.into();
    let mut unknown = inline("unknown");
    unknown
        .as_object_mut()
        .expect("an object")
        .remove("duration");
    let text = json!({"type": "text", "body": "hello"});
    let mut one = sample(json!([
        short,
        text,
        inline("uncertain"),
        unknown,
        inline("there")
    ]));
    one.document["analysis"] =
        json!([{"type": "transcript", "dialog": 4, "vendor": "us", "body": "x"}]);
    let samples = [one];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.texts(), ["uncertain", "unknown"]);
    assert_eq!(transcribed(&redis, &samples[0]), [4, 3]);
    assert!(
        daemon.log().contains("`minimum_confidence` 0.5"),
        "{}",
        daemon.log()
    );
    daemon.stop();
}

#[test]
fn a_key_may_stand_in_a_file_or_variable_and_a_fault_is_told_with_its_line() {
    let (redis, speech) = (Redis::plain(), Speech::new());
    let options = json!({"API_KEY_file": "key", "API_URL": format!("{}/hf", speech.url())});
    let config = chain(&[link("hugging_face", &options)], &[]);
    let conserver = configured(&redis, &config);
    std::fs::write(conserver.folder().join("key"), format!("{SPEECH_KEY}\n")).expect("a file");
    let daemon = conserver.start();
    let samples = [sample(json!([inline("a")]))];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.faults(), [""; 0]);
    daemon.stop();

    let url = format!("{}/v1", speech.url());
    let options = json!({"OPENAI_API_KEY": "${SPEECH}", "base_url": url, "model": "${MODEL}"});
    let daemon = configured(&redis, &chain(&[link("openai", &options)], &[]))
        .env("SPEECH", SPEECH_KEY)
        .env("MODEL", "whisper-1")
        .start();
    let samples = [sample(json!([inline("b")]))];
    submit(&redis, "default", &samples);
    wait_until("both are done", PATIENCE, || redis.length("done") == 2);
    assert_eq!(speech.faults(), [""; 0]);
    assert_eq!(
        speech.heard()[1].fields[0],
        ("model".to_owned(), "whisper-1".to_owned())
    );
    daemon.stop();

    let text = "links:\n  x:\n    module: links.transcribe\n    options:\n      vendor: deepgram\n\
                \x20     vendor_options:\n        api: {callback: 'https://h'}\n\
                chains: {main: {links: [x], ingress_lists: [default]}}\n";
    let finished = run(&Conserver::without_redis().config_text(text), &["run"], 78);
    said(
        &finished,
        &[
            "links.x.options.vendor_options.DEEPGRAM_KEY: is required",
            "vendor_options.api.callback",
        ],
    );
}
