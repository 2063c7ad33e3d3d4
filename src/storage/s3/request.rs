//! One signed request to S3 and its answer.

use std::time::Duration;

use s3::command::Command;
use s3::error::S3Error;
use s3::request::Request as _;
use s3::request::blocking::AttoRequest;
use s3::{Bucket, signing};
use sha2::digest::Mac as _;
use ureq::http::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, http};

use crate::http::{Cut, EXPLANATION, read, with_parts};

/// What the existing daemon's library gives to an object of which it knows no better.
const CONTENT_TYPE: &str = "binary/octet-stream";

/// What the server said.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// It is only the beginning of the body, which is longer than it may be.
    pub(super) is_cut: bool,
}

pub(super) enum Verb<'a> {
    /// The object may have so many bytes.
    Get(u64),
    /// Asks whether it is there. The answer has no body, not even that of an error.
    Head,
    Put(&'a [u8]),
    Delete,
}

impl Verb<'_> {
    fn method(&self) -> &'static str {
        match self {
            Self::Get(_) => "GET",
            Self::Head => "HEAD",
            Self::Put(_) => "PUT",
            Self::Delete => "DELETE",
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Get(_) => "read",
            Self::Head => "look for",
            Self::Put(_) => "write",
            Self::Delete => "delete",
        }
    }
}

/// Signs one request, sends it and reads the answer, as far as it may go.
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
    let Signed { url, headers } = sign(bucket, key, verb)?;
    let mut request = http::Request::builder().method(verb.method()).uri(url);
    if let Some(place) = request.headers_mut() {
        *place = headers;
    }
    let answer = match *verb {
        Verb::Put(body) => run(agent, request.body(body)?, EXPLANATION, limit),
        Verb::Get(most) => run(agent, request.body(())?, most, limit),
        Verb::Head | Verb::Delete => run(agent, request.body(())?, EXPLANATION, limit),
    };
    Ok(answer?)
}

/// A request without its body.
pub(super) struct Signed {
    pub(super) url: String,
    pub(super) headers: HeaderMap,
}

/// Signs a request for the object with exactly this key.
///
/// To S3 a key is any text: slashes at its beginning, empty folders and folders called `.` and
/// `..` are parts of its name. The library drops one slash at the beginning, so it gets one more.
/// Its URLs resolve `.` and `..`, so this module signs such a key itself.
pub(super) fn sign(bucket: &Bucket, key: &str, verb: &Verb<'_>) -> Result<Signed, S3Error> {
    let command = match *verb {
        Verb::Get(_) => Command::GetObject,
        Verb::Head => Command::HeadObject,
        Verb::Put(content) => Command::PutObject {
            content,
            content_type: CONTENT_TYPE,
            custom_headers: None,
            multipart: None,
        },
        Verb::Delete => Command::DeleteObject,
    };
    let path = format!("/{key}");
    let request = AttoRequest::new(bucket, &path, command)?;
    finish(&request, verb)
}

fn finish(request: &AttoRequest<'_>, verb: &Verb<'_>) -> Result<Signed, S3Error> {
    let mut headers = request.headers()?;
    let encoded = signing::uri_encode(request.path, false);
    let url = format!("{}{encoded}", request.bucket.url());
    let path = path_of(&url);
    if path != request.url()?.path() {
        headers.remove(AUTHORIZATION);
        // Never signed, as `x-amz-date` takes its place.
        headers.remove(DATE);
        let authorization = authorize(request, verb.method(), path, &headers)?;
        headers.insert(AUTHORIZATION, authorization);
    }
    Ok(Signed { url, headers })
}

/// Signs a request for an object as at this time, in seconds since 1970.
#[cfg(test)]
pub(super) fn sign_at(bucket: &Bucket, key: &str, time: i64) -> Result<Signed, S3Error> {
    let path = format!("/{key}");
    let mut request = AttoRequest::new(bucket, &path, Command::GetObject)?;
    let later = request.datetime.unix_timestamp() - time;
    request.datetime -= Duration::from_secs(later.unsigned_abs());
    finish(&request, &Verb::Get(EXPLANATION))
}

/// Returns the part of a URL after its host.
fn path_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[path..]
}

/// Returns the header that signs a request without a query: all its headers, and its path as it is.
fn authorize(
    request: &AttoRequest<'_>,
    method: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<HeaderValue, S3Error> {
    let (bucket, time) = (request.bucket(), request.datetime());
    let region = bucket.region();
    let digest = headers.get("x-amz-content-sha256");
    let digest = digest.map_or(Ok(""), HeaderValue::to_str)?;
    let names = signing::signed_header_string(headers);
    let lines = signing::canonical_header_string(headers)?;
    let canonical = format!("{method}\n{path}\n\n{lines}\n\n{names}\n{digest}");
    let secret = bucket.secret_key()?.unwrap_or_default();
    let key = signing::signing_key(&time, &secret, &region, "s3")?;
    let mut hmac = signing::HmacSha256::new_from_slice(&key)?;
    hmac.update(signing::string_to_sign(&time, &region, &canonical)?.as_bytes());
    let signature: String = hmac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let id = bucket.access_key()?.unwrap_or_default();
    let header = signing::authorization_header(&id, &time, &region, &names, &signature)?;
    Ok(header.parse()?)
}

fn run(
    agent: &Agent,
    request: http::Request<impl AsSendBody>,
    most: u64,
    limit: Duration,
) -> Result<Answer, ureq::Error> {
    let request = agent
        .configure_request(request)
        .timeout_global(Some(limit))
        .build();
    let mut response = agent.run(request)?;
    let is_success = response.status().is_success();
    let most = if is_success { most } else { EXPLANATION };
    let (body, cut) = read(&mut response, most);
    let is_cut = match cut {
        Some(Cut::Broken(error)) => return Err(error.into()),
        cut => cut.is_some(),
    };
    Ok(Answer {
        status: response.status().as_u16(),
        body,
        is_cut,
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
