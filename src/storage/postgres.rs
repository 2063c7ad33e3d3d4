//! `storage.postgres`: one row for each vCon in a table of PostgreSQL.
//!
//! Layout, made when the table is missing:
//! `id uuid primary key, vcon text not null, uuid uuid not null, created_at timestamp not null,
//! updated_at timestamp, subject text, vcon_json jsonb`, with a GIN index on `vcon_json`. A row
//! is inserted or replaced by `id`; `vcon` is the version, `created_at` the vCon's own wall
//! clock, `updated_at` ours.
//!
//! | option | default | |
//! |---|---|---|
//! | `host`, `port` | `localhost`, `5432` | a host that begins with `/` is the directory of a Unix socket |
//! | `database`, `user` | required | |
//! | `password` | none | |
//! | `table_name` | `vcons` | or `schema.table` |
//! | `connect_timeout` | `10` | seconds |
//! | `statement_timeout` | `30` | seconds; the server ends the statement |
//!
//! Transient: the server cannot be reached, goes away, or does not answer in time, and the
//! SQLSTATEs of [`passes`]. All others are permanent: refused credentials, a missing database or
//! right, data that the columns cannot hold.

mod table;

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use postgres::types::ToSql;
use postgres::{Client, Config, Error, NoTls, Row, Statement};

use self::table::Table;
use super::Storage;
use super::bounded::Bounded;
use crate::config::Options;
use crate::failure::Failure;
use crate::vcon::{Outgoing, VconId};

/// What a call gets beyond the time it has on the server or the socket.
const GRACE: Duration = Duration::from_secs(5);

/// How long the query of a probe may take.
const PROBE: Duration = Duration::from_secs(5);

/// A server that acknowledges nothing for so long has vanished.
const VANISHED: Duration = Duration::from_secs(20);

type Work = dyn Fn(&mut Session) -> Result<Option<Row>, Error> + Send;

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let host = options.string_or("host", "localhost");
    let port = options.integer_or("port", 5432, 1..=65535);
    let database = options.required_string("database");
    let user = options.required_string("user");
    let password = options.secret("password");
    let table_name = options.string_or("table_name", "vcons");
    let connect_timeout = timeout(options, "connect_timeout", 10.0);
    let statement_timeout = timeout(options, "statement_timeout", 30.0);
    let table = Table::parse(&table_name).unwrap_or_else(|fault| {
        options.fault("table_name", fault);
        Table::default()
    });

    let mut config = Config::new();
    config
        .host(&host)
        .port(u16::try_from(port).unwrap_or(5432))
        .dbname(&database)
        .user(&user)
        .application_name("conserver")
        .options(&format!(
            "-c statement_timeout={}",
            statement_timeout.as_millis()
        ))
        .connect_timeout(connect_timeout)
        .tcp_user_timeout(VANISHED)
        .keepalives_idle(Duration::from_secs(15))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3);
    if let Some(password) = password {
        config.password(password.reveal());
    }
    Box::new(Postgres {
        server: format!("PostgreSQL {host}:{port}/{database}, table {table_name}"),
        config,
        table,
        connect_limit: connect_timeout + GRACE,
        statement_limit: statement_timeout + GRACE,
        session: None,
        bounded: Bounded::new(),
    })
}

fn timeout(options: &mut Options, key: &str, default: f64) -> Duration {
    let time = options.seconds_or(key, default);
    if time < Duration::from_millis(1) || time > Duration::from_secs(86_400) {
        options.fault(key, "must be between 0.001 and 86400 seconds");
        return Duration::from_secs(1);
    }
    time
}

struct Postgres {
    /// What messages call it.
    server: String,
    config: Config,
    table: Table,
    connect_limit: Duration,
    statement_limit: Duration,
    session: Option<Session>,
    bounded: Bounded,
}

/// A connection with its prepared statements.
struct Session {
    client: Client,
    save: Statement,
    get: Statement,
    delete: Statement,
}

impl Storage for Postgres {
    fn save(&mut self, vcon: &Outgoing) -> Result<(), Failure> {
        let id = vcon.id.uuid();
        let version = vcon.version.as_str();
        let created_at = vcon.created_or_now().local;
        let (subject, json) = (vcon.subject.clone(), vcon.json.clone());
        let work = move |session: &mut Session| {
            let updated_at = chrono::Local::now().naive_local();
            let values: [&(dyn ToSql + Sync); 6] =
                [&id, &version, &created_at, &updated_at, &subject, &json];
            session.client.execute(&session.save, &values)?;
            Ok(None)
        };
        let what = format!("save vCon {}", vcon.id);
        match self.run(&what, self.statement_limit, Box::new(work)) {
            // SQLSTATE class 22 is all that PostgreSQL says in every language.
            Err(failure) if failure.message.contains("(SQLSTATE 22") && has_nul(vcon) => {
                Err(Failure::permanent(format!(
                    "{}; the vCon holds a NUL character (\\u0000), which PostgreSQL cannot hold",
                    failure.message
                )))
            }
            result => result.map(|_| ()),
        }
    }

    fn get(&mut self, id: &VconId) -> Result<Option<String>, Failure> {
        let uuid = id.uuid();
        let what = format!("read vCon {id}");
        let work = move |session: &mut Session| session.client.query_opt(&session.get, &[&uuid]);
        match self.run(&what, self.statement_limit, Box::new(work))? {
            None => Ok(None),
            Some(row) => row.try_get(0).map_err(|e| self.failure(&what, &e)),
        }
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let uuid = id.uuid();
        let work = move |session: &mut Session| {
            session.client.execute(&session.delete, &[&uuid])?;
            Ok(None)
        };
        let what = format!("delete vCon {id}");
        self.run(&what, self.statement_limit, Box::new(work))?;
        Ok(())
    }

