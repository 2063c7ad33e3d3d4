//! One request and its answer.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderValue, Request};

use crate::deadline::Limit;
use crate::http::Url;
use crate::secret::Secret;
use crate::visible::printable;

/// The most that is read of an answer.
const ANSWER_LIMIT: u64 = 256 << 20;

/// The server, and how it is asked.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: Url,
    pub(super) agent: Agent,
    pub(super) authorization: Option<HeaderValue>,
    /// What must not be shown, even where the server says it.
    pub(super) secrets: Vec<Secret>,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(super) enum Question<'a> {
    Get,
    /// JSON.
    Post(&'a str),
    /// A JSON object on each line.
    PostLines(&'a str),
}

/// What the server said.
pub(super) struct Answer {
    pub(super) status: u16,
    /// `null` where it is not JSON.
    pub(super) json: Value,
}

impl Server {
    /// Asks, and waits for the whole answer: for `own` at most, or what the limit of the whole call
    /// leaves. The error says why there is none.
    pub(super) fn ask(
        &self,
        path: &str,
        question: Question<'_>,
        own: Duration,
        limit: Limit,
    ) -> Result<Answer, String> {
        let left = limit.left();
        self.request(path, question, own.min(left))
            .map_err(|error| match error {
                ureq::Error::Timeout(_) if left < own => format!("no answer within {limit}"),
                ureq::Error::Timeout(_) => format!("no answer within {own:?}"),
                // Its text shows the URL.
                ureq::Error::BadUri(_) => "bad URL".to_owned(),
                ureq::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            })
    }

    fn request(
        &self,
        path: &str,
        question: Question<'_>,
        limit: Duration,
    ) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder().uri(self.url.below(path)?);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let (kind, body) = match question {
            Question::Get => ("", None),
            Question::Post(body) => ("application/json", Some(body)),
            Question::PostLines(body) => ("application/x-ndjson", Some(body)),
        };
        let mut response = match body {
            None => {
                let request = request.method("GET").body(())?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(limit)).build())?
            }
            Some(body) => {
                let request = request
                    .method("POST")
                    .header(CONTENT_TYPE, kind)
                    .body(body)?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(limit)).build())?
            }
        };
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT);
        let body = body.read_to_vec()?;
        Ok(Answer {
            status: response.status().as_u16(),
            json: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    /// The text without what must not be shown.
    pub(super) fn without_secrets(&self, text: &str) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text.to_owned(), |text, secret| secret.hide_in(text))
    }
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A text of the server's or the vCon's as messages show it: on one line, not too long.
pub(super) fn shown(text: &str) -> String {
    let shown: String = text.chars().take(300).collect();
    printable(&shown).into_owned()
}
