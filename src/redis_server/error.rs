//! Why there is no connection, and what the error of a server means.

use redis::{RedisError, ServerError};

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server could not be reached, or refused the login.
    #[error("could not connect to Redis at {server}: {}", of_login(cause))]
    Unreachable {
        /// The server, without user and password.
        server: String,
        /// The error of the client library.
        cause: RedisError,
    },
    /// No sentinel led to a master.
    #[error("could not find the master at {server}: {faults}")]
    NoMaster {
        /// The sentinels and the master's name, without users and passwords.
        server: String,
        /// The error of each sentinel, or of the server it named.
        faults: String,
    },
}

/// The part of its URL that a server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedUrlPart {
    /// User or password.
    Login,
    /// The database.
    Database,
    /// Any database but the first: the server is a node of a cluster.
    Cluster,
}

impl ConnectError {
    /// The part of its URL that the server refuses. `None` if the error may pass by itself, or if sentinels
    /// named the server: they may name another one next time.
    pub fn refusal(&self) -> Option<RefusedUrlPart> {
        match self {
            Self::Unreachable { cause, .. } => refusal(cause),
            Self::NoMaster { .. } => None,
        }
    }
}

fn refusal(error: &RedisError) -> Option<RefusedUrlPart> {
    const LOGIN: [&str; 2] = ["any password configured", "no password is set"];
    const DATABASE: [&str; 2] = ["DB index is out of range", "invalid DB index"];
    let errors = error.clone().into_server_errors()?;
    let (_, error) = errors.first()?;
    let details = error.details().unwrap_or_default();
    let is_one_of = |texts: &[&str]| texts.iter().any(|text| details.contains(text));
    match error.code() {
        "WRONGPASS" | "NOAUTH" => Some(RefusedUrlPart::Login),
        _ if is_one_of(&LOGIN) => Some(RefusedUrlPart::Login),
        _ if is_one_of(&DATABASE) => Some(RefusedUrlPart::Database),
        _ if is_one_of(&["cluster mode"]) => Some(RefusedUrlPart::Cluster),
        _ => None,
    }
}

/// The error of a connection in the server's words.
fn of_login(cause: &RedisError) -> String {
    let words = in_its_words(cause);
    match refusal(cause) {
        Some(RefusedUrlPart::Login) => format!("authentication failed: {words}"),
        _ => words,
    }
}

/// An error in the server's words, with the code in capitals that people search for, and without the part
/// that repeats a command.
pub(crate) fn in_its_words(error: &RedisError) -> String {
    match error.clone().into_server_errors().as_deref() {
        Some([(_, first), ..]) => {
            let details = before_arguments(first.details().unwrap_or_default());
            format!("{} {details}", first.code())
        }
        _ => error.to_string(),
    }
}

/// The text of an error without the command's arguments, which may be a password or a document.
fn before_arguments(details: &str) -> &str {
    match details.split_once("with args beginning with") {
        Some((before, _)) => before.trim_end_matches([' ', ',']),
        None => details,
    }
}

/// The error of a login, without the part that repeats the login.
pub(super) fn of_greeting(error: RedisError) -> RedisError {
    let errors = error.clone().into_server_errors().unwrap_or_default();
    let Some((_, first)) = errors.first() else {
        return error;
    };
    let details = first.details().unwrap_or_default();
    let shown = before_arguments(details);
    if shown == details {
        return error;
    }
    redis::make_extension_error(first.code().to_owned(), Some(shown.to_owned()))
}

/// The error of `AUTH`. A server without that command may repeat the login in any form.
pub(super) fn of_auth(error: RedisError) -> RedisError {
    if is_unknown_command(&error) {
        let words = "the server does not have AUTH".to_owned();
        redis::make_extension_error("ERR".to_owned(), Some(words))
    } else {
        of_greeting(error)
    }
}

/// Whether the server does not know the command, such as one of a module that is not loaded.
pub(super) fn is_unknown_command(error: &RedisError) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.contains("unknown command"))
}

/// Whether an error that the server replied calls for another connection.
pub(crate) fn needs_another(error: &ServerError) -> bool {
    const CODES: [&str; 4] = ["READONLY", "MASTERDOWN", "NOAUTH", "WRONGPASS"];
    let details = error.details().unwrap_or_default();
    // Redis 6 wraps the error of a command into the error of its script.
    let wrapped = |code: &&str| details.contains(&format!("-{code} "));
    CODES.contains(&error.code())
        || CODES.iter().any(wrapped)
        || details.starts_with("max number of clients")
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_does_not_accept_of_a_url_is_told_from_what_passes() {
        for (line, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Some(RefusedUrlPart::Login),
            ),
            (
                "NOAUTH Authentication required.",
                Some(RefusedUrlPart::Login),
            ),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                Some(RefusedUrlPart::Login),
            ),
            (
                "ERR Client sent AUTH, but no password is set",
                Some(RefusedUrlPart::Login),
            ),
            (
                "ERR DB index is out of range",
                Some(RefusedUrlPart::Database),
            ),
            ("ERR invalid DB index", Some(RefusedUrlPart::Database)),
            (
                "ERR SELECT is not allowed in cluster mode",
                Some(RefusedUrlPart::Cluster),
            ),
            ("ERR max number of clients reached", None),
            ("LOADING Redis is loading the dataset in memory", None),
            ("NOPERM this user has no permissions to run 'select'", None),
        ] {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
            let error = value.and_then(redis::Value::extract_error).err();
            let error = ConnectError::Unreachable {
                server: "redis://h".to_owned(),
                cause: error.unwrap_or_else(|| panic!("{line} is no error")),
            };
            assert_eq!(error.refusal(), expected, "{line}");
            let said = error.to_string();
            let (before, words) = said.split_at(said.len() - line.len());
            assert_eq!(words, line);
            let is_login = expected == Some(RefusedUrlPart::Login);
            assert_eq!(
                before.ends_with("authentication failed: "),
                is_login,
                "{said}"
            );
            assert!(
                before.starts_with("could not connect to Redis at redis://h: "),
                "{said}"
            );
        }
        let cut = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(refusal(&cut), None);
    }

    /// The error of a command that the server answers with this line.
    fn answered(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).err();
        error.unwrap_or_else(|| panic!("{line} is no error"))
    }

    #[test]
    fn what_a_server_repeats_of_a_login_is_not_shown() {
        for line in [
            "ERR unknown command 'AUTH', with args beginning with: 'clerk' 'hunter2' ",
            "ERR unknown command `AUTH`, with args beginning with: `hunter2`, ",
            "ERR unknown command 'AUTH hunter2'",
        ] {
            let error = of_auth(answered(line));
            assert_eq!(in_its_words(&error), "ERR the server does not have AUTH");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{line}");
        }
        let line = "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'hunter2' ";
        let expected = "ERR unknown command 'HELLO'";
        assert_eq!(in_its_words(&answered(line)), expected);
        let error = of_greeting(answered(line));
        assert_eq!(in_its_words(&error), expected);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        let line = "WRONGPASS invalid username-password pair or user is disabled.";
        let error = of_auth(answered(line));
        assert_eq!(in_its_words(&error), line);
        assert_eq!(refusal(&error), Some(RefusedUrlPart::Login));
    }
}
