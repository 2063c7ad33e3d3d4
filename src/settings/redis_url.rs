//! The address of Redis, which prints without user and password.
//!
//! It is read as redis-py 4.6 reads it, whose services share it: what stands before the `@` wins over
//! the query, the query wins over the path, and an unknown parameter is a fault.

use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, fs};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisResult, TlsCertificates,
};

use super::sentinel_url::{Master, SentinelUrl};
use super::url::{
    Login, Parts, Query, TORN, Used, decoded, fault, host_and_port, is_true, name, port_of,
};

/// The host of a URL that names none.
const HOST: &str = "localhost";

/// The port of a URL that names none.
const PORT: u16 = 6379;

/// A URL of one Redis server, or of the sentinels that know the server. It prints with `***` in
/// place of user and password.
#[derive(Clone)]
pub struct RedisUrl {
    text: String,
    shown: String,
    target: Target,
    advice: &'static str,
    has_one_word: bool,
    used: Used,
}

#[derive(Clone)]
enum Target {
    /// What has been left out is as usual.
    Usual,
    Server(Box<ConnectionInfo>),
    Master(Box<Master>),
}

/// The error of parsing a [`RedisUrl`]. Does not show the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotARedisUrl(pub(super) String);

impl RedisUrl {
    /// The server, and how to talk to it.
    ///
    /// # Errors
    /// Sentinels are to be asked for it.
    pub fn server(&self) -> RedisResult<ConnectionInfo> {
        match &self.target {
            Target::Usual => ConnectionAddr::Tcp(HOST.to_owned(), PORT).into_connection_info(),
            Target::Server(info) => Ok((**info).clone()),
            Target::Master(_) => {
                Err((ErrorKind::InvalidClientConfig, "the URL names sentinels").into())
            }
        }
    }

    /// Where the server is to be asked of sentinels: whom, for what, and how to talk to it.
    pub fn master(&self) -> Option<&Master> {
        match &self.target {
            Target::Master(master) => Some(master),
            Target::Usual | Target::Server(_) => None,
        }
    }

    /// What to see to if the server refuses the login.
    pub fn login_advice(&self) -> &'static str {
        self.advice
    }

    /// Whether a single word stands before the `@`, and no password anywhere.
    pub fn has_one_word(&self) -> bool {
        self.has_one_word
    }

    /// What its parameters do here, if it has any without effect.
    pub fn parameters(&self) -> Option<String> {
        let Used { in_effect, without } = &self.used;
        if without.is_empty() {
            return None;
        }
        let honoured = if in_effect.is_empty() {
            "none".to_owned()
        } else {
            in_effect.join(", ")
        };
        Some(format!(
            "parameters without effect: {}; in effect: {honoured}",
            without.join(", ")
        ))
    }
}

