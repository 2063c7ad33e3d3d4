//! What can go wrong between us and Redis, and what it means for the connection.
//!
//! Whatever goes wrong is waited out: the same step is tried again until it is done. Each step is
//! safe to repeat, whether or not the server has done it already.
//!
//! | What happened | The connection |
//! |---|---|
//! | It was cut or reset, timed out, was interrupted, or brought an answer that cannot be read | dropped: an answer may still be on its way |
//! | `READONLY`, `MASTERDOWN`: this server is not the master any more | dropped: the next is made to the present master |
//! | `NOAUTH`, `WRONGPASS`: the server's users have changed | dropped: the next one logs in anew |
//! | `max number of clients reached` | dropped: the server has closed it |
//! | `LOADING`, `BUSY`: the server will answer soon | kept |
//! | `OOM`, `MISCONF`, `NOREPLICAS`: the server takes no writes for now | kept |
//! | `NOSCRIPT` | kept: the script is sent in full, at once |
//! | `EXECABORT` | as for the error that aborted the transaction |
//! | Any other error the server answers, such as `NOPERM` or `WRONGTYPE` | kept |

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{RedisError, ServerError};

use crate::redis_server::{ConnectError, in_its_words, needs_another};

/// Why a step on the queue was not done. Each of them may pass: the step is tried again.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A command failed.
    #[error("Redis: {}", in_its_words(.0))]
    Command(#[from] RedisError),
    /// A script answered in a form it never should.
    #[error("Redis: unexpected answer to {0}")]
    Answer(&'static str),
    /// Another daemon has our name.
    #[error(
        "the instance name {instance:?} is in use by {by}; \
         set CONSERVER_INSTANCE to another name here"
    )]
    InUse {
        /// Our name.
        instance: String,
        /// Who has it.
        by: String,
    },
    /// The lease on a name is not held.
    #[error("the lease on the instance name {0:?} has run out or is contended")]
    Lapsed(String),
    /// The server does not take this document, and will not the next time.
    #[error("Redis refuses the document: {0}")]
    Document(String),
    /// The system refused a thread.
    #[error("could not start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The connection is gone.
    #[error("Redis: the connection is closed")]
    Closed,
}

impl QueueError {
    /// Whether nothing is wrong with Redis: this process was stopped and went on, which ends a
    /// read that has a time limit (signal(7)).
    pub fn is_interruption(&self) -> bool {
        let (Self::Command(error) | Self::Connect(ConnectError::Unreachable { cause: error, .. })) =
            self
        else {
            return false;
        };
        // The client library keeps the system's error in a shared box.
        error
            .source()
            .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>())
            .and_then(|shared| shared.downcast_ref::<io::Error>())
            .is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
    }

    /// Whether nothing is wrong with Redis: this daemon does not hold its name at the moment.
    pub fn is_about_the_lease(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Lapsed(_))
    }

    /// What went wrong when a document was written: a refusal is about the document, unless it is
    /// one that passes.
    pub(super) fn of_write(error: RedisError) -> Self {
        let refused = error.clone().into_server_errors();
        if refused.is_some_and(|errors| !errors.iter().any(|(_, error)| passes(error))) {
            Self::Document(in_its_words(&error))
        } else {
            Self::Command(error)
        }
    }

    /// What went wrong when a script wrote a document, by what the server said to it.
    pub(super) fn of_refusal(said: &str) -> Self {
        let said = said.trim_start_matches('-');
        let (code, detail) = said.split_once(' ').unwrap_or((said, ""));
        let error = redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
        Self::of_write(error)
    }

    /// Whether the connection is of no use after this error, by the table above.
    pub(crate) fn breaks_connection(&self) -> bool {
        match self {
            Self::Command(error) => match error.clone().into_server_errors() {
                Some(errors) => errors.iter().any(|(_, error)| needs_another(error)),
                None => true,
            },
            Self::Connect(_) | Self::Answer(_) | Self::Closed => true,
            Self::InUse { .. } | Self::Lapsed(_) | Self::Document(_) | Self::Thread(_) => false,
        }
    }
}

