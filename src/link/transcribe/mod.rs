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
//! The options of a vendor stand in `vendor_options`; under an older name also beside the others.

mod answer;
mod audio;
mod deepgram;
mod hugging_face;
mod openai;
mod service;

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use self::audio::{Audio, Label, Source};
use self::deepgram::Deepgram;
use self::hugging_face::HuggingFace;
use self::openai::OpenAi;
use super::{Context, Link, LinkError, Next};
use crate::deadline::{Deadline, Limit};
use crate::failure::{Failure, FailureKind};
use crate::http_client::{Fetcher, Url};
use crate::options::Options;
use crate::secret::{Secret, names_a_secret};
use crate::vcon::{Body, Dialog, Vcon, VconError, VconId};

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

/// The most dialogs that one failure names.
const MOST_NAMED: usize = 5;

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
    let names = VENDORS.map(|row| row.name);
    let vendor = options.required_word("vendor", &names);
    let vendor = VENDORS.iter().find(|row| Some(row.name) == vendor);
    let link = opened(options, vendor.copied(), true);
    Box::new(link)
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
    let mut within = options.within("vendor_options");
    if let Some(row) = row {
        link.read_vendor_options(if is_apart { &mut within } else { options }, row);
        options.adopt("vendor_options", within);
    }
    link
}

impl Transcribe {
    fn read_vendor_options(&mut self, options: &mut Options, row: &VendorRow) {
        self.minimum_duration = options.number_or("minimum_duration", row.minimum_duration);
        self.vendor = (row.open)(options);
        for option in ["send_ai_usage_data_to_url", "ai_usage_api_token"] {
            options.without_effect(option, "nobody is told what was used");
        }
        let mut shown =
            Map::from_iter([("minimum_duration".to_owned(), json!(row.minimum_duration))]);
        let defaults = row.defaults.iter();
        shown.extend(defaults.map(|(name, value)| ((*name).to_owned(), json!(value))));
        let given = serde_json::from_str(&options.known_as_json()).unwrap_or_default();
        shown.extend(without_secrets(given, options.looked_up()));
        OWN.iter().for_each(|name| drop(shown.remove(*name)));
        if let Ok(schema) = to_raw_value(&json!({"opts": shown})) {
            self.vendor_schema = schema;
        }
    }

    /// The next dialog that is to be transcribed, if any is left.
    fn next<'a>(
        &self,
        vcon: &'a Vcon,
        refused: &[(usize, Failure)],
    ) -> Result<Option<Dialog<'a>>, VconError> {
        let discarded = self.discarded.iter().flat_map(|(_, dialogs)| dialogs);
        let mut done: Vec<usize> = discarded.copied().collect();
        done.extend(refused.iter().map(|(dialog, _)| *dialog));
        for dialog in vcon.dialog()? {
            if !done.contains(&dialog.index)
                && self.is_wanted(&dialog)
                && !has_transcript(vcon, dialog.index)?
            {
                return Ok(Some(dialog));
            }
        }
        Ok(None)
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
        context: &Context<'_>,
    ) -> Result<Transcript, LinkError> {
        let vendor = self.vendor()?;
        let _permit = context.permit()?;
        let input = match source {
            Source::Inline(bytes) => Input::Audio(Audio::inline(bytes, label)),
            Source::Url(url) if vendor.fetches_urls() => Input::Url(url),
            Source::Url(url) => Input::Audio(self.fetch(&url, label, context.deadline)?),
        };
        if let Input::Audio(audio) = &input
            && audio.bytes.is_empty()
        {
            return Err(Failure::refused("its audio is empty").into());
        }
        let limit = context.deadline.begin(self.timeout);
        Ok(vendor.transcribe(&input, limit)?)
    }

    fn fetch(&self, url: &str, label: &Label, deadline: Deadline) -> Result<Audio, Failure> {
        let limit = deadline.begin(self.fetch_timeout);
        let fetched = self.fetcher.fetch(url, limit, self.max_audio_size)?;
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
                Ok(source) => source,
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
        match left_out(&context.refused) {
            Some(failure) => Err(failure.into()),
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

/// Whether a dialog has a transcript already.
fn has_transcript(vcon: &Vcon, dialog: usize) -> Result<bool, VconError> {
    let is_transcript = |kind: String| kind == TRANSCRIPT;
    let mut analyses = vcon.analysis()?;
    Ok(analyses.any(|it| it.text("type").is_some_and(is_transcript) && it.is_of_dialog(dialog)))
}

/// One failure for all dialogs that could not be transcribed.
fn left_out(refused: &[(usize, Failure)]) -> Option<Failure> {
    if refused.is_empty() {
        return None;
    }
    // What is in doubt is tried again if the server turns out to refuse all alike.
    let mut kinds = refused.iter().map(|(_, failure)| failure.kind);
    let kind = if kinds.any(|kind| kind == FailureKind::Refused) {
        FailureKind::Refused
    } else {
        FailureKind::Permanent
    };
    let named = refused.iter().take(MOST_NAMED);
    let mut named: Vec<String> = named
        .map(|(dialog, failure)| format!("dialog {dialog}: {failure}"))
        .collect();
    if refused.len() > MOST_NAMED {
        named.push(format!("{} more", refused.len() - MOST_NAMED));
    }
    let named = named.join("; ");
    Some(Failure::new(kind, format!("could not transcribe {named}")))
}

/// The body of an answer that is an object with `text`.
fn text_of_answer(url: &Url, body: &[u8]) -> Result<Transcript, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| answer::unreadable(url, error);
    let value: &RawValue = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
    let members: Value = serde_json::from_str(value.get()).map_err(|error| unreadable(&error))?;
    match members.get("text") {
        Some(Value::String(_)) => Ok(Transcript::Body(value.to_owned())),
        _ => Err(unreadable(&"it has no `text`")),
    }
}

/// The options without what must not be read in a vCon, at any depth: what has the name of a secret, the logins
/// in URLs, and what was looked up in a variable or file.
fn without_secrets(options: Map<String, Value>, looked_up: &[Secret]) -> Map<String, Value> {
    let shown = options.into_iter().filter(|(name, _)| !is_secret(name));
    let shown = shown.filter_map(|(name, value)| Some((name, shown_value(value, looked_up)?)));
    shown.collect()
}

fn is_secret(name: &str) -> bool {
    name.ends_with("_file") || names_a_secret(name)
}

fn shown_value(value: Value, looked_up: &[Secret]) -> Option<Value> {
    match value {
        Value::Object(members) => Some(without_secrets(members, looked_up).into()),
        Value::Array(items) => {
            let shown = items.into_iter();
            Some(shown.filter_map(|it| shown_value(it, looked_up)).collect())
        }
        Value::String(text) if looked_up.iter().any(|it| it.reveal() == text) => None,
        Value::String(text) => {
            let text = looked_up.iter().fold(text, |text, it| it.hide_in(text));
            if text.contains("://") {
                let url: Url = text.parse().ok()?;
                return Some(url.to_string().into());
            }
            Some(text.into())
        }
        value => Some(value),
    }
}
