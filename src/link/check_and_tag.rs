//! `links.check_and_tag`: asks a language model a question about each dialog that has yes or no for an answer,
//! and tags the vCon if it is yes.
//!
//! Reads the analysis of each dialog that `source` names; writes one of `analysis_type` whose body is
//! `{link_name, tag, applies}`, and the tag `tag_name:tag_value` where it applies. Several such links may share
//! an `analysis_type`: an analysis whose body names another link is not this one's. The module `ai` has what it
//! shares with others.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Link;
use super::ai::{
    Analyst, Chat, Client, Finding, FoundBody, Inquiry, Message, PerDialog, json_in, model,
    response_format, to_json,
};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::Entry;

const SYSTEM_PROMPT: &str =
    "You are a helpful assistant that checks texts against a question and answers yes or no.";

const HOW_TO_ANSWER: &str = "Answer with a JSON object whose only key, 'applies', is true if the answer to the \
                             question is yes, and false if it is no.";

struct CheckAndTag {
    /// The link's own name.
    name: String,
    model: String,
    question: String,
    tag: String,
    response_format: Box<RawValue>,
}

/// The body of the analysis.
#[derive(Serialize)]
struct Evaluation<'a> {
    link_name: &'a str,
    tag: &'a str,
    applies: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let name = options.required_string("tag_name");
    let value = options.required_string("tag_value");
    let question = options.required_string("evaluation_question");
    let model = model(options, "gpt-5");
    let told = [("model", &*model), ("evaluation_question", &question)];
    let analyst = Analyst::open(options, "tag_evaluation", &told);
    // The existing worker has them among its defaults, and sends neither.
    for key in ["verbosity", "minimal_reasoning"] {
        options.pass_over(key);
    }
    let inquiry = CheckAndTag {
        name: options.owner().to_owned(),
        response_format: response_format(options),
        tag: format!("{name}:{value}"),
        model,
        question,
    };
    Box::new(PerDialog::open(options, "body", analyst, inquiry))
}

impl Inquiry for CheckAndTag {
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure> {
        let question = format!(
            "Question: {}\n\nText:\n{text}\n\n{HOW_TO_ANSWER}",
            self.question
        );
        let chat = Chat {
            model: &self.model,
            messages: [Message::system(SYSTEM_PROMPT), Message::user(&question)],
            temperature: None,
            response_format: Some(&self.response_format),
        };
        let reply = client.chat(&chat, deadline)?;
        self.evaluated(&reply)
    }

    fn tags(&self) -> bool {
        true
    }

    fn is_anothers(&self, analysis: &Entry<'_>) -> bool {
        let body = analysis.body();
        let body = body.and_then(|body| serde_json::from_str::<Value>(body.get()).ok());
        let link = body.and_then(|body| Some(body.get("link_name")?.as_str()?.to_owned()));
        link.is_some_and(|link| link != self.name)
    }
}

impl CheckAndTag {
    /// What a reply says.
    fn evaluated(&self, reply: &str) -> Result<Finding, Failure> {
        let value: Option<Value> = serde_json::from_str(json_in(reply)).ok();
        let applies = value.and_then(|value| truth(value.get("applies")?));
        let applies = applies.ok_or_else(|| {
            Failure::refused("the model did not reply with {\"applies\": true} or false")
        })?;
        let body = to_json(&Evaluation {
            link_name: &self.name,
            tag: &self.tag,
            applies,
        })?;
        let tags = applies.then(|| self.tag.clone());
        Ok(Finding {
            tags: tags.into_iter().collect(),
            ..Finding::new(FoundBody::Json(body))
        })
    }
}

/// A yes or no, also as a word.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::String(word) => match word.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" => Some(true),
            "false" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::ai::testing::{options, reply, run};
    use crate::link::{LinkError, Next};

    const NEEDED: &str = "tag_name: mood, tag_value: bad, evaluation_question: 'Angry?'";

    fn document() -> Value {
        let said = json!([{"speaker": "A", "message": "hm"}]);
        json!({"vcon": "0.4.0", "dialog": [{}, {}], "analysis": [
            {"type": "transcript", "dialog": 0, "body": said},
            {"type": "transcript", "dialog": 1, "body": "plain"}]})
    }

    #[test]
    fn the_tag_is_set_where_it_applies() {
        let answers = vec![reply(r#"{"applies": true}"#), reply(r#"{"applies": "No"}"#)];
        let done = run(open, &options(NEEDED), &document(), answers);
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 2));
        let analysis = |dialog, applies| {
            json!({"type": "tag_evaluation", "dialog": dialog, "vendor": "openai",
                "body": {"link_name": "", "tag": "mood:bad", "applies": applies}, "encoding": "json",
                "vendor_schema": {"model": "gpt-5", "evaluation_question": "Angry?"}})
        };
        assert_eq!(done.vcon["analysis"][2], analysis(0, true));
        assert_eq!(done.vcon["analysis"][3], analysis(1, false));
        assert_eq!(done.vcon["attachments"][0]["body"], r#"["mood:bad"]"#);
        let (_, body) = &done.requests[0];
        assert_eq!(body.get("temperature"), None);
        assert_eq!(body["response_format"], json!({"type": "json_object"}));
        let question = body["messages"][1]["content"].as_str().unwrap();
        assert!(
            question.starts_with("Question: Angry?\n\nText:\n[{"),
            "{question}"
        );
        assert!(
            done.requests[1].1["messages"][1]["content"]
                .as_str()
                .unwrap()
                .contains("\nplain\n")
        );
    }

    #[test]
    fn two_links_may_share_a_type_and_none_asks_twice() {
        let mut document = document();
        let evaluation = |dialog, link: &str| json!({"type": "tag_evaluation", "dialog": dialog, "body": {"link_name": link}});
        document["analysis"].as_array_mut().unwrap().extend([
            evaluation(0, "another"),
            evaluation(1, "another"),
            evaluation(1, ""),
        ]);
        let answers = vec![reply(r#"{"applies": false}"#)];
        let done = run(open, &options(NEEDED), &document, answers);
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
        assert_eq!(done.vcon.get("attachments"), None);
    }

    #[test]
    fn a_reply_that_is_no_answer_is_no_result() {
        for text in [
            "yes",
            "{}",
            r#"{"applies": null}"#,
            r#"{"applies": "perhaps"}"#,
        ] {
            let answers = vec![reply(text), reply(r#"{"applies": true}"#)];
            let done = run(open, &options(NEEDED), &document(), answers);
            assert_eq!(done.vcon["analysis"].as_array().map(Vec::len), Some(3));
            match done.end {
                Err(LinkError::Failed(failure)) => {
                    let why = "dialog 0: the model did not reply with {\"applies\": true} or false";
                    assert_eq!(failure, Failure::refused(why));
                }
                other => unreachable!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_required_is_named() {
        let mut options = Options::from_yaml("{api_key: k}");
        open(&mut options);
        let expected = ["tag_name", "tag_value", "evaluation_question"];
        assert_eq!(
            options.faults(),
            expected.map(|key| format!("{key}: is required"))
        );
    }
}
