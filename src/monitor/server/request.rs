//! From the bytes that a client sends to a request, or to why it is refused.
//!
//! A page from elsewhere can make a browser ask the monitor by a name of its own that resolves to this machine,
//! and read the response ("DNS rebinding"). So the `Host` must be one of the monitor's names. Addresses are fine:
//! no name is behind them that could be made to resolve here.

use std::net::{Ipv4Addr, Ipv6Addr};

use httparse::{EMPTY_HEADER, Header, Status as Parsed};

use crate::settings::{HttpAddress, Settings};

/// The most bytes that a request may have.
pub(super) const LONGEST: usize = 8 * 1024;

/// The most headers of one; browsers send about twenty.
const MOST_HEADERS: usize = 64;

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// Without the query.
    pub path: String,
    /// As whom we are asked, port included; before HTTP/1.1 that need not be said.
    pub host: Option<String>,
    /// Whether only the head of the answer is wanted.
    pub is_head: bool,
    /// The formats that are wanted; empty where that is not said.
    pub accept: String,
}

/// Why there is no answer but an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no HTTP, or not as it should be.
    Malformed(&'static str),
    /// Something else than GET or HEAD.
    Method,
    /// Too many bytes or headers.
    TooLarge,
    /// Not HTTP/1.
    Version,
}

/// Reads what has come so far; `None` where more is to come.
pub(super) fn read(bytes: &[u8]) -> Option<Result<Request, Refusal>> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let refusal = match parsed.parse(bytes) {
        Ok(Parsed::Complete(_)) => return Some(understand(&parsed)),
        Ok(Parsed::Partial) if bytes.len() < LONGEST => return None,
        Ok(Parsed::Partial) | Err(httparse::Error::TooManyHeaders) => Refusal::TooLarge,
        Err(httparse::Error::Version) => Refusal::Version,
        Err(_) => Refusal::Malformed("this is no HTTP request"),
    };
    Some(Err(refusal))
}

fn understand(parsed: &httparse::Request<'_, '_>) -> Result<Request, Refusal> {
    let is_head = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Refusal::Method),
    };
    if has_body(parsed.headers) {
        return Err(Refusal::Malformed("a request has no body here"));
    }
    let host = host(parsed.headers)?;
    if host.is_none() && parsed.version != Some(0) {
        return Err(Refusal::Malformed("there is no Host header"));
    }
    let target = parsed.path.unwrap_or_default();
    let (host, path) = match target.strip_prefix("http://") {
        // Meant for a proxy: what it names counts more than the header.
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(rest[..end].to_owned()), &rest[end..])
        }
        None => (host, target),
    };
    let path = path.split('?').next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(Refusal::Malformed("the path does not begin with a slash"));
    }
    Ok(Request {
        path: path.to_owned(),
        host,
        is_head,
        accept: accept(parsed.headers),
    })
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

fn host(headers: &[Header<'_>]) -> Result<Option<String>, Refusal> {
    let mut hosts = values(headers, "host");
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(Refusal::Malformed("there is more than one Host header"));
    }
    let text = host.map(|host| std::str::from_utf8(host.trim_ascii()).map(str::to_owned));
    text.transpose()
        .map_err(|_| Refusal::Malformed("the Host header is no text"))
}

fn accept(headers: &[Header<'_>]) -> String {
    let lines: Vec<&[u8]> = values(headers, "accept").collect();
    String::from_utf8_lossy(&lines.join(&b","[..])).into_owned()
}

/// The names that are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hosts {
    is_any: bool,
    names: Vec<String>,
}

impl Hosts {
    /// As the settings say.
    pub fn of(settings: &Settings) -> Self {
        let machine = nix::unistd::gethostname().unwrap_or_default();
        let mut names = settings.http_hosts.clone();
        names.push("localhost".to_owned());
        names.push(machine.to_string_lossy().to_ascii_lowercase());
        if let HttpAddress::Tcp { host, .. } = &settings.http {
            names.push(host.to_ascii_lowercase());
        }
        // No browser comes to a Unix socket.
        let is_unix = matches!(settings.http, HttpAddress::Unix(_));
        Self {
            is_any: is_unix || names.iter().any(|name| name == "*"),
            names,
        }
    }

    /// Whether we may be asked by this `Host` header.
    pub fn accept(&self, header: &str) -> bool {
        if self.is_any {
            return true;
        }
        match name_of(header) {
            Some(Name::Address) => true,
            Some(Name::Words(name)) => self
                .names
                .iter()
                .any(|ours| ours.eq_ignore_ascii_case(name)),
            None => false,
        }
    }
}

enum Name<'a> {
    Address,
    Words(&'a str),
}

/// What a `Host` header names, without its port; nothing where it is none.
fn name_of(header: &str) -> Option<Name<'_>> {
    let is_port = |rest: &str| {
        let port = rest.strip_prefix(':');
        rest.is_empty() || port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
    };
    if let Some(rest) = header.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_good = address.parse::<Ipv6Addr>().is_ok() && is_port(port);
        return is_good.then_some(Name::Address);
    }
    let (name, port) = header.split_at(header.find(':').unwrap_or(header.len()));
    if !is_port(port) {
        return None;
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        return Some(Name::Address);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then_some(Name::Words(name))
}

