//! One signed request to S3, and what its answer means for the vCon and for a person who can help.
//!
//! | answer | class |
//! |---|---|
//! | 413, EntityTooLarge, MaxMessageLengthExceeded: the document is too large for it | refused |
//! | InvalidObjectState: this object was moved to an archive | refused |
//! | AccessDenied at reading: the object may just not be there | permanent |
//! | all others: refused or expired keys (403), a missing bucket or right, another region (301, 400), a proxy or no S3 at all (404, 405, 501), too many requests (429, SlowDown), 5xx, … | transient |
//!
//! No answer at all is always the fault of the place: the network, the server, its certificate.

use crate::http_client::{Cut, EXPLANATION, read};
use s3::command::Command;
use s3::error::S3Error;
use s3::request::Request as _;
use s3::request::blocking::AttoRequest;
use s3::{Bucket, signing};
use sha2::digest::Mac as _;
use std::time::Duration;
use ureq::http::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use ureq::{Agent, AsSendBody, http};

/// The content type that the existing daemon's library gives to objects of unknown type.
const CONTENT_TYPE: &str = "binary/octet-stream";

/// The server's answer.
pub(super) struct S3Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the body is cut off, because it is longer than it may be.
    pub(super) is_cut: bool,
}

pub(super) enum Verb<'a> {
    /// Reads an object of at most this many bytes.
    Get(u64),
    /// Asks whether the object exists. The answer has no body, not even that of an error.
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

