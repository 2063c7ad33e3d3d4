//! `links.transcribe`: has the recordings of a vCon transcribed by a service.
//!
//! Reads each dialog of the type `recording` that has no analysis of the type `transcript` yet, and adds one.
//! One run makes one request at most and returns [`Next::Again`], so that what was paid for is in Redis before the
//! next request is made. A dialog that cannot be transcribed is left out; the others are transcribed, and then the
//! vCon fails with the reasons of all that were left out.
//!
//! | vendor | file | older name of the module |
//! |---|---|---|
//! | `deepgram` | [`deepgram`] | `links.deepgram_link` |
//! | `openai` | [`openai`] | `links.openai_transcribe` |
//! | `groq` | [`openai`] | `links.groq_whisper` |
//! | `hugging_face` | [`hugging_face`] | `links.hugging_face_whisper` |
//!
//! The options of a vendor stand in `vendor_options`; under an older name also beside the others. Options without a
//! vendor mean the model in the Python module of the existing worker ([`has_model_in_python`]).

mod audio;
mod deepgram;
mod hugging_face;
mod openai;

use std::collections::HashSet;
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use self::audio::{Audio, Label, Source};
use self::deepgram::Deepgram;
use self::hugging_face::HuggingFace;
use self::openai::OpenAi;
use super::service::reply::sound;
use super::service::{all_refused, shown, without_usage_reports};
use super::{Context, Link, LinkError, Next};
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::http_client::{Fetcher, Url};
use crate::options::Options;
use crate::options::yaml::{Mapping, NodeKind};
use crate::vcon::{Body, Dialog, Vcon, VconError, VconId};
use crate::visible::printable;

/// The type of the analyses that are added.
const TRANSCRIPT: &str = "transcript";

/// The option that allows URLs of vCons to lead to private addresses.
const ALLOW_PRIVATE: &str = "allow_private_urls";

/// The options that are not the vendor's.
const OWN: [&str; 6] = [
    "vendor",
    "vendor_options",
    "timeout",
    "fetch_timeout",
    "max_audio_size",
    ALLOW_PRIVATE,
];

/// The most characters of what is wrong with an answer.
const LONGEST_REASON: usize = 300;

/// A vendor: its name in `config.yml`, its shortest recording in seconds, and how its options are read.
struct VendorRow {
    name: &'static str,
    minimum_duration: f64,
    /// What stands in `vendor_schema` where the options do not say otherwise.
    defaults: &'static [(&'static str, &'static str)],
    open: fn(&mut Options) -> Option<Box<dyn Vendor>>,
}

const DEEPGRAM: VendorRow = VendorRow {
    name: "deepgram",
    minimum_duration: 60.0,
    defaults: &[],
    open: |options| Some(Box::new(Deepgram::open(options)?)),
};

const OPENAI: VendorRow = VendorRow {
    name: "openai",
    minimum_duration: 3.0,
    defaults: &[("model", openai::MODEL)],
    open: |options| Some(Box::new(OpenAi::open(options)?)),
};

const GROQ: VendorRow = VendorRow {
    name: "groq",
    minimum_duration: 30.0,
    defaults: &[("model", openai::MODEL_OF_GROQ)],
    open: |options| Some(Box::new(OpenAi::open_groq(options)?)),
};

const HUGGING_FACE: VendorRow = VendorRow {
    name: "hugging_face",
    minimum_duration: 30.0,
    defaults: &[("Content-Type", hugging_face::MEDIA_TYPE)],
    open: |options| Some(Box::new(HuggingFace::open(options)?)),
};

/// The vendor of the existing worker that is a model on its own machine, and none here.
const IN_PYTHON: &str = "whisper_builtin";

const VENDORS: [&VendorRow; 4] = [&DEEPGRAM, &OPENAI, &GROQ, &HUGGING_FACE];

/// A service that transcribes.
trait Vendor: Send {
    /// Its name in the analyses.
    fn name(&self) -> &'static str;

    /// Whether it fetches URLs by itself.
    fn fetches_urls(&self) -> bool {
        false
    }

    /// Makes one request, within the limit.
    fn transcribe(&self, input: &Input, limit: Limit) -> Result<Transcript, Failure>;

