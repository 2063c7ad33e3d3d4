//! What an answer that is no result means: whose fault it is, and why.
//!
//! | answer | failure |
//! |---|---|
//! | 429, 503 | busy, until `Retry-After` |
//! | 429 with `insufficient_quota` or `billing…`; 401, 402, 403, 404, 405, 407, 410, 3xx; a parameter that the model does not know | denied: the deployment's |
//! | 429 for a request that is larger than what the account may ask in a minute | refused |
//! | 413; 400 with `context_length_exceeded`, `string_above_max_length` or the words of other servers for it | permanent: the vCon's |
//! | `content_filter`, `content_policy_violation`, a refusal | permanent: the vCon's |
//! | other 400, 422 | refused: in doubt |
//! | 408, 409, 425, 5xx, all others | transient |

use serde_json::Value;
use ureq::http::StatusCode;

use super::hidden;
use crate::failure::{Failure, FailureKind};
use crate::http_client::{Answer, Url, retry_after};
use crate::secret::Secret;
use crate::visible::printable;

/// The most characters shown of what a server says.
const LONGEST: usize = 300;

/// Codes of a quota that is used up: waiting does not help.
const QUOTA: [&str; 4] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "access_terminated",
];

/// Codes of a request that the model could never take, whatever the vCon.
const UNSUPPORTED: [&str; 5] = [
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "model_not_found",
    "invalid_api_key",
];

/// Codes and words of a request that is too long for the model.
const TOO_LONG: [&str; 6] = [
    "context_length_exceeded",
    "string_above_max_length",
    "ContextWindowExceeded",
    "maximum context length",
    "context window",
    "exceeds the available context size",
];

/// Codes and words of content that the server does not take.
const CONTENT: [&str; 4] = [
    "content_filter",
    "content_policy_violation",
    "ContentPolicyViolation",
    "ResponsibleAIPolicyViolation",
];

/// What a server says of a request that it does not do.
struct Explanation {
    /// Its codes and types, for the machine.
    codes: Vec<String>,
    message: String,
}

/// The failure of a request that was not done.
pub(in crate::link) fn of_answer(url: &Url, answer: &Answer, secrets: &[Secret]) -> Failure {
    let said = Explanation::read(&answer.body);
    let kind = kind(answer.status, &said);
    let shown = shown(&said, secrets);
    let reason = match shown.is_empty() {
        true => String::new(),
        false => format!(": {shown}"),
    };
    let advice = advice(kind, answer.status);
    let message = format!(
        "could not POST to {url}: it answered {}{reason}{advice}",
        answer.status
    );
    let failure = Failure::new(kind, message);
    match kind {
        FailureKind::Busy => failure.until(retry_after(&answer.headers)),
        _ => failure,
    }
}

fn kind(status: StatusCode, said: &Explanation) -> FailureKind {
    match status.as_u16() {
        429 if said.has_code(&QUOTA) => FailureKind::Denied,
        429 if said.message.starts_with("Request too large") => FailureKind::Refused,
        429 | 503 => FailureKind::Busy,
        413 => FailureKind::Permanent,
        400 | 422 if said.speaks_of(&TOO_LONG) || said.speaks_of(&CONTENT) => {
            FailureKind::Permanent
        }
        400 | 422 if said.has_code(&UNSUPPORTED) => FailureKind::Denied,
        400 | 422 => FailureKind::Refused,
        300..=399 | 401..=405 | 407 | 410 | 421 | 426 | 451 => FailureKind::Denied,
        _ => FailureKind::Transient,
    }
}

fn advice(kind: FailureKind, status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => "; give the URL that it leads to",
        401 | 403 | 407 => "; see to the credentials",
        404 | 405 | 410 => "; see to the model and the URL",
        402 => "; see to the account",
        429 if kind == FailureKind::Denied => "; see to the account's quota",
        _ => "",
    }
}

/// What is said, on one line, without secrets.
fn shown(said: &Explanation, secrets: &[Secret]) -> String {
    let code = said.codes.first().filter(|it| !said.message.contains(*it));
    let whole = match code {
        Some(code) if !said.message.is_empty() => format!("{} ({code})", said.message),
        Some(code) => code.clone(),
        None => said.message.clone(),
    };
    // A key of which some letters are left: `sk-ab***xy`.
    let words: Vec<&str> = whole
        .split(' ')
        .map(|word| if word.contains("**") { "***" } else { word })
        .collect();
    let whole = hidden(secrets, words.join(" "));
    let mut cut: String = whole.trim().chars().take(LONGEST).collect();
    if cut.len() < whole.trim().len() {
        cut.push('…');
    }
    printable(&cut).into_owned()
}

impl Explanation {
    /// Reads the error of a server: `{"error": {"message", "type", "code"}}`, `{"error": "…"}`, the same
    /// members at the top, or no JSON at all.
    fn read(body: &[u8]) -> Self {
        let Ok(whole) = serde_json::from_slice::<Value>(body) else {
            let text = String::from_utf8_lossy(body);
            let text = text.trim();
            // A page of a proxy says nothing worth showing.
            let message = if text.starts_with('<') { "" } else { text };
            return Self {
                codes: Vec::new(),
                message: message.to_owned(),
            };
        };
        let error = whole.get("error").filter(|it| it.is_object());
        let inside = error.unwrap_or(&whole);
        let text = |name: &str| match inside.get(name)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let inner = inside
            .get("innererror")
            .and_then(|it| it.get("code")?.as_str().map(str::to_owned));
        let message = text("message")
            .or_else(|| text("error"))
            .or_else(|| text("detail"));
        Self {
            codes: [text("code"), inner, text("type")]
                .into_iter()
                .flatten()
                .collect(),
            message: message.unwrap_or_default(),
        }
    }

