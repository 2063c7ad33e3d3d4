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
    /// met it is chance, however often (HTTP 429 and 503, a deadlock).
    Busy,
    /// Like [`FailureKind::Busy`]: all connections that the server has room for are in use. It is well,
    /// and others do their work there.
    Crowded,
    /// The server has begun with this vCon, and has given up at its time limit. Others may hold a lock, or
    /// it is too much: in doubt the first, but the vCon cannot be tried for ever.
    Slow,
    /// The program had begun, and was killed or died while it had this vCon. Trying again may help,
    /// but whether others get through meanwhile says nothing: the vCon cannot be tried for ever.
    Crashed,
    /// A server or file system has refused what it was given, and gives the vCon as the reason (too
    /// large, invalid, a constraint that it breaks). It is the fault of the vCon if others are taken, and
    /// of the place if different vCons in a row are refused alike.
    Refused,
    /// The fault of the vCon, or of what a link made of it, beyond doubt: the same request will fail
    /// again, while those for other vCons succeed.
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

    /// A failure that passes when others let go of a connection.
    pub fn crowded(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Crowded,
            message: message.into(),
        }
    }

    /// A failure of a server that has given up at its time limit.
    pub fn slow(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Slow,
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

    /// A refusal, which is the vCon's own fault unless others meet it, too.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Refused,
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
        !self.kind.is_final()
    }
}

impl FailureKind {
    /// Whether trying again does not help, as far as this failure tells.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Refused | Self::Permanent)
    }
}

/// The longest pattern of a message.
const LONGEST_PATTERN: usize = 400;

/// A message without what differs from one vCon to the next: quoted text, and words with a digit in them
/// (UUIDs, numbers, names of files). Two failures with one pattern have one reason.
pub fn pattern(message: &str) -> String {
    let mut pattern = String::new();
    let mut rest = message.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        if pattern.len() >= LONGEST_PATTERN {
            break;
        }
        // Not an apostrophe, which stands behind a letter.
        if matches!(c, '"' | '\'' | '`') && !before.is_alphanumeric() {
            pattern.push(c);
            for quoted in rest.by_ref() {
                if quoted == c {
                    break;
                }
            }
            before = ' ';
        } else if is_of_word(c) {
            let mut word = String::from(c);
            while let Some(next) = rest.next_if(|&next| is_of_word(next)) {
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

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_reason_have_one_pattern() {
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
    fn messages_of_different_reasons_have_different_patterns() {
        let messages = [
            "it answered 400 Bad Request",
            "it answered 422 Unprocessable Entity",
            "failed to parse field [start] of type [date]",
            "failed to parse field [end] of type [date]",
            "analyzer [x] has not been configured in mappings",
            "'reception' is not an IP string literal",
            "'reception' is not a date",
        ];
        for (place, one) in messages.iter().enumerate() {
            for other in &messages[place + 1..] {
                assert_ne!(pattern(one), pattern(other));
            }
        }
    }

    #[test]
    fn a_pattern_has_an_end_even_if_a_quote_has_none() {
        assert_eq!(pattern("not \"closed 1"), "not \"");
        let long = "word ".repeat(1000);
        assert!(pattern(&long).len() <= LONGEST_PATTERN + 4);
        // A word as long as the message is cut no more than the message.
        assert_eq!(pattern("x1"), "#");
    }

    #[test]
    fn only_what_does_not_pass_is_final() {
        for (failure, is_transient) in [
            (Failure::transient(""), true),
            (Failure::busy(""), true),
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
