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
//! | `host`, `port`, `target_session_attrs` | `localhost`, `5432` | see the module `connect` |
//! | `database`, `user` | required | |
//! | `password` | none | |
//! | `table_name` | `vcons` | or `schema.table` |
//! | `sslmode` | `prefer` | `disable`, `prefer`, `require`, `verify-ca`, `verify-full`; see the module `tls` |
//! | `sslrootcert` | the system's | a file of the authorities to trust, in PEM form |
//! | `connect_timeout` | `10` | seconds, for each host |
//! | `statement_timeout` | `30` | seconds; the server ends the statement |
//!
//! There may be a pooler in between, and a late write must not undo a newer one: see the module
//! `statements`.
//!
//! | module | owns |
//! |---|---|
//! | `connect` | the hosts, and the ways to connect to them |
//! | `tls` | `sslmode`, and when a server gets the password in clear text |
//! | `wire` | the stream to the server: what a server may send, and how long a call may take |
//! | `batch` | which new rows of a worker's lanes go together |
//! | `session` | a connection with its statements, and the time that the server gives a statement |
//! | `pool` | the sessions that the lanes of a worker share |
//! | `statements` | the table, and the SQL to save, read and delete |
//! | `errors` | what an error means: those of the server, the login or the table are waited out; data that the table does not take is refused |

mod batch;
mod connect;
mod errors;
mod pool;
mod session;
mod statements;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::{Client, Config, Error};

use self::batch::{Batch, Batcher, Joined, Outcome, Written};
use self::connect::{Hosts, ServerAccess};
use self::errors::{
    is_bad_data, is_cancelled, is_chance, is_crowded, is_outdated, is_the_vcons, reason, refused,
};
pub use self::pool::share_latest_refusal;
use self::pool::{Checkout, Permit, Pool, note_refused};
use self::session::{OpenError, Session, limited, shorter};
use self::statements::{Jsonb, NewRow, StatementResult, Statements, Table};
use self::tls::Tls;
use self::wire::RejectedAnswer;
use super::timed_call::TimedCalls;
use super::{ConnectionLimit, Storage};
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::{LARGEST_DOCUMENT, Outgoing, VconId};

/// How much longer than its time at the server or on the socket a call may take.
const GRACE: Duration = Duration::from_secs(5);

/// How long the query of a probe may take.
const PROBE: Duration = Duration::from_secs(5);

/// How long a lane waits for a session in one call, if the server has no room for another.
const SESSION_WAIT: Duration = Duration::from_secs(2);

/// A session is closed after a document of more bytes: its buffers stay as large as the largest document
/// that went through them.
const LARGE: usize = 4 << 20;

