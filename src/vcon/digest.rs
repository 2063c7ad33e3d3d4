//! Digests of JSON values: two texts have the same digest if they stand for the same value.
//!
//! White space, escapes, the order of keys and the spelling of numbers do not count; of a repeated
//! key the last value holds. Numbers are compared as exact decimals, so that large ones and ones
//! with many digits are never taken for each other. Depth has no limit.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::reduce::string_end;

/// The digest of a value.
pub(super) type Digest = [u8; 32];

/// An array or object whose end has not come yet.
enum OpenValue<'a> {
    Array(Sha256),
    Object(Vec<Member<'a>>, Option<Cow<'a, [u8]>>),
}

type Member<'a> = (Cow<'a, [u8]>, Digest);

/// The digest of a value.
pub(super) fn of(value: &RawValue) -> Digest {
    of_json(value.get())
}

/// The digest of an object with these members.
pub(super) fn of_members<'a>(members: impl Iterator<Item = (&'a str, Digest)>) -> Digest {
    let members = members.map(|(key, value)| (Cow::Borrowed(key.as_bytes()), value));
    of_object(members.collect())
}

/// The digest of something that is made of others; `kind` tells it from other things.
pub(super) fn of_all(kind: u8, digests: impl Iterator<Item = Digest>) -> Digest {
    let mut hash = Sha256::new_with_prefix([kind]);
    digests.for_each(|digest| hash.update(digest));
    hash.finalize().into()
}

/// The digest of a text that is JSON, in hexadecimal. Of another text it says nothing.
pub fn digest(text: &str) -> String {
    let digest = of_json(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a text that is JSON.
fn of_json(text: &str) -> Digest {
    let bytes = text.as_bytes();
    let mut open: Vec<OpenValue<'_>> = Vec::new();
    let mut last = Digest::default();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let start = at;
        let done = match byte {
            b'[' => {
                open.push(OpenValue::Array(Sha256::new_with_prefix("[")));
                at += 1;
                continue;
            }
            b'{' => {
                open.push(OpenValue::Object(Vec::new(), None));
                at += 1;
                continue;
            }
            b']' | b'}' => {
                at += 1;
                match open.pop() {
                    Some(OpenValue::Array(hash)) => hash.finalize().into(),
                    Some(OpenValue::Object(members, _)) => of_object(members),
                    None => continue,
                }
            }
            b'"' => {
                at = string_end(bytes, at);
                let string = unescaped(&text[start..at]);
                if let Some(OpenValue::Object(_, key @ None)) = open.last_mut() {
                    *key = Some(string);
                    continue;
                }
                of_scalar(b's', &string)
            }
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => {
                at += 1;
                continue;
            }
            _ => {
                let rest = &bytes[at..];
                let ends = |byte: &u8| b",]} \t\n\r".contains(byte);
                at += rest.iter().position(ends).unwrap_or(rest.len()).max(1);
                match &text[start..at] {
                    word @ ("true" | "false" | "null") => of_scalar(b'w', word.as_bytes()),
                    digits => of_scalar(b'n', exact(digits).as_bytes()),
                }
            }
        };
        match open.last_mut() {
            Some(OpenValue::Array(hash)) => hash.update(done),
            Some(OpenValue::Object(members, key)) => {
                members.push((key.take().unwrap_or_default(), done));
            }
            None => last = done,
        }
    }
    last
}

fn of_scalar(kind: u8, content: &[u8]) -> Digest {
    let hash = Sha256::new_with_prefix([kind]);
    hash.chain_update(content).finalize().into()
}

fn of_object(mut members: Vec<Member<'_>>) -> Digest {
    // Stable: of a repeated key the last value stays the last.
    members.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut hash = Sha256::new_with_prefix("{");
    for (index, (key, value)) in members.iter().enumerate() {
        if members.get(index + 1).is_some_and(|(next, _)| next == key) {
            continue;
        }
        hash.update(key.len().to_be_bytes());
        hash.update(key);
        hash.update(value);
    }
    hash.finalize().into()
}

/// What a string literal stands for. A lone surrogate, which is no Unicode text, has bytes of its
/// own.
fn unescaped(literal: &str) -> Cow<'_, [u8]> {
    struct Bytes(Vec<u8>);

    impl<'de> Deserialize<'de> for Bytes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Any;

            impl Visitor<'_> for Any {
                type Value = Bytes;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a string")
                }

                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                    Ok(Bytes(bytes.to_owned()))
                }
            }

            deserializer.deserialize_bytes(Any)
        }
    }

    let inside = literal.get(1..literal.len() - 1).unwrap_or_default();
    if !inside.contains('\\') {
        return Cow::Borrowed(inside.as_bytes());
    }
    match serde_json::from_str(literal) {
        Ok(Bytes(bytes)) => Cow::Owned(bytes),
        Err(_) => Cow::Borrowed(inside.as_bytes()),
    }
}

