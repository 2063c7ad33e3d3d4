//! The server of a vendor: where it is, how it is asked, and who it takes the daemon for.

use std::time::Duration;

use ureq::http::header::AUTHORIZATION;
use ureq::http::request::Builder;
use ureq::http::{HeaderName, HeaderValue, Request, Uri};
use ureq::{Agent, AsSendBody};

use super::answer;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
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
pub(super) struct Service {
    agent: Agent,
    pub(super) url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What no message shows, even if the server quotes it.
    secrets: Vec<Secret>,
}

impl Service {
    /// The server at this URL; `options` are those that name it.
    pub(super) fn new(options: &Options, url: Url) -> Self {
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
        }
    }

    /// The same, which sends this key as `<scheme> <key>`. A key that cannot be sent is a fault of `option`.
    pub(super) fn with_key(
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
    pub(super) fn with_key_header(
        mut self,
        options: &mut Options,
        option: &str,
        name: &'static str,
        key: Secret,
    ) -> Self {
        let name = HeaderName::from_static(name);
        self.add_header(options, option, name, key.reveal().trim());
        self.secrets.push(key);
        self
    }

    /// Sends a header with each request. One that cannot be sent is a fault of `option`.
    pub(super) fn add_header(
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

    /// Posts something to what is at `path` below the server's URL, and returns the body of the answer.
    ///
    /// # Errors
    /// It was refused, or there is no answer.
    pub(super) fn post(
        &self,
        path: &str,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Vec<u8>, Failure> {
        self.post_to(self.at(path)?, content, body, limit)
    }

    /// The same, to the URL itself.
    pub(super) fn post_whole(
        &self,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Vec<u8>, Failure> {
        self.post_to(self.url.whole(), content, body, limit)
    }

    fn post_to(
        &self,
        uri: Uri,
        content: &[(HeaderName, String)],
        body: impl AsSendBody,
        limit: Limit,
    ) -> Result<Vec<u8>, Failure> {
        let mut request = self.begin(Request::post(uri));
        for (name, value) in content {
            request = request.header(name, value);
        }
        let request = request
            .body(body)
            .map_err(|error| self.unsendable(&error))?;
        let answer = http_client::exchange(&self.agent, request, &self.url, limit, LONGEST_ANSWER)?;
        if answer.status.is_success() {
            Ok(answer.body)
        } else {
            Err(answer::refusal(&self.url, &answer, &self.secrets))
        }
    }

    /// Answers whether the server could be asked now, by a request for what costs nothing. It need not be
    /// there, or open to this key: that the server knows the key is enough.
    pub(super) fn probe(&self, path: &str) -> Result<(), Failure> {
        let request = self.begin(Request::get(self.at(path)?));
        let request = request.body(()).map_err(|error| self.unsendable(&error))?;
        let limit = Deadline::NONE.begin(PROBE);
        let answer: Answer =
            http_client::exchange(&self.agent, request, &self.url, limit, LONGEST_LIST)?;
        match answer.status.as_u16() {
            401 | 402 | 407 | 429 | 500.. => {
                Err(answer::refusal(&self.url, &answer, &self.secrets))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the server accepts a connection.
    pub(super) fn reach(&self) -> Result<(), Failure> {
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
pub(super) fn url_or(options: &mut Options, key: &str, default: &str) -> Option<Url> {
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