    fn probe(&mut self) -> Result<(), Failure> {
        let work = |session: &mut Session| {
            session.client.simple_query("SELECT 1")?;
            Ok(None)
        };
        self.run("query", PROBE, Box::new(work)).map(|_| ())
    }
}

impl Postgres {
    /// Does the work in the kept session, or a new one. A kept session may have died or become
    /// outdated since its last use; the work is idempotent and is then done once more in a new
    /// one.
    fn run(
        &mut self,
        what: &str,
        limit: Duration,
        mut work: Box<Work>,
    ) -> Result<Option<Row>, Failure> {
        loop {
            let (mut session, kept) = match self.session.take() {
                Some(session) => (session, true),
                None => (self.connect(what)?, false),
            };
            let name = self.message(what);
            let (session, back, result) = self.bounded.run(&name, limit, move || {
                let result = work(&mut session);
                (session, work, result)
            })?;
            work = back;
            match result {
                Ok(row) => {
                    self.session = Some(session);
                    return Ok(row);
                }
                Err(e) if is_outdated(&e) || session.client.is_closed() => {
                    if !kept {
                        return Err(self.failure(what, &e));
                    }
                    log::debug!("{name}: {}; connecting anew", reason(&e));
                }
                Err(e) => {
                    self.session = Some(session);
                    return Err(self.failure(what, &e));
                }
            }
        }
    }

    fn connect(&mut self, what: &str) -> Result<Session, Failure> {
        let (config, table) = (self.config.clone(), self.table.clone());
        let name = format!("{} (connecting)", self.message(what));
        self.bounded
            .run(&name, self.connect_limit, move || {
                Session::open(&config, &table)
            })?
            .map_err(|e| self.failure(what, &e))
    }

    fn message(&self, what: &str) -> String {
        format!("{}: could not {what}", self.server)
    }

    fn failure(&self, what: &str, error: &Error) -> Failure {
        let message = format!("{}: {}", self.message(what), reason(error));
        if is_transient(error) {
            Failure::transient(message)
        } else {
            Failure::permanent(message)
        }
    }
}

impl Session {
    fn open(config: &Config, table: &Table) -> Result<Self, Error> {
        let mut client = config.connect(NoTls)?;
        table.make(&mut client)?;
        let name = &table.quoted;
        let save = client.prepare(&format!(
            "INSERT INTO {name} (id, vcon, uuid, created_at, updated_at, subject, vcon_json) \
             VALUES ($1, $2, $1, $3, $4, $5, $6::text::jsonb) \
             ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, \
             created_at = excluded.created_at, updated_at = excluded.updated_at, \
             subject = excluded.subject, vcon_json = excluded.vcon_json"
        ))?;
        let get = client.prepare(&format!("SELECT vcon_json::text FROM {name} WHERE id = $1"))?;
        let delete = client.prepare(&format!("DELETE FROM {name} WHERE id = $1"))?;
        Ok(Self {
            client,
            save,
            get,
            delete,
        })
    }
}

fn has_nul(vcon: &Outgoing) -> bool {
    vcon.json.contains("\\u0000") || vcon.subject.as_ref().is_some_and(|s| s.contains('\0'))
}

/// The session no longer fits the server, though a new one may: it was ended (57P), the server
/// has become a read-only standby (25006), the prepared statements are gone (26000) or their
/// result has changed (0A000), the table was dropped (42P01).
fn is_outdated(error: &Error) -> bool {
    match state(error) {
        Some(s) => s.starts_with("57P") || matches!(s, "25006" | "26000" | "0A000" | "42P01"),
        None => error.is_closed() || io_kind(error).is_some(),
    }
}

/// Whether the same statement may succeed later.
fn is_transient(error: &Error) -> bool {
    match (state(error), io_kind(error)) {
        (Some(state), _) => passes(state),
        // What could not be sent, as a NUL in the user's name.
        (None, Some(kind)) => kind != io::ErrorKind::InvalidInput,
        (None, None) => error.is_closed(),
    }
}

/// Which SQLSTATEs pass by themselves:
///
/// | class or state | |
/// |---|---|
/// | 08 | connection exceptions |
/// | 25006 | the server is a standby, until it or another is promoted |
/// | 26000 | a pooler has given us another session |
/// | 40 | serialization failures, deadlocks |
/// | 53 | out of disk, memory or connections |
/// | 55006, 55P03 | in use, or locked by another |
/// | 57 | shutting down, starting up, crashed, statement timeout |
/// | 58 | faults of the server's system |
fn passes(state: &str) -> bool {
    ["08", "40", "53", "57", "58"]
        .iter()
        .any(|class| state.starts_with(class))
        || matches!(state, "25006" | "26000" | "55006" | "55P03")
}

fn state(error: &Error) -> Option<&str> {
    error.code().map(|code| code.code())
}

fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let source = error.source()?;
    source.downcast_ref::<io::Error>().map(io::Error::kind)
}

/// The error and its causes, without the server's DETAIL and CONTEXT, which quote the document.
fn reason(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_classified_as_the_table_says() {
        for state in [
            "08000", "08006", "08P01", "25006", "26000", "40001", "40P01", "53100", "53200",
            "53300", "55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "58000",
            "58030",
        ] {
            assert!(passes(state), "{state}");
        }
        for state in [
            "22001", "22021", "22P02", "22P05", "23502", "23505", "28000", "28P01", "3D000",
            "3F000", "42501", "42601", "42703", "42P01", "42804", "54000", "XX000",
        ] {
            assert!(!passes(state), "{state}");
        }
    }
}
