//! The other server: the part of its API that a follower uses, and what its responses mean.
//!
//! Nothing it sends is trusted: what is not a UUID is refused, responses are limited in size and time, and none
//! of their text is shown. [`judge`] has the table of statuses.

use std::io;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderName, HeaderValue, Response};
use ureq::{Agent, Body, Error};

use crate::config::Follower;
use crate::http_client::{self, Cut, Url};
use crate::vcon::{CreatedAt, VconId};
use crate::visible::printable;

/// How long the other server may take to hand out UUIDs. They are lost if it takes longer, so the limit is long.
const POP_TIME: Duration = Duration::from_secs(60);

/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The most bytes of a list of UUIDs that are read: twice the size of the longest one.
const MOST_OF_A_LIST: u64 = 1 << 20;

/// Every byte that RFC 3986 does not call unreserved.
pub(super) const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Characters of an entry that is not a UUID that the log shows.
const SHOWN: usize = 80;

/// Entries that are not UUIDs that the log shows. A list of the most bytes could have hundreds of thousands.
const MOST_SHOWN: usize = 20;

/// What a failed pop may have cost. The other server takes UUIDs off its list before it responds, and nobody
/// here knows whether it has done so.
const LOST: &str = "; if it has taken UUIDs off its list for this answer, they are lost";

/// The other server.
pub(super) struct RemoteServer {
    agent: Agent,
    url: Url,
    /// The header that authenticates the follower.
    token: Option<(HeaderName, HeaderValue)>,
    egress_list: String,
    timeout: Duration,
    most_bytes: u64,
}

/// What the other server has handed out, and no longer has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Popped {
    pub ids: Vec<VconId>,
    /// The first entries that are not UUIDs, escaped.
    pub refused: Vec<String>,
    /// How many more of these there were.
    pub unshown: usize,
    /// Why the response is incomplete, if it is.
    pub cut: Option<String>,
}

/// The result of fetching a document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The document, an object in JSON, with when it was made.
    Document(String, Option<CreatedAt>),
    /// The server will never give it.
    Refused(String),
    /// This one failed now; others perhaps do not.
    Failed(String),
    /// The server gives no document at present.
    Unavailable(String),
}

impl RemoteServer {
    pub(super) fn new(follower: &Follower, header: &HeaderName) -> Self {
        let token = follower.token.as_ref().and_then(|token| {
            // It was checked when the configuration was read.
            let mut token = HeaderValue::from_str(token.reveal()).ok()?;
            token.set_sensitive(true);
            Some((header.clone(), token))
        });
        Self {
            agent: http_client::agent(),
            url: follower.url.clone(),
            token,
            egress_list: follower.egress_list.as_str().to_owned(),
            timeout: follower.timeout,
            most_bytes: follower.most_bytes,
        }
    }

    /// Takes up to `limit` UUIDs off the other server's list.
    ///
    /// # Errors
    /// A sentence that says why the pop failed.
    pub(super) fn pop(&self, limit: u32) -> Result<Popped, String> {
        let list = utf8_percent_encode(&self.egress_list, &RESERVED);
        let path = format!("/vcon/egress?egress_list={list}&limit={limit}");
        let at = format!("{}/vcon/egress", self.shown_url());
        let mut response = match self.get(&path, POP_TIME) {
            Ok(response) => response,
            Err(error) => {
                let why = reason(&error, POP_TIME);
                let lost = if came_from_it(&error) { LOST } else { "" };
                return Err(format!("could not GET {at}: {why}{lost}"));
            }
        };
        let status = response.status().as_u16();
        if !(200..300).contains(&status) {
            return Err(not_popped(status, &at));
        }
        let (bytes, why) = http_client::read(&mut response, MOST_OF_A_LIST);
        let why = why.map(|why| match why {
            Cut::TooLong => format!("it is longer than {MOST_OF_A_LIST} bytes"),
            Cut::Broken(error) => error.to_string(),
        });
        handed_out(&bytes, why, self.secret(), &at)
    }