type WorkResult = Result<StatementResult, Error>;
type SessionWork = dyn Fn(&mut Client, &Statements, Limit) -> WorkResult + Send;

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let hosts = Hosts::read(options);
    let database = options.required_string("database");
    let user = options.required_string("user");
    let password = options.secret("password");
    for (key, value) in [("database", &database), ("user", &user)] {
        if value.contains('\0') {
            options.fault(key, "holds a NUL character");
        }
    }
    if password.as_ref().is_some_and(|p| p.reveal().contains('\0')) {
        options.fault("password", "holds a NUL character");
    }
    let tls = Tls::read(options);
    if tls.allows_clear_text() && password.is_some() && !hosts.are_local() {
        let warning = "whoever answers in the server's place gets the password in clear text if it \
                       asks for it; set `verify-full`";
        options.warn("sslmode", warning);
    }
    let table_name = options.string_or("table_name", "vcons");
    let connect_timeout = timeout(options, "connect_timeout", 10.0);
    let statement_timeout = timeout(options, "statement_timeout", 30.0);
    let table = Table::parse(&table_name).unwrap_or_else(|fault| {
        options.fault("table_name", fault);
        Table::default()
    });

    let common: Arc<Common> = options.common();

    let mut config = Config::new();
    hosts.add_to(&mut config);
    config
        .dbname(&database)
        .user(&user)
        .application_name("conserver")
        .connect_timeout(connect_timeout)
        .keepalives_idle(Duration::from_secs(15))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3);
    if let Some(password) = password {
        config.password(password.reveal());
    }
    Box::new(Postgres {
        server: format!(
            "PostgreSQL {}/{database}, table {table_name}",
            hosts.shown()
        ),
        way: (!hosts.are_local()).then(|| tls.described()),
        access: ServerAccess {
            hosts: hosts.each(),
            config,
            tls: (!hosts.are_sockets()).then_some(tls),
            table,
            statement_timeout,
            connect_limit: connect_timeout.saturating_mul(hosts.count()) + GRACE,
        },
        statement_limit: statement_timeout + GRACE,
        meets_rows: false,
        is_slow: false,
        pool: Arc::clone(&common.pool),
        batcher: Arc::clone(&common.batcher),
        batches: false,
        connection_limits: Vec::new(),
        timed_calls: TimedCalls::new(),
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

/// What the lanes of a worker have in common.
#[derive(Default)]
struct Common {
    pool: Arc<Pool>,
    batcher: Arc<Batcher>,
}

struct Postgres {
    /// What messages call it.
    server: String,
    /// A description of the way to a server that is not local, for `check`.
    way: Option<&'static str>,
    access: ServerAccess,
    statement_limit: Duration,
    /// The last save found a row: the next one looks for a row first.
    meets_rows: bool,
    /// The last call was too slow.
    is_slow: bool,
    pool: Arc<Pool>,
    batcher: Arc<Batcher>,
    /// Its new rows may go together with those of other lanes.
    batches: bool,
    /// The limits on connections that the last check found.
    connection_limits: Vec<ConnectionLimit>,
    timed_calls: TimedCalls,
}

impl Storage for Postgres {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let row = Arc::new(NewRow {
            id: vcon.id.uuid(),
            version: vcon.version.as_str(),
            created_at: vcon.created_or_now().local,
            subject: vcon.subject.clone(),
            json: Jsonb(Arc::clone(&vcon.json)),
        });
        let mut row_first = self.meets_rows;
        // Rows of other lanes wait until this lane has written its row alone.
        let mut _alone = None;
        if self.batches && !row_first {
            let outcome = match self.batcher.join(&row, deadline) {
                Joined::Over(outcome) => outcome,
                Joined::Write(batch) if batch.is_of_one() => {
                    _alone = Some(batch);
                    Outcome::Alone
                }
                Joined::Write(batch) => self.write(batch),
            };
            match outcome {
                Outcome::Inserted => return Ok(()),
                Outcome::NotInserted => row_first = true,
                Outcome::Alone => {}
            }
        }
        self.save_alone(vcon, row, row_first, deadline)
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let uuid = id.uuid();
        let what = format!("read vCon {id}");
        let work = move |client: &mut Client, statements: &Statements, _: Limit| {
            statements.get(client, uuid)
        };
        let call = self.call(&what, self.statement_limit, deadline);
        match self.run(&call, Box::new(work)) {
            Ok(StatementResult::Found(document)) => Ok(document),
            Ok(_) => Ok(None),
            Err(CallError::Server(error)) if is_too_long(&error) => {
                let most = LARGEST_DOCUMENT >> 20;
                let message = self.message(&what);
                Err(Failure::permanent(format!(
                    "{message}: the document is larger than {most} MiB"
                )))
            }
            Err(error) => Err(self.failure_of(&what, error)),
        }
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let uuid = id.uuid();
        let work = move |client: &mut Client, statements: &Statements, limit: Limit| {
            statements.delete(client, uuid, limit)
        };
        let what = format!("delete vCon {id}");
        let call = self.call(&what, self.statement_limit, Deadline::NONE);
        match self.run(&call, Box::new(work)) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure_of(&what, error)),
        }
    }

    fn batch_saves(&mut self) {
        self.batches = true;
    }

    /// The longest case: wait for a session, run the statement in a stale one, open a new session, run
    /// the statement again. Before that, a batch may have failed.
    fn longest_call(&self) -> Duration {
        let alone =
            self.access.connect_limit + self.statement_limit.saturating_mul(2) + SESSION_WAIT;
        let in_batch = if self.batches {
            batch::LONGEST_CALL
        } else {
            Duration::ZERO
        };
        in_batch + alone
    }

    /// Saves a row and rolls back. That needs a session, the table with its columns, the rights, a
    /// server that writes and has room on its disk, and a table that nobody locks.
    fn probe(&mut self) -> Result<(), Failure> {
        let work =
            |client: &mut Client, statements: &Statements, _: Limit| statements.try_save(client);
        let call = self.call("write", PROBE, Deadline::NONE);
        match self.run(&call, Box::new(work)) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure_of("write", error)),
        }
    }

    fn connection_limits(&mut self) -> Vec<ConnectionLimit> {
        std::mem::take(&mut self.connection_limits)
    }

    fn check(&mut self) -> Result<String, Failure> {
        let access = self.access.clone();
        let message = self.message("look for its table");
        let limit = Deadline::NONE.begin(PROBE);
        let look = move || session::look_around(&access);
        let found = self.timed_calls.run(&message, limit, look)?;
        let found = found.map_err(|why| Failure::transient(format!("{message}: {why}")))?;
        let (has_table, limits) = found;
        self.connection_limits = limits;
        let mut said = "answers".to_owned();
        if has_table {
            self.probe()?;
        } else {
            said.push_str("; its table is not there yet: the service makes it");
        }
        if let Some(way) = self.way {
            said = format!("{said}; {way}");
        }
        Ok(said)
    }
}

