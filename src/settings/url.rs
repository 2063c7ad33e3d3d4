//! The parts of the URL of a server, split as Python's `urllib` does it: a password may hold `@` and
//! `:` as they are, but not `/`, `?` and `#`.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use super::redis_url::NotARedisUrl;

/// What is wrong where a password seems to hold a character that ends it.
pub(super) const TORN: &str =
    "in a user or password, / is written %2F, ? is written %3F and # is written %23";

/// A URL, as it is written.
pub(super) struct UrlParts<'a> {
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

impl<'a> UrlParts<'a> {
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

/// What a parameter is for, and what it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParameterKind {
    /// It is read here.
    Read,
    /// It is read here, and means nothing without TLS.
    OfTls,
    /// A setting of the client library of the Python services, without effect here.
    Unused(ParameterValue),
    /// The same, and it means nothing without TLS.
    UnusedOfTls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParameterValue {
    Any,
    Whole,
    Number,
}

/// Every parameter that redis-py knows.
#[rustfmt::skip]
const PARAMETERS: &[(&str, ParameterKind)] = &[
    ("db", ParameterKind::Read),
    ("host", ParameterKind::Read),
    ("password", ParameterKind::Read),
    ("path", ParameterKind::Read),
    ("port", ParameterKind::Read),
    ("username", ParameterKind::Read),
    ("ssl_ca_certs", ParameterKind::OfTls),
    ("ssl_ca_data", ParameterKind::OfTls),
    ("ssl_cert_reqs", ParameterKind::OfTls),
    ("ssl_certfile", ParameterKind::OfTls),
    ("ssl_check_hostname", ParameterKind::OfTls),
    ("ssl_keyfile", ParameterKind::OfTls),
    ("auto_close_connection_pool", ParameterKind::Unused(ParameterValue::Any)),
    ("client_name", ParameterKind::Unused(ParameterValue::Any)),
    ("decode_responses", ParameterKind::Unused(ParameterValue::Any)),
    ("encoding", ParameterKind::Unused(ParameterValue::Any)),
    ("encoding_errors", ParameterKind::Unused(ParameterValue::Any)),
    ("health_check_interval", ParameterKind::Unused(ParameterValue::Whole)),
    ("lib_name", ParameterKind::Unused(ParameterValue::Any)),
    ("lib_version", ParameterKind::Unused(ParameterValue::Any)),
    ("max_connections", ParameterKind::Unused(ParameterValue::Whole)),
    ("protocol", ParameterKind::Unused(ParameterValue::Any)),
    ("retry", ParameterKind::Unused(ParameterValue::Any)),
    ("retry_on_error", ParameterKind::Unused(ParameterValue::Any)),
    ("retry_on_timeout", ParameterKind::Unused(ParameterValue::Any)),
    ("single_connection_client", ParameterKind::Unused(ParameterValue::Any)),
    ("socket_connect_timeout", ParameterKind::Unused(ParameterValue::Number)),
    ("socket_keepalive", ParameterKind::Unused(ParameterValue::Any)),
    ("socket_keepalive_options", ParameterKind::Unused(ParameterValue::Any)),
    ("socket_read_size", ParameterKind::Unused(ParameterValue::Whole)),
    ("socket_timeout", ParameterKind::Unused(ParameterValue::Number)),
    ("socket_type", ParameterKind::Unused(ParameterValue::Any)),
    ("timeout", ParameterKind::Unused(ParameterValue::Number)),
    ("ssl_ca_path", ParameterKind::UnusedOfTls),
    ("ssl_ciphers", ParameterKind::UnusedOfTls),
    ("ssl_min_version", ParameterKind::UnusedOfTls),
    ("ssl_ocsp_context", ParameterKind::UnusedOfTls),
    ("ssl_ocsp_expected_cert", ParameterKind::UnusedOfTls),
    ("ssl_password", ParameterKind::UnusedOfTls),
    ("ssl_validate_ocsp", ParameterKind::UnusedOfTls),
    ("ssl_validate_ocsp_stapled", ParameterKind::UnusedOfTls),
];

/// The parameters of one URL.
pub(super) struct Query {
    pairs: Vec<(String, String)>,
    may_be_torn: bool,
}

/// The names of parameters that are known, by whether they have an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub in_effect: Vec<&'static str>,
    pub without: Vec<&'static str>,
}

