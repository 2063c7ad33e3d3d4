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
//! | `host`, `port`, `target_session_attrs` | `localhost`, `5432` | see the module `hosts` |
//! | `database`, `user` | required | |
//! | `password` | none | |
//! | `table_name` | `vcons` | or `schema.table` |
//! | `sslmode` | `prefer` | `disable`, `prefer`, `require`, `verify-ca`, `verify-full`; see the module `tls` |
//! | `sslrootcert` | the system's | a file of the authorities to trust, in PEM form |
//! | `connect_timeout` | `10` | seconds, for each host |
//! | `statement_timeout` | `30` | seconds; the server ends the statement |
//!
//! There may be a pooler in between, and a write that comes late must not undo a later one: see the module
//! `statements`.
//!
//! A call that gets no answer is cut off some seconds after its time on the server; see the module
//! `watchdog`. How the server learns its time, also when the deadline leaves less, is told in the module
//! `session`.
//!
//! What a server may send, and when it gets the password in clear text, is told in the modules `wire` and
//! `tls`.
//!
//! Which errors are transient and which permanent stands in one table, in the module `fault`: what
//! ails the server, the login or the table is waited out; data that it does not take is refused.

mod fault;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod hosts;
mod pool;
mod session;
mod statements;
mod table;
mod tls;
mod watchdog;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::{Client, Config, Error};

use self::fault::{
    is_bad_data, is_cancelled, is_chance, is_crowded, is_outdated, is_the_vcons, reason, refused,
};
use self::hosts::Hosts;
use self::pool::{Permit, Pool, Turn};
use self::session::{Access, NotOpened, Session, limited, shorter};
use self::statements::{Document, Done, NewRow, Statements};
use self::table::Table;
use self::tls::Tls;
use self::wire::Refused;
use super::bounded::Bounded;
use super::crowd;
use super::{Room, Storage};
use crate::config::Options;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::vcon::{LARGEST_DOCUMENT, Outgoing, VconId};

/// What a call gets beyond the time it has on the server or the socket.
const GRACE: Duration = Duration::from_secs(5);

/// How long the query of a probe may take.
const PROBE: Duration = Duration::from_secs(5);

/// How long a lane waits for a session in one call, if the server has no room for another.
const PATIENCE: Duration = Duration::from_secs(2);

/// A session is not kept after a document of more bytes: its buffers stay as large as the largest
/// one that went through them.
const LARGE: usize = 4 << 20;

type Answer = Result<Done, Error>;
type Work = dyn Fn(&mut Client, &Statements, Limit) -> Answer + Send;

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
        access: Access {
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
        pool: options.common(),
        room: Vec::new(),
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
    /// What there is to know of the way to a server that is not local.
    way: Option<&'static str>,
    access: Access,
    statement_limit: Duration,
    /// The last save has found a row: the next one looks for it first.
    meets_rows: bool,
    /// The last call was too slow.
    is_slow: bool,
    pool: Arc<Pool>,
    /// What the last check has found.
    room: Vec<Room>,
    bounded: Bounded,
}

impl Storage for Postgres {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let row = NewRow {
            id: vcon.id.uuid(),
            version: vcon.version.as_str().to_owned(),
            created_at: vcon.created_or_now().local,
            subject: vcon.subject.clone(),
            json: Document(Arc::clone(&vcon.json)),
        };
        let row_first = self.meets_rows;
        let work = move |client: &mut Client, statements: &Statements, limit: Limit| {
            statements.save(client, &row, row_first, limit)
        };
        let what = format!("save vCon {}", vcon.id);
        let call = Call {
            what: &what,
            own: self.statement_limit,
            deadline,
            is_large: vcon.json.len() > LARGE,
        };
        match self.run(&call, Box::new(work)) {
            Err(Trouble::Refused(error)) => {
                let mut failure = self.failure(&what, &error);
                // The server says so in its own language.
                if is_bad_data(&error) && has_nul(vcon) {
                    failure.message.push_str(
                        "; the vCon holds a NUL character (\\u0000), which PostgreSQL cannot hold",
                    );
                }
                Err(failure)
            }
            Err(Trouble::Away(failure)) => Err(failure),
            Ok(done) => {
                self.meets_rows = matches!(done, Done::Saved { had_row: true });
                Ok(())
            }
        }
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let uuid = id.uuid();
        let what = format!("read vCon {id}");
        let work = move |client: &mut Client, statements: &Statements, _: Limit| {
            statements.get(client, uuid)
        };
        let call = self.call(&what, self.statement_limit, deadline);
        match self.run(&call, Box::new(work)) {
            Ok(Done::Found(document)) => Ok(document),
            Ok(_) => Ok(None),
            Err(Trouble::Refused(error)) if is_too_long(&error) => {
                let most = LARGEST_DOCUMENT >> 20;
                let message = self.message(&what);
                Err(Failure::permanent(format!(
                    "{message}: the document is larger than {most} MiB"
                )))
            }
            Err(trouble) => Err(self.told(&what, trouble)),
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
            Err(trouble) => Err(self.told(&what, trouble)),
        }
    }

    /// A wait for a session, a statement in one that turns out to be of no use, a new session, and the
    /// statement once more.
    fn longest_call(&self) -> Duration {
        self.access.connect_limit + self.statement_limit.saturating_mul(2) + PATIENCE
    }

    /// Saves a row and takes it back: that needs a session, the table with its columns, the rights, a
    /// server that writes and has room on its disk, and nobody who locks the table.
    fn probe(&mut self) -> Result<(), Failure> {
        let work =
            |client: &mut Client, statements: &Statements, _: Limit| statements.try_save(client);
        let call = self.call("write", PROBE, Deadline::NONE);
        match self.run(&call, Box::new(work)) {
            Ok(_) => Ok(()),
            Err(trouble) => Err(self.told("write", trouble)),
        }
    }

    fn room(&mut self) -> Vec<Room> {
        std::mem::take(&mut self.room)
    }

    fn check(&mut self) -> Result<String, Failure> {
        let access = self.access.clone();
        let message = self.message("look for its table");
        let limit = Deadline::NONE.begin(PROBE);
        let look = move || session::look_around(&access);
        let found = self.bounded.run(&message, limit, look)?;
        let found = found.map_err(|why| Failure::transient(format!("{message}: {why}")))?;
        let (has_table, room) = found;
        self.room = room;
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

/// What is to be done in a session.
struct Call<'a> {
    /// What messages call it.
    what: &'a str,
    /// How long it may take by itself.
    own: Duration,
    deadline: Deadline,
    /// Whether the session has large buffers after it.
    is_large: bool,
}

