//! What an error of Redis means for the vCon, and what a person can do about it.
//!
//! | error | met while | class |
//! |---|---|---|
//! | the document is longer than its limits allow, or `string exceeds maximum allowed size`, `invalid bulk length` | saving | refused |
//! | `WRONGTYPE`: something else has the vCon's key | reading | refused |
//! | a document that is not UTF-8 | reading | permanent |
//! | all others: not reached, not trusted, login refused, no right (NOPERM), out of memory (OOM), read-only, loading, disk full (MISCONF), a cluster (MOVED), … | anything | transient |
//!
//! A connection that was cut, or to a server that is not the master any more, is dropped.

use redis::RedisError;

use crate::failure::Failure;
use crate::redis_server::{ConnectError, in_its_words, needs_another};

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Writing a document.
    Save,
    /// Reading one.
    Read,
    /// Removing one.
    Delete,
    /// Trying whether it can be used.
    Probe,
}

/// The failure of one command; `message` says what could not be done.
pub(super) fn failure(step: Step, message: &str, error: &RedisError) -> Failure {
    let text = with_advice(format!("{message}: {}", in_its_words(error)));
    if is_the_vcons(step, error) {
        Failure::refused(text)
    } else {
        Failure::transient(text)
    }
}

/// The failure of a connection that could not be made: none of the vCon's.
pub(super) fn unreachable(message: &str, error: &ConnectError) -> Failure {
    let text = match error {
        // The server is named in the message.
        ConnectError::Unreachable { cause, .. } => format!("{message}: {}", in_its_words(cause)),
        ConnectError::NoMaster { faults, .. } => format!("{message}: {faults}"),
    };
    Failure::transient(with_advice(text))
}

/// Whether the connection is of no use after this error.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    match error.clone().into_server_errors() {
        Some(errors) => errors
            .iter()
            .any(|(_, error)| needs_another(error) || is_about_size(error.details())),
        None => true,
    }
}

/// The table in the module's head.
fn is_the_vcons(step: Step, error: &RedisError) -> bool {
    let answered = error.clone().into_server_errors().unwrap_or_default();
    answered.iter().any(|(_, error)| match step {
        Step::Save => is_about_size(error.details()),
        Step::Read => error.code() == "WRONGTYPE",
        Step::Delete | Step::Probe => false,
    })
}

fn is_about_size(details: Option<&str>) -> bool {
    let details = details.unwrap_or_default();
    ["exceeds maximum allowed size", "invalid bulk length"]
        .iter()
        .any(|text| details.contains(text))
}

