//! Fetches what a URL from elsewhere leads to: whoever writes a vCon chooses its URLs, and must not reach with
//! them what only this machine can reach.
//!
//! Only `http` and `https` are fetched, and only from addresses of the public internet ([`is_public`]), unless
//! the configuration allows others. The addresses are checked where the connection is made, so that a name
//! cannot lead to one address for the check and to another one for the connection; and for each redirect anew.
//! Behind a proxy, the proxy looks names up and connects: then only addresses that stand in the URL itself, and
//! names of this machine, are refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderMap, Request, Response, StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, Body, Error};
use url::Host;

use super::{Cut, Trust, Url, agent_with, read, retry_after};
use crate::deadline::Limit;
use crate::failure::{Failure, FailureKind};

/// The most redirects that are followed.
const MOST_REDIRECTS: usize = 5;

/// The most characters of a URL that a message shows.
const SHOWN: usize = 200;

/// Fetches URLs, each with the time limit and the size that its caller gives.
pub struct Fetcher {
    agent: Agent,
    allow_private: bool,
    /// The name of the option that allows private addresses, for messages.
    option: &'static str,
}

/// What was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// The body.
    pub bytes: Vec<u8>,
    /// Its `Content-Type`, if it has one.
    pub media_type: Option<String>,
}

impl Fetcher {
    /// A fetcher that takes private addresses only if they are allowed; `option` is the option that says so.
    pub fn new(allow_private: bool, option: &'static str) -> Self {
        let agent = if allow_private {
            super::agent()
        } else {
            agent_with(&Trust::System, PublicResolver::default())
        };
        Self {
            agent,
            allow_private,
            option,
        }
    }

    /// Fetches at most `most` bytes within the limit.
    ///
    /// # Errors
    /// What the URL leads to cannot be had. Permanent if it never can; refused if it may be this URL alone, or the
    /// server, as in all cases without an answer; otherwise the fault of its server.
    pub fn fetch(&self, url: &str, limit: Limit, most: u64) -> Result<Fetched, Failure> {
        let mut target = Target::parse(url)?;
        for _ in 0..=MOST_REDIRECTS {
            self.check(&target)?;
            let mut response = self.get(&target, limit)?;
            match response.status() {
                status if status.is_success() => {
                    return received(&mut response, &target, most);
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    target = target.redirected(response.headers())?;
                }
                status => return Err(unavailable(&target, status, response.headers())),
            }
        }
        let why = format!("more than {MOST_REDIRECTS} redirects");
        Err(target.failure(FailureKind::Refused, why))
    }

    /// Refuses a URL that somebody else is to fetch, as far as that can be seen without a look-up: one that is neither
    /// `http` nor `https`, and one to this machine or a private address unless those are allowed.
    ///
    /// # Errors
    /// It is refused for good.
    pub fn check_url(&self, url: &str) -> Result<(), Failure> {
        self.check(&Target::parse(url)?)
    }

    /// Refuses what can be seen without a look-up. Behind a proxy there is no other.
    fn check(&self, target: &Target) -> Result<(), Failure> {
        let is_proxy = self.agent.config().proxy().is_some_and(|proxy| {
            let host = target.url.host_str().unwrap_or_default();
            let port = target.url.port_or_known_default();
            host.eq_ignore_ascii_case(proxy.host()) && port == Some(proxy.port())
        });
        let may_be_public = match target.url.host() {
            Some(Host::Ipv4(address)) => is_public(address.into()),
            Some(Host::Ipv6(address)) => is_public(address.into()),
            Some(Host::Domain(name)) => !is_of_this_machine(name),
            None => false,
        };
        if self.allow_private || (may_be_public && !is_proxy) {
            Ok(())
        } else {
            Err(self.not_public(target))
        }
    }