/// Signs one request, sends it and reads the answer, up to its limit.
///
/// The S3 library makes the signature. Its own transport has no TLS here, keeps no connection, and drops
/// the body that says why a write was refused.
pub(super) fn send(
    agent: &Agent,
    bucket: &Bucket,
    key: &str,
    verb: &Verb<'_>,
    limit: Duration,
) -> Result<S3Answer, RequestError> {
    let SignedRequest { url, headers } = sign(bucket, key, verb)?;
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
pub(super) struct SignedRequest {
    pub(super) url: String,
    pub(super) headers: HeaderMap,
}

/// Signs a request for the object with exactly this key.
///
/// To S3 a key is any text: slashes at its beginning, empty folders and folders called `.` and
/// `..` are parts of its name. The library drops one slash at the beginning, so it gets one more.
/// Its URLs resolve `.` and `..`, so this module signs such a key itself.
pub(super) fn sign(bucket: &Bucket, key: &str, verb: &Verb<'_>) -> Result<SignedRequest, S3Error> {
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

fn finish(request: &AttoRequest<'_>, verb: &Verb<'_>) -> Result<SignedRequest, S3Error> {
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
    Ok(SignedRequest { url, headers })
}

/// Signs a request for an object as at this time, in seconds since 1970.
#[cfg(test)]
pub(super) fn sign_at(bucket: &Bucket, key: &str, time: i64) -> Result<SignedRequest, S3Error> {
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
) -> Result<S3Answer, ureq::Error> {
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
    Ok(S3Answer {
        status: response.status().as_u16(),
        body,
        is_cut,
    })
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("could not sign the request: {0}")]
    Sign(#[from] S3Error),
    #[error("could not make the request: {0}")]
    Make(#[from] http::Error),
    #[error(transparent)]
    Send(#[from] ureq::Error),
}

impl S3Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether there is no such object; a missing bucket is something else.
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

/// Whether the vCon at hand is to blame for an answer.
pub(super) fn is_the_vcons(status: u16, code: &str) -> bool {
    status == 413
        || matches!(
            code,
            "EntityTooLarge" | "MaxMessageLengthExceeded" | "InvalidObjectState"
        )
}

/// What a person can do about an answer.
pub(super) fn advice(status: u16, code: &str) -> Option<&'static str> {
    Some(match (status, code) {
        (_, "NoSuchBucket") => "create the bucket, or mend `aws_bucket`",
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
            "see to `aws_access_key_id` and `aws_secret_access_key`"
        }
        (_, "ExpiredToken" | "InvalidToken") => "see to the keys and `aws_session_token`",
        (_, "AccessDenied" | "AllAccessDisabled" | "AccountProblem") => {
            "allow these keys to get, put and delete objects in the bucket"
        }
        (_, "RequestTimeTooSkewed") => "set this machine's clock",
        (301 | 307, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
            "see to `aws_region` and `endpoint_url`"
        }
        (404 | 405 | 501, "") => "this is no S3: see to `endpoint_url`",
        _ => return None,
    })
}

/// What a fuzzer runs on answers.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod fuzz {
    use super::super::is_day;
    use super::{S3Answer, advice, is_the_vcons};

    /// The first two bytes are the status, the rest is the body.
    pub fn answer(data: &[u8]) {
        let Some((status, body)) = data.split_first_chunk::<2>() else {
            return;
        };
        let answer = S3Answer {
            status: 100 + u16::from_be_bytes(*status) % 500,
            body: body.to_vec(),
            is_cut: status[0] > 127,
        };
        for name in ["Code", "Message"] {
            let text = answer.element(name);
            assert!(text.chars().count() <= 300, "{text:?}");
        }
        let code = answer.code();
        if is_the_vcons(answer.status, &code) {
            assert!(!answer.is_success() || !code.is_empty());
        }
        let _ = advice(answer.status, &code);
        assert!(!answer.is_missing() || answer.status == 404);
        if let Ok(text) = std::str::from_utf8(body) {
            let day = text.trim();
            if is_day(day) {
                // It becomes part of a key.
                assert!(!day.contains("..") && day.split('/').count() == 3);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_as_the_table_says() {
        for (status, code) in [
            (400, "EntityTooLarge"),
            (413, ""),
            (400, "MaxMessageLengthExceeded"),
            (403, "InvalidObjectState"),
        ] {
            assert!(is_the_vcons(status, code), "{status} {code}");
        }
        for (status, code) in [
            (301, "PermanentRedirect"),
            (400, ""),
            (400, "AuthorizationHeaderMalformed"),
            (400, "BadDigest"),
            (400, "ExpiredToken"),
            (400, "RequestTimeout"),
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "RequestTimeTooSkewed"),
            (403, "SignatureDoesNotMatch"),
            (404, ""),
            (404, "NoSuchBucket"),
            (405, ""),
            (408, ""),
            (409, "OperationAborted"),
            (429, ""),
            (500, "InternalError"),
            (501, "NotImplemented"),
            (503, "SlowDown"),
            (507, ""),
        ] {
            assert!(!is_the_vcons(status, code), "{status} {code}");
        }
    }

    #[test]
    fn what_a_person_can_do_fits_the_answer() {
        let bucket = "create the bucket, or mend `aws_bucket`";
        let keys = "see to `aws_access_key_id` and `aws_secret_access_key`";
        let token = "see to the keys and `aws_session_token`";
        let rights = "allow these keys to get, put and delete objects in the bucket";
        let region = "see to `aws_region` and `endpoint_url`";
        let stranger = "this is no S3: see to `endpoint_url`";
        for (status, code, expected) in [
            (404, "NoSuchBucket", Some(bucket)),
            (403, "InvalidAccessKeyId", Some(keys)),
            (403, "SignatureDoesNotMatch", Some(keys)),
            (400, "ExpiredToken", Some(token)),
            (400, "InvalidToken", Some(token)),
            (403, "AccessDenied", Some(rights)),
            (403, "AllAccessDisabled", Some(rights)),
            (403, "AccountProblem", Some(rights)),
            (
                403,
                "RequestTimeTooSkewed",
                Some("set this machine's clock"),
            ),
            (301, "", Some(region)),
            (307, "TemporaryRedirect", Some(region)),
            (400, "PermanentRedirect", Some(region)),
            (400, "AuthorizationHeaderMalformed", Some(region)),
            (404, "", Some(stranger)),
            (405, "", Some(stranger)),
            (501, "", Some(stranger)),
            (405, "MethodNotAllowed", None),
            (403, "", None),
            (503, "SlowDown", None),
        ] {
            assert_eq!(advice(status, code), expected, "{status} {code}");
        }
    }
}
