//! What transcription, two questions to a model and Slack make of vCons: each document, in Redis and in a storage,
//! is the one that is written here by hand, field by field.
//!
//! The services answer each request by what is in it, so that a result under a wrong dialog or in a wrong vCon
//! shows.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use crate::harness::{
    Asked, Conserver, Files, Ledger, Redis, SERVICE_KEY, SPEECH_KEY, Sample, Services, Speech,
    chain, fresh, recording, same, submit,
};

const PROMPT: &str = "Sum it up, Zoë";
const QUESTION: &str = "Does the caller ask to be called back?";

/// How one vendor is asked, and what its analyses hold.
struct Vendor {
    options: Value,
    /// Where the text is in its transcripts.
    text_location: &'static str,
    /// The body of the transcript of a recording in which this is said.
    body: fn(&str) -> Value,
    vendor_schema: Value,
    /// Whether it is given URLs, and not what they lead to.
    fetches: bool,
}

fn openai(speech: &Speech) -> Vendor {
    let url = format!("{}/v1", speech.url());
    Vendor {
        options: json!({"vendor": "openai", "allow_private_urls": true, "vendor_options": {
            "OPENAI_API_KEY": SPEECH_KEY, "base_url": url, "minimum_duration": 0}}),
        text_location: "body.text",
        body: |said| json!({"text": said, "usage": {"type": "tokens", "total_tokens": 7}}),
        vendor_schema: json!({"opts": {
            "model": "gpt-4o-transcribe", "base_url": url, "minimum_duration": 0}}),
        fetches: false,
    }
}

fn deepgram(speech: &Speech) -> Vendor {
    let url = format!("{}/", speech.url());
    let api = json!({"model": "nova-2", "smart_format": true});
    Vendor {
        options: json!({"vendor": "deepgram", "allow_private_urls": true, "vendor_options": {"DEEPGRAM_KEY": SPEECH_KEY,
            "base_url": url, "minimum_duration": 0, "api": api}}),
        text_location: "body.paragraphs.transcript",
        body: |said| {
            json!({"transcript": said, "confidence": 0.98, "words": [],
                "paragraphs": {"transcript": said, "paragraphs": []}, "detected_language": "de"})
        },
        vendor_schema: json!({"opts": {
            "minimum_duration": 0, "base_url": url, "api": api}}),
        fetches: true,
    }
}

/// The number of the call that a text speaks of.
fn number(text: &str) -> u32 {
    let rest = text.split_once("nruf-").map(|(_, rest)| rest);
    let digits = rest.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    let number = digits.and_then(|digits| digits.parse().ok());
    number.unwrap_or_else(|| panic!("no call in {text:?}"))
}

/// What the model makes of a call: every other one needs somebody to look at it.
fn summary(number: u32) -> String {
    match number % 2 {
        0 => format!("NEEDS REVIEW: Anruf {number} war laut, 漢字 😀"),
        _ => format!("Anruf {number} war ruhig"),
    }
}

/// Whether the caller wants to be called back.
fn applies(number: u32) -> bool {
    number.is_multiple_of(3)
}

/// The model. Slack's answers have nothing of it.
fn think(asked: &Asked) -> String {
    if asked.line().contains("/api/") {
        return String::new();
    }
    let question = asked.question();
    let number = number(question);
    if question.starts_with(&format!("Question: {QUESTION}")) {
        json!({"applies": applies(number)}).to_string()
    } else {
        assert!(question.starts_with(PROMPT), "{question}");
        summary(number)
    }
}

/// A vCon with what is said in its recordings, by their dialogs.
struct Call {
    sample: Sample,
    said: Vec<(usize, String)>,
}