    /// Fetches the document of a vCon.
    pub(super) fn document(&self, id: &VconId) -> Fetched {
        let at = self.document_url(id);
        let mut response = match self.get(&format!("/vcon/{id}"), self.timeout) {
            Ok(response) => response,
            Err(error) => {
                let why = format!("could not GET {at}: {}", reason(&error, self.timeout));
                return if came_from_it(&error) {
                    Fetched::Failed(why)
                } else {
                    Fetched::Unavailable(why)
                };
            }
        };
        let status = response.status().as_u16();
        if let Some(told) = judge(status, &at) {
            return told;
        }
        match http_client::read(&mut response, self.most_bytes) {
            (bytes, None) => document(bytes, &at),
            (_, Some(Cut::TooLong)) => {
                let most = self.most_bytes >> 20;
                Fetched::Refused(format!(
                    "the document at {at} is larger than {most} MiB (option `max_megabytes`)"
                ))
            }
            (_, Some(Cut::Broken(error))) => {
                Fetched::Failed(format!("the answer of {at} broke off: {error}"))
            }
        }
    }

    /// What no message may show: the other server may send it back.
    fn secret(&self) -> Option<&str> {
        let (_, token) = self.token.as_ref()?;
        token.to_str().ok()
    }

    /// Where the other server has the document, for messages.
    pub(super) fn document_url(&self, id: &VconId) -> String {
        format!("{}/vcon/{id}", self.shown_url())
    }

    fn shown_url(&self) -> String {
        self.url.to_string().trim_end_matches('/').to_owned()
    }

    fn get(&self, path: &str, limit: Duration) -> Result<Response<Body>, Error> {
        let mut request = self.agent.get(self.url.below(path)?);
        if let Some((name, token)) = &self.token {
            request = request.header(name, token);
        }
        let is_token_there = self.token.iter().any(|(name, _)| name == AUTHORIZATION);
        if !is_token_there && let Some(authorization) = self.url.authorization() {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
            .config()
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_global(Some(limit))
            .build()
            .call()
    }
}

/// Whether the other server may have received the request, judging by the error.
fn came_from_it(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        Error::Timeout(timeout) => !matches!(
            timeout,
            ureq::Timeout::Connect | ureq::Timeout::Resolve | ureq::Timeout::SendRequest
        ),
        Error::Io(error) => matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        ),
        Error::Protocol(_) => true,
        _ => false,
    }
}

fn reason(error: &Error, limit: Duration) -> String {
    match error {
        Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            "could not connect in time".to_owned()
        }
        Error::Timeout(_) => format!("no response within {limit:?}"),
        // Its text shows the URL.
        Error::BadUri(_) => "bad URL".to_owned(),
        error => error.to_string(),
    }
}

fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => "; give `url` as it leads to",
        401 | 403 | 407 => "; see to `auth_token`",
        404 | 405 | 410 => "; see to `url`",
        _ => "",
    }
}

/// Why a pop failed with a status that is not 2xx. A server that sends a status with advice has not touched the
/// list.
fn not_popped(status: u16, at: &str) -> String {
    let rest = match advice(status) {
        "" => LOST,
        advice => advice,
    };
    format!("could not GET {at}: it answered {status}{rest}")
}

/// Reads the UUIDs in the body of a response; `cut` says why the body is incomplete, if it is.
fn handed_out(
    bytes: &[u8],
    cut: Option<String>,
    secret: Option<&str>,
    at: &str,
) -> Result<Popped, String> {
    let broke_off = cut.clone();
    parse_list(bytes, cut, secret).ok_or_else(|| match broke_off {
        Some(why) => format!("the answer of {at} broke off before a list of UUIDs: {why}{LOST}"),
        None => format!("{at} did not answer with a list of UUIDs{LOST}"),
    })
}

