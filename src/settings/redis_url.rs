//! The address of Redis, which prints without user and password.

use std::fmt;
use std::str::FromStr;

use redis::{ConnectionInfo, IntoConnectionInfo};

use super::sentinel_url::{Master, SentinelUrl};

/// A URL of one Redis server, or of the sentinels that know the server. It prints with `***` in
/// place of user and password.
#[derive(Clone)]
pub struct RedisUrl {
    text: String,
    shown: String,
    master: Option<Box<Master>>,
}

/// The error of parsing a [`RedisUrl`]. Does not show the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotARedisUrl(pub(super) String);

impl RedisUrl {
    /// The URL with user and password, for the Redis client alone.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Where the server is to be asked of sentinels: whom, for what, and how to talk to it.
    pub fn master(&self) -> Option<&Master> {
        self.master.as_deref()
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        let text = "redis://localhost".to_owned();
        Self {
            shown: text.clone(),
            text,
            master: None,
        }
    }
}

impl FromStr for RedisUrl {
    type Err = NotARedisUrl;

    fn from_str(text: &str) -> Result<Self, NotARedisUrl> {
        if let Some(url) = SentinelUrl::parse(text)? {
            return Ok(Self {
                text: text.to_owned(),
                shown: url.shown,
                master: Some(Box::new(url.master)),
            });
        }
        let Some(mut url) = redis::parse_redis_url(text) else {
            return Err(NotARedisUrl("the value is not such a URL".to_owned()));
        };
        connection_info(url.clone())?;
        if !url.username().is_empty() || url.password().is_some() {
            // Both fail only where a URL cannot have a user, and then it shows none.
            let _ = url.set_password(None);
            let _ = url.set_username("***");
        }
        if url.query().is_some() {
            let database = url.query_pairs().find(|(key, _)| key == "db");
            let database = database.map(|(key, value)| format!("{key}={value}"));
            url.set_query(database.as_deref());
        }
        Ok(Self {
            text: text.to_owned(),
            shown: url.to_string(),
            master: None,
        })
    }
}

/// What the client library makes of a URL; of its error only the category, because the rest may
/// quote the URL.
pub(super) fn connection_info(
    url: impl IntoConnectionInfo,
) -> Result<ConnectionInfo, NotARedisUrl> {
    let faulty = |error: redis::RedisError| NotARedisUrl(error.category().to_owned());
    let info = url.into_connection_info().map_err(faulty)?;
    redis::Client::open(info.clone()).map_err(faulty)?;
    Ok(info)
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RedisUrl {}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_url_shows_its_password(
            scheme in "(redis|rediss|valkey|unix|redis[+]unix|redis[+]sentinel|http|)",
            user in "[a-z%:]{0,4}",
            host in "[a-z0-9.:\\[\\]/%]{0,8}",
            end in "[a-z0-9/?&=#%@:.]{0,20}",
        ) {
            for text in [
                format!("{scheme}://{user}:Hunter2Hunter2@{host}{end}"),
                format!("{scheme}:///{host}?user={user}&pass=Hunter2Hunter2{end}"),
                format!("{scheme}:///{host}?pass=Hunter2Hunter2&db={end}"),
            ] {
                let said = match text.parse::<RedisUrl>() {
                    Ok(url) => format!("{url} {url:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!said.to_ascii_lowercase().contains("hunter2"), "{text}: {said}");
            }
        }
    }

    #[test]
    fn a_url_prints_without_user_and_password() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost"),
            ("redis://localhost:6380/2", "redis://localhost:6380/2"),
            ("redis://me:hunter2@host/0", "redis://***@host/0"),
            ("redis://:hunter2@host", "redis://***@host"),
            ("rediss://hunter2@host:1", "rediss://***@host:1"),
            ("rediss://h:1/#insecure", "rediss://h:1/#insecure"),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
            (
                "unix:///run/redis.sock?user=me&pass=hunter2&db=1",
                "unix:///run/redis.sock?db=1",
            ),
            ("redis+unix:///r.sock?pass=hunter2", "redis+unix:///r.sock"),
        ] {
            let url = text.parse::<RedisUrl>();
            assert_eq!(
                url.as_ref().map(ToString::to_string),
                Ok(shown.to_owned()),
                "{text}"
            );
            assert!(!format!("{url:?}").contains("hunter2"), "{text}");
            assert_eq!(url.as_ref().map(RedisUrl::reveal), Ok(text));
        }
    }

    #[test]
    fn what_is_no_redis_url_is_not_shown() {
        for text in [
            "hunter2",
            "http://hunter2@host",
            "redis://me:hunter2@host/hunter2",
            "redis://me:hunter2@host:hunter2",
            "redis://me:hunter2@",
            "rediss://me:hunter2@host/#hunter2",
        ] {
            let error = text.parse::<RedisUrl>().err().map(|e| e.to_string());
            assert!(
                error.as_ref().is_some_and(|e| !e.contains("hunter2")),
                "{text}: {error:?}"
            );
        }
    }
}
