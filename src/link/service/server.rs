//! The server of a service: where it is, how it is asked, and who it takes the daemon for.

use std::time::Duration;

use ureq::http::header::AUTHORIZATION;
use ureq::http::request::Builder;
use ureq::http::{HeaderName, HeaderValue, Request, Uri};
use ureq::{Agent, AsSendBody};

use super::{Sent, of_answer};
use crate::deadline::{Deadline, Limit};
use crate::failure::{Failure, FailureKind};
use crate::http_client::{self, Answer, Url};
use crate::options::Options;
use crate::secret::Secret;

/// The most bytes of an answer. A day of speech with the times of its words is less.
const LONGEST_ANSWER: u64 = 64 << 20;

/// The same of a probe: a list of models or projects.
const LONGEST_LIST: u64 = 4 << 20;

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(5);

/// A server, with the header that holds its key.
pub(in crate::link) struct Server {
    agent: Agent,
    pub(in crate::link) url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What no message shows, even if the server quotes it.
    secrets: Vec<Secret>,
    /// What it is sent.
    sent: Sent,
}

impl Server {
    /// The server at this URL, to which this is sent; `options` are those that name it.
    pub(in crate::link) fn new(options: &Options, url: Url, sent: Sent) -> Self {
        let mut headers = Vec::new();
        // That of a key takes its place.
        if let Some(login) = url.authorization() {
            headers.push((AUTHORIZATION, login));
        }
        Self {
            agent: http_client::agent(),
            url,
            headers,
            secrets: options.looked_up().to_vec(),
            sent,
        }
    }

    /// The same, which sends this key as `<scheme> <key>`. A key that cannot be sent is a fault of `option`.
    pub(in crate::link) fn with_key(
        mut self,
        options: &mut Options,
        option: &str,
        scheme: &str,
        key: Secret,
    ) -> Self {
        let value = format!("{scheme} {}", key.reveal().trim());
        self.headers.clear();
        self.add_header(options, option, AUTHORIZATION, value.trim());
        self.secrets.push(key);
        self
    }

    /// The same, which sends this key in a header of its own.
    pub(in crate::link) fn with_key_header(
        mut self,
        options: &mut Options,
        option: &str,
        name: &'static str,
        key: Secret,
    ) -> Self {
        let name = HeaderName::from_static(name);
        self.headers.clear();
        self.add_header(options, option, name, key.reveal().trim());
        self.secrets.push(key);
        self
    }

    /// Sends a header with each request. One that cannot be sent is a fault of `option`.
    pub(in crate::link) fn add_header(
        &mut self,
        options: &mut Options,
        option: &str,
        name: HeaderName,
        value: &str,
    ) {
        match HeaderValue::from_str(value) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.headers.push((name, value));
            }
            Err(_) => options.fault(option, "is not one line of text"),
        }
    }

    /// Posts something to what is at `path` below the server's URL, and returns the answer, which is a good one.
    ///
    /// # Errors
    /// It was refused, or there is no answer.
    pub(in crate::link) fn post(
        &self,
        path: &str,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Answer, Failure> {
        let uri = self.at(path)?;
        let url = uri.to_string().parse().unwrap_or_else(|_| self.url.clone());
        self.post_to(uri, &url, content, body, limit)
    }

    /// The same, to the URL itself.
    pub(in crate::link) fn post_whole(
        &self,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Answer, Failure> {
        self.post_to(self.url.whole(), &self.url, content, body, limit)
    }

    fn post_to(
        &self,
        uri: Uri,
        url: &Url,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Answer, Failure> {
        let mut request = self.begin(Request::post(uri));
        for (name, value) in content {
            request = request.header(name, value);
        }
        let request = request
            .body(body)
            .map_err(|error| self.unsendable(&error))?;
        let answer = http_client::exchange(&self.agent, request, url, limit, LONGEST_ANSWER)?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(of_answer(url, &answer, self.sent, &self.secrets)),
        }
    }

    /// Answers whether the server could be asked now, by a request for what costs nothing. It need not be
    /// there, or open to this key: that the server knows the key is enough.
    pub(in crate::link) fn probe(&self, path: &str) -> Result<(), Failure> {
        let request = self.begin(Request::get(self.at(path)?));
        let request = request.body(()).map_err(|error| self.unsendable(&error))?;
        let limit = Deadline::NONE.begin(PROBE);
        let answer: Answer =
            http_client::exchange(&self.agent, request, &self.url, limit, LONGEST_LIST)?;
        let refusal = || of_answer(&self.url, &answer, self.sent, &self.secrets);
        match answer.status.as_u16() {
            401 | 402 | 407 | 429 | 500.. => Err(refusal()),
            // LiteLLM says so that it does not know the key, or that its budget is used up.
            400 | 422 => match refusal() {
                failure if failure.kind == FailureKind::Denied => Err(failure),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Checks that the server accepts a connection.
    pub(in crate::link) fn reach(&self) -> Result<(), Failure> {
        http_client::reach(&self.agent, &self.url)
    }

    fn at(&self, path: &str) -> Result<Uri, Failure> {
        self.url
            .below(path)
            .map_err(|error| self.unsendable(&error))
    }

    fn begin(&self, mut request: Builder) -> Builder {
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    fn unsendable(&self, error: &ureq::http::Error) -> Failure {
        Failure::transient(format!("could not ask {}: {error}", self.url))
    }
}

/// The URL in an option, or this one. One that is none is a fault.
pub(in crate::link) fn url_or(options: &mut Options, key: &str, default: &str) -> Option<Url> {
    let text = options.filled_string(key);
    match text.as_deref().unwrap_or(default).parse() {
        Ok(url) => Some(url),
        Err(error) => {
            // Does not show the text, which may hold a password.
            options.fault(key, error.to_string());
            None
        }
    }
}
