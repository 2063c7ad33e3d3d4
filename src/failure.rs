//! The one error type of links and storages: what went wrong, and whether trying again can help.

/// Why a backend or a link could not do its work, and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What to do about it.
    pub kind: FailureKind,
    /// What could not be done, to what, and why. Holds no secret.
    pub message: String,
}

/// The two classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The same request may succeed later: refused, reset or timed out connections, HTTP 429 and
    /// 5xx, serialization failures, a full disk.
    Transient,
    /// The same request will fail again: bad data, refused credentials, missing tables, HTTP 4xx.
    Permanent,
}

impl Failure {
    /// A failure that may pass.
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Transient,
            message: message.into(),
        }
    }

    /// A failure that will not pass by itself.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Permanent,
            message: message.into(),
        }
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        self.kind == FailureKind::Transient
    }
}
