//! The client of an OpenAI-like server: where it is, with which key, one request, and what its answer says.
//!
//! | server | options | requests |
//! |---|---|---|
//! | LiteLLM | `LITELLM_PROXY_URL`, `LITELLM_MASTER_KEY` | below the URL as it is given |
//! | Azure OpenAI | `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `AZURE_OPENAI_API_VERSION` | `/openai/deployments/<model>/…?api-version=`, header `api-key` |
//! | OpenAI | `OPENAI_API_KEY`, `openai_api_key` or `api_key` | below `https://api.openai.com/v1` |
//! | any other | `base_url`, `openai_base_url` or `OPENAI_BASE_URL`; a key if it wants one | below that URL |
//!
//! The first group that is complete is used.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::{refusal, to_json};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::http_client::{self, Answer, Url, exchange, retry_after};
use crate::options::Options;
use crate::secret::Secret;

/// Where OpenAI itself is.
const OPENAI: &str = "https://api.openai.com/v1";

/// The version of Azure's interface that is asked for if none is given.
const AZURE_VERSION: &str = "2024-10-21";

/// The most bytes of an answer that are read.
const MOST: u64 = 16 << 20;

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(10);

/// Names of the option for the base URL of any OpenAI-like server.
const BASE_URLS: [&str; 3] = ["base_url", "openai_base_url", "OPENAI_BASE_URL"];

/// Names of the option for the key of OpenAI or any server like it.
const KEYS: [&str; 3] = ["OPENAI_API_KEY", "openai_api_key", "api_key"];

/// What is missing if there are no credentials.
const MISSING: &str = "is required, as in `OPENAI_API_KEY: ${OPENAI_API_KEY}`; or give LITELLM_PROXY_URL and \
                       LITELLM_MASTER_KEY, or AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY, or the base_url \
                       of a server that wants no key";

/// The client of one link.
pub(in crate::link) struct Client {
    /// `None` after a fault in the options.
    server: Option<Server>,
    timeout: Duration,
}

struct Server {
    provider: Provider,
    url: Url,
    agent: Agent,
    headers: HeaderMap,
    /// What must not be shown, even if the server quotes it.
    secrets: Vec<Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Provider {
    LiteLlm,
    Azure { version: String },
    OpenAi,
}

/// A group of credentials that is complete.
struct Credentials {
    provider: Provider,
    /// The option that names the server.
    option: &'static str,
    url: String,
    key: Option<Secret>,
}

/// A question to `chat/completions`.
#[derive(Serialize)]
pub(in crate::link) struct Chat<'a> {
    pub model: &'a str,
    pub messages: [Message<'a>; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<&'a RawValue>,
}

/// What somebody says in a chat.
#[derive(Serialize)]
pub(in crate::link) struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl<'a> Message<'a> {
    /// What the model is told to be.
    pub fn system(content: &'a str) -> Self {
        let role = "system";
        Self { role, content }
    }

    /// What it is asked.
    pub fn user(content: &'a str) -> Self {
        let role = "user";
        Self { role, content }
    }
}

/// A question to `responses`.
#[derive(Serialize)]
pub(in crate::link) struct Question<'a> {
    pub model: &'a str,
    pub input: &'a str,
    pub temperature: &'a RawValue,
}

/// A number as an option has it, as JSON: 0 and not 0.0.
pub(in crate::link) fn number(value: f64) -> Box<RawValue> {
    let text = value.to_string();
    RawValue::from_string(text).unwrap_or_default()
}

impl Client {
    /// Reads the options for the server and the time limit.
    pub fn open(options: &mut Options) -> Self {
        let timeout = options.seconds_or("timeout", 120.0);
        if timeout.is_zero() {
            options.fault("timeout", "must be more than 0");
        }
        Self {
            server: Server::open(options),
            timeout,
        }
    }