/// A number as its digits without zeros at either end, and a power of ten. One whose exponent is
/// beyond all measure stays as it is written.
fn exact(number: &str) -> Cow<'_, str> {
    let (sign, size) = match number.strip_prefix('-') {
        Some(size) => ("-", size),
        None => ("", number),
    };
    let (mantissa, exponent) = size.split_once(['e', 'E']).unwrap_or((size, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Cow::Borrowed("0");
    }
    let Ok(exponent) = exponent.parse::<i64>() else {
        return Cow::Borrowed(number);
    };
    let zeros = digits.len() - significant.len();
    let power = i128::from(exponent) + zeros as i128 - fraction.len() as i128;
    Cow::Owned(format!("{sign}{significant}e{power}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        of(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn one_value_has_one_digest_however_it_is_written() {
        for texts in [
            &["1", "1.0", "1.00", "1e0", "10E-1", "0.1e+1", "0.001e3"][..],
            &["0", "-0", "0.0", "-0.0e7", "0e99999999999999999999999"],
            &["-1500", "-1.5e3", "-1500.0", "-15E+2"],
            &[
                "123456789012345678901234567890",
                "1.2345678901234567890123456789e29",
            ],
            &["1e400", "10e399", "0.1E401"],
            &["[1,2]", " [ 1.0 ,\n2 ]"],
            &[r#""é/A""#, r#""\u00e9\/\u0041""#, r#""\u00E9/A""#],
            &[r#""😀""#, r#""\ud83d\ude00""#],
            &[r#""\ud800""#, r#""\uD800""#],
            &[
                r#"{"a":1,"b":[true,null]}"#,
                r#"{ "b" : [ true , null ], "\u0061" : 1.0 }"#,
                r#"{"a":{"x":7},"b":0,"b":[true,null],"a":1}"#,
            ],
            &["{}", "{ }"],
            &["[[],{}]", "[ [ ] , { } ]"],
        ] {
            for text in texts {
                assert_eq!(digest(text), digest(texts[0]), "{text} and {}", texts[0]);
            }
        }
    }

    #[test]
    fn different_values_have_different_digests() {
        let texts = [
            "0",
            "1",
            "-1",
            "10",
            "0.1",
            "1e1000",
            "1e1001",
            "true",
            "false",
            "null",
            "\"\"",
            "\"1\"",
            "\"null\"",
            "[]",
            "[1]",
            "[[1]]",
            "[1,1]",
            "[[1],1]",
            "[1,[1]]",
            "[[]]",
            "{}",
            "[{}]",
            r#"{"a":1}"#,
            r#"{"b":1}"#,
            r#"{"a":1,"b":1}"#,
            r#"{"ab":1}"#,
            r#"["a",1]"#,
            r#"{"a":[1]}"#,
            r#"{"a":{}}"#,
            r#"{"a":null}"#,
            r#""\ud800""#,
            r#""\ud801""#,
            r#""\\ud800""#,
            "18446744073709551616",
            "18446744073709551617",
            "9007199254740993",
            "9007199254740992",
            "0.1000000000000000055511151231257827",
            "1e99999999999999999999",
            "1e99999999999999999998",
            "1e-99999999999999999999",
        ];
        let mut digests: Vec<Digest> = texts.iter().map(|text| digest(text)).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), texts.len());
    }

    #[test]
    fn no_depth_is_too_deep() {
        let deep = |inner: &str| {
            format!(
                "{}{inner}{}",
                "[{\"a\":".repeat(100_000),
                "}]".repeat(100_000)
            )
        };
        assert_eq!(digest(&deep("1")), digest(&deep(" 1.0 ")));
        assert_ne!(digest(&deep("1")), digest(&deep("2")));
    }
}
