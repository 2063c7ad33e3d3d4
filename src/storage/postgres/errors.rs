//! What an error of PostgreSQL means for the vCon, and what a person can do about it.
//!
//! Whatever goes wrong before there is a session (no server, no login, no database, a table with
//! other columns) has nothing to do with a vCon, and is waited out. In a session the SQLSTATE
//! decides:
//!
//! | class or state | | |
//! |---|---|---|
//! | 21, 22, 44 | data that the columns, or a check of a view, do not take | permanent |
//! | 23 | a constraint that this vCon breaks; 23502 only for a column that we write | permanent |
//! | 54 | larger than the server can hold | permanent |
//! | P0 | a trigger that says no | permanent |
//! | 40, 53, 55P03 | others were in the way: deadlocks and serialization, too little of something, locks | transient, by chance |
//! | 57014 | the statement timeout: a lock that others hold, or too much for the time | transient, for a while |
//! | 53300, and what poolers say instead | too many connections | transient: a session is waited for |
//! | all others | connections (08), read-only or a standby (25006), rights and columns (42), shutdown, start-up (57), the server's system (58), its own errors (XX), which are also those of a pooler, … | transient |
//!
//! An error that ends the session (FATAL) is none of the vCon's, whatever its state.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::panic::{self, AssertUnwindSafe};

use postgres::Error;
use postgres::error::{DbError, Severity};

use super::wire::RejectedAnswer;

/// The columns that are written.
const COLUMNS: &[&str] = &[
    "id",
    "vcon",
    "uuid",
    "created_at",
    "updated_at",
    "subject",
    "vcon_json",
];

/// Whether the vCon at hand is to blame for an error in a session.
pub(super) fn is_the_vcons(error: &Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        let fatal = matches!(
            db.parsed_severity(),
            Some(Severity::Fatal | Severity::Panic)
        );
        !fatal && blames_vcon(db.code().code(), db.column())
    })
}

/// Whether an error is about the row of a probe, while another row may be accepted. A row policy reports
/// the same as a missing right, which was checked before.
pub(super) fn is_of_this_row(error: &Error) -> bool {
    is_the_vcons(error) || state(error) == Some("42501")
}

/// The table in the module's head.
fn blames_vcon(state: &str, column: Option<&str>) -> bool {
    match state {
        // Somebody added a column that takes no NULL: no vCon fits.
        "23502" => column.is_some_and(|column| COLUMNS.contains(&column)),
        _ => ["21", "22", "23", "44", "54", "P0"]
            .iter()
            .any(|class| state.starts_with(class)),
    }
}

/// Whether others were in the way of this statement by chance.
pub(super) fn is_chance(error: &Error) -> bool {
    state(error)
        .is_some_and(|state| state.starts_with("40") || state.starts_with("53") || state == "55P03")
}

/// Whether there are too many connections already, for the server, the user or the database; poolers
/// report that in words of their own.
pub(super) fn is_crowded(error: &Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|db| says_crowded(db.code().code(), db.message()))
}

/// Poolers use a state of their own or none: PgBouncer `08P01`, also for what it heard from the server,
/// Supavisor `XX000`.
fn says_crowded(state: &str, message: &str) -> bool {
    const WORDS: [&str; 6] = [
        "no more connections allowed",
        "query_wait_timeout",
        "too many clients",
        "too many connections",
        "connection slots are reserved",
        "max client",
    ];
    let message = message.to_ascii_lowercase();
    state == "53300"
        || matches!(state, "08P01" | "08006" | "08004" | "58000" | "XX000")
            && WORDS.iter().any(|words| message.contains(words))
}

/// Whether the server cancelled the statement: at its timeout, or on request.
pub(super) fn is_cancelled(error: &Error) -> bool {
    state(error) == Some("57014")
}

/// The session no longer fits the server, though a new one may: it was ended (57P), the server
/// has become a read-only standby (25006), a pooler has lost a statement on its way (26000), the table
/// was dropped (42P01) or a view is in its place (42703).
pub(super) fn is_outdated(error: &Error) -> bool {
    match state(error) {
        Some(s) => s.starts_with("57P") || matches!(s, "25006" | "26000" | "42P01" | "42703"),
        None => error.is_closed() || has_io_cause(error),
    }
}

