//! A request to a service whose answer is read whole, whatever its status.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use ureq::http::header::RETRY_AFTER;
use ureq::http::{HeaderMap, Request, StatusCode};
use ureq::{Agent, AsSendBody, Error, Timeout};

use super::{Cut, Url, read, status};
use crate::deadline::Limit;
use crate::failure::Failure;

/// No server is left alone for longer than this, whatever it says: a day.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// After this time, what must not be done twice is asked for again if it may have been done.
const UNCONFIRMED_WAIT: Duration = Duration::from_secs(30);

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// Makes a request within the limit, and reads at most `most` bytes of the answer. Messages name `url`.
///
/// # Errors
/// There is no answer, or not all of it: all transient, but for a request that cannot be sent at all, and a good
/// answer that is too long, which may be paid for: it is refused.
pub fn exchange(
    agent: &Agent,
    request: Request<impl AsSendBody>,
    url: &Url,
    limit: Limit,
    most: u64,
) -> Result<Answer, Failure> {
    attempt(agent, request, url, limit, most).map_err(|(failure, _)| failure)
}

/// The same for what must not be done twice.
///
/// # Errors
/// Those of [`exchange`]; but after whatever goes wrong once the request may have been sent, the server is left
/// alone for a while, so that it is not asked again and again for what it has done.
pub fn exchange_once(
    agent: &Agent,
    request: Request<impl AsSendBody>,
    url: &Url,
    limit: Limit,
    most: u64,
) -> Result<Answer, Failure> {
    attempt(agent, request, url, limit, most).map_err(|(failure, phase)| match phase {
        Phase::Unsent => failure,
        Phase::Sent => {
            let message = format!("{}; it may have done it all the same", failure.message);
            Failure::transient(message).until(Instant::now().checked_add(UNCONFIRMED_WAIT))
        }
    })
}

/// How far a request that failed came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent.
    Unsent,
    /// All of it may have been.
    Sent,
}

impl Phase {
    fn of(error: &Error) -> Self {
        let is_unsent = match error {
            Error::Timeout(phase) => matches!(phase, Timeout::Resolve | Timeout::Connect),
            Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
            ),
            Error::HostNotFound
            | Error::ConnectionFailed
            | Error::BadUri(_)
            | Error::Http(_)
            | Error::Rustls(_)
            | Error::Tls(_)
            | Error::ConnectProxyFailed(_) => true,
            _ => false,
        };
        match is_unsent {
            true => Self::Unsent,
            false => Self::Sent,
        }
    }
}

fn attempt(
    agent: &Agent,
    request: Request<impl AsSendBody>,
    url: &Url,
    limit: Limit,
    most: u64,
) -> Result<Answer, (Failure, Phase)> {
    let method = request.method().clone();
    let timed = agent.configure_request(request);
    let left = limit.left();
    let request = timed
        .timeout_global(Some(left))
        // A bit less, so that it can be told from an answer that does not come.
        .timeout_connect(Some(left.mul_f64(0.9)))
        .build();
    let mut response = agent.run(request).map_err(|error| {
        let failure = status::no_answer(&method, url, &error, limit);
        (failure, Phase::of(&error))
    })?;
    let (body, cut) = read(&mut response, most);
    let is_good = response.status().is_success();
    let asked = status::asked(&method, url);
    let failure = match cut {
        None => {
            let (head, _) = response.into_parts();
            return Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            });
        }
        Some(Cut::TooLong) => {
            let message = format!("{asked}: its answer has more than {most} bytes");
            match is_good {
                true => Failure::refused(message),
                false => Failure::transient(message),
            }
        }
        Some(Cut::Broken(error)) => {
            Failure::transient(format!("{asked}: its answer broke off: {error}"))
        }
    };
    Err((failure, Phase::Sent))
}

/// When the server wants to be asked again, by `Retry-After`: seconds from now, or a date.
/// See RFC 9110, 10.2.3.
pub fn retry_after(headers: &HeaderMap) -> Option<Instant> {
    retry_after_in(headers, RETRY_AFTER.as_str())
}

/// The same, by another header that holds what `Retry-After` does.
pub fn retry_after_in(headers: &HeaderMap, name: &str) -> Option<Instant> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = DateTime::parse_from_rfc2822(text).ok()?;
            let wait = date.signed_duration_since(Utc::now());
            wait.to_std().unwrap_or_default()
        }
    };
    Instant::now().checked_add(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::deadline::Deadline;
    use crate::failure::FailureKind;
    use crate::http_client::agent;
    use crate::http_client::tests::serve_with;

    #[test]
    fn a_good_answer_that_is_too_long_is_refused_and_another_one_is_not() {
        for (status, kind) in [(200, FailureKind::Refused), (500, FailureKind::Transient)] {
            let (address, server) = serve_with(vec![(status, "x".repeat(101))]);
            let url: Url = format!("http://{address}/").parse().unwrap();
            let request = Request::post(url.whole()).body("").unwrap();
            let limit = Deadline::NONE.begin(Duration::from_secs(60));
            let failure = exchange(&agent(), request, &url, limit, 100).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            server.join().unwrap();
        }
    }

    #[test]
    fn what_may_be_done_is_not_asked_for_again_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url: Url = format!("http://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let post = || {
            let request = Request::post(url.whole()).body("").unwrap();
            let limit = Deadline::NONE.begin(Duration::from_millis(300));
            exchange_once(&agent(), request, &url, limit, 100).unwrap_err()
        };
        // The system has accepted it, and nobody answers.
        let failure = post();
        let wait = failure.not_before.map(|time| time - Instant::now());
        assert!(wait > Some(Duration::from_secs(29)), "{failure} {wait:?}");
        drop(listener);
        let failure = post();
        assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
        assert_eq!(failure.not_before, None);
    }

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        let wait = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            let until = retry_after(&headers)?;
            Some(
                until
                    .saturating_duration_since(Instant::now())
                    .as_secs_f64()
                    .round(),
            )
        };
        let in_a_minute =
            (Utc::now() + Duration::from_secs(60)).format("%a, %d %b %Y %H:%M:%S GMT");
        assert_eq!(wait("30"), Some(30.0));
        assert_eq!(wait("0"), Some(0.0));
        assert!(wait(&in_a_minute.to_string()).is_some_and(|it| (58.0..=60.0).contains(&it)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0.0));
        assert_eq!(wait("18446744073709551615"), Some(86_400.0));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
