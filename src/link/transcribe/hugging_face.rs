//! An Inference Endpoint of Hugging Face that runs Whisper: `POST` of the audio as it is.
//!
//! The transcript is the answer as it is: an object with `text`.

use ureq::http::header::{ACCEPT, CONTENT_TYPE};
use ureq::http::{HeaderName, HeaderValue};

use super::{Input, Transcript, Vendor, text_of_answer};
use crate::deadline::Limit;
use crate::failure::Failure;
use crate::http_client::NotAUrl;
use crate::link::service::Sent;
use crate::link::service::server::Server;
use crate::options::Options;
use crate::secret::Secret;

/// What the audio is called, unless the options say otherwise.
pub(super) const MEDIA_TYPE: &str = "audio/flac";

pub(super) struct HuggingFace {
    service: Server,
    media_type: String,
}

impl HuggingFace {
    pub(super) fn open(options: &mut Options) -> Option<Self> {
        let url = options.filled_string("API_URL");
        let key = options.filled_secret("API_KEY");
        let media_type = options.string_or("Content-Type", MEDIA_TYPE);
        if HeaderValue::from_str(&media_type).is_err() {
            options.fault("Content-Type", "is not one line of text");
        }
        let Some(url) = url else {
            options.fault("API_URL", "is required");
            return None;
        };
        let Ok(url) = url.parse() else {
            options.fault("API_URL", NotAUrl.to_string());
            return None;
        };
        let service = Server::new(options, url, Sent::Audio);
        let service = match key {
            // The example of the existing worker has the word in the key.
            Some(key) => {
                let key = key.reveal().trim();
                let key = key.strip_prefix("Bearer ").unwrap_or(key).to_owned();
                service.with_key(options, "API_KEY", "Bearer", Secret::new(key))
            }
            None => service,
        };
        Some(Self {
            service,
            media_type,
        })
    }
}

impl Vendor for HuggingFace {
    fn name(&self) -> &'static str {
        "hugging_face_whisper"
    }

    fn transcribe(&self, input: &Input, limit: Limit) -> Result<Transcript, Failure> {
        let Input::Audio(audio) = input else {
            return Err(Failure::permanent("its audio was not fetched"));
        };
        let content: [(HeaderName, String); 2] = [
            (CONTENT_TYPE, self.media_type.clone()),
            (ACCEPT, "application/json".to_owned()),
        ];
        let bytes = audio.bytes.as_slice();
        let answer = self.service.post_whole(&content, bytes, limit)?;
        text_of_answer(&self.service.url, &answer.body)
    }

    fn probe(&self) -> Result<(), Failure> {
        self.service.reach()
    }
}
