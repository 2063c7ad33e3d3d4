//! `links.analyze`: asks a language model about each dialog, such as for a summary, and keeps the reply as an
//! analysis.
//!
//! Reads the analysis of each dialog that `source` names, a transcript; writes one of `analysis_type` with the
//! model's reply as text. The module `ai` has what it shares with others.

use serde_json::value::RawValue;

use super::Link;
use super::ai::client::number;
use super::ai::{Analyst, Chat, Client, Finding, FoundBody, Inquiry, Message, PerDialog, Schema};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;

struct Analyze {
    model: String,
    system_prompt: String,
    prompt: String,
    temperature: Box<RawValue>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", "");
    let model = options.string_or("model", "gpt-3.5-turbo-16k");
    let analyst = Analyst {
        analysis_type: options.string_or("analysis_type", "summary"),
        schema: Schema::new(options, &[("model", &model), ("prompt", &prompt)]),
    };
    let inquiry = Analyze {
        system_prompt: options.string_or("system_prompt", "You are a helpful assistant."),
        temperature: number(options.number_or("temperature", 0.0)),
        model,
        prompt,
    };
    Box::new(PerDialog::open(
        options,
        "body.paragraphs.transcript",
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
            temperature: Some(&self.temperature),
            response_format: None,
        };
        let reply = client.chat(&chat, deadline)?;
        Ok(Finding::new(FoundBody::Text(reply)))
    }
}
