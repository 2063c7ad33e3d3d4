//! Webhooks: documents posted as JSON to each of a list of URLs.
//!
//! `storage.webhook` posts a vCon once its links are done; `links.webhook` posts by the same [`Webhooks`]
//! at its step of the chain. What was posted cannot be read back: [`Storage::get`] and
//! [`Storage::delete`] find nothing.
//!
//! | option | default | |
//! |---|---|---|
//! | `webhook-urls` | required | a list, which may be empty |
//! | `headers` | none | a mapping |
//! | `timeout` | `30` | seconds for each URL |
//!
//! What an answer means is in the table of [`http_client`](crate::http_client).

use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use super::Storage;
use crate::deadline::Deadline;
use crate::failure::{Failure, FailureKind};
use crate::http_client::{self, Url};
use crate::options::Options;
use crate::scoreboard::AnswerTimes;
use crate::vcon::{Outgoing, VconId};

/// URLs that get each document, and how they are reached.
pub(crate) struct Webhooks {
    agent: Agent,
    timeout: Duration,
    urls: Vec<Url>,
    headers: HeaderMap,
    accepted: Option<Accepted>,
    /// Where the time of each answer is counted, if anywhere.
    times: Option<AnswerTimes>,
}

/// Who has a document that others have not taken yet.
struct Accepted {
    json: String,
    /// The places of their URLs.
    by: Vec<usize>,
}

impl Webhooks {
    /// Reads the options and records their faults there.
    pub(crate) fn open(options: &mut Options) -> Self {
        let timeout = options.seconds_or("timeout", 30.0);
        if timeout.is_zero() {
            options.fault("timeout", "must be more than 0");
        }
        Self::new(urls(options), headers(options), timeout)
    }

    fn new(urls: Vec<Url>, headers: HeaderMap, timeout: Duration) -> Self {
        Self {
            agent: http_client::agent(),
            timeout,
            urls,
            headers,
            accepted: None,
            times: None,
        }
    }

    /// From now on counts how long each answer takes.
    pub(crate) fn count_answers(&mut self, times: &AnswerTimes) {
        self.times = Some(times.clone());
    }

    /// Posts the document to every URL. One that fails does not keep it from the others, and the failure
    /// names all that failed; it may pass as long as one of them may. The same document posted again
    /// after a failure goes only to URLs that have not accepted it.
    ///
    /// Each URL gets the time left until the deadline, so that a silent one does not keep the document
    /// from the others.
    pub(crate) fn post(&mut self, json: &str, deadline: Deadline) -> Result<(), Failure> {
        let again = self.accepted.take().filter(|last| last.json == json);
        let mut by = again.map_or_else(Vec::new, |last| last.by);
        let mut failures = Vec::new();
        for (place, url) in self.urls.iter().enumerate() {
            if by.contains(&place) {
                continue;
            }
            match self.post_to(url, json, deadline) {
                Ok(()) => by.push(place),
                Err(failure) => failures.push(failure),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        if !by.is_empty() {
            let json = json.to_owned();
            self.accepted = Some(Accepted { json, by });
        }
        let messages: Vec<&str> = failures.iter().map(|f| f.message.as_str()).collect();
        let failure = Failure::new(kind_of_all(&failures), messages.join("; "));
        // Whoever wants to be left alone longest.
        Err(failure.until(failures.iter().filter_map(|it| it.not_before).max()))
    }

    /// The longest time that a post to all URLs may take by its own limits.
    pub(crate) fn longest_post(&self) -> Duration {
        let urls = u32::try_from(self.urls.len()).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(urls)
    }

    /// Checks that every server accepts connections.
    pub(crate) fn reach(&self) -> Result<(), Failure> {
        self.urls
            .iter()
            .try_for_each(|url| http_client::reach(&self.agent, url))
    }

    fn post_to(&self, url: &Url, json: &str, deadline: Deadline) -> Result<(), Failure> {
        let limit = deadline.begin(self.timeout);
        let begun = Instant::now();
        let answer = http_client::send_json(&self.agent, url, &self.headers, json, limit)?;
        if let Some(times) = &self.times {
            times.observe(answer.status().as_u16(), begun.elapsed());
        }
        let mut answer = http_client::taken(url, answer)?;
        // The connection can then be used again. The status was the answer: a body that is too long or
        // breaks off costs only the connection.
        let _ = http_client::read(&mut answer, http_client::EXPLANATION);
        Ok(())
    }
}

/// The kind of all failures together: may pass if one of them may, says nothing of the vCon if one
/// of them does not, and somebody has to act if one of them needs that.
fn kind_of_all(failures: &[Failure]) -> FailureKind {
    let is = |kind| failures.iter().any(|failure| failure.kind == kind);
    if is(FailureKind::Denied) {
        FailureKind::Denied
    } else if is(FailureKind::Busy) {
        FailureKind::Busy
    } else if is(FailureKind::Transient) {
        FailureKind::Transient
    } else if is(FailureKind::Refused) {
        FailureKind::Refused
    } else {
        FailureKind::Permanent
    }
}

fn urls(options: &mut Options) -> Vec<Url> {
    // An empty list posts nothing, as it does with the existing worker.
    options.require("webhook-urls");
    let texts = options.strings("webhook-urls");
    let mut urls = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(url) => urls.push(url),
            Err(error) => options.fault("webhook-urls", format!("entry {} {error}", index + 1)),
        }
    }
    urls
}

fn headers(options: &mut Options) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, secret) in options.headers("headers") {
        match (
            name.parse::<HeaderName>(),
            HeaderValue::from_str(secret.reveal()),
        ) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Err(_), _) => options.fault("headers", format!("{name:?} is not a header name")),
            (_, Err(_)) => options.fault(
                "headers",
                format!("the value of {name} is not one line of text"),
            ),
        }
    }
    headers
}

