//! Reads a request from a client, or finds out why it is refused. [`AllowedHosts`] says who may be asked.
//!
//! A request is a GET or HEAD without a body, or, where the monitor may act, a POST below [`ACTIONS`] with a short
//! body of a length that it tells.
//!
//! A page from elsewhere can make a browser ask the monitor by a name of its own that resolves to this machine,
//! and read the response ("DNS rebinding"). So the `Host` must be one of the monitor's names. Addresses are fine:
//! no name is behind them that could be made to resolve here.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr};

use httparse::{EMPTY_HEADER, Header, Status as Parsed};

use crate::secret::Secret;
use crate::settings::{HttpAddress, Settings};

/// The most bytes of a request's head.
const LONGEST: usize = 8 * 1024;

/// The most bytes of its body.
const LONGEST_BODY: usize = 4 * 1024;

/// What the paths of actions begin with.
pub(super) const ACTIONS: &str = "/actions/";

/// The most headers of a request; browsers send about twenty.
const MOST_HEADERS: usize = 64;

/// How many bytes are parsed with each read, so that what is not HTTP is refused at once. A longer request is
/// parsed only when it may be complete: a client that sends byte by byte must not cost more.
const EAGER: usize = 256;

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpRequest {
    /// Without the query.
    pub path: String,
    /// The host, port included; HTTP/1.0 does not require one.
    pub host: Option<String>,
    /// Whether the method is HEAD.
    pub is_head: bool,
    /// The `Accept` headers; empty if there are none.
    pub accept: String,
    /// What a POST has besides; `None` for GET and HEAD.
    pub post: Option<Box<Post>>,
}

