//! The address of a Redis that sentinels look after:
//! `redis+sentinel://[user:password@]host[:26379][,host…]/<master name>[/db][?parameters]`.

use redis::{ConnectionInfo, RedisConnectionInfo, TlsMode};

use super::redis_url::{NotARedisUrl, connection_info};

/// Where a sentinel listens when the URL does not say.
const PORT: u16 = 26379;

const PARAMETERS: &str = "sentinel_user, sentinel_password and sentinel_tls";

/// The present master of a group of servers, which sentinels know by its name.
#[derive(Clone)]
pub struct Master {
    /// Its name among those the sentinels look after.
    pub name: String,
    /// The sentinels, each with its address as it is shown.
    pub sentinels: Vec<(String, ConnectionInfo)>,
    /// User, password and database for the master itself.
    pub settings: RedisConnectionInfo,
    /// Whether the master is reached by TLS.
    pub tls: Option<TlsMode>,
}

/// A URL that names a master.
pub(super) struct SentinelUrl {
    pub master: Master,
    /// The URL without its secrets.
    pub shown: String,
}

/// How the sentinels are reached.
#[derive(Default)]
struct Parameters<'a> {
    user: &'a str,
    password: Option<&'a str>,
    tls: bool,
}

impl SentinelUrl {
    /// Nothing where the text does not begin as such a URL.
    pub fn parse(text: &str) -> Result<Option<Self>, NotARedisUrl> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(None);
        };
        let scheme = scheme.to_ascii_lowercase();
        let secure = match scheme.as_str() {
            "redis+sentinel" => false,
            "rediss+sentinel" => true,
            _ => return Ok(None),
        };
        let (rest, fragment) = split(rest, '#');
        let (rest, query) = split(rest, '?');
        let (authority, path) = split(rest, '/');
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        if login.is_some_and(|login| login.contains(['@', ','])) {
            return fault(
                "user and password stand once, before the first sentinel, with @ and , percent-encoded",
            );
        }
        let insecure = match fragment {
            None => false,
            Some("insecure") if secure => true,
            Some(_) => return fault("only rediss+sentinel:// can end in #insecure"),
        };
        let parameters = parameters(query.unwrap_or_default())?;
        let (name, database) = path_of(path.unwrap_or_default())?;
        let sentinels = sentinels(hosts, &parameters, insecure)?;

        let login = login.map(|login| format!("{login}@")).unwrap_or_default();
        let shown_login = if login.is_empty() { "" } else { "***@" };
        let server = connection_info(format!("redis://{login}server/{database}").as_str())?;
        let addresses: Vec<&str> = sentinels.iter().map(|(shown, _)| shown.as_str()).collect();
        let shown_database = if database.is_empty() { "" } else { "/" };
        let shown_fragment = if insecure { "#insecure" } else { "" };
        let shown = format!(
            "{scheme}://{shown_login}{}/{name}{shown_database}{database}{shown_fragment}",
            addresses.join(",")
        );
        let tls = match (secure, insecure) {
            (false, _) => None,
            (true, false) => Some(TlsMode::Secure),
            (true, true) => Some(TlsMode::Insecure),
        };
        Ok(Some(Self {
            master: Master {
                name: name.to_owned(),
                settings: server.redis_settings().clone(),
                sentinels,
                tls,
            },
            shown,
        }))
    }
}

fn fault<T>(why: &str) -> Result<T, NotARedisUrl> {
    Err(NotARedisUrl(why.to_owned()))
}

/// What is before the first `mark`, and what is after it.
fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// The name of the master, and the database: a number, or nothing.
fn path_of(path: &str) -> Result<(&str, &str), NotARedisUrl> {
    let (name, database) = split(path.trim_end_matches('/'), '/');
    // What Redis' documentation allows.
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !name.chars().all(is_fine) {
        return fault(
            "after the sentinels and a / comes the name of the master, of letters, digits and . - _",
        );
    }
    let database = database.unwrap_or_default();
    if !database.is_empty() && database.parse::<u16>().is_err() {
        return fault("what follows the name of the master is not the number of a database");
    }
    Ok((name, database))
}

fn parameters(query: &str) -> Result<Parameters<'_>, NotARedisUrl> {
    let mut parameters = Parameters::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = split(pair, '=');
        let value = value.unwrap_or_default();
        if value.contains(['@', '/']) {
            return fault("in the value of a parameter, @ and / are percent-encoded");
        }
        match name {
            "sentinel_user" => parameters.user = value,
            "sentinel_password" => parameters.password = Some(value),
            "sentinel_tls" => match value.to_ascii_lowercase().as_str() {
                "true" | "yes" | "1" => parameters.tls = true,
                "false" | "no" | "0" => parameters.tls = false,
                _ => return fault("sentinel_tls is neither true nor false"),
            },
            // A parameter's name may be a slip of a password.
            _ => return fault(&format!("a parameter is none of {PARAMETERS}")),
        }
    }
    Ok(parameters)
}