    fn get(&self, target: &Target, limit: Limit) -> Result<Response<Body>, Failure> {
        let uri: Uri = target.bare()?;
        let mut request = Request::get(uri);
        if let Some(authorization) = target.shown.authorization() {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(())
            .map_err(|error| target.failure(FailureKind::Permanent, error.to_string()))?;
        let timed = self.agent.configure_request(request);
        let request = timed.timeout_global(Some(limit.left())).build();
        self.agent
            .run(request)
            .map_err(|error| self.no_answer(target, &error, limit))
    }

    fn no_answer(&self, target: &Target, error: &Error, limit: Limit) -> Failure {
        match error {
            Error::Other(error) if error.is::<NotPublic>() => self.not_public(target),
            Error::Timeout(_) => {
                let why = format!("no answer within {limit}");
                target.failure(FailureKind::Refused, why)
            }
            Error::HostNotFound => target.failure(FailureKind::Refused, "its host is not known"),
            Error::Io(error) => target.failure(FailureKind::Refused, error.to_string()),
            Error::BadUri(_) | Error::Http(_) => {
                target.failure(FailureKind::Permanent, "it cannot be requested")
            }
            // Whoever wrote the vCon chose the host: one that is dead is not to hold up other vCons.
            error => target.failure(FailureKind::Refused, error.to_string()),
        }
    }

    fn not_public(&self, target: &Target) -> Failure {
        let option = self.option;
        let why = format!(
            "its host has no public address, and URLs in vCons lead to no others unless `{option}: true` allows it"
        );
        target.failure(FailureKind::Permanent, why)
    }
}

/// The body of an answer, if it is not too long.
fn received(response: &mut Response<Body>, target: &Target, most: u64) -> Result<Fetched, Failure> {
    let too_long = || {
        let why = format!("it has more than {most} bytes, the most that are fetched");
        target.failure(FailureKind::Permanent, why)
    };
    let header = |name| response.headers().get(name)?.to_str().ok();
    let media_type = header(CONTENT_TYPE).map(str::to_owned);
    let length: Option<u64> = header(CONTENT_LENGTH).and_then(|it| it.parse().ok());
    if length.is_some_and(|length| length > most) {
        return Err(too_long());
    }
    match read(response, most) {
        (bytes, None) => Ok(Fetched { bytes, media_type }),
        (_, Some(Cut::TooLong)) => Err(too_long()),
        (_, Some(Cut::Broken(error))) => {
            let why = format!("the answer broke off: {error}");
            Err(target.failure(FailureKind::Refused, why))
        }
    }
}

/// What a status other than 2xx means.
///
/// | status | whose fault | |
/// |---|---|---|
/// | 404, 410 | the vCon's: it is not there | permanent |
/// | 429, 503 | the server's | busy, until `Retry-After` |
/// | 408, 425, other 5xx | the server's | transient |
/// | all others: 401, 403, … | the vCon's, unless others are refused alike | refused |
fn unavailable(target: &Target, status: StatusCode, headers: &HeaderMap) -> Failure {
    let kind = match status.as_u16() {
        404 | 410 => FailureKind::Permanent,
        429 | 503 => FailureKind::Busy,
        408 | 425 | 500.. => FailureKind::Transient,
        _ => FailureKind::Refused,
    };
    let failure = target.failure(kind, format!("it answered {status}"));
    match kind {
        FailureKind::Busy => failure.until(retry_after(headers)),
        _ => failure,
    }
}

/// Where a request goes.
struct Target {
    url: url::Url,
    /// The same, to be shown and for its login.
    shown: Url,
}

impl Target {
    fn parse(text: &str) -> Result<Self, Failure> {
        let unusable = |why: &str| {
            let shown: String = without_query(text).chars().take(SHOWN).collect();
            Failure::permanent(format!("could not fetch {shown:?}: {why}"))
        };
        match url::Url::parse(text.trim()) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                Err(unusable("only http and https URLs are fetched"))
            }
            Ok(url) => {
                let shown = url.as_str().parse();
                let shown = shown.map_err(|_| unusable("it is not a URL that can be fetched"))?;
                Ok(Self { url, shown })
            }
            Err(error) => Err(unusable(&error.to_string())),
        }
    }

    /// The URL without its login, which the client library would send undecoded, and without what only a
    /// browser looks at.
    fn bare(&self) -> Result<Uri, Failure> {
        let mut url = self.url.clone();
        url.set_fragment(None);
        // A URL with a host takes both.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let unusable = |_| self.failure(FailureKind::Permanent, "it cannot be requested");
        url.as_str().parse().map_err(unusable)
    }

    /// Where a redirect leads: never from `https` to `http`. A login stays behind.
    fn redirected(&self, headers: &HeaderMap) -> Result<Self, Failure> {
        let location = headers.get(LOCATION).and_then(|it| it.to_str().ok());
        let Some(location) = location else {
            let why = "it answered with a redirect that leads nowhere";
            return Err(self.failure(FailureKind::Refused, why));
        };
        let mut joined = self.url.join(location).map_err(|error| {
            let why = format!("it answered with a redirect to what is no URL: {error}");
            self.failure(FailureKind::Refused, why)
        })?;
        if self.url.scheme() == "https" && joined.scheme() == "http" {
            let why = "it answered with a redirect from https to http, which is not followed";
            return Err(self.failure(FailureKind::Permanent, why));
        }
        // A URL that has no host takes none, and has none.
        let _ = joined.set_username("");
        let _ = joined.set_password(None);
        Self::parse(joined.as_str())
    }

    fn failure(&self, kind: FailureKind, why: impl fmt::Display) -> Failure {
        let shown: String = self.shown.to_string().chars().take(SHOWN).collect();
        Failure::new(kind, format!("could not fetch {shown}: {why}"))
    }
}

