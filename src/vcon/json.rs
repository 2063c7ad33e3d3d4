//! JSON objects whose values stay text: reading one level, changing it, writing it again.
//!
//! Keys are held as they stand between the quotes, without needless escapes. So a key is written
//! without a look at it, and one that is no Unicode text (`"\ud800"`) is kept all the same.

use std::borrow::Cow;
use std::fmt;

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};

use super::VconError;

/// One level of an object; of a repeated key the last value holds.
pub(super) type Object = IndexMap<String, Box<RawValue>>;

/// One level of an object within the text that was read.
pub(super) struct Borrowed<'a>(pub(super) Members<'a>);

/// Its keys, as they stand there unless they have needless escapes, and its values.
pub(super) type Members<'a> = IndexMap<Cow<'a, str>, &'a RawValue>;

impl<'a> Borrowed<'a> {
    /// Reads an object.
    pub(super) fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Copies the values out of the text that was read.
    pub(super) fn into_owned(self) -> Object {
        let owned = |(key, value): (Cow<'_, str>, &RawValue)| (key.into_owned(), value.to_owned());
        self.0.into_iter().map(owned).collect()
    }
}

impl<'de> Deserialize<'de> for Borrowed<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Borrowed<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = IndexMap::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    members.insert(bare(key.get()), value);
                }
                Ok(Borrowed(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The inside of a string literal, with the escapes it needs and no others.
fn bare(literal: &str) -> Cow<'_, str> {
    let inside = &literal[1..literal.len() - 1];
    if !inside.contains('\\') {
        return Cow::Borrowed(inside);
    }
    match serde_json::from_str::<String>(literal) {
        Ok(text) => Cow::Owned(key(&text)),
        Err(_) => Cow::Borrowed(inside),
    }
}

/// A key as it is meant; one that is no Unicode text stays as it is written.
pub(super) fn unescaped(key: &str) -> String {
    if !key.contains('\\') {
        return key.to_owned();
    }
    serde_json::from_str(&format!("\"{key}\"")).unwrap_or_else(|_| key.to_owned())
}

/// A name as a key of an [`Object`].
pub(super) fn key(name: &str) -> String {
    let written = string(name);
    let literal = written.get();
    literal[1..literal.len() - 1].to_owned()
}

/// The elements of an array, or `None` where the text is not one.
pub(super) fn elements(text: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(text).ok()
}

/// A text as a string literal.
pub(super) fn string(text: &str) -> Box<RawValue> {
    // Writing a string to memory does not fail.
    to_raw_value(text).unwrap_or_default()
}

/// Indices as JSON: one as a number, several as an array.
pub(super) fn indices(indices: &[usize]) -> Box<RawValue> {
    let written = match indices {
        [one] => to_raw_value(one),
        several => to_raw_value(several),
    };
    // Writing numbers to memory does not fail.
    written.unwrap_or_default()
}

/// The text that a string literal stands for; `None` for other values and for lone surrogates.
pub(super) fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Whether a value is this text, of which no letter needs an escape.
pub(super) fn says(value: &RawValue, expected: &str) -> bool {
    let literal = value.get();
    if !literal.contains('\\') {
        let inside = literal
            .strip_prefix('"')
            .and_then(|it| it.strip_suffix('"'));
        return inside == Some(expected);
    }
    text(value).as_deref() == Some(expected)
}

/// Gives the member `old` the name `new`, in its place; one that has that name already wins.
pub(super) fn rename<V>(object: &mut IndexMap<String, V>, old: &str, new: &str) {
    let Some(index) = object.get_index_of(old) else {
        return;
    };
    if object.replace_index(index, new.to_owned()).is_err() {
        object.shift_remove(old);
    }
}

/// What a value is, as messages say it.
pub(super) fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Whether a value is an array.
pub(super) fn is_array(value: &RawValue) -> bool {
    value.get().starts_with('[')
}

/// Whether a value is an object.
pub(super) fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

/// Whether a value is a string.
pub(super) fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// Whether a value says nothing: `null`, `false`, or an empty string, array or object.
pub(super) fn is_nothing(value: &RawValue) -> bool {
    let is_empty = |value| (is_array(value) || is_object(value)) && is_empty(value);
    matches!(value.get(), "null" | "false" | "\"\"") || is_empty(value)
}

/// A value as messages show it: the text of a string, else JSON.
pub(super) fn shown(value: &RawValue) -> String {
    text(value).unwrap_or_else(|| value.get().to_owned())
}

/// Whether an array or object has nothing in it.
pub(super) fn is_empty(value: &RawValue) -> bool {
    let text = value.get();
    text.len() >= 2 && text[1..text.len() - 1].trim_ascii().is_empty()
}

/// Writes an object, member by member.
pub(super) struct ObjectWriter<'a> {
    out: &'a mut String,
    before: char,
}