/// What a fuzzer runs on requests to the monitor.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(in crate::monitor) mod fuzz {
    use super::*;
    use crate::monitor::server::metrics::ExpositionFormat;
    use crate::monitor::server::response::Answer;
    use crate::monitor::server::routes;

    /// The bytes that somebody has sent, all at once and bit by bit.
    pub fn request(data: &[u8]) {
        let whole = read(data);
        match &whole {
            None => assert!(data.len() < LONGEST),
            Some(Ok(request)) => understood(request, data.len()),
            Some(Err(refusal)) => {
                let answer = Answer::refusal(*refusal);
                let head = answer.bytes(true);
                assert!(head.starts_with(b"HTTP/1.1 ") && head.ends_with(b"\r\n\r\n"));
            }
        }
        // What has been answered once is not answered otherwise when more has come.
        let step = (data.len() / 64).max(1);
        for end in (0..data.len()).step_by(step) {
            match (read(&data[..end]), &whole) {
                (None, _) => {}
                (Some(Ok(early)), late) => assert_eq!(Some(&Ok(early)), late.as_ref()),
                (Some(Err(Refusal::TooLarge)), _) => {}
                (Some(Err(_)), late) => assert!(matches!(late, Some(Err(_))), "{late:?}"),
            }
        }
    }

    fn understood(request: &Request, sent: usize) {
        let path = &request.path;
        assert!(path.starts_with('/') && !path.contains('?'), "{path:?}");
        assert!(!path.chars().any(char::is_control), "{path:?}");
        let host = request.host.as_deref().unwrap_or_default();
        // A byte that is no text becomes a character of three.
        assert!(path.len() + host.len() + request.accept.len() <= 3 * sent);
        if routes::find(path).is_none() {
            let none = routes::none();
            assert!(none.bytes(false).len() < 4096);
        }
        let _ = ExpositionFormat::for_accept(&request.accept);
        thread_local! {
            static HOSTS: Hosts = Hosts::of(&Settings::from_lookup(&|name| {
                (name == "CONSERVER_HTTP_HOSTS").then(|| "watch.example.org".into())
            }).unwrap());
        }
        // Names that are not ours are nobody's who points them here.
        let is_let_in = HOSTS.with(|hosts| hosts.accept(host));
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

    fn get(path: &str, host: Option<&str>) -> Request {
        Request {
            path: path.to_owned(),
            host: host.map(str::to_owned),
            is_head: false,
            accept: String::new(),
        }
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
            assert_eq!(read(text.as_bytes()), Some(Ok(expected)), "{text:?}");
        }
        let head = read(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert!(head.is_head);
        let two = read(b"GET / HTTP/1.0\r\nAccept: a/b\r\naccept: c/\xff\r\n\r\n");
        assert_eq!(two.unwrap().unwrap().accept, "a/b,c/\u{fffd}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let malformed = |text: &[u8]| matches!(read(text), Some(Err(Refusal::Malformed(_))));
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
        let refused = |text: &[u8]| read(text).and_then(Result::err);
        let post = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(refused(post), Some(Refusal::Method));
        for text in [
            &b"GET / HTTP/1.2\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(refused(text), Some(Refusal::Version));
        }
    }

    #[test]
    fn a_request_has_a_longest_length_and_a_greatest_number_of_headers() {
        let mut text = b"GET /".to_vec();
        text.resize(LONGEST - 1, b'a');
        assert_eq!(read(&text), None);
        text.push(b'a');
        assert_eq!(read(&text), Some(Err(Refusal::TooLarge)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(read(many.as_bytes()), Some(Err(Refusal::TooLarge)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST * 2)) {
            let _ = read(&bytes);
        }

        #[test]
        fn whatever_looks_like_a_request_is_read(
            text in r"(GET|HEAD|POST|P\PC{0,9}) (/|http://|\*)\PC{0,20} HTTP/[0-2](\.[0-2])?\r?\n(([Hh]ost|[Cc]ontent-[Ll]ength|\PC{1,8}): ?\PC{0,20}\r?\n){0,80}\r?\n",
        ) {
            if let Some(Ok(request)) = read(text.as_bytes()) {
                prop_assert!(request.path.starts_with('/') && !request.path.contains('?'));
            }
        }

        #[test]
        fn what_is_refused_at_once_is_not_understood_later(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            more in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Some(Err(Refusal::Malformed(_))) = read(&bytes) {
                prop_assert!(matches!(read(&[bytes, more].concat()), Some(Err(_))));
            }
        }
    }

    fn hosts(http: &str, names: &str) -> Hosts {
        let settings = Settings::from_lookup(&|name| match name {
            "CONSERVER_HTTP" => Some(OsString::from(http)),
            "CONSERVER_HTTP_HOSTS" => Some(OsString::from(names)),
            _ => None,
        });
        Hosts::of(&settings.unwrap())
    }

    #[test]
    fn addresses_and_names_of_ours_are_accepted() {
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