    /// How long one request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whose model it is, as analyses name it.
    pub fn vendor(&self) -> &'static str {
        match self.server.as_ref().map(|server| &server.provider) {
            Some(Provider::LiteLlm) => "litellm",
            Some(Provider::Azure { .. }) => "azure",
            Some(Provider::OpenAi) | None => "openai",
        }
    }

    /// Asks for the next message of a chat, and returns its text.
    pub fn chat(&self, chat: &Chat<'_>, deadline: Deadline) -> Result<String, Failure> {
        let server = self.server()?;
        let path = server.path("chat/completions", Some(chat.model));
        let (url, answer) = server.post(&path, chat, deadline, self.timeout)?;
        let answer = json_of(&url, &answer)?;
        reply_of_chat(&answer, &url)
    }

    /// Asks a single question, and returns the text of the answer.
    pub fn respond(&self, question: &Question<'_>, deadline: Deadline) -> Result<String, Failure> {
        let server = self.server()?;
        let path = server.path("responses", None);
        let (url, answer) = server.post(&path, question, deadline, self.timeout)?;
        let answer = json_of(&url, &answer)?;
        reply_of_response(&answer, &url)
    }

    /// Whether the server takes the key, as far as that can be seen without paying: it is asked for its models.
    pub fn probe(&self) -> Result<(), Failure> {
        let server = self.server()?;
        if matches!(server.provider, Provider::Azure { .. }) {
            return http_client::reach(&server.agent, &server.url);
        }
        let own = PROBE.min(self.timeout);
        let (url, answer) = server.send("GET", "/models", String::new(), Deadline::NONE, own)?;
        match answer.status.as_u16() {
            200..=299 => Ok(()),
            // A server that does not list its models may do all the rest.
            404 | 405 => Ok(()),
            _ => Err(refusal::of_answer(&url, &answer, &server.secrets)),
        }
    }

    fn server(&self) -> Result<&Server, Failure> {
        let server = self.server.as_ref();
        server.ok_or_else(|| Failure::permanent("no model server is configured"))
    }
}

impl Server {
    fn open(options: &mut Options) -> Option<Self> {
        let credentials = credentials(options);
        let [organization, project] = ["organization", "project"].map(|name| {
            let given = options.filled_string(name);
            let other = options.filled_string(&format!("{name}_key"));
            given.or(other)
        });
        for key in ["send_ai_usage_data_to_url", "ai_usage_api_token"] {
            options.pass_over(key);
        }
        if options.is_given("send_ai_usage_data_to_url") {
            let why = "has no effect: usage is not reported anywhere";
            options.warn("send_ai_usage_data_to_url", why);
        }
        let Some(credentials) = credentials else {
            options.fault(KEYS[0], MISSING);
            return None;
        };
        let option = credentials.option;
        let url: Url = match credentials.url.parse() {
            Ok(url) => url,
            Err(error) => {
                let error: http_client::NotAUrl = error;
                options.fault(option, error.to_string());
                return None;
            }
        };
        if credentials.url.contains(['?', '#']) {
            options.fault(option, "must have no query");
        }
        let mut headers = HeaderMap::new();
        let is_azure = matches!(credentials.provider, Provider::Azure { .. });
        if let Some(key) = &credentials.key {
            let key = key.reveal().trim();
            let header = match is_azure {
                true => (HeaderName::from_static("api-key"), key.to_owned()),
                false => (AUTHORIZATION, format!("Bearer {key}")),
            };
            set(&mut headers, options, KEYS[0], header);
        } else if let Some(login) = url.authorization() {
            headers.insert(AUTHORIZATION, login);
        }
        if !is_azure {
            for (name, option, value) in [
                ("openai-organization", "organization", organization),
                ("openai-project", "project", project),
            ] {
                if let Some(value) = value {
                    let header = (HeaderName::from_static(name), value);
                    set(&mut headers, options, option, header);
                }
            }
        }
        let mut secrets = options.looked_up().to_vec();
        secrets.extend(credentials.key);
        Some(Self {
            provider: credentials.provider,
            url,
            agent: http_client::agent(),
            headers,
            secrets,
        })
    }

    /// Where something is asked for, on Azure of the model that is deployed under this name.
    fn path(&self, what: &str, model: Option<&str>) -> String {
        match &self.provider {
            Provider::Azure { version } => {
                let version = utf8_percent_encode(version, NON_ALPHANUMERIC);
                let of = model.map(|model| {
                    let model = utf8_percent_encode(model, NON_ALPHANUMERIC);
                    format!("deployments/{model}/")
                });
                let of = of.unwrap_or_default();
                format!("/openai/{of}{what}?api-version={version}")
            }
            Provider::LiteLlm | Provider::OpenAi => format!("/{what}"),
        }
    }

