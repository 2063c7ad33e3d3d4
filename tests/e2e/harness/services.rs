//! The services that links ask, as far as their documentation goes: an OpenAI-like server, Azure's, and Slack.
//!
//! They are strict: whatever the real service would not take is answered as it would answer that. Beyond that
//! they say what a test wants, by a script of replies for the next requests.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Request;

/// The key that these services take. No request, log or document may show it elsewhere.
pub const SERVICE_KEY: &str = "sk-test-geheimer-schluessel";

/// What a service does with a request instead of a good answer.
#[derive(Clone)]
pub enum Scripted {
    /// A good answer with this text.
    Says(String),
    /// This status and this body.
    Status(u16, Value),
    /// The same with this line in its head.
    StatusWith(u16, &'static str, Value),
    /// 200 with this text as its body.
    Body(&'static str),
    /// A good answer, so late.
    Late(Duration),
    /// The connection ends before the head of the answer, in it, or in the body.
    CutBeforeHead,
    CutInHead,
    CutInBody,
}

/// A request as it came, its body parsed.
#[derive(Clone)]
pub struct Asked {
    /// The request line and the headers, in lower case.
    pub head: String,
    pub body: Value,
}

impl Asked {
    /// The method and the path with its query, in lower case.
    pub fn line(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.strip_suffix(" http/1.1").unwrap_or(line)
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default()
    }

    /// What a model is asked: the last message, or the input.
    pub fn question(&self) -> &str {
        let messages = self.body["messages"].as_array();
        let last = messages.and_then(|all| all.last()?.get("content")?.as_str());
        last.or(self.body["input"].as_str()).unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<Scripted>,
    /// What probes get instead of a good answer.
    probes: Option<Scripted>,
    requests: Vec<Asked>,
}

/// All the services, on one port.
pub struct Services {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Services {
    /// Services whose models say what `think` makes of a question.
    pub fn thinking(think: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let think = Arc::new(think);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, think) = (Arc::clone(&shared), Arc::clone(&think));
                thread::spawn(move || serve(stream, &state, &*think));
            }
        });
        Self { port, state }
    }

    /// Services whose models always say this.
    pub fn saying(text: &'static str) -> Self {
        Self::thinking(move |_| text.to_owned())
    }

    /// Where a path of theirs is.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What happens to the next requests, one after the other; probes do not count.
    pub fn script(&self, replies: impl IntoIterator<Item = Scripted>) {
        lock(&self.state).script.extend(replies);
    }

    /// What happens to every request from now on, probes among them.
    pub fn script_all(&self, reply: &Scripted) {
        let mut state = lock(&self.state);
        state.script = vec![reply.clone(); 1000].into();
        state.probes = Some(reply.clone());
    }

    /// Whatever was wrong is mended: nothing of the script happens any more.
    pub fn mend(&self) {
        let mut state = lock(&self.state);
        state.script.clear();
        state.probes = None;
    }

