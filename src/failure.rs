//! The error type of links and storages: what went wrong, and whose fault it is.
//!
//! A [`FailureKind`] says what the worker does next: try again, hold the chain, or make a dead letter. Here
//! is only what the kinds mean; the decisions are in `worker` (`retry`, `release`, `backend_health`).

use std::time::Instant;

/// Why a backend or a link could not do its work, and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whose fault it is, and whether trying again can help.
    pub kind: FailureKind,
    /// What could not be done, to what, and why. Holds no secret.
    pub message: String,
    /// When the server wants to be asked again, if it has said so (`Retry-After`).
    pub not_before: Option<Instant>,
}

/// The kinds of failure, by whose fault they are.
///
/// A fault of the backend (a server that is unavailable, a full disk, a changed password, a dropped table) meets
/// every vCon alike: they wait until somebody mends it, and none becomes a dead letter. A fault of the vCon
/// meets this one alone, and waiting would hold up the others. In doubt it is the backend's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The backend's fault. The same request may succeed later: by itself (a refused connection, most HTTP
    /// 5xx, a full disk) or after somebody has acted (refused credentials, a missing table or right).
    Transient,
    /// The backend is overloaded, or others use what the request needs (HTTP 429 and 503, a deadlock).
    /// However often that happens, it says nothing of the vCon.
    Busy,
    /// The server refuses this deployment, whatever the vCon: its credentials, its rights, what is left of its
    /// quota. Somebody has to act.
    Denied,
    /// All connections that the server has room for are in use. It works, and others are served.
    Crowded,
    /// The server has begun with this vCon, and has given up at its time limit. Others may hold a lock, or the
    /// vCon may be too much: in doubt the first, but it is not tried for ever.
    Slow,
    /// The program had begun with this vCon, and was killed or died. Trying again may help, but even if others
    /// get through meanwhile, that proves nothing: the vCon is not tried for ever.
    Crashed,
    /// A server or file system has refused the vCon for what is in it (too large, invalid, against a
    /// constraint). The vCon's fault if others are taken; the backend's if it refuses different vCons in a
    /// row alike.
    Refused,
    /// The fault of the vCon, or of what a link made of it, beyond doubt: the same request fails again, while
    /// those for other vCons succeed.
    Permanent,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            not_before: None,
        }
    }

    /// The same, of a server that wants to be asked again at this time, if it has named one.
    pub fn until(self, not_before: Option<Instant>) -> Self {
        Self { not_before, ..self }
    }

    /// A [`FailureKind::Transient`] failure.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    /// A [`FailureKind::Denied`] failure.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Denied, message)
    }

    /// A [`FailureKind::Busy`] failure.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Busy, message)
    }

    /// A [`FailureKind::Crowded`] failure.
    pub fn crowded(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Crowded, message)
    }

    /// A [`FailureKind::Slow`] failure.
    pub fn slow(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Slow, message)
    }

    /// A [`FailureKind::Crashed`] failure.
    pub fn crashed(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Crashed, message)
    }

    /// A [`FailureKind::Refused`] failure.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Refused, message)
    }

    /// A [`FailureKind::Permanent`] failure.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Permanent, message)
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        !self.kind.is_final()
    }
}

impl FailureKind {
    /// Whether trying again does not help, as far as this failure tells.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Refused | Self::Permanent)
    }
}

/// A pattern is cut at this many bytes.
const LONGEST_PATTERN: usize = 400;

/// Strips from a message what differs from one vCon to the next: quoted text, and words with a digit in them
/// (UUIDs, numbers, file names). Failures with the same pattern have the same reason.
pub fn pattern(message: &str) -> String {
    let mut pattern = String::new();
    let mut rest = message.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        if pattern.len() >= LONGEST_PATTERN {
            break;
        }
        // Not an apostrophe, which follows a letter.
        if matches!(c, '"' | '\'' | '`') && !before.is_alphanumeric() {
            pattern.push(c);
            for quoted in rest.by_ref() {
                if quoted == c {
                    break;
                }
            }
            before = ' ';
        } else if is_word_char(c) {
            let mut word = String::from(c);
            while let Some(next) = rest.next_if(|&next| is_word_char(next)) {
                word.push(next);
            }
            before = 'w';
            if word.contains(|c: char| c.is_ascii_digit()) {
                pattern.push('#');
            } else {
                pattern.push_str(&word);
            }
        } else {
            pattern.push(c);
            before = c;
        }
    }
    pattern
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_with_the_same_reason_have_the_same_pattern() {
        for (one, other) in [
            (
                "could not save vCon 05cec3d4-0561-4010-9fb8-23cc7edef146: 1 of 3 parts",
                "could not save vCon 15cec3d4-0561-4010-9fb8-23cc7edef147: 12 of 30 parts",
            ),
            (
                "invalid input syntax for type integer: \"soon\"",
                "invalid input syntax for type integer: \"last year\"",
            ),
            (
                "Preview of field's value: 'soon'",
                "Preview of field's value: 'not now'",
            ),
            (
                "http://h:9000/calls/2024/02/03/x-1.vcon: HTTP 400",
                "http://h:9000/calls/2025/12/30/y_2.vcon: HTTP 400",
            ),
        ] {
            assert_eq!(pattern(one), pattern(other));
        }
    }

    #[test]
    fn messages_with_different_reasons_have_different_patterns() {
        let messages = [
            "it answered 400 Bad Request",
            "it answered 422 Unprocessable Entity",
            "failed to parse field [start] of type [date]",
            "failed to parse field [end] of type [date]",
            "analyzer [x] has not been configured in mappings",
            "'reception' is not an IP string literal",
            "'reception' is not a date",
        ];
        for (index, one) in messages.iter().enumerate() {
            for other in &messages[index + 1..] {
                assert_ne!(pattern(one), pattern(other));
            }
        }
    }

    #[test]
    fn a_pattern_ends_even_if_a_quote_does_not() {
        assert_eq!(pattern("not \"closed 1"), "not \"");
        let long = "word ".repeat(1000);
        assert!(pattern(&long).len() <= LONGEST_PATTERN + 4);
        // A word is never longer in the pattern than in the message.
        assert_eq!(pattern("x1"), "#");
    }

    #[test]
    fn only_what_does_not_pass_is_final() {
        for (failure, is_transient) in [
            (Failure::transient(""), true),
            (Failure::busy(""), true),
            (Failure::denied(""), true),
            (Failure::crowded(""), true),
            (Failure::slow(""), true),
            (Failure::crashed(""), true),
            (Failure::refused(""), false),
            (Failure::permanent(""), false),
        ] {
            assert_eq!(failure.is_transient(), is_transient, "{failure:?}");
        }
    }
}