    /// Answers whether it could be asked now. Costs nothing.
    fn probe(&self) -> Result<(), Failure>;
}

/// What a vendor gets.
enum Input {
    /// Where the audio is: for vendors that fetch URLs.
    Url(String),
    /// The audio.
    Audio(Audio),
}

/// What comes of it.
enum Transcript {
    /// The body of an analysis.
    Body(Box<RawValue>),
    /// Nothing to keep, and why.
    Discarded(String),
}

struct Transcribe {
    /// Always there once the options are right.
    vendor: Option<Box<dyn Vendor>>,
    vendor_schema: Box<RawValue>,
    minimum_duration: f64,
    fetcher: Fetcher,
    max_audio_size: u64,
    timeout: Duration,
    fetch_timeout: Duration,
    /// The dialogs whose transcripts were discarded, of the vCon in hand: they are not paid for again.
    discarded: Option<(VconId, Vec<usize>)>,
}

/// `links.transcribe`, with a vendor that the options name.
pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let [deepgram, openai, groq, hugging_face] = VENDORS.map(|row| row.name);
    let names = [deepgram, openai, groq, hugging_face, IN_PYTHON];
    let vendor = options.word_or("vendor", IN_PYTHON, &names);
    if vendor == Some(IN_PYTHON) {
        let known = names[..VENDORS.len()].join(", ");
        let message = format!(
            "is not one of {known}: the model of the Python module links.transcribe is meant; set \
             CONSERVER_PYTHON_PATH to the folder that has it, or name a vendor"
        );
        options.fault("vendor", message);
    }
    // The options of that model.
    options.pass_over("transcribe_options");
    let vendor = VENDORS.iter().find(|row| Some(row.name) == vendor);
    let link = opened(options, vendor.copied(), true);
    Box::new(link)
}

/// Whether options of `links.transcribe` name no service: they mean the model that its Python module has.
pub(super) fn has_model_in_python(options: &Mapping) -> bool {
    let entry = |key: &str| options.get(key).map(|entry| &entry.value.kind);
    let is_given = |key: &str| entry(key).is_some_and(|kind| !kind.is_empty());
    match entry("vendor") {
        Some(NodeKind::Scalar(name)) if !name.trim().is_empty() => name.trim() == IN_PYTHON,
        _ => !is_given("vendor") && !is_given("vendor_options"),
    }
}

/// `links.deepgram_link`.
pub(super) fn open_deepgram(options: &mut Options) -> Box<dyn Link> {
    open_older(options, &DEEPGRAM)
}

/// `links.openai_transcribe`.
pub(super) fn open_openai(options: &mut Options) -> Box<dyn Link> {
    open_older(options, &OPENAI)
}

/// `links.groq_whisper`.
pub(super) fn open_groq(options: &mut Options) -> Box<dyn Link> {
    open_older(options, &GROQ)
}

/// `links.hugging_face_whisper`.
pub(super) fn open_hugging_face(options: &mut Options) -> Box<dyn Link> {
    open_older(options, &HUGGING_FACE)
}

/// The link under an older name, which names the vendor.
fn open_older(options: &mut Options, vendor: &'static VendorRow) -> Box<dyn Link> {
    options.word_or("vendor", vendor.name, &[vendor.name]);
    Box::new(opened(options, Some(vendor), false))
}

fn opened(options: &mut Options, row: Option<&'static VendorRow>, apart: bool) -> Transcribe {
    let timeout = options.seconds_or("timeout", 120.0);
    let fetch_timeout = options.seconds_or("fetch_timeout", 60.0);
    for (key, time) in [("timeout", timeout), ("fetch_timeout", fetch_timeout)] {
        if time.is_zero() {
            options.fault(key, "must be more than 0");
        }
    }
    let max_audio_size = options.integer_or("max_audio_size", 100 << 20, 1..=i64::from(u32::MAX));
    let allow_private = options.bool_or(ALLOW_PRIVATE, false);
    let mut link = Transcribe {
        vendor: None,
        vendor_schema: RawValue::NULL.to_owned(),
        minimum_duration: 0.0,
        fetcher: Fetcher::new(allow_private, ALLOW_PRIVATE),
        max_audio_size: u64::try_from(max_audio_size).unwrap_or_default(),
        timeout,
        fetch_timeout,
        discarded: None,
    };
    let is_apart = apart || options.is_given("vendor_options");
    let Some(row) = row else {
        // Nobody knows what is in it.
        options.json("vendor_options");
        return link;
    };
    let mut within = options.within("vendor_options");
    link.read_vendor_options(if is_apart { &mut within } else { options }, row);
    options.adopt("vendor_options", within);
    link
}

