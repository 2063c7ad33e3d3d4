//! OpenAI, and all servers that speak its protocol (Azure, LiteLLM, Groq, vLLM, …): `POST audio/transcriptions`
//! with a form.
//!
//! The transcript is the answer as it is: an object with `text`.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::SendBody;
use ureq::http::HeaderName;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::service::{Service, url_or};
use super::{Input, Transcript, Vendor, text_of_answer, without_effect};
use crate::deadline::Limit;
use crate::failure::Failure;
use crate::http_client::{Form, NotAUrl, Url};
use crate::options::Options;
use crate::secret::Secret;

/// The most bytes of audio that OpenAI takes.
const MOST_OF_OPENAI: u64 = 25 << 20;

/// The model of OpenAI, unless the options name another one.
pub(super) const MODEL: &str = "gpt-4o-transcribe";

/// The model of Groq, unless the options name another one.
pub(super) const MODEL_OF_GROQ: &str = "whisper-large-v3-turbo";

/// Where OpenAI is.
const OPENAI: &str = "https://api.openai.com/v1";

/// Where Groq is.
const GROQ: &str = "https://api.groq.com/openai/v1";

/// How the existing worker cuts long audio into pieces.
const PIECES: [&str; 4] = [
    "max_chunk_duration",
    "use_silence_chunking",
    "silence_thresh",
    "silence_len",
];

/// A server of this protocol.
pub(super) struct OpenAi {
    name: &'static str,
    service: Service,
    /// Below the URL of the service.
    path: String,
    /// What tells whether it works, if anything does.
    probe: Option<String>,
    /// The fields of the form besides the file.
    fields: Vec<(&'static str, String)>,
    /// The most bytes that it takes, where that is known.
    most: Option<u64>,
}

/// Whom a request goes to.
struct Server {
    service: Service,
    path: String,
    probe: Option<String>,
    most: Option<u64>,
}

impl OpenAi {
    /// OpenAI itself, Azure or LiteLLM, by the options that are given.
    pub(super) fn open(options: &mut Options) -> Option<Self> {
        let fields = fields(options, MODEL);
        for option in PIECES {
            without_effect(options, option, "audio is not cut into pieces");
        }
        let server = server(options, &fields)?;
        Some(Self {
            name: "openai",
            service: server.service,
            path: server.path,
            probe: server.probe,
            fields,
            most: server.most,
        })
    }

