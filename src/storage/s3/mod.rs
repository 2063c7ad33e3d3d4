//! `storage.s3`: two objects for each vCon in a bucket of Amazon S3 or a server that speaks its
//! protocol.
//!
//! Layout: the document `[s3_path/]YYYY/MM/DD/<uuid>.vcon` by the vCon's `created_at`, then the
//! pointer `[s3_path/]lookup/<uuid>.txt`, whose body is `YYYY/MM/DD`. A save reads the pointer
//! first: if it names another day, the document there is removed once the new one has its pointer.
//! Two saves of one vCon under different days may each remove the document of the other. So a save
//! that has removed one looks whether its own is still there, and fails if it is not: it is tried again.
//!
//! | option | default | |
//! |---|---|---|
//! | `aws_bucket` | required | |
//! | `aws_access_key_id`, `aws_secret_access_key` | from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` or `~/.aws/credentials` | both or neither |
//! | `aws_session_token` | none | with keys given here |
//! | `aws_region` | `us-east-1` | |
//! | `endpoint_url` | Amazon's of the region | `http(s)://host[:port]`; the bucket then stands in the path |
//! | `s3_path` | none | before every key; slashes at its end do not count, those at its beginning do |
//! | `timeout` | `30` | seconds for one vCon, from the name's resolution to the last byte |
//!
//! The module `request` has the table of the answers and what each means for the vCon: what is wrong with
//! the server, the keys or the bucket is waited out. Keys from the environment or
//! `~/.aws/credentials` are read when the configuration is.

mod request;

use std::time::Duration;

use s3::creds::Credentials;
use s3::{Bucket, Region};
use ureq::Agent;

#[cfg(any(test, fuzzing))]
pub(super) use self::request::fuzz;
use self::request::{RequestError, S3Answer, Signer, Verb, advice, is_the_vcons, send};
use super::Storage;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::http_client::{self, EXPLANATION};
use crate::options::Options;
use crate::secret::Secret;
use crate::vcon::{LARGEST_DOCUMENT, Outgoing, VconId};

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(5);

/// Reads a pointer, which has ten bytes.
const POINTER: Verb<'_> = Verb::Get(EXPLANATION);

/// Reads a document.
const DOCUMENT: Verb<'_> = Verb::Get(LARGEST_DOCUMENT);

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let name = options.required_string("aws_bucket");
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !name.chars().all(allowed) {
        options.fault("aws_bucket", "is not the name of a bucket");
    }
    let endpoint = options.filled_string("endpoint_url");
    // Amazon's certificate does not cover a bucket with a dot in its name.
    let in_path = endpoint.is_some() || name.contains('.');
    let region = region(options, endpoint);
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    let prefix = prefix(&options.string_or("s3_path", ""));
    let bucket = credentials(options).and_then(|credentials| {
        let mut bucket = Bucket::new(&name, region, credentials).ok()?;
        if in_path {
            bucket.set_path_style();
        }
        Signer::new(bucket).ok()
    });
    Box::new(S3 {
        bucket,
        prefix,
        timeout,
        agent: http_client::agent(),
        write_refused: false,
        superseded: None,
    })
}

/// What stands before every key. Slashes at the end of `s3_path` do not count; all else is part of
/// the key, slashes at its beginning too.
fn prefix(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    format!("{}/", path.trim_end_matches('/'))
}

