//! What a status, or no answer at all, means for trying again.

use ureq::Error;
use ureq::http::{Method, StatusCode};

use super::Url;
use crate::deadline::Limit;
use crate::failure::Failure;

/// What a status that is not 2xx means for trying again.
///
/// | status | whose fault | |
/// |---|---|---|
/// | 401, 402, 403, 407 | the configuration's: other credentials or rights | denied |
/// | 3xx, 404, 405, 410, 421, 426, 451 | the server's or the configuration's: another URL, a service that is not deployed | transient |
/// | 408, 423, 425, 429, 5xx | the server's: busy, slow or broken | transient |
/// | all others: 400, 409, 413, 415, 422, … | the vCon's, unless the server refuses others alike | refused |
pub(super) fn refused(url: &Url, status: StatusCode) -> Failure {
    let mut message = format!("could not POST to {url}: it answered {status}");
    let advice = match status.as_u16() {
        300..=399 => Some("give the URL that it leads to"),
        401 | 403 | 407 => Some("see to the credentials in `headers` or the URL"),
        404 | 405 | 410 => Some("see to the URL"),
        _ => None,
    };
    if let Some(advice) = advice {
        message = format!("{message}; {advice}");
    }
    match status.as_u16() {
        408 | 425 | 429 | 503 => Failure::busy(message),
        401..=403 | 407 => Failure::denied(message),
        300..=399 | 404 | 405 | 410 | 421 | 423 | 426 | 451 | 500.. => Failure::transient(message),
        _ => Failure::refused(message),
    }
}

/// The failure of a request without an answer.
///
/// Everything that the network or the server did may pass, an expired certificate as well; a fault of
/// the request itself does not.
pub(super) fn no_answer(method: &Method, url: &Url, error: &Error, limit: Limit) -> Failure {
    let asked = asked(method, url);
    match error {
        // Its text shows the URL.
        Error::BadUri(_) => Failure::permanent(format!("{asked}: bad URL")),
        Error::Http(_) | Error::BodyExceedsLimit(_) => {
            Failure::permanent(format!("{asked}: {error}"))
        }
        Error::Timeout(_) => Failure::transient(format!("{asked}: no answer within {limit}")),
        Error::Io(error) => Failure::transient(format!("{asked}: {error}")),
        _ => Failure::transient(format!("{asked}: {error}")),
    }
}

/// The beginning of the message of a request that failed.
pub(super) fn asked(method: &Method, url: &Url) -> String {
    match *method {
        Method::POST => format!("could not POST to {url}"),
        _ => format!("could not {method} {url}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{LONG, post_to, serve};

    #[test]
    fn statuses_are_classified() {
        for (status, transient, advice) in [
            ("500 Internal Server Error", true, ""),
            ("503 Service Unavailable", true, ""),
            ("429 Too Many Requests", true, ""),
            ("408 Request Timeout", true, ""),
            (
                "401 Unauthorized",
                true,
                "; see to the credentials in `headers` or the URL",
            ),
            (
                "403 Forbidden",
                true,
                "; see to the credentials in `headers` or the URL",
            ),
            ("404 Not Found", true, "; see to the URL"),
            ("410 Gone", true, "; see to the URL"),
            ("302 Found", true, "; give the URL that it leads to"),
            (
                "307 Temporary Redirect",
                true,
                "; give the URL that it leads to",
            ),
            ("400 Bad Request", false, ""),
            ("406 Not Acceptable", false, ""),
            ("409 Conflict", false, ""),
            ("413 Payload Too Large", false, ""),
            ("415 Unsupported Media Type", false, ""),
            ("422 Unprocessable Entity", false, ""),
        ] {
            let (address, server) = serve(&[status]);
            let failure =
                post_to(&format!("http://u:secret@{address}/p?k=secret"), LONG).unwrap_err();
            assert_eq!(failure.is_transient(), transient, "{status}");
            assert_eq!(
                failure.message,
                format!("could not POST to http://{address}/p: it answered {status}{advice}")
            );
            assert_eq!(server.join().unwrap().len(), 1);
        }
    }
}
