//! What can go wrong between us and Redis.

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
    /// The connection is gone.
    #[error("Redis: the connection is closed")]
    Closed,
}

impl QueueError {
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
            Self::Unreachable { .. } | Self::Answer(_) | Self::Closed => true,
        }
    }
}
