//! The client of an OpenAI-like server for questions to its models: one request, and what its answer says.
//! [`OpenAiServer`] knows where it is and with which key.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use ureq::http::header::CONTENT_TYPE;

use super::to_json;
use crate::deadline::Deadline;
use crate::failure::{Failure, FailureKind};
use crate::http_client::{Answer, Url};
use crate::link::service::openai::OpenAiServer;
use crate::link::service::reply::sound;
use crate::link::service::{Sent, without_usage_reports};
use crate::options::Options;

/// The client of one link.
pub(in crate::link) struct Client {
    /// `None` after a fault in the options, and where credentials are missing that may be.
    server: Option<OpenAiServer>,
    timeout: Duration,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<&'a RawValue>,
}

/// A number as an option has it, as JSON: 0 and not 0.0.
pub(in crate::link) fn number(value: f64) -> Box<RawValue> {
    let text = value.to_string();
    RawValue::from_string(text).unwrap_or_default()
}

/// What is missing if a link has no credentials, and its options none that are wrong.
const NO_CREDENTIALS: &str = "it has no credentials: give OPENAI_API_KEY or those of another server, in its options or \
                              in the daemon's environment";

impl Client {
    /// Reads the options for the server and the time limit. Without credentials it can ask nothing, which is a
    /// fault if they are `required`.
    pub fn open(options: &mut Options, required: bool) -> Self {
        let timeout = options.seconds_or("timeout", 120.0);
        if timeout.is_zero() {
            options.fault("timeout", "must be more than 0");
        }
        without_usage_reports(options);
        Self {
            server: OpenAiServer::open(options, Sent::Text, required),
            timeout,
        }
    }

    /// How long one request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whose model it is, as analyses name it.
    pub fn vendor(&self) -> &'static str {
        self.server.as_ref().map_or("openai", OpenAiServer::vendor)
    }

    /// Asks for the next message of a chat, and returns its text.
    pub fn chat(&self, chat: &Chat<'_>, deadline: Deadline) -> Result<String, Failure> {
        let server = self.server()?;
        let path = server.path("chat/completions", Some(chat.model));
        let answer = self.post(&path, chat, deadline)?;
        reply_of_chat(&answer, &server.server.url)
    }

    /// Asks a single question, and returns the text of the answer.
    pub fn respond(&self, question: &Question<'_>, deadline: Deadline) -> Result<String, Failure> {
        let server = self.server()?;
        let path = server.path("responses", None);
        let answer = self.post(&path, question, deadline)?;
        reply_of_response(&answer, &server.server.url)
    }

    /// Whether the server knows the key, as far as that can be seen without paying.
    pub fn probe(&self) -> Result<(), Failure> {
        self.server()?.probe()
    }

    /// Posts JSON, and returns that of the answer.
    fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Result<Value, Failure> {
        let server = &self.server()?.server;
        let json = to_json(body)?;
        let content = [(CONTENT_TYPE, "application/json".to_owned())];
        let limit = deadline.begin(self.timeout);
        let answer = server.post(path, &content, json.get(), limit)?;
        json_of(&server.url, &answer)
    }

    fn server(&self) -> Result<&OpenAiServer, Failure> {
        let server = self.server.as_ref();
        server.ok_or_else(|| Failure::new(FailureKind::Denied, NO_CREDENTIALS))
    }
}

/// The JSON of a good answer. It is paid for whether it can be read or not: it is not asked for again at once.
fn json_of(url: &Url, answer: &Answer) -> Result<Value, Failure> {
    let value = sound(&answer.body).and_then(|text| {
        let value = serde_json::from_str(&text);
        value.map_err(|error| format!("it is not JSON: {error}"))
    });
    value.map_err(|why| Failure::refused(format!("the answer of {url} cannot be used: {why}")))
}

/// The text of a chat's next message.
fn reply_of_chat(answer: &Value, url: &Url) -> Result<String, Failure> {
    let choice = answer.get("choices").and_then(|choices| choices.get(0));
    let message = choice.and_then(|choice| choice.get("message"));
    let (Some(choice), Some(message)) = (choice, message) else {
        return Err(no_result(url, "`choices`"));
    };
    let content = message.get("content").map(text_of).unwrap_or_default();
    let end = choice.get("finish_reason").and_then(Value::as_str);
    if !content.trim().is_empty() {
        warn_if_cut(url, end);
        return Ok(content);
    }
    let refusal = message.get("refusal").and_then(Value::as_str);
    Err(no_text(url, refusal, end))
}

