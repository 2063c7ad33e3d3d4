//! `links.detect_engagement`: asks a language model whether both sides of each dialog spoke.
//!
//! Reads the analysis of each dialog that `source` names; writes one of `analysis_type` with the text `true` or
//! `false`, and the tag `engagement:true` or `engagement:false`. The module `ai` has what it shares with others.

use serde_json::value::RawValue;

use super::Link;
use super::ai::{
    Analyst, Client, Finding, FoundBody, Inquiry, PerDialog, Question, TEXT_OF_TRANSCRIPT, model,
    temperature,
};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;

const PROMPT: &str = "Did both the customer and the agent speak? Answer with nothing but 'true' if both did, \
                      and 'false' if not.";

struct DetectEngagement {
    model: String,
    prompt: String,
    temperature: Option<Box<RawValue>>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let prompt = options.string_or("prompt", PROMPT);
    let model = model(options, "gpt-4.1");
    let told = [("model", &*model), ("prompt", &prompt)];
    let analyst = Analyst::open(options, "engagement_analysis", &told);
    let inquiry = DetectEngagement {
        temperature: temperature(options, 0.2),
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

impl Inquiry for DetectEngagement {
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure> {
        let question = Question {
            model: &self.model,
            input: &format!("{}\n\nTranscript: {text}", self.prompt),
            temperature: self.temperature.as_deref(),
        };
        let reply = client.respond(&question, deadline)?;
        Ok(engagement(&reply))
    }

    fn tags(&self) -> bool {
        true
    }

    /// The existing worker has it run without a key in the options.
    fn may_lack_credentials(&self) -> bool {
        true
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::FailureKind;
    use crate::link::ai::testing::{options, run, with_transcripts};
    use crate::link::{LinkError, Next};

    fn said(text: &str) -> Value {
        let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
        let message = json!({"type": "message", "role": "assistant", "content": content});
        json!({"status": "completed", "output": [{"type": "reasoning", "summary": []}, message]})
    }

    #[test]
    fn the_answer_becomes_an_analysis_and_a_tag() {
        for (answer, engaged) in [
            (said("true"), "true"),
            (said(" True.\n"), "true"),
            (said("false"), "false"),
            (said("I think so"), "false"),
            (json!({"output_text": "'true'"}), "true"),
        ] {
            let document = with_transcripts(1);
            let done = run(open, &options("prompt: p"), &document, vec![(200, answer)]);
            assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
            let expected = json!({"type": "engagement_analysis", "dialog": 0, "vendor": "openai",
                "body": engaged, "encoding": "none",
                "vendor_schema": {"model": "gpt-4.1", "prompt": "p", "is_engaged": engaged}});
            assert_eq!(done.vcon["analysis"][1], expected);
            let tags = format!("[\"engagement:{engaged}\"]");
            assert_eq!(done.vcon["attachments"][0]["body"], tags);
            let (head, body) = &done.requests[0];
            assert!(
                head.starts_with("post /v1/responses http/1.1\r\n"),
                "{head}"
            );
            let expected = json!({"model": "gpt-4.1", "input": "p\n\nTranscript: words 0", "temperature": 0.2});
            assert_eq!(*body, expected);
        }
    }

    #[test]
    fn an_answer_without_text_is_classified() {
        let refused = json!([{"type": "refusal", "refusal": "no"}]);
        for (answer, kind) in [
            (
                json!({"output": [{"content": refused}]}),
                FailureKind::Permanent,
            ),
            (
                json!({"output": [], "incomplete_details": {"reason": "content_filter"}}),
                FailureKind::Permanent,
            ),
            (
                json!({"output": [], "incomplete_details": {"reason": "max_output_tokens"}}),
                FailureKind::Refused,
            ),
            (said(""), FailureKind::Refused),
            (json!({"id": "r"}), FailureKind::Refused),
        ] {
            let done = run(
                open,
                &options(""),
                &with_transcripts(1),
                vec![(200, answer)],
            );
            match done.end {
                Err(LinkError::Failed(failure)) => assert_eq!(failure.kind, kind, "{failure}"),
                other => unreachable!("{other:?}"),
            }
        }
    }
}