struct WebhookStorage {
    webhooks: Webhooks,
}

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    Box::new(WebhookStorage {
        webhooks: Webhooks::open(options),
    })
}

impl Storage for WebhookStorage {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        self.webhooks.post(&vcon.json, deadline)
    }

    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }

    fn probe(&mut self) -> Result<(), Failure> {
        self.webhooks.reach()
    }

    fn count_answers(&mut self, times: &AnswerTimes) {
        self.webhooks.count_answers(times);
    }

    fn longest_call(&self) -> Duration {
        self.webhooks.longest_post()
    }

    fn keeps_documents(&self) -> bool {
        false
    }

    fn can_delete(&self) -> bool {
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod tests {
    use super::*;
    use crate::http_client::tests::serve;
    use crate::scoreboard::{Board, Shape, Slot, Snapshot};
    use crate::vcon::{Vcon, Version};

    /// Webhooks at the addresses, with one header.
    pub(crate) fn webhooks(addresses: &[String]) -> Webhooks {
        let url = |address: &String| format!("http://{address}/hook").parse().unwrap();
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-key"),
            HeaderValue::from_static("k1"),
        )]);
        Webhooks::new(
            addresses.iter().map(url).collect(),
            headers,
            Duration::from_secs(10),
        )
    }

    #[test]
    fn an_attempt_more_spares_those_that_have_accepted() {
        let (one, first) = serve(&["200 OK", "200 OK"]);
        let (two, second) = serve(&["503 Service Unavailable", "200 OK", "200 OK"]);
        let mut webhooks = webhooks(&[one, two]);
        assert!(webhooks.post("{}", Deadline::NONE).is_err());
        assert_eq!(webhooks.post("{}", Deadline::NONE), Ok(()));
        // Done as a whole, it is posted to all when it comes again.
        assert_eq!(webhooks.post("{}", Deadline::NONE), Ok(()));
        assert_eq!(first.join().unwrap().len(), 2);
        assert_eq!(second.join().unwrap().len(), 3);
    }

    #[test]
    fn each_answer_is_counted_by_its_status() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape::of(1, 0, 0, 0);
        let mut board = Board::create(folder.path(), "here", shape, 1).unwrap();
        board.prepare(1).unwrap();
        let slot = Slot::attach(board.id(), 1, 1).unwrap();
        let (one, first) = serve(&["200 OK", "204 No Content"]);
        let (two, second) = serve(&["503 Service Unavailable", "200 OK", "404 Not Found"]);
        let mut storage = WebhookStorage {
            webhooks: webhooks(&[one, two]),
        };
        storage.count_answers(&slot.answer_times());
        let mut vcon = Vcon::parse(VconId::random(), "{}".to_owned()).unwrap();
        let vcon = vcon.outgoing(Version::Current);
        // What has accepted it is not asked again.
        for is_saved in [false, true, false] {
            let saved = storage.save(&vcon, Deadline::NONE);
            assert_eq!(saved.is_ok(), is_saved, "{saved:?}");
        }
        let snapshot = Snapshot::take_own(&board.id().path).unwrap();
        let counts: Vec<_> = snapshot
            .answers
            .iter()
            .map(|(status, times)| (*status, times.count()))
            .collect();
        assert_eq!(counts, [(200, 2), (503, 1), (204, 1), (404, 1)]);
        assert_eq!(first.join().unwrap().len(), 2);
        assert_eq!(second.join().unwrap().len(), 3);
    }

    #[test]
    fn every_url_gets_the_document_as_json() {
        let (one, first) = serve(&["200 OK"]);
        let (two, second) = serve(&["204 No Content"]);
        webhooks(&[one, two])
            .post(r#"{"a":"é"}"#, Deadline::NONE)
            .unwrap();
        for server in [first, second] {
            let request = server.join().unwrap().remove(0);
            let head = request.to_lowercase();
            assert!(head.starts_with("post /hook http/1.1\r\n"), "{request}");
            assert!(
                head.contains("\r\ncontent-type: application/json\r\n"),
                "{request}"
            );
            assert!(head.contains("\r\nx-key: k1\r\n"), "{request}");
            assert!(request.ends_with("\r\n\r\n{\"a\":\"é\"}"), "{request}");
        }
    }

    #[test]
    fn a_failing_url_does_not_keep_the_document_from_the_others() {
        let (one, first) = serve(&["422 Unprocessable Entity"]);
        let (two, second) = serve(&["200 OK"]);
        let (three, third) = serve(&["503 Service Unavailable"]);
        let failure = webhooks(&[one.clone(), two.clone(), three.clone()])
            .post("{}", Deadline::NONE)
            .unwrap_err();
        assert!(failure.is_transient());
        assert!(
            failure.message.contains(&one) && failure.message.contains(&three),
            "{failure}"
        );
        assert!(!failure.message.contains(&two), "{failure}");
        for server in [first, second, third] {
            assert_eq!(server.join().unwrap().len(), 1);
        }
    }

    #[test]
    fn one_that_is_silent_until_the_deadline_does_not_keep_the_document_from_the_others() {
        let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = hole.local_addr().unwrap().to_string();
        let (two, second) = serve(&["200 OK"]);
        let mut webhooks = webhooks(&[silent, two]);
        let deadline = Deadline::after(Some(Duration::ZERO));
        let failure = webhooks.post("{}", deadline).unwrap_err();
        assert!(failure.is_transient());
        let words = "no answer within 1.0 s, what was left of the chain's timeout";
        assert!(failure.message.ends_with(words), "{failure}");
        assert_eq!(second.join().unwrap().len(), 1);
        assert_eq!(webhooks.longest_post(), Duration::from_secs(20));
    }
}