    /// Posts JSON; returns the URL, as messages show it, and the answer, which is a good one.
    fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
        own: Duration,
    ) -> Result<(Url, Answer), Failure> {
        let json = to_json(body)?.get().to_owned();
        let (url, answer) = self.send("POST", path, json, deadline, own)?;
        if !answer.status.is_success() {
            return Err(refusal::of_answer(&url, &answer, &self.secrets));
        }
        Ok((url, answer))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: String,
        deadline: Deadline,
        own: Duration,
    ) -> Result<(Url, Answer), Failure> {
        let unsent = |_| Failure::permanent(format!("could not {method} {}: bad URL", self.url));
        let uri = self.url.below(path).map_err(unsent)?;
        let url = uri.to_string().parse().unwrap_or_else(|_| self.url.clone());
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let limit = deadline.begin(own);
        let answer = if method == "GET" {
            let request = request.body(()).map_err(unsent)?;
            exchange(&self.agent, request, &url, limit, MOST)?
        } else {
            let request = request.header(CONTENT_TYPE, "application/json");
            let request = request.body(body).map_err(unsent)?;
            exchange(&self.agent, request, &url, limit, MOST)?
        };
        Ok((url, answer))
    }
}

/// Sets a header that is not shown; its value is that of `option`.
fn set(
    headers: &mut HeaderMap,
    options: &mut Options,
    option: &str,
    (name, value): (HeaderName, String),
) {
    match HeaderValue::from_str(&value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Err(_) => options.fault(option, "is not one line of text"),
    }
}

/// The first group of credentials that is complete. What is left of others has no effect.
fn credentials(options: &mut Options) -> Option<Credentials> {
    let litellm_url = options.filled_secret("LITELLM_PROXY_URL");
    let litellm_key = options.filled_secret("LITELLM_MASTER_KEY");
    let azure_url = options.filled_string("AZURE_OPENAI_ENDPOINT");
    let azure_key = options.filled_secret("AZURE_OPENAI_API_KEY");
    let version = options.string_or("AZURE_OPENAI_API_VERSION", AZURE_VERSION);
    let keys = KEYS.map(|name| options.filled_secret(name));
    let urls = BASE_URLS.map(|name| Some((name, options.filled_string(name)?)));

    half(
        options,
        "LITELLM_PROXY_URL",
        &litellm_url,
        "LITELLM_MASTER_KEY",
        &litellm_key,
    );
    half(
        options,
        "AZURE_OPENAI_ENDPOINT",
        &azure_url,
        "AZURE_OPENAI_API_KEY",
        &azure_key,
    );
    if let (Some(url), Some(key)) = (litellm_url, litellm_key) {
        return Some(Credentials {
            provider: Provider::LiteLlm,
            option: "LITELLM_PROXY_URL",
            url: url.reveal().to_owned(),
            key: Some(key),
        });
    }
    if let (Some(url), Some(key)) = (azure_url, azure_key) {
        let version = match version.trim() {
            "" => AZURE_VERSION,
            given => given,
        };
        return Some(Credentials {
            provider: Provider::Azure {
                version: version.to_owned(),
            },
            option: "AZURE_OPENAI_ENDPOINT",
            url,
            key: Some(key),
        });
    }
    let key = keys.into_iter().flatten().next();
    let url = urls.into_iter().flatten().next();
    if key.is_none() && url.is_none() {
        return None;
    }
    let (option, url) = url.unwrap_or((BASE_URLS[0], OPENAI.to_owned()));
    Some(Credentials {
        provider: Provider::OpenAi,
        option,
        url,
        key,
    })
}

/// Warns of one of two options without the other.
fn half<A, B>(options: &mut Options, one: &str, a: &Option<A>, other: &str, b: &Option<B>) {
    match (a, b) {
        (Some(_), None) => options.warn(one, format!("has no effect without `{other}`")),
        (None, Some(_)) => options.warn(other, format!("has no effect without `{one}`")),
        _ => {}
    }
}

/// The JSON of an answer. What is none may come from a proxy.
fn json_of(url: &Url, answer: &Answer) -> Result<Value, Failure> {
    serde_json::from_slice(&answer.body).map_err(|error| {
        Failure::transient(format!("{url} answered with what is not JSON: {error}"))
            .until(retry_after(&answer.headers))
    })
}

/// The text of a chat's next message.
fn reply_of_chat(answer: &Value, url: &Url) -> Result<String, Failure> {
    let choice = answer.get("choices").and_then(|choices| choices.get(0));
    let message = choice.and_then(|choice| choice.get("message"));
    let (Some(choice), Some(message)) = (choice, message) else {
        return Err(no_result(url, "`choices`"));
    };
    let content = message.get("content").map(text_of).unwrap_or_default();
    if !content.trim().is_empty() {
        return Ok(content);
    }
    let refusal = message.get("refusal").and_then(Value::as_str);
    let end = choice.get("finish_reason").and_then(Value::as_str);
    Err(no_text(url, refusal, end))
}