    fn has_code(&self, known: &[&str]) -> bool {
        self.codes.iter().any(|code| known.contains(&code.as_str()))
    }

    fn speaks_of(&self, known: &[&str]) -> bool {
        self.has_code(known) || known.iter().any(|word| self.message.contains(word))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use ureq::http::HeaderMap;

    use super::*;

    fn failure(status: u16, body: &str, retry_after: Option<&str>) -> Failure {
        let mut headers = HeaderMap::new();
        if let Some(text) = retry_after {
            headers.insert("retry-after", text.parse().unwrap());
        }
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: body.as_bytes().to_vec(),
        };
        let url = "http://h/v1/chat/completions".parse().unwrap();
        of_answer(&url, &answer, &[Secret::new("sk-secret")])
    }

    #[test]
    fn answers_are_classified() {
        use FailureKind::{Busy, Denied, Permanent, Refused, Transient};
        let error =
            |code: &str| format!(r#"{{"error":{{"message":"m","type":"t","code":"{code}"}}}}"#);
        let says = |message: &str| format!(r#"{{"error":{{"message":"{message}","code":null}}}}"#);
        for (status, body, kind) in [
            (429, error("rate_limit_exceeded"), Busy),
            (429, String::new(), Busy),
            (429, error("insufficient_quota"), Denied),
            (429, r#"{"error":{"type":"insufficient_quota"}}"#.to_owned(), Denied),
            (429, says("Request too large for gpt-4o on tokens per min"), Refused),
            (503, "<html>".to_owned(), Busy),
            (401, error("invalid_api_key"), Denied),
            (402, String::new(), Denied),
            (403, error("unsupported_country_region_territory"), Denied),
            (404, error("model_not_found"), Denied),
            (404, r#"{"error":{"code":"DeploymentNotFound"}}"#.to_owned(), Denied),
            (405, String::new(), Denied),
            (302, String::new(), Denied),
            (400, error("context_length_exceeded"), Permanent),
            (400, error("string_above_max_length"), Permanent),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 4096 tokens.","code":400}"#
                    .to_owned(),
                Permanent,
            ),
            (413, String::new(), Permanent),
            (400, error("content_filter"), Permanent),
            (400, error("content_policy_violation"), Permanent),
            (
                400,
                r#"{"error":{"code":"x","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#.to_owned(),
                Permanent,
            ),
            (400, error("unsupported_value"), Denied),
            (400, error("other"), Refused),
            (400, "no JSON".to_owned(), Refused),
            (422, r#"{"detail":[{"msg":"x"}]}"#.to_owned(), Refused),
            (408, String::new(), Transient),
            (409, String::new(), Transient),
            (425, String::new(), Transient),
            (500, error("server_error"), Transient),
            (502, String::new(), Transient),
            (529, String::new(), Transient),
        ] {
            let failure = failure(status, &body, None);
            assert_eq!(failure.kind, kind, "{status} {body}");
            assert_eq!(failure.not_before, None);
        }
    }

    #[test]
    fn busy_servers_say_when_and_others_do_not() {
        let wait = |failure: Failure| failure.not_before.map(|at| at - Instant::now());
        let is_near =
            |wait: Duration| wait.abs_diff(Duration::from_secs(7)) < Duration::from_secs(2);
        assert!(wait(failure(429, "", Some("7"))).is_some_and(is_near));
        assert!(wait(failure(503, "", Some("7"))).is_some_and(is_near));
        let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
        assert_eq!(wait(failure(429, quota, Some("7"))), None);
    }

    #[test]
    fn the_servers_reason_is_shown_on_one_line_and_no_key_with_it() {
        let begin = "could not POST to http://h/v1/chat/completions: it answered ";
        for (status, body, message) in [
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided: sk-se***et. See sk-secret\u001b[2J\nnow","code":"invalid_api_key"}}"#,
                "401 Unauthorized: Incorrect API key provided: *** See ***\\u{1b}[2J\\nnow (invalid_api_key); see to the credentials",
            ),
            (
                404,
                r#"{"error":"model 'x' not found"}"#,
                "404 Not Found: model 'x' not found; see to the model and the URL",
            ),
            (500, "<html>no</html>", "500 Internal Server Error"),
            (
                500,
                "upstream gone\n",
                "500 Internal Server Error: upstream gone",
            ),
            (
                429,
                r#"{"error":{"code":"insufficient_quota"}}"#,
                "429 Too Many Requests: insufficient_quota; see to the account's quota",
            ),
        ] {
            assert_eq!(
                failure(status, body, None).message,
                format!("{begin}{message}")
            );
        }
        let long = failure(500, &"é".repeat(1000), None).message;
        assert!(long.chars().count() < 400 && long.ends_with("é…"), "{long}");
    }
}