/// Whether an error that the server answered is about its own state, which changes.
fn passes(error: &ServerError) -> bool {
    const CODES: [&str; 16] = [
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "EXECABORT",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    ];
    let details = error.details().unwrap_or_default();
    // Redis 6 wraps the error of a command into that of its script.
    let wrapped = |code: &&str| details.contains(&format!("-{code} "));
    CODES.contains(&error.code())
        || CODES.iter().any(wrapped)
        || details.starts_with("max number of clients")
        || details.starts_with("unknown command")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    #[test]
    fn an_interrupted_read_is_told_from_a_fault_of_redis() {
        let command =
            |kind: io::ErrorKind| QueueError::from(RedisError::from(io::Error::from(kind)));
        assert!(command(io::ErrorKind::Interrupted).is_interruption());
        assert!(!command(io::ErrorKind::ConnectionReset).is_interruption());
        let unreachable = |kind: io::ErrorKind| {
            QueueError::from(ConnectError::Unreachable {
                server: "redis://localhost".to_owned(),
                cause: RedisError::from(io::Error::from(kind)),
            })
        };
        assert!(unreachable(io::ErrorKind::Interrupted).is_interruption());
        assert!(!unreachable(io::ErrorKind::ConnectionRefused).is_interruption());
    }

    /// The error of a command that the server answers with this line.
    fn answered(line: &str) -> QueueError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).err();
        QueueError::from(error.unwrap_or_else(|| panic!("{line} is no error")))
    }

    #[test]
    fn an_error_of_the_server_is_shown_as_it_was_worded() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(answered(line).to_string(), format!("Redis: {line}"));
        }
    }

    #[test]
    fn what_an_error_means_for_the_connection_is_as_the_table_says() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 123, on @user_script:1.",
            "ERR Error running script (call to f_123): @user_script:1: @user_script: 1: \
             -READONLY You can't write against a read only replica. ",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "ERR max number of clients reached",
        ] {
            assert!(answered(line).breaks_connection(), "{line}");
        }
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to",
            "NOREPLICAS Not enough good replicas to write.",
            "NOSCRIPT No matching script. Please use EVAL.",
            "NOPERM this user has no permissions to run the 'rpush' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR unknown command 'JSON.GET', with args beginning with: 'READONLY'",
        ] {
            assert!(!answered(line).breaks_connection(), "{line}");
        }
        for kind in [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::TimedOut,
            io::ErrorKind::Interrupted,
            io::ErrorKind::Other,
        ] {
            let error = QueueError::from(RedisError::from(io::Error::from(kind)));
            assert!(error.breaks_connection(), "{kind}");
        }
        assert!(QueueError::Answer("claim").breaks_connection());
    }

    #[test]
    fn a_refusal_told_by_a_script_means_what_it_means_otherwise() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "NOPERM this user has no permissions to run the 'json.set' command",
            "-MISCONF Redis is configured to save RDB snapshots",
        ] {
            let error = QueueError::of_refusal(line);
            assert!(matches!(error, QueueError::Command(_)), "{line}: {error:?}");
            assert_eq!(
                error.breaks_connection(),
                line.starts_with("READONLY"),
                "{line}"
            );
        }
        for line in [
            "ERR recursion limit exceeded at line 1 column 128",
            "new objects must be created at the root",
            "",
        ] {
            let error = QueueError::of_refusal(line);
            assert!(
                matches!(error, QueueError::Document(_)),
                "{line}: {error:?}"
            );
        }
    }

    #[test]
    fn a_document_that_is_refused_is_told_from_a_server_that_takes_none() {
        let written = |line: &str| match answered(line) {
            QueueError::Command(error) => QueueError::of_write(error),
            other => other,
        };
        for line in [
            "ERR recursion limit exceeded at line 1 column 128",
            "recursion limit exceeded at line 1 column 128",
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "Existing key has wrong Redis type",
        ] {
            let error = written(line);
            assert!(
                matches!(error, QueueError::Document(_)),
                "{line}: {error:?}"
            );
            assert!(!error.breaks_connection(), "{line}");
        }
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "NOPERM this user has no permissions to run the 'json.set' command",
            "ERR unknown command 'JSON.SET', with args beginning with: 'vcon:1'",
            "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed ",
        ] {
            assert!(matches!(written(line), QueueError::Command(_)), "{line}");
        }
    }
}
