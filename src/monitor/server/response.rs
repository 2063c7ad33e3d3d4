//! Responses in the bytes that go out, and the page at `/`.
//!
//! The page is one response and loads nothing but `/status`: its style and script stand in it, and its policy
//! allows these two by their hashes and nothing else.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use sha2::{Digest, Sha256};

use super::request::Refusal;

/// What a browser may do with an answer: show it, and nothing else.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// The answers that are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 200,
    Malformed = 400,
    NotFound = 404,
    NotAllowed = 405,
    TooSlow = 408,
    Misdirected = 421,
    TooLarge = 431,
    Unavailable = 503,
    Version = 505,
}

impl Status {
    fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Malformed => "Bad Request",
            Self::NotFound => "Not Found",
            Self::NotAllowed => "Method Not Allowed",
            Self::TooSlow => "Request Timeout",
            Self::Misdirected => "Misdirected Request",
            Self::TooLarge => "Request Header Fields Too Large",
            Self::Unavailable => "Service Unavailable",
            Self::Version => "HTTP Version Not Supported",
        }
    }
}

/// An answer in the bytes that go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    /// How many of these are before the body.
    head: usize,
}

impl Answer {
    /// One that nothing may be kept of, and that a browser only shows.
    pub fn new(status: Status, content_type: &str, body: &str) -> Self {
        Self::with_policy(status, content_type, NOTHING, body)
    }

    /// The same, with which a browser may do what this policy says.
    pub fn with_policy(status: Status, content_type: &str, policy: &str, body: &str) -> Self {
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let allow = match status {
            Status::NotAllowed => "Allow: GET, HEAD\r\n",
            _ => "",
        };
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
             {allow}\
             Connection: close\r\n\r\n",
            status as u16,
            status.reason(),
            body.len(),
        );
        Self {
            head: head.len(),
            bytes: [head.as_bytes(), body.as_bytes()].concat(),
        }
    }

    /// A line for people.
    pub fn text(status: Status, line: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", &format!("{line}\n"))
    }

    /// Why a request is not answered.
    pub fn refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => Self::text(Status::Malformed, why),
            Refusal::Method => Self::text(Status::NotAllowed, "there is only GET and HEAD here"),
            Refusal::TooLarge => Self::text(Status::TooLarge, "the request is too large"),
            Refusal::Version => Self::text(Status::Version, "there is only HTTP/1.1 here"),
        }
    }

    /// What goes out, all of it or only the head.
    pub fn bytes(&self, is_head: bool) -> &[u8] {
        if is_head {
            &self.bytes[..self.head]
        } else {
            &self.bytes
        }
    }
}

/// What stands between `<style>` and `</style>`.
macro_rules! style {
    () => {
        include_str!("page/page.css")
    };
}

/// What stands between `<script>` and `</script>`, in the order in which data flows.
macro_rules! script {
    () => {
        concat!(
            "\"use strict\";\n",
            include_str!("page/poll.js"),
            include_str!("page/history.js"),
            include_str!("page/show.js"),
            include_str!("page/tables.js"),
            include_str!("page/chart.js"),
            include_str!("page/format.js"),
            "start();\n",
        )
    };
}

const PAGE: &str = concat!(
    "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>conserver</title>\n",
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

/// The page.
pub(super) fn page() -> Answer {
    Answer::with_policy(Status::Ok, "text/html; charset=utf-8", &POLICY, PAGE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_http_and_its_head_is_its_beginning() {
        let answer = Answer::text(Status::NotAllowed, "no");
        let text = std::str::from_utf8(answer.bytes(false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 405 Method Not Allowed\r\nDate: "));
        assert!(text.ends_with("\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\nno\n"));
        let head = std::str::from_utf8(answer.bytes(true)).unwrap();
        assert_eq!(Some(head), text.strip_suffix("no\n"));
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut headers);
        assert!(parsed.parse(answer.bytes(true)).unwrap().is_complete());
        let length = parsed.headers.iter().find(|h| h.name == "Content-Length");
        assert_eq!(length.unwrap().value, b"3");
    }
}
