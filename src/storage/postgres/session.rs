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
        })
        .map_err(|e| reason(&e))
    }
}

impl Statements {
    fn prepare(mut client: Client, access: &Access) -> Result<(Client, Self), Error> {
        // Not among the parameters of the connection: poolers refuse it there.
        let limit = access.statement_timeout.as_millis();
        client.batch_execute(&format!("SET statement_timeout = {limit}"))?;
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
