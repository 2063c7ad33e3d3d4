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
use s3::signing::{self, HmacSha256};
use s3::{Bucket, Region};
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
/// The S3 library's own transport has no TLS here, keeps no connection, and drops the body that says why a
/// write was refused.
pub(super) fn send(
    agent: &Agent,
    signer: &mut Signer,
    key: &str,
    verb: &Verb<'_>,
    limit: Duration,
) -> Result<S3Answer, RequestError> {
    let SignedRequest { url, headers } = signer.sign(key, verb)?;
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

/// Makes signed requests for the objects of one bucket.
///
/// The S3 library makes the headers and all parts of a signature. What is the same in all requests, or in
/// all of a day, is made once: the URL of the bucket and the key that signs. The library would make them
/// for each request, and hash the body twice.
#[derive(Clone)]
pub(super) struct Signer {
    /// Has no secret key: for such a bucket the library makes headers without a signature.
    bucket: Box<Bucket>,
    url: String,
    region: Region,
    key_id: String,
    secret_key: String,
    of_day: Option<(i64, HmacSha256)>,
}

impl Signer {
    pub(super) fn new(mut bucket: Box<Bucket>) -> Result<Self, S3Error> {
        let mut credentials = bucket.credentials()?;
        let (key_id, secret_key) = (
            credentials.access_key.clone(),
            credentials.secret_key.take(),
        );
        bucket.set_credentials(credentials);
        Ok(Self {
            url: bucket.url(),
            region: bucket.region(),
            bucket,
            key_id: key_id.unwrap_or_default(),
            secret_key: secret_key.unwrap_or_default(),
            of_day: None,
        })
    }

    /// The URL of the bucket.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Signs a request for the object with exactly this key.
    ///
    /// To S3 a key is any text: slashes at its beginning, empty folders and folders called `.` and
    /// `..` are parts of its name. The library's URLs would resolve `.` and `..`.
    pub(super) fn sign(&mut self, key: &str, verb: &Verb<'_>) -> Result<SignedRequest, S3Error> {
        self.sign_as_at(key, verb, None)
    }

    /// Signs it as at another time than now, in seconds since 1970.
    fn sign_as_at(
        &mut self,
        key: &str,
        verb: &Verb<'_>,
        at: Option<i64>,
    ) -> Result<SignedRequest, S3Error> {
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
        let mut request = AttoRequest::new(&self.bucket, key, command)?;
        if let Some(at) = at {
            let ago = request.datetime.unix_timestamp().abs_diff(at);
            request.datetime -= Duration::from_secs(ago);
        }
        let mut headers = request.headers()?;
        // `x-amz-date` takes its place.
        headers.remove(DATE);
        let url = format!("{}/{}", self.url, signing::uri_encode(key, false));
        let (names, canonical) = canonical(verb.method(), path_of(&url), &headers)?;
        let time = request.datetime;
        let day = time.unix_timestamp().div_euclid(24 * 60 * 60);
        let mut hmac = match &self.of_day {
            Some((it, hmac)) if *it == day => hmac.clone(),
            _ => {
                let key = signing::signing_key(&time, &self.secret_key, &self.region, "s3")?;
                let hmac = HmacSha256::new_from_slice(&key)?;
                self.of_day = Some((day, hmac.clone()));
                hmac
            }
        };
        hmac.update(signing::string_to_sign(&time, &self.region, &canonical)?.as_bytes());
        let mut signature = String::with_capacity(64);
        for byte in hmac.finalize().into_bytes() {
            for digit in [byte >> 4, byte & 15] {
                signature.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        let authorization =
            signing::authorization_header(&self.key_id, &time, &self.region, &names, &signature)?;
        headers.insert(AUTHORIZATION, authorization.parse()?);
        Ok(SignedRequest { url, headers })
    }
}

/// Signs a request for an object as at this time, in seconds since 1970.
#[cfg(test)]
pub(super) fn sign_at(bucket: &Bucket, key: &str, time: i64) -> Result<SignedRequest, S3Error> {
    let mut signer = Signer::new(Box::new(bucket.clone()))?;
    signer.sign_as_at(key, &Verb::Get(EXPLANATION), Some(time))
}

/// Returns the names of the headers, all of which are signed, and the text of a request without a query that
/// its signature is made of.
fn canonical(method: &str, path: &str, headers: &HeaderMap) -> Result<(String, String), S3Error> {
    let mut sorted = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        // Names are in lower case.
        sorted.push((name.as_str(), value.to_str()?.trim()));
    }
    sorted.sort_unstable();
    let (mut names, mut text) = (String::new(), [method, "\n", path, "\n\n"].concat());
    for (name, value) in sorted {
        let between = if names.is_empty() { "" } else { ";" };
        names.extend([between, name]);
        text.extend([name, ":", value, "\n"]);
    }
    let digest = headers.get("x-amz-content-sha256");
    let digest = digest.map_or(Ok(""), HeaderValue::to_str)?;
    text.extend(["\n", &names, "\n", digest]);
    Ok((names, text))
}

/// Returns the part of a URL after its host.
fn path_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[path..]
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
