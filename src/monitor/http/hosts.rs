//! As whom the monitor may be asked.
//!
//! A page from elsewhere can have a browser ask us by a name of its own that it has made point
//! here, and read the answer ("DNS rebinding"). So a name has to be one of ours. Addresses are
//! fine: no name is behind them that could be made to point here.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::settings::{HttpAddress, Settings};

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;

    use proptest::prelude::*;

    use super::*;

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
