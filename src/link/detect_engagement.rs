//! `links.detect_engagement`: asks a language model whether both sides of each dialog spoke.
//!
//! Reads the analysis of each dialog that `source` names; writes one of `analysis_type` with the text `true` or
//! `false`, and the tag `engagement:true` or `engagement:false`. The module `ai` has what it shares with others.

use serde_json::value::RawValue;

use super::Link;
use super::ai::client::number;
use super::ai::{Analyst, Client, Finding, FoundBody, Inquiry, PerDialog, Question, Schema};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;

const PROMPT: &str = "Did both the customer and the agent speak? Answer with nothing but 'true' if both did, \
                      and 'false' if not.";

struct DetectEngagement {
    model: String,
    prompt: String,
    temperature: Box<RawValue>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", PROMPT);
    let model = options.string_or("model", "gpt-4.1");
    let analyst = Analyst {
        analysis_type: options.string_or("analysis_type", "engagement_analysis"),
        schema: Schema::new(options, &[("model", &model), ("prompt", &prompt)]),
    };
    let inquiry = DetectEngagement {
        temperature: number(options.number_or("temperature", 0.2)),
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

impl Inquiry for DetectEngagement {
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure> {
        let question = Question {
            model: &self.model,
            input: &format!("{}\n\nTranscript: {text}", self.prompt),
            temperature: &self.temperature,
        };
        let reply = client.respond(&question, deadline)?;
        Ok(engagement(&reply))
    }
}

/// What a reply says: everything but `true` means no.
fn engagement(reply: &str) -> Finding {
    let word = reply.trim().trim_matches(['\'', '"', '.', '`']);
    let engaged = match word.eq_ignore_ascii_case("true") {
        true => "true",
        false => "false",
    };
    Finding {
        tags: vec![format!("engagement:{engaged}")],
        schema: vec![("is_engaged", engaged.to_owned())],
        ..Finding::new(FoundBody::Text(engaged.to_owned()))
    }
}