/// Whether TLS itself failed, or the server accepts only connections without it: a mode that does not
/// insist on TLS goes on without.
pub(super) fn may_work_without_tls(error: &Error) -> bool {
    state(error) == Some("28000")
        || error
            .source()
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .and_then(io::Error::get_ref)
            .is_some_and(|cause| cause.is::<rustls::Error>())
}

/// Whether the peer may accept a connection without the startup parameter `options`: poolers refuse it
/// with "unsupported startup parameter" (08P01) or "not supported" (0A000), servers that are not
/// PostgreSQL's own with "unrecognized configuration parameter" (42704).
pub(super) fn may_work_without_options(error: &Error) -> bool {
    matches!(state(error), Some("08P01" | "0A000" | "42704"))
}

/// The part of the server's answer that was rejected, if that is the cause of the error.
pub(super) fn refused(error: &Error) -> Option<RejectedAnswer> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref::<RejectedAnswer>().copied()
}

/// Whether the server does not have a column, or does not support it.
pub(super) fn is_without_column(error: &Error) -> bool {
    matches!(state(error), Some("42703" | "0A000"))
}

/// Class 22: data that the columns do not take.
pub(super) fn is_bad_data(error: &Error) -> bool {
    state(error).is_some_and(|state| state.starts_with("22"))
}

fn state(error: &Error) -> Option<&str> {
    error.code().map(|code| code.code())
}

fn has_io_cause(error: &Error) -> bool {
    error.source().is_some_and(|cause| cause.is::<io::Error>())
}

