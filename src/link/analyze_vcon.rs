//! `links.analyze_vcon`: asks a language model about the whole vCon, and keeps the JSON that it replies with as
//! one analysis.
//!
//! Reads the whole document, without the bodies of dialogs unless `remove_body_properties` is `false`; writes
//! one analysis of `analysis_type`, for dialog 0. A vCon that has one of that type is left as it is. The module
//! `ai` has what it shares with others.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::value::RawValue;

use super::ai::client::number;
use super::ai::{
    Analyst, Chat, Client, Finding, FoundBody, Message, Schema, Selection, json_in, to_json,
};
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
    temperature: Box<RawValue>,
    without_bodies: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", PROMPT);
    let model = options.string_or("model", "gpt-3.5-turbo-16k");
    let system_prompt = options.string_or("system_prompt", SYSTEM_PROMPT);
    let schema = [
        ("model", &*model),
        ("prompt", &prompt),
        ("system_prompt", &system_prompt),
    ];
    Box::new(AnalyzeVcon {
        analyst: Analyst {
            analysis_type: options.string_or("analysis_type", "json_analysis"),
            schema: Schema::new(options, &schema),
        },
        client: Client::open(options),
        selection: Selection::open(options),
        temperature: number(options.number_or("temperature", 0.0)),
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
        let format = to_json(&serde_json::json!({"type": "json_object"}))?;
        let chat = Chat {
            model: &self.model,
            messages: [
                Message::system(&self.system_prompt),
                Message::user(&question),
            ],
            temperature: Some(&self.temperature),
            response_format: Some(&format),
        };
        let reply = self.client.chat(&chat, context.deadline)?;
        let body = RawValue::from_string(json_in(&reply).to_owned());
        let body = body
            .map_err(|error| Failure::refused(format!("the model's reply is not JSON: {error}")))?;
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
