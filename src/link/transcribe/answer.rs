//! What a service's refusal means: whose fault it is, and why.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Failure, FailureKind};
use crate::http_client::{Answer, Url, retry_after};
use crate::secret::Secret;
use crate::visible::printable;

/// The most characters of a reason that are repeated.
const LONGEST_REASON: usize = 300;

/// What services say of a deployment, whatever the status.
const DENIED: [&str; 7] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "payment_required",
    "invalid_api_key",
    "model_not_found",
    "account_deactivated",
];

/// What services say of audio that they cannot use, or that is too much for them.
const OF_THE_AUDIO: [&str; 21] = [
    "corrupt",
    "unsupported data",
    "unsupported audio",
    "unsupported file",
    "unsupported_format",
    "unsupported format",
    "unsupported_media_type",
    "invalid file format",
    "invalid_audio",
    "could not be decoded",
    "could not decode",
    "not a valid media file",
    "could not process file",
    "soundfile is",
    "malformed soundfile",
    "too short",
    "audio_too_short",
    "is longer than",
    "too large",
    "maximum content size",
    "context_length_exceeded",
];

/// What an answer means that is not 2xx.
///
/// | answer | whose fault | |
/// |---|---|---|
/// | a used-up quota, an unknown key or model, whatever the status | the deployment's | denied |
/// | 429, 503 | the service's | busy, until `Retry-After` |
/// | 401, 402, 403, 404, 405, 407, 410, 3xx | the deployment's | denied |
/// | 408, 425, other 5xx | the service's | transient |
/// | 413, 415, and 400 or 422 for what is wrong with the audio | the vCon's | permanent |
/// | all others: 400, 422, … | the vCon's, unless others are refused alike | refused |
pub(super) fn refusal(url: &Url, answer: &Answer, secrets: &[Secret]) -> Failure {
    let said = Said::read(&answer.body);
    let status = answer.status.as_u16();
    let kind = match status {
        _ if status < 500 && said.tells(&DENIED) => FailureKind::Denied,
        429 | 503 => FailureKind::Busy,
        300..=399 | 401..=405 | 407 | 410 => FailureKind::Denied,
        408 | 425 | 500.. => FailureKind::Transient,
        413 | 415 => FailureKind::Permanent,
        400 | 422 if said.tells(&OF_THE_AUDIO) => FailureKind::Permanent,
        _ => FailureKind::Refused,
    };
    let mut message = format!("{url} answered {}", answer.status);
    let reason = said.reason(secrets);
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    let failure = Failure::new(kind, message);
    match kind {
        FailureKind::Busy => failure.until(retry_after(&answer.headers).or(said.ready_at())),
        _ => failure,
    }
}

/// A 2xx answer that is not what the service is known to answer.
pub(super) fn unreadable(url: &Url, why: impl std::fmt::Display) -> Failure {
    let why = why.to_string();
    let why = shortened(&why);
    Failure::transient(format!("the answer of {url} has no transcript: {why}"))
}

/// What the body of a refusal tells.
struct Said {
    body: Value,
    text: String,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self { body, text }
    }

    /// The texts in which services explain themselves: what happened, then its code.
    fn texts(&self) -> Vec<&str> {
        const PLACES: [&str; 11] = [
            "/error/message",
            "/error",
            "/err_msg",
            "/message",
            "/details",
            "/detail",
            "/error/code",
            "/error/type",
            "/err_code",
            "/category",
            "/code",
        ];
        let texts = PLACES.iter().filter_map(|place| self.body.pointer(place));
        let mut texts: Vec<&str> = texts.filter_map(Value::as_str).collect();
        if texts.is_empty() {
            texts.push(&self.text);
        }
        texts
    }

    fn tells(&self, of: &[&str]) -> bool {
        let texts = self.texts().join(" ").to_lowercase();
        of.iter().any(|it| texts.contains(it))
    }

    /// The first of its texts, and its code, to be shown.
    fn reason(&self, secrets: &[Secret]) -> String {
        let mut reason = String::new();
        for text in self.texts().into_iter().take(2) {
            let hidden = secrets.iter();
            let hidden = hidden.fold(text.to_owned(), |text, secret| secret.hide_in(text));
            let text = shortened(&hidden);
            if !reason.contains(&*text) {
                let between = if reason.is_empty() { "" } else { ", " };
                reason = format!("{reason}{between}{text}");
            }
        }
        reason
    }

    /// When a model that is being loaded is expected to be ready.
    fn ready_at(&self) -> Option<Instant> {
        let seconds = self.body.get("estimated_time")?.as_f64()?;
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Instant::now().checked_add(wait.min(Duration::from_secs(3600)))
    }
}