fn sentinels(
    hosts: &str,
    parameters: &Parameters<'_>,
    insecure: bool,
) -> Result<Vec<(String, ConnectionInfo)>, NotARedisUrl> {
    let scheme = if parameters.tls { "rediss" } else { "redis" };
    let fragment = if parameters.tls && insecure {
        "#insecure"
    } else {
        ""
    };
    let login = match (parameters.user, parameters.password) {
        ("", None) => String::new(),
        (user, None) => format!("{user}@"),
        (user, Some(password)) => format!("{user}:{password}@"),
    };
    let sentinel = |host: &str| {
        let bare = redis::parse_redis_url(&format!("redis://{host}"));
        let bare = bare.and_then(|url| Some((url.host_str()?.to_owned(), url.port())));
        let Some((name, port)) = bare.filter(|(name, _)| !name.is_empty()) else {
            return fault("one of the sentinels is not host or host:port");
        };
        let shown = format!("{name}:{}", port.unwrap_or(PORT));
        let info = connection_info(format!("{scheme}://{login}{shown}/{fragment}").as_str())?;
        Ok((shown, info))
    };
    hosts.split(',').map(sentinel).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::settings::RedisUrl;

    fn parsed(text: &str) -> (Master, String) {
        let url: RedisUrl = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let shown = url.to_string();
        (
            url.master().unwrap_or_else(|| panic!("{text}")).clone(),
            shown,
        )
    }

    #[test]
    fn a_url_of_sentinels_prints_without_secrets() {
        for (text, shown) in [
            ("redis+sentinel://a/calls", "redis+sentinel://a:26379/calls"),
            (
                "redis+sentinel://a:1,b,[::1]:3/calls/2",
                "redis+sentinel://a:1,b:26379,[::1]:3/calls/2",
            ),
            (
                "REDIS+SENTINEL://me:hunter2@a,b/calls/",
                "redis+sentinel://***@a:26379,b:26379/calls",
            ),
            (
                "rediss+sentinel://:hunter2@a/calls?sentinel_user=me&sentinel_password=hunter2#insecure",
                "rediss+sentinel://***@a:26379/calls#insecure",
            ),
        ] {
            let (_, found) = parsed(text);
            assert_eq!(found, shown, "{text}");
            let url: RedisUrl = text.parse().unwrap();
            assert!(!format!("{url:?}").contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn servers_and_sentinels_have_credentials_of_their_own() {
        let (master, _) = parsed(
            "rediss+sentinel://me:p%40ss@a,b:7/calls-1/3?sentinel_user=you&sentinel_password=w%2Frd&sentinel_tls=yes",
        );
        assert_eq!(master.name, "calls-1");
        assert_eq!(master.tls, Some(TlsMode::Secure));
        assert_eq!(master.settings.username(), Some("me"));
        assert_eq!(master.settings.password(), Some("p@ss"));
        assert_eq!(master.settings.db(), 3);
        let addresses: Vec<String> = master
            .sentinels
            .iter()
            .map(|(_, info)| info.addr().to_string())
            .collect();
        assert_eq!(addresses, ["a:26379", "b:7"]);
        for (_, info) in &master.sentinels {
            assert!(matches!(
                info.addr(),
                redis::ConnectionAddr::TcpTls {
                    insecure: false,
                    ..
                }
            ));
            assert_eq!(info.redis_settings().username(), Some("you"));
            assert_eq!(info.redis_settings().password(), Some("w/rd"));
            assert_eq!(info.redis_settings().db(), 0);
        }
        let (master, _) = parsed("redis+sentinel://a/calls");
        assert_eq!((master.tls, master.settings.password()), (None, None));
        assert_eq!(master.sentinels[0].1.redis_settings().password(), None);
    }

    #[test]
    fn what_is_no_url_of_sentinels_is_not_shown() {
        for (text, why) in [
            ("redis+sentinel://hunter2", "name of the master"),
            ("redis+sentinel://a/", "name of the master"),
            ("redis+sentinel://a//2", "name of the master"),
            ("redis+sentinel://a/hun ter2", "name of the master"),
            ("redis+sentinel://a/calls/hunter2", "number of a database"),
            ("redis+sentinel://a/calls/-1", "number of a database"),
            ("redis+sentinel://a,,b/calls", "host or host:port"),
            ("redis+sentinel:///calls", "host or host:port"),
            (
                "redis+sentinel://me:hunter2@a:hunter2/calls",
                "host or host:port",
            ),
            (
                "redis+sentinel://u:hunter2@a,u:hunter2@b/calls",
                "stand once",
            ),
            (
                "redis+sentinel://a/calls?hunter2=1",
                "none of sentinel_user",
            ),
            (
                "redis+sentinel://a/calls?sentinel_tls=hunter2",
                "neither true nor false",
            ),
            (
                "redis+sentinel://a/calls?sentinel_password=hunter2@b",
                "percent-encoded",
            ),
            ("redis+sentinel://a/calls#insecure", "#insecure"),
            ("rediss+sentinel://a/calls#hunter2", "#insecure"),
        ] {
            let error = text.parse::<RedisUrl>().err().map(|e| e.to_string());
            let error = error.unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_shown_without_its_password(rest in "[a-z0-9@:,/?#&=%.\\[\\]-]{0,40}") {
            let text = format!("redis+sentinel://me:HUNTER2@{rest}");
            match text.parse::<RedisUrl>() {
                Ok(url) => assert!(!url.to_string().contains("HUNTER2"), "{url}"),
                Err(error) => assert!(!error.to_string().contains("HUNTER2"), "{error}"),
            }
        }
    }
}
