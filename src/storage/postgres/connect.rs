//! The way to the server: one host or several, with their ports, as for PostgreSQL's own clients; with TLS or
//! without; with startup options or, if a pooler refuses them, without.
//!
//! | option | default | |
//! |---|---|---|
//! | `host` | `localhost` | names or addresses, tried in this order: `a,b` or a list; or the directory of a Unix socket, as `/var/run/postgresql` |
//! | `port` | `5432` | one for all hosts, or one for each: `5432,5433` or a list |
//! | `target_session_attrs` | `any`; with several hosts `read-write` | `any`: the first server that lets us in; `read-write`, `primary`: the first that takes writes |
//!
//! A URL or a service is refused, as this storage does not read them: what it would fall back to is
//! another database.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::config::{SslMode, TargetSessionAttrs};
use postgres::{Client, Config, Error, NoTls};
use uuid::Uuid;

use super::errors::{is_crowded, may_work_without_options, may_work_without_tls, reason, refused};
use super::session::startup_options;
use super::statements::Table;
use super::tls::Tls;
use super::wire::{CallLimits, Wire};
use crate::options::Options;

/// A server that acknowledges nothing for this long is gone.
const VANISHED: Duration = Duration::from_secs(20);

/// The fault of an option `port` that is wrong.
const PORTS: &str =
    "must be whole numbers from 1 to 65535: one for all hosts, or one for each host";

/// Options of PostgreSQL's own clients that are not supported, and the ones to use instead.
const NOT_HERE: &[(&str, &str)] = &[
    ("service", "host, port, database, user and password"),
    ("servicefile", "host, port, database, user and password"),
    ("url", "host, port, database, user and password"),
    ("uri", "host, port, database, user and password"),
    ("dsn", "host, port, database, user and password"),
    ("conninfo", "host, port, database, user and password"),
    ("hostaddr", "host, which may be an address"),
    ("passfile", "password, or password_file"),
    ("dbname", "database"),
];

/// The hosts and ports, and whether any of the servers is acceptable or only one that writes.
#[derive(Debug, PartialEq)]
pub(super) struct Hosts {
    /// Never empty.
    hosts: Vec<(String, u16)>,
    are_sockets: bool,
    wants_writes: bool,
}

impl Hosts {
    /// Reads the options.
    pub(super) fn read(options: &mut Options) -> Self {
        for (key, instead) in NOT_HERE {
            options.refuse(key, format!("is not supported; use {instead}"));
        }
        let names = names(options);
        let are_sockets = names.iter().all(|name| name.starts_with('/'));
        let ports = ports(options, names.len());
        let wants_writes = wants_writes(options, names.len());
        Self {
            hosts: names.into_iter().zip(ports).collect(),
            are_sockets,
            wants_writes,
        }
    }

    /// Tells the client library which servers are acceptable.
    pub(super) fn add_to(&self, config: &mut Config) {
        if self.wants_writes {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
    }

    /// Each of them, in the order in which they are tried.
    pub(super) fn each(&self) -> Vec<Host> {
        let host = |(name, port): &(String, u16)| Host::new(name, *port);
        self.hosts.iter().map(host).collect()
    }

    /// Whether they are directories of Unix sockets.
    pub(super) fn are_sockets(&self) -> bool {
        self.are_sockets
    }

    /// Whether all of them are on this host, as far as their names tell: nobody on a network can take
    /// their place.
    pub(super) fn are_local(&self) -> bool {
        let is_local = |name: &str| {
            let address: Option<IpAddr> = name.parse().ok();
            name == "localhost" || address.is_some_and(|it| it.to_canonical().is_loopback())
        };
        self.are_sockets || self.hosts.iter().all(|(name, _)| is_local(name))
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.hosts.len()).unwrap_or(u32::MAX)
    }

    /// What messages call them.
    pub(super) fn shown(&self) -> String {
        let all: Vec<String> = self.each().iter().map(Host::shown).collect();
        all.join(",")
    }
}

/// One of the hosts.
#[derive(Clone)]
pub(super) struct Host {
    name: String,
    port: u16,
    /// It is a pooler that refuses the startup parameter `options`.
    pub(super) refuses_options: Arc<AtomicBool>,
}

