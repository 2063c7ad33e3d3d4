//! JSON from a service, before anything of it is kept: what some readers of vCons choke on does not get in.

use std::borrow::Cow;

/// The most levels of lists and objects in each other. Readers of vCons have limits of their own, and a vCon has
/// some levels around what is kept.
const DEEPEST: usize = 100;

/// The text of an answer, in which each half of a surrogate pair without the other, and each byte that is no
/// UTF-8, is U+FFFD: a model that is cut within a character gives such.
///
/// # Errors
/// It is nested too deep.
pub(in crate::link) fn sound(body: &[u8]) -> Result<Cow<'_, str>, String> {
    let text = String::from_utf8_lossy(body);
    let mut lone = Vec::new();
    let (mut depth, mut is_in_text, mut at) = (0_usize, false, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if is_in_text => {
                let length = escape(bytes, at);
                if length == 6 && unit(bytes, at).is_some_and(|it| (0xd800..0xe000).contains(&it)) {
                    lone.push(at);
                }
                at += length;
                continue;
            }
            b'"' => is_in_text = !is_in_text,
            b'[' | b'{' if !is_in_text => depth += 1,
            b']' | b'}' if !is_in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
        }
        at += 1;
    }
    if lone.is_empty() {
        return Ok(text);
    }
    let mut mended = text.into_owned();
    for at in lone {
        mended.replace_range(at..at + 6, "\\ufffd");
    }
    Ok(Cow::Owned(mended))
}

/// The length of the escape that begins here: 12 for a surrogate pair.
fn escape(bytes: &[u8], at: usize) -> usize {
    let is_first = |it| (0xd800..0xdc00).contains(&it);
    let is_second = |it| (0xdc00..0xe000).contains(&it);
    match unit(bytes, at) {
        Some(first) if is_first(first) && unit(bytes, at + 6).is_some_and(is_second) => 12,
        Some(_) => 6,
        None => 2,
    }
}

/// The UTF-16 unit of `\uXXXX` here.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let digits = std::str::from_utf8(digits).ok()?;
    let is_hex = digits.bytes().all(|it| it.is_ascii_hexdigit());
    is_hex.then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_characters_are_replaced_and_whole_ones_kept() {
        for (given, read) in [
            (r#""\ud83d\ude00 \\ud83d \" é""#, "😀 \\ud83d \" é"),
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""\ude00\ud83d\ud83d\ude00""#, "\u{fffd}\u{fffd}😀"),
            (r#""\ud83dx""#, "\u{fffd}x"),
        ] {
            let sound = sound(given.as_bytes()).unwrap();
            assert_eq!(serde_json::from_str::<String>(&sound).unwrap(), read);
        }
        assert_eq!(sound(b"\"\xff\"").unwrap(), "\"\u{fffd}\"");
        // What is no JSON is left to its reader.
        for none in ["\"\\", "\"\\u12", "]]"] {
            assert_eq!(sound(none.as_bytes()).unwrap(), none);
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_refused() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(sound(nested(DEEPEST).as_bytes()).is_ok());
        assert!(sound(nested(DEEPEST + 1).as_bytes()).is_err());
        let text = format!("\"{}\"", "[{".repeat(DEEPEST));
        assert!(sound(text.as_bytes()).is_ok());
    }
}
