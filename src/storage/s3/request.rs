//! One signed request to S3 and its answer.

use std::time::Duration;

use s3::Bucket;
use s3::command::Command;
use s3::error::S3Error;
use s3::request::Request as _;
use s3::request::blocking::AttoRequest;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, http};

use crate::http::with_parts;

/// What the existing daemon's library gives to an object of which it knows no better.
const CONTENT_TYPE: &str = "binary/octet-stream";

/// What the server said.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

pub(super) enum Verb<'a> {
    Get,
    Put(&'a [u8]),
    Delete,
}

impl Verb<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Get => "read",
            Self::Put(_) => "write",
            Self::Delete => "delete",
        }
    }
}

/// Signs one request, sends it and reads the whole answer.
///
/// The signature is the S3 library's. Its own transport has no TLS here, keeps no connection,
/// and drops the body that says why a write was refused.
pub(super) fn send(
    agent: &Agent,
    bucket: &Bucket,
    key: &str,
    verb: &Verb<'_>,
    limit: Duration,
) -> Result<Answer, Fault> {
    let command = match *verb {
        Verb::Get => Command::GetObject,
        Verb::Put(content) => Command::PutObject {
            content,
            content_type: CONTENT_TYPE,
            custom_headers: None,
            multipart: None,
        },
        Verb::Delete => Command::DeleteObject,
    };
    let signed = AttoRequest::new(bucket, key, command)?;
    let mut request = http::Request::builder().uri(signed.url()?.as_str());
    if let Some(headers) = request.headers_mut() {
        *headers = signed.headers()?;
    }
    let answer = match *verb {
        Verb::Get => run(agent, request.method("GET").body(())?, limit),
        Verb::Put(body) => run(agent, request.method("PUT").body(body)?, limit),
        Verb::Delete => run(agent, request.method("DELETE").body(())?, limit),
    };
    Ok(answer?)
}

fn run(
    agent: &Agent,
    request: http::Request<impl AsSendBody>,
    limit: Duration,
) -> Result<Answer, ureq::Error> {
    let request = agent
        .configure_request(request)
        .timeout_global(Some(limit))
        .build();
    let mut response = agent.run(request)?;
    let body = response.body_mut().with_config().limit(u64::MAX);
    Ok(Answer {
        body: body.read_to_vec()?,
        status: response.status().as_u16(),
    })
}

/// One connection, kept. Certificates are judged by the system's roots; every status is an
/// answer, a redirection too, as its body says why.
pub(super) fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("conserver/", env!("CARGO_PKG_VERSION")))
        .build();
    with_parts(config)
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("could not sign the request: {0}")]
    Sign(#[from] S3Error),
    #[error("could not make the request: {0}")]
    Make(#[from] http::Error),
    #[error(transparent)]
    Send(#[from] ureq::Error),
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// There is no such object; a missing bucket is something else.
    pub(super) fn is_missing(&self) -> bool {
        self.status == 404 && self.code() == "NoSuchKey"
    }

    pub(super) fn code(&self) -> String {
        self.element("Code")
    }

    /// The text of an element of the XML that explains an error, shortened; empty without it.
    pub(super) fn element(&self, name: &str) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let inner = text
            .split_once(&format!("<{name}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
            .map_or("", |(inner, _)| inner);
        let shown: String = inner.trim().chars().take(300).collect();
        shown
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&")
    }
}