/// Why some work was not done.
enum Trouble {
    /// There is no session, or no answer.
    Away(Failure),
    /// The server's answer in a session.
    Refused(Error),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Away(failure)
    }
}

impl Postgres {
    fn call<'a>(&self, what: &'a str, own: Duration, deadline: Deadline) -> Call<'a> {
        Call {
            what,
            own,
            deadline,
            is_large: false,
        }
    }

    /// Does the work in a session that was idle, or a new one. One that was idle may have died or become
    /// outdated since its last use; the work is idempotent and is then done once more in another one.
    fn run(&mut self, call: &Call<'_>, mut work: Box<Work>) -> Result<Done, Trouble> {
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
                // A pooler has let us in, and has no connection to the server for us.
                crowd::note_refused();
                return Err(Trouble::Away(self.crowded(what, &reason(e))));
            }
            let is_of_use = !answer.as_ref().is_err_and(is_outdated);
            if let Some(session) = session.filter(|_| is_of_use && !call.is_large) {
                self.pool.put_back(session);
            }
            match answer {
                Ok(Done::TooLate) => {
                    let message = format!("{}: not done within {limit}", self.message(what));
                    return Err(Trouble::Away(Failure::busy(message)));
                }
                Ok(done) => return Ok(done),
                Err(e) if is_cancelled(&e) => {
                    if limit.time() < self.access.statement_timeout {
                        let message = format!("{}: {}", self.message(what), reason(&e));
                        let message = format!("{message}; no answer within {limit}");
                        return Err(Trouble::Away(Failure::slow(message)));
                    }
                    return Err(Trouble::Refused(e));
                }
                Err(e) if is_outdated(&e) || !has_session => {
                    if !kept || is_too_long(&e) {
                        return Err(Trouble::Refused(e));
                    }
                    let name = self.message(what);
                    log::debug!("{name}: {}; connecting anew", reason(&e));
                    // Those beside it are as old.
                    self.pool.forget_idle();
                }
                Err(e) => return Err(Trouble::Refused(e)),
            }
        }
    }

    /// A session, and whether it is one that was idle. One that the server has no room for is waited for,
    /// for the time of one call.
    fn session(
        &mut self,
        call: &Call<'_>,
        until: &mut Option<Instant>,
    ) -> Result<(Session, bool), Trouble> {
        loop {
            let until = *until.get_or_insert_with(|| {
                let patience = call.deadline.begin(PATIENCE).time();
                Instant::now() + patience
            });
            let patience = until.saturating_duration_since(Instant::now());
            match self.pool.take(patience) {
                Turn::Session(session) => return Ok((*session, true)),
                Turn::Open(permit) => {
                    if let Some(session) = self.connect(call.what, call.deadline, permit)? {
                        return Ok((session, false));
                    }
                }
                Turn::Nothing(why) => return Err(Trouble::Away(self.crowded(call.what, &why))),
            }
        }
    }

    /// Does the work in this session, for as long as `limit` leaves, under its watchdog; where that cannot
    /// cut a connection, on a thread of its own, which is left behind with a call that hangs. The session
    /// comes back where it can be used again.
    fn attempt(
        &mut self,
        what: &str,
        limit: Limit,
        mut session: Session,
        work: Box<Work>,
    ) -> Result<(Option<Session>, Box<Work>, Answer), Failure> {
        let own = self.access.statement_timeout;
        let times = session.times(own, limit);
        let at_server =
            (self.is_slow && !session.is_direct).then(|| shorter(own, limit).unwrap_or(own));
        let can_cut = session.watchdog.can_cut();
        let call = move || {
            let Session {
                client,
                statements,
                watchdog,
                ..
            } = &mut session;
            let (answer, is_usable) = watchdog.during(times, || match at_server {
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
            self.bounded.run(&name, limit, call)?
        };
        let (was_cancelled, was_cut) =
            (session.watchdog.has_cancelled(), session.watchdog.has_cut());
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
        // Also after another error: a pooler may refuse transactions.
        self.is_slow = answer.as_ref().is_err_and(is_cancelled);
        // A request to cancel may still be under way, and would meet the next call.
        let is_usable = is_usable && !was_cancelled && !was_cut;
        Ok((is_usable.then_some(session), work, answer))
    }

    /// A new session; `None` if the server has no room for it.
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
        match self.bounded.run(&name, limit, open)? {
            Ok(session) => Ok(Some(session)),
            Err(NotOpened::Crowded) => Ok(None),
            Err(NotOpened::Refused(why)) => {
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

    fn told(&self, what: &str, trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Away(failure) => failure,
            Trouble::Refused(error) => self.failure(what, &error),
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
    matches!(refused(error), Some(Refused::TooLong(_)))
}

fn has_nul(vcon: &Outgoing) -> bool {
    vcon.json.contains("\\u0000") || vcon.subject.as_ref().is_some_and(|s| s.contains('\0'))
}