impl Query {
    pub fn of(parts: &UrlParts<'_>) -> Self {
        let decode = |text: &str| decoded(&text.replace('+', " "));
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in parts.query.split('&') {
            let (name, Some(value)) = split(pair, '=') else {
                continue;
            };
            let name = decode(name);
            if !value.is_empty() && !pairs.iter().any(|(known, _)| *known == name) {
                pairs.push((name, decoded(&decode(value))));
            }
        }
        Self {
            pairs,
            may_be_torn: parts.may_be_torn(),
        }
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Which of the parameters are known. `more` are read here as well.
    ///
    /// # Errors
    /// One is not known, or cannot be used; it is named unless it may be a part of a password.
    pub fn check(&self, has_tls: bool, more: &[&'static str]) -> Result<Used, NotARedisUrl> {
        let mut used = Used::default();
        for (name, value) in &self.pairs {
            if let Some(name) = more.iter().find(|known| *known == name) {
                used.in_effect.push(name);
                continue;
            }
            let Some((name, kind)) = PARAMETERS.iter().find(|(known, _)| known == name) else {
                return fault(self.unknown(name));
            };
            let is_of_tls = matches!(kind, ParameterKind::OfTls | ParameterKind::UnusedOfTls);
            if is_of_tls && !has_tls {
                return fault(format!("the parameter {name} is for rediss:// alone"));
            }
            let expected = match kind {
                ParameterKind::Unused(ParameterValue::Whole)
                    if value.trim().parse::<i64>().is_err() =>
                {
                    "a whole number"
                }
                ParameterKind::Unused(ParameterValue::Number)
                    if value.trim().parse::<f64>().is_err() =>
                {
                    "a number"
                }
                _ => "",
            };
            if !expected.is_empty() {
                return fault(format!("the parameter {name} is not {expected}"));
            }
            match kind {
                ParameterKind::Read | ParameterKind::OfTls => used.in_effect.push(name),
                ParameterKind::Unused(_) | ParameterKind::UnusedOfTls => used.without.push(name),
            }
        }
        Ok(used)
    }

    /// What is said of a parameter that is not known.
    fn unknown(&self, name: &str) -> String {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if self.may_be_torn {
            format!("there is an unknown parameter before an @; {TORN}")
        } else if !name.is_empty() && name.len() <= 40 && name.chars().all(is_word) {
            format!(
                "unknown parameter {name}; there are db, username, password, and those of the client \
                 library of the Python services"
            )
        } else {
            "a parameter has a name that cannot be one".to_owned()
        }
    }
}

/// What redis-py takes for a yes.
pub(super) fn is_true(value: &str) -> bool {
    !["0", "F", "FALSE", "N", "NO"].contains(&value.to_ascii_uppercase().as_str())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod query_tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&UrlParts::of(&format!("redis://h?{text}")).unwrap())
    }

    #[test]
    fn parameters_are_decoded_as_by_the_peer() {
        for (text, expected) in [
            ("password=a", Some("a")),
            ("password=a%2Bb+c", Some("a+b c")),
            ("password=de%3Ask%407%2F%25", Some("de:sk@7/%")),
            // Twice.
            ("password=%2541", Some("A")),
            ("password=a=b", Some("a=b")),
            ("password=a&password=b", Some("a")),
            ("password=&password=b", Some("b")),
            ("pass%77ord=a", Some("a")),
            ("password", None),
            ("password=", None),
            ("", None),
        ] {
            assert_eq!(query(text).get("password"), expected, "{text}");
        }
    }

    #[test]
    fn parameters_are_sorted_by_their_effect() {
        let used = query("socket_timeout=5.5&db=1&health_check_interval=30&password=p&x=y");
        let used = used.check(false, &["x"]).unwrap();
        assert_eq!(used.in_effect, ["db", "password", "x"]);
        assert_eq!(used.without, ["socket_timeout", "health_check_interval"]);
        let of_tls = query("ssl_cert_reqs=none&ssl_ciphers=x");
        let used = of_tls.check(true, &[]).unwrap();
        assert_eq!(used.in_effect, ["ssl_cert_reqs"]);
        assert_eq!(used.without, ["ssl_ciphers"]);
    }

    #[test]
    fn every_parameter_is_known_and_named_if_it_cannot_be_used() {
        for (name, kind) in PARAMETERS {
            assert!(
                query(&format!("{name}=1")).check(true, &[]).is_ok(),
                "{name}"
            );
            let is_of_tls = matches!(kind, ParameterKind::OfTls | ParameterKind::UnusedOfTls);
            let without = query(&format!("{name}=1")).check(false, &[]);
            assert_eq!(without.is_err(), is_of_tls, "{name}");
            let word = query(&format!("{name}=x")).check(true, &[]);
            let is_number = matches!(
                kind,
                ParameterKind::Unused(ParameterValue::Whole | ParameterValue::Number)
            );
            assert_eq!(word.is_err(), is_number, "{name}");
            for refused in [without, word].into_iter().filter_map(Result::err) {
                assert!(refused.to_string().contains(name), "{refused}");
            }
        }
        for (text, is_number) in [("max_connections=1.5", false), ("socket_timeout=1.5", true)] {
            assert_eq!(query(text).check(false, &[]).is_ok(), is_number, "{text}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_named_unless_it_may_be_of_a_password() {
        let said = |text: &str| query(text).check(true, &[]).unwrap_err().to_string();
        assert!(said("databse=1").contains("databse"));
        let (fits, long) = ("a".repeat(40), "a".repeat(41));
        assert!(said(&format!("{fits}=1")).contains(&fits));
        for (text, hidden) in [
            (format!("{long}=1"), "aaa"),
            ("hunter2=1&x=a@b".to_owned(), "hunter2"),
            ("hunter%202=1".to_owned(), "hunter"),
            ("=1".to_owned(), "unknown parameter"),
        ] {
            assert!(!said(&text).contains(hidden), "{text}: {}", said(&text));
        }
    }

    #[test]
    fn a_no_is_as_the_peer_has_it() {
        for text in ["0", "f", "False", "n", "NO"] {
            assert!(!is_true(text), "{text}");
        }
        for text in ["1", "true", "off", ""] {
            assert!(is_true(text), "{text}");
        }
    }
}
