//! `links.analyze_and_label`: asks a language model for labels of each dialog, and tags the vCon with them.
//!
//! Reads the analysis of each dialog that `source` names; writes one of `analysis_type` with the model's reply,
//! and a tag `label:label` for each string in the reply's `labels`. A reply that is not JSON is kept as text,
//! and gives no tags. The module `ai` has what it shares with others.

use serde_json::Value;
use serde_json::value::RawValue;

use super::Link;
use super::ai::{
    Analyst, Chat, Client, Finding, FoundBody, Inquiry, Message, PerDialog, TEXT_OF_TRANSCRIPT,
    json_in, model, response_format, temperature,
};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;

const SYSTEM_PROMPT: &str = "You are a helpful assistant that reads conversations and labels them.";

const PROMPT: &str = "Find the labels that best describe this transcript. Answer with a JSON object whose only \
                      key, 'labels', holds an array of strings.";

/// The most labels of a reply that become tags, and the most characters of each.
const MOST_LABELS: usize = 100;
const LONGEST_LABEL: usize = 200;

struct AnalyzeAndLabel {
    model: String,
    prompt: String,
    temperature: Option<Box<RawValue>>,
    response_format: Box<RawValue>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", PROMPT);
    let model = model(options, "gpt-4-turbo");
    let told = [("model", &*model), ("prompt", &prompt)];
    let analyst = Analyst::open(options, "labeled_analysis", &told);
    let inquiry = AnalyzeAndLabel {
        temperature: temperature(options, 0.2),
        response_format: response_format(options),
        model,
        prompt,
    };
    Box::new(PerDialog::open(
        options,
        TEXT_OF_TRANSCRIPT,
        analyst,
        inquiry,
    ))
}

impl Inquiry for AnalyzeAndLabel {
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure> {
        let question = format!("{}\n\n{text}", self.prompt);
        let chat = Chat {
            model: &self.model,
            messages: [Message::system(SYSTEM_PROMPT), Message::user(&question)],
            temperature: self.temperature.as_deref(),
            response_format: Some(&self.response_format),
        };
        Ok(labelled(client.chat(&chat, deadline)?))
    }

    fn tags(&self) -> bool {
        true
    }
}

/// What a reply says: its labels become tags.
fn labelled(reply: String) -> Finding {
    let json = json_in(&reply);
    let Ok(value) = serde_json::from_str::<Value>(json) else {
        return Finding::new(FoundBody::Text(reply));
    };
    let labels = value.get("labels").and_then(Value::as_array);
    let labels = labels.into_iter().flatten().filter_map(Value::as_str);
    let plain = |label: &str| -> String {
        let plain = label.chars().filter(|c| !c.is_control());
        plain.take(LONGEST_LABEL).collect()
    };
    let labels = labels.map(|label| plain(label.trim()));
    let labels = labels.filter(|label| !label.is_empty()).take(MOST_LABELS);
    Finding {
        tags: labels.map(|label| format!("{label}:{label}")).collect(),
        ..Finding::new(FoundBody::JsonText(json.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::Next;
    use crate::link::ai::testing::{options, reply, run, with_transcripts};

    #[test]
    fn labels_become_tags_and_the_reply_stays_as_it_is() {
        let text = r#"{"labels": ["vip", " über ", "", 7, "vip"], "n": 1.0}"#;
        let done = run(
            open,
            &options("prompt: p"),
            &with_transcripts(1),
            vec![reply(text)],
        );
        assert_eq!(done.end, Ok(Next::Continue));
        let expected = json!({"type": "labeled_analysis", "dialog": 0, "vendor": "openai", "body": text,
            "encoding": "json", "vendor_schema": {"model": "gpt-4-turbo", "prompt": "p"}});
        assert_eq!(done.vcon["analysis"][1], expected);
        let tags =
            json!({"purpose": "tags", "body": r#"["vip:vip","über:über"]"#, "encoding": "json"});
        assert_eq!(done.vcon["attachments"], json!([tags]));
        let (_, body) = &done.requests[0];
        assert_eq!(body["response_format"], json!({"type": "json_object"}));
        assert_eq!(body["temperature"], json!(0.2));
        assert_eq!(body["messages"][1]["content"], "p\n\nwords 0");
    }

    #[test]
    fn a_reply_that_is_no_json_is_kept_as_text_and_one_without_labels_gives_no_tags() {
        for (text, encoding, body) in [
            ("vip, really", "none", "vip, really"),
            (
                "```json\n{\"labels\": null}\n```",
                "json",
                "{\"labels\": null}",
            ),
            ("[1]", "json", "[1]"),
        ] {
            let done = run(open, &options(""), &with_transcripts(1), vec![reply(text)]);
            assert_eq!(done.end, Ok(Next::Continue));
            assert_eq!(done.vcon["analysis"][1]["body"], body);
            assert_eq!(done.vcon["analysis"][1]["encoding"], encoding);
            assert_eq!(done.vcon.get("attachments"), None);
        }
    }

    #[test]
    fn a_reply_with_labels_without_end_gives_some_of_them() {
        let long = format!("\u{1b}{}", "x".repeat(300));
        let labels: Vec<String> = (0..1000).map(|index| format!("{index}")).collect();
        let found = labelled(json!({"labels": labels}).to_string());
        assert_eq!(found.tags.len(), 100);
        let found = labelled(json!({"labels": [long]}).to_string());
        assert_eq!(found.tags[0].len(), 401);
    }

    #[test]
    fn nothing_is_paid_for_if_the_tags_cannot_be_kept() {
        let mut document = with_transcripts(1);
        let encoded = json!({"purpose": "tags", "body": "YQ", "encoding": "base64url"});
        document["attachments"] = json!([encoded]);
        let done = run(open, &options(""), &document, Vec::new());
        assert!(done.end.is_err());
        assert_eq!(done.parts, 0);
    }

    #[test]
    fn another_format_may_be_asked_for() {
        let format = "response_format: {type: json_schema, json_schema: {name: x, strict: true}}";
        let done = run(
            open,
            &options(format),
            &with_transcripts(1),
            vec![reply("{}")],
        );
        let expected = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true}});
        assert_eq!(done.requests[0].1["response_format"], expected);
    }
}
