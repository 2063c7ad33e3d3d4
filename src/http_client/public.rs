//! Fetches what a URL from elsewhere leads to: whoever writes a vCon chooses its URLs, and must not reach with
//! them what only this machine can reach.
//!
//! Only `http` and `https` are fetched, and only from addresses of the public internet ([`is_public`]), unless
//! the configuration allows others. The addresses are checked where the connection is made, so that a name
//! cannot lead to one address for the check and to another one for the connection; and for each redirect anew.
//! Behind a proxy, the proxy looks names up and connects: then only addresses that stand in the URL itself, and
//! names of this machine, are refused.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderMap, Request, Response, StatusCode, Uri};
use ureq::config::Config;
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
    /// server; otherwise the fault of its server.
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
                target.failure(FailureKind::Transient, why)
            }
            Error::HostNotFound => target.failure(FailureKind::Refused, "its host is not known"),
            Error::Io(error) if is_unknown_name(error) => {
                target.failure(FailureKind::Refused, error.to_string())
            }
            Error::Io(error) => target.failure(FailureKind::Transient, error.to_string()),
            Error::BadUri(_) | Error::Http(_) => {
                target.failure(FailureKind::Permanent, "it cannot be requested")
            }
            error => target.failure(FailureKind::Transient, error.to_string()),
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
fn received(
    response: &mut Response<Body>,
    target: &Target,
    most: u64,
) -> Result<Fetched, Failure> {
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
            Err(target.failure(FailureKind::Transient, why))
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
        let joined = self.url.join(location).map_err(|error| {
            let why = format!("it answered with a redirect to what is no URL: {error}");
            self.failure(FailureKind::Refused, why)
        })?;
        if self.url.scheme() == "https" && joined.scheme() == "http" {
            let why = "it answered with a redirect from https to http, which is not followed";
            return Err(self.failure(FailureKind::Permanent, why));
        }
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

/// Whether the system says that there is no such name, and not only that nobody can be asked for it.
fn is_unknown_name(error: &io::Error) -> bool {
    // The system's codes do not come through: "Temporary failure in name resolution", "Try again".
    let text = error.to_string().to_lowercase();
    text.contains("lookup address") && !["temporary", "try again"].iter().any(|it| text.contains(it))
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
