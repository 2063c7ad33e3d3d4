//! Names and entries as they stand in Redis, where anyone may have written them: any bytes.

use std::fmt;

use crate::vcon::VconId;
use crate::visible::printable;

/// An entry of a list, or the name of one.
///
/// It prints on one line of characters that can be seen, with escapes as in Rust's strings for the
/// rest (`\n`, `\u{1b}`, `\xff`, `\\`), and [`Raw::named`] reads that again. So nothing in Redis
/// steers a terminal, and what a command shows can be given to the next one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Raw(Vec<u8>);

impl Raw {
    /// These bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes as they are in Redis.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The entry as an identity; `None` where it is none.
    pub fn id(&self) -> Option<VconId> {
        std::str::from_utf8(&self.0).ok()?.parse().ok()
    }

    /// What somebody who types `text` may mean: what prints like that, else these very bytes.
    pub fn named(text: &str) -> Vec<Self> {
        let typed = Self::new(text);
        match unescape(text).map(Self) {
            Some(shown) if shown != typed => vec![shown, typed],
            _ => vec![typed],
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            // With a backslash for each of its own, so that it can be read again.
            f.write_str(&printable(&chunk.valid().replace('\\', r"\\")))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// The bytes that print as `text`; `None` where none do.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let mut characters = escape.chars();
        let kind = characters.next()?;
        rest = characters.as_str();
        match kind {
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = rest.get(2..)?;
            }
            'u' => {
                let (digits, after) = rest.strip_prefix('{')?.split_once('}')?;
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
            _ => return None,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        for (bytes, shown) in [
            (&b"05cec3d4-0561-4010-9fb8-23cc7edef146"[..], None),
            ("Grüße 'an' \"alle\"".as_bytes(), None),
            (b"", None),
            (b"a\nb\r\t\0", Some("a\\nb\\r\\t\\0")),
            (b"\x1b[2J", Some("\\u{1b}[2J")),
            ("\u{9b}2J\u{202e}".as_bytes(), Some("\\u{9b}2J\\u{202e}")),
            (b"C:\\n", Some("C:\\\\n")),
            (b"a\xff\xc3", Some("a\\xff\\xc3")),
        ] {
            let expected = shown.unwrap_or_else(|| std::str::from_utf8(bytes).unwrap());
            assert_eq!(Raw::new(bytes).to_string(), expected);
        }
    }

    #[test]
    fn what_is_typed_is_the_shown_form_or_the_bytes_themselves() {
        let named = |text: &str| -> Vec<Vec<u8>> {
            let names = Raw::named(text).into_iter();
            names.map(|name| name.as_bytes().to_vec()).collect()
        };
        assert_eq!(named("plain"), [b"plain"]);
        assert_eq!(named("a\\n"), [&b"a\n"[..], b"a\\n"]);
        for odd in ["a\\", "a\\q", "\\xé0", "\\x4", "\\u{d800}", "\\u{", "\\u41"] {
            assert_eq!(named(odd), [odd.as_bytes()], "{odd}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_typed(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let raw = Raw::new(bytes);
            let shown = raw.to_string();
            prop_assert_eq!(&printable(&shown), &shown);
            prop_assert_eq!(&Raw::named(&shown)[0], &raw);
        }

        #[test]
        fn text_that_is_shown_can_be_typed(text in "([a-e \\\\\n\u{301}\u{93f}\u{200d}\u{fe0f}\u{20dd}]|.){0,40}") {
            let raw = Raw::new(text);
            prop_assert_eq!(&Raw::named(&raw.to_string())[0], &raw);
        }

        #[test]
        fn anything_can_be_typed(text in "(\\\\|x|u|\\{|\\}|[0-9a-f]|é){0,12}") {
            prop_assert!(!Raw::named(&text).is_empty());
        }
    }
}