    /// The requests so far, without probes.
    pub fn requests(&self) -> Vec<Asked> {
        lock(&self.state).requests.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, state: &Mutex<State>, think: &dyn Fn(&Asked) -> String) {
    let Some((Request { head, body }, mut stream)) = Request::receive(stream) else {
        return;
    };
    let body = serde_json::from_str(&body).unwrap_or_default();
    let asked = Asked { head, body };
    let is_probe = asked.line().starts_with("get ") || asked.line().ends_with("/auth.test");
    let scripted = match is_probe {
        true => lock(state).probes.clone(),
        false => {
            let mut state = lock(state);
            state.requests.push(asked.clone());
            state.script.pop_front()
        }
    };
    let good = |text: Option<String>| match refusal(&asked) {
        Some((status, body)) => answer(status, "", &body.to_string()),
        None => {
            let text = text.unwrap_or_else(|| think(&asked));
            answer(200, "", &result(&asked, &text).to_string())
        }
    };
    let whole = match scripted {
        None => good(None),
        Some(Scripted::Says(text)) => good(Some(text)),
        Some(Scripted::Status(status, body)) => answer(status, "", &body.to_string()),
        Some(Scripted::StatusWith(status, header, body)) => {
            answer(status, &format!("{header}\r\n"), &body.to_string())
        }
        Some(Scripted::Body(text)) => answer(200, "", text),
        Some(Scripted::Late(time)) => {
            thread::sleep(time);
            good(None)
        }
        Some(Scripted::CutBeforeHead) => String::new(),
        Some(Scripted::CutInHead) => good(None)[..20].to_owned(),
        Some(Scripted::CutInBody) => {
            let mut whole = good(None);
            whole.truncate(whole.len() - 10);
            whole
        }
    };
    // Whoever asked may have given up.
    let _ = stream.write_all(whole.as_bytes());
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// What the real service says of a request that it does not take.
fn refusal(asked: &Asked) -> Option<(u16, Value)> {
    let (method, rest) = asked.line().split_once(' ').unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let bearer = format!("bearer {SERVICE_KEY}");
    let has_bearer = asked.header("authorization") == bearer && asked.header("api-key").is_empty();
    let has_key =
        asked.header("api-key") == SERVICE_KEY && asked.header("authorization").is_empty();
    let is_json = asked.header("content-type").starts_with("application/json");
    if let Some(call) = path.strip_prefix("/api/") {
        let why = match (method, call) {
            ("post", "auth.test" | "chat.postmessage") if !has_bearer => Some("invalid_auth"),
            ("post", "auth.test") => None,
            ("post", "chat.postmessage") if !is_json => Some("invalid_post_type"),
            ("post", "chat.postmessage") => unfit_message(&asked.body),
            _ => Some("unknown_method"),
        };
        return why.map(|why| (200, json!({"ok": false, "error": why})));
    }
    let deployment = path.strip_prefix("/openai/deployments/");
    let is_azure = path.starts_with("/openai/");
    let why = match (method, path) {
        _ if is_azure && !has_key => Some((401, "invalid_api_key")),
        _ if !is_azure && !has_bearer => Some((401, "invalid_api_key")),
        ("get", "/v1/models" | "/proxy/models") => None,
        ("post", _) if !is_json => Some((400, "invalid_content_type")),
        ("post", "/v1/chat/completions" | "/proxy/chat/completions") => unfit_chat(&asked.body),
        ("post", "/v1/responses") => unfit_question(&asked.body),
        ("post", "/openai/responses") if query.starts_with("api-version=") => {
            unfit_question(&asked.body)
        }
        ("post", _) if deployment.is_some_and(|it| it.ends_with("/chat/completions")) => {
            match query.starts_with("api-version=") {
                true => unfit_chat(&asked.body),
                false => Some((404, "Resource not found")),
            }
        }
        _ => Some((404, "unknown_url")),
    };
    why.map(|(status, code)| {
        let error = json!({"message": format!("refused: {code}"), "type": "invalid_request_error", "code": code});
        (status, json!({"error": error}))
    })
}

/// Whether an object has no other keys than these.
fn has_only(value: &Value, keys: &[&str]) -> bool {
    let members = value.as_object();
    members.is_some_and(|it| it.keys().all(|key| keys.contains(&key.as_str())))
}

fn unfit_chat(body: &Value) -> Option<(u16, &'static str)> {
    if !has_only(
        body,
        &["model", "messages", "temperature", "response_format"],
    ) {
        return Some((400, "unknown_parameter"));
    }
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let is_message = |it: &Value| {
        let is_role = matches!(it["role"].as_str(), Some("system" | "user"));
        is_role && it["content"].is_string() && has_only(it, &["role", "content"])
    };
    if !body["model"].is_string() || messages.is_empty() || !messages.iter().all(is_message) {
        return Some((400, "invalid_type"));
    }
    let format = body.get("response_format");
    let wants_json = format.is_some_and(|it| it["type"] == "json_object");
    let says_json = body["messages"].to_string().to_lowercase().contains("json");
    if format.is_some_and(|it| !it["type"].is_string()) || wants_json && !says_json {
        return Some((400, "invalid_value"));
    }
    unfit_temperature(body)
}

fn unfit_question(body: &Value) -> Option<(u16, &'static str)> {
    if !has_only(body, &["model", "input", "temperature"]) {
        return Some((400, "unknown_parameter"));
    }
    if !body["model"].is_string() || !body["input"].is_string() {
        return Some((400, "invalid_type"));
    }
    unfit_temperature(body)
}

fn unfit_temperature(body: &Value) -> Option<(u16, &'static str)> {
    let temperature = body.get("temperature")?;
    let fits = temperature
        .as_f64()
        .is_some_and(|it| (0.0..=2.0).contains(&it));
    (!fits).then_some((400, "decimal_above_max_value"))
}

fn unfit_message(body: &Value) -> Option<&'static str> {
    if !has_only(body, &["channel", "text", "blocks"]) || !body["channel"].is_string() {
        return Some("invalid_arguments");
    }
    if body["text"].as_str().is_none_or(str::is_empty) {
        return Some("no_text");
    }
    let fits = |block: &Value| {
        let text = block["text"]["text"].as_str().unwrap_or_default();
        let length = text.chars().count();
        let button = block.get("accessory");
        let is_button = button.is_none_or(|it| {
            let is_label = it["text"]["type"] == "plain_text" && it["text"]["text"].is_string();
            let is_url = it["url"]
                .as_str()
                .is_some_and(|url| url.starts_with("http"));
            it["type"] == "button" && is_label && is_url
        });
        block["type"] == "section" && (1..=3000).contains(&length) && is_button
    };
    let blocks = body["blocks"].as_array()?;
    (blocks.len() > 50 || !blocks.iter().all(fits)).then_some("invalid_blocks")
}

/// A good answer with this text, as the service gives it.
fn result(asked: &Asked, text: &str) -> Value {
    let line = asked.line();
    if line.starts_with("get ") {
        return json!({"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]});
    }
    if line.contains("/api/") {
        return json!({"ok": true, "channel": "C0", "ts": "1710605360.000100"});
    }
    if line.contains("/responses") {
        let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
        let message = json!({"type": "message", "role": "assistant", "status": "completed", "content": content});
        return json!({"id": "r", "object": "response", "status": "completed", "output": [message]});
    }
    let message = json!({"role": "assistant", "content": text, "refusal": null});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    json!({"id": "c", "object": "chat.completion", "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
}
