//! What the links that ask a language model share.
//!
//! [`client`] makes the requests, [`selection`] says which vCons a link takes and [`source`] which text of a
//! dialog; `service` has what they share with the links that transcribe. [`PerDialog`] is the way of a vCon through a
//! link that asks about each dialog by itself:
//!
//! ```text
//! selection ─► next dialog with a text and without a result ─► permit ─► one request ─► result ─► Again
//!                  │ no other one
//!                  └──► Continue, or one failure that names the dialogs that were refused
//! ```
//!
//! A run makes at most one request that costs money: what it brought is written before the next one, so no
//! retry pays for it again.

pub(super) mod client;
mod selection;
mod source;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

pub(super) use self::client::{Chat, Client, Message, Question};
pub(super) use self::selection::{Selection, includes};
use self::source::Source;
use super::service::{all_refused, shown_text};
use super::{Context, Link, LinkError, Next};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::{Body, Entry, Vcon, VconError};

/// What a link has found out about one dialog, or about the vCon.
pub(super) struct Finding {
    /// The body of its analysis.
    pub body: FoundBody,
    /// The tags of the vCon that come with it.
    pub tags: Vec<String>,
    /// Further members of `vendor_schema`.
    pub schema: Vec<(&'static str, String)>,
}

/// The body of an analysis that a link makes.
pub(super) enum FoundBody {
    Text(String),
    /// JSON that stays the text it is.
    JsonText(String),
    /// An object or array.
    Json(Box<RawValue>),
}

impl Finding {
    /// An analysis with this body, and nothing else.
    pub fn new(body: FoundBody) -> Self {
        Self {
            body,
            tags: Vec::new(),
            schema: Vec::new(),
        }
    }
}

/// What a link asks about the text of one dialog.
pub(super) trait Inquiry: Send {
    /// Asks a model about the text, with one request.
    fn ask(&self, text: &str, client: &Client, deadline: Deadline) -> Result<Finding, Failure>;

    /// Whether the link may be configured without credentials: then vCons wait for them.
    fn may_lack_credentials(&self) -> bool {
        false
    }

    /// Whether what it finds out may become tags.
    fn tags(&self) -> bool {
        false
    }