impl Transcribe {
    fn read_vendor_options(&mut self, options: &mut Options, row: &VendorRow) {
        self.minimum_duration = options.number_or("minimum_duration", row.minimum_duration);
        self.vendor = (row.open)(options);
        without_usage_reports(options);
        let mut schema =
            Map::from_iter([("minimum_duration".to_owned(), json!(row.minimum_duration))]);
        let defaults = row.defaults.iter();
        schema.extend(defaults.map(|(name, value)| ((*name).to_owned(), json!(value))));
        let given = serde_json::from_str(&options.known_as_json()).unwrap_or_default();
        schema.extend(shown(given, options.looked_up()));
        OWN.iter().for_each(|name| drop(schema.remove(*name)));
        if let Ok(schema) = to_raw_value(&json!({"opts": schema})) {
            self.vendor_schema = schema;
        }
    }

    /// The next dialog that is to be transcribed, if any is left.
    fn next<'a>(
        &self,
        vcon: &'a Vcon,
        refused: &[(usize, Failure)],
    ) -> Result<Option<Dialog<'a>>, VconError> {
        let mut done = transcribed(vcon)?;
        done.extend(self.discarded.iter().flat_map(|(_, dialogs)| dialogs));
        done.extend(refused.iter().map(|(dialog, _)| *dialog));
        let mut dialogs = vcon.dialog()?;
        Ok(dialogs.find(|it| !done.contains(&it.index) && self.is_wanted(it)))
    }

    /// Whether a dialog is a recording that is not known to be too short.
    fn is_wanted(&self, dialog: &Dialog<'_>) -> bool {
        let is_recording = dialog.text("type").is_some_and(|it| it == "recording");
        let duration = || {
            let number = dialog.get("duration")?.get().trim_matches('"');
            number.trim().parse::<f64>().ok()
        };
        is_recording && duration().is_none_or(|seconds| seconds >= self.minimum_duration)
    }

    /// Has one dialog transcribed.
    fn transcribe(
        &self,
        source: Source,
        label: &Label,
        context: &mut Context<'_>,
    ) -> Result<Transcript, LinkError> {
        let vendor = self.vendor()?;
        let input = match source {
            Source::Inline(bytes) => Input::Audio(Audio::inline(bytes, label)),
            Source::Url(url) if vendor.fetches_urls() => {
                self.fetcher.check_url(&url)?;
                Input::Url(url)
            }
            Source::Url(url) => Input::Audio(self.fetch(&url, label, context.deadline)?),
        };
        if let Input::Audio(audio) = &input
            && audio.bytes.is_empty()
        {
            return Err(Failure::refused("its audio is empty").into());
        }
        // The audio may take long, and asks another server.
        let _permit = context.permit()?;
        let limit = context.deadline.begin(self.timeout);
        Ok(vendor.transcribe(&input, limit)?)
    }

    fn fetch(&self, url: &str, label: &Label, deadline: Deadline) -> Result<Audio, Failure> {
        let limit = deadline.begin(self.fetch_timeout);
        let fetched = self.fetcher.fetch(url, limit, self.max_audio_size)?;
        label.verify(&fetched.bytes).map_err(Failure::permanent)?;
        Ok(Audio::fetched(fetched, url, label))
    }

    fn vendor(&self) -> Result<&dyn Vendor, Failure> {
        let none = || Failure::transient("the link has no vendor");
        self.vendor.as_deref().ok_or_else(none)
    }

    fn discard(&mut self, id: &VconId, dialog: usize) {
        match &mut self.discarded {
            Some((of, dialogs)) if of == id => dialogs.push(dialog),
            discarded => *discarded = Some((id.clone(), vec![dialog])),
        }
    }
}