/// A call in a session, and its limits.
struct SessionCall<'a> {
    /// What messages call it.
    what: &'a str,
    /// Its own time limit; the deadline may leave less.
    own: Duration,
    deadline: Deadline,
    /// Whether the session keeps large buffers afterwards.
    is_large: bool,
}

/// Why a call failed.
enum CallError {
    /// There is no session, or no answer.
    Unavailable(Failure),
    /// The server's error in a session.
    Server(Error),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure)
    }
}

impl Postgres {
    fn call<'a>(&self, what: &'a str, own: Duration, deadline: Deadline) -> SessionCall<'a> {
        SessionCall {
            what,
            own,
            deadline,
            is_large: false,
        }
    }

    /// Writes the rows in one statement, and returns what came of this lane's.
    fn write(&mut self, batch: Batch) -> Outcome {
        let deadline = Deadline::after(Some(batch::LIMIT));
        let call = self.call("save vCons together", batch::LIMIT, deadline);
        let rows = batch.rows();
        let work = move |client: &mut Client, statements: &Statements, _: Limit| {
            statements.insert_together(client, &rows)
        };
        let written = match self.run(&call, Box::new(work)) {
            Ok(StatementResult::Inserted(ids)) => Written::Ids(ids),
            Ok(_) => Written::Impossible,
            Err(error) => {
                let failure = self.failure_of(call.what, error);
                log::debug!("{failure}; each lane saves its vCon alone");
                Written::Failed
            }
        };
        batch.end(&written)
    }

    /// Saves the vCon in a call of its own.
    fn save_alone(
        &mut self,
        vcon: &Outgoing,
        row: Arc<NewRow>,
        row_first: bool,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let work = move |client: &mut Client, statements: &Statements, limit: Limit| {
            statements.save(client, &row, row_first, limit)
        };
        let what = format!("save vCon {}", vcon.id);
        let call = SessionCall {
            what: &what,
            own: self.statement_limit,
            deadline,
            is_large: vcon.json.len() > LARGE,
        };
        match self.run(&call, Box::new(work)) {
            Err(CallError::Server(error)) => {
                let mut failure = self.failure(&what, &error);
                // The server says this only in the language that it is set to.
                if is_bad_data(&error) && has_nul(vcon) {
                    failure.message.push_str(
                        "; the vCon holds a NUL character (\\u0000), which PostgreSQL cannot hold",
                    );
                }
                Err(failure)
            }
            Err(CallError::Unavailable(failure)) => Err(failure),
            Ok(done) => {
                self.meets_rows = matches!(done, StatementResult::Saved { had_row: true });
                Ok(())
            }
        }
    }

    /// Does the work in an idle session, or in a new one. An idle session may have died or become
    /// outdated since its last use: then the work, which is idempotent, is done again in another one.
    fn run(
        &mut self,
        call: &SessionCall<'_>,
        mut work: Box<SessionWork>,
    ) -> Result<StatementResult, CallError> {
        let what = call.what;
        let mut until = None;
        loop {
            let (session, kept) = self.session(call, &mut until)?;
            let limit = call.deadline.begin(call.own);
            let (session, back, answer) = self.attempt(what, limit, session, work)?;
            work = back;
            let session = session.filter(|session| !session.client.is_closed());
            let has_session = session.is_some();
            if let Err(e) = &answer
                && is_crowded(e)
            {
                // A pooler accepted the connection, and has none to the server for it.
                note_refused();
                return Err(CallError::Unavailable(self.crowded(what, &reason(e))));
            }
            let is_of_use = !answer.as_ref().is_err_and(is_outdated);
            if let Some(session) = session.filter(|_| is_of_use && !call.is_large) {
                self.pool.put_back(session);
            }
            match answer {
                Ok(StatementResult::TooLate) => {
                    let message = format!("{}: not done within {limit}", self.message(what));
                    return Err(CallError::Unavailable(Failure::busy(message)));
                }
                Ok(done) => return Ok(done),
                Err(e) if is_cancelled(&e) => {
                    if limit.time() < self.access.statement_timeout {
                        let message = format!("{}: {}", self.message(what), reason(&e));
                        let message = format!("{message}; no answer within {limit}");
                        return Err(CallError::Unavailable(Failure::slow(message)));
                    }
                    return Err(CallError::Server(e));
                }
                Err(e) if is_outdated(&e) || !has_session => {
                    if !kept || is_too_long(&e) {
                        return Err(CallError::Server(e));
                    }
                    let name = self.message(what);
                    log::debug!("{name}: {}; connecting anew", reason(&e));
                    // The other idle sessions are as old.
                    self.pool.forget_idle();
                }
                Err(e) => return Err(CallError::Server(e)),
            }
        }
    }

    /// Returns a session, and whether it was idle before. If the server has no room for another, waits
    /// for one for the time of one call.
    fn session(
        &mut self,
        call: &SessionCall<'_>,
        until: &mut Option<Instant>,
    ) -> Result<(Session, bool), CallError> {
        loop {
            let until = *until.get_or_insert_with(|| {
                let timeout = call.deadline.begin(SESSION_WAIT).time();
                Instant::now() + timeout
            });
            let timeout = until.saturating_duration_since(Instant::now());
            match self.pool.take(timeout) {
                Checkout::Session(session) => return Ok((*session, true)),
                Checkout::MayOpen(permit) => {
                    if let Some(session) = self.connect(call.what, call.deadline, permit)? {
                        return Ok((session, false));
                    }
                }
                Checkout::NoRoom(why) => {
                    return Err(CallError::Unavailable(self.crowded(call.what, &why)));
                }
            }
        }
    }

    /// Does the work in this session, for as long as `limit` leaves. Over a Unix socket, which cannot be cut,
    /// it does so on a thread of its own, and leaves that behind with a call that hangs. Returns the session
    /// if it can be used again.
    fn attempt(
        &mut self,
        what: &str,
        limit: Limit,
        mut session: Session,
        work: Box<SessionWork>,
    ) -> Result<(Option<Session>, Box<SessionWork>, WorkResult), Failure> {
        let own = self.access.statement_timeout;
        let times = session.times(own, limit);
        let at_server =
            (self.is_slow && !session.is_direct).then(|| shorter(own, limit).unwrap_or(own));
        let (can_cut, limits) = (session.can_cut, session.limits.clone());
        let call = move || {
            let Session {
                client,
                statements,
                limits: of_session,
                ..
            } = &mut session;
            let (answer, is_usable) = of_session.during(times, || match at_server {
                Some(timeout) => limited(client, timeout, |client| work(client, statements, limit)),
                None => (work(client, statements, limit), true),
            });
            (session, work, answer, is_usable)
        };
        // Until the answer shows that it was in time.
        self.is_slow = true;
        let (session, work, answer, is_usable) = if can_cut {
            call()
        } else {
            let name = self.message(what);
            let cancel = || limits.cancel();
            self.timed_calls
                .run_or_cancel(&name, limit, (times.cancel, &cancel), call)?
        };
        let (was_cancelled, was_cut) = (session.limits.has_cancelled(), session.limits.has_cut());
        let counts = match &answer {
            // An answer may have come just before the cut. But a commit that was cancelled while it waited
            // for a standby is a success for the server, and the standby may not have it.
            Ok(_) => !was_cancelled,
            Err(error) => error.as_db_error().is_some(),
        };
        if (was_cancelled || was_cut) && !counts {
            let what = self.message(what);
            return Err(Failure::transient(format!(
                "{what}: no answer within {limit}"
            )));
        }
        // After any other error as well: a pooler may refuse transactions.
        self.is_slow = answer.as_ref().is_err_and(is_cancelled);
        // A request to cancel may still be on its way, and would hit the next call.
        let is_usable = is_usable && !was_cancelled && !was_cut;
        Ok((is_usable.then_some(session), work, answer))
    }

    /// Opens a session; returns `None` if the server has no room for it.
    fn connect(
        &mut self,
        what: &str,
        deadline: Deadline,
        permit: Permit,
    ) -> Result<Option<Session>, Failure> {
        let limit = deadline.begin(self.access.connect_limit);
        let mut access = self.access.clone();
        access.connect_limit = limit.time();
        let name = format!("{} (connecting)", self.message(what));
        let open = move || Session::open(&access, permit);
        match self.timed_calls.run(&name, limit, open)? {
            Ok(session) => Ok(Some(session)),
            Err(OpenError::Crowded) => Ok(None),
            Err(OpenError::Failed(why)) => {
                let message = format!("{}: {why}", self.message(what));
                Err(Failure::transient(message))
            }
        }
    }

    fn crowded(&self, what: &str, why: &str) -> Failure {
        Failure::crowded(format!("{}: {why}", self.message(what)))
    }

    fn message(&self, what: &str) -> String {
        format!("{}: could not {what}", self.server)
    }

    fn failure_of(&self, what: &str, error: CallError) -> Failure {
        match error {
            CallError::Unavailable(failure) => failure,
            CallError::Server(error) => self.failure(what, &error),
        }
    }

    fn failure(&self, what: &str, error: &Error) -> Failure {
        let message = format!("{}: {}", self.message(what), reason(error));
        if is_the_vcons(error) {
            Failure::refused(message)
        } else if is_cancelled(error) {
            Failure::slow(message)
        } else if is_chance(error) {
            Failure::busy(message)
        } else {
            Failure::transient(message)
        }
    }
}

