//! One request and its answer.

use std::io::{self, Read};
use std::time::Duration;

use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderValue, Request};

use super::fault::Reason;
use crate::deadline::Limit;
use crate::http::{self, Cut, EXPLANATION, Url};
use crate::secret::Secret;
use crate::visible::printable;

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
pub(super) enum Answer<T> {
    /// It has done what was asked for; what it says of that, if it is JSON.
    Done(Option<T>),
    /// It has refused.
    Refused(u16, Reason),
}

/// How an answer is read.
pub(super) struct Reading<F> {
    /// The most bytes that it may have.
    pub(super) most: u64,
    pub(super) read: F,
}

impl Server {
    /// Asks, and waits for the whole answer: for `own` at most, or what the limit of the whole call
    /// leaves. The error says why there is none.
    pub(super) fn ask<T>(
        &self,
        path: &str,
        question: Question<'_>,
        reading: Reading<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        own: Duration,
        limit: Limit,
    ) -> Result<Answer<T>, String> {
        let left = limit.left();
        self.request(path, question, reading, own.min(left))
            .map_err(|error| match error {
                ureq::Error::Timeout(_) if left < own => format!("no answer within {limit}"),
                ureq::Error::Timeout(_) => format!("no answer within {own:?}"),
                // Its text shows the URL.
                ureq::Error::BadUri(_) => "bad URL".to_owned(),
                ureq::Error::BodyExceedsLimit(most) => {
                    format!("the answer is longer than {most} bytes, the most that it may have")
                }
                ureq::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            })
    }

    fn request<T>(
        &self,
        path: &str,
        question: Question<'_>,
        reading: Reading<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        limit: Duration,
    ) -> Result<Answer<T>, ureq::Error> {
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
        let status = response.status();
        if !status.is_success() {
            let (body, cut) = http::read(&mut response, EXPLANATION);
            if let Some(Cut::Broken(error)) = cut {
                return Err(error.into());
            }
            return Ok(Answer::Refused(status.as_u16(), Reason::of_answer(&body)));
        }
        let body = response.body_mut().with_config().limit(reading.most);
        match (reading.read)(&mut body.reader()) {
            Ok(said) => Ok(Answer::Done(Some(said))),
            Err(error) if error.is_io() => Err(io::Error::from(error).into()),
            Err(_) => Ok(Answer::Done(None)),
        }
    }

    /// The text without what must not be shown.
    pub(super) fn without_secrets(&self, text: &str) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text.to_owned(), |text, secret| secret.hide_in(text))
    }
}

/// A text of the server's or the vCon's as messages show it: on one line, not too long.
pub(super) fn shown(text: &str) -> String {
    let shown: String = text.chars().take(300).collect();
    printable(&shown).into_owned()
}
