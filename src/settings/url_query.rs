//! The parameters of a server's URL, as redis-py 4.6 reads them: decoded twice, the first of a name
//! counts, and empty ones do not count at all.

use super::redis_url::NotARedisUrl;
use super::url_parts::{Parts, TORN, decoded, fault, split};

/// What a parameter is for, and what it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is read here.
    Read,
    /// It is read here, and means nothing without TLS.
    OfTls,
    /// A setting of the client library of the Python services, without effect here.
    Unused(Value),
    /// The same, and it means nothing without TLS.
    UnusedOfTls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Any,
    Whole,
    Number,
}

/// Every parameter that redis-py knows.
#[rustfmt::skip]
const PARAMETERS: &[(&str, Kind)] = &[
    ("db", Kind::Read),
    ("host", Kind::Read),
    ("password", Kind::Read),
    ("path", Kind::Read),
    ("port", Kind::Read),
    ("username", Kind::Read),
    ("ssl_ca_certs", Kind::OfTls),
    ("ssl_ca_data", Kind::OfTls),
    ("ssl_cert_reqs", Kind::OfTls),
    ("ssl_certfile", Kind::OfTls),
    ("ssl_check_hostname", Kind::OfTls),
    ("ssl_keyfile", Kind::OfTls),
    ("auto_close_connection_pool", Kind::Unused(Value::Any)),
    ("client_name", Kind::Unused(Value::Any)),
    ("decode_responses", Kind::Unused(Value::Any)),
    ("encoding", Kind::Unused(Value::Any)),
    ("encoding_errors", Kind::Unused(Value::Any)),
    ("health_check_interval", Kind::Unused(Value::Whole)),
    ("lib_name", Kind::Unused(Value::Any)),
    ("lib_version", Kind::Unused(Value::Any)),
    ("max_connections", Kind::Unused(Value::Whole)),
    ("protocol", Kind::Unused(Value::Any)),
    ("retry", Kind::Unused(Value::Any)),
    ("retry_on_error", Kind::Unused(Value::Any)),
    ("retry_on_timeout", Kind::Unused(Value::Any)),
    ("single_connection_client", Kind::Unused(Value::Any)),
    ("socket_connect_timeout", Kind::Unused(Value::Number)),
    ("socket_keepalive", Kind::Unused(Value::Any)),
    ("socket_keepalive_options", Kind::Unused(Value::Any)),
    ("socket_read_size", Kind::Unused(Value::Whole)),
    ("socket_timeout", Kind::Unused(Value::Number)),
    ("socket_type", Kind::Unused(Value::Any)),
    ("timeout", Kind::Unused(Value::Number)),
    ("ssl_ca_path", Kind::UnusedOfTls),
    ("ssl_ciphers", Kind::UnusedOfTls),
    ("ssl_min_version", Kind::UnusedOfTls),
    ("ssl_ocsp_context", Kind::UnusedOfTls),
    ("ssl_ocsp_expected_cert", Kind::UnusedOfTls),
    ("ssl_password", Kind::UnusedOfTls),
    ("ssl_validate_ocsp", Kind::UnusedOfTls),
    ("ssl_validate_ocsp_stapled", Kind::UnusedOfTls),
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
    pub fn of(parts: &Parts<'_>) -> Self {
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
            let is_of_tls = matches!(kind, Kind::OfTls | Kind::UnusedOfTls);
            if is_of_tls && !has_tls {
                return fault(format!("the parameter {name} is for rediss:// alone"));
            }
            let expected = match kind {
                Kind::Unused(Value::Whole) if value.trim().parse::<i64>().is_err() => {
                    "a whole number"
                }
                Kind::Unused(Value::Number) if value.trim().parse::<f64>().is_err() => "a number",
                _ => "",
            };
            if !expected.is_empty() {
                return fault(format!("the parameter {name} is not {expected}"));
            }
            match kind {
                Kind::Read | Kind::OfTls => used.in_effect.push(name),
                Kind::Unused(_) | Kind::UnusedOfTls => used.without.push(name),
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&Parts::of(&format!("redis://h?{text}")).unwrap())
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
            let is_of_tls = matches!(kind, Kind::OfTls | Kind::UnusedOfTls);
            let without = query(&format!("{name}=1")).check(false, &[]);
            assert_eq!(without.is_err(), is_of_tls, "{name}");
            let word = query(&format!("{name}=x")).check(true, &[]);
            let is_number = matches!(kind, Kind::Unused(Value::Whole | Value::Number));
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