impl Link for Transcribe {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let id = vcon.id().clone();
        self.discarded = self.discarded.take().filter(|(of, _)| *of == id);
        while let Some(dialog) = self.next(vcon, &context.refused)? {
            let (index, label) = (dialog.index, Label::of(&dialog));
            let prefers_urls = self.vendor()?.fetches_urls();
            let source = match Source::of(&dialog, prefers_urls) {
                Ok(Some(source)) => source,
                Ok(None) => {
                    log::warn!(
                        vcon_id = id.as_str();
                        "dialog {index} of {id} is not transcribed: it has neither a body nor a URL"
                    );
                    drop(dialog);
                    self.discard(&id, index);
                    continue;
                }
                // Nobody was asked: the next one can be looked at right away.
                Err(why) => {
                    context.refused.push((index, Failure::permanent(why)));
                    continue;
                }
            };
            drop(dialog);
            match self.transcribe(source, &label, context) {
                Ok(Transcript::Body(body)) => {
                    let vendor = self.vendor()?.name();
                    let more = [("vendor_schema", &*self.vendor_schema)];
                    let body = Body::Json(&body);
                    vcon.add_analysis_with(TRANSCRIPT, &[index], vendor, body, &more)?;
                }
                Ok(Transcript::Discarded(why)) => {
                    log::warn!(
                        vcon_id = id.as_str();
                        "the transcript of dialog {index} of {id} is not kept: {why}"
                    );
                    self.discard(&id, index);
                }
                Err(LinkError::Failed(failure)) if failure.kind.is_final() => {
                    context.refused.push((index, failure));
                    if self.next(vcon, &context.refused)?.is_none() {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
            return Ok(Next::Again);
        }
        self.discarded = None;
        match all_refused("dialog", &context.refused) {
            Some(failure) => {
                let message = format!("could not transcribe {failure}");
                Err(Failure { message, ..failure }.into())
            }
            None => Ok(Next::Continue),
        }
    }

    fn rewrites(&self) -> bool {
        true
    }

    fn counts_requests(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        self.fetch_timeout + self.timeout
    }

    fn probe(&mut self, _: &Receiver<()>) -> Result<(), Failure> {
        self.vendor()?.probe()
    }
}

/// The dialogs that have a transcript already.
fn transcribed(vcon: &Vcon) -> Result<HashSet<usize>, VconError> {
    let is_transcript = |kind: String| kind == TRANSCRIPT;
    let analyses = vcon.analysis()?;
    let transcripts = analyses.filter(|it| it.text("type").is_some_and(is_transcript));
    Ok(transcripts.flat_map(|it| it.dialogs()).collect())
}

/// The body of an answer that is an object with `text`.
fn text_of_answer(url: &Url, body: &[u8]) -> Result<Transcript, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| unreadable(url, error);
    let text = sound(body).map_err(|why| unreadable(&why))?;
    let value: &RawValue = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    let members: Value = serde_json::from_str(value.get()).map_err(|error| unreadable(&error))?;
    match members.get("text") {
        Some(Value::String(_)) => Ok(Transcript::Body(value.to_owned())),
        _ => Err(unreadable(&"it has no `text`")),
    }
}

/// A 2xx answer that is not what the service is known to answer. It is paid for, and not asked for again at once.
fn unreadable(url: &Url, why: impl std::fmt::Display) -> Failure {
    let why: String = why.to_string().chars().take(LONGEST_REASON).collect();
    let why = printable(&why);
    Failure::refused(format!("the answer of {url} has no transcript: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;
    use crate::http_client::tests::serve_with;
    use crate::link::testing::opened as link_with;
    use crate::vcon::Version;

    /// What Deepgram answers.
    fn heard(words: &str, confidence: f64) -> String {
        json!({"results": {"channels": [{"alternatives": [{"transcript": words, "confidence": confidence}]}]}})
            .to_string()
    }

    fn deepgram(address: &str, more: &str) -> Box<dyn Link> {
        let options = format!(
            "{{vendor: deepgram, vendor_options: {{DEEPGRAM_KEY: sk-geheim, base_url: 'http://{address}'{more}}}}}"
        );
        link_with(open, &options)
    }

    /// Three recordings of which the second is none, and what else a vCon has.
    fn three() -> Vcon {
        vcon(&json!([
            {"type": "text", "body": "hello"},
            {"type": "recording", "url": "https://h/1", "duration": 61.5},
            {"type": "recording", "body": "?", "encoding": "base64url"},
            {"type": "recording", "url": "https://h/3"},
        ]))
    }

    fn vcon(dialog: &Value) -> Vcon {
        let text = json!({"dialog": dialog}).to_string();
        Vcon::parse(VconId::random(), text).unwrap()
    }

    /// Runs the link until it does not ask for more; returns how often it did, and how it ended.
    fn run(link: &mut dyn Link, vcon: &mut Vcon) -> (usize, Result<Next, LinkError>) {
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        for count in 0..20 {
            match link.run(vcon, &mut context) {
                Ok(Next::Again) => {}
                end => return (count, end),
            }
        }
        unreachable!("it never ends")
    }

    fn analyses(vcon: &mut Vcon) -> Vec<Value> {
        let document: Value = serde_json::from_str(&vcon.to_json()).unwrap();
        document["analysis"].as_array().cloned().unwrap_or_default()
    }

    fn faults(open: fn(&mut Options) -> Box<dyn Link>, text: &str) -> Vec<String> {
        let mut options = Options::from_yaml(text);
        open(&mut options);
        options.finish();
        let mut told = options.faults();
        told.extend(options.warnings());
        told
    }

    #[test]
    fn each_run_transcribes_one_dialog_and_the_end_names_those_that_could_not_be() {
        let answers = [heard("eins", 0.9), heard("drei", 0.9)];
        let (address, server) = serve_with(answers.map(|it| (200, it)).into());
        let (mut link, mut vcon) = (deepgram(&address, ""), three());
        let (runs, end) = run(&mut *link, &mut vcon);
        assert_eq!(runs, 2);
        let LinkError::Failed(failure) = end.unwrap_err() else {
            unreachable!()
        };
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(
            failure
                .message
                .starts_with("could not transcribe dialog 2: its body is not base64url"),
            "{failure}"
        );
        let found = analyses(&mut vcon);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            json!({
                "type": "transcript", "dialog": 3, "vendor": "deepgram",
                "body": {"transcript": "drei", "confidence": 0.9, "detected_language": "en"}, "encoding": "json",
                "vendor_schema": {"opts": {"base_url": format!("http://{address}/"), "minimum_duration": 60.0}},
            })
        );
        let requests = server.join().unwrap();
        assert!(
            requests[0].ends_with(r#"{"url":"https://h/1"}"#),
            "{requests:?}"
        );
        assert!(
            requests[1]
                .to_lowercase()
                .contains("\r\nauthorization: token sk-geheim\r\n"),
            "{requests:?}"
        );

        // Nothing is paid for again.
        let (runs, end) = run(&mut *link, &mut vcon);
        assert_eq!((runs, end.is_err()), (0, true));
    }

    #[test]
    fn what_is_wanted_is_a_recording_that_is_long_enough_and_has_no_transcript() {
        let (address, server) = serve_with(vec![(200, heard("w", 0.9)); 3]);
        let mut link = deepgram(&address, ", minimum_duration: 10");
        let text = json!({
            "dialog": [
                {"type": "recording", "url": "https://h/0", "duration": 9.9},
                {"type": "recording", "url": "https://h/1", "duration": "10"},
                {"type": "recording", "url": "https://h/2", "duration": 60},
                {"type": "recording", "url": "https://h/3", "duration": 60},
                {"type": "text", "url": "https://h/4"},
                {"url": "https://h/5"},
                {"type": "recording", "url": "https://h/6", "duration": null},
                {"type": "recording", "url": "https://h/7", "duration": "long"},
            ],
            "analysis": [
                {"type": "transcript", "dialog": 2, "body": "w"}, {"type": "transcript", "dialog": [3], "body": "w"},
                {"type": "summary", "dialog": 1, "body": "w"},
            ],
        });
        let mut vcon = Vcon::parse(VconId::random(), text.to_string()).unwrap();
        assert_eq!(run(&mut *link, &mut vcon), (3, Ok(Next::Continue)));
        let asked = server.join().unwrap();
        let urls = ["https://h/1", "https://h/6", "https://h/7"];
        for (request, url) in asked.iter().zip(urls) {
            assert!(
                request.ends_with(&json!({"url": url}).to_string()),
                "{request}"
            );
        }
    }

    #[test]
    fn a_transcript_of_little_confidence_is_paid_for_once_and_not_kept() {
        let answers = vec![(200, heard("w", 0.3)), (200, heard("w", 0.5))];
        let (address, server) = serve_with(answers);
        let mut link = deepgram(&address, "");
        let mut vcon = vcon(&json!([
            {"type": "recording", "url": "https://h/0"}, {"type": "recording", "url": "https://h/1"},
        ]));
        assert_eq!(run(&mut *link, &mut vcon), (2, Ok(Next::Continue)));
        assert_eq!(analyses(&mut vcon)[0]["dialog"], json!(1));
        assert_eq!(server.join().unwrap().len(), 2);
    }

    #[test]
    fn what_may_pass_ends_the_run_and_what_does_not_the_dialog() {
        let no = |reason: &str| json!({"err_code": "x", "err_msg": reason}).to_string();
        for (status, body, kind) in [
            (500, no("later"), FailureKind::Transient),
            (429, no("later"), FailureKind::Busy),
            (401, no("who are you"), FailureKind::Denied),
        ] {
            let (address, server) = serve_with(vec![(status, body)]);
            let (runs, end) = run(&mut *deepgram(&address, ""), &mut three());
            let Err(LinkError::Failed(failure)) = end else {
                unreachable!("{end:?}")
            };
            assert_eq!((runs, failure.kind), (0, kind), "{failure}");
            server.join().unwrap();
        }
        let answers = vec![(400, no("other")), (200, heard("drei", 0.9))];
        let (address, server) = serve_with(answers);
        let (runs, end) = run(&mut *deepgram(&address, ""), &mut three());
        let Err(LinkError::Failed(failure)) = end else {
            unreachable!("{end:?}")
        };
        // One of the two may be the server's fault.
        assert_eq!((runs, failure.kind), (2, FailureKind::Refused), "{failure}");
        assert!(
            failure.message.contains("dialog 1: http")
                && failure.message.contains("dialog 2: its body"),
            "{failure}"
        );
        server.join().unwrap();
    }

    #[test]
    fn an_answer_that_cannot_be_used_is_not_paid_for_again() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        let deep = format!(
            r#"{{"results":{{"channels":[{{"alternatives":[{{"transcript":"w","words":{deep}}}]}}]}}}}"#
        );
        for body in ["{\"results\":", "{\"results\":{\"channels\":[]}}", &deep] {
            let answers = vec![(200, body.to_owned()), (200, heard("drei", 0.9))];
            let (address, server) = serve_with(answers);
            let mut vcon = three();
            let (runs, end) = run(&mut *deepgram(&address, ""), &mut vcon);
            let Err(LinkError::Failed(failure)) = end else {
                unreachable!("{end:?}")
            };
            assert_eq!((runs, failure.kind), (2, FailureKind::Refused), "{failure}");
            assert_eq!(analyses(&mut vcon)[0]["dialog"], 3);
            server.join().unwrap();
        }
    }

    #[test]
    fn a_service_is_not_sent_to_what_only_its_own_machines_reach() {
        for url in ["http://169.254.169.254/latest", "file:///etc/passwd"] {
            let mut vcon = vcon(&json!([{"type": "recording", "url": url}]));
            let (runs, end) = run(&mut *deepgram("127.0.0.1:1", ""), &mut vcon);
            let Err(LinkError::Failed(failure)) = end else {
                unreachable!("{end:?}")
            };
            assert_eq!(
                (runs, failure.kind),
                (0, FailureKind::Permanent),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_recording_without_audio_is_passed_over() {
        let mut vcon = vcon(&json!([{"type": "recording"}, {"type": "recording", "url": " "}]));
        let (runs, end) = run(&mut *deepgram("127.0.0.1:1", ""), &mut vcon);
        assert_eq!((runs, end), (0, Ok(Next::Continue)));
    }

    #[test]
    fn older_names_take_the_options_of_their_vendor_beside_the_others_or_apart() {
        let (address, server) = serve_with(vec![(200, r#"{"text":"w","x":[1.50]}"#.to_owned()); 2]);
        for options in [
            format!(
                "{{API_KEY: k, base_url: 'http://{address}/v1', minimum_duration: 2, timeout: 9}}"
            ),
            format!(
                "{{timeout: 9, vendor_options: {{API_KEY: k, base_url: 'http://{address}/v1', minimum_duration: 2}}}}"
            ),
        ] {
            let mut link = link_with(open_groq, &options);
            assert_eq!(link.longest_call(), Duration::from_secs(69));
            assert!(link.rewrites() && link.counts_requests());
            let mut vcon = vcon(
                &json!([{"type": "recording", "body": "YWJj", "duration": 2, "filename": "a.mp3"}]),
            );
            assert_eq!(run(&mut *link, &mut vcon), (1, Ok(Next::Continue)));
            let url = format!("http://{address}/v1");
            assert_eq!(
                analyses(&mut vcon),
                [json!({
                    "type": "transcript", "dialog": 0, "vendor": "groq_whisper",
                    "body": {"text": "w", "x": [1.5]}, "encoding": "json",
                    "vendor_schema": {"opts": {"base_url": url, "minimum_duration": 2, "model": "whisper-large-v3-turbo"}},
                })]
            );
            assert!(vcon.to_json().contains("1.50"));
        }
        let requests = server.join().unwrap();
        assert!(
            requests[0].starts_with("POST /v1/audio/transcriptions "),
            "{requests:?}"
        );
        assert!(
            requests[0].contains("filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\nabc\r\n"),
            "{requests:?}"
        );
    }

    #[test]
    fn options_without_a_service_mean_the_model_in_python() {
        for (text, expected) in [
            ("{}", true),
            ("{transcribe_options: {model_size: base}}", true),
            ("{vendor: whisper_builtin, vendor_options: {a: b}}", true),
            ("{vendor: '', vendor_options: {}}", true),
            ("{vendor: deepgram}", false),
            ("{vendor_options: {a: b}}", false),
            ("{vendor: '${VENDOR}'}", false),
        ] {
            let options = Options::from_yaml(text).into_entries();
            assert_eq!(has_model_in_python(&options), expected, "{text}");
        }
        let both =
            "{vendor: deepgram, vendor_options: {DEEPGRAM_KEY: k}, transcribe_options: {a: b}}";
        assert_eq!(faults(open, both), [""; 0]);
        let pieces = "{OPENAI_API_KEY: k, max_chunk_duration: 9, use_silence_chunking: true, silence_thresh: -40}";
        assert_eq!(faults(open_openai, pieces), [""; 0]);
    }

    #[test]
    fn keys_may_come_from_the_environment() {
        let open_with = |text: &str| {
            let variables = [
                ("OPENAI_API_KEY", "sk-environment"),
                ("DEEPGRAM_KEY", "dg-environment"),
            ];
            let mut options = Options::from_yaml_with(text, variables);
            open(&mut options);
            options.finish();
            (options.faults(), options.known_as_json())
        };
        for (text, key) in [
            ("{vendor: openai}", Some("sk-environment")),
            (
                "{vendor: openai, vendor_options: {model: m}}",
                Some("sk-environment"),
            ),
            (
                "{vendor: openai, vendor_options: {OPENAI_API_KEY: own}}",
                None,
            ),
            // Nobody else gets it.
            (
                "{vendor: openai, vendor_options: {base_url: 'http://h'}}",
                None,
            ),
            ("{vendor: deepgram}", Some("dg-environment")),
            (
                "{vendor: deepgram, vendor_options: {base_url: 'http://h'}}",
                None,
            ),
        ] {
            let (faults, kept) = open_with(text);
            assert_eq!(faults, [""; 0], "{text}");
            assert_eq!(
                kept.contains("environment"),
                key.is_some(),
                "{text}: {kept}"
            );
            assert!(key.is_none_or(|key| kept.contains(key)), "{text}: {kept}");
        }
    }

    #[test]
    fn faults_of_options_have_their_places() {
        for (open, text, expected) in [
            (
                open as fn(&mut Options) -> Box<dyn Link>,
                "{}",
                "vendor: is not one of deepgram, openai, groq, hugging_face: the model of the Python module",
            ),
            (
                open,
                "{vendor: whisper_builtin}",
                "vendor: is not one of deepgram, openai, groq, hugging_face: the model of the Python module links.transcribe is \
                 meant; set CONSERVER_PYTHON_PATH",
            ),
            (
                open,
                "{vendor: deepgram}",
                "vendor_options.DEEPGRAM_KEY: is required",
            ),
            (
                open,
                "{vendor: openai, vendor_options: {}}",
                "vendor_options.OPENAI_API_KEY: is required",
            ),
            (
                open,
                "{vendor: hugging_face}",
                "vendor_options.API_URL: is required",
            ),
            (
                open,
                "{vendor: hugging_face, vendor_options: {API_URL: x}}",
                "vendor_options.API_URL: is not a URL",
            ),
            (
                open,
                "{vendor: groq, vendor_options: 7}",
                "vendor_options: is a single value, not a mapping",
            ),
            (
                open,
                "{vendor: groq, vendor_options: {API_KEY: \"a\\nb\"}}",
                "vendor_options.API_KEY: is not one line of text",
            ),
            (
                open,
                "{vendor: groq, vendor_options: {API_KEY: a}, timeout: 0}",
                "timeout: must be more than 0",
            ),
            (
                open,
                "{vendor: groq, vendor_options: {API_KEY: a, modell: b}}",
                "vendor_options: unknown option `modell` has no effect",
            ),
            (
                open,
                "{vendor: openai, vendor_options: {api_key: a, response_format: srt}}",
                "vendor_options.response_format: \"srt\" is not json",
            ),
            (
                open,
                "{vendor: deepgram, vendor_options: {DEEPGRAM_KEY: a, api: {callback: x}}}",
                "vendor_options.api.callback: is not supported",
            ),
            (
                open,
                "{vendor: deepgram, vendor_options: {DEEPGRAM_KEY: a, api: {x: {y: 1}}}}",
                "vendor_options.api.x: is not a text",
            ),
            (open_groq, "{}", "API_KEY: is required"),
            (
                open_groq,
                "{API_KEY: a, vendor: openai}",
                "vendor: \"openai\" is not groq",
            ),
            (
                open_openai,
                "{OPENAI_API_KEY: a, base_url: ftp://x}",
                "base_url: is not a URL",
            ),
        ] {
            let told = faults(open, text);
            assert!(
                told.iter().any(|it| it.starts_with(expected)),
                "{text}: {told:?}"
            );
        }
        for (open, text) in [
            (
                open as fn(&mut Options) -> Box<dyn Link>,
                "{vendor: openai, vendor_options: {base_url: 'http://vllm:8000/v1'}}",
            ),
            (
                open_openai,
                "{LITELLM_PROXY_URL: 'http://l:4000', LITELLM_MASTER_KEY: k}",
            ),
            (
                open_openai,
                "{AZURE_OPENAI_ENDPOINT: 'https://a', AZURE_OPENAI_API_KEY: k, model: whisper-1}",
            ),
            (open_groq, "{API_KEY: k, Content-Type: audio/flac}"),
            (
                open_hugging_face,
                "{API_URL: 'https://h', API_KEY: Bearer hf_x}",
            ),
            (
                open_deepgram,
                "{DEEPGRAM_KEY: k, api: {model: nova-2, smart_format: true, keywords: [a, b]}}",
            ),
        ] {
            assert_eq!(faults(open, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn audio_that_is_too_long_for_openai_is_not_sent() {
        let link = OpenAi::open(&mut Options::from_yaml("{OPENAI_API_KEY: k}")).unwrap();
        let bytes = vec![0; (25 << 20) + 1];
        let input = Input::Audio(Audio::inline(bytes, &Label::default()));
        let sent = link.transcribe(&input, Deadline::NONE.begin(Duration::from_secs(1)));
        let Err(failure) = sent else { unreachable!() };
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(
            failure
                .message
                .contains("26214401 bytes, and OpenAI takes 26214400 at most (25 MB)"),
            "{failure}"
        );
    }

    #[test]
    fn a_signed_vcon_is_not_transcribed() {
        let mut link = deepgram("127.0.0.1:1", "");
        let text = r#"{"payload":"p","signature":"s"}"#.to_owned();
        let mut vcon = Vcon::parse(VconId::random(), text).unwrap();
        let (_, end) = run(&mut *link, &mut vcon);
        assert!(
            matches!(end, Err(LinkError::Failed(failure)) if failure.kind == FailureKind::Permanent)
        );
    }
}
