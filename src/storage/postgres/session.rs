//! A connection to PostgreSQL, and how long its server works on a statement.
//!
//! The server itself is to end a statement after `statement_timeout`: it does so even when this host is
//! gone. It is told by the startup parameter `options`, which belongs to the backend process and to no
//! other, and which `DISCARD ALL` does not undo. A pooler refuses or ignores it, since its connections
//! serve others as well; then the server is asked to cancel the statement when its time is over, as it is
//! when a chain's timeout leaves less time.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::config::SslMode;
use postgres::types::Type;
use postgres::{Client, Config, Error, NoTls};

use super::fault::{may_work_without_options, may_work_without_tls, reason};
use super::statements::Statements;
use super::table::Table;
use super::tls::Tls;
use super::watchdog::{Times, Watchdog};
use crate::deadline::Limit;
use crate::sys::SocketHold;

/// A server that acknowledges nothing for so many milliseconds has vanished.
const VANISHED_MS: u32 = 20_000;

/// How a session is opened.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) config: Config,
    /// `None` over a Unix socket.
    pub(super) tls: Option<Tls>,
    pub(super) table: Table,
    pub(super) statement_timeout: Duration,
    /// For the whole way to a session.
    pub(super) connect_limit: Duration,
    /// There is a pooler that refuses the startup parameter `options`.
    pub(super) refuses_options: Arc<AtomicBool>,
}

/// A connection, and the statements for its table.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) statements: Statements,
    /// Ends calls that hang.
    pub(super) watchdog: Watchdog,
    /// The server ends a statement after `statement_timeout`.
    knows_timeout: bool,
}

impl Session {
    /// Connects, and makes the table where it is missing. The error says why not.
    pub(super) fn open(access: &Access) -> Result<Self, String> {
        caught(|| Self::try_to_open(access))
    }

    fn try_to_open(access: &Access) -> Result<Self, String> {
        let mark = next_mark();
        let mut client = access.connect(mark)?;
        let watchdog = access.watch_over(&client, mark)?;
        let times = Times {
            cancel: None,
            cut: access.connect_limit,
        };
        let begun = watchdog.during(times, || {
            let knows_timeout = knows_timeout(&mut client, access.statement_timeout)?;
            let has_xmin = access.table.make(&mut client)?;
            Ok((knows_timeout, has_xmin))
        });
        let (knows_timeout, has_xmin) = begun.map_err(|e: Error| reason(&e))?;
        Ok(Self {
            client,
            statements: Statements::of(&access.table.quoted, has_xmin),
            watchdog,
            knows_timeout,
        })
    }

    /// How long a call with this limit may take. `own` is the option `statement_timeout`.
    pub(super) fn times(&self, own: Duration, limit: Limit) -> Times {
        Times {
            cancel: cancel_after(self.knows_timeout, own, limit),
            cut: limit.left(),
        }
    }
}

/// Whether the server has taken over the time from the startup parameters.
fn knows_timeout(client: &mut Client, timeout: Duration) -> Result<bool, Error> {
    let question = "SELECT current_setting('statement_timeout')::interval = $1::interval";
    let timeout = format!("{}ms", timeout.as_millis());
    client
        .query_typed_one(question, &[(&timeout, Type::TEXT)])?
        .try_get(0)
}

/// When a call with this limit is to be cancelled from our side, if the server does not end it in
/// time. `own` is the option `statement_timeout`.
fn cancel_after(server_knows: bool, own: Duration, limit: Limit) -> Option<Duration> {
    if limit.is_the_chains() && limit.time() < own {
        // A little less, so that there is an answer before the connection is cut.
        return Some(limit.time().mul_f64(0.9));
    }
    (!server_knows && own < limit.time()).then_some(own)
}

/// Makes the request, unless some are still on their way: to a server that answers nothing at all,
/// they have no end.
fn few_at_once(ask: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    const MOST: usize = 4;
    static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
    if UNDER_WAY.fetch_add(1, Ordering::Relaxed) >= MOST {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
        return Err(format!(
            "{MOST} earlier requests are still without an answer"
        ));
    }
    let asked = caught(ask);
    UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    asked
}

/// The client panics where it cannot have a descriptor for a connection: no vCon is to blame.
fn caught<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the client has panicked".to_owned()))
}

