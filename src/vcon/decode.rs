//! From the bytes of a document to its text.

use super::VconError;

/// The text of a document. JSON is UTF-8 (RFC 8259).
///
/// # Errors
/// The bytes are no UTF-8; says so by name if they are UTF-16 or UTF-32.
pub fn decode(bytes: Vec<u8>) -> Result<String, VconError> {
    match encoding(&bytes) {
        Some(encoding) => Err(VconError::Encoding(encoding)),
        None => Ok(String::from_utf8(bytes).map_err(|error| error.utf8_error())?),
    }
}

/// The encoding that a text of JSON has for sure, if it is not UTF-8: by its byte order mark, or by
/// where the zeros of its first two characters are, which are ASCII.
fn encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [0, 0, 0, _, ..] | [_, 0, 0, 0, ..] => Some("UTF-32"),
        [0, _, ..] | [_, 0, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// A text without the byte order mark before it, which RFC 8259 lets a reader pass over.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_is_read_and_what_is_not_is_named() {
        for text in ["", "{", "{}", "{\"a\":\"é\0\"}", "\u{feff}{}"] {
            assert_eq!(decode(text.into()).unwrap(), text);
        }
        let wide = |mark: &str, big: bool| -> Vec<u8> {
            let units = format!("{mark}{{\"é\":1}}")
                .encode_utf16()
                .collect::<Vec<_>>();
            let bytes = units.into_iter();
            bytes
                .flat_map(|it| {
                    if big {
                        it.to_be_bytes()
                    } else {
                        it.to_le_bytes()
                    }
                })
                .collect()
        };
        let wider = |mark: &str, big: bool| -> Vec<u8> {
            let points = format!("{mark}{{}}");
            let bytes = points.chars().map(u32::from);
            bytes
                .flat_map(|it| {
                    if big {
                        it.to_be_bytes()
                    } else {
                        it.to_le_bytes()
                    }
                })
                .collect()
        };
        for mark in ["", "\u{feff}"] {
            for big in [true, false] {
                let error = decode(wide(mark, big)).unwrap_err();
                assert_eq!(error.to_string(), "is UTF-16, not UTF-8");
                let error = decode(wider(mark, big)).unwrap_err();
                assert_eq!(error.to_string(), "is UTF-32, not UTF-8");
            }
        }
        let error = decode(b"{\"a\":\"\xe9\"}".to_vec()).unwrap_err();
        let expected = "is not UTF-8: invalid utf-8 sequence of 1 bytes from index 6";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        for (text, rest) in [
            ("\u{feff}{}", "{}"),
            ("{}", "{}"),
            ("\u{feff}\u{feff}", "\u{feff}"),
        ] {
            assert_eq!(without_mark(text), rest);
        }
    }
}
