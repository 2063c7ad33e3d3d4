//! A session with PostgreSQL, and how its server limits the time of a statement.
//!
//! The server ends a statement after `statement_timeout`, even when this host is gone. It learns that
//! time from the startup parameter `options`, which belongs to this backend process alone and which
//! `DISCARD ALL` does not undo. When a chain's timeout leaves less time, this side asks the server to
//! cancel the statement.
//!
//! A pooler refuses or ignores `options`, since its connections serve others as well, and a request to
//! cancel is not safe there: some versions of PgBouncer crash on two at a time. Behind a pooler, a
//! statement has no limit at the server until one was too slow. From then on, until one is in time
//! again, each call is a transaction with a limit of its own (`SET LOCAL`), which costs two more round
//! trips.

use std::time::Duration;

use postgres::types::Type;
use postgres::{Client, Error};
use uuid::Uuid;

use super::connect::{DialError, ServerAccess};
use super::errors::{caught, reason};
use super::pool::Permit;
use super::statements::Statements;
use super::wire::{CallLimits, CallTimes, Canceller};
use crate::deadline::Limit;
use crate::storage::ConnectionLimit;

/// How long before the end of a limit the server is asked to end a statement, so that its answer comes in time.
const FOR_THE_ANSWER: Duration = Duration::from_millis(250);

/// The setting of a backend process that holds the UUID of its session.
pub(super) const SESSION: &str = "conserver.session";

/// A connection, and the statements for its table.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) statements: Statements,
    /// The limits of calls. Their time is kept if the session can be cut.
    pub(super) limits: CallLimits,
    /// Its stream ends a call that is over its time: true unless it is over a Unix socket.
    pub(super) can_cut: bool,
    /// There is no pooler in between, and the server ends a statement after `statement_timeout`.
    pub(super) is_direct: bool,
    /// The permit for one of the sessions of this process; dropped after the client.
    _permit: Permit,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.limits.limit_end();
    }
}

impl Session {
    /// Connects, and creates the table if it is missing. The error says why it could not.
    pub(super) fn open(access: &ServerAccess, permit: Permit) -> Result<Self, OpenError> {
        let mut permit = Some(permit);
        let opened = caught(|| Ok(Self::try_to_open(access, &mut permit)));
        let refusal = match opened {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(refusal)) => refusal,
            Err(why) => why.into(),
        };
        if refusal.is_crowded
            && let Some(permit) = permit
        {
            permit.refuse(&refusal.why);
            return Err(OpenError::Crowded);
        }
        Err(OpenError::Failed(refusal.why))
    }

    fn try_to_open(access: &ServerAccess, permit: &mut Option<Permit>) -> Result<Self, DialError> {
        let id = Uuid::new_v4();
        let limits = CallLimits::default();
        let times = opening(access);
        let (mut client, wire) = limits.during(times, || access.connect(id, &limits))?;
        let can_cut = wire.is_some();
        let begun: Result<_, Error> = limits.during(times, || {
            let is_direct = is_direct(&mut client, id)?;
            let has_xmin = access.table.make(&mut client)?;
            let mut statements = Statements::of(&access.table.quoted, has_xmin);
            statements.limits = limits.clone();
            if is_direct {
                statements.prepare(&mut client, id);
            }
            Ok((is_direct, statements))
        });
        let (is_direct, statements) = begun?;
        if is_direct {
            limits.allow_to_cancel(Canceller::new(&client, wire));
        }
        let mut permit = permit.take().ok_or("it has no place".to_owned())?;
        permit.note_opened();
        Ok(Self {
            _permit: permit,
            client,
            statements,
            limits,
            can_cut,
            is_direct,
        })
    }

    /// How long a call with this limit may take. `own` is the option `statement_timeout`.
    pub(super) fn times(&self, own: Duration, limit: Limit) -> CallTimes {
        CallTimes {
            cancel: shorter(own, limit).filter(|_| self.is_direct),
            cut: limit.left(),
        }
    }
}

/// Does the work in a transaction whose statements the server ends after `timeout`. If this process stops
/// in between, the server ends the transaction, which would lock its row. Also returns whether the session
/// can be used again.
pub(super) fn limited<T>(
    client: &mut Client,
    timeout: Duration,
    work: impl FnOnce(&mut Client) -> Result<T, Error>,
) -> (Result<T, Error>, bool) {
    let begin = begin(timeout);
    let done = client.batch_execute(&begin).and_then(|()| work(client));
    // The commit has no limit: one that is ended while it waits for a standby counts as a success.
    let end = match &done {
        Ok(_) => "SET LOCAL statement_timeout = 0; COMMIT",
        Err(_) => "ROLLBACK",
    };
    match (client.batch_execute(end), done) {
        (Ok(()), done) => (done, true),
        (Err(error), Ok(_)) => (Err(error), false),
        (Err(_), Err(error)) => (Err(error), false),
    }
}

/// Begins a transaction. Each of its statements has this time at the server, and so has each pause
/// between them, but at least as much as pauses on a network take.
fn begin(timeout: Duration) -> String {
    const PAUSE: Duration = Duration::from_secs(1);
    let pause = timeout.max(PAUSE).as_millis();
    let timeout = timeout.as_millis().max(1);
    format!(
        "BEGIN; SET LOCAL statement_timeout = {timeout}; \
         SET LOCAL idle_in_transaction_session_timeout = {pause}"
    )
}

/// How long opening a session may take. Whoever asked for it waits a little less, gives up first and reports it.
fn opening(access: &ServerAccess) -> CallTimes {
    CallTimes {
        cancel: None,
        cut: access.connect_limit + Duration::from_secs(1),
    }
}

