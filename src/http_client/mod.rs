//! The HTTP client that links and storages share: checked URLs, one kind of agent, time limits.
//!
//! Knows nothing of vCons. The module `status` has the table of what a status, or no answer, means for
//! trying again. Messages name a URL without its user, password and query.

mod exchange;
mod multipart;
mod public;
mod status;
mod tcp;

use std::fmt;
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::uri::Scheme;
use ureq::http::{HeaderMap, HeaderValue, Method, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, Body};

pub use exchange::{Answer, exchange, exchange_once, retry_after, retry_after_in};
pub use multipart::Form;
pub use public::{Fetched, Fetcher};

use crate::deadline::Limit;
use crate::failure::Failure;

/// How long connecting to one address may take in [`reach`].
const REACH: Duration = Duration::from_secs(5);

/// The most bytes read of a body that only explains something, like that of an error. The client library
/// has the same limit for the head of an answer.
pub const EXPLANATION: u64 = 64 << 10;

/// A host that moves to another address is found there after this time. Kept connections stay where they
/// are, in any case.
const FRESH: Duration = Duration::from_secs(10);

/// An `http` or `https` URL with a host. Shown without its user, password and query.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(Uri);

/// The error of parsing a [`Url`]. Does not show the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a URL of the form http://host/path or https://host/path")]
pub struct NotAUrl;

impl FromStr for Url {
    type Err = NotAUrl;

    fn from_str(text: &str) -> Result<Self, NotAUrl> {
        let uri: Uri = text.trim().parse().map_err(|_| NotAUrl)?;
        let web = [&Scheme::HTTP, &Scheme::HTTPS]
            .map(Some)
            .contains(&uri.scheme());
        let authority = uri.authority().ok_or(NotAUrl)?;
        let address = authority.as_str().rsplit('@').next().unwrap_or_default();
        let port = address.strip_prefix(authority.host());
        let sound = port == Some("") || authority.port_u16().is_some_and(|port| port > 0);
        if web && sound && !authority.host().is_empty() {
            Ok(Self(uri))
        } else {
            Err(NotAUrl)
        }
    }
}

impl Url {
    /// The value of `Authorization` for the user and password in the URL, percent-decoded; `None` if it has
    /// none. The client library would send them as they are written.
    pub fn authorization(&self) -> Option<HeaderValue> {
        let (login, _) = self.0.authority()?.as_str().rsplit_once('@')?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let mut decoded: Vec<u8> = percent_decode_str(user).collect();
        decoded.push(b':');
        decoded.extend(percent_decode_str(password));
        let mut value =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(decoded))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The URL with its login and query, to be asked.
    pub fn whole(&self) -> Uri {
        self.0.clone()
    }