/// The error and its causes, without the server's DETAIL and CONTEXT, which quote the document;
/// then what to do about it.
pub(super) fn reason(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        return described(db);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// The most characters of the server's own words: a trigger may say whole documents, and a log cuts its
/// lines at their end, where the state and the advice stand.
const LONGEST_MESSAGE: usize = 1000;

fn described(db: &DbError) -> String {
    let state = db.code().code();
    let message: String = db.message().chars().take(LONGEST_MESSAGE).collect();
    let text = format!("{message} (SQLSTATE {state})");
    match advice(state) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

fn advice(state: &str) -> Option<&'static str> {
    Some(match state {
        "28000" | "28P01" => {
            "see to `user`, `password` and `sslmode`, and to the server's pg_hba.conf"
        }
        "3D000" => "create the database, or mend `database`",
        "3F000" => "create the schema, or mend `table_name`",
        "25006" => "it is read-only: a standby, or set so",
        "42501" => {
            "grant the user SELECT, INSERT, UPDATE and DELETE on the table, and USAGE on its schema"
        }
        "42703" | "42804" | "42883" | "42P10" | "23502" => {
            "the table must have: id uuid primary key, vcon text, uuid uuid, created_at timestamp, \
             updated_at timestamp, subject text, vcon_json jsonb; and no other column without a default"
        }
        "53100" => "make room on the server's disk",
        "53300" => {
            "raise max_connections or the user's limit: each lane that saves has one connection"
        }
        _ => return None,
    })
}

/// Catches a panic of the client library, which panics if it gets no file descriptor: no vCon is to
/// blame for that.
pub(super) fn caught<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the client has panicked".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use postgres::{Config, NoTls};

    use super::super::tls::Tls;
    use super::super::wire::CallLimits;
    use super::*;
    use crate::options::Options;

    /// What the client makes of a server that reads something and says this, and ends the connection.
    fn after(said: Vec<u8>, sslmode: Option<&str>) -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").user("u").password("p");
        config.port(listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let read = client.read(&mut [0; 1024]).unwrap();
            assert!(read > 0);
            client.write_all(&said).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            // Until the client has read it: what is unread would become a reset.
            let _ = std::io::copy(&mut client, &mut std::io::sink());
        });
        let mode = sslmode.unwrap_or("disable");
        let tls = Tls::read(&mut Options::from_yaml(&format!("sslmode: {mode}")));
        let wire = tls.wire(true, &CallLimits::default()).unwrap();
        let error = wire.connect(config).err().unwrap();
        server.join().unwrap();
        error
    }

    /// The server's error of this severity and state, for this column.
    fn answer(severity: &str, state: &str, column: &str) -> Error {
        let fields = [
            ('S', severity),
            ('V', severity),
            ('C', state),
            ('M', "it says no"),
            ('D', "Key (subject)=(private) already exists."),
            ('W', "JSON data, line 1: private"),
            ('c', column),
        ];
        let mut body = Vec::new();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            write!(body, "{name}{value}\0").unwrap();
        }
        body.push(0);
        let mut message = vec![b'E'];
        let length = u32::try_from(body.len() + 4).unwrap();
        message.extend(length.to_be_bytes());
        message.extend(body);
        after(message, None)
    }

    fn error(state: &str) -> Error {
        answer("ERROR", state, "")
    }

    fn nobody_listens() -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut config = Config::new();
        config.host("127.0.0.1").user("u").port(port);
        config.connect(NoTls).err().unwrap()
    }

    /// An error of the client's own, with a cause that is no I/O error.
    fn own() -> Error {
        "port=x".parse::<Config>().unwrap_err()
    }

    #[test]
    fn an_error_that_ends_the_session_is_none_of_the_vcons() {
        for state in ["22001", "23505", "54000", "P0001"] {
            assert!(is_the_vcons(&error(state)), "{state}");
            assert!(!is_the_vcons(&answer("FATAL", state, "")), "{state}");
            assert!(!is_the_vcons(&answer("PANIC", state, "")), "{state}");
        }
        assert!(is_the_vcons(&answer("ERROR", "23502", "subject")));
        assert!(!is_the_vcons(&answer("ERROR", "23502", "tenant")));
        assert!(!is_the_vcons(&error("42501")));
        assert!(is_of_this_row(&error("42501")) && is_of_this_row(&error("23514")));
        for state in ["53100", "25006", "42P01", "58030"] {
            assert!(!is_of_this_row(&error(state)), "{state}");
        }
        assert!(!is_of_this_row(&nobody_listens()));
        assert!(!is_the_vcons(&nobody_listens()));
    }

    #[test]
    fn others_in_the_way_are_chance() {
        for state in [
            "40001", "40P01", "53100", "53200", "53300", "53400", "55P03",
        ] {
            assert!(is_chance(&error(state)), "{state}");
        }
        for state in [
            "08006", "22001", "23505", "25006", "42501", "55006", "57P01",
        ] {
            assert!(!is_chance(&error(state)), "{state}");
        }
        assert!(!is_chance(&nobody_listens()));
    }

    #[test]
    fn servers_and_poolers_say_in_many_ways_that_there_are_too_many_connections() {
        for (state, message) in [
            ("53300", "sorry, too many clients already"),
            ("53300", "désolé, trop de clients sont déjà connectés"),
            (
                "53300",
                "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            ),
            ("08P01", "no more connections allowed (max_client_conn)"),
            ("08P01", "query_wait_timeout"),
            (
                "08P01",
                "server login failed: FATAL sorry, too many clients already",
            ),
            (
                "XX000",
                "MaxClientsInSessionMode: max clients reached - in Session mode",
            ),
            ("XX000", "Max client connections reached"),
        ] {
            assert!(says_crowded(state, message), "{message}");
        }
        for (state, message) in [
            ("08P01", "unsupported startup parameter: options"),
            ("53100", "could not extend file"),
            ("22001", "too many connections"),
            ("XX000", "internal error"),
            ("28P01", "password authentication failed"),
        ] {
            assert!(!says_crowded(state, message), "{message}");
        }
        assert!(is_crowded(&answer("FATAL", "53300", "")));
        assert!(!is_crowded(&error("53100")) && !is_crowded(&nobody_listens()));
    }

    #[test]
    fn only_57014_is_a_cancelled_statement() {
        assert!(is_cancelled(&error("57014")));
        for state in ["57P01", "55P03", "40001"] {
            assert!(!is_cancelled(&error(state)), "{state}");
        }
        assert!(!is_cancelled(&nobody_listens()));
    }

    #[test]
    fn a_new_session_is_worth_trying_where_the_old_one_was_ended_or_does_not_fit() {
        for state in [
            "57P01", "57P02", "57P03", "57P05", "25006", "26000", "42P01", "42703",
        ] {
            assert!(is_outdated(&error(state)), "{state}");
        }
        for state in [
            "57014", "0A000", "22001", "25P02", "40001", "42501", "53300",
        ] {
            assert!(!is_outdated(&error(state)), "{state}");
        }
        let ended = after(Vec::new(), None);
        assert!(ended.is_closed() && is_outdated(&ended), "{ended:?}");
        let unreachable = nobody_listens();
        assert!(!unreachable.is_closed() && is_outdated(&unreachable));
        assert!(!is_outdated(&own()), "{:?}", own());
    }

    #[test]
    fn without_tls_is_tried_where_tls_itself_fails_or_is_not_let_in() {
        assert!(may_work_without_tls(&error("28000")));
        assert!(!may_work_without_tls(&error("28P01")));
        assert!(!may_work_without_tls(&nobody_listens()));
        assert!(!may_work_without_tls(&own()));
        let mut garbage = vec![b'S'];
        garbage.extend(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let error = after(garbage, Some("require"));
        assert!(may_work_without_tls(&error), "{error:?}");
        let error = after(vec![b'S'], Some("require"));
        assert!(!may_work_without_tls(&error), "{error:?}");
        let error = after(vec![b'N'], Some("require"));
        assert!(!may_work_without_tls(&error), "{error:?}");
    }

    #[test]
    fn without_options_is_tried_where_a_pooler_may_have_refused_them() {
        for state in ["08P01", "0A000", "42704"] {
            assert!(
                may_work_without_options(&answer("FATAL", state, "")),
                "{state}"
            );
        }
        for state in ["28P01", "3D000", "53300", "57P03", "08006"] {
            assert!(
                !may_work_without_options(&answer("FATAL", state, "")),
                "{state}"
            );
        }
        assert!(!may_work_without_options(&nobody_listens()));
    }

    #[test]
    fn a_column_is_missing_or_not_supported() {
        assert!(is_without_column(&error("42703")) && is_without_column(&error("0A000")));
        for state in ["42501", "42P01", "57014"] {
            assert!(!is_without_column(&error(state)), "{state}");
        }
        assert!(!is_without_column(&nobody_listens()));
    }

    #[test]
    fn class_22_is_bad_data() {
        assert!(is_bad_data(&error("22P05")) && is_bad_data(&error("22021")));
        assert!(!is_bad_data(&error("23505")) && !is_bad_data(&nobody_listens()));
    }

    #[test]
    fn a_reason_has_the_state_and_what_to_do_and_nothing_of_the_document() {
        let plain = "it says no (SQLSTATE 40001)";
        assert_eq!(reason(&error("40001")), plain);
        let columns = "the table must have: id uuid primary key";
        for (state, advice) in [
            ("28000", "see to `user`, `password` and `sslmode`"),
            ("28P01", "see to `user`, `password` and `sslmode`"),
            ("3D000", "create the database"),
            ("3F000", "create the schema"),
            ("25006", "it is read-only"),
            ("42501", "grant the user SELECT, INSERT, UPDATE and DELETE"),
            ("42703", columns),
            ("42804", columns),
            ("42883", columns),
            ("42P10", columns),
            ("23502", columns),
            ("53100", "make room"),
            ("53300", "raise max_connections"),
        ] {
            let reason = reason(&error(state));
            let expected = format!("it says no (SQLSTATE {state}); {advice}");
            assert!(reason.starts_with(&expected), "{reason}");
            assert!(!reason.contains("private"), "{reason}");
        }
        let reason = reason(&nobody_listens());
        assert!(reason.contains("server: Connection refused"), "{reason}");
    }

    #[test]
    fn states_are_classified_as_the_table_says() {
        for state in [
            "21000", "22001", "22021", "22P02", "22P05", "23503", "23505", "23514", "44000",
            "54000", "P0001",
        ] {
            assert!(blames_vcon(state, None), "{state}");
        }
        for state in [
            "08000", "08006", "08P01", "0A000", "25006", "25P02", "26000", "28000", "28P01",
            "3D000", "3F000", "40001", "40P01", "42501", "42601", "42703", "42P01", "42804",
            "53100", "53200", "53300", "55006", "55P03", "57014", "57P01", "57P02", "57P03",
            "57P05", "58000", "58030", "XX001", "XX002",
        ] {
            assert!(!blames_vcon(state, None), "{state}");
        }
    }

    #[test]
    fn a_column_that_takes_no_null_is_the_vcons_fault_only_where_we_write_it() {
        assert!(blames_vcon("23502", Some("subject")));
        assert!(!blames_vcon("23502", Some("tenant")));
        assert!(!blames_vcon("23502", None));
    }
}