/// The time that `limit` leaves a statement, if that is less than `own`, the option `statement_timeout`.
/// It is a little less than the limit, so that the server answers before the connection is cut.
pub(super) fn shorter(own: Duration, limit: Limit) -> Option<Duration> {
    let time = limit.time();
    let less = time.mul_f64(0.9).min(time.saturating_sub(FOR_THE_ANSWER));
    (limit.is_the_chains() && time < own).then(|| less.max(time / 2))
}

/// The startup parameters of a session: its timeout, and the UUID that identifies it.
pub(super) fn startup_options(timeout: Duration, id: Uuid) -> String {
    let timeout = timeout.as_millis();
    format!("-c statement_timeout={timeout} -c {SESSION}={id}")
}

/// Whether the backend process has the startup parameters of this session.
fn is_direct(client: &mut Client, id: Uuid) -> Result<bool, Error> {
    let question = format!("SELECT current_setting('{SESSION}', true) IS NOT DISTINCT FROM $1");
    let id = id.to_string();
    client
        .query_typed_one(&question, &[(&id, Type::TEXT)])?
        .try_get(0)
}

/// Returns whether the table exists; if not, tries whether it could be created, and rolls back. Also
/// returns the limits on connections, unless a pooler shares a few connections among many clients.
pub(super) fn look_around(access: &ServerAccess) -> Result<(bool, Vec<ConnectionLimit>), String> {
    let limits = CallLimits::default();
    limits.during(opening(access), || try_to_look_around(access, &limits))
}

fn try_to_look_around(
    access: &ServerAccess,
    limits: &CallLimits,
) -> Result<(bool, Vec<ConnectionLimit>), String> {
    let id = Uuid::new_v4();
    let connected = access.connect(id, limits);
    let (mut client, _) = connected.map_err(|refusal| refusal.why)?;
    let is_there = access.table.try_to_make(&mut client);
    let is_there = is_there.map_err(|e| reason(&e))?;
    let found = match is_direct(&mut client, id) {
        Ok(true) => connection_limits(&mut client),
        other => other.map(|_| Vec::new()),
    };
    let limits = found.unwrap_or_else(|error| {
        log::debug!("limits on connections are not known: {}", reason(&error));
        Vec::new()
    });
    Ok((is_there, limits))
}

/// The server's limits on connections: for all users, for this user and for this database.
fn connection_limits(client: &mut Client) -> Result<Vec<ConnectionLimit>, Error> {
    const QUESTION: &str = "SELECT pg_postmaster_start_time()::text || ' ' || current_setting('port'), \
         current_setting('max_connections')::int8, \
         current_setting('superuser_reserved_connections')::int8 \
         + coalesce(current_setting('reserved_connections', true)::int8, 0), \
         rolsuper, rolname::text, rolconnlimit::int8, datname::text, datconnlimit::int8 \
         FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()";
    let row = client.query_typed_one(QUESTION, &[])?;
    let (server, most): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
    let (reserved, is_superuser): (i64, bool) = (row.try_get(2)?, row.try_get(3)?);
    let (user, of_user): (String, i64) = (row.try_get(4)?, row.try_get(5)?);
    let (database, of_database): (String, i64) = (row.try_get(6)?, row.try_get(7)?);
    let mut limits = vec![(
        server.clone(),
        if is_superuser { most } else { most - reserved },
        match reserved {
            1.. if !is_superuser => format!("max_connections {most}, {reserved} reserved"),
            _ => format!("max_connections {most}"),
        },
    )];
    if !is_superuser {
        let of = format!("{server} user {user}");
        limits.push((of, of_user, format!("CONNECTION LIMIT of user {user}")));
        let of = format!("{server} database {database}");
        limits.push((
            of,
            of_database,
            format!("CONNECTION LIMIT of database {database}"),
        ));
    }
    let limit = |(of, most, by)| {
        // A negative number means no limit.
        let most = u64::try_from(most).ok()?;
        Some(ConnectionLimit { of, most, by })
    };
    Ok(limits.into_iter().filter_map(limit).collect())
}

/// Why there is no session.
pub(super) enum OpenError {
    /// The server has no room for it; the pool has noted that.
    Crowded,
    /// Anything else.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::Deadline;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_statement_gets_what_the_chain_leaves_where_that_is_less_than_its_own_time() {
        let own = 30 * SECOND;
        let left = |seconds| Deadline::after(Some(seconds * SECOND)).begin(own + 5 * SECOND);
        let time = shorter(own, left(10)).unwrap_or_default();
        assert!(time > 8 * SECOND && time < 10 * SECOND, "{time:?}");
        assert_eq!(shorter(own, left(33)), None);
        assert_eq!(shorter(own, Deadline::NONE.begin(own + 5 * SECOND)), None);
        // A probe is cut long before.
        assert_eq!(shorter(own, Deadline::NONE.begin(SECOND)), None);
    }

    #[test]
    fn a_transaction_limits_its_statements_and_the_pauses_between_them() {
        for (timeout, statement, pause) in [
            (30 * SECOND, 30_000, 30_000),
            (SECOND / 5, 200, 1_000),
            (Duration::ZERO, 1, 1_000),
        ] {
            assert_eq!(
                begin(timeout),
                format!(
                    "BEGIN; SET LOCAL statement_timeout = {statement}; \
                     SET LOCAL idle_in_transaction_session_timeout = {pause}"
                )
            );
        }
    }

    #[test]
    fn the_server_is_told_its_time_in_milliseconds() {
        assert_eq!(
            startup_options(SECOND * 3 / 2, Uuid::nil()),
            "-c statement_timeout=1500 -c conserver.session=00000000-0000-0000-0000-000000000000"
        );
    }
}