    /// Whether an analysis of the link's type is the result of another link.
    fn is_anothers(&self, _analysis: &Entry<'_>) -> bool {
        false
    }
}

/// A link that asks about the text of each dialog.
pub(super) struct PerDialog<I> {
    inquiry: I,
    client: Client,
    analyst: Analyst,
    selection: Selection,
    source: Source,
}

/// Who makes an analysis, and of what kind it is.
pub(super) struct Analyst {
    analysis_type: String,
    schema: Schema,
}

/// Where the text of a transcript is, unless `source.text_location` says otherwise.
pub(super) const TEXT_OF_TRANSCRIPT: &str = "body.paragraphs.transcript";

/// What a server is asked for by the option `response_format`, unless it says otherwise.
const JSON_OBJECT: &str = r#"{"type":"json_object"}"#;

/// What a link tells of itself in `vendor_schema`: nothing that is not to be shown.
struct Schema {
    members: Vec<(&'static str, String)>,
}

impl Schema {
    /// The options of these names, with what they hold. What was looked up in a variable or file is left out.
    fn new(options: &Options, members: &[(&'static str, &str)]) -> Self {
        let looked_up = options.looked_up();
        let shown = |text: &str| shown_text(text.to_owned(), looked_up);
        let members = members.iter();
        let members = members.filter_map(|&(name, text)| Some((name, shown(text)?)));
        Self {
            members: members.collect(),
        }
    }

    /// Its JSON, with further members.
    fn with(&self, more: &[(&'static str, String)]) -> Result<Box<RawValue>, Failure> {
        let members = self.members.iter().chain(more);
        let members: indexmap::IndexMap<&str, &str> =
            members.map(|(name, text)| (*name, text.as_str())).collect();
        to_json(&members)
    }
}

impl Analyst {
    /// Reads the option `analysis_type`. Of the options, `vendor_schema` tells these.
    pub fn open(options: &mut Options, default: &str, told: &[(&'static str, &str)]) -> Self {
        Self {
            analysis_type: options.string_or("analysis_type", default),
            schema: Schema::new(options, told),
        }
    }

    /// Adds the analysis of a finding, and its tags.
    pub fn add(
        &self,
        vcon: &mut Vcon,
        dialog: usize,
        vendor: &str,
        finding: &Finding,
    ) -> Result<(), LinkError> {
        let schema = self.schema.with(&finding.schema)?;
        let body = match &finding.body {
            FoundBody::Text(text) => Body::Text(text),
            FoundBody::JsonText(text) => Body::JsonText(text),
            FoundBody::Json(value) => Body::Json(value),
        };
        let more = [("vendor_schema", &*schema)];
        vcon.add_analysis_with(&self.analysis_type, &[dialog], vendor, body, &more)?;
        if !finding.tags.is_empty() {
            vcon.add_tags(&finding.tags)?;
        }
        Ok(())
    }

    /// Whether an analysis is of the kind that it makes.
    pub fn is_ours(&self, analysis: &Entry<'_>) -> bool {
        analysis.text("type").as_deref() == Some(&self.analysis_type)
    }
}

impl<I: Inquiry> PerDialog<I> {
    /// Reads the options that all these links have; `location` is the default of `source.text_location`.
    pub fn open(options: &mut Options, location: &str, analyst: Analyst, inquiry: I) -> Self {
        let required = !inquiry.may_lack_credentials();
        Self {
            inquiry,
            client: Client::open(options, required),
            analyst,
            selection: Selection::open(options),
            source: Source::open(options, location),
        }
    }

    /// The next dialog to ask about, with its text.
    fn next(
        &self,
        vcon: &Vcon,
        refused: &[(usize, Failure)],
    ) -> Result<Option<(usize, String)>, VconError> {
        let analyses: Vec<Entry<'_>> = vcon.analysis()?.collect();
        let mut done: HashSet<usize> = refused.iter().map(|(dialog, _)| *dialog).collect();
        // One pass over the analyses: there may be thousands of them, and of dialogs.
        let mut sources: HashMap<usize, Vec<&Entry<'_>>> = HashMap::new();
        for analysis in &analyses {
            if self.analyst.is_ours(analysis) && !self.inquiry.is_anothers(analysis) {
                done.extend(analysis.dialogs());
            }
            if self.source.is_in(analysis) {
                for dialog in analysis.dialogs() {
                    sources.entry(dialog).or_default().push(analysis);
                }
            }
        }
        for dialog in vcon.dialog()? {
            let index = dialog.index;
            let Some(sources) = sources.get(&index).filter(|_| !done.contains(&index)) else {
                continue;
            };
            if let Some(text) = sources.iter().find_map(|it| self.source.text(it)) {
                return Ok(Some((index, text)));
            }
        }
        Ok(None)
    }
}

impl<I: Inquiry> Link for PerDialog<I> {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        if !self.selection.takes(vcon)? {
            return Ok(Next::Continue);
        }
        let Some((dialog, text)) = self.next(vcon, &context.refused)? else {
            return match all_refused("dialog", &context.refused) {
                Some(failure) => Err(failure.into()),
                None => Ok(Next::Continue),
            };
        };
        // What cannot be kept is not paid for.
        if self.inquiry.tags() {
            vcon.check_taggable()?;
        }
        let asked = {
            let _permit = context.permit()?;
            self.inquiry.ask(&text, &self.client, context.deadline)
        };
        match asked {
            Ok(finding) => {
                let vendor = self.client.vendor();
                self.analyst.add(vcon, dialog, vendor, &finding)?;
            }
            Err(failure) if failure.kind.is_final() => context.refused.push((dialog, failure)),
            Err(failure) => return Err(failure.into()),
        }
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

/// The JSON in a model's reply, without the fence of Markdown that some models put around it.
pub(super) fn json_in(reply: &str) -> &str {
    let text = reply.trim();
    let fenced = text
        .strip_prefix("```")
        .and_then(|text| text.strip_suffix("```"));
    let Some(inside) = fenced else { return text };
    match inside.split_at_checked(4) {
        Some((word, rest)) if word.eq_ignore_ascii_case("json") => rest.trim(),
        _ => inside.trim(),
    }
}

/// Reads the option `model`.
pub(super) fn model(options: &mut Options, default: &str) -> String {
    let model = options.string_or("model", default);
    if model.trim().is_empty() {
        options.fault("model", "must not be empty");
    }
    model
}

/// Reads the option `temperature`: nothing is sent if it is `null`, which some models want.
pub(super) fn temperature(options: &mut Options, default: f64) -> Option<Box<RawValue>> {
    let value = options.number_or("temperature", default);
    if !(0.0..=2.0).contains(&value) {
        options.fault("temperature", "must be from 0 to 2");
    }
    (!options.is_null("temperature")).then(|| client::number(value))
}

/// Reads the option `response_format`: JSON, unless something else is asked for.
pub(super) fn response_format(options: &mut Options) -> Box<RawValue> {
    let given = options.json("response_format");
    let json = given.unwrap_or_else(|| JSON_OBJECT.to_owned());
    RawValue::from_string(json).unwrap_or_default()
}

/// The format of JSON alone, for a link whose reply must be that.
pub(super) fn json_object() -> Box<RawValue> {
    RawValue::from_string(JSON_OBJECT.to_owned()).unwrap_or_default()
}

/// Writes a value as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<Box<RawValue>, Failure> {
    let written = to_raw_value(value);
    written.map_err(|error| Failure::permanent(format!("could not write JSON: {error}")))
}

/// What the tests of these links share: a server that answers as it is told, and a run until the link is done.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod testing {
    use serde_json::{Value, json};

    use crate::http_client::tests::serve_with;
    use crate::link::testing::opened;
    use crate::link::{Context, Link, LinkError, Next};
    use crate::options::Options;
    use crate::vcon::{Vcon, VconId, Version};

    /// The key of the tests.
    pub const KEY: &str = "sk-test-0123456789";

    /// What a link has done with a vCon.
    pub struct Done {
        /// How its last run ended.
        pub end: Result<Next, LinkError>,
        /// How many runs ended with `Again`.
        pub parts: usize,
        pub vcon: Value,
        /// The requests: their heads in lower case, and their bodies.
        pub requests: Vec<(String, Value)>,
    }

    /// Runs a link until it is done, against a server that gives these answers and no more. `URL` in the options is
    /// that of the server.
    pub fn run(
        open: fn(&mut Options) -> Box<dyn Link>,
        options: &str,
        document: &Value,
        answers: Vec<(u16, Value)>,
    ) -> Done {
        let answers = answers.into_iter().map(|(status, body)| {
            let text = match body {
                Value::String(text) => text,
                body => body.to_string(),
            };
            (status, text)
        });
        let (address, server) = serve_with(answers.collect());
        let options = options.replace("URL", &format!("http://{address}"));
        let mut link = opened(open, &options);
        assert!(link.rewrites() && link.counts_requests() && !link.longest_call().is_zero());
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        let mut vcon = Vcon::read(VconId::random(), &document.to_string()).unwrap();
        let mut parts = 0;
        let end = loop {
            match link.run(&mut vcon, &mut context) {
                Ok(Next::Again) => parts += 1,
                end => break end,
            }
        };
        let requests = server.join().unwrap().into_iter().map(|request| {
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            (head.to_lowercase(), serde_json::from_str(body).unwrap())
        });
        Done {
            end,
            parts,
            vcon: serde_json::from_str(&vcon.to_json()).unwrap(),
            requests: requests.collect(),
        }
    }

    /// Options for the server of a test, and others.
    pub fn options(others: &str) -> String {
        format!("{{base_url: URL/v1, api_key: {KEY}, {others}}}")
    }

    /// A vCon of so many dialogs with transcripts.
    pub fn with_transcripts(dialogs: usize) -> Value {
        let text = |index| json!({"paragraphs": {"transcript": format!("words {index}")}});
        let transcript = |index| json!({"type": "transcript", "dialog": index, "vendor": "v", "body": text(index)});
        json!({
            "vcon": "0.4.0",
            "dialog": vec![json!({"type": "recording"}); dialogs],
            "analysis": (0..dialogs).map(transcript).collect::<Vec<_>>(),
        })
    }

    /// The answer of `chat/completions` with this text.
    pub fn reply(text: &str) -> (u16, Value) {
        let message = json!({"role": "assistant", "content": text});
        (
            200,
            json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}),
        )
    }

    /// An error as OpenAI answers it.
    pub fn error(status: u16, code: &str) -> (u16, Value) {
        (
            status,
            json!({"error": {"message": "why", "type": "t", "param": null, "code": code}}),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn json_is_found_within_a_fence() {
        for reply in [
            "{}",
            " {} \n",
            "```json\n{}\n```",
            "```JSON\n{}```",
            "```\n{}\n```\n",
        ] {
            assert_eq!(json_in(reply), "{}");
        }
        assert_eq!(json_in("```{}"), "```{}");
    }

    #[test]
    fn what_was_looked_up_is_not_told() {
        let mut options = Options::from_yaml("{}");
        let secrets = [Secret::new("hunter2"), Secret::new("gpt-5")];
        options.set_looked_up(&secrets.into());
        let members = [("model", "gpt-5"), ("prompt", "say hunter2"), ("a", "b")];
        let schema = Schema::new(&options, &members);
        let written = schema
            .with(&[("more", "m".to_owned())])
            .map(|it| it.get().to_owned());
        assert_eq!(
            written.as_deref(),
            Ok(r#"{"prompt":"say ***","a":"b","more":"m"}"#)
        );
    }

    #[test]
    fn one_failure_names_all_that_was_refused() {
        assert_eq!(all_refused("dialog", &[]), None);
        let two = [(0, Failure::permanent("a")), (2, Failure::permanent("b"))];
        let failure = all_refused("dialog", &two);
        assert_eq!(
            failure,
            Some(Failure::permanent("dialog 0: a; dialog 2: b"))
        );
        let mixed = [(0, Failure::permanent("a")), (1, Failure::refused("b"))];
        let failure = all_refused("analysis", &mixed);
        assert_eq!(
            failure,
            Some(Failure::refused("analysis 0: a; analysis 1: b"))
        );
    }
}