/// Twenty vCons whose recordings are at `speech` or in the document, and that all links have work with.
fn calls(speech: &Speech, fetches: bool) -> Vec<Call> {
    let mut count = 0;
    let calls = fresh(20).into_iter().map(|mut sample| {
        let document = sample.document.as_object_mut().expect("an object");
        // Nobody would change a vCon with extensions that he does not know.
        for key in ["critical", "must_support"] {
            document.remove(key);
        }
        if let Some(analyses) = list(document, "analysis") {
            let results = ["transcript", "summary", "tag_evaluation"];
            analyses.retain(|it| !results.iter().any(|kind| it["type"] == *kind));
        }
        let dialogs = list(document, "dialog").expect("dialogs");
        if !dialogs.iter().any(|dialog| dialog["type"] == "recording") {
            dialogs[0] =
                json!({"type": "recording", "start": "2024-03-16T16:09:20Z", "parties": [0]});
        }
        let mut said = Vec::new();
        for (index, dialog) in dialogs.iter_mut().enumerate() {
            if dialog["type"] != "recording" {
                continue;
            }
            count += 1;
            let words = format!("Anruf-{count}: Grüße, Zoë 漢字");
            let audio = recording(&words);
            let dialog = dialog.as_object_mut().expect("an object");
            for key in [
                "url",
                "body",
                "encoding",
                "content_hash",
                "signature",
                "alg",
                "mediatype",
            ] {
                dialog.remove(key);
            }
            // The older name, of the older generation.
            dialog.insert("mimetype".to_owned(), "audio/x-wav".into());
            if count % 3 == 0 {
                dialog.insert("body".to_owned(), URL_SAFE_NO_PAD.encode(&audio).into());
                dialog.insert("encoding".to_owned(), "base64url".into());
                said.push((index, words));
            } else {
                let hash = URL_SAFE_NO_PAD.encode(Sha512::digest(&audio));
                dialog.insert("alg".to_owned(), "SHA-512".into());
                dialog.insert("signature".to_owned(), hash.into());
                let url = speech.file(&format!("anruf-{count}.wav"), audio);
                dialog.insert("url".to_owned(), url.clone().into());
                said.push((index, if fetches { url } else { words }));
            }
        }
        Call { sample, said }
    });
    calls.collect()
}

fn list<'a>(document: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    document.get_mut(key)?.as_array_mut()
}

/// What reading and writing makes of a document, whatever the links do.
fn normalised(document: &Value) -> Map<String, Value> {
    let mut document = document.as_object().expect("an object").clone();
    rename(&mut document, &[("appended", "amended")]);
    document.insert("vcon".to_owned(), "0.4.0".into());
    document.retain(|key, value| {
        let is_empty = match key.as_str() {
            "group" => *value == json!([]),
            "redacted" => *value == json!({}),
            _ => false,
        };
        !is_empty
    });
    for section in ["dialog", "analysis", "attachments"] {
        for part in list(&mut document, section).into_iter().flatten() {
            let part = part.as_object_mut().expect("an object");
            let names = [
                ("schema_version", "schema"),
                ("mimetype", "mediatype"),
                ("must_support", "critical"),
            ];
            rename(part, &names);
            if section == "attachments" && !part.contains_key("purpose") {
                rename(part, &[("type", "purpose")]);
            }
            let is_value = |body: &Value| body.is_object() || body.is_array();
            if section != "dialog" && part.get("body").is_some_and(is_value) {
                part.insert("encoding".to_owned(), "json".into());
            } else if part.get("encoding").is_some_and(|it| it == "text") {
                part.insert("encoding".to_owned(), "none".into());
            }
        }
    }
    document
}

/// Where both names are there, the new one wins.
fn rename(members: &mut Map<String, Value>, names: &[(&str, &str)]) {
    for (old, new) in names {
        if let Some(value) = members.remove(*old) {
            members.entry((*new).to_owned()).or_insert(value);
        }
    }
}