/// The text of the answer to a single question.
fn reply_of_response(answer: &Value, url: &Url) -> Result<String, Failure> {
    let top = answer.get("output_text").and_then(Value::as_str);
    if let Some(text) = top.filter(|text| !text.trim().is_empty()) {
        return Ok(text.to_owned());
    }
    let Some(output) = answer.get("output").and_then(Value::as_array) else {
        return Err(no_result(url, "`output`"));
    };
    let parts: Vec<&Value> = output
        .iter()
        .filter_map(|item| item.get("content")?.as_array())
        .flatten()
        .collect();
    let texts = |kind: &str, name: &str| -> String {
        let is_it = |part: &&&Value| part.get("type").and_then(Value::as_str) == Some(kind);
        let texts = parts.iter().filter(is_it);
        texts.filter_map(|part| part.get(name)?.as_str()).collect()
    };
    let text = texts("output_text", "text");
    if !text.trim().is_empty() {
        return Ok(text);
    }
    let refusal = texts("refusal", "refusal");
    let refusal = (!refusal.is_empty()).then_some(refusal.as_str());
    let end = answer
        .get("incomplete_details")
        .and_then(|it| it.get("reason")?.as_str());
    Err(no_text(url, refusal, end))
}

/// The text of a message, which some servers give in parts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            texts.collect()
        }
        _ => String::new(),
    }
}

/// The failure of an answer in which nothing is as it should be.
fn no_result(url: &Url, what: &str) -> Failure {
    Failure::transient(format!("{url} answered without {what}"))
}

