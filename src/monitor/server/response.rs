//! Responses, how they are sent, and the page at `/`.
//!
//! The page is one response and loads nothing but `/history` and `/status`: its style and script stand in it, and its policy
//! allows these two by their hashes and nothing else.

use std::io::{ErrorKind, Read};
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use sha2::{Digest, Sha256};

use super::request::RequestError;
use crate::visible::printable_lines;

/// The policy of most responses: a browser may show them, and nothing else.
const SHOW_ONLY: &str = "default-src 'none'; frame-ancestors 'none'";

/// The statuses of responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusCode {
    Ok = 200,
    Malformed = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    NotAllowed = 405,
    TooSlow = 408,
    Conflict = 409,
    NoLength = 411,
    BodyTooLarge = 413,
    NotJson = 415,
    Misdirected = 421,
    TooMany = 429,
    TooLarge = 431,
    Unavailable = 503,
    Version = 505,
}

impl StatusCode {
    fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Malformed => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::NotAllowed => "Method Not Allowed",
            Self::TooSlow => "Request Timeout",
            Self::Conflict => "Conflict",
            Self::NoLength => "Length Required",
            Self::BodyTooLarge => "Content Too Large",
            Self::NotJson => "Unsupported Media Type",
            Self::Misdirected => "Misdirected Request",
            Self::TooMany => "Too Many Requests",
            Self::TooLarge => "Request Header Fields Too Large",
            Self::Unavailable => "Service Unavailable",
            Self::Version => "HTTP Version Not Supported",
        }
    }
}

/// After a response, the server reads this many bytes more before it closes: a connection that is closed with
/// something unread takes the response back.
const MOST_UNREAD: usize = 64 * 1024;

/// A response in the bytes that go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    bytes: Vec<u8>,
    /// The length of the head.
    head: usize,
}

impl Response {
    /// A response that nobody may store, and that a browser only shows.
    pub fn new(status: StatusCode, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        let header = match status {
            StatusCode::NotAllowed => "Allow: GET, HEAD\r\n",
            StatusCode::Unauthorized => "WWW-Authenticate: Bearer\r\n",
            StatusCode::TooMany => "Retry-After: 60\r\n",
            _ => "",
        };
        Self::with_policy(status, content_type, SHOW_ONLY, header, body.as_ref())
    }

    /// Says that the path takes a POST alone.
    pub fn only_post() -> Self {
        let (allow, line) = ("Allow: POST\r\n", b"the method must be POST\n");
        let text = "text/plain; charset=utf-8";
        Self::with_policy(StatusCode::NotAllowed, text, SHOW_ONLY, allow, line)
    }

    /// A response with this `Content-Security-Policy` and one more header.
    fn with_policy(
        status: StatusCode,
        content_type: &str,
        policy: &str,
        header: &str,
        body: &[u8],
    ) -> Self {
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let head = format!(
            "HTTP/1.1 {} {}\r\n\
             Date: {date}\r\n\
             Content-Type: {content_type}\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: {policy}\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\
             Referrer-Policy: no-referrer\r\n\
             {header}\
             Connection: close\r\n\r\n",
            status as u16,
            status.reason(),
            body.len(),
        );
        Self {
            head: head.len(),
            bytes: [head.as_bytes(), body].concat(),
        }
    }

    /// Lines for people, who may look at them in a terminal.
    pub fn text(status: StatusCode, lines: &str) -> Self {
        let lines = printable_lines(lines) + "\n";
        Self::new(status, "text/plain; charset=utf-8", &lines)
    }

    /// Says why a request is refused.
    pub fn refusal(error: RequestError) -> Self {
        match error {
            RequestError::Malformed(why) => Self::text(StatusCode::Malformed, why),
            RequestError::Method => {
                Self::text(StatusCode::NotAllowed, "the method must be GET or HEAD")
            }
            RequestError::TooLarge => Self::text(StatusCode::TooLarge, "the request is too large"),
            RequestError::NoLength => {
                Self::text(StatusCode::NoLength, "the request needs a Content-Length")
            }
            RequestError::BodyTooLarge => {
                Self::text(StatusCode::BodyTooLarge, "the body is too large")
            }
            RequestError::TooSlow => {
                Self::text(StatusCode::TooSlow, "the request did not arrive in time")
            }
            RequestError::Version => {
                Self::text(StatusCode::Version, "the version must be HTTP/1.1")
            }
        }
    }