fn with_advice(text: String) -> String {
    match advice(&text) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

fn advice(text: &str) -> Option<&'static str> {
    let advices = [
        (
            &["WRONGPASS", "NOAUTH", "AuthenticationFailed", "AUTH failed"][..],
            "see to user and password in `redis_url`",
        ),
        (
            &["NOPERM"],
            "allow this user SET, GET and DEL on the keys of `prefix`",
        ),
        (&["OOM "], "raise its maxmemory, or lower `expires`"),
        (&["READONLY"], "it is a replica: see to `redis_url`"),
        (
            &["MOVED ", "ASK "],
            "it is part of a Redis Cluster, which this storage does not use",
        ),
        (&["MISCONF"], "see to its disk and its log"),
    ];
    advices
        .iter()
        .find(|(words, _)| words.iter().any(|word| text.contains(word)))
        .map(|(_, advice)| *advice)
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use std::io;

    use super::*;

    /// The error of a command that the server answers with this line.
    fn answered(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).err();
        error.unwrap_or_else(|| panic!("{line} is no error"))
    }

    #[test]
    fn errors_are_classified_as_the_table_says() {
        use Step::{Delete, Probe, Read, Save};
        let size = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
        let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
        for (line, permanent_at) in [
            (size, &[Save][..]),
            ("ERR Protocol error: invalid bulk length", &[Save]),
            (wrong, &[Read]),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                &[],
            ),
            ("READONLY You can't write against a read only replica.", &[]),
            (
                "NOPERM this user has no permissions to run the 'set' command",
                &[],
            ),
            ("NOAUTH Authentication required.", &[]),
            ("LOADING Redis is loading the dataset in memory", &[]),
            (
                "MISCONF Redis is configured to save RDB snapshots, but",
                &[],
            ),
            ("MOVED 3999 127.0.0.1:6381", &[]),
            ("ERR something new", &[]),
        ] {
            for step in [Save, Read, Delete, Probe] {
                let failure = failure(step, "it failed", &answered(line));
                let expected = !permanent_at.contains(&step);
                assert_eq!(failure.is_transient(), expected, "{step:?} {line}");
                let word = line.split(' ').next().unwrap_or_default();
                assert!(failure.message.contains(word), "{failure}");
            }
        }
        let cut = RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert!(failure(Save, "it failed", &cut).is_transient());
        assert!(breaks_connection(&cut));
    }

    #[test]
    fn a_connection_is_dropped_if_the_server_has_ended_it_or_is_not_the_one() {
        for (line, breaks) in [
            ("ERR string exceeds maximum allowed size (512MB)", true),
            ("ERR Protocol error: invalid bulk length", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            ("MASTERDOWN Link with MASTER is down", true),
            ("NOAUTH Authentication required.", true),
            ("WRONGPASS invalid username-password pair", true),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                false,
            ),
            ("WRONGTYPE Operation against a key", false),
            ("LOADING Redis is loading the dataset in memory", false),
            ("ERR something new", false),
        ] {
            assert_eq!(breaks_connection(&answered(line)), breaks, "{line}");
        }
    }

    #[test]
    fn a_server_that_is_not_reached_is_the_fault_of_the_place() {
        let cause = RedisError::from((
            redis::ErrorKind::AuthenticationFailed,
            "Password authentication failed",
        ));
        let refused = ConnectError::Unreachable {
            server: "h:1".to_owned(),
            cause,
        };
        let failure = unreachable("could not save", &refused);
        assert!(failure.is_transient());
        let start = "could not save: Password authentication failed";
        assert!(failure.message.starts_with(start), "{failure}");
        assert!(!failure.message.contains("h:1"), "{failure}");
        assert!(
            failure.message.contains("see to user and password"),
            "{failure}"
        );
        let lost = ConnectError::NoMaster {
            server: "m".to_owned(),
            faults: "s:1: refused".to_owned(),
        };
        let failure = unreachable("could not save", &lost);
        assert_eq!(failure, Failure::transient("could not save: s:1: refused"));
    }

    #[test]
    fn what_a_person_can_mend_is_said() {
        let user = "see to user and password in `redis_url`";
        let cluster = "it is part of a Redis Cluster, which this storage does not use";
        for (line, advice) in [
            ("WRONGPASS invalid username-password pair", user),
            ("NOAUTH Authentication required.", user),
            ("ERR AUTH failed: WRONG", user),
            (
                "NOPERM no permissions",
                "allow this user SET, GET and DEL on the keys of `prefix`",
            ),
            (
                "OOM command not allowed",
                "raise its maxmemory, or lower `expires`",
            ),
            (
                "READONLY You can't write",
                "it is a replica: see to `redis_url`",
            ),
            ("MOVED 1 h:1", cluster),
            ("ASK 1 h:1", cluster),
            ("MISCONF Redis is configured", "see to its disk and its log"),
        ] {
            let failure = failure(Step::Save, "it failed", &answered(line));
            assert!(failure.message.starts_with("it failed: "), "{failure}");
            assert!(
                failure.message.ends_with(&format!("; {advice}")),
                "{failure}"
            );
        }
        let other = failure(Step::Save, "it failed", &answered("ERR something new"));
        assert_eq!(other.message, "it failed: ERR something new");
    }
}
