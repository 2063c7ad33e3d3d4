//! From the bytes that somebody has sent to a request, or to why it is none.

use httparse::{EMPTY_HEADER, Header, Status as Parsed};

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
}
