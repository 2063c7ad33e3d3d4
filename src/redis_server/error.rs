//! Why there is no connection, and what the server says in one.

use redis::{RedisError, ServerError};

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server could not be reached, or let us not in.
    #[error("could not connect to Redis at {server}: {cause}")]
    Unreachable {
        /// The server, without user and password.
        server: String,
        /// What the client library said.
        cause: RedisError,
    },
    /// No sentinel led to a master.
    #[error("could not find the master at {server}: {faults}")]
    NoMaster {
        /// The sentinels and the master's name, without users and passwords.
        server: String,
        /// What each sentinel said, or the server it named.
        faults: String,
    },
}

/// An error as the server worded it, with the word in capitals that people look for.
pub(crate) fn in_its_words(error: &RedisError) -> String {
    match error.clone().into_server_errors().as_deref() {
        Some([(_, first), ..]) => {
            format!("{} {}", first.code(), first.details().unwrap_or_default())
        }
        _ => error.to_string(),
    }
}

/// Whether an error that the server answered calls for another connection.
pub(crate) fn needs_another(error: &ServerError) -> bool {
    const CODES: [&str; 4] = ["READONLY", "MASTERDOWN", "NOAUTH", "WRONGPASS"];
    let details = error.details().unwrap_or_default();
    // Redis 6 wraps the error of a command into that of its script.
    let wrapped = |code: &&str| details.contains(&format!("-{code} "));
    CODES.contains(&error.code())
        || CODES.iter().any(wrapped)
        || details.starts_with("max number of clients")
}