/// What a status that is not 2xx says about a document.
///
/// | status | |
/// |---|---|
/// | 404, 410 | there is no such document |
/// | 3xx, 401, 402, 403, 405, 407, 421, 426, 429, 451, 503 | the server gives no document at present |
/// | all others: 400, 422, 500, 502, … | this one fails, others perhaps do not |
fn judge(status: u16, at: &str) -> Option<Fetched> {
    let why = format!("could not GET {at}: it answered {status}");
    match status {
        200..=299 => None,
        404 | 410 => Some(Fetched::Refused(why)),
        300..=399 | 401..=403 | 405 | 407 | 421 | 426 | 429 | 451 | 503 => {
            Some(Fetched::Unavailable(format!("{why}{}", advice(status))))
        }
        _ => Some(Fetched::Failed(why)),
    }
}

/// Reads the body of a response as a document.
pub(super) fn document(bytes: Vec<u8>, at: &str) -> Fetched {
    #[derive(Deserialize)]
    struct Dated {
        created_at: Option<Box<RawValue>>,
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return Fetched::Failed(format!("the answer of {at} is not UTF-8"));
    };
    // Older servers send this if there is no document.
    if text.trim_ascii() == "null" {
        return Fetched::Refused(format!("{at} has no document"));
    }
    if !text.trim_ascii_start().starts_with('{') {
        return Fetched::Failed(format!("the answer of {at} is not a JSON object"));
    }
    match serde_json::from_str::<Dated>(&text) {
        Ok(Dated { created_at }) => {
            let created = created_at.and_then(|at| CreatedAt::from_json(&at));
            Fetched::Document(text, created)
        }
        Err(error) => Fetched::Failed(format!("the answer of {at} is not JSON: {error}")),
    }
}

/// The UUIDs of a JSON list; `None` if it is not a list. Of an incomplete list, the UUIDs that are complete: the
/// other server no longer has them.
fn parse_list(bytes: &[u8], cut: Option<String>, secret: Option<&str>) -> Option<Popped> {
    let bytes = bytes.trim_ascii();
    if cut.is_none() {
        if bytes.is_empty() {
            return Some(Popped::default());
        }
        // Each entry is a part of the bytes: as values of their own, they would take many times as much.
        if let Ok(entries) = serde_json::from_slice::<Vec<&RawValue>>(bytes) {
            let entries = entries.into_iter().map(RawValue::get);
            return Some(sorted_out(entries, None, secret));
        }
    }
    if !bytes.starts_with(b"[") {
        return None;
    }
    let cut = cut.unwrap_or_else(|| "it is not complete JSON".to_owned());
    // No UUID contains a quote or an escape: text between two quotes may be one.
    let text = String::from_utf8_lossy(bytes);
    let mut parts: Vec<&str> = text.split('"').collect();
    // Nothing closes the last one.
    parts.pop();
    let texts = parts.into_iter().skip(1).step_by(2);
    Some(sorted_out(texts, Some(cut), secret))
}

/// `entries` are JSON strings, or the text between their quotes. One with the secret in it is not shown.
fn sorted_out<'a>(
    entries: impl Iterator<Item = &'a str>,
    cut: Option<String>,
    secret: Option<&str>,
) -> Popped {
    let is_secret = |text: &str| secret.is_some_and(|secret| text.contains(secret));
    let mut popped = Popped {
        cut,
        ..Popped::default()
    };
    for entry in entries {
        let text: Option<String> = serde_json::from_str(entry).ok();
        let text = text.as_deref().unwrap_or(entry);
        if let Ok(id) = text.parse() {
            popped.ids.push(id);
        } else if popped.refused.len() < MOST_SHOWN && !is_secret(text) {
            let shown = printable(text).chars().take(SHOWN).collect();
            popped.refused.push(shown);
        } else {
            popped.unshown += 1;
        }
    }
    popped
}