    /// All bytes, or only the head.
    pub fn bytes(&self, is_head: bool) -> &[u8] {
        if is_head {
            &self.bytes[..self.head]
        } else {
            &self.bytes
        }
    }
}

/// Reads what the client still sends, until it ends or has sent too much, or the deadline of `stream`.
pub(super) fn drain(stream: &mut impl Read) {
    let mut room = [0; 8 * 1024];
    let mut total = 0;
    while total < MOST_UNREAD {
        match stream.read(&mut room) {
            Ok(0) => return,
            Ok(count) => total += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The text between `<style>` and `</style>`.
macro_rules! style {
    () => {
        include_str!("page/page.css")
    };
}

/// The text between `<script>` and `</script>`, in the order in which data flows.
macro_rules! script {
    () => {
        concat!(
            "\"use strict\";\n",
            include_str!("page/poll.js"),
            include_str!("page/history.js"),
            include_str!("page/show.js"),
            include_str!("page/troubles.js"),
            include_str!("page/letters.js"),
            include_str!("page/actions.js"),
            include_str!("page/tables.js"),
            include_str!("page/chart.js"),
            include_str!("page/format.js"),
            "start();\n",
        )
    };
}

/// The page without its first lines.
const PAGE: &str = concat!(
    "<meta charset=\"utf-8\">\n<title>conserver</title>\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<meta name=\"color-scheme\" content=\"light dark\">\n",
    "<link rel=\"icon\" href=\"data:image/svg+xml,",
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E",
    "%3Cpath d='M2 12 6 6l3 4 5-7' fill='none' stroke='%230a5fc0' stroke-width='2'/%3E%3C/svg%3E\">\n",
    "<style>",
    style!(),
    "</style>\n",
    include_str!("page/page.html"),
    "<script>",
    script!(),
    "</script>\n",
);

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(style!()),
        hash(script!()),
    )
});

/// The page. Its script offers actions if the monitor takes them.
pub(super) fn page(may_act: bool) -> Response {
    let class = if may_act { " class=\"may-act\"" } else { "" };
    let page = format!("<!DOCTYPE html>\n<html lang=\"en\"{class}>\n{PAGE}");
    Response::with_policy(
        StatusCode::Ok,
        "text/html; charset=utf-8",
        &POLICY,
        "",
        page.as_bytes(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people_steers_no_terminal() {
        let response = Response::text(StatusCode::Unavailable, "a\u{1b}[2J\nb\u{202e}");
        let text = std::str::from_utf8(response.bytes(false)).unwrap();
        assert!(
            text.ends_with("\r\n\r\na\\u{1b}[2J\nb\\u{202e}\n"),
            "{text}"
        );
    }

    #[test]
    fn a_response_is_http_and_starts_with_its_head() {
        let response = Response::text(StatusCode::NotAllowed, "no");
        let text = std::str::from_utf8(response.bytes(false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 405 Method Not Allowed\r\nDate: "));
        assert!(text.ends_with("\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\nno\n"));
        let head = std::str::from_utf8(response.bytes(true)).unwrap();
        assert_eq!(Some(head), text.strip_suffix("no\n"));
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut headers);
        assert!(parsed.parse(response.bytes(true)).unwrap().is_complete());
        let length = parsed.headers.iter().find(|h| h.name == "Content-Length");
        assert_eq!(length.unwrap().value, b"3");
    }

    #[test]
    fn a_client_that_sends_without_end_is_drained_only_for_a_while() {
        let mut endless = std::io::repeat(b'x').take(1 << 30);
        drain(&mut endless);
        assert!((1 << 30) - endless.limit() <= 2 * MOST_UNREAD as u64);
    }
}