/// The time after which a server has vanished, and a little more that no other socket of this
/// process has while it connects: by that it is found. In steps that older kernels, which count in
/// ticks, can tell as well.
fn next_mark() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    VANISHED_MS + 20 * (1 + NEXT.fetch_add(1, Ordering::Relaxed) % 1_000)
}

impl Access {
    /// A watch over the client's calls. One that is cut is cancelled as well: the server does not
    /// notice that its client is gone while it waits for a standby, say, and would collect such
    /// sessions until it has no more to give.
    fn watch_over(&self, client: &Client, mark: u32) -> Result<Watchdog, String> {
        let socket = SocketHold::find(mark, VANISHED_MS);
        if socket.is_none() && self.tls.is_some() {
            log::debug!("the socket of a session of PostgreSQL could not be told from others");
        }
        let (token, tls) = (client.cancel_token(), self.tls.clone());
        let cancel = move || {
            let ask = || match tls.as_ref().map(Tls::connector) {
                Some(Ok(connector)) => token.cancel_query(connector).map_err(|e| reason(&e)),
                Some(Err(why)) => Err(why),
                None => token.cancel_query(NoTls).map_err(|e| reason(&e)),
            };
            if let Err(why) = few_at_once(ask) {
                log::debug!("PostgreSQL could not be asked to cancel a call: {why}");
            }
        };
        Watchdog::start(socket, cancel).map_err(|e| format!("could not start a thread: {e}"))
    }

    fn connect(&self, mark: u32) -> Result<Client, String> {
        let mut plain = self.config.clone();
        plain.tcp_user_timeout(Duration::from_millis(mark.into()));
        if self.refuses_options.load(Ordering::Relaxed) {
            return self.dial(plain).map_err(|refusal| refusal.why);
        }
        let mut config = plain.clone();
        let timeout = self.statement_timeout.as_millis();
        config.options(&format!("-c statement_timeout={timeout}"));
        match self.dial(config) {
            Err(refusal) if refusal.may_be_for_options => {
                let client = self.dial(plain).map_err(|second| second.why)?;
                self.refuses_options.store(true, Ordering::Relaxed);
                Ok(client)
            }
            dialled => dialled.map_err(|refusal| refusal.why),
        }
    }

    /// Connects with or without TLS, as `sslmode` says.
    fn dial(&self, mut config: Config) -> Result<Client, Refusal> {
        let Some(tls) = self
            .tls
            .as_ref()
            .filter(|tls| tls.wire() != SslMode::Disable)
        else {
            config.ssl_mode(SslMode::Disable);
            return config.connect(NoTls).map_err(Refusal::from);
        };
        config.ssl_mode(tls.wire());
        match config.connect(tls.connector()?) {
            Ok(client) => Ok(client),
            Err(error) if tls.is_optional() && may_work_without_tls(&error) => {
                config.ssl_mode(SslMode::Disable);
                config.connect(NoTls).map_err(|second| {
                    let mut refusal = Refusal::from(second);
                    // What was said first is nearer to what is wrong.
                    refusal.why = reason(&error);
                    refusal
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Why there is no connection.
struct Refusal {
    why: String,
    /// There may be one without the startup parameter `options`.
    may_be_for_options: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            why: reason(&error),
            may_be_for_options: may_work_without_options(&error),
        }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self {
            why,
            may_be_for_options: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::Deadline;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_call_is_cancelled_from_our_side_where_the_server_would_not_end_it_in_time() {
        let own = 30 * SECOND;
        let left = |seconds| Deadline::after(Some(seconds * SECOND)).begin(own + 5 * SECOND);
        let calls_own = Deadline::NONE.begin(own + 5 * SECOND);
        assert_eq!(cancel_after(true, own, calls_own), None);
        assert_eq!(cancel_after(false, own, calls_own), Some(own));
        for knows in [true, false] {
            let time = cancel_after(knows, own, left(10)).unwrap_or_default();
            assert!(time > 8 * SECOND && time < 10 * SECOND, "{time:?}");
            // A probe is cut long before.
            assert_eq!(cancel_after(knows, own, Deadline::NONE.begin(SECOND)), None);
        }
        assert_eq!(cancel_after(true, own, left(33)), None);
        assert_eq!(cancel_after(false, own, left(33)), Some(own));
    }
}