fn region(options: &mut Options, endpoint: Option<String>) -> Region {
    let region = options.filled_string("aws_region");
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !region.chars().all(allowed) {
        options.fault("aws_region", "is not the name of a region");
    }
    let endpoint = match endpoint {
        Some(url) => {
            // The value is not repeated: it may hold a password.
            let host = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"));
            if host.is_none_or(|h| h.is_empty() || h.contains(['@', '?', '#'])) {
                options.fault("endpoint_url", "must be http(s)://host[:port]");
            }
            url.trim_end_matches('/').to_owned()
        }
        None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    Region::Custom { region, endpoint }
}

fn credentials(options: &mut Options) -> Option<Credentials> {
    let key = options.filled_secret("aws_access_key_id");
    let secret = options.filled_secret("aws_secret_access_key");
    let token = options.filled_secret("aws_session_token");
    match (&key, &secret) {
        (Some(_), None) => options.fault(
            "aws_secret_access_key",
            "is required with aws_access_key_id",
        ),
        (None, Some(_)) => options.fault(
            "aws_access_key_id",
            "is required with aws_secret_access_key",
        ),
        _ => {
            let [key, secret, token] =
                [&key, &secret, &token].map(|s| s.as_ref().map(Secret::reveal));
            let found = Credentials::new(key, secret, None, token, None);
            match found {
                Ok(credentials) => return Some(credentials),
                Err(_) => options.fault(
                    "aws_access_key_id",
                    "is required: neither AWS_ACCESS_KEY_ID nor ~/.aws/credentials gives one",
                ),
            }
        }
    }
    None
}

#[derive(Clone)]
struct S3 {
    /// `None` after a fault in the options.
    bucket: Option<Signer>,
    /// What stands before every key: nothing, or a text with a slash at its end.
    prefix: String,
    timeout: Duration,
    agent: Agent,
    /// The latest write was forbidden.
    write_refused: bool,
    /// A vCon and the day of its former document, if that could not be removed yet. The pointer does not
    /// name that day any more.
    superseded: Option<(VconId, String)>,
}

impl Storage for S3 {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let limit = deadline.begin(self.timeout);
        let (id, day) = (&vcon.id, vcon.created_or_now().day_path());
        let pointed = self.former_day(id, limit)?;
        self.put(&self.document_key(&day, id), &vcon.json, limit)?;
        if pointed.as_ref() != Some(&day) {
            if let Some(former) = pointed {
                // Only this lane knows the former day once the server has the new pointer.
                self.superseded = Some((id.clone(), former));
            }
            self.put(&self.pointer_key(id), &day, limit)?;
        }
        match self.superseded.take_if(|(it, _)| it == id) {
            Some((_, former)) if former != day => self.replace_former(id, &day, former, limit),
            _ => Ok(()),
        }
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let limit = deadline.begin(self.timeout);
        match self.day(id, limit)? {
            Some(day) => self.text(&self.document_key(&day, id), &DOCUMENT, limit),
            None => Ok(None),
        }
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(self.timeout);
        if let Some(day) = self.day(id, limit)? {
            self.remove(&self.document_key(&day, id), limit)?;
        }
        self.remove(&self.pointer_key(id), limit)
    }

    fn prober(&self) -> Option<Box<dyn Storage>> {
        Some(Box::new(self.clone()))
    }

    fn longest_call(&self) -> Duration {
        self.timeout
    }

    /// Asks for a pointer that does not exist. The answer "no such key" needs the server, the bucket and
    /// the keys; to keys that may not list, Amazon answers "access denied" instead. After a write was
    /// forbidden, only another write shows whether it is allowed again: the probe writes an empty object
    /// and removes it.
    fn probe(&mut self) -> Result<(), Failure> {
        let key = format!("{}lookup/probe.txt", self.prefix);
        let limit = Deadline::NONE.begin(self.timeout.min(PROBE));
        if self.write_refused {
            self.put(&key, "", limit)?;
            // If the empty object cannot be removed, the next probe overwrites it.
            let _ = self.request(&key, &Verb::Delete, limit);
            return Ok(());
        }
        let answer = self.request(&key, &POINTER, limit)?;
        if answer.is_success() || answer.is_missing() || answer.code() == "AccessDenied" {
            return Ok(());
        }
        Err(self.failure(&POINTER, &key, &answer))
    }
}

impl S3 {
    fn document_key(&self, day: &str, id: &VconId) -> String {
        format!("{}{day}/{id}.vcon", self.prefix)
    }

    fn pointer_key(&self, id: &VconId) -> String {
        format!("{}lookup/{id}.txt", self.prefix)
    }

    /// Returns the day that the pointer names before a save; `None` if there is no pointer, it holds
    /// no day, or the server refuses to return it. If the cause is the bucket or the keys, the write
    /// that follows fails for it too.
    fn former_day(&mut self, id: &VconId, limit: Limit) -> Result<Option<String>, Failure> {
        let key = self.pointer_key(id);
        let answer = self.request(&key, &POINTER, limit)?;
        if answer.status >= 500 || matches!(answer.status, 408 | 429) {
            return Err(self.failure(&POINTER, &key, &answer));
        }
        let text = if answer.is_success() {
            String::from_utf8(answer.body).ok()
        } else {
            None
        };
        let day = text.as_deref().map(str::trim).filter(|day| is_day(day));
        Ok(day.map(ToOwned::to_owned))
    }