/// What to see to if the server refuses a login.
fn advice(login: &Login) -> &'static str {
    match (login.is_given(), login.has_one_word()) {
        (false, _) => {
            "it asks for a password, and there is none: redis://:password@host, or \
             redis://user:password@host"
        }
        (true, true) => {
            "a single word before the @ is the name of a user without a password; a password alone \
             stands behind a colon: redis://:password@host"
        }
        (true, false) => "see to user and password, with what is special in them percent-encoded",
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        let text = format!("redis://{HOST}");
        Self {
            shown: text.clone(),
            text,
            target: Target::Usual,
            advice: advice(&Login::default()),
            has_one_word: false,
            used: Used::default(),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = NotARedisUrl;

    fn from_str(text: &str) -> Result<Self, NotARedisUrl> {
        let Some(parts) = Parts::of(text) else {
            return fault("it begins with no scheme such as redis://");
        };
        if text.contains(char::is_control) {
            return fault("it holds a control character");
        }
        let (shown, target, login, used) = match parts.scheme.as_str() {
            "redis+sentinel" | "rediss+sentinel" => {
                let url = SentinelUrl::parse(&parts)?;
                let target = Target::Master(Box::new(url.master));
                (url.shown, target, url.login, url.used)
            }
            "redis" | "valkey" => of_tcp(&parts, false)?,
            "rediss" | "valkeys" => of_tcp(&parts, true)?,
            "unix" | "redis+unix" | "valkey+unix" => of_unix(&parts)?,
            _ => return fault("its scheme is none of redis://, rediss:// and unix://"),
        };
        Ok(Self {
            text: text.to_owned(),
            shown,
            target,
            advice: advice(&login),
            has_one_word: login.has_one_word(),
            used,
        })
    }
}

type Read = (String, Target, Login, Used);

/// A server that is reached by TCP.
fn of_tcp(parts: &Parts<'_>, has_tls: bool) -> Result<Read, NotARedisUrl> {
    let is_insecure = match parts.fragment {
        None => false,
        Some("insecure") if has_tls => true,
        Some(_) => return fault(format!("it holds a #; {TORN}")),
    };
    let query = Query::of(parts);
    let used = query.check(has_tls, &[])?;
    only_for("unix://", &query, &["path"])?;
    let login = login(parts, &query);
    if parts.may_be_torn() && !login.is_given() {
        return fault(format!("it holds an @ behind the host; {TORN}"));
    }
    let (host, port) = host_and_port(parts.hosts)?;
    let host = match (host, query.get("host")) {
        (Some(host), _) => Some(host),
        (None, Some(host)) => name(host.to_owned())?,
        (None, None) => None,
    };
    let host = host.unwrap_or_else(|| HOST.to_owned());
    let port = match (port, query.get("port")) {
        (None, Some(port)) => port_of(port)?,
        (port, _) => port,
    };
    let path = decoded(parts.path);
    let database = match (query.get("db"), path.trim_matches('/')) {
        (Some(database), _) => database_of(database, "the value of db")?,
        (None, "") => 0,
        (None, path) => database_of(path, "what follows the host")?,
    };

    let shown_host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let shown_port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let is_named = query.get("db").is_some() || !parts.path.is_empty();
    let shown_database = match database {
        0 if !is_named => String::new(),
        database => format!("/{database}"),
    };
    let shown = format!(
        "{}://{}{shown_host}{shown_port}{shown_database}{}",
        parts.scheme,
        if login.is_given() { "***@" } else { "" },
        if is_insecure { "#insecure" } else { "" },
    );
    let port = port.unwrap_or(PORT);
    let address = if has_tls {
        tls(host, port, is_insecure, &query)?
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    Ok((shown, server(address, &login, database)?, login, used))
}

/// What has a meaning of its own in the path of a URL.
const ENDS_A_PATH: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');

/// A server that is reached by a socket of the file system.
fn of_unix(parts: &Parts<'_>) -> Result<Read, NotARedisUrl> {
    if parts.fragment.is_some() {
        return fault(format!("it holds a #; {TORN}"));
    }
    if !parts.hosts.is_empty() {
        return fault("a path begins with a slash of its own: unix:///run/redis.sock");
    }
    let query = Query::of(parts);
    let used = query.check(false, &["user", "pass"])?;
    only_for("redis://", &query, &["host", "port"])?;
    let login = login(parts, &query);
    let path = match decoded(parts.path) {
        path if path.trim_matches('/').is_empty() => {
            query.get("path").unwrap_or_default().to_owned()
        }
        path => path,
    };
    if !path.starts_with('/') || path.ends_with('/') || path.contains(char::is_control) {
        return fault("it does not name the path of a socket: unix:///run/redis.sock");
    }
    let database = match query.get("db") {
        Some(database) => database_of(database, "the value of db")?,
        None => 0,
    };
    let shown = format!(
        "{}://{}{}{}",
        parts.scheme,
        if login.is_given() { "***@" } else { "" },
        utf8_percent_encode(&path, ENDS_A_PATH),
        match query.get("db") {
            Some(_) => format!("?db={database}"),
            None => String::new(),
        },
    );
    let address = ConnectionAddr::Unix(PathBuf::from(path));
    Ok((shown, server(address, &login, database)?, login, used))
}

/// The login of a URL: of user and password, each is taken from before the `@` if it stands there.
fn login(parts: &Parts<'_>, query: &Query) -> Login {
    let mut login = parts.login.map(Login::of).unwrap_or_default();
    let given = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| query.get(name))
            .map(str::to_owned)
    };
    login.user = login.user.or_else(|| given(["username", "user"]));
    login.password = login.password.or_else(|| given(["password", "pass"]));
    login
}

