//! What an answer that is no result means: whose fault it is, and why.
//!
//! | answer | failure |
//! |---|---|
//! | 429, 503 | busy, until `Retry-After`, that of the provider behind a proxy, or the time at which a model is expected to be loaded |
//! | a used-up quota or budget, an unknown key, model or parameter (429, 400, 422, whatever 4xx); 401, 402, 403, 404, 405, 407, 410, 3xx | denied: the deployment's |
//! | 429 for a request that is larger than what the account may ask in a minute | refused |
//! | 413; 400 and 422 for a text that is too long, or content that is not allowed | permanent: the vCon's |
//! | for audio: 415; 400 and 422 for what is wrong with the audio | permanent: the vCon's |
//! | 408, 409, 425, 5xx | transient |
//! | all others: 400, 422, … | refused: in doubt |
//!
//! What tells is a code, or words. LiteLLM puts the status in the place of the provider's code (`"code": "400"`), and
//! often only the provider's sentence is left. As an error may quote the vCon, such a sentence counts only where the
//! reason begins, behind what the proxy puts before it: see [`Explanation::begins_with`].

use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http::StatusCode;

use super::hidden;
use crate::failure::{Failure, FailureKind};
use crate::http_client::{Answer, Url, retry_after, retry_after_in};
use crate::secret::Secret;
use crate::visible::printable;

/// The most characters shown of what a server says.
const LONGEST: usize = 300;

/// The longest time that a model may say it is being loaded.
const LONGEST_LOAD: f64 = 3600.0;

/// Where LiteLLM passes on the `Retry-After` of the provider behind it.
const PROVIDERS_RETRY_AFTER: &str = "llm_provider-retry-after";

/// Codes of a deployment that is refused whatever it asks: waiting does not help. The last two are types of
/// LiteLLM: it cannot look up the key, and the key's budget is used up.
const DENIED: [&str; 13] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "access_terminated",
    "account_deactivated",
    "payment_required",
    "invalid_api_key",
    "model_not_found",
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "no_db_connection",
    "budget_exceeded",
];

/// How the reason begins where no code says that this deployment is refused.
const DENIED_REASONS: [&str; 10] = [
    "invalid model name passed in model=",
    "unsupportedparamserror:",
    "unsupported value:",
    "unsupported parameter:",
    "unknown parameter:",
    "unrecognized request argument",
    "invalid parameter: 'response_format'",
    "you exceeded your current quota",
    "billing hard limit has been reached",
    // Anthropic's.
    "your credit balance is too low",
];

/// In a reason that begins like these: it is the rate that is exceeded, and time that helps. Gemini says so.
const PASSES: &str = "please retry in";

/// Codes and words of a request that is too long for the model.
const TOO_LONG: [&str; 6] = [
    "context_length_exceeded",
    "string_above_max_length",
    "contextwindowexceeded",
    "maximum context length",
    "context window",
    "exceeds the available context size",
];

/// Codes and words of content that the server does not take.
const CONTENT: [&str; 4] = [
    "content_filter",
    "content_policy_violation",
    "contentpolicyviolation",
    "responsibleaipolicyviolation",
];

/// How the reason begins where no code says that.
const CONTENT_REASONS: [&str; 2] = [
    "your request was rejected as a result of our safety system",
    // Azure's: "… Azure OpenAI's content management policy".
    "the response was filtered due to the prompt triggering",
];

/// What a proxy writes before a reason: the provider's error as JSON, or as Python shows it.
const WRAPPERS: [&str; 5] = [
    "litellm.",
    r#"{"error": {"message": ""#,
    r#"{"error":{"message":""#,
    "{'error': {'message': '",
    "{'error': '",
];

/// The same of a provider that names the type first: Anthropic.
const TYPED_WRAPPERS: [&str; 2] = [
    r#"{"type": "error", "error": {"type": ""#,
    r#"{"type":"error","error":{"type":""#,
];

/// Codes and words of audio that a service cannot use, or that is too much for it.
const OF_THE_AUDIO: [&str; 20] = [
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
];