/// The beginning of a text from elsewhere, on one line.
fn shortened(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let line: String = line.join(" ").chars().take(LONGEST_REASON).collect();
    printable(&line).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ureq::http::header::RETRY_AFTER;
    use ureq::http::{HeaderMap, StatusCode};

    use super::*;

    fn refused(status: u16, body: &str) -> Failure {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter([(RETRY_AFTER, "30".parse().unwrap())]),
            body: body.as_bytes().to_vec(),
        };
        let url = "https://api.example.org/v1".parse().unwrap();
        refusal(&url, &answer, &[Secret::new("sk-geheim")])
    }

    #[test]
    fn answers_are_classified() {
        use FailureKind::{Busy, Denied, Permanent, Refused, Transient};
        let error = |message: &str, code: &str| {
            serde_json::json!({"error": {"message": message, "code": code}}).to_string()
        };
        for (status, body, kind) in [
            (429, String::new(), Busy),
            (503, "<html>".to_owned(), Busy),
            (429, error("You exceeded your current quota", "insufficient_quota"), Denied),
            // It names a page about billing, and means the rate.
            (429, error("Rate limit reached. Upgrade at https://h/settings/billing", "rate_limit_exceeded"), Busy),
            (400, error("no", "model_not_found"), Denied),
            (401, error("Incorrect API key", "invalid_api_key"), Denied),
            (402, r#"{"err_code":"ASR_PAYMENT_REQUIRED","err_msg":"Insufficient credits"}"#.to_owned(), Denied),
            (403, String::new(), Denied),
            (404, error("The model does not exist", "model_not_found"), Denied),
            (302, String::new(), Denied),
            (408, String::new(), Transient),
            (500, error("insufficient_quota", ""), Transient),
            (504, String::new(), Transient),
            (413, String::new(), Permanent),
            (415, String::new(), Permanent),
            (400, error("Audio file might be corrupted or unsupported", "invalid_value"), Permanent),
            (400, error("Invalid file format. Supported formats: ['flac']", ""), Permanent),
            (400, error("audio duration 2000 seconds is longer than 1400 seconds", ""), Permanent),
            (400, r#"{"err_code":"Bad Request","err_msg":"failed to process audio: corrupt or unsupported data"}"#.to_owned(), Permanent),
            (400, r#"{"error":"Malformed soundfile"}"#.to_owned(), Permanent),
            (400, r#"{"err_code":"REMOTE_CONTENT_ERROR","err_msg":"The remote server hosting the media returned a client error: 404"}"#.to_owned(), Refused),
            (400, error("something", "other"), Refused),
            (422, String::new(), Refused),
            (409, String::new(), Refused),
        ] {
            let failure = refused(status, &body);
            assert_eq!(failure.kind, kind, "{status} {body}");
            assert_eq!(failure.not_before.is_some(), kind == Busy, "{status} {body}");
        }
    }

    #[test]
    fn a_reason_is_one_short_line_without_secrets() {
        let long = format!(
            r#"{{"error":{{"message":"Key sk-geheim\n\u001b[2J {}"}}}}"#,
            "x".repeat(5000)
        );
        let failure = refused(401, &long);
        let begin = "https://api.example.org/v1 answered 401 Unauthorized: Key *** \\u{1b}[2J xxx";
        assert!(failure.message.starts_with(begin), "{failure}");
        assert!(failure.message.len() < 400, "{failure}");
        let plain = refused(500, "gone  fishing\n");
        assert!(plain.message.ends_with(": gone fishing"), "{plain}");
        let empty = refused(500, "");
        assert!(
            empty.message.ends_with("500 Internal Server Error"),
            "{empty}"
        );
    }

    #[test]
    fn a_model_that_is_being_loaded_says_when_it_is_ready() {
        let answer = Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            headers: HeaderMap::new(),
            body: br#"{"error":"Model is currently loading","estimated_time":20.5}"#.to_vec(),
        };
        let failure = refusal(&"https://h/".parse().unwrap(), &answer, &[]);
        let wait = failure.not_before.unwrap() - Instant::now();
        assert!(wait > Duration::from_secs(15), "{wait:?}");
    }
}
