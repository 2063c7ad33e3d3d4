//! Deepgram: `POST /v1/listen` with the URL of the audio, which Deepgram fetches by itself, or with its bytes.
//!
//! The transcript is the first alternative of the first channel, with `detected_language`.

use indexmap::IndexMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use ureq::http::header::CONTENT_TYPE;

use super::{Input, Transcript, Vendor, unreadable};
use crate::deadline::Limit;
use crate::failure::Failure;
use crate::link::service::Sent;
use crate::link::service::reply::sound;
use crate::link::service::server::{Server, url_or};
use crate::options::Options;

/// Where Deepgram is.
const BASE: &str = "https://api.deepgram.com";

/// The language of a transcript of which nobody has said the language, as the existing worker has it.
const LANGUAGE: &str = "en";

pub(super) struct Deepgram {
    service: Server,
    /// The query of each request, from `api`.
    query: String,
    language: String,
    minimum_confidence: f64,
}

/// The part of an answer that is read.
#[derive(Deserialize)]
struct Reply {
    results: Results,
}

#[derive(Deserialize)]
struct Results {
    channels: Vec<Channel>,
}

#[derive(Deserialize)]
struct Channel {
    alternatives: Vec<IndexMap<String, Box<RawValue>>>,
    detected_language: Option<String>,
}

impl Deepgram {
    pub(super) fn open(options: &mut Options) -> Option<Self> {
        if options.filled_secret("DEEPGRAM_KEY").is_none() && !options.is_given("base_url") {
            options.take_variable("DEEPGRAM_KEY");
        }
        let key = options.filled_secret("DEEPGRAM_KEY");
        let url = url_or(options, "base_url", BASE);
        let is_elsewhere = options.is_given("base_url");
        let api = options.json("api").unwrap_or_else(|| "{}".to_owned());
        let api: Map<String, Value> = serde_json::from_str(&api).unwrap_or_default();
        let query = query(options, &api);
        let language = api.get("language").and_then(Value::as_str);
        let language = language.unwrap_or(LANGUAGE).to_owned();
        let minimum_confidence = options.number_or("minimum_confidence", 0.5);
        let service = match key {
            Some(key) => Server::new(options, url?, Sent::Audio).with_key(
                options,
                "DEEPGRAM_KEY",
                "Token",
                key,
            ),
            None if is_elsewhere => Server::new(options, url?, Sent::Audio),
            None => {
                options.fault("DEEPGRAM_KEY", "is required");
                return None;
            }
        };
        Some(Self {
            service,
            query,
            language,
            minimum_confidence,
        })
    }

    fn transcript(&self, body: &[u8]) -> Result<Transcript, Failure> {
        let url = &self.service.url;
        let text = sound(body).map_err(|why| unreadable(url, why))?;
        let reply: Reply = serde_json::from_str(&text).map_err(|error| unreadable(url, error))?;
        let channel = reply.results.channels.into_iter().next();
        let language = channel.as_ref().and_then(|it| it.detected_language.clone());
        let first = channel.and_then(|channel| channel.alternatives.into_iter().next());
        let mut alternative = first.ok_or_else(|| unreadable(url, "it lists no alternative"))?;
        let confidence = alternative.get("confidence");
        let confidence = confidence.and_then(|it| serde_json::from_str::<f64>(it.get()).ok());
        if let Some(confidence) = confidence.filter(|it| *it < self.minimum_confidence) {
            let least = self.minimum_confidence;
            let why = format!(
                "its confidence is {confidence:.2}, less than `minimum_confidence` {least}"
            );
            return Ok(Transcript::Discarded(why));
        }
        let language = language.unwrap_or_else(|| self.language.clone());
        let unwritable = |error| unreadable(url, error);
        let value = to_raw_value(&language).map_err(unwritable)?;
        alternative.insert("detected_language".to_owned(), value);
        let body = to_raw_value(&alternative).map_err(unwritable)?;
        Ok(Transcript::Body(body))
    }
}

impl Vendor for Deepgram {
    fn name(&self) -> &'static str {
        "deepgram"
    }

    fn fetches_urls(&self) -> bool {
        true
    }

    fn transcribe(&self, input: &Input, limit: Limit) -> Result<Transcript, Failure> {
        let path = format!("/v1/listen{}", self.query);
        let answer = match input {
            Input::Url(url) => {
                let json = json!({"url": url}).to_string();
                let content = [(CONTENT_TYPE, "application/json".to_owned())];
                self.service.post(&path, &content, json.as_str(), limit)?
            }
            Input::Audio(audio) => {
                let content = [(CONTENT_TYPE, audio.media_type.clone())];
                self.service
                    .post(&path, &content, audio.bytes.as_slice(), limit)?
            }
        };
        self.transcript(&answer.body)
    }

    fn probe(&self) -> Result<(), Failure> {
        self.service.probe("/v1/projects")
    }
}

/// The options of `api` as a query: each value of a list for itself.
fn query(options: &mut Options, api: &Map<String, Value>) -> String {
    let mut pairs = Vec::new();
    for (name, value) in api {
        if name == "callback" {
            let why = "is not supported: the transcript would be sent elsewhere";
            options.fault("api.callback", why);
        }
        let values = match value {
            Value::Array(values) => values.iter().collect(),
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Null => continue,
                Value::Array(_) | Value::Object(_) => {
                    let key = format!("api.{name}");
                    options.fault(&key, "is not a text, a number, a switch or a list of them");
                    continue;
                }
            };
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            // Names such as `smart_format` are to be read in logs of proxies.
            pairs.push(format!(
                "{}={}",
                encoded(name).replace("%5F", "_"),
                encoded(&text).replace("%2D", "-").replace("%5F", "_")
            ));
        }
    }
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}