/// The text of the answer to a single question.
fn reply_of_response(answer: &Value, url: &Url) -> Result<String, Failure> {
    let end = answer
        .get("incomplete_details")
        .and_then(|it| it.get("reason")?.as_str());
    let top = answer.get("output_text").and_then(Value::as_str);
    if let Some(text) = top.filter(|text| !text.trim().is_empty()) {
        warn_if_cut(url, end);
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
        warn_if_cut(url, end);
        return Ok(text);
    }
    let refusal = texts("refusal", "refusal");
    let refusal = (!refusal.is_empty()).then_some(refusal.as_str());
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
    Failure::refused(format!("{url} answered without {what}"))
}

/// The ends of an answer that the model did not come to the end of.
const CUT: [&str; 2] = ["length", "max_output_tokens"];

/// Logs that a reply is cut, which is kept all the same: more would cost the same again, and be cut as well.
fn warn_if_cut(url: &Url, end: Option<&str>) {
    if end.is_some_and(|end| CUT.contains(&end)) {
        log::warn!("the model of {url} came to its length limit: a reply is kept that is cut");
    }
}

/// The failure of an answer in which a model says nothing, or no.
fn no_text(url: &Url, refusal: Option<&str>, end: Option<&str>) -> Failure {
    match (refusal, end) {
        (Some(_), _) => Failure::permanent(format!("the model of {url} refuses to answer")),
        (None, Some("content_filter")) => {
            Failure::permanent(format!("the content filter of {url} let no answer through"))
        }
        (None, Some(end)) if CUT.contains(&end) => Failure::refused(format!(
            "the model of {url} came to its length limit before it said anything"
        )),
        (None, _) => Failure::refused(format!("the model of {url} gave an empty answer")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http_client::tests::{serve, serve_with};

    fn client(yaml: &str) -> Client {
        let mut options = Options::from_yaml(yaml);
        let client = Client::open(&mut options, true);
        options.finish();
        assert_eq!(options.faults(), [""; 0], "{yaml}");
        client
    }

    fn faults(yaml: &str) -> Vec<String> {
        let mut options = Options::from_yaml(yaml);
        Client::open(&mut options, true);
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
                "/openai/deployments/my%20model/chat/completions?api-version=2024-10-21",
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
        let url = client.server.unwrap().server.url.to_string();
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
        Client::open(&mut options, true);
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
            // The key is known; it may not list the models.
            ("403 Forbidden", None),
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
    fn a_probe_fails_if_litellm_does_not_know_the_key_or_its_budget_is_used_up() {
        let error = |status: u16, kind: &str| {
            let body =
                json!({"error": {"message": "no", "type": kind, "code": status.to_string()}});
            (status, body.to_string())
        };
        for (answer, kind) in [
            (error(400, "no_db_connection"), Some(FailureKind::Denied)),
            (error(422, "budget_exceeded"), Some(FailureKind::Denied)),
            (error(400, "invalid_request_error"), None),
        ] {
            let (address, server) = serve_with(vec![answer]);
            let client = client(&format!(
                "{{LITELLM_PROXY_URL: 'http://{address}', LITELLM_MASTER_KEY: k}}"
            ));
            let probed = client.probe();
            assert_eq!(probed.err().map(|failure| failure.kind), kind);
            server.join().unwrap();
        }
    }

    #[test]
    fn a_good_answer_is_read_or_in_doubt_the_vcons() {
        let url: Url = "http://h".parse().unwrap();
        let read = |body: &str| {
            let answer = Answer {
                status: ureq::http::StatusCode::OK,
                headers: ureq::http::HeaderMap::new(),
                body: body.as_bytes().to_owned(),
            };
            reply_of_chat(&json_of(&url, &answer)?, &url)
        };
        let cut = r#"{"choices":[{"message":{"content":"a\ud83d"}}]}"#;
        assert_eq!(read(cut).as_deref(), Ok("a\u{fffd}"));
        let deep = format!(
            "{{\"x\":{}1{},\"choices\":[]}}",
            "[".repeat(200),
            "]".repeat(200)
        );
        for body in ["<html>", "{", "[]", "{\"choices\":[]}", &deep] {
            let failure = read(body).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
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