impl Host {
    pub(super) fn new(name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            port,
            refuses_options: Arc::default(),
        }
    }

    /// Returns this configuration for each address of the host. Given several, the client library
    /// reports only why the last one failed, which does not show how to try another one again.
    pub(super) fn configs(&self, config: &Config) -> Result<Vec<Config>, String> {
        let mut config = config.clone();
        config.host(&self.name).port(self.port);
        if self.name.starts_with('/') {
            return Ok(vec![config]);
        }
        let found = (self.name.as_str(), self.port).to_socket_addrs();
        let found = found.map_err(|e| format!("could not look up the host: {e}"))?;
        // The name stays: it is what the server's certificate is for.
        let configs: Vec<Config> = found
            .map(|address| config.clone().hostaddr(address.ip()).clone())
            .collect();
        if configs.is_empty() {
            return Err("the host has no address".to_owned());
        }
        Ok(configs)
    }

    /// What messages call it.
    pub(super) fn shown(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }
}

/// The items of a list, each of which may hold several with commas between them.
fn items(options: &mut Options, key: &str) -> Vec<String> {
    let given = options.strings(key);
    let parts = given.iter().flat_map(|text| text.split(','));
    parts.map(|part| part.trim().to_owned()).collect()
}

fn names(options: &mut Options) -> Vec<String> {
    let mut names = items(options, "host");
    if names.is_empty() {
        names.push("localhost".to_owned());
    }
    // The value is not shown: a URL may hold a password.
    let is = |test: fn(&String) -> bool| names.iter().any(test);
    let fault = if is(|name| name.contains("://") || name.contains('=')) {
        "is a URL or a connection string, which is not supported; use host, port, database, user and \
         password"
    } else if is(|name| name.contains('\0')) {
        "holds a NUL character"
    } else if is(String::is_empty) {
        "has an empty name in it"
    } else if is(|name| name.starts_with('@')) {
        "is an abstract socket, which is not supported"
    } else if is(|name| name.contains("/.s.PGSQL.")) {
        "must be the directory of the Unix socket, as /var/run/postgresql, not the socket"
    } else if is(|name| name.starts_with('/')) && is(|name| !name.starts_with('/')) {
        "must be names and addresses, or directories of Unix sockets, not both"
    } else {
        return names;
    };
    options.fault("host", fault);
    names
}

/// The port of each host.
fn ports(options: &mut Options, count: usize) -> Vec<u16> {
    let mut given = items(options, "port");
    if given.len() < 2 {
        given = vec![options.integer_or("port", 5432, 1..=65535).to_string()];
    }
    // As for PostgreSQL's own clients, an empty one is the default.
    let parsed = |text: &String| match text.as_str() {
        "" => Some(5432),
        text => text.parse().ok().filter(|port| *port > 0),
    };
    let ports: Option<Vec<u16>> = given.iter().map(parsed).collect();
    match ports.as_deref() {
        Some([one]) => vec![*one; count],
        Some(each) if each.len() == count => each.to_vec(),
        Some(each) => {
            let message = format!("{PORTS}; there are {} ports, hosts: {count}", each.len());
            options.fault("port", message);
            vec![5432; count]
        }
        None => {
            options.fault("port", PORTS);
            vec![5432; count]
        }
    }
}

fn wants_writes(options: &mut Options, count: usize) -> bool {
    let default = if count > 1 { "read-write" } else { "any" };
    // All others would take a server that writes nothing.
    let known = ["any", "read-write", "primary"];
    options.word_or("target_session_attrs", default, &known) != Some("any")
}

/// Everything that is needed to open a session.
#[derive(Clone)]
pub(super) struct ServerAccess {
    /// Tried in this order.
    pub(super) hosts: Vec<Host>,
    /// Without a host.
    pub(super) config: Config,
    /// `None` over a Unix socket.
    pub(super) tls: Option<Tls>,
    pub(super) table: Table,
    pub(super) statement_timeout: Duration,
    /// The time limit for opening a session.
    pub(super) connect_limit: Duration,
}

/// A connection, and the wire that made it; `None` over a Unix socket.
pub(super) type Connected = (Client, Option<Wire>);

