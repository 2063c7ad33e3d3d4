//! `links.analyze_vcon`: asks a language model about the whole vCon, and keeps the JSON that it replies with as
//! one analysis.
//!
//! Reads the whole document, without the bodies of dialogs unless `remove_body_properties` is `false`; writes
//! one analysis of `analysis_type`, for dialog 0. A vCon that has one of that type is left as it is. The module
//! `ai` has what it shares with others.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::value::RawValue;

use super::ai::{
    Analyst, Chat, Client, Finding, FoundBody, Message, Selection, json_in, json_object, model,
    temperature,
};
use super::service::reply::sound;
use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::Vcon;

const PROMPT: &str = "Analyze this vCon and answer with a JSON object that holds your analysis.";

const SYSTEM_PROMPT: &str =
    "You are a helpful assistant that analyzes conversations and answers in structured JSON.";

/// The dialog that the analysis is said to be of.
const DIALOG: usize = 0;

struct AnalyzeVcon {
    client: Client,
    analyst: Analyst,
    selection: Selection,
    model: String,
    system_prompt: String,
    prompt: String,
    temperature: Option<Box<RawValue>>,
    without_bodies: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", PROMPT);
    let model = model(options, "gpt-3.5-turbo-16k");
    let system_prompt = options.string_or("system_prompt", SYSTEM_PROMPT);
    let told = [
        ("model", &*model),
        ("prompt", &prompt),
        ("system_prompt", &system_prompt),
    ];
    Box::new(AnalyzeVcon {
        analyst: Analyst::open(options, "json_analysis", &told),
        client: Client::open(options, true),
        selection: Selection::open(options),
        temperature: temperature(options, 0.0),
        without_bodies: options.bool_or("remove_body_properties", true),
        model,
        system_prompt,
        prompt,
    })
}

impl Link for AnalyzeVcon {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let is_done = vcon.analysis()?.any(|it| self.analyst.is_ours(&it));
        if is_done || !self.selection.takes(vcon)? {
            return Ok(Next::Continue);
        }
        let document = match self.without_bodies {
            true => vcon.without_dialog_bodies(),
            false => vcon.with_values(),
        };
        let _permit = context.permit()?;
        let question = format!("{}\n\n{document}", self.prompt);
        let format = json_object();
        let chat = Chat {
            model: &self.model,
            messages: [
                Message::system(&self.system_prompt),
                Message::user(&question),
            ],
            temperature: self.temperature.as_deref(),
            response_format: Some(&format),
        };
        let reply = self.client.chat(&chat, context.deadline)?;
        let body = kept(json_in(&reply))
            .map_err(|why| Failure::refused(format!("the model's reply cannot be kept: {why}")))?;
        let finding = Finding::new(FoundBody::Json(body));
        self.analyst
            .add(vcon, DIALOG, self.client.vendor(), &finding)?;
        Ok(Next::Again)
    }

    fn rewrites(&self) -> bool {
        true
    }

    fn counts_requests(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        self.client.timeout()
    }

    fn probe(&mut self, _: &Receiver<()>) -> Result<(), Failure> {
        self.client.probe()
    }
}

/// The JSON of a reply, if it is what an analysis may have for a body.
fn kept(reply: &str) -> Result<Box<RawValue>, String> {
    let text = sound(reply.as_bytes())?;
    let body = RawValue::from_string(text.into_owned());
    let body = body.map_err(|error| format!("it is not JSON: {error}"))?;
    match body.get().starts_with(['{', '[']) {
        true => Ok(body),
        false => Err("it is neither an object nor an array".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::FailureKind;
    use crate::link::ai::testing::{error, options, reply, run};

    fn document() -> Value {
        json!({"vcon": "0.4.0", "dialog": [{"type": "text", "body": "hello"}],
            "analysis": [{"type": "summary", "body": {"a": 1}, "encoding": "json"}]})
    }

    #[test]
    fn the_vcon_gets_one_analysis_of_all_of_it() {
        for (others, has_body) in [("", false), ("remove_body_properties: false", true)] {
            let done = run(
                open,
                &options(others),
                &document(),
                vec![reply(r#"{"mood": "good"}"#)],
            );
            assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
            let schema = json!({"model": "gpt-3.5-turbo-16k", "prompt": PROMPT, "system_prompt": SYSTEM_PROMPT});
            let expected = json!({"type": "json_analysis", "dialog": 0, "vendor": "openai",
                "body": {"mood": "good"}, "encoding": "json", "vendor_schema": schema});
            assert_eq!(done.vcon["analysis"][1], expected);
            let asked = done.requests[0].1["messages"][1]["content"]
                .as_str()
                .unwrap();
            let (prompt, asked) = asked.split_once("\n\n").unwrap();
            assert_eq!(prompt, PROMPT);
            let asked: Value = serde_json::from_str(asked).unwrap();
            let mut expected = document();
            if !has_body {
                expected["dialog"] = json!([{"type": "text"}]);
            }
            assert_eq!(asked["dialog"], expected["dialog"]);
            assert_eq!(asked["analysis"][0]["body"], json!({"a": 1}));
        }
    }

    #[test]
    fn a_vcon_that_has_its_analysis_is_left_as_it_is() {
        let mut document = document();
        document["analysis"][0]["type"] = json!("json_analysis");
        let done = run(open, &options(""), &document, Vec::new());
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 0));
    }

    #[test]
    fn a_reply_that_is_no_json_or_a_refusal_leaves_nothing() {
        for (answer, kind) in [
            (reply("{\"cut"), FailureKind::Refused),
            (reply("null"), FailureKind::Refused),
            (reply("3"), FailureKind::Refused),
            (reply("\"str\""), FailureKind::Refused),
            (
                reply(&format!("{}{}", "[".repeat(3000), "]".repeat(3000))),
                FailureKind::Refused,
            ),
            (error(413, "x"), FailureKind::Permanent),
        ] {
            let done = run(open, &options(""), &document(), vec![answer]);
            assert_eq!(done.vcon, document());
            match done.end {
                Err(LinkError::Failed(failure)) => assert_eq!(failure.kind, kind, "{failure}"),
                other => unreachable!("{other:?}"),
            }
        }
    }
}
