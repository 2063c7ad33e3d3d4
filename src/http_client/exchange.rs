//! A request to a service whose answer is read whole, whatever its status.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use ureq::http::header::RETRY_AFTER;
use ureq::http::{HeaderMap, Request, StatusCode};
use ureq::{Agent, AsSendBody};

use super::{Cut, Url, read, status};
use crate::deadline::Limit;
use crate::failure::Failure;

/// No server is left alone for longer than this, whatever it says: a day.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

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
/// There is no answer, or not all of it: all transient, but for a request that cannot be sent at all.
pub fn exchange(
    agent: &Agent,
    request: Request<impl AsSendBody>,
    url: &Url,
    limit: Limit,
    most: u64,
) -> Result<Answer, Failure> {
    let method = request.method().clone();
    let timed = agent.configure_request(request);
    let request = timed.timeout_global(Some(limit.left())).build();
    let sent = agent.run(request);
    let mut response = sent.map_err(|error| status::no_answer(&method, url, &error, limit))?;
    let (body, cut) = read(&mut response, most);
    let why = match cut {
        None => {
            let (head, _) = response.into_parts();
            return Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            });
        }
        Some(Cut::TooLong) => format!("its answer has more than {most} bytes"),
        Some(Cut::Broken(error)) => format!("its answer broke off: {error}"),
    };
    let asked = status::asked(&method, url);
    Err(Failure::transient(format!("{asked}: {why}")))
}

/// When the server wants to be asked again, by `Retry-After`: seconds from now, or a date.
/// See RFC 9110, 10.2.3.
pub fn retry_after(headers: &HeaderMap) -> Option<Instant> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
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