/// What a service is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link) enum Sent {
    Text,
    Audio,
}

/// What a server says of a request that it does not do.
struct Explanation {
    /// Its codes and types, for the machine.
    codes: Vec<String>,
    message: String,
    /// In how many seconds the model is loaded.
    estimated_time: Option<f64>,
}

/// The failure of a request that was not done.
pub(in crate::link) fn of_answer(
    url: &Url,
    answer: &Answer,
    sent: Sent,
    secrets: &[Secret],
) -> Failure {
    let said = Explanation::read(answer);
    let kind = kind(answer.status, sent, &said);
    let shown = shown(&said, secrets);
    let reason = match shown.is_empty() {
        true => String::new(),
        false => format!(": {shown}"),
    };
    let advice = advice(kind, answer.status);
    let failure = Failure::new(
        kind,
        format!("{url} answered {}{reason}{advice}", answer.status),
    );
    match kind {
        FailureKind::Busy => {
            let time = retry_after(&answer.headers)
                .or_else(|| retry_after_in(&answer.headers, PROVIDERS_RETRY_AFTER));
            failure.until(time.or(said.ready_at()))
        }
        _ => failure,
    }
}

fn kind(status: StatusCode, sent: Sent, said: &Explanation) -> FailureKind {
    let is_audio = sent == Sent::Audio;
    match status.as_u16() {
        400..500 if said.is_denied() => FailureKind::Denied,
        429 if said.message.starts_with("Request too large") => FailureKind::Refused,
        429 | 503 => FailureKind::Busy,
        413 => FailureKind::Permanent,
        415 if is_audio => FailureKind::Permanent,
        400 | 422 if said.speaks_of(&TOO_LONG) || said.is_of_content() => FailureKind::Permanent,
        400 | 422 if is_audio && said.speaks_of(&OF_THE_AUDIO) => FailureKind::Permanent,
        300..=399 | 401..=405 | 407 | 410 | 421 | 426 | 451 => FailureKind::Denied,
        408 | 409 | 425 => FailureKind::Transient,
        400..500 => FailureKind::Refused,
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
        .split_whitespace()
        .map(|word| if word.contains("**") { "***" } else { word })
        .collect();
    let whole = hidden(secrets, words.join(" "));
    let mut cut: String = whole.chars().take(LONGEST).collect();
    if cut.len() < whole.len() {
        cut.push('…');
    }
    printable(&cut).into_owned()
}

/// The first of these members that is a text with something in it.
fn first(members: &Value, names: &[&str]) -> Option<String> {
    let mut texts = names.iter().filter_map(|name| members.get(name)?.as_str());
    texts
        .find(|text| !text.trim().is_empty())
        .map(str::to_owned)
}

impl Explanation {
    /// Reads the error of a server: `{"error": {"message", "type", "code"}}`, `{"error": "…"}`, the same
    /// members at the top, Deepgram's `{"err_msg", "err_code"}` or `{"category", "message", "details"}`, or no
    /// JSON at all.
    fn read(answer: &Answer) -> Self {
        let Ok(whole) = serde_json::from_slice::<Value>(&answer.body) else {
            let text = String::from_utf8_lossy(&answer.body);
            let text = text.trim();
            // A page of a proxy says nothing worth showing.
            let message = if text.starts_with('<') { "" } else { text };
            return Self {
                codes: Vec::new(),
                message: message.to_owned(),
                estimated_time: None,
            };
        };
        let error = whole.get("error").filter(|it| it.is_object());
        let inside = error.unwrap_or(&whole);
        let inner = inside.get("innererror").unwrap_or(&Value::Null);
        let codes = [
            first(inside, &["code"]),
            first(inside, &["err_code"]),
            first(inside, &["category"]),
            first(inner, &["code"]),
            first(inside, &["type"]),
        ];
        // LiteLLM's code is the status, and its type may be Python's word for none.
        let says_more = |code: &String| code != answer.status.as_str() && code != "None";
        let names = ["message", "err_msg", "error", "details", "detail"];
        Self {
            codes: codes.into_iter().flatten().filter(says_more).collect(),
            message: first(inside, &names).unwrap_or_default(),
            estimated_time: whole.get("estimated_time").and_then(Value::as_f64),
        }
    }

    /// Whether this deployment is refused, whatever it asks.
    fn is_denied(&self) -> bool {
        self.speaks_of(&DENIED)
            || self.begins_with(&DENIED_REASONS) && !self.message.to_lowercase().contains(PASSES)
    }

    /// Whether the server does not take the content.
    fn is_of_content(&self) -> bool {
        self.speaks_of(&CONTENT) || self.begins_with(&CONTENT_REASONS)
    }

    /// Whether the reason begins with one of these: the message, without what a proxy puts before it.
    ///
    /// Such sentences may be said in a conversation, and a server may quote that in an error about something else.
    /// But it says first what is wrong, and quotes then: at the beginning stand its own words.
    fn begins_with(&self, known: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        let mut rest = message.trim_start();
        loop {
            if known.iter().any(|words| rest.starts_with(words)) {
                return true;
            }
            match unwrapped(rest) {
                Some(inner) => rest = inner.trim_start(),
                None => return false,
            }
        }
    }

    fn speaks_of(&self, known: &[&str]) -> bool {
        let texts = self.codes.iter().chain([&self.message]);
        let texts: Vec<String> = texts.map(|text| text.to_lowercase()).collect();
        let is_in = |word: &&str| texts.iter().any(|text| text.contains(word));
        known.iter().any(is_in)
    }

    /// When a model that is being loaded is expected to be ready.
    fn ready_at(&self) -> Option<Instant> {
        let seconds = self.estimated_time?.min(LONGEST_LOAD);
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Instant::now().checked_add(wait)
    }
}

/// A message in lower case without the first of what a proxy puts before a reason, if there is any:
/// `litellm.RateLimitError: RateLimitError: OpenAIException - `, `/chat/completions: `, the beginning of JSON.
fn unwrapped(message: &str) -> Option<&str> {
    if let Some(inner) = WRAPPERS.iter().find_map(|it| message.strip_prefix(it)) {
        return Some(inner);
    }
    if TYPED_WRAPPERS.iter().any(|it| message.starts_with(it)) {
        let (_, reason) = message.split_once(r#""message":"#)?;
        return reason.trim_start().strip_prefix('"');
    }
    let (word, rest) = message.split_once(' ')?;
    let name = word.strip_suffix(':');
    let is_path = name.is_some_and(|name| name.starts_with('/'));
    let name = name.unwrap_or(word);
    let is_error = name.ends_with("error") || name.ends_with("exception") || name == "-";
    (is_path || is_error).then_some(rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use ureq::http::header::RETRY_AFTER;
    use ureq::http::{HeaderMap, HeaderName};

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
        of_answer(&url, &answer, Sent::Text, &[Secret::new("sk-secret")])
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

    /// What LiteLLM's proxy answers, byte for byte.
    #[test]
    fn what_litellm_leaves_of_an_error_is_classified_as_the_providers_own() {
        use FailureKind::{Busy, Denied, Permanent, Refused};
        for (status, body, kind) in [
            // A wrong key, at a proxy without a database.
            (
                400,
                r#"{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}"#,
                Denied,
            ),
            (
                422,
                r#"{"error":{"message":"Budget has been exceeded! Current cost: 10.0, Max budget: 1.0","type":"budget_exceeded","param":null,"code":"422"}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"Budget has been exceeded! Current cost: 10.0, Max budget: 1.0","type":"budget_exceeded","param":null,"code":"400"}}"#,
                Denied,
            ),
            (400, NO_SUCH_MODEL, Denied),
            // Of audio.
            (
                400,
                r#"{"error":{"message":"{'error': '/audio/transcriptions: Invalid model name passed in model=nosuch. Call `/v1/models` to view available models for your key.'}","type":"None","param":"None","code":"400"}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.UnsupportedParamsError: gpt-5 doesn't support temperature=0 while reasoning is active. Only temperature=1 is supported unless reasoning_effort resolves to 'none', either set explicitly on the request or declared as the model's default_reasoning_effort. To drop unsupported params set `litellm.drop_params = True`\n\nLiteLLM: model group 'gpt5strict' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.\n\nLiteLLM: model group 'u-temp' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            // As it names Azure.
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: AzureException BadRequestError - Unsupported parameter: 'max_tokens' is not supported with this model.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            (
                429,
                r#"{"error":{"message":"litellm.RateLimitError: RateLimitError: OpenAIException - You exceeded your current quota, please check your plan and billing details.\n\nLiteLLM: model group 'u-quota' failed with the error above. No fallback was attempted.","type":"throttling_error","param":null,"code":"429"}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - Unknown parameter: 'foo'.\n\nLiteLLM: model group 'u-unk' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            // OpenAI itself gives no code for these two either.
            (
                400,
                r#"{"error":{"message":"Unrecognized request argument supplied: foo","type":"invalid_request_error","param":null,"code":null}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - Invalid parameter: 'response_format' of type 'json_object' is not supported with this model.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            (
                429,
                r#"{"error":{"message":"litellm.RateLimitError: RateLimitError: OpenAIException - Billing hard limit has been reached","type":"throttling_error","param":null,"code":"429"}}"#,
                Denied,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: AnthropicException - {\"type\": \"error\", \"error\": {\"type\": \"invalid_request_error\", \"message\": \"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.\"}}","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Denied,
            ),
            // From `responses`.
            (
                429,
                r#"{"error":{"message":"litellm.RateLimitError: RateLimitError: OpenAIException - {\"error\": {\"message\": \"You exceeded your current quota, please check your plan and billing details.\", \"type\": \"insufficient_quota\", \"param\": null, \"code\": \"insufficient_quota\"}}\n\nLiteLLM: model group 'u-quota' failed with the error above. No fallback was attempted.","type":"throttling_error","param":null,"code":"429"}}"#,
                Denied,
            ),
            (
                429,
                r#"{"error":{"message":"litellm.RateLimitError: RateLimitError: OpenAIException - Rate limit reached for gpt-5 in organization org-x on tokens per min (TPM): Limit 10000, Used 9900, Requested 500. Please try again in 6s.\n\nLiteLLM: model group 'u-rl' failed with the error above. No fallback was attempted.","type":"throttling_error","param":null,"code":"429"}}"#,
                Busy,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - Your request was rejected as a result of our safety system.\n\nLiteLLM: model group 'u-cpol' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry.\n\nLiteLLM: model group 'u-azfilter' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":"prompt","code":"400"}}"#,
                Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: litellm.ContentPolicyViolationError: ContentPolicyViolationError: OpenAIException - {\"error\": {\"message\": \"Your request was rejected as a result of our safety system.\", \"type\": \"invalid_request_error\", \"param\": null, \"code\": \"content_policy_violation\"}}\nmodel=u-cpol. content_policy_fallback=None. fallbacks=None.\n\nSet 'content_policy_fallback' - https://docs.litellm.ai/docs/routing#fallbacks\n\nLiteLLM: model group 'u-cpol' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: OpenAIException - This model's maximum context length is 8192 tokens. However, your messages resulted in 10000 tokens. Please reduce the length of the messages.\nmodel=u-ctx. context_window_fallbacks=None. fallbacks=None.\n\nSet 'context_window_fallback' - https://docs.litellm.ai/docs/routing#fallbacks\n\nLiteLLM: model group 'u-ctx' failed with the error above. No fallback was attempted.","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - something else","type":"invalid_request_error","param":null,"code":"400"}}"#,
                Refused,
            ),
        ] {
            assert_eq!(failure(status, body, None).kind, kind, "{status} {body}");
        }
    }

    const NO_SUCH_MODEL: &str = r#"{"error":{"message":"/chat/completions: Invalid model name passed in model=nosuchmodel. Call `/v1/models` to view available models for your key.","type":"invalid_request_error","param":null,"code":"400","provider_specific_fields":{"error":"/chat/completions: Invalid model name passed in model=nosuchmodel. Call `/v1/models` to view available models for your key."}}}"#;

    #[test]
    fn what_an_error_quotes_of_a_vcon_does_not_count_as_the_servers_reason() {
        for quoted in DENIED_REASONS.iter().chain(&CONTENT_REASONS) {
            for before in [
                "Invalid content: ",
                "litellm.BadRequestError: OpenAIException - could not parse: ",
                "litellm.BadRequestError: OpenAIException - Input is 'Error: ",
            ] {
                let body = serde_json::json!({"error": {"message": format!("{before}{quoted}"), "code": "400"}});
                let failure = failure(400, &body.to_string(), None);
                assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
            }
        }
    }

    #[test]
    fn a_quota_for_a_minute_is_waited_for() {
        // Gemini's words for it are those of OpenAI for one that is used up.
        let body = r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details. Please retry in 34.07s.","code":"429"}}"#;
        assert_eq!(failure(429, body, None).kind, FailureKind::Busy);
    }

    #[test]
    fn what_the_provider_behind_a_proxy_asks_for_is_waited_for() {
        let wait = |status, headers: &[(&'static str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: headers.collect(),
                body: Vec::new(),
            };
            let failure = of_answer(&"http://h/".parse().unwrap(), &answer, Sent::Text, &[]);
            let wait = failure.not_before.map(|time| time - Instant::now());
            wait.map(|wait| wait.as_secs_f64().round())
        };
        let provider = ("llm_provider-retry-after", "6");
        assert_eq!(wait(429, &[provider]), Some(6.0));
        assert_eq!(wait(503, &[provider]), Some(6.0));
        assert_eq!(wait(429, &[provider, ("retry-after", "20")]), Some(20.0));
        assert_eq!(wait(500, &[provider]), None);
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
        let begin = "http://h/v1/chat/completions answered ";
        for (status, body, message) in [
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided: sk-se***et. See sk-secret\u001b[2J\nnow","code":"invalid_api_key"}}"#,
                "401 Unauthorized: Incorrect API key provided: *** See ***\\u{1b}[2J now (invalid_api_key); see to the credentials",
            ),
            (
                404,
                r#"{"error":"model 'x' not found"}"#,
                "404 Not Found: model 'x' not found; see to the model and the URL",
            ),
            (
                400,
                r#"{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}"#,
                "400 Bad Request: No connected db. (no_db_connection)",
            ),
            (
                400,
                r#"{"error":{"message":"no","type":"None","param":"None","code":"400"}}"#,
                "400 Bad Request: no",
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

    fn of_audio(status: u16, body: &str) -> Failure {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter([(RETRY_AFTER, "30".parse().unwrap())]),
            body: body.as_bytes().to_vec(),
        };
        let url = "https://api.example.org/v1".parse().unwrap();
        of_answer(&url, &answer, Sent::Audio, &[Secret::new("sk-geheim")])
    }

    #[test]
    fn answers_of_services_that_transcribe_are_classified() {
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
            (409, String::new(), Transient),
        ] {
            let failure = of_audio(status, &body);
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
        let failure = of_audio(401, &long);
        let begin = "https://api.example.org/v1 answered 401 Unauthorized: Key *** \\u{1b}[2J xxx";
        assert!(failure.message.starts_with(begin), "{failure}");
        assert!(failure.message.len() < 400, "{failure}");
        let plain = of_audio(500, "gone  fishing\n");
        assert!(plain.message.ends_with(": gone fishing"), "{plain}");
        let empty = of_audio(500, "");
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
        let failure = of_answer(&"https://h/".parse().unwrap(), &answer, Sent::Audio, &[]);
        let wait = failure.not_before.unwrap() - Instant::now();
        assert!(wait > Duration::from_secs(15), "{wait:?}");
    }
}