fn is_too_long(error: &Error) -> bool {
    matches!(refused(error), Some(RejectedAnswer::TooLong(_)))
}

fn has_nul(vcon: &Outgoing) -> bool {
    vcon.json.contains("\\u0000") || vcon.subject.as_ref().is_some_and(|s| s.contains('\0'))
}

/// What a fuzzer runs on the options of the storage, and on what a server sends.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(super) mod fuzz {
    use serde_json::{Map, Value};

    use super::connect::Hosts;
    use super::open;
    use super::statements::Table;
    use super::wire::filtered;
    use crate::fuzzing::LONGEST_MESSAGE;
    use crate::options::Options;

    const SECRET: &str = "Kj7-pQ2_wX";

    /// The options, each on a line of its own.
    const KEYS: [&str; 7] = [
        "host",
        "port",
        "target_session_attrs",
        "sslmode",
        "table_name",
        "database",
        "user",
    ];

    /// Options as they stand in a file, with a host as it is, in a URL and in a connection string.
    pub fn options(data: &[u8]) {
        let Ok(text) = std::str::from_utf8(data) else {
            return;
        };
        // A fuzzer finds the password in the program.
        if text.contains(SECRET) {
            return;
        }
        let given: Map<String, Value> = KEYS
            .iter()
            .zip(text.split('\n'))
            .map(|(key, value)| ((*key).to_owned(), value.into()))
            .collect();
        let host = given
            .get("host")
            .and_then(Value::as_str)
            .unwrap_or_default();
        for host in [
            host.to_owned(),
            format!("postgresql://u:{SECRET}@{host}"),
            format!("host={host} password={SECRET}"),
            format!("{host}?password={SECRET}&sslmode=disable=1"),
        ] {
            let mut given = given.clone();
            given.insert("host".to_owned(), host.into());
            given.insert("password".to_owned(), SECRET.into());
            let yaml = Value::Object(given).to_string();
            let hosts = Hosts::read(&mut Options::from_yaml(&yaml));
            assert!(hosts.count() > 0 && hosts.each().len() == hosts.count() as usize);
            assert!(!hosts.shown().is_empty());
            let mut options = Options::from_yaml(&yaml);
            open(&mut options);
            options.finish();
            for fault in options.faults() {
                assert!(!fault.contains(SECRET), "{fault}");
                assert!(fault.len() <= LONGEST_MESSAGE, "{fault}");
            }
        }
        if let Some(name) = given.get("table_name").and_then(Value::as_str)
            && let Ok(table) = Table::parse(name)
        {
            assert_eq!(unquoted(&table.quoted).join("."), name);
        }
    }

    /// What the quoted identifiers stand for; there is nothing but the dots between them.
    fn unquoted(sql: &str) -> Vec<String> {
        let (mut names, mut characters) = (Vec::new(), sql.chars().peekable());
        loop {
            assert_eq!(characters.next(), Some('"'), "{sql}");
            let mut name = String::new();
            while let Some(c) = characters.next() {
                if c == '"' && characters.next_if_eq(&'"').is_none() {
                    break;
                }
                name.push(c);
            }
            names.push(name);
            match characters.next() {
                None => return names,
                dot => assert_eq!(dot, Some('.'), "{sql}"),
            }
        }
    }

    /// The bytes of a server.
    pub fn answer(data: &[u8]) {
        let whole = filtered(data, data.len().max(1));
        // It is the same in whatever pieces it comes.
        for size in [1, 7] {
            assert_eq!(filtered(data, size), whole);
        }
        let Ok(passed) = whole else {
            return;
        };
        assert!(passed.len() <= data.len() + 8, "{} bytes", passed.len());
        let mut rest = &passed[..];
        while let Some((head, after)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
            let body = &after[..length.min(after.len())];
            assert!(!b"ANS".contains(&head[0]), "{}", head[0]);
            assert!(head[0] != b'R' || !body.starts_with(&[0, 0, 0, 3]));
            rest = &after[body.len()..];
        }
    }
}