impl ServerAccess {
    /// Connects to the first acceptable host. Tries each in all ways before the next: one that needs
    /// another way must not be lost because the last one is down.
    pub(super) fn connect(&self, id: Uuid, limits: &CallLimits) -> Result<Connected, DialError> {
        let mut config = self.config.clone();
        config.tcp_user_timeout(VANISHED);
        first(self.hosts.iter().map(|host| {
            let connected = self.connect_to(host, &config, id, limits);
            connected.map_err(|mut refusal| {
                if self.hosts.len() > 1 {
                    refusal.why = format!("{}: {}", host.shown(), refusal.why);
                }
                refusal
            })
        }))
    }

    fn connect_to(
        &self,
        host: &Host,
        config: &Config,
        id: Uuid,
        limits: &CallLimits,
    ) -> Result<Connected, DialError> {
        let configs = host.configs(config)?;
        first(configs.into_iter().map(|plain| {
            if host.refuses_options.load(Ordering::Relaxed) {
                return self.dial(plain, limits);
            }
            let mut config = plain.clone();
            config.options(&startup_options(self.statement_timeout, id));
            match self.dial(config, limits) {
                Err(refusal) if refusal.may_be_for_options => {
                    let connected = self.dial(plain, limits)?;
                    host.refuses_options.store(true, Ordering::Relaxed);
                    Ok(connected)
                }
                dialled => dialled,
            }
        }))
    }

    /// Connects with or without TLS, as `sslmode` says.
    fn dial(&self, mut config: Config, limits: &CallLimits) -> Result<Connected, DialError> {
        let Some(tls) = &self.tls else {
            config.ssl_mode(SslMode::Disable);
            let client = config.connect(NoTls);
            return client.map(|it| (it, None)).map_err(DialError::from);
        };
        let mut addresses = config.get_hostaddrs().iter();
        let is_local = addresses.all(|it| it.to_canonical().is_loopback());
        let mut wire = tls.wire(is_local, limits)?;
        let client = match wire.connect(config.clone()) {
            Err(error) if tls.is_optional() && may_work_without_tls(&error) => {
                wire.tls = None;
                wire.connect(config).map_err(|second| {
                    let is_refused = refused(&second).is_some();
                    let mut refusal = DialError::from(second);
                    // The first error is nearer to the cause.
                    refusal.why = match is_refused {
                        true => format!("{}; without TLS: {}", reason(&error), refusal.why),
                        false => reason(&error),
                    };
                    refusal
                })?
            }
            client => client?,
        };
        Ok((client, Some(wire)))
    }
}

