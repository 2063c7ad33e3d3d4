//! `links.analyze`: asks a language model about each dialog, such as for a summary, and keeps the reply as an
//! analysis.
//!
//! Reads the analysis of each dialog that `source` names, a transcript; writes one of `analysis_type` with the
//! model's reply as text. The module `ai` has what it shares with others.

use serde_json::value::RawValue;

use super::Link;
use super::ai::{
    Analyst, Chat, Client, Finding, FoundBody, Inquiry, Message, PerDialog, TEXT_OF_TRANSCRIPT,
    model, temperature,
};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;

struct Analyze {
    model: String,
    system_prompt: String,
    prompt: String,
    temperature: Option<Box<RawValue>>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", "");
    let model = model(options, "gpt-3.5-turbo-16k");
    let told = [("model", &*model), ("prompt", &prompt)];
    let analyst = Analyst::open(options, "summary", &told);
    let inquiry = Analyze {
        system_prompt: options.string_or("system_prompt", "You are a helpful assistant."),
        temperature: temperature(options, 0.0),
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

impl Inquiry for Analyze {
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure> {
        let question = format!("{}\n\n{text}", self.prompt);
        let chat = Chat {
            model: &self.model,
            messages: [
                Message::system(&self.system_prompt),
                Message::user(&question),
            ],
            temperature: self.temperature.as_deref(),
            response_format: None,
        };
        let reply = client.chat(&chat, deadline)?;
        Ok(Finding::new(FoundBody::Text(reply)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::FailureKind;
    use crate::link::ai::testing::{KEY, error, options, reply, run, with_transcripts};
    use crate::link::{LinkError, Next};

    fn failed(end: Result<Next, LinkError>) -> Failure {
        match end {
            Err(LinkError::Failed(failure)) => failure,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn each_dialog_gets_its_analysis_by_a_request_of_its_own() {
        let document = with_transcripts(2);
        let answers = vec![reply("Zoë called"), reply("second")];
        let done = run(
            open,
            &options("prompt: Sum up, temperature: 0.5"),
            &document,
            answers,
        );
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 2));
        let analysis = |dialog, body| {
            json!({"type": "summary", "dialog": dialog, "vendor": "openai", "body": body, "encoding": "none",
                "vendor_schema": {"model": "gpt-3.5-turbo-16k", "prompt": "Sum up"}})
        };
        assert_eq!(done.vcon["analysis"][2], analysis(0, "Zoë called"));
        assert_eq!(done.vcon["analysis"][3], analysis(1, "second"));
        let (head, body) = &done.requests[0];
        assert!(
            head.starts_with("post /v1/chat/completions http/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains(&format!("authorization: bearer {KEY}")),
            "{head}"
        );
        assert!(head.contains("content-type: application/json"), "{head}");
        let messages = json!([
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Sum up\n\nwords 0"},
        ]);
        let expected =
            json!({"model": "gpt-3.5-turbo-16k", "messages": messages, "temperature": 0.5});
        assert_eq!(*body, expected);
    }

    #[test]
    fn dialogs_without_a_text_and_those_that_are_done_are_passed_over() {
        let mut document = with_transcripts(3);
        document["analysis"][0]["body"] = json!({"other": 1});
        let done = json!({"type": "summary", "dialog": [1, 7], "body": "there already"});
        document["analysis"].as_array_mut().unwrap().push(done);
        document["dialog"].as_array_mut().unwrap().push(json!(null));
        let done = run(open, &options(""), &document, vec![reply("new")]);
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
        assert_eq!(done.vcon["analysis"][4]["dialog"], 2);
        for document in [
            json!({}),
            json!({"dialog": [{}]}),
            json!({"analysis": null}),
        ] {
            let done = run(open, &options(""), &document, Vec::new());
            assert_eq!((done.end, done.parts), (Ok(Next::Continue), 0));
        }
    }

    #[test]
    fn vcons_that_are_not_selected_cost_nothing() {
        for others in [
            "sampling_rate: 0",
            "only_if: {section: analysis, type: x, includes: y}",
        ] {
            let done = run(open, &options(others), &with_transcripts(1), Vec::new());
            assert_eq!(done.end, Ok(Next::Continue));
        }
    }

    #[test]
    fn a_dialog_that_is_refused_does_not_stop_the_others() {
        let answers = vec![
            error(400, "context_length_exceeded"),
            reply("fine"),
            error(400, "x"),
        ];
        let done = run(open, &options(""), &with_transcripts(3), answers);
        assert_eq!(done.parts, 3);
        assert_eq!(done.vcon["analysis"][3]["dialog"], 1);
        let failure = failed(done.end);
        assert_eq!(failure.kind, FailureKind::Refused);
        for part in [
            "dialog 0: http://",
            "context_length_exceeded",
            "; dialog 2: ",
        ] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[test]
    fn a_failure_of_the_server_ends_the_run_and_keeps_what_is_done() {
        for (answer, kind) in [
            (error(429, "rate_limit_exceeded"), FailureKind::Busy),
            (error(401, "invalid_api_key"), FailureKind::Denied),
            (error(500, "x"), FailureKind::Transient),
        ] {
            let answers = vec![reply("first"), answer];
            let done = run(open, &options(""), &with_transcripts(2), answers);
            assert_eq!(done.parts, 1);
            assert_eq!(done.vcon["analysis"].as_array().map(Vec::len), Some(3));
            let failure = failed(done.end);
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(!failure.message.contains(KEY), "{failure}");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_used_is_not_paid_for_again() {
        for answer in [
            (200, json!("{\"choices\": [")),
            (200, json!({"choices": []})),
            (200, json!([])),
        ] {
            let answers = vec![answer, reply("second")];
            let done = run(open, &options(""), &with_transcripts(2), answers);
            assert_eq!(done.parts, 2);
            assert_eq!(failed(done.end).kind, FailureKind::Refused);
            assert_eq!(done.vcon["analysis"][2]["dialog"], 1);
        }
    }

    #[test]
    fn attachments_that_take_no_tags_are_no_fault_of_a_link_that_sets_none() {
        let mut document = with_transcripts(1);
        for attachments in [
            json!({}),
            json!("x"),
            json!([{"purpose": "tags", "body": "YQ", "encoding": "base64url"}]),
        ] {
            document["attachments"] = attachments;
            let done = run(open, &options(""), &document, vec![reply("r")]);
            assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
        }
    }

    #[test]
    fn no_temperature_is_sent_if_it_is_null() {
        let null = options("temperature: null");
        let done = run(open, &null, &with_transcripts(1), vec![reply("r")]);
        assert_eq!(done.requests[0].1.get("temperature"), None);
        for (wrong, fault) in [
            ("temperature: 2.1", "temperature: must be from 0 to 2"),
            ("model: ''", "model: must not be empty"),
        ] {
            let mut options = Options::from_yaml(&format!("{{api_key: k, {wrong}}}"));
            open(&mut options);
            assert_eq!(options.faults(), [fault]);
        }
    }

    #[test]
    fn a_vcon_of_many_dialogs_is_gone_through_in_one_pass() {
        let mut document = with_transcripts(3000);
        for index in 0..3000 {
            let done = json!({"type": "summary", "dialog": index, "body": "s"});
            document["analysis"].as_array_mut().unwrap().push(done);
        }
        let start = std::time::Instant::now();
        let done = run(open, &options(""), &document, Vec::new());
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 0));
        assert!(start.elapsed().as_secs() < 15);
    }

    #[test]
    fn an_answer_that_says_nothing_is_the_vcons() {
        let answer = |message: Value, end: &str| {
            (
                200,
                json!({"choices": [{"message": message, "finish_reason": end}]}),
            )
        };
        for (answer, kind, why) in [
            (
                answer(json!({"content": null, "refusal": "no"}), "stop"),
                FailureKind::Permanent,
                "refuses",
            ),
            (
                answer(json!({"content": ""}), "content_filter"),
                FailureKind::Permanent,
                "content filter",
            ),
            (
                answer(json!({"content": null}), "length"),
                FailureKind::Refused,
                "length limit",
            ),
            (
                answer(json!({"content": " "}), "stop"),
                FailureKind::Refused,
                "empty answer",
            ),
        ] {
            let done = run(open, &options(""), &with_transcripts(1), vec![answer]);
            let failure = failed(done.end);
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.message.contains(why), "{failure}");
        }
    }

    #[test]
    fn a_sealed_vcon_or_one_whose_lists_are_none_is_a_permanent_failure() {
        for document in [
            json!({"dialog": 7}),
            json!({"payload": "p", "signature": "s"}),
        ] {
            let done = run(open, &options(""), &document, Vec::new());
            assert_eq!(failed(done.end).kind, FailureKind::Permanent);
        }
    }
}