impl<'a> ObjectWriter<'a> {
    /// Begins an object at the end of `out`.
    pub(super) fn begin(out: &'a mut String) -> Self {
        Self { out, before: '{' }
    }

    /// Writes a key as an [`Object`] holds it, and answers where its value goes.
    pub(super) fn key(&mut self, key: &str) -> &mut String {
        self.out.push(self.before);
        self.before = ',';
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        self.out
    }

    /// Ends the object.
    pub(super) fn end(self) {
        if self.before == '{' {
            self.out.push('{');
        }
        self.out.push('}');
    }
}

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
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn rewritten(text: &str) -> String {
        let mut out = String::new();
        let mut writer = ObjectWriter::begin(&mut out);
        for (key, value) in &Borrowed::read(text).unwrap().0 {
            writer.key(key).push_str(value.get());
        }
        writer.end();
        out
    }

    #[test]
    fn values_come_out_as_they_went_in() {
        for text in [
            "{}",
            r#"{"z":1.0,"a":1e5,"n":123456789012345678901234567890,"e":-0}"#,
            r#"{"s":"\ud800 \u00e9","t":[1, 2,{"x" : null}]}"#,
            r#"{"$serde_json::private::RawValue":"1","$serde_json::private::Number":"2"}"#,
        ] {
            assert_eq!(rewritten(text), text);
        }
    }

    #[test]
    fn keys_lose_needless_escapes_and_keep_the_others() {
        assert_eq!(
            rewritten(r#"{"\u0064ialog":1,"a\"b\\\/":2,"\ud800":3,"\n":4,"\u00e9":5}"#),
            r#"{"dialog":1,"a\"b\\/":2,"\ud800":3,"\n":4,"é":5}"#
        );
    }

    #[test]
    fn of_a_repeated_key_the_last_value_holds_in_the_first_place() {
        assert_eq!(rewritten(r#"{"a":1,"b":2,"\u0061":3}"#), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn depth_has_no_limit() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(rewritten(&deep), deep);
    }

    #[test]
    fn renaming_keeps_the_place_and_the_new_name_wins() {
        let object = |text| Borrowed::read(text).unwrap().into_owned();
        let keys = |object: &Object| object.keys().cloned().collect::<Vec<_>>().join(" ");

        let mut one = object(r#"{"a":1,"old":2,"b":3}"#);
        rename(&mut one, "old", "new");
        assert_eq!(keys(&one), "a new b");

        let mut both = object(r#"{"old":2,"a":1,"new":3}"#);
        rename(&mut both, "old", "new");
        assert_eq!(keys(&both), "a new");
        assert_eq!(both["new"].get(), "3");
    }

    #[test]
    fn a_text_is_known_however_it_is_escaped() {
        for (value, is) in [
            ("\"json\"", true),
            ("\"\\u006ason\"", true),
            ("\"JSON\"", false),
            ("\"json", false),
            ("json", false),
            ("[\"json\"]", false),
            ("\"\\ud800\"", false),
            ("null", false),
            ("\"\"", false),
        ] {
            if let Ok(value) = RawValue::from_string(value.to_owned()) {
                assert_eq!(says(&value, "json"), is, "{value}");
            }
        }
    }

    #[test]
    fn what_says_nothing_is_empty_in_its_own_way() {
        for (value, is) in [
            ("null", true),
            ("false", true),
            ("\"\"", true),
            ("[]", true),
            ("[ \n]", true),
            ("{ }", true),
            ("true", false),
            ("0", false),
            ("10", false),
            ("\" \"", false),
            ("[0]", false),
            ("{\"a\":1}", false),
        ] {
            let raw = RawValue::from_string(value.to_owned()).unwrap();
            assert_eq!(is_nothing(&raw), is, "{value}");
        }
    }

    #[test]
    fn a_key_is_shown_as_it_is_meant() {
        for (key, meant) in [
            ("a", "a"),
            (r#"a\"b"#, "a\"b"),
            (r"\n", "\n"),
            (r"\ud800", r"\ud800"),
            ("é", "é"),
        ] {
            assert_eq!(unescaped(key), meant);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_of_decode {
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
