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
//! | 40, 53, 55P03, 57014 | others were in the way: deadlocks and serialization, too many connections, locks, the statement timeout | transient, by chance |
//! | all others | connections (08), read-only or a standby (25006), rights and columns (42), shutdown, start-up (57), the server's system (58), its own errors (XX), which are also those of a pooler, … | transient |
//!
//! An error that ends the session (FATAL) is none of the vCon's, whatever its state.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use postgres::Error;
use postgres::error::{DbError, Severity};

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

/// The table in the module's head.
fn blames_vcon(state: &str, column: Option<&str>) -> bool {
    match state {
        // A column that somebody has added and that takes no NULL: no vCon fits.
        "23502" => column.is_some_and(|column| COLUMNS.contains(&column)),
        _ => ["21", "22", "23", "44", "54", "P0"]
            .iter()
            .any(|class| state.starts_with(class)),
    }
}

/// Whether it is chance that this statement met it: others were in the way.
pub(super) fn is_chance(error: &Error) -> bool {
    state(error).is_some_and(|state| {
        state.starts_with("40") || state.starts_with("53") || matches!(state, "55P03" | "57014")
    })
}

/// Whether the server has cancelled the statement: at its timeout, or because somebody asked.
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

/// TLS itself failed, or the server lets us in only without it: a mode that does not insist on
/// TLS goes on without.
pub(super) fn may_work_without_tls(error: &Error) -> bool {
    state(error) == Some("28000")
        || error
            .source()
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .and_then(io::Error::get_ref)
            .is_some_and(|cause| cause.is::<rustls::Error>())
}

/// Who refused the connection may take one without the startup parameter `options`: poolers say
/// "unsupported startup parameter" (08P01) or "not supported" (0A000).
pub(super) fn may_work_without_options(error: &Error) -> bool {
    matches!(state(error), Some("08P01" | "0A000"))
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

fn described(db: &DbError) -> String {
    let state = db.code().code();
    let text = format!("{} (SQLSTATE {state})", db.message());
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
        "53300" => "raise max_connections or the user's limit: each lane has one connection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