    /// Removes the document of a former day, after the document of `day` and its pointer are written.
    fn replace_former(
        &mut self,
        id: &VconId,
        day: &str,
        former: String,
        limit: Limit,
    ) -> Result<(), Failure> {
        let key = self.document_key(&former, id);
        let removed = match self.request(&key, &Verb::Delete, limit) {
            Ok(answer) if answer.is_success() || answer.is_missing() => Ok(()),
            Ok(answer) => {
                let failure = self.failure(&Verb::Delete, &key, &answer);
                if matches!(answer.status, 400..500) && !matches!(answer.status, 408 | 429) {
                    // The vCon is stored. With keys that may write but not delete, a second copy
                    // stays.
                    log::warn!("vCon {id}: its copy of a former day stays: {failure}");
                    return Ok(());
                }
                Err(failure)
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = removed {
            self.superseded = Some((id.clone(), former));
            return Err(failure);
        }
        let lost = if self.former_day(id, limit)?.as_ref() == Some(&former) {
            self.pointer_key(id)
        } else {
            let key = self.document_key(day, id);
            if self.is_there(&key, limit)? {
                return Ok(());
            }
            key
        };
        let what = self.message(&Verb::Put(b""), &lost);
        Err(Failure::transient(format!(
            "{what}: the vCon was saved under another day at the same time"
        )))
    }

    /// Whether an object is there, as far as it may be read.
    fn is_there(&mut self, key: &str, limit: Limit) -> Result<bool, Failure> {
        let answer = self.request(key, &Verb::Head, limit)?;
        match answer.status {
            200..300 => Ok(true),
            // Amazon answers 403 for a missing object if the keys may not list.
            403 | 404 => Ok(false),
            _ => Err(self.failure(&Verb::Head, key, &answer)),
        }
    }

    /// The day of a vCon's document, by its pointer.
    fn day(&mut self, id: &VconId, limit: Limit) -> Result<Option<String>, Failure> {
        let key = self.pointer_key(id);
        let Some(text) = self.text(&key, &POINTER, limit)? else {
            return Ok(None);
        };
        let day = text.trim();
        if is_day(day) {
            return Ok(Some(day.to_owned()));
        }
        let what = self.message(&POINTER, &key);
        Err(Failure::permanent(format!("{what}: it holds no day")))
    }

    /// Reads an object by this verb.
    fn text(
        &mut self,
        key: &str,
        verb: &Verb<'_>,
        limit: Limit,
    ) -> Result<Option<String>, Failure> {
        let answer = self.request(key, verb, limit)?;
        if answer.is_missing() {
            return Ok(None);
        }
        if !answer.is_success() && answer.code() == "AccessDenied" {
            // Amazon's answer for a missing object if the keys may not list. It must not hold up a vCon
            // that is in another storage, or nowhere.
            let failure = self.failure(verb, key, &answer);
            return Err(Failure::permanent(failure.message));
        }
        if !answer.is_success() {
            return Err(self.failure(verb, key, &answer));
        }
        let what = self.message(verb, key);
        if answer.is_cut {
            let most = answer.body.len();
            let message = format!("{what}: it is larger than {most} bytes");
            return Err(Failure::permanent(message));
        }
        String::from_utf8(answer.body)
            .map(Some)
            .map_err(|_| Failure::permanent(format!("{what}: it is not UTF-8")))
    }

    fn put(&mut self, key: &str, body: &str, limit: Limit) -> Result<(), Failure> {
        let verb = Verb::Put(body.as_bytes());
        let answer = self.request(key, &verb, limit)?;
        self.write_refused = answer.status == 403;
        if answer.is_success() {
            return Ok(());
        }
        Err(self.failure(&verb, key, &answer))
    }

    fn remove(&mut self, key: &str, limit: Limit) -> Result<(), Failure> {
        let answer = self.request(key, &Verb::Delete, limit)?;
        if answer.is_success() || answer.is_missing() {
            return Ok(());
        }
        Err(self.failure(&Verb::Delete, key, &answer))
    }

    fn request(&mut self, key: &str, verb: &Verb<'_>, limit: Limit) -> Result<S3Answer, Failure> {
        let Some(signer) = &mut self.bucket else {
            let message = self.message(verb, key);
            return Err(Failure::transient(format!("{message}: no credentials")));
        };
        send(&self.agent, signer, key, verb, limit.left()).map_err(|error| {
            let message = self.message(verb, key);
            Failure::transient(match error {
                RequestError::Send(ureq::Error::Timeout(_)) => {
                    format!("{message}: no answer within {limit}")
                }
                RequestError::Send(ureq::Error::Io(error)) => format!("{message}: {error}"),
                _ => format!("{message}: {error}"),
            })
        })
    }

    fn failure(&self, verb: &Verb<'_>, key: &str, answer: &S3Answer) -> Failure {
        let (status, code) = (answer.status, answer.code());
        let mut text = format!("{}: HTTP {status}", self.message(verb, key));
        for part in [code.clone(), answer.element("Message")] {
            if !part.is_empty() {
                text = format!("{text}: {part}");
            }
        }
        if let Some(advice) = advice(status, &code) {
            text = format!("{text}; {advice}");
        }
        if is_the_vcons(status, &code) {
            Failure::refused(text)
        } else if matches!(status, 408 | 429 | 503) || code == "SlowDown" {
            Failure::busy(text)
        } else {
            Failure::transient(text)
        }
    }

    fn message(&self, verb: &Verb<'_>, key: &str) -> String {
        let what = verb.name();
        let place = self.bucket.as_ref().map_or("", Signer::url);
        format!("S3: could not {what} {place}/{key}")
    }
}

/// `YYYY/MM/DD` in digits, so that nothing else becomes part of a key.
fn is_day(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'/',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests;
