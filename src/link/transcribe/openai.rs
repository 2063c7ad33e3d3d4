//! OpenAI, and all servers that speak its protocol (Azure, LiteLLM, Groq, vLLM, …): `POST audio/transcriptions`
//! with a form.
//!
//! The transcript is the answer as it is: an object with `text`.

use ureq::SendBody;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::{Input, Transcript, Vendor, text_of_answer};
use crate::deadline::Limit;
use crate::failure::Failure;
use crate::http_client::Form;
use crate::link::service::Sent;
use crate::link::service::openai::OpenAiServer;
use crate::link::service::server::{Server, url_or};
use crate::options::Options;

/// The most bytes of audio that OpenAI takes.
const MOST_OF_OPENAI: u64 = 25 << 20;

/// The model of OpenAI, unless the options name another one.
pub(super) const MODEL: &str = "gpt-4o-transcribe";

/// The model of Groq, unless the options name another one.
pub(super) const MODEL_OF_GROQ: &str = "whisper-large-v3-turbo";

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
    whose: Whose,
    /// The fields of the form besides the file.
    fields: Vec<(&'static str, String)>,
    /// The most bytes that it takes, where that is known.
    most: Option<u64>,
}

/// Whom a request goes to.
enum Whose {
    OpenAi(OpenAiServer),
    Groq(Server),
}

impl OpenAi {
    /// OpenAI itself, Azure or LiteLLM, by the options that are given.
    pub(super) fn open(options: &mut Options) -> Option<Self> {
        let fields = fields(options, MODEL);
        for option in PIECES {
            options.pass_over(option);
        }
        let server = OpenAiServer::open(options, Sent::Audio, true)?;
        Some(Self {
            name: "openai",
            fields,
            // Servers of one's own may take more.
            most: server.has_limits_of_openai().then_some(MOST_OF_OPENAI),
            whose: Whose::OpenAi(server),
        })
    }

    /// Groq.
    pub(super) fn open_groq(options: &mut Options) -> Option<Self> {
        let fields = fields(options, MODEL_OF_GROQ);
        options.pass_over("Content-Type");
        let key = options.filled_secret("API_KEY");
        let url = url_or(options, "base_url", GROQ)?;
        let mut server = Server::new(options, url, Sent::Audio);
        match key {
            Some(key) => server = server.with_key(options, "API_KEY", "Bearer", key),
            // Only a server of one's own can be asked without.
            None if options.is_given("base_url") => {}
            None => {
                options.fault("API_KEY", "is required");
                return None;
            }
        }
        Some(Self {
            name: "groq_whisper",
            fields,
            most: None,
            whose: Whose::Groq(server),
        })
    }

    /// The server, and where audio goes below its URL.
    fn server(&self) -> (&Server, String) {
        let model = self.fields.iter().find(|(name, _)| *name == "model");
        let model = model.map(|(_, model)| model.as_str());
        match &self.whose {
            Whose::OpenAi(server) => (&server.server, server.path(TRANSCRIPTIONS, model)),
            Whose::Groq(server) => (server, format!("/{TRANSCRIPTIONS}")),
        }
    }
}

/// Where audio goes.
const TRANSCRIPTIONS: &str = "audio/transcriptions";

/// The fields of each form. What is not given is left to the server.
fn fields(options: &mut Options, model: &str) -> Vec<(&'static str, String)> {
    let formats = ["json", "verbose_json", "diarized_json"];
    let mut fields = vec![("model", crate::link::ai::model(options, model))];
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
        let (server, path) = self.server();
        let answer = server.post(&path, &content, body, limit)?;
        text_of_answer(&server.url, &answer.body)
    }

    fn probe(&self) -> Result<(), Failure> {
        match &self.whose {
            Whose::OpenAi(server) => server.probe(),
            Whose::Groq(server) => server.probe("/models"),
        }
    }
}
