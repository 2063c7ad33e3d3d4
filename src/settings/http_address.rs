//! Where the monitor answers by HTTP.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

const UNIX: &str = "unix:";

/// The longest path of a Unix socket that every system takes.
const LONGEST_PATH: usize = 100;

/// Where the monitor answers by HTTP, as it is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAddress {
    /// Nowhere.
    Off,
    /// At a port of one of this machine's addresses.
    Tcp {
        /// A name or an IP address; one of version 6 without brackets.
        host: String,
        /// The port; 0 is any that is free.
        port: u16,
    },
    /// At a Unix socket of this absolute path.
    Unix(PathBuf),
}

/// The error of parsing an [`HttpAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not off, host:port, [IPv6]:port or unix:/path")]
pub struct NotAnHttpAddress;

impl Default for HttpAddress {
    fn default() -> Self {
        Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 9180,
        }
    }
}

impl FromStr for HttpAddress {
    type Err = NotAnHttpAddress;

    fn from_str(text: &str) -> Result<Self, NotAnHttpAddress> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix(UNIX) {
            let is_good = path.starts_with('/') && path.len() <= LONGEST_PATH;
            let has_name = !path.ends_with('/') && !path.contains(char::is_control);
            return (is_good && has_name)
                .then(|| Self::Unix(path.into()))
                .ok_or(NotAnHttpAddress);
        }
        let (host, port) = text.rsplit_once(':').ok_or(NotAnHttpAddress)?;
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| is_number);
        match (host_of(host), port) {
            (Some(host), Some(port)) => Ok(Self::Tcp { host, port }),
            _ => Err(NotAnHttpAddress),
        }
    }
}

fn host_of(text: &str) -> Option<String> {
    if let Some(address) = text.strip_prefix('[') {
        let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        return Some(address.to_string());
    }
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_name = (1..=253).contains(&text.len()) && text.chars().all(is_good);
    is_name.then(|| text.to_owned())
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_they_are_set() {
        for text in [
            "off",
            "127.0.0.1:9180",
            "0.0.0.0:0",
            "[::1]:80",
            "monitor.example:65535",
            "unix:/run/conserver/http.sock",
        ] {
            let address: HttpAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("OFF".parse(), Ok(HttpAddress::Off));
        let longest = format!("unix:/{}", "a".repeat(LONGEST_PATH - 1));
        assert!(longest.parse::<HttpAddress>().is_ok());
        assert_eq!(HttpAddress::default().to_string(), "127.0.0.1:9180");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = format!("unix:/{}", "a".repeat(LONGEST_PATH));
        for text in [
            "on",
            "9180",
            ":9180",
            "localhost",
            "localhost:",
            "localhost:+80",
            "localhost:65536",
            "::1:80",
            "[::1]",
            "[no]:80",
            "http://localhost:80",
            "a b:80",
            "unix:run/http.sock",
            "unix:/run/http\n.sock",
            "unix:/run/",
            "unix:",
            &long,
        ] {
            assert_eq!(
                text.parse::<HttpAddress>(),
                Err(NotAnHttpAddress),
                "{text:?}"
            );
        }
    }
}
