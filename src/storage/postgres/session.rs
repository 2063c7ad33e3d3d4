//! A connection to PostgreSQL with its prepared statements.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::config::SslMode;
use postgres::{Client, Config, Error, NoTls, Statement};

use super::fault::{may_work_without_tls, reason};
use super::table::Table;
use super::tls::Tls;
use super::watchdog::Watchdog;
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
}

/// A connection with its prepared statements.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) statements: Statements,
    /// Ends calls that hang; `None` where the socket cannot be found, as a Unix socket.
    pub(super) watchdog: Option<Watchdog>,
    /// The time after which the server ends a statement, as it was told last.
    timeout: Duration,
}

/// What is said to the server, but for the values.
pub(super) struct Statements {
    pub(super) save: Statement,
    pub(super) get: Statement,
    pub(super) delete: Statement,
    /// All that `save` needs of the server, for no row.
    pub(super) try_save: Statement,
}

impl Session {
    /// Connects, makes the table where it is missing, and prepares the statements. The error
    /// says why not.
    pub(super) fn open(access: &Access) -> Result<Self, String> {
        caught(|| Self::try_to_open(access))
    }

    fn try_to_open(access: &Access) -> Result<Self, String> {
        let mark = next_mark();
        let client = access.connect(mark)?;
        let watchdog = access.watch_over(&client, mark)?;
        match &watchdog {
            Some(watchdog) => {
                watchdog.during(access.connect_limit, || Statements::prepare(client, access))
            }
            None => Statements::prepare(client, access),
        }
        .map(|(client, statements)| Self {
            client,
            statements,
            watchdog,
            timeout: access.statement_timeout,
        })
        .map_err(|e| reason(&e))
    }

    /// Notes the timeout that a call with this limit needs. Returns it if the server must be told
    /// before the call. `own` is the option.
    pub(super) fn timeout_for(&mut self, own: Duration, limit: Limit) -> Option<Duration> {
        let next = next_timeout(self.timeout, own, limit);
        self.timeout = next.unwrap_or(self.timeout);
        next
    }
}

/// Has the server end each statement after so long.
pub(super) fn set_timeout(client: &mut Client, timeout: Duration) -> Result<(), Error> {
    client.batch_execute(&format!("SET statement_timeout = {}", timeout.as_millis()))
}

/// The timeout that the server must be told before a call with this limit; `None` if that which it
/// was told last will do. `own` is the option.
fn next_timeout(told: Duration, own: Duration, limit: Limit) -> Option<Duration> {
    if !limit.is_the_chains() || limit.time() >= own {
        return (told != own).then_some(own);
    }
    // Calls that are left about the same time share a timeout: telling costs a round trip.
    let fits = told <= limit.time() && told >= limit.time() / 2;
    // A little less, so that the server ends the statement before its connection is cut.
    (!fits).then(|| limit.time().mul_f64(0.9))
}

impl Statements {
    fn prepare(mut client: Client, access: &Access) -> Result<(Client, Self), Error> {
        // Not among the parameters of the connection: poolers refuse it there.
        set_timeout(&mut client, access.statement_timeout)?;
        access.table.make(&mut client)?;
        let name = &access.table.quoted;
        // The casts let columns be of kindred types, as varchar, timestamptz or json.
        let upsert = |rows: &str| {
            format!(
                "INSERT INTO {name} (id, vcon, uuid, created_at, updated_at, subject, vcon_json) \
                 {rows} \
                 ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, \
                 created_at = excluded.created_at, updated_at = excluded.updated_at, \
                 subject = excluded.subject, vcon_json = excluded.vcon_json"
            )
        };
        let save = client.prepare(&upsert(
            "VALUES ($1::uuid, $2::text, $1::uuid, $3::timestamp, $4::timestamp, $5::text, \
             $6::text::jsonb)",
        ))?;
        let try_save = client.prepare(&upsert(
            "SELECT NULL::uuid, NULL::text, NULL::uuid, NULL::timestamp, NULL::timestamp, \
             NULL::text, NULL::jsonb WHERE false",
        ))?;
        let get = client.prepare(&format!(
            "SELECT vcon_json::text FROM {name} WHERE id = $1::uuid"
        ))?;
        let delete = client.prepare(&format!("DELETE FROM {name} WHERE id = $1::uuid"))?;
        let statements = Self {
            save,
            get,
            delete,
            try_save,
        };
        Ok((client, statements))
    }
}

/// Whether the table is there; if not, tries whether it could be made, and makes nothing.
pub(super) fn look_for_table(access: &Access) -> Result<bool, String> {
    let mut client = access.connect(next_mark())?;
    let is_there = access.table.try_to_make(&mut client);
    is_there.map_err(|e| reason(&e))
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
    fn watch_over(&self, client: &Client, mark: u32) -> Result<Option<Watchdog>, String> {
        let Some(socket) = SocketHold::find(mark, VANISHED_MS) else {
            if self.tls.is_some() {
                log::debug!("the socket of a session of PostgreSQL could not be told from others");
            }
            return Ok(None);
        };
        let (token, tls) = (client.cancel_token(), self.tls.clone());
        let cancel = move || {
            let ask = || match tls.map(|tls| tls.connector()) {
                Some(Ok(connector)) => token.cancel_query(connector).map_err(|e| reason(&e)),
                Some(Err(why)) => Err(why),
                None => token.cancel_query(NoTls).map_err(|e| reason(&e)),
            };
            if let Err(why) = few_at_once(ask) {
                log::debug!("PostgreSQL could not be asked to cancel a call: {why}");
            }
        };
        Watchdog::start(socket, cancel)
            .map(Some)
            .map_err(|e| format!("could not start a thread: {e}"))
    }

    fn connect(&self, mark: u32) -> Result<Client, String> {
        let mut config = self.config.clone();
        config.tcp_user_timeout(Duration::from_millis(mark.into()));
        let Some(tls) = self
            .tls
            .as_ref()
            .filter(|tls| tls.wire() != SslMode::Disable)
        else {
            config.ssl_mode(SslMode::Disable);
            return config.connect(NoTls).map_err(|e| reason(&e));
        };
        config.ssl_mode(tls.wire());
        match config.connect(tls.connector()?) {
            Ok(client) => Ok(client),
            Err(error) if tls.is_optional() && may_work_without_tls(&error) => {
                config.ssl_mode(SslMode::Disable);
                // What was said first is nearer to what is wrong.
                config.connect(NoTls).map_err(|_| reason(&error))
            }
            Err(error) => Err(reason(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::Deadline;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_server_is_told_a_timeout_when_the_last_one_does_not_fit() {
        let own = 30 * SECOND;
        let left = |seconds| Deadline::after(Some(seconds * SECOND)).begin(own + 5 * SECOND);
        let next = |told: u32, limit| next_timeout(told * SECOND, own, limit);
        assert_eq!(next(30, left(40)), None);
        assert_eq!(next(30, left(33)), None);
        assert_eq!(next(4, left(33)), Some(own));
        assert_eq!(next(4, Deadline::NONE.begin(SECOND)), Some(own));
        for told in [30, 11, 4] {
            let told = next(told, left(10)).unwrap_or_default();
            assert!(told > 8 * SECOND && told < 10 * SECOND, "{told:?}");
        }
        assert_eq!(next(9, left(10)), None);
        assert_eq!(next(6, left(10)), None);
    }
}