/// What a fuzzer runs on the responses of servers that vCons are pulled from.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(in crate::monitor) mod fuzz {
    use super::{Fetched, document, handed_out};

    /// An answer to a pop, whole and broken off; and an answer to a request for a document.
    pub fn answer(data: &[u8]) {
        for cut in [None, Some("it broke off".to_owned())] {
            let is_cut = cut.is_some();
            let Ok(popped) = handed_out(data, cut, None, "there") else {
                continue;
            };
            assert!(popped.cut.is_some() || !is_cut);
            for shown in &popped.refused {
                assert!(shown.chars().count() <= 80, "{shown:?}");
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
            }
            let text = String::from_utf8_lossy(data);
            for id in &popped.ids {
                // A whole answer may spell it with escapes.
                assert!(text.contains(id.as_str()) || text.contains('\\'), "{id}");
            }
        }
        match document(data.to_vec(), "there") {
            Fetched::Document(text, _) => assert_eq!(text.as_bytes(), data),
            Fetched::Refused(why) | Fetched::Failed(why) | Fetched::Unavailable(why) => {
                assert!(why.len() <= 1000, "{why:?}");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const A: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";
    const B: &str = "15cec3d4-0561-4010-9fb8-23cc7edef146";

    fn ids(popped: &Popped) -> Vec<&str> {
        popped.ids.iter().map(VconId::as_str).collect()
    }

    #[test]
    fn a_list_is_read_and_what_is_no_uuid_is_refused() {
        let text = format!(r#"["{A}", "../../x\u001b[31m", 7, {{"a":"{A}"}}, null, "{B}"]"#);
        let popped = parse_list(text.as_bytes(), None, None).unwrap();
        assert_eq!(ids(&popped), [A, B]);
        assert_eq!(popped.refused.len(), 4);
        assert_eq!(popped.refused[0], r"../../x\u{1b}[31m");
        assert!(popped.refused.iter().all(|it| it.chars().count() <= SHOWN));
        assert_eq!((popped.cut, popped.unshown), (None, 0));
        let many = format!("[{}\"{A}\"]", "7,".repeat(MOST_SHOWN + 5));
        let popped = parse_list(many.as_bytes(), None, None).unwrap();
        assert_eq!((popped.refused.len(), popped.unshown), (MOST_SHOWN, 5));
        assert_eq!(ids(&popped), [A]);
        for nothing in ["", " \n", "[]", " [ ] "] {
            assert_eq!(
                parse_list(nothing.as_bytes(), None, None),
                Some(Popped::default()),
                "{nothing:?}"
            );
        }
    }

    #[test]
    fn of_a_list_that_broke_off_the_whole_uuids_are_kept() {
        let whole = format!(r#"["{A}","{B}"]"#);
        for length in 0..whole.len() {
            let part = &whole.as_bytes()[..length];
            let found = parse_list(part, Some("cut".to_owned()), None);
            let Some(popped) = found else {
                assert_eq!(length, 0);
                continue;
            };
            let closed = [A.len() + 3, A.len() + B.len() + 6];
            let count = closed.iter().filter(|end| length >= **end).count();
            assert_eq!(ids(&popped), [A, B][..count], "{length}");
            assert_eq!(popped.cut.as_deref(), Some("cut"));
            assert_eq!(popped.refused, [""; 0]);
        }
        // Without a word of the connection on it.
        let popped = parse_list(&whole.as_bytes()[..45], None, None).unwrap();
        assert_eq!(ids(&popped), [A]);
        assert!(popped.cut.is_some());
    }

    #[test]
    fn what_a_server_sends_back_shows_no_token() {
        let text = format!(r#"["<hunter2>", "\u0068unter2", "x", "{A}"]"#);
        let popped = parse_list(text.as_bytes(), None, Some("hunter2")).unwrap();
        assert_eq!(
            (ids(&popped), &*popped.refused, popped.unshown),
            (vec![A], &["x".to_owned()][..], 2)
        );
        let popped = parse_list(
            b"[\"hunter2\", \"y",
            Some("cut".to_owned()),
            Some("hunter2"),
        )
        .unwrap();
        assert_eq!((popped.refused, popped.unshown), (vec![], 1));
    }

    #[test]
    fn another_answer_is_no_list() {
        let page = format!("<html id=\"{A}\">");
        for other in [page.as_str(), "null", "500", "{}", "\"[]\""] {
            assert_eq!(parse_list(other.as_bytes(), None, None), None, "{other}");
        }
    }

    #[test]
    fn a_pop_that_fails_says_what_may_be_lost() {
        for status in [400, 429, 500, 502, 503, 504] {
            let told = not_popped(status, "there");
            let start = format!("could not GET there: it answered {status}; if it has taken UUIDs");
            assert!(
                told.starts_with(&start) && told.ends_with("are lost"),
                "{told}"
            );
        }
        for (status, advice) in [(307, "`url`"), (403, "`auth_token`"), (404, "`url`")] {
            let told = not_popped(status, "there");
            assert!(told.contains(advice) && !told.contains("lost"), "{told}");
        }
        for before in ["", " \n", "\u{feff}"] {
            let told =
                handed_out(before.as_bytes(), Some("reset".to_owned()), None, "there").unwrap_err();
            assert!(told.contains("of there broke off before a list"), "{told}");
            assert!(
                told.contains("reset") && told.ends_with("are lost"),
                "{told}"
            );
        }
        let told = handed_out(b"{}", None, None, "there").unwrap_err();
        assert!(
            told.contains("did not answer with a list of UUIDs"),
            "{told}"
        );
        assert!(told.ends_with("are lost"), "{told}");
        let whole = format!("[\"{A}\"]");
        let popped = handed_out(whole.as_bytes(), None, None, "there").unwrap();
        assert_eq!((ids(&popped), &popped.cut), (vec![A], &None));
    }

    #[test]
    fn statuses_of_documents_mean_what_the_table_says() {
        for (status, kind) in [
            (200, "none"),
            (204, "none"),
            (404, "refused"),
            (410, "refused"),
            (301, "unavailable"),
            (307, "unavailable"),
            (401, "unavailable"),
            (403, "unavailable"),
            (429, "unavailable"),
            (503, "unavailable"),
            (400, "failed"),
            (422, "failed"),
            (500, "failed"),
            (502, "failed"),
            (504, "failed"),
        ] {
            let found = match judge(status, "there") {
                None => "none",
                Some(Fetched::Refused(_)) => "refused",
                Some(Fetched::Failed(_)) => "failed",
                Some(Fetched::Unavailable(_)) => "unavailable",
                Some(Fetched::Document(..)) => "document",
            };
            assert_eq!(found, kind, "{status}");
        }
        assert_eq!(
            judge(403, "there"),
            Some(Fetched::Unavailable(
                "could not GET there: it answered 403; see to `auth_token`".to_owned()
            ))
        );
    }

    #[test]
    fn a_document_is_an_object_and_kept_as_it_is() {
        let text = r#" {"vcon":"0.0.1","created_at":"2024-01-15T10:30:00Z","x":1.0e3} "#;
        match document(text.into(), "there") {
            Fetched::Document(found, Some(created)) => {
                assert_eq!((found.as_str(), created.unix), (text, 1_705_314_600));
            }
            other => panic!("{other:?}"),
        }
        for number in [
            "1705314600",
            "1705314600.25",
            "1705314600250",
            "\"1705314600\"",
        ] {
            let text = format!(r#"{{"created_at": {number} }}"#);
            let Fetched::Document(_, Some(created)) = document(text.into(), "there") else {
                panic!("{number}")
            };
            assert_eq!(created.unix, 1_705_314_600, "{number}");
        }
        for undated in [
            "{}",
            r#"{"created_at":null}"#,
            r#"{"created_at":[7]}"#,
            r#"{"created_at":"soon"}"#,
        ] {
            assert_eq!(
                document(undated.into(), "there"),
                Fetched::Document(undated.to_owned(), None)
            );
        }
        assert!(matches!(document("null\n".into(), ""), Fetched::Refused(_)));
        for other in ["", "[]", "500", "<html>", "{\"a\":", "{} {}"] {
            let found = document(other.into(), "there");
            assert!(matches!(found, Fetched::Failed(_)), "{other}: {found:?}");
        }
        assert!(matches!(
            document(b"{\"a\":\"\xff\"}".to_vec(), ""),
            Fetched::Failed(_)
        ));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
        assert!(matches!(
            document(deep.into_bytes(), ""),
            Fetched::Document(..)
        ));
    }
}