/// A text that is no URL, without what may be secret in it.
fn without_query(text: &str) -> &str {
    let end = text.find(['?', '#']).unwrap_or(text.len());
    let bare = &text[..end];
    bare.rsplit_once('@').map_or(bare, |(_, after)| after)
}

/// Names that mean this machine whoever looks them up.
fn is_of_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.ends_with(".localdomain")
}

/// Looks names up, and leaves out addresses that are not public.
#[derive(Debug, Default)]
struct PublicResolver(DefaultResolver);

/// A host has no public address.
#[derive(Debug, thiserror::Error)]
#[error("the host has no public address")]
struct NotPublic;

impl Resolver for PublicResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let addresses = self.0.resolve(uri, config, timeout)?;
        // The proxy is the configuration's. No request goes to it by way of a URL: see `Fetcher::check`.
        if config.proxy().is_some_and(|proxy| proxy.uri() == uri) {
            return Ok(addresses);
        }
        let mut public = self.empty();
        let addresses = addresses.iter().filter(|it| is_public(it.ip()));
        addresses.for_each(|address| public.push(*address));
        if public.is_empty() {
            return Err(Error::Other(Box::new(NotPublic)));
        }
        Ok(public)
    }
}

/// Whether an address is one of the public internet: neither private nor reserved, and no form of IPv6 that
/// stands for such an address of IPv4.
///
/// See the registries of special-purpose addresses at IANA (RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    match address.octets() {
        // This network, private, loopback.
        [0 | 10 | 127, ..] => false,
        // Shared by the customers of a provider.
        [100, 64..=127, ..] => false,
        // Link-local, where clouds keep the credentials of a machine.
        [169, 254, ..] => false,
        // Private.
        [172, 16..=31, ..] | [192, 168, ..] => false,
        // Protocol assignments, documentation, relays from IPv6.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] => false,
        // Benchmarks.
        [198, 18 | 19, ..] => false,
        // Documentation.
        [198, 51, 100, _] | [203, 0, 113, _] => false,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => false,
        _ => true,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let pair = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        // Compatible with IPv4 (also :: and ::1), mapped, translated.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        // Translated by NAT64.
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        // 6to4.
        | [0x2002, high, low, ..] => is_public_v4(pair(high, low)),
        // Teredo: its server, and its client in reverse.
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            is_public_v4(pair(high, low)) && is_public_v4(pair(!client_high, !client_low))
        }
        // Protocol assignments, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that is handed out for the internet so far.
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::tests::{FLOOD, FLOODS, LONG, flood, serve, serve_with};
    use super::*;
    use crate::deadline::Deadline;

    fn fetch_by(fetcher: &Fetcher, url: &str) -> Result<Fetched, Failure> {
        fetcher.fetch(url, Deadline::NONE.begin(LONG), 1000)
    }

    /// Fetches from a server of a test.
    fn fetch(url: &str) -> Result<Fetched, Failure> {
        fetch_by(&Fetcher::new(true, "allow_private_urls"), url)
    }

    /// Why a URL is not fetched where only public addresses are.
    fn refused(url: &str) -> Failure {
        let fetcher = Fetcher::new(false, "allow_private_urls");
        fetch_by(&fetcher, url).unwrap_err()
    }

    /// A server that answers with these heads and bodies, one after the other.
    fn answering(answers: &[(&str, &str)]) -> (String, std::thread::JoinHandle<Vec<String>>) {
        use std::io::{BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let of_server = address.clone();
        let answers: Vec<String> = answers
            .iter()
            .map(|(head, body)| {
                let head = head.replace("HOST", &of_server);
                let length = body.len();
                format!(
                    "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )
            })
            .collect();
        let server = std::thread::spawn(move || {
            let answer = |answer: &String| {
                let (mut stream, _) = listener.accept().unwrap();
                let request = super::super::tests::request(&mut BufReader::new(&stream));
                stream.write_all(answer.as_bytes()).unwrap();
                request
            };
            answers.iter().map(answer).collect()
        });
        (address, server)
    }

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.101.0",
            "203.0.114.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00::1",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "::1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            // Teredo by the server 1.1.1.1, of the client 8.8.8.8.
            "2001:0:101:101::f7f7:f7f7",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:a00:1::f7f7:f7f7",
            // Teredo of the client 127.0.0.1.
            "2001:0:101:101::80ff:fffe",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    proptest! {
        #[test]
        fn a_form_of_ipv6_is_as_public_as_the_address_in_it(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let [a, b, c, d] = address.octets();
            let is_of_v4 = is_public(address.into());
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for form in [
                address.to_ipv6_mapped(),
                address.to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5),
                Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !0x808, !0x808),
            ] {
                prop_assert_eq!(is_public(form.into()), is_of_v4, "{}", form);
            }
        }

        #[test]
        fn what_the_standard_library_calls_special_is_not_public(bits: u32, more: u128) {
            let four = Ipv4Addr::from(bits);
            let is_special = four.is_private() || four.is_loopback() || four.is_link_local()
                || four.is_multicast() || four.is_documentation() || four.is_broadcast() || four.is_unspecified();
            prop_assert!(!(is_special && is_public(four.into())), "{}", four);
            let six = Ipv6Addr::from(more);
            let is_special = six.is_loopback() || six.is_multicast() || six.is_unicast_link_local()
                || six.is_unique_local() || six.is_unspecified();
            prop_assert!(!(is_special && is_public(six.into())), "{}", six);
        }

        #[test]
        fn no_way_to_write_a_private_address_is_fetched(host in 0_u32..1 << 24, form in 0..6) {
            let bits = 0x7f00_0000 | host;
            let [a, b, c, d] = bits.to_be_bytes();
            let host = match form {
                0 => format!("{a}.{b}.{c}.{d}"),
                1 => bits.to_string(),
                2 => format!("0x{bits:x}"),
                3 => format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                4 => format!("{a}.0x{:x}", bits & 0xff_ffff),
                _ => format!("[::ffff:{a}.{b}.{c}.{d}]"),
            };
            let failure = refused(&format!("http://{host}:9/x.wav"));
            prop_assert_eq!(failure.kind, FailureKind::Permanent);
            prop_assert!(failure.message.contains("`allow_private_urls: true`"), "{}", failure);
        }
    }

    #[test]
    fn names_that_lead_to_this_machine_are_not_fetched() {
        for host in ["localhost", "LOCALHOST.", "a.localhost", "127.1", "0"] {
            let failure = refused(&format!("http://{host}:9/x.wav?secret=1"));
            assert_eq!(failure.kind, FailureKind::Permanent, "{host}: {failure}");
            assert!(failure.message.contains("allow_private_urls"), "{failure}");
            assert!(!failure.message.contains("secret"), "{failure}");
        }
    }

    #[test]
    fn a_resolver_gives_no_private_address_away() {
        let uri = Uri::from_static("http://localhost/x");
        let found =
            PublicResolver::default().resolve(&uri, &Config::default(), NextTimeout::default());
        let error = found.unwrap_err();
        assert!(
            matches!(&error, Error::Other(other) if other.is::<NotPublic>()),
            "{error}"
        );
    }

    #[test]
    fn only_web_urls_are_fetched() {
        for url in [
            "",
            "x.wav",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://h/x",
            "gopher://127.0.0.1:6379/_x",
            "http://",
            "http://h:99999/",
            "data:audio/wav;base64,AAAA",
            "http://u:geheim@h h/x?geheim",
        ] {
            let failure = refused(url);
            assert_eq!(failure.kind, FailureKind::Permanent, "{url}: {failure}");
            assert!(!failure.message.contains("geheim"), "{failure}");
        }
    }

    #[test]
    fn what_a_url_leads_to_is_fetched_with_its_login_and_type() {
        let (address, server) = answering(&[("200 OK\r\nContent-Type: audio/wav", "bytes")]);
        let url = format!("http://us:pa%40ss@{address}/a%20b.wav?x=1#part");
        let fetched = fetch(&url).unwrap();
        assert_eq!(fetched.bytes, b"bytes");
        assert_eq!(fetched.media_type.as_deref(), Some("audio/wav"));
        let request = &server.join().unwrap()[0];
        assert!(
            request.starts_with("GET /a%20b.wav?x=1 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request
                .to_lowercase()
                .contains("authorization: basic dxm6cgfac3m="),
            "{request}"
        );
    }

    #[test]
    fn redirects_are_followed_without_the_login() {
        let (address, server) = answering(&[
            ("302 Found\r\nLocation: /second", ""),
            (
                "307 Temporary Redirect\r\nLocation: http://HOST/third",
                "gone",
            ),
            ("200 OK", "bytes"),
        ]);
        let fetched = fetch(&format!("http://us:pass@{address}/first")).unwrap();
        assert_eq!(fetched.bytes, b"bytes");
        let requests = server.join().unwrap();
        let logins = requests
            .iter()
            .map(|it| it.to_lowercase().contains("authorization"));
        assert_eq!(Vec::from_iter(logins), [true, false, false]);
        assert!(requests[2].starts_with("GET /third "), "{requests:?}");
    }

    #[test]
    fn each_redirect_is_checked() {
        for (location, kind, why) in [
            ("ftp://h/x", FailureKind::Permanent, "only http and https"),
            (
                "file:///etc/passwd",
                FailureKind::Permanent,
                "only http and https",
            ),
            ("http://[", FailureKind::Refused, "no URL"),
        ] {
            let head = format!("302 Found\r\nLocation: {location}");
            let (address, server) = answering(&[(&head, "")]);
            let failure = fetch(&format!("http://{address}/x")).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.message.contains(why), "{failure}");
            server.join().unwrap();
        }
        let (address, server) = answering(&[("302 Found", "")]);
        let failure = fetch(&format!("http://{address}/x")).unwrap_err();
        assert!(failure.message.contains("leads nowhere"), "{failure}");
        server.join().unwrap();
        let again = [("302 Found\r\nLocation: /again", ""); MOST_REDIRECTS + 1];
        let (address, server) = answering(&again);
        let failure = fetch(&format!("http://{address}/x")).unwrap_err();
        assert!(
            failure.message.contains("more than 5 redirects"),
            "{failure}"
        );
        server.join().unwrap();
    }

    #[test]
    fn a_redirect_leads_to_no_private_address_and_never_out_of_tls() {
        let target = Target::parse("https://example.org/a").unwrap();
        let headers =
            |location: &str| HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        let downgraded = target
            .redirected(&headers("http://example.org/b"))
            .err()
            .unwrap();
        assert_eq!(downgraded.kind, FailureKind::Permanent);
        assert!(
            downgraded.message.contains("from https to http"),
            "{downgraded}"
        );
        let private = target
            .redirected(&headers("https://169.254.169.254/latest"))
            .unwrap();
        let failure = Fetcher::new(false, "allow_private_urls")
            .check(&private)
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(target.redirected(&headers("//example.com/b")).is_ok());
    }

    #[test]
    fn statuses_are_classified() {
        use FailureKind::{Busy, Permanent, Refused, Transient};
        for (status, kind) in [
            ("404 Not Found", Permanent),
            ("410 Gone", Permanent),
            ("401 Unauthorized", Refused),
            ("403 Forbidden", Refused),
            ("400 Bad Request", Refused),
            ("451 X", Refused),
            ("304 Not Modified", Refused),
            ("429 Too Many Requests", Busy),
            ("503 Service Unavailable", Busy),
            ("408 Request Timeout", Transient),
            ("500 Internal Server Error", Transient),
            ("502 Bad Gateway", Transient),
        ] {
            let (address, server) = serve(&[status]);
            let failure = fetch(&format!("http://u:secret@{address}/x?k=secret")).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            let status = status.split(' ').next().unwrap();
            let begin = format!("could not fetch http://{address}/x: it answered {status}");
            assert!(failure.message.starts_with(&begin), "{failure}");
            server.join().unwrap();
        }
        let (address, server) = answering(&[("429 X\r\nRetry-After: 30", "")]);
        let failure = fetch(&format!("http://{address}/x")).unwrap_err();
        let wait = failure.not_before.unwrap() - std::time::Instant::now();
        assert!(wait > Duration::from_secs(25), "{wait:?}");
        server.join().unwrap();
    }

    #[test]
    fn no_more_is_read_than_may_be() {
        for lines in FLOODS {
            let (address, server) = flood(200, lines, "", "x");
            let failure = fetch(&format!("http://{address}/x")).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
            assert!(
                failure.message.contains("more than 1000 bytes"),
                "{failure}"
            );
            assert!(server.join().unwrap() < FLOOD, "{lines}");
        }
        let (address, server) = serve_with(vec![(200, "x".repeat(1000))]);
        assert_eq!(
            fetch(&format!("http://{address}/x")).unwrap().bytes.len(),
            1000
        );
        server.join().unwrap();
    }

    #[test]
    fn a_host_that_is_dead_is_in_doubt_the_vcons() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", gone.local_addr().unwrap());
        drop(gone);
        let failure = fetch(&url).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    }

    #[test]
    fn a_url_for_others_is_checked_as_far_as_it_can_be_seen() {
        let (strict, lax) = (Fetcher::new(false, "o"), Fetcher::new(true, "o"));
        for url in [
            "http://169.254.169.254/x",
            "http://localhost/x",
            "https://[::1]/x",
        ] {
            let failure = strict.check_url(url).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
            assert_eq!(lax.check_url(url), Ok(()));
        }
        for url in ["file:///etc/passwd", "gopher://example.com/", "x"] {
            assert!(strict.check_url(url).is_err() && lax.check_url(url).is_err());
        }
        assert_eq!(strict.check_url("https://example.com/a?b=c"), Ok(()));
    }
}
