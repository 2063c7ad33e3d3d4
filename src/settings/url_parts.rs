//! The parts of the URL of a server, split as Python's `urllib` does it: a password may hold `@` and
//! `:` as they are, but not `/`, `?` and `#`.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use super::redis_url::NotARedisUrl;

/// What is wrong where a password seems to hold a character that ends it.
pub(super) const TORN: &str =
    "in a user or password, / is written %2F, ? is written %3F and # is written %23";

/// A URL, as it is written.
pub(super) struct Parts<'a> {
    /// In lower case.
    pub scheme: String,
    /// What stands before the `@`.
    pub login: Option<&'a str>,
    /// What stands between the `@`, if any, and the path.
    pub hosts: &'a str,
    /// With the slash at its beginning; or empty.
    pub path: &'a str,
    pub query: &'a str,
    pub fragment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// `None` if there is no scheme.
    pub fn of(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (rest, fragment) = split(rest, '#');
        let (path, query) = split(rest, '?');
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            login,
            hosts,
            path,
            query: query.unwrap_or_default(),
            fragment,
        })
    }

    /// Whether path and query may belong to a password that is not percent-encoded: nothing of them is to
    /// be shown.
    pub fn may_be_torn(&self) -> bool {
        self.login.is_none() && (self.path.contains('@') || self.query.contains('@'))
    }
}

/// What is before the first `mark`, and what is after it.
pub(super) fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

pub(super) fn fault<T>(why: impl Into<String>) -> Result<T, NotARedisUrl> {
    Err(NotARedisUrl(why.into()))
}

/// The text without its percent-encoding. What is no encoding stays as it is.
pub(super) fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// User and password, as Redis gets them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub user: Option<String>,
    pub password: Option<String>,
    /// Whether there is a user, and not even a `:` behind it.
    pub is_one_word: bool,
}

impl Login {
    /// From what stands before the `@`.
    pub fn of(text: &str) -> Self {
        let (user, password) = split(text, ':');
        let given = |text: &str| Some(decoded(text)).filter(|text| !text.is_empty());
        Self {
            user: given(user),
            password: password.and_then(given),
            is_one_word: password.is_none() && !user.is_empty(),
        }
    }

    /// Whether Redis is to be told anything.
    pub fn is_given(&self) -> bool {
        self.user.is_some() || self.password.is_some()
    }

    /// Whether a single word may be meant as a password.
    pub fn has_one_word(&self) -> bool {
        self.is_one_word && self.password.is_none()
    }

    /// A user without a password logs in with an empty one.
    pub fn applied_to(&self, settings: redis::RedisConnectionInfo) -> redis::RedisConnectionInfo {
        let settings = match &self.user {
            Some(user) => settings.set_username(user),
            None => settings,
        };
        if self.is_given() {
            settings.set_password(self.password.as_deref().unwrap_or_default())
        } else {
            settings
        }
    }
}

/// A host and its port, as far as they are written.
pub(super) fn host_and_port(text: &str) -> Result<(Option<String>, Option<u16>), NotARedisUrl> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => (Some(ipv6(&decoded(address))?), rest),
            None => return fault("an IPv6 address ends with ]"),
        },
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (host, rest) = text.split_at(end);
            (name(decoded(host))?, rest)
        }
    };
    let port = match rest.strip_prefix(':') {
        Some("") => None,
        Some(port) => port_of(port)?,
        None if rest.is_empty() => None,
        None => return fault("behind an IPv6 address is neither : nor /"),
    };
    Ok((host, port))
}

/// A port; 0 stands for the usual one.
pub(super) fn port_of(text: &str) -> Result<Option<u16>, NotARedisUrl> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|_| is_number) {
        Some(port) => Ok(Some(port).filter(|port| *port > 0)),
        None => fault(
            "what follows the host is not the number of a port; an IPv6 address stands in [ and ], \
             and a password before an @",
        ),
    }
}

/// A host; `None` if the text is empty.
pub(super) fn name(host: String) -> Result<Option<String>, NotARedisUrl> {
    // With & and =, a parameter without the ? before it would be shown as a part of the host: its value may be a
    // password.
    let is_foreign = |c: char| c.is_control() || c.is_whitespace() || "/\\?#@:[]%,&=".contains(c);
    if host.contains(is_foreign) {
        return fault("the host is not a name or an IP address");
    }
    Ok(Some(host).filter(|host| !host.is_empty()))
}

fn ipv6(text: &str) -> Result<String, NotARedisUrl> {
    let (address, zone) = split(text, '%');
    let is_zone = |zone: &str| {
        !zone.is_empty()
            && zone
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    match address.parse::<Ipv6Addr>() {
        Ok(_) if zone.is_none_or(is_zone) => Ok(text.to_owned()),
        _ => fault("what stands in [ and ] is not an IPv6 address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let found = |host: &str, port| Ok((Some(host.to_owned()), port));
        for (text, expected) in [
            ("", Ok((None, None))),
            ("a", found("a", None)),
            ("a:", found("a", None)),
            ("a:0", found("a", None)),
            ("a:1", found("a", Some(1))),
            (":65535", Ok((None, Some(65535)))),
            ("a%2Db", found("a-b", None)),
            ("[::1]", found("::1", None)),
            ("[::1]:7", found("::1", Some(7))),
            ("[fe80::1%25eth0]", found("fe80::1%eth0", None)),
        ] {
            assert_eq!(host_and_port(text), expected, "{text}");
        }
        for text in [
            "a:65536",
            "a:+1",
            "a:x",
            "a:1:2",
            "::1",
            "[::1",
            "[a]",
            "[::1]7",
            "[::1%25]",
            "[::1%25a b]",
            "a b",
            "a%2Fb",
            "a%00",
            "a]",
            "a,b",
            "a&password=b",
            "a=b",
        ] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_login_is_a_user_and_a_password() {
        let login = |user: &str, password: &str, is_one_word| Login {
            user: Some(user.to_owned()).filter(|text| !text.is_empty()),
            password: Some(password.to_owned()).filter(|text| !text.is_empty()),
            is_one_word,
        };
        for (text, expected) in [
            ("", login("", "", false)),
            (":", login("", "", false)),
            (":a", login("", "a", false)),
            ("u:", login("u", "", false)),
            ("u", login("u", "", true)),
            ("u:a:b@c", login("u", "a:b@c", false)),
            ("u%3A:%40%zz", login("u:", "@%zz", false)),
        ] {
            assert!(Login::of(text) == expected, "{text}");
        }
    }

    #[test]
    fn a_login_is_told_to_redis() {
        for (text, user, password) in [
            ("", None, None),
            (":a", None, Some("a")),
            ("u:", Some("u"), Some("")),
            ("u:a", Some("u"), Some("a")),
        ] {
            let settings = Login::of(text).applied_to(redis::RedisConnectionInfo::default());
            assert_eq!((settings.username(), settings.password()), (user, password));
        }
    }
}