/// The document that the chain has to leave, written down by the contract.
fn expected(call: &Call, vendor: &Vendor) -> Value {
    let mut document = normalised(&call.sample.document);
    let analyses = document.entry("analysis").or_insert_with(|| json!([]));
    let analyses = analyses.as_array_mut().expect("a list");
    for (dialog, said) in &call.said {
        analyses.push(json!({
            "type": "transcript", "dialog": dialog, "vendor": vendor.options["vendor"],
            "body": (vendor.body)(said), "encoding": "json",
            "vendor_schema": vendor.vendor_schema,
        }));
    }
    for (dialog, said) in &call.said {
        let mut analysis = json!({
            "type": "summary", "dialog": dialog, "vendor": "openai",
            "body": summary(number(said)), "encoding": "none",
            "vendor_schema": {"model": "gpt-4o-mini", "prompt": PROMPT},
        });
        if summary(number(said)).contains("NEEDS REVIEW") {
            analysis["was_posted_to_slack"] = true.into();
        }
        analyses.push(analysis);
    }
    for (dialog, said) in &call.said {
        analyses.push(json!({
            "type": "tag_evaluation", "dialog": dialog, "vendor": "openai",
            "body": {"link_name": "wants_callback", "tag": "callback:requested",
                "applies": applies(number(said))},
            "encoding": "json",
            "vendor_schema": {"model": "gpt-5", "evaluation_question": QUESTION},
        }));
    }
    let attachments = document.entry("attachments").or_insert_with(|| json!([]));
    let attachments = attachments.as_array_mut().expect("a list");
    let mut tags = vec!["checked:checked"];
    if call.said.iter().any(|(_, said)| applies(number(said))) {
        tags.push("callback:requested");
    }
    match attachments.iter_mut().find(|it| it["purpose"] == "tags") {
        Some(found) => {
            let body = found["body"].as_str().expect("text");
            let mut all: Vec<String> = serde_json::from_str(body).expect("tags");
            let new = tags
                .iter()
                .filter(|tag| !body.contains(&format!("\"{tag}\"")));
            all.extend(new.map(|tag| (*tag).to_owned()));
            found["body"] = json!(all).to_string().into();
        }
        None => attachments.push(json!({
            "purpose": "tags", "body": json!(tags).to_string(), "encoding": "json"})),
    }
    document.into()
}

/// The first path at which a document is not as expected, and what is there.
fn difference(path: &str, expected: &Value, found: &Value) -> Option<String> {
    if same(expected, found) {
        return None;
    }
    let null = Value::Null;
    match (expected, found) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = format!("{path}.{key}");
                match (one.get(key), other.get(key)) {
                    (Some(one), Some(other)) => difference(&path, one, other),
                    (one, other) => Some(format!("{path}: expected {one:?}, found {other:?}")),
                }
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            let items = 0..one.len().max(other.len());
            items.into_iter().find_map(|index| {
                let [one, other] = [one, other].map(|it| it.get(index).unwrap_or(&null));
                difference(&format!("{path}[{index}]"), one, other)
            })
        }
        _ if is_tags(expected, found) => None,
        _ => Some(format!("{path}: expected {expected}, found {found}")),
    }
}

/// Whether both are the JSON text of the same list.
fn is_tags(one: &Value, other: &Value) -> bool {
    let list = |value: &Value| {
        let text = value.as_str().filter(|text| text.starts_with('['))?;
        serde_json::from_str::<Vec<Value>>(text).ok()
    };
    list(one).is_some_and(|one| Some(one) == list(other))
}