    /// The URL of a resource below it; `path` begins with a slash and may have a query. The query of the
    /// URL itself is dropped.
    pub fn below(&self, path: &str) -> Result<Uri, ureq::http::Error> {
        let above = self.0.path().trim_end_matches('/');
        let authority = self
            .0
            .authority()
            .map_or("", |authority| authority.as_str());
        Uri::builder()
            .scheme(self.0.scheme_str().unwrap_or_default())
            .authority(authority)
            .path_and_query(format!("{above}{path}"))
            .build()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme_str().unwrap_or_default();
        write!(f, "{scheme}://{}", self.0.host().unwrap_or_default())?;
        if let Some(port) = self.0.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

/// The authorities whose certificates are accepted.
pub enum Trust {
    /// The authorities that the system trusts.
    System,
    /// These authorities.
    Authorities(Vec<CertificateDer<'static>>),
    /// Any certificate is accepted.
    Anyone,
}

/// An agent that keeps its connections, trusts what the system trusts, and follows no redirect: a
/// redirected POST loses its body. Each request brings its own time limit.
pub fn agent() -> Agent {
    agent_that_trusts(&Trust::System)
}

/// The same, with other certificates.
pub fn agent_that_trusts(trust: &Trust) -> Agent {
    agent_with(trust, CachingResolver::default())
}

fn agent_with(trust: &Trust, resolver: impl Resolver) -> Agent {
    let roots = match trust {
        Trust::System | Trust::Anyone => RootCerts::PlatformVerifier,
        Trust::Authorities(authorities) => {
            let owned = |der: &CertificateDer<'static>| Certificate::from_der(der).to_owned();
            RootCerts::from(authorities.iter().map(owned))
        }
    };
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(roots)
        .disable_verification(matches!(trust, Trust::Anyone))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("conserver/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::with_parts(config, tcp::connector(), resolver)
}

/// Looks names up, and remembers the last one for [`FRESH`].
///
/// The client library looks a name up before it looks for a connection that it has kept: without this,
/// each request would cost a lookup in the DNS and, as that has a time limit, a thread.
#[derive(Debug, Default)]
struct CachingResolver {
    resolver: DefaultResolver,
    last: Mutex<Option<Lookup>>,
}

#[derive(Debug)]
struct Lookup {
    /// Without a user and password.
    host_and_port: String,
    at: Instant,
    addresses: ResolvedSocketAddrs,
}

impl CachingResolver {
    fn remembered(&self, host_and_port: &str) -> Option<ResolvedSocketAddrs> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = last.as_ref()?;
        (found.host_and_port == host_and_port && found.at.elapsed() < FRESH)
            .then(|| self.copy(&found.addresses))
    }

    fn copy(&self, addresses: &ResolvedSocketAddrs) -> ResolvedSocketAddrs {
        let mut copy = self.empty();
        addresses.iter().for_each(|address| copy.push(*address));
        copy
    }
}

impl Resolver for CachingResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.scheme().zip(uri.authority());
        let host_and_port =
            authority.and_then(|(scheme, at)| DefaultResolver::host_and_port(scheme, at));
        let known = host_and_port.as_ref().and_then(|it| self.remembered(it));
        if let Some(addresses) = known {
            return Ok(addresses);
        }
        let addresses = self.resolver.resolve(uri, config, timeout)?;
        let found = host_and_port.map(|host_and_port| Lookup {
            host_and_port,
            at: Instant::now(),
            addresses: self.copy(&addresses),
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(addresses)
    }
}

/// Reads a file of authorities in PEM form: at least one certificate, each of which can be used.
///
/// # Errors
/// What is wrong with the file, with its name.
pub fn read_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = file.display();
    let unreadable = |error| format!("could not read {shown}: {error}");
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|e| format!("{shown} holds a certificate that cannot be used: {e}"))?;
        authorities.push(certificate);
    }
    if authorities.is_empty() {
        return Err(format!("{shown} holds no certificate in PEM form"));
    }
    Ok(authorities)
}

/// Checks that the URL's host accepts a connection, within a few seconds. Sends nothing: the answer to a
/// request that the server does not expect would say little about the others. Behind a proxy, returns
/// `Ok` at once, as only a request could tell.
pub fn reach(agent: &Agent, url: &Url) -> Result<(), Failure> {
    if agent.config().proxy().is_some() {
        return Ok(());
    }
    let failed = |error| Failure::transient(format!("could not connect to {url}: {error}"));
    let host = url.0.host().unwrap_or_default();
    // The resolver takes the address of an IPv6 host without its brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default = if url.0.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    let port = url.0.port_u16().unwrap_or(default);
    let mut fault = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&address, REACH) {
            Ok(_) => return Ok(()),
            Err(error) => fault = error,
        }
    }
    Err(failed(fault))
}

/// Posts JSON within the limit, which covers the answer too. Returns the response if its status is 2xx.
/// A `Content-Type` among the headers replaces `application/json`, and an `Authorization` the login in the URL.
pub fn post(
    agent: &Agent,
    url: &Url,
    headers: &HeaderMap,
    json: &str,
    limit: Limit,
) -> Result<Response<Body>, Failure> {
    taken(url, send_json(agent, url, headers, json, limit)?)
}

