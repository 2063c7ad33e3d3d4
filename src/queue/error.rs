//! What can go wrong between us and Redis.

use std::error::Error;
use std::io;
use std::sync::Arc;

/// Why a step on the queue was not done. Each of them may pass: the step is tried again.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No connection could be made.
    #[error("could not connect to Redis at {server}: {cause}")]
    Unreachable {
        /// The server, without user and password.
        server: String,
        /// What the client library said.
        cause: redis::RedisError,
    },
    /// A command failed.
    #[error("Redis: {0}")]
    Command(#[from] redis::RedisError),
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
    /// The connection is gone.
    #[error("Redis: the connection is closed")]
    Closed,
}

impl QueueError {
    /// Whether nothing is wrong with Redis: this process was stopped and went on, which ends a
    /// read that has a time limit (signal(7)).
    pub fn is_interruption(&self) -> bool {
        let Self::Command(error) = self else {
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

    /// Whether the connection can still be used after this error.
    ///
    /// Only an error the server itself answered leaves the stream in step.
    pub(super) fn breaks_connection(&self) -> bool {
        match self {
            Self::Command(error) => {
                error.kind() == redis::ErrorKind::Io
                    || error.kind() == redis::ErrorKind::Parse
                    || error.is_timeout()
                    || error.is_connection_dropped()
                    || error.code() == Some("READONLY")
            }
            Self::InUse { .. } | Self::Lapsed(_) => false,
            Self::Unreachable { .. } | Self::Answer(_) | Self::Closed => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_read_is_told_from_a_fault_of_redis() {
        let command =
            |kind: io::ErrorKind| QueueError::from(redis::RedisError::from(io::Error::from(kind)));
        assert!(command(io::ErrorKind::Interrupted).is_interruption());
        assert!(!command(io::ErrorKind::ConnectionReset).is_interruption());
    }
}
