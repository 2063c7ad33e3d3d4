//! The address of a Redis that sentinels look after:
//! `redis+sentinel://[user:password@]host[:26379][,host…]/<master name>[/db][?parameters]`.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsMode};

use super::redis_url::{NotARedisUrl, database_of, told};
use super::url::{Login, Query, UrlParts, Used, fault, host_and_port, split};

/// Where a sentinel listens when the URL does not say.
const PORT: u16 = 26379;

const PARAMETERS: [&str; 3] = ["sentinel_user", "sentinel_password", "sentinel_tls"];

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
    /// How to log in to the master.
    pub login: Login,
    pub used: Used,
}

/// How the sentinels are reached.
struct Access {
    login: Login,
    tls: Option<TlsMode>,
}

impl SentinelUrl {
    /// Reads the parts of such a URL.
    pub fn parse(parts: &UrlParts<'_>) -> Result<Self, NotARedisUrl> {
        let secure = parts.scheme == "rediss+sentinel";
        if parts.login.is_some_and(|login| login.contains(['@', ','])) {
            return fault(
                "user and password stand once, before the first sentinel, with @ and , percent-encoded",
            );
        }
        let mode = match parts.fragment {
            None => TlsMode::Secure,
            Some("insecure") if secure => TlsMode::Insecure,
            Some(_) => return fault("only rediss+sentinel:// can end in #insecure"),
        };
        let query = Query::of(parts);
        let used = query.check(false, &PARAMETERS)?;
        let access = Access {
            login: Login {
                user: query.get("sentinel_user").map(str::to_owned),
                password: query.get("sentinel_password").map(str::to_owned),
                is_one_word: false,
            },
            tls: is_yes(&query, "sentinel_tls")?.then_some(mode),
        };
        let (name, database) = path_of(parts.path)?;
        let database = match (query.get("db"), database) {
            (Some(database), _) => Some(database_of(database, "the value of db")?),
            (None, "") => None,
            (None, text) => Some(database_of(text, "what follows the name of the master")?),
        };
        let mut login = parts.login.map(Login::of).unwrap_or_default();
        login.user = login
            .user
            .or_else(|| query.get("username").map(str::to_owned));
        login.password = login
            .password
            .or_else(|| query.get("password").map(str::to_owned));
        let sentinels: Result<Vec<_>, _> =
            parts.hosts.split(',').map(|host| access.to(host)).collect();
        let sentinels = sentinels?;

        let settings = RedisConnectionInfo::default().set_db(database.unwrap_or(0));
        let addresses: Vec<&str> = sentinels.iter().map(|(shown, _)| shown.as_str()).collect();
        let shown = format!(
            "{}://{}{}/{name}{}{}",
            parts.scheme,
            if login.is_given() { "***@" } else { "" },
            addresses.join(","),
            database
                .map(|number| format!("/{number}"))
                .unwrap_or_default(),
            if mode == TlsMode::Insecure {
                "#insecure"
            } else {
                ""
            },
        );
        Ok(Self {
            master: Master {
                name: name.to_owned(),
                settings: login.applied_to(settings),
                sentinels,
                tls: secure.then_some(mode),
            },
            shown,
            login,
            used,
        })
    }
}

impl Access {
    /// A sentinel, and its address as it is shown.
    fn to(&self, host: &str) -> Result<(String, ConnectionInfo), NotARedisUrl> {
        let Ok((Some(host), port)) = host_and_port(host) else {
            return fault("one of the sentinels is not host or host:port");
        };
        let port = port.unwrap_or(PORT);
        let shown = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let address = address(self.tls, host, port);
        let info = address.into_connection_info().map_err(told)?;
        let settings = self.login.applied_to(RedisConnectionInfo::default());
        Ok((shown, info.set_redis_settings(settings)))
    }
}

impl Master {
    /// How it is reached at this host and port.
    pub fn address(&self, host: String, port: u16) -> ConnectionAddr {
        address(self.tls, host, port)
    }
}

fn address(tls: Option<TlsMode>, host: String, port: u16) -> ConnectionAddr {
    match tls {
        None => ConnectionAddr::Tcp(host, port),
        Some(mode) => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: mode == TlsMode::Insecure,
            tls_params: None,
        },
    }
}

/// The name of the master, and what follows it.
fn path_of(path: &str) -> Result<(&str, &str), NotARedisUrl> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (name, database) = split(path.trim_end_matches('/'), '/');
    // What Redis' documentation allows.
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !name.chars().all(is_fine) {
        return fault(
            "after the sentinels and a / comes the name of the master, of letters, digits and . - _",
        );
    }
    Ok((name, database.unwrap_or_default()))
}

fn is_yes(query: &Query, name: &str) -> Result<bool, NotARedisUrl> {
    match query.get(name).map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "yes" | "1") => Ok(true),
        None | Some("false" | "no" | "0") => Ok(false),
        Some(_) => fault(format!("{name} is neither true nor false")),
    }
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
        let (master, shown) =
            parsed("redis+sentinel://a/calls/1?db=2&username=u&password=p&socket_timeout=1");
        assert_eq!(shown, "redis+sentinel://***@a:26379/calls/2");
        assert_eq!(master.settings.username(), Some("u"));
        assert_eq!(master.settings.password(), Some("p"));
        assert_eq!(master.settings.db(), 2);
        let (master, _) = parsed("rediss+sentinel://a/calls?sentinel_tls=yes#insecure");
        assert_eq!(master.tls, Some(TlsMode::Insecure));
        let address = master.sentinels[0].1.addr();
        assert!(matches!(
            address,
            ConnectionAddr::TcpTls { insecure: true, .. }
        ));
        for text in [
            "redis+sentinel://a/calls?sentinel_tls=no",
            "rediss+sentinel://a/calls",
        ] {
            let (master, _) = parsed(text);
            let address = master.sentinels[0].1.addr();
            assert!(matches!(address, ConnectionAddr::Tcp(..)), "{text}");
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
            ("redis+sentinel://a/calls?hunter2 =1", "cannot be one"),
            (
                "redis+sentinel://a/calls?hunter2=1&x=@",
                "unknown parameter",
            ),
            (
                "redis+sentinel://a/calls?sentinel=1",
                "unknown parameter sentinel;",
            ),
            (
                "redis+sentinel://a/calls?sentinel_tls=hunter2",
                "neither true nor false",
            ),
            ("redis+sentinel://a/calls?db=hunter2", "the value of db"),
            (
                "redis+sentinel://a/calls?ssl_cert_reqs=none",
                "rediss:// alone",
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