fn only_for(scheme: &str, query: &Query, names: &[&str]) -> Result<(), NotARedisUrl> {
    match names.iter().find(|name| query.get(name).is_some()) {
        Some(name) => fault(format!("the parameter {name} is for {scheme} alone")),
        None => Ok(()),
    }
}

/// The number of a database. `what` is where it stands; the text is not shown.
pub(super) fn database_of(text: &str, what: &str) -> Result<i64, NotARedisUrl> {
    let text = text.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<i32>() {
        Ok(database) if is_number => Ok(i64::from(database)),
        _ => fault(format!("{what} is not the number of a database")),
    }
}

fn server(address: ConnectionAddr, login: &Login, database: i64) -> Result<Target, NotARedisUrl> {
    let info = address.into_connection_info().map_err(told)?;
    let settings = login.applied_to(RedisConnectionInfo::default().set_db(database));
    Ok(Target::Server(Box::new(info.set_redis_settings(settings))))
}

/// An address by TLS, with what the parameters say of certificates.
fn tls(
    host: String,
    port: u16,
    is_insecure: bool,
    query: &Query,
) -> Result<ConnectionAddr, NotARedisUrl> {
    let requirement = query.get("ssl_cert_reqs").map(str::to_ascii_lowercase);
    let insecure = match requirement.as_deref() {
        None => is_insecure,
        Some("none") => true,
        // A server always has a certificate: then it is verified.
        Some("optional" | "required") => false,
        Some(_) => return fault("ssl_cert_reqs is none of none, optional and required"),
    };
    let address = ConnectionAddr::TcpTls {
        host,
        port,
        insecure,
        tls_params: None,
    };
    let root_cert = match (query.get("ssl_ca_certs"), query.get("ssl_ca_data")) {
        (Some(path), _) => Some(read("ssl_ca_certs", path)?),
        (None, Some(text)) => Some(text.as_bytes().to_vec()),
        (None, None) => None,
    };
    let has_certificate =
        |text: &Vec<u8>| String::from_utf8_lossy(text).contains("-----BEGIN CERTIFICATE-----");
    if root_cert
        .as_ref()
        .is_some_and(|text| !has_certificate(text))
    {
        return fault("its certificates: what ssl_ca_certs or ssl_ca_data names holds none");
    }
    let client_tls = match (query.get("ssl_certfile"), query.get("ssl_keyfile")) {
        (None, None) => None,
        (None, Some(_)) => return fault("ssl_keyfile needs ssl_certfile"),
        (Some(path), key) => Some(ClientTlsConfig {
            client_cert: read("ssl_certfile", path)?,
            client_key: read("ssl_keyfile", key.unwrap_or(path))?,
        }),
    };
    let mut address = if root_cert.is_none() && client_tls.is_none() {
        address
    } else {
        let certificates = TlsCertificates {
            client_tls,
            root_cert,
        };
        let client = Client::build_with_tls(address, certificates);
        let client = client.map_err(|error| NotARedisUrl(format!("its certificates: {error}")))?;
        client.get_connection_info().addr().clone()
    };
    if query
        .get("ssl_check_hostname")
        .is_some_and(|value| !is_true(value))
    {
        address.set_danger_accept_invalid_hostnames(true);
    }
    Ok(address)
}

fn read(name: &str, path: &str) -> Result<Vec<u8>, NotARedisUrl> {
    fs::read(path).map_err(|error| NotARedisUrl(format!("{name}: could not read {path}: {error}")))
}

