//! Where a host is: looked up now and then, not for every request.
//!
//! The client library looks a name up before it looks for a connection that it has kept, and, as
//! its lookup has no time limit, starts a thread for it each time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// A host that moves to another address is found there after so long. Connections that are kept
/// stay where they are, in any case.
const FRESH: Duration = Duration::from_secs(10);

/// Looks names up and remembers the last one for a while.
#[derive(Debug, Default)]
pub struct Remembering {
    resolver: DefaultResolver,
    last: Mutex<Option<Found>>,
}

#[derive(Debug)]
struct Found {
    /// The host and port, without a user and password.
    place: String,
    at: Instant,
    addresses: ResolvedSocketAddrs,
}

impl Remembering {
    fn remembered(&self, place: &str) -> Option<ResolvedSocketAddrs> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = last.as_ref()?;
        (found.place == place && found.at.elapsed() < FRESH).then(|| self.copy(&found.addresses))
    }

    fn copy(&self, addresses: &ResolvedSocketAddrs) -> ResolvedSocketAddrs {
        let mut copy = self.empty();
        addresses.iter().for_each(|address| copy.push(*address));
        copy
    }
}

impl Resolver for Remembering {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let place = uri.scheme().zip(uri.authority());
        let place = place.and_then(|(scheme, at)| DefaultResolver::host_and_port(scheme, at));
        let known = place.as_ref().and_then(|place| self.remembered(place));
        if let Some(addresses) = known {
            return Ok(addresses);
        }
        let addresses = self.resolver.resolve(uri, config, timeout)?;
        let found = place.map(|place| Found {
            place,
            at: Instant::now(),
            addresses: self.copy(&addresses),
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(addresses)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn look_up(resolver: &Remembering, uri: &'static str) -> Vec<String> {
        let found = resolver.resolve(
            &Uri::from_static(uri),
            &Config::default(),
            NextTimeout::default(),
        );
        found.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_last_host_is_remembered_for_a_while_and_no_other_is_taken_for_it() {
        let resolver = Remembering::default();
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