    /// Groq.
    pub(super) fn open_groq(options: &mut Options) -> Option<Self> {
        let fields = fields(options, MODEL_OF_GROQ);
        options.pass_over("Content-Type");
        let key = options.filled_secret("API_KEY");
        let url = url_or(options, "base_url", GROQ);
        let is_elsewhere = options.is_given("base_url");
        let service = keyed(options, url?, "API_KEY", key, is_elsewhere)?;
        Some(Self {
            name: "groq_whisper",
            service,
            path: TRANSCRIPTIONS.to_owned(),
            probe: Some(MODELS.to_owned()),
            fields,
            most: None,
        })
    }
}

/// Where audio goes, below the URL of a server.
const TRANSCRIPTIONS: &str = "/audio/transcriptions";

/// What a server answers to anybody whom it knows.
const MODELS: &str = "/models";

/// The first complete group of options names the server.
fn server(options: &mut Options, fields: &[(&str, String)]) -> Option<Server> {
    let proxy_url = options.filled_secret("LITELLM_PROXY_URL");
    let proxy_key = options.filled_secret("LITELLM_MASTER_KEY");
    let azure_url = options.filled_string("AZURE_OPENAI_ENDPOINT");
    let azure_key = options.filled_secret("AZURE_OPENAI_API_KEY");
    let version = options.string_or("AZURE_OPENAI_API_VERSION", "2024-10-21");
    let key_names = ["OPENAI_API_KEY", "openai_api_key", "api_key"];
    let keys = key_names.map(|name| (name, options.filled_secret(name)));
    let names = ["base_url", "openai_base_url", "OPENAI_BASE_URL"];
    let given = names.map(|name| (name, options.filled_string(name)));
    let given = given.into_iter().find(|(_, url)| url.is_some());
    let is_elsewhere = given.is_some();
    let base = url_or(options, given.map_or(names[0], |(name, _)| name), OPENAI);
    let of_account = [
        ("organization", "openai-organization"),
        ("project", "openai-project"),
    ];
    let of_account = of_account.map(|(key, header)| (key, header, options.filled_string(key)));
    if let (Some(url), Some(key)) = (proxy_url, proxy_key) {
        let Ok(url) = url.reveal().parse() else {
            options.fault("LITELLM_PROXY_URL", NotAUrl.to_string());
            return None;
        };
        let service =
            Service::new(options, url).with_key(options, "LITELLM_MASTER_KEY", "Bearer", key);
        return Some(Server {
            service,
            path: TRANSCRIPTIONS.to_owned(),
            probe: Some(MODELS.to_owned()),
            most: None,
        });
    }
    if let (Some(_), Some(key)) = (azure_url, azure_key) {
        let url = url_or(options, "AZURE_OPENAI_ENDPOINT", "")?;
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let model = fields.iter().find(|(name, _)| *name == "model");
        let model = model.map_or_else(String::new, |(_, model)| encoded(model).replace("%2D", "-"));
        let version = encoded(&version).replace("%2D", "-");
        let name = "AZURE_OPENAI_API_KEY";
        return Some(Server {
            service: Service::new(options, url).with_key_header(options, name, "api-key", key),
            path: format!("/openai/deployments/{model}{TRANSCRIPTIONS}?api-version={version}"),
            probe: None,
            most: Some(MOST_OF_OPENAI),
        });
    }
    let (name, key) = keys
        .into_iter()
        .find(|(_, key)| key.is_some())
        .unwrap_or((key_names[0], None));
    let mut service = keyed(options, base?, name, key, is_elsewhere)?;
    for (option, header, value) in of_account {
        if let Some(value) = value {
            service.add_header(options, option, HeaderName::from_static(header), &value);
        }
    }
    Some(Server {
        service,
        path: TRANSCRIPTIONS.to_owned(),
        probe: Some(MODELS.to_owned()),
        // Servers of one's own may take more.
        most: (!is_elsewhere).then_some(MOST_OF_OPENAI),
    })
}

/// A server with its key, without which only a server of one's own can be asked.
fn keyed(
    options: &mut Options,
    url: Url,
    name: &str,
    key: Option<Secret>,
    is_elsewhere: bool,
) -> Option<Service> {
    match key {
        Some(key) => Some(Service::new(options, url).with_key(options, name, "Bearer", key)),
        None if is_elsewhere => Some(Service::new(options, url)),
        None => {
            options.fault(name, "is required");
            None
        }
    }
}

/// The fields of each form. What is not given is left to the server.
fn fields(options: &mut Options, model: &str) -> Vec<(&'static str, String)> {
    let formats = ["json", "verbose_json", "diarized_json"];
    let mut fields = vec![("model", options.string_or("model", model))];
    let format = options.word_or("response_format", "json", &formats);
    fields.push(("response_format", format.unwrap_or("json").to_owned()));
    for name in ["language", "prompt", "chunking_strategy"] {
        fields.extend(options.filled_string(name).map(|value| (name, value)));
    }
    let temperature = options.number_or("temperature", 0.0);
    if options.is_given("temperature") {
        fields.push(("temperature", temperature.to_string()));
    }
    let several = [
        ("timestamp_granularities", "timestamp_granularities[]"),
        ("include", "include[]"),
    ];
    for (option, field) in several {
        let values = options.strings(option).into_iter();
        fields.extend(values.map(|value| (field, value)));
    }
    fields
}

impl Vendor for OpenAi {
    fn name(&self) -> &'static str {
        self.name
    }

    fn transcribe(&self, input: &Input, limit: Limit) -> Result<Transcript, Failure> {
        let Input::Audio(audio) = input else {
            return Err(Failure::permanent("its audio was not fetched"));
        };
        let length = audio.bytes.len() as u64;
        if let Some(most) = self.most.filter(|most| length > *most) {
            return Err(Failure::permanent(format!(
                "its audio has {length} bytes, and OpenAI takes {most} at most (25 MB); it is not cut into pieces \
                 here: use a format that needs less, or another vendor"
            )));
        }
        let mut form = Form::begin();
        for (name, value) in &self.fields {
            form.text(name, value);
        }
        let content_type = form.content_type();
        let (mut body, length) =
            form.with_file("file", &audio.file_name, &audio.media_type, &audio.bytes);
        let content = [
            (CONTENT_TYPE, content_type),
            (CONTENT_LENGTH, length.to_string()),
        ];
        let body = SendBody::from_reader(&mut body);
        let answer = self.service.post(&self.path, &content, body, limit)?;
        text_of_answer(&self.service.url, &answer)
    }

    fn probe(&self) -> Result<(), Failure> {
        match &self.probe {
            Some(path) => self.service.probe(path),
            None => self.service.reach(),
        }
    }
}