/// Returns the first success. If there is none, the error has each reason once.
fn first<T>(attempts: impl Iterator<Item = Result<T, DialError>>) -> Result<T, DialError> {
    let (mut reasons, mut is_crowded) = (Vec::new(), false);
    for attempt in attempts {
        match attempt {
            Ok(done) => return Ok(done),
            Err(refusal) => {
                is_crowded |= refusal.is_crowded;
                if !reasons.contains(&refusal.why) {
                    reasons.push(refusal.why);
                }
            }
        }
    }
    let mut refusal = DialError::from(reasons.join("; "));
    refusal.is_crowded = is_crowded;
    Err(refusal)
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct DialError {
    pub(super) why: String,
    /// A connection without the startup parameter `options` may succeed.
    may_be_for_options: bool,
    /// There are too many already.
    pub(super) is_crowded: bool,
}

impl From<Error> for DialError {
    fn from(error: Error) -> Self {
        Self {
            why: reason(&error),
            may_be_for_options: may_work_without_options(&error) && !is_crowded(&error),
            is_crowded: is_crowded(&error),
        }
    }
}

impl From<String> for DialError {
    fn from(why: String) -> Self {
        Self {
            why,
            may_be_for_options: false,
            is_crowded: false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use postgres::config::Host as WireHost;

    use super::*;

    fn read(yaml: &str) -> (Hosts, Vec<String>) {
        let mut options = Options::from_yaml(yaml);
        let hosts = Hosts::read(&mut options);
        options.finish();
        (hosts, options.faults())
    }

    #[test]
    fn hosts_and_ports_are_read_as_by_postgresqls_own_clients() {
        for (yaml, shown, wants_writes) in [
            ("{}", "localhost:5432", false),
            ("host: db", "db:5432", false),
            ("{host: db, port: 6432}", "db:6432", false),
            ("{host: '::1', port: '6432'}", "::1:6432", false),
            ("host: 'a,b'", "a:5432,b:5432", true),
            ("{host: 'a, b', port: '1,2'}", "a:1,b:2", true),
            ("{host: [a, b, c], port: [1, 2, 3]}", "a:1,b:2,c:3", true),
            ("{host: 'a,b', port: 7}", "a:7,b:7", true),
            ("{host: 'a,b', port: ',7'}", "a:5432,b:7", true),
            (
                "{host: 'a,b', target_session_attrs: any}",
                "a:5432,b:5432",
                false,
            ),
            (
                "{host: a, target_session_attrs: read-write}",
                "a:5432",
                true,
            ),
            ("{host: a, target_session_attrs: primary}", "a:5432", true),
        ] {
            let (hosts, faults) = read(yaml);
            assert_eq!(faults, [""; 0], "{yaml}");
            assert_eq!(hosts.shown(), shown, "{yaml}");
            assert_eq!(hosts.wants_writes, wants_writes, "{yaml}");
            assert!(!hosts.are_sockets());
            let is_local = ["localhost:5432", "::1:6432"].contains(&shown);
            assert_eq!(hosts.are_local(), is_local, "{yaml}");
            let mut config = Config::new();
            hosts.add_to(&mut config);
            assert_eq!(hosts.count() as usize, hosts.each().len());
            let writes = config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite;
            assert_eq!(writes, wants_writes, "{yaml}");
        }
        let (hosts, faults) = read("host: /var/run/postgresql");
        assert_eq!(faults, [""; 0]);
        assert_eq!(hosts.shown(), "/var/run/postgresql:5432");
        assert!(hosts.are_sockets() && hosts.are_local());
    }

    #[test]
    fn each_address_of_a_host_is_tried_on_its_own_and_under_its_name() {
        let mut config = Config::new();
        config.dbname("calls");
        for name in ["127.0.0.1", "::1", "localhost"] {
            let configs = Host::new(name, 7).configs(&config);
            assert!(configs.as_ref().is_ok_and(|all| !all.is_empty()), "{name}");
            for config in configs.unwrap_or_default() {
                assert_eq!(config.get_hosts(), [WireHost::Tcp(name.to_owned())]);
                assert_eq!(config.get_hostaddrs().len(), 1, "{name}");
                assert!(config.get_hostaddrs()[0].is_loopback(), "{name}");
                assert_eq!(config.get_ports(), [7]);
                assert_eq!(config.get_dbname(), Some("calls"));
            }
        }
        let socket = Host::new("/var/run/postgresql", 7).configs(&config);
        let socket = socket.unwrap_or_default();
        assert_eq!(socket.len(), 1);
        assert_eq!(
            socket[0].get_hosts(),
            [WireHost::Unix("/var/run/postgresql".into())]
        );
        assert!(socket[0].get_hostaddrs().is_empty());
        assert!(Host::new("no such.host", 7).configs(&config).is_err());
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_its_key() {
        let url = "host: is a URL or a connection string, which is not supported; use host, port, \
                   database, user and password";
        let ports = format!("port: {PORTS}");
        for (yaml, fault) in [
            ("host: 'postgresql://u:secret@db/calls'", url),
            ("host: 'host=db password=secret'", url),
            ("host: 'service=calls'", url),
            ("host: 'a,,b'", "host: has an empty name in it"),
            (
                "host: '@pg'",
                "host: is an abstract socket, which is not supported",
            ),
            ("host: \"a\\0\"", "host: holds a NUL character"),
            (
                "host: /var/run/postgresql/.s.PGSQL.5432",
                "host: must be the directory of the Unix socket, as /var/run/postgresql, not the socket",
            ),
            (
                "host: [/var/run/postgresql, db]",
                "host: must be names and addresses, or directories of Unix sockets, not both",
            ),
            (
                "port: fuor",
                "port: \"fuor\" is not a whole number from 1 to 65535",
            ),
            (
                "port: 0",
                "port: \"0\" is not a whole number from 1 to 65535",
            ),
            ("{host: 'a,b', port: '1,x'}", &*ports),
            ("{host: 'a,b', port: '1,0'}", &*ports),
            (
                "{host: 'a,b', port: '1,2,3'}",
                &*format!("{ports}; there are 3 ports, hosts: 2"),
            ),
            (
                "target_session_attrs: standby",
                r#"target_session_attrs: "standby" is not any, read-write or primary"#,
            ),
            (
                "service: calls",
                "service: is not supported; use host, port, database, user and password",
            ),
            (
                "hostaddr: 10.0.0.1",
                "hostaddr: is not supported; use host, which may be an address",
            ),
            ("dbname: calls", "dbname: is not supported; use database"),
        ] {
            assert_eq!(read(yaml).1, [fault], "{yaml}");
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// The next packet of a client that has not yet begun its session.
    fn packet(client: &mut TcpStream) -> Vec<u8> {
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut packet).unwrap();
        packet
    }

    /// A server that says no to the first client, with this state, and lets the next in, which does
    /// without what `is_refused` finds in the first packets of a client.
    fn takes_the_second(state: &'static str, is_refused: fn(&[u8]) -> bool) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut packets = packet(&mut stream);
                // A request for TLS.
                if packets == 80_877_103_u32.to_be_bytes() {
                    stream.write_all(b"N").unwrap();
                    packets.extend(packet(&mut stream));
                }
                if is_refused(&packets) {
                    let error = format!("SFATAL\0VFATAL\0C{state}\0Mnot so\0\0");
                    stream.write_all(b"E").unwrap();
                    let length = u32::try_from(error.len() + 4).unwrap();
                    stream.write_all(&length.to_be_bytes()).unwrap();
                    stream.write_all(error.as_bytes()).unwrap();
                } else {
                    stream
                        .write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
                        .unwrap();
                    return;
                }
            }
        });
        Host::new("127.0.0.1", port)
    }

    fn nobody() -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Host::new("127.0.0.1", listener.local_addr().unwrap().port())
    }

    fn access(hosts: Vec<Host>) -> ServerAccess {
        let mut config = Config::new();
        config.user("u").password("p");
        ServerAccess {
            hosts,
            config,
            tls: Some(Tls::read(&mut Options::from_yaml("sslmode: prefer"))),
            table: Table::parse("vcons").unwrap(),
            statement_timeout: SECOND,
            connect_limit: SECOND,
        }
    }

    #[test]
    fn a_host_that_needs_another_way_is_used_while_the_others_are_down() {
        let has_options = |packets: &[u8]| packets.windows(8).any(|part| part == b"options\0");
        let asked_for_tls = |packets: &[u8]| packets.starts_with(&80_877_103_u32.to_be_bytes());
        for position in 0..3 {
            for (state, is_refused) in [
                ("08P01", has_options as fn(&[u8]) -> bool),
                ("28000", asked_for_tls),
            ] {
                let mut hosts = vec![nobody(), nobody()];
                hosts.insert(position, takes_the_second(state, is_refused));
                let access = access(hosts);
                let connected = access.connect(Uuid::nil(), &CallLimits::default());
                let refused = connected.err().map(|refusal| refusal.why);
                assert_eq!(refused, None, "{position}, {state}");
                // Another host may still take them.
                for (number, host) in access.hosts.iter().enumerate() {
                    let refuses = host.refuses_options.load(Ordering::Relaxed);
                    assert_eq!(refuses, number == position && state == "08P01");
                }
            }
        }
    }

    #[test]
    fn why_there_is_no_connection_is_told_for_each_of_several_hosts() {
        let hosts = vec![nobody(), takes_the_second("28P01", |_| true)];
        let [first, second] = [hosts[0].shown(), hosts[1].shown()];
        let refused = |hosts: &[Host]| {
            let limits = CallLimits::default();
            let connected = access(hosts.to_vec()).connect(Uuid::nil(), &limits);
            connected.err().unwrap().why
        };
        let why = refused(&hosts);
        assert!(
            why.starts_with(&format!("{first}: error connecting")),
            "{why}"
        );
        assert!(why.contains(&format!("; {second}: ")), "{why}");
        assert!(why.contains("not so (SQLSTATE 28P01)"), "{why}");
        let why = refused(&hosts[..1]);
        assert!(why.starts_with("error connecting"), "{why}");
    }
}