/// Posts JSON in the same way. Returns the response whatever its status.
pub fn send_json(
    agent: &Agent,
    url: &Url,
    headers: &HeaderMap,
    json: &str,
    limit: Limit,
) -> Result<Response<Body>, Failure> {
    let mut request = agent.post(url.0.clone());
    if !headers.contains_key(CONTENT_TYPE) {
        request = request.content_type("application/json");
    }
    if !headers.contains_key(AUTHORIZATION)
        && let Some(authorization) = url.authorization()
    {
        request = request.header(AUTHORIZATION, authorization);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.config().timeout_global(Some(limit.left())).build();
    request
        .send(json)
        .map_err(|error| status::no_answer(&Method::POST, url, &error, limit))
}

/// The response, if its status says that the server has taken what was posted to the URL.
pub fn taken(url: &Url, response: Response<Body>) -> Result<Response<Body>, Failure> {
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(status::refused(url, status).until(retry_after(response.headers()))),
    }
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub enum Cut {
    /// It is longer than it may be.
    TooLong,
    /// The connection failed.
    Broken(io::Error),
}

/// Reads at most `most` bytes of a body. If there are more, leaves them unread, and the connection is
/// not used again. Decompresses nothing: no request asks for a compressed answer.
pub fn read(response: &mut Response<Body>, most: u64) -> (Vec<u8>, Option<Cut>) {
    let mut bytes = Vec::new();
    let body = response.body_mut().with_config().limit(u64::MAX).reader();
    let cut = match body.take(most.saturating_add(1)).read_to_end(&mut bytes) {
        Err(error) => Some(Cut::Broken(error)),
        Ok(length) if length as u64 > most => {
            bytes.pop();
            Some(Cut::TooLong)
        }
        Ok(_) => None,
    };
    (bytes, cut)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod tests {
    use super::*;
    use crate::deadline::Deadline;
    use std::fmt::Display;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    /// Answers one connection for each status and returns the requests as they came.
    pub(crate) fn serve(statuses: &[&str]) -> (String, JoinHandle<Vec<String>>) {
        let answers = statuses.iter().map(|&status| (status, String::new()));
        serve_with(answers.collect())
    }

    /// The same, with a body for each answer.
    pub(crate) fn serve_with<S>(answers: Vec<(S, String)>) -> (String, JoinHandle<Vec<String>>)
    where
        S: Display,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = answers.into_iter().map(|(status, body)| {
            let length = body.len();
            format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\
                 Location: /away\r\n\r\n{body}"
            )
        });
        let answers: Vec<String> = answers.collect();
        let server = thread::spawn(move || {
            let answer = |answer: &String| {
                let (mut stream, _) = listener.accept().unwrap();
                let request = request(&mut BufReader::new(&stream));
                stream.write_all(answer.as_bytes()).unwrap();
                request
            };
            answers.iter().map(answer).collect()
        });
        (address, server)
    }

    /// Answers one request without an end: with these lines in its head, then `begin` and `again` and
    /// again, until nobody reads it. Returns how many bytes went out.
    pub(crate) fn flood(
        status: u16,
        lines: &str,
        begin: &str,
        again: &str,
    ) -> (String, JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let head = format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n");
        let again = again.repeat((64 << 10) / again.len());
        let in_chunks = |text: &str| match lines.contains("chunked") {
            true => format!("{:x}\r\n{text}\r\n", text.len()),
            false => text.to_owned(),
        };
        let first = head + &in_chunks(&format!("{begin}{again}"));
        let again = in_chunks(&again);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            request(&mut BufReader::new(&stream));
            let mut sent = first.len();
            stream.write_all(first.as_bytes()).unwrap();
            while sent < FLOOD && stream.write_all(again.as_bytes()).is_ok() {
                sent += again.len();
            }
            sent
        });
        (address, server)
    }

    /// A flood ends here; far less fits into the buffers of a connection.
    pub(crate) const FLOOD: usize = 128 << 20;

    /// The ways in which a body may be sent.
    pub(crate) const FLOODS: [&str; 4] = [
        "Content-Length: 1073741824",
        "Transfer-Encoding: chunked",
        "Content-Encoding: gzip\r\nContent-Length: 1073741824",
        "Connection: close",
    ];

    #[test]
    fn of_a_body_that_is_too_long_no_more_is_read() {
        for lines in FLOODS {
            let (address, server) = flood(200, lines, "", "x");
            let response = agent().get(format!("http://{address}/")).call();
            let (bytes, cut) = read(&mut response.unwrap(), 10_000);
            assert!(bytes == [b'x'; 10_000], "{lines}: {}", bytes.len());
            assert!(matches!(cut, Some(Cut::TooLong)), "{lines}: {cut:?}");
            assert!(server.join().unwrap() < FLOOD, "{lines}");
        }
        for (most, is_cut) in [(3, true), (4, false)] {
            let (address, server) = serve_with(vec![(200, "abcd".to_owned())]);
            let response = agent().get(format!("http://{address}/")).call();
            let (bytes, cut) = read(&mut response.unwrap(), most);
            assert_eq!(bytes, b"abcd"[..most.min(4) as usize]);
            assert_eq!(cut.is_some(), is_cut, "{most}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_head_without_an_end_may_pass() {
        let (address, server) = flood(200, &format!("X: {}", "y".repeat(1 << 20)), "", "y");
        let failure = post_to(&format!("http://{address}/p"), LONG).unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        assert!(server.join().unwrap() < FLOOD);
    }

    /// Reads one request, its head and its body.
    pub(crate) fn request(reader: &mut impl BufRead) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let lines = head.to_lowercase();
        let mut lines = lines.lines();
        let length = lines.find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    pub(super) fn post_to(url: &str, timeout: Duration) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(timeout);
        let url: Url = url.parse().unwrap();
        post(&agent(), &url, &HeaderMap::new(), "{}", limit).map(drop)
    }

    pub(super) const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn only_web_urls_with_a_host_are_urls() {
        for good in [
            "http://h",
            "https://u:p@h.example.com:8443/a?b=c",
            "http://[::1]:80/",
        ] {
            assert!(good.parse::<Url>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "h",
            "/path",
            "ftp://h/",
            "file:///etc/passwd",
            "http://",
            "http://:80/",
            "http:///x",
            "http://h:99999/",
            "http://h:0/",
            "http://h:/",
            "http://a b/",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let url: Url = "https://user:secret@h.example.com:8443/a/b?token=secret"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "https://h.example.com:8443/a/b");
        assert_eq!(format!("{url:?}"), "Url(https://h.example.com:8443/a/b)");
    }

    #[test]
    fn what_is_below_a_url_keeps_its_login_and_loses_its_query() {
        for (url, below) in [
            ("http://h", "http://h/_x?y=z"),
            ("https://u:p@h:9200/es/?a=b", "https://u:p@h:9200/es/_x?y=z"),
        ] {
            let url: Url = url.parse().unwrap();
            assert_eq!(url.below("/_x?y=z").unwrap().to_string(), below);
        }
    }

    #[test]
    fn a_login_in_a_url_is_sent_percent_decoded() {
        for (login, header, expected) in [
            ("us:pa%40ss@", None, Some("us:pa@ss")),
            ("a%3Ab:%C3%A9%25%FF@", None, Some("a:b:\u{e9}%")),
            ("a:b:c@", None, Some("a:b:c")),
            ("us@", None, Some("us:")),
            ("us:pass@", Some("Bearer x"), None),
            ("", None, None),
        ] {
            let (address, server) = serve(&["200 OK"]);
            let url: Url = format!("http://{login}{address}/").parse().unwrap();
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, HeaderValue::from_static(header));
            }
            let limit = Deadline::NONE.begin(LONG);
            post(&agent(), &url, &headers, "{}", limit).unwrap();
            let request = server.join().unwrap().remove(0);
            let sent: Vec<_> = request
                .lines()
                .filter_map(|line| line.split_once(": "))
                .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
                .map(|(_, value)| value.trim())
                .collect();
            match expected {
                Some(expected) => {
                    let [value] = sent[..] else {
                        unreachable!("{sent:?}");
                    };
                    let login = STANDARD.decode(value.strip_prefix("Basic ").unwrap());
                    let login = login.unwrap();
                    let login = String::from_utf8_lossy(&login);
                    assert_eq!(login.trim_end_matches('\u{fffd}'), expected);
                }
                None => assert_eq!(sent, Vec::from_iter(header)),
            }
        }
    }

    #[test]
    fn any_2xx_will_do() {
        for status in ["200 OK", "201 Created", "202 Accepted", "204 No Content"] {
            let (address, server) = serve(&[status]);
            assert_eq!(
                post_to(&format!("http://{address}/"), LONG),
                Ok(()),
                "{status}"
            );
            server.join().unwrap();
        }
    }

    #[test]
    fn a_refused_connection_may_pass() {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let failure = post_to(&format!("http://{address}/p"), LONG).unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("refused"), "{failure}");
    }

    #[test]
    fn reaching_a_server_takes_a_listener_and_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url: Url = format!("http://{address}/p").parse().unwrap();
        assert_eq!(reach(&agent(), &url), Ok(()));
        drop(listener);
        let failure = reach(&agent(), &url).unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("refused"), "{failure}");
    }

    #[test]
    fn a_connection_cut_without_an_answer_may_pass() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || drop(listener.accept().unwrap()));
        let failure = post_to(&format!("http://{address}/p"), LONG).unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        server.join().unwrap();
    }

    #[test]
    fn a_silent_server_may_speak_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let failure =
            post_to(&format!("http://{address}/p"), Duration::from_millis(200)).unwrap_err();
        assert!(failure.is_transient());
        assert!(
            failure.message.contains("no answer within 200ms"),
            "{failure}"
        );
    }

    #[test]
    fn an_unknown_host_may_become_known() {
        let failure = post_to("http://nowhere.invalid/p", LONG).unwrap_err();
        assert!(failure.is_transient(), "{failure}");
    }

    fn look_up(resolver: &CachingResolver, uri: &'static str) -> Vec<String> {
        let found = resolver.resolve(
            &Uri::from_static(uri),
            &Config::default(),
            NextTimeout::default(),
        );
        found.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_last_host_is_remembered_for_a_while_and_no_other_is_taken_for_it() {
        let resolver = CachingResolver::default();
        let first = ["127.0.0.1:80".to_owned()];
        assert_eq!(look_up(&resolver, "http://127.0.0.1/a"), first);
        // Whatever is remembered is taken.
        let elsewhere = "127.0.0.9:80".parse().unwrap();
        let mut addresses = resolver.empty();
        addresses.push(elsewhere);
        resolver.last.lock().unwrap().as_mut().unwrap().addresses = addresses;
        assert_eq!(look_up(&resolver, "http://127.0.0.1/b"), ["127.0.0.9:80"]);
        assert_eq!(look_up(&resolver, "https://127.0.0.1/"), ["127.0.0.1:443"]);
        assert_eq!(look_up(&resolver, "http://127.0.0.1:81/"), ["127.0.0.1:81"]);
        let mut last = resolver.last.lock().unwrap();
        last.as_mut().unwrap().at -= FRESH;
        last.as_mut().unwrap().addresses = resolver.empty();
        drop(last);
        assert_eq!(look_up(&resolver, "http://127.0.0.1:81/"), ["127.0.0.1:81"]);
    }
}