/// What only a POST has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Post {
    /// `Origin`: the page that a browser is asked by.
    pub origin: Option<String>,
    /// `Sec-Fetch-Site`: what that page is to this one, in the browser's words.
    pub fetch_site: Option<String>,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `Authorization`
    pub authorization: Option<Secret>,
    /// `Idempotency-Key`: no two requests have the same.
    pub key: Option<String>,
    /// What has arrived of the body: all of it, once the request is received.
    pub body: Vec<u8>,
    /// How many bytes of the body have not arrived.
    missing: usize,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestError {
    /// Not HTTP, or not valid; says why.
    Malformed(&'static str),
    /// Neither GET nor HEAD, nor a POST where one is taken.
    Method,
    /// Too many bytes or headers.
    TooLarge,
    /// A POST that does not tell the length of its body.
    NoLength,
    /// A body of too many bytes.
    BodyTooLarge,
    /// Not HTTP/1.
    Version,
    /// Incomplete at the deadline.
    TooSlow,
}

/// Reads a request from a client until the deadline of `stream`; `None` if the client has gone, or sent nothing.
/// `may_act` says whether a POST is taken.
pub(super) fn receive(
    stream: &mut impl Read,
    may_act: bool,
) -> Option<Result<HttpRequest, RequestError>> {
    let mut bytes = [0; LONGEST];
    let mut length = 0;
    let mut request = loop {
        let before = length;
        match read_some(stream, &mut bytes[length..]) {
            Ok(0) => return None,
            Ok(count) => length += count,
            Err(error) if is_timeout(&error) && length > 0 => {
                return Some(Err(RequestError::TooSlow));
            }
            Err(_) => return None,
        }
        if is_worth_parsing(&bytes[..length], before)
            && let Some(parsed) = parse(&bytes[..length], may_act)
        {
            match parsed {
                Ok(request) => break request,
                Err(error) => return Some(Err(error)),
            }
        }
    };
    if let Some(post) = &mut request.post {
        while post.missing > 0 {
            match read_some(stream, &mut bytes[..post.missing.min(LONGEST)]) {
                Ok(0) => return None,
                Ok(count) => {
                    post.body.extend_from_slice(&bytes[..count]);
                    post.missing -= count;
                }
                Err(error) if is_timeout(&error) => return Some(Err(RequestError::TooSlow)),
                Err(_) => return None,
            }
        }
    }
    Some(Ok(request))
}

fn read_some(stream: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(room) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    // A socket's own limit is the former.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Whether a request of which `before` bytes were known may be complete, or may be seen to be invalid.
fn is_worth_parsing(bytes: &[u8], before: usize) -> bool {
    let new = &bytes[before.saturating_sub(3)..];
    let ends = |line_end: &[u8]| new.windows(line_end.len()).any(|part| part == line_end);
    before <= EAGER || bytes.len() == LONGEST || ends(b"\n\r\n") || ends(b"\n\n")
}

/// Parses the bytes so far; `None` if the head is incomplete.
fn parse(bytes: &[u8], may_act: bool) -> Option<Result<HttpRequest, RequestError>> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let refusal = match parsed.parse(bytes) {
        Ok(Parsed::Complete(head)) => return Some(understand(&parsed, &bytes[head..], may_act)),
        Ok(Parsed::Partial) if bytes.len() < LONGEST => return None,
        Ok(Parsed::Partial) | Err(httparse::Error::TooManyHeaders) => RequestError::TooLarge,
        Err(httparse::Error::Version) => RequestError::Version,
        Err(_) => RequestError::Malformed("this is not an HTTP request"),
    };
    Some(Err(refusal))
}

/// `rest` is what has arrived after the head.
fn understand(
    parsed: &httparse::Request<'_, '_>,
    rest: &[u8],
    may_act: bool,
) -> Result<HttpRequest, RequestError> {
    let target = parsed.path.unwrap_or_default();
    let (is_head, is_post) = match parsed.method {
        Some("GET") => (false, false),
        Some("HEAD") => (true, false),
        Some("POST") if may_act && path(target).starts_with(ACTIONS) => (false, true),
        _ => return Err(RequestError::Method),
    };
    if !is_post && has_body(parsed.headers) {
        return Err(RequestError::Malformed("a request must have no body"));
    }
    let host = single(parsed.headers, "host")?;
    if host.is_none() && parsed.version != Some(0) {
        return Err(RequestError::Malformed("there is no Host header"));
    }
    if !path(target).starts_with('/') {
        return Err(RequestError::Malformed(
            "the path does not begin with a slash",
        ));
    }
    let post = is_post.then(|| Post::understand(parsed.headers, rest));
    Ok(HttpRequest {
        path: path(target).to_owned(),
        // The form for a proxy: its host overrides the header.
        host: proxied(target).map_or(host, |(host, _)| Some(host.to_owned())),
        is_head,
        accept: accept(parsed.headers),
        post: post.transpose()?.map(Box::new),
    })
}

/// The path of a target, without the query.
fn path(target: &str) -> &str {
    let path = proxied(target).map_or(target, |(_, path)| path);
    path.split('?').next().unwrap_or_default()
}

/// Host and path of a target in the form for a proxy.
fn proxied(target: &str) -> Option<(&str, &str)> {
    let rest = target.strip_prefix("http://")?;
    Some(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

impl Post {
    fn understand(headers: &[Header<'_>], rest: &[u8]) -> Result<Self, RequestError> {
        if values(headers, "transfer-encoding").next().is_some() {
            return Err(RequestError::NoLength);
        }
        let length = single(headers, "content-length")?.ok_or(RequestError::NoLength)?;
        if !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(RequestError::Malformed("the Content-Length is no number"));
        }
        let length: usize = match length.parse() {
            Ok(length) if length <= LONGEST_BODY => length,
            _ => return Err(RequestError::BodyTooLarge),
        };
        let body = rest[..length.min(rest.len())].to_vec();
        Ok(Self {
            origin: single(headers, "origin")?,
            fetch_site: single(headers, "sec-fetch-site")?,
            content_type: single(headers, "content-type")?,
            authorization: single(headers, "authorization")?.map(Secret::new),
            key: single(headers, "idempotency-key")?,
            missing: length - body.len(),
            body,
        })
    }
}

fn values<'a>(headers: &'a [Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let named = move |header: &&Header<'_>| header.name.eq_ignore_ascii_case(name);
    headers.iter().filter(named).map(|header| header.value)
}

fn has_body(headers: &[Header<'_>]) -> bool {
    let says_so = |value: &[u8]| value.trim_ascii() != b"0";
    values(headers, "content-length").any(says_so)
        || values(headers, "transfer-encoding").next().is_some()
}

/// The value of a header that must not come twice.
fn single(headers: &[Header<'_>], name: &'static str) -> Result<Option<String>, RequestError> {
    let mut found = values(headers, name);
    let (value, another) = (found.next(), found.next());
    if another.is_some() {
        return Err(RequestError::Malformed(
            "there is more than one header of a kind that may come once",
        ));
    }
    let text = value.map(|value| std::str::from_utf8(value.trim_ascii()).map(str::to_owned));
    text.transpose()
        .map_err(|_| RequestError::Malformed("a header is not UTF-8"))
}

fn accept(headers: &[Header<'_>]) -> String {
    let lines: Vec<&[u8]> = values(headers, "accept").collect();
    String::from_utf8_lossy(&lines.join(&b","[..])).into_owned()
}

/// The names under which the monitor may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AllowedHosts {
    is_any: bool,
    names: Vec<String>,
}

impl AllowedHosts {
    /// Those of the settings, the host name, and `localhost`.
    pub fn of(settings: &Settings) -> Self {
        let machine = nix::unistd::gethostname().unwrap_or_default();
        let mut names = settings.http_hosts.clone();
        names.push("localhost".to_owned());
        names.push(machine.to_string_lossy().to_ascii_lowercase());
        if let HttpAddress::Tcp { host, .. } = &settings.http {
            names.push(host.to_ascii_lowercase());
        }
        // No browser connects to a Unix socket.
        let is_unix = matches!(settings.http, HttpAddress::Unix(_));
        Self {
            is_any: is_unix || names.iter().any(|name| name == "*"),
            names,
        }
    }

    /// Whether a request with this `Host` header is answered.
    pub fn accept(&self, header: &str) -> bool {
        if self.is_any {
            return true;
        }
        match parse_host(header) {
            Some(HostHeader::Address) => true,
            Some(HostHeader::Name(name)) => self
                .names
                .iter()
                .any(|ours| ours.eq_ignore_ascii_case(name)),
            None => false,
        }
    }
}

enum HostHeader<'a> {
    Address,
    Name(&'a str),
}

/// Parses a `Host` header, without its port; `None` if it is invalid.
fn parse_host(header: &str) -> Option<HostHeader<'_>> {
    let is_port = |rest: &str| {
        let port = rest.strip_prefix(':');
        rest.is_empty() || port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
    };
    if let Some(rest) = header.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_good = address.parse::<Ipv6Addr>().is_ok() && is_port(port);
        return is_good.then_some(HostHeader::Address);
    }
    let (name, port) = header.split_at(header.find(':').unwrap_or(header.len()));
    if !is_port(port) {
        return None;
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        return Some(HostHeader::Address);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then_some(HostHeader::Name(name))
}

/// A POST to this path with these headers.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn of_test(path: &str, headers: &str, body: &str) -> HttpRequest {
    let length = body.len();
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: a:1\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    parse(text.as_bytes(), true).unwrap().unwrap()
}

/// What a fuzzer runs on requests to the monitor.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(in crate::monitor) mod fuzz {
    use super::*;
    use crate::monitor::server::exposition::ExpositionFormat;
    use crate::monitor::server::response::Response;
    use crate::monitor::server::{Endpoint, list_of_endpoints};

    /// The bytes that somebody has sent, all at once and bit by bit.
    pub fn request(data: &[u8]) {
        let head = |data: &[u8]| {
            let mut parsed = parse(data, true);
            // The body arrives later.
            if let Some(Ok(request)) = &mut parsed
                && let Some(post) = &mut request.post
            {
                assert!(post.body.len() + post.missing <= LONGEST_BODY);
                post.missing += post.body.len();
                post.body.clear();
            }
            parsed
        };
        let whole = head(data);
        match &whole {
            None => assert!(data.len() < LONGEST),
            Some(Ok(request)) => understood(request, data.len()),
            Some(Err(refusal)) => {
                let response = Response::refusal(*refusal);
                let head = response.bytes(true);
                assert!(head.starts_with(b"HTTP/1.1 ") && head.ends_with(b"\r\n\r\n"));
            }
        }
        // What is refused or complete stays so when more arrives.
        let step = (data.len() / 64).max(1);
        for end in (0..data.len()).step_by(step) {
            match (head(&data[..end]), &whole) {
                (None, _) => {}
                (Some(Ok(early)), late) => assert_eq!(Some(&Ok(early)), late.as_ref()),
                (Some(Err(RequestError::TooLarge)), _) => {}
                (Some(Err(_)), late) => assert!(matches!(late, Some(Err(_))), "{late:?}"),
            }
        }
    }

    fn understood(request: &HttpRequest, sent: usize) {
        let path = &request.path;
        assert!(path.starts_with('/') && !path.contains('?'), "{path:?}");
        assert!(!path.chars().any(char::is_control), "{path:?}");
        let host = request.host.as_deref().unwrap_or_default();
        // A byte that is not UTF-8 becomes a character of three bytes.
        assert!(path.len() + host.len() + request.accept.len() <= 3 * sent);
        if Endpoint::at(path).is_none() {
            assert!(list_of_endpoints().bytes(false).len() < 4096);
        }
        let _ = ExpositionFormat::for_accept(&request.accept);
        thread_local! {
            static ALLOWED: AllowedHosts = AllowedHosts::of(&Settings::from_lookup(&|name| {
                (name == "CONSERVER_HTTP_HOSTS").then(|| "watch.example.org".into())
            }).unwrap());
        }
        // No other name is accepted, whoever makes it resolve here.
        let is_let_in = ALLOWED.with(|hosts| hosts.accept(host));
        assert!(
            !is_let_in || !host.to_ascii_lowercase().contains("evil"),
            "{host:?}"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;

    use proptest::prelude::*;

    use super::*;

    fn get(path: &str, host: Option<&str>) -> HttpRequest {
        HttpRequest {
            path: path.to_owned(),
            host: host.map(str::to_owned),
            is_head: false,
            accept: String::new(),
            post: None,
        }
    }

    fn parse(bytes: &[u8]) -> Option<Result<HttpRequest, RequestError>> {
        super::parse(bytes, false)
    }

    fn receive(stream: &mut impl Read) -> Option<Result<HttpRequest, RequestError>> {
        super::receive(stream, true)
    }

    #[test]
    fn requests_are_understood() {
        for (text, expected) in [
            (
                "GET /status?x=1#y HTTP/1.1\r\nHost: a:1\r\n\r\n",
                get("/status", Some("a:1")),
            ),
            (
                "\r\nGET / HTTP/1.1\nhost:  b \nContent-Length: 0\n\n",
                get("/", Some("b")),
            ),
            ("GET / HTTP/1.0\r\n\r\n", get("/", None)),
            (
                "GET http://c:2/x HTTP/1.1\r\nHost: a\r\n\r\n",
                get("/x", Some("c:2")),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\n\r\n",
                get("/", Some("a")),
            ),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(Ok(expected)), "{text:?}");
        }
        let head = parse(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert!(head.is_head);
        let two = parse(b"GET / HTTP/1.0\r\nAccept: a/b\r\naccept: c/\xff\r\n\r\n");
        assert_eq!(two.unwrap().unwrap().accept, "a/b,c/\u{fffd}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let malformed = |text: &[u8]| matches!(parse(text), Some(Err(RequestError::Malformed(_))));
        for text in [
            &b"\x16\x03\x01\x02\x00\x01\x00"[..],
            b"\0\0\0\0",
            b"GET /\r\n\r\n",
            b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET http://c HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        ] {
            assert!(malformed(text), "{:?}", String::from_utf8_lossy(text));
        }
        let refused = |text: &[u8]| parse(text).and_then(Result::err);
        let post = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(refused(post), Some(RequestError::Method));
        for text in [
            &b"GET / HTTP/1.2\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(refused(text), Some(RequestError::Version));
        }
    }

    #[test]
    fn a_post_is_taken_for_actions_alone_and_with_a_short_body() {
        let post = |path: &str, headers: &str, body: &str| {
            let text = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
            receive(&mut Sends(
                text.as_bytes().chunks(7).collect(),
                ErrorKind::TimedOut,
            ))
        };
        let headers = "Content-Length: 2\r\nOrigin: http://a\r\nAuthorization: Bearer x\r\n\
                       Content-Type: application/json\r\nIdempotency-Key: k\r\n";
        let request = post("/actions/x?y", headers, "{}{}").unwrap().unwrap();
        let taken = *request.post.unwrap();
        assert_eq!((&*request.path, &*taken.body), ("/actions/x", &b"{}"[..]));
        assert_eq!(taken.origin.as_deref(), Some("http://a"));
        assert_eq!(taken.key.as_deref(), Some("k"));
        assert_eq!(taken.authorization.unwrap().reveal(), "Bearer x");
        let refused = |path: &str, headers: &str| post(path, headers, "").and_then(Result::err);
        let length = |length: usize| format!("Content-Length: {length}\r\n");
        for (path, headers, error) in [
            ("/status", length(2), RequestError::Method),
            ("/actionsx", length(2), RequestError::Method),
            ("/actions/x", String::new(), RequestError::NoLength),
            (
                "/actions/x",
                "Transfer-Encoding: chunked\r\n".to_owned(),
                RequestError::NoLength,
            ),
            (
                "/actions/x",
                length(LONGEST_BODY + 1),
                RequestError::BodyTooLarge,
            ),
            ("/actions/x", length(usize::MAX), RequestError::BodyTooLarge),
            // The rest never comes.
            ("/actions/x", length(2), RequestError::TooSlow),
        ] {
            assert_eq!(refused(path, &headers), Some(error), "{path} {headers}");
        }
        for twice in [
            "Content-Length: 2\r\n",
            "Origin: b\r\n",
            "Authorization: c\r\n",
        ] {
            let headers = headers.to_owned() + twice;
            let error = refused("/actions/x", &headers);
            assert!(matches!(error, Some(RequestError::Malformed(_))), "{twice}");
        }
    }

    /// What a client sends, a chunk with each read, before it goes, or falls silent until the deadline.
    struct Sends<'a>(Vec<&'a [u8]>, ErrorKind);

    impl Read for Sends<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(self.1.into());
            }
            let (now, later) = self.0[0].split_at(self.0[0].len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.0[0] = later;
            self.0.retain(|chunk| !chunk.is_empty());
            Ok(now.len())
        }
    }

    #[test]
    fn a_request_may_come_byte_by_byte() {
        let filler = "a".repeat(2 * EAGER);
        let text = format!("GET /x HTTP/1.1\r\nHost: a\r\nFiller: {filler}\r\n\r\n");
        let mut bytes = Sends(text.as_bytes().chunks(1).collect(), ErrorKind::TimedOut);
        assert_eq!(receive(&mut bytes), Some(Ok(get("/x", Some("a")))));
    }

    #[test]
    fn what_is_not_a_request_is_refused_without_waiting_for_more() {
        for bytes in [&b"\x16\x03\x01"[..], &[0; 2 * EAGER]] {
            let received = receive(&mut Sends(vec![bytes], ErrorKind::TimedOut));
            assert!(matches!(received, Some(Err(RequestError::Malformed(_)))));
        }
        let endless = [b'a'; LONGEST];
        let chunks = vec![&b"GET / HTTP/1.1\r\nFiller: "[..], &endless];
        let received = receive(&mut Sends(chunks, ErrorKind::TimedOut));
        assert_eq!(received, Some(Err(RequestError::TooLarge)));
    }

    #[test]
    fn a_client_that_is_too_slow_is_told_so_and_a_silent_one_is_not() {
        for kind in [ErrorKind::WouldBlock, ErrorKind::TimedOut] {
            let received = receive(&mut Sends(vec![b"GET /"], kind));
            assert_eq!(received, Some(Err(RequestError::TooSlow)));
            assert_eq!(receive(&mut Sends(vec![], kind)), None);
        }
        let reset = receive(&mut Sends(vec![b"GET /"], ErrorKind::ConnectionReset));
        assert_eq!(reset, None);
        assert_eq!(receive(&mut &b"GET /"[..]), None);
    }

    #[test]
    fn a_request_has_a_longest_length_and_a_greatest_number_of_headers() {
        let mut text = b"GET /".to_vec();
        text.resize(LONGEST - 1, b'a');
        assert_eq!(parse(&text), None);
        text.push(b'a');
        assert_eq!(parse(&text), Some(Err(RequestError::TooLarge)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(parse(many.as_bytes()), Some(Err(RequestError::TooLarge)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST * 2)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn whatever_looks_like_a_request_is_read(
            text in r"(GET|HEAD|POST|P\PC{0,9}) (/|http://|\*)\PC{0,20} HTTP/[0-2](\.[0-2])?\r?\n(([Hh]ost|[Cc]ontent-[Ll]ength|\PC{1,8}): ?\PC{0,20}\r?\n){0,80}\r?\n",
        ) {
            if let Some(Ok(request)) = parse(text.as_bytes()) {
                prop_assert!(request.path.starts_with('/') && !request.path.contains('?'));
            }
        }

        #[test]
        fn what_is_refused_at_once_is_not_understood_later(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            more in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Some(Err(RequestError::Malformed(_))) = parse(&bytes) {
                prop_assert!(matches!(parse(&[bytes, more].concat()), Some(Err(_))));
            }
        }
    }

    fn hosts(http: &str, names: &str) -> AllowedHosts {
        let settings = Settings::from_lookup(&|name| match name {
            "CONSERVER_HTTP" => Some(OsString::from(http)),
            "CONSERVER_HTTP_HOSTS" => Some(OsString::from(names)),
            _ => None,
        });
        AllowedHosts::of(&settings.unwrap())
    }

    #[test]
    fn addresses_and_the_monitors_own_names_are_accepted() {
        let hosts = hosts("Bound.example:80", "given.example");
        for header in [
            "127.0.0.1",
            "10.1.2.3:9180",
            "[::1]",
            "[fe80::1]:9180",
            "localhost",
            "LocalHost:9180",
            "localhost.",
            "bound.example",
            "given.example:1",
        ] {
            assert!(hosts.accept(header), "{header}");
        }
        let machine = nix::unistd::gethostname().unwrap();
        assert!(hosts.accept(&machine.to_string_lossy()));
        for header in [
            "",
            ".",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80:80",
            "127.0.0.1:x",
            "[::1",
            "[::1]x",
            "[localhost]",
            "localhost/",
            "localhost@evil.example",
        ] {
            assert!(!hosts.accept(header), "{header}");
        }
    }

    #[test]
    fn a_star_and_a_unix_socket_accept_any_name() {
        assert!(hosts("127.0.0.1:1", "a,*").accept("evil.example"));
        assert!(hosts("unix:/run/http.sock", "").accept("evil.example"));
        assert!(!hosts("127.0.0.1:1", "a").accept("evil.example"));
    }

    proptest! {
        #[test]
        fn any_header_is_judged(header in any::<String>()) {
            let accepted = hosts("127.0.0.1:1", "").accept(&header);
            prop_assert!(!accepted || header.is_ascii());
        }
    }
}
