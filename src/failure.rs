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

/// The classes of failure.
///
/// What decides is whose fault it is. A fault of the place (a server that is away, a disk that is
/// full, a password that was changed, a table that was dropped) meets every vCon alike: they wait
/// until it is mended, whoever does it, and none becomes a dead letter. A fault of the vCon meets
/// this one alone, and waiting would hold up the others. In doubt it is the place's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The fault of the place: the same request may succeed later, by itself (a refused connection,
    /// HTTP 429 and 5xx, a full disk) or after somebody has seen to it (refused credentials, a
    /// missing table or right).
    Transient,
    /// The fault of the place, which has too much to do or is used by others: that this request
    /// met it is chance, however often (HTTP 429 and 503, no connection left, a deadlock).
    Busy,
    /// The program was started anew, was ready, and died while it had this vCon. Trying again may help,
    /// but whether others get through meanwhile says nothing: the vCon cannot be tried for ever.
    Crashed,
    /// The fault of the vCon, or of what a link made of it: the same request will fail again,
    /// while those for other vCons succeed (too large, not storable, refused as invalid).
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

    /// A failure that passes when there is less to do.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Busy,
            message: message.into(),
        }
    }

    /// The end of a program that had the vCon.
    pub fn crashed(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Crashed,
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
        self.kind != FailureKind::Permanent
    }
}