fn documents_are_as_written_by_hand(open: fn(&Speech) -> Vendor) {
    let (redis, files) = (Redis::plain(), Files::new());
    let (speech, services) = (Speech::new(), Services::thinking(think));
    let vendor = open(&speech);
    let calls = calls(&speech, vendor.fetches);
    let link = |module: &str, options: Value| json!({"module": format!("links.{module}"), "options": options});
    let source = json!({"analysis_type": "transcript", "text_location": vendor.text_location});
    let links = [
        ("transcribe", link("transcribe", vendor.options.clone())),
        (
            "summarize",
            link(
                "analyze",
                json!({"OPENAI_API_KEY": "${SERVICE_KEY}", "base_url": services.url("/v1"),
                    "prompt": PROMPT, "model": "gpt-4o-mini", "source": source}),
            ),
        ),
        (
            "wants_callback",
            link(
                "check_and_tag",
                json!({"OPENAI_API_KEY": "${SERVICE_KEY}", "base_url": services.url("/v1"),
                    "tag_name": "callback", "tag_value": "requested",
                    "evaluation_question": QUESTION, "source": source}),
            ),
        ),
        (
            "slack",
            link(
                "post_analysis_to_slack",
                json!({"token": "${SERVICE_KEY}", "api_url": services.url("/api"),
                    "default_channel_name": "front-desk",
                    "url": "https://portal.example.org/calls/{vcon_id}",
                    "only_if": {"analysis_type": "summary", "includes": "NEEDS REVIEW"}}),
            ),
        ),
    ];
    let daemon = Conserver::with(&redis)
        .config(&chain(&links, &[("files", files.storage())]))
        .env("SERVICE_KEY", SERVICE_KEY)
        .workers(2)
        .lanes(4)
        .start();
    let samples: Vec<Sample> = calls.iter().map(|call| call.sample.clone()).collect();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(speech.faults(), [""; 0]);

    let stored = files.documents();
    assert_eq!(stored.len(), calls.len());
    let mut posted: Vec<String> = Vec::new();
    let mut recordings = 0;
    for call in &calls {
        let id = &call.sample.id;
        let expected = expected(call, &vendor);
        let in_redis = redis.document(id).expect("a document");
        let (_, in_file) = stored.iter().find(|(it, _)| it == id).expect("a file");
        for (place, found) in [("Redis", &in_redis), ("the file", in_file)] {
            if let Some(difference) = difference("", &expected, found) {
                panic!("{id} in {place} differs at {difference}");
            }
        }
        recordings += call.said.len();
        let summaries = call.said.iter().map(|(_, said)| summary(number(said)));
        posted.extend(summaries.filter(|text| text.contains("NEEDS REVIEW")));
    }
    // Each was asked for once, and each message was posted once.
    assert!(recordings >= calls.len() && !posted.is_empty());
    assert_eq!(speech.heard().len(), recordings);
    let requests = services.requests();
    let of = |path: &str| {
        requests
            .iter()
            .filter(|it| it.line().ends_with(path))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("/v1/chat/completions").len(), 2 * recordings);
    let messages = of("/api/chat.postmessage").into_iter();
    let mut sent: Vec<String> = messages
        .map(|message| {
            assert_eq!(message.body["channel"], "front-desk");
            message.body["text"].as_str().expect("text").to_owned()
        })
        .collect();
    sent.sort_unstable();
    posted.sort_unstable();
    assert_eq!(sent, posted);
    daemon.stop();
}

#[test]
fn documents_with_openai_are_as_written_by_hand() {
    documents_are_as_written_by_hand(openai);
}

#[test]
fn documents_with_deepgram_are_as_written_by_hand() {
    documents_are_as_written_by_hand(deepgram);
}

#[test]
fn a_difference_is_named_by_its_path() {
    let one = json!({"a": [{"b": 1.0}, {"b": "[\"x\"]"}], "c": {}});
    assert_eq!(
        difference(
            "",
            &one,
            &json!({"a": [{"b": 1}, {"b": "[ \"x\" ]"}], "c": {}})
        ),
        None
    );
    for (other, path) in [
        (
            json!({"a": [{"b": 2}, {"b": "[\"x\"]"}], "c": {}}),
            ".a[0].b: ",
        ),
        (
            json!({"a": [{"b": 1}, {"b": "[\"y\"]"}], "c": {}}),
            ".a[1].b: ",
        ),
        (json!({"a": [{"b": 1}], "c": {}}), ".a[1]: "),
        (json!({"a": [{"b": 1}, {"b": "[\"x\"]"}]}), ".c: "),
        (
            json!({"a": [{"b": 1}, {"b": "[\"x\"]"}], "c": {}, "d": null}),
            ".d: ",
        ),
    ] {
        let found = difference("", &one, &other).unwrap_or_default();
        assert!(found.starts_with(path), "{found}");
    }
}