/// The failure of an answer in which a model says nothing, or no.
fn no_text(url: &Url, refusal: Option<&str>, end: Option<&str>) -> Failure {
    match (refusal, end) {
        (Some(_), _) => Failure::permanent(format!("the model of {url} refuses to answer")),
        (None, Some("content_filter")) => {
            Failure::permanent(format!("the content filter of {url} let no answer through"))
        }
        (None, Some("length" | "max_output_tokens")) => Failure::refused(format!(
            "the model of {url} came to its length limit before it said anything"
        )),
        (None, _) => Failure::refused(format!("the model of {url} gave an empty answer")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;
    use crate::http_client::tests::{serve, serve_with};

    fn client(yaml: &str) -> Client {
        let mut options = Options::from_yaml(yaml);
        let client = Client::open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [""; 0], "{yaml}");
        client
    }

    fn faults(yaml: &str) -> Vec<String> {
        let mut options = Options::from_yaml(yaml);
        Client::open(&mut options);
        options.faults()
    }

    const REPLY: &str = r#"{"choices":[{"message":{"content":"hi"}}]}"#;

    /// The head of the request for a chat, in lower case.
    fn asked(options: &str, model: &str) -> (&'static str, String) {
        let (address, server) = serve_with(vec![(200, REPLY.to_owned())]);
        let client = client(&options.replace("SERVER", &format!("http://{address}")));
        let chat = Chat {
            model,
            messages: [Message::system("s"), Message::user("u")],
            temperature: None,
            response_format: None,
        };
        assert_eq!(client.chat(&chat, Deadline::NONE).as_deref(), Ok("hi"));
        let request = server.join().unwrap().remove(0).to_lowercase();
        let head = request
            .split_once("\r\n\r\n")
            .map(|(head, _)| head.to_owned());
        (client.vendor(), head.unwrap())
    }

    #[test]
    fn each_kind_of_server_is_asked_in_its_own_way() {
        let litellm = "LITELLM_PROXY_URL: SERVER/proxy/, LITELLM_MASTER_KEY: lk";
        let azure = "AZURE_OPENAI_ENDPOINT: SERVER/, AZURE_OPENAI_API_KEY: ak";
        for (options, vendor, path, header) in [
            (
                format!("{{{litellm}, {azure}, api_key: ok}}"),
                "litellm",
                "/proxy/chat/completions",
                Some("authorization: bearer lk"),
            ),
            (
                format!("{{{azure}, api_key: ok, LITELLM_PROXY_URL: 'http://h'}}"),
                "azure",
                "/openai/deployments/my%20model/chat/completions?api-version=2024%2d10%2d21",
                Some("api-key: ak"),
            ),
            (
                format!("{{{azure}, AZURE_OPENAI_API_VERSION: v1}}"),
                "azure",
                "/openai/deployments/my%20model/chat/completions?api-version=v1",
                Some("api-key: ak"),
            ),
            (
                "{OPENAI_API_KEY: ok, base_url: SERVER}".to_owned(),
                "openai",
                "/chat/completions",
                Some("authorization: bearer ok"),
            ),
            (
                "{openai_api_key: ok, openai_base_url: SERVER/v1}".to_owned(),
                "openai",
                "/v1/chat/completions",
                Some("authorization: bearer ok"),
            ),
            (
                "{OPENAI_BASE_URL: SERVER/v1}".to_owned(),
                "openai",
                "/v1/chat/completions",
                None,
            ),
        ] {
            let (found, head) = asked(&options, "my model");
            assert_eq!(found, vendor);
            assert!(
                head.starts_with(&format!("post {path} http/1.1\r\n")),
                "{head}"
            );
            match header {
                Some(header) => assert!(head.contains(header), "{head}"),
                None => assert!(!head.contains("authorization"), "{head}"),
            }
        }
    }

    #[test]
    fn an_organization_and_a_project_are_named_to_the_server() {
        let (_, head) = asked(
            "{api_key: k, base_url: SERVER, organization: o, project_key: p}",
            "m",
        );
        assert!(head.contains("openai-organization: o"), "{head}");
        assert!(head.contains("openai-project: p"), "{head}");
    }

    #[test]
    fn openai_itself_is_asked_if_no_url_is_given() {
        let client = client("{api_key: k}");
        let url = client.server.unwrap().url.to_string();
        assert_eq!(url, "https://api.openai.com/v1");
        assert_eq!(client.timeout, Duration::from_secs(120));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_the_value() {
        let missing = faults("{AZURE_OPENAI_API_KEY: hunter2}");
        assert!(
            missing[0].starts_with("OPENAI_API_KEY: is required"),
            "{missing:?}"
        );
        for (yaml, fault) in [
            (
                "{api_key: k, base_url: nowhere}",
                "base_url: is not a URL of the form http://host/path or https://host/path",
            ),
            (
                "{api_key: k, base_url: 'http://h/?a=b'}",
                "base_url: must have no query",
            ),
            ("{api_key: k, timeout: 0}", "timeout: must be more than 0"),
            (
                "{api_key: \"hunter2\\n3\"}",
                "OPENAI_API_KEY: is not one line of text",
            ),
        ] {
            assert_eq!(faults(yaml), [fault]);
        }
        let mut options = Options::from_yaml("{api_key: k, LITELLM_MASTER_KEY: hunter2}");
        Client::open(&mut options);
        assert_eq!(
            options.warnings(),
            ["LITELLM_MASTER_KEY: has no effect without `LITELLM_PROXY_URL`"]
        );
    }

    #[test]
    fn a_probe_asks_for_the_models_with_the_key() {
        for (status, kind) in [
            ("200 OK", None),
            ("404 Not Found", None),
            ("405 Method Not Allowed", None),
            ("401 Unauthorized", Some(FailureKind::Denied)),
            ("403 Forbidden", Some(FailureKind::Denied)),
            ("503 Service Unavailable", Some(FailureKind::Busy)),
            ("500 Internal Server Error", Some(FailureKind::Transient)),
        ] {
            let (address, server) = serve(&[status]);
            let client = client(&format!(
                "{{api_key: key123, base_url: 'http://{address}/v1'}}"
            ));
            let probed = client.probe();
            assert_eq!(probed.err().map(|failure| failure.kind), kind, "{status}");
            let request = server.join().unwrap().remove(0).to_lowercase();
            assert!(
                request.starts_with("get /v1/models http/1.1\r\n"),
                "{request}"
            );
            assert!(
                request.contains("authorization: bearer key123"),
                "{request}"
            );
        }
    }

    #[test]
    fn numbers_are_written_as_they_are_meant() {
        for (value, written) in [(0.0, "0"), (0.2, "0.2"), (1.0, "1")] {
            assert_eq!(number(value).get(), written);
        }
    }

    #[test]
    fn the_text_of_a_reply_may_come_in_parts() {
        let url: Url = "http://h".parse().unwrap();
        let parts = serde_json::json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]});
        assert_eq!(reply_of_chat(&parts, &url).as_deref(), Ok("ab"));
    }
}