/// An error of the client library; only its category, because the rest may quote the URL.
pub(super) fn told(error: redis::RedisError) -> NotARedisUrl {
    NotARedisUrl(error.category().to_owned())
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
    #![allow(clippy::unwrap_used, clippy::panic)]

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

    fn parsed(text: &str) -> RedisUrl {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_url_prints_without_user_and_password() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost"),
            ("redis://", "redis://localhost"),
            ("redis://localhost:6380/2", "redis://localhost:6380/2"),
            ("redis://localhost/", "redis://localhost/0"),
            ("redis://localhost?db=4", "redis://localhost/4"),
            ("redis://localhost/x?db=4", "redis://localhost/4"),
            ("redis://localhost?db=0", "redis://localhost/0"),
            ("redis://me:hunter2@host/0", "redis://***@host/0"),
            ("redis://:hunter2@host", "redis://***@host"),
            ("redis://:@host", "redis://host"),
            ("redis://host?password=hunter2", "redis://***@host"),
            ("REDISS://hunter2@host:1", "rediss://***@host:1"),
            ("rediss://h:1/#insecure", "rediss://h:1/0#insecure"),
            ("rediss://h#insecure", "rediss://h#insecure"),
            ("valkey://h", "valkey://h"),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
            ("unix:///run/@redis.sock", "unix:///run/@redis.sock"),
            ("unix:///run/%25a%3Fb.sock", "unix:///run/%25a%3Fb.sock"),
            (
                "unix:///run/redis.sock?user=me&pass=hunter2&db=1",
                "unix://***@/run/redis.sock?db=1",
            ),
            (
                "redis+unix:///r.sock?pass=hunter2",
                "redis+unix://***@/r.sock",
            ),
        ] {
            let url = parsed(text);
            assert_eq!(url.to_string(), shown, "{text}");
            assert!(!format!("{url:?}").contains("hunter2"), "{text}");
        }
    }

    /// Address, user, password and database.
    fn read_as(text: &str) -> (String, Option<String>, Option<String>, i64) {
        let info = parsed(text)
            .server()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let settings = info.redis_settings();
        let own = |text: Option<&str>| text.map(str::to_owned);
        (
            info.addr().to_string(),
            own(settings.username()),
            own(settings.password()),
            settings.db(),
        )
    }

    #[test]
    fn a_url_is_read_as_by_the_peer() {
        for (text, address, user, password, database) in [
            ("redis://h", "h:6379", None, None, 0),
            ("redis://", "localhost:6379", None, None, 0),
            ("redis://:6380", "localhost:6380", None, None, 0),
            ("redis:///3", "localhost:6379", None, None, 3),
            ("redis://h/3/", "h:6379", None, None, 3),
            ("redis://h//3", "h:6379", None, None, 3),
            ("redis://h/%33", "h:6379", None, None, 3),
            ("redis://h?db=4", "h:6379", None, None, 4),
            ("redis://h/3?db=4", "h:6379", None, None, 4),
            ("redis://h/3?db=", "h:6379", None, None, 3),
            ("redis://h/2147483647", "h:6379", None, None, 2_147_483_647),
            ("redis://h:1?port=2&host=x", "h:1", None, None, 0),
            ("redis://?port=2&host=x", "x:2", None, None, 0),
            ("redis://:p@h", "h:6379", None, Some("p"), 0),
            ("redis://u:p@h", "h:6379", Some("u"), Some("p"), 0),
            ("redis://u@h", "h:6379", Some("u"), Some(""), 0),
            ("redis://u:@h", "h:6379", Some("u"), Some(""), 0),
            ("redis://:a:b@c@h", "h:6379", None, Some("a:b@c"), 0),
            (
                "redis://:de%3Ask%407%2F%25@h/1",
                "h:6379",
                None,
                Some("de:sk@7/%"),
                1,
            ),
            (
                "redis://h?username=u&password=a%2Bb+c",
                "h:6379",
                Some("u"),
                Some("a+b c"),
                0,
            ),
            ("redis://h?password=a@b", "h:6379", None, Some("a@b"), 0),
            (
                "redis://u:p@h?username=v&password=q",
                "h:6379",
                Some("u"),
                Some("p"),
                0,
            ),
            (
                "redis://:p@h?username=v&password=q",
                "h:6379",
                Some("v"),
                Some("p"),
                0,
            ),
            ("redis://u@h?password=q", "h:6379", Some("u"), Some("q"), 0),
            ("redis://[::1]/2", "::1:6379", None, None, 2),
            ("rediss://[::1]:7", "::1:7", None, None, 0),
            ("unix:///a/b.sock", "/a/b.sock", None, None, 0),
            ("unix:///a%20b.sock?db=2", "/a b.sock", None, None, 2),
            ("unix://?path=/a.sock", "/a.sock", None, None, 0),
            ("unix://u:p@/a.sock", "/a.sock", Some("u"), Some("p"), 0),
            (
                "unix:///a.sock?username=u&password=p",
                "/a.sock",
                Some("u"),
                Some("p"),
                0,
            ),
        ] {
            let expected = (
                address.to_owned(),
                user.map(str::to_owned),
                password.map(str::to_owned),
                database,
            );
            assert_eq!(read_as(text), expected, "{text}");
            assert!(parsed(text).master().is_none());
        }
        let usual = RedisUrl::default().server().unwrap().addr().to_string();
        assert_eq!(usual, "localhost:6379");
        assert!(parsed("redis+sentinel://a/b").server().is_err());
    }

    #[test]
    fn certificates_are_verified_unless_the_url_says_otherwise() {
        for (text, expected) in [
            ("rediss://h", false),
            ("rediss://h?ssl_cert_reqs=required", false),
            ("rediss://h?ssl_cert_reqs=optional#insecure", false),
            ("rediss://h?ssl_cert_reqs=None", true),
            ("rediss://h#insecure", true),
        ] {
            let info = parsed(text).server().unwrap();
            let ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } = info.addr()
            else {
                panic!("{text}: {:?}", info.addr());
            };
            assert_eq!(*insecure, expected, "{text}");
            assert!(tls_params.is_none(), "{text}");
        }
        for (value, is_lax) in [("false", true), ("0", true), ("true", false)] {
            let text = format!("rediss://h?ssl_check_hostname={value}");
            let info = parsed(&text).server().unwrap();
            let ConnectionAddr::TcpTls { tls_params, .. } = info.addr() else {
                panic!("{text}: {:?}", info.addr());
            };
            assert_eq!(tls_params.is_some(), is_lax, "{text}");
        }
    }

    #[test]
    fn files_of_certificates_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.pem");
        let path = path.display();
        for (text, why) in [
            (
                format!("rediss://h?ssl_ca_certs={path}"),
                "ssl_ca_certs: could not read /",
            ),
            (
                format!("rediss://h?ssl_certfile={path}"),
                "ssl_certfile: could not read /",
            ),
            (
                format!("rediss://h?ssl_certfile=/dev/null&ssl_keyfile={path}"),
                "ssl_keyfile: could not read /",
            ),
            (
                "rediss://h?ssl_certfile=/dev/null".to_owned(),
                "its certificates: ",
            ),
            (
                format!("rediss://h?ssl_keyfile={path}"),
                "ssl_keyfile needs ssl_certfile",
            ),
            (
                "rediss://h?ssl_ca_data=-----BEGIN CERTIFICATE-----\u{20}x".to_owned(),
                "its certificates: ",
            ),
            (
                "rediss://h?ssl_ca_certs=/dev/null".to_owned(),
                "its certificates: what ssl_ca_certs",
            ),
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }

    #[test]
    fn urls_are_the_same_if_they_are_written_in_the_same_way() {
        assert_eq!(parsed("redis://h/1"), parsed("redis://h/1"));
        assert_ne!(parsed("redis://h/1"), parsed("redis://h?db=1"));
        assert_ne!(parsed("redis://:p@h"), parsed("redis://:q@h"));
        assert_eq!(format!("{:?}", parsed("redis://h")), "RedisUrl(redis://h)");
    }

    #[test]
    fn parameters_without_effect_are_told() {
        assert_eq!(parsed("redis://h?db=1").parameters(), None);
        assert_eq!(
            parsed("redis://h?socket_timeout=5&db=1&retry=x").parameters(),
            Some("parameters without effect: socket_timeout, retry; in effect: db".to_owned())
        );
        assert_eq!(
            parsed("redis://h?socket_timeout=5").parameters(),
            Some("parameters without effect: socket_timeout; in effect: none".to_owned())
        );
    }

    #[test]
    fn a_refused_login_is_advised_by_what_the_url_says() {
        for (text, advice) in [
            ("redis://h", "there is none"),
            ("redis://word@h", "single word"),
            ("redis://word:@h", "see to user"),
            ("redis://word@h?password=p", "see to user"),
            ("redis://:p@h", "see to user"),
            ("redis+sentinel://word@h/m", "single word"),
        ] {
            let said = parsed(text).login_advice();
            assert!(said.contains(advice) && said.contains("password"), "{text}");
            assert_eq!(
                parsed(text).has_one_word(),
                advice == "single word",
                "{text}"
            );
        }
        let usual = RedisUrl::default();
        assert!(usual.login_advice().contains("there is none"));
        assert!(!usual.has_one_word());
    }

    #[test]
    fn what_is_no_redis_url_is_not_shown() {
        for (text, why) in [
            ("hunter2", "redis://"),
            ("hunter2:6379/1", "redis://"),
            ("http://hunter2@host", "scheme"),
            ("redis://me:hunter2@host/hunter2", "number of a database"),
            ("redis://host/hunter2", "number of a database"),
            ("redis://host/1/2", "number of a database"),
            ("redis://host/-1", "number of a database"),
            ("redis://host/+1", "number of a database"),
            ("redis://host?db=hunter2", "value of db"),
            ("redis://host?db=-1", "value of db"),
            ("redis://host?db=2147483648", "value of db"),
            ("redis://me:hunter2@host:hunter2", "number of a port"),
            ("redis://me:hunter2", "number of a port"),
            ("redis://host?port=hunter2", "number of a port"),
            ("redis://?host=hunter2/", "the host"),
            ("redis://::1/2", "[ and ]"),
            ("redis://h\ro", "control character"),
            ("rediss://me:hunter2@host/#hunter2", "%23"),
            ("redis://host#insecure", "%23"),
            ("unix:///a#hunter2", "%23"),
            ("redis://:12#hunter2@host", "%23"),
            ("redis://:12?hunter2=1@host", "%3F"),
            ("redis://:12?hunter2@host", "%2F"),
            ("redis://:12/3?db=1&hunter2@host", "%2F"),
            ("redis://:1/hunter2@host", "%2F"),
            ("redis://host?databse=1", "unknown parameter databse"),
            ("redis://host?socket_timeout=hunter2", "socket_timeout"),
            ("redis://host?path=/hunter2", "parameter path"),
            ("redis://host?ssl_cert_reqs=none", "ssl_cert_reqs"),
            ("rediss://host?ssl_cert_reqs=hunter2", "ssl_cert_reqs"),
            ("unix://hunter2/a.sock", "slash of its own"),
            ("unix://", "path of a socket"),
            ("unix:///", "path of a socket"),
            ("unix:///a/", "path of a socket"),
            ("unix:///a%00b", "path of a socket"),
            ("unix://?path=a", "path of a socket"),
            ("unix:///a?db=hunter2", "value of db"),
            ("unix:///a?port=1", "parameter port"),
            ("unix:///a?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ] {
            let error = text.parse::<RedisUrl>().err().map(|e| e.to_string());
            let error = error.unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }
}
