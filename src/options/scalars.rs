//! Values of `config.yml` as JSON, for programs that get options of their own.
//!
//! What stands there without quotes means what it means to the Python worker, which reads YAML
//! 1.1: `yes` is true, `012` is ten. Two of its readings are left out, dates and numbers to the
//! base of sixty (`12:30`): they stay text, as do infinities, which JSON does not have.

use super::yaml::{Mapping, Node, NodeKind};

/// A value as JSON.
pub(crate) fn value(node: &Node) -> String {
    match &node.kind {
        NodeKind::Null => "null".to_owned(),
        NodeKind::Scalar(text) if node.plain => plain(text).unwrap_or_else(|| string(text)),
        NodeKind::Scalar(text) => string(text),
        NodeKind::Sequence(items) => {
            let items: Vec<String> = items.iter().map(value).collect();
            format!("[{}]", items.join(","))
        }
        NodeKind::Mapping(entries) => object(entries),
    }
}

/// A mapping as a JSON object.
pub(crate) fn object(entries: &Mapping) -> String {
    let member = |(key, entry): (&String, &super::yaml::Entry)| {
        format!("{}:{}", string(key), value(&entry.value))
    };
    let members: Vec<String> = entries.iter().map(member).collect();
    format!("{{{}}}", members.join(","))
}

fn string(text: &str) -> String {
    // Writing a string to memory does not fail.
    serde_json::to_string(text).unwrap_or_default()
}

/// What a text without quotes stands for, where that is no text.
fn plain(text: &str) -> Option<String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some("null".to_owned()),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Some("true".to_owned());
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Some("false".to_owned());
        }
        _ => {}
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let number = integer(digits).or_else(|| float(digits))?;
    Some(format!("{sign}{number}"))
}

/// The decimal digits of a whole number without its sign.
pub(crate) fn integer(text: &str) -> Option<String> {
    let bare: String = text.chars().filter(|c| *c != '_').collect();
    if bare.is_empty() || !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let of_base = |digits: &str, base| {
        // As far as a number of this machine goes; what is larger stays the text it is.
        u128::from_str_radix(digits, base).ok()
    };
    let is_digits = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    if let Some(digits) = bare.strip_prefix("0x") {
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        return of_base(digits, 16)
            .filter(|_| is_hex)
            .map(|n| n.to_string());
    }
    if let Some(digits) = bare.strip_prefix("0b") {
        return of_base(digits, 2)
            .filter(|_| is_digits(digits))
            .map(|n| n.to_string());
    }
    if !is_digits(&bare) {
        return None;
    }
    match bare.strip_prefix('0') {
        Some("") => Some("0".to_owned()),
        Some(digits) => of_base(digits, 8).map(|n| n.to_string()),
        None => Some(bare),
    }
}

/// A number with a point, without its sign, as JSON writes it.
fn float(text: &str) -> Option<String> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        // An exponent has a sign there.
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, part) = mantissa.split_once('.')?;
    let bare = |digits: &str| -> Option<String> {
        let is_digit = |c: char| c.is_ascii_digit() || c == '_';
        let fits = digits.chars().all(is_digit) && !digits.starts_with('_');
        fits.then(|| digits.replace('_', ""))
    };
    let (whole, part) = (bare(whole)?, bare(part)?);
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let part = if part.is_empty() { "0" } else { &part };
    let exponent = match exponent {
        None => String::new(),
        Some(exponent) => {
            let digits = exponent.strip_prefix(['+', '-'])?;
            let fits = !digits.is_empty() && digits.bytes().all(|d| d.is_ascii_digit());
            fits.then(|| format!("e{exponent}"))?
        }
    };
    Some(format!("{whole}.{part}{exponent}"))
}

/// The highest permissions that a decimal number can mean: `644` is octal without its mark.
const MOST_DECIMAL_MODE: u32 = 0o777;

/// A whole number; one with a point must have nothing but zeros after it.
pub(crate) fn whole(text: &str, is_plain: bool) -> Option<i64> {
    let (sign, digits) = signed(text);
    let plain = || {
        let number = integer(digits).or_else(|| of_sixties(digits));
        number?.parse::<i64>().ok()
    };
    let number = is_plain.then(plain).flatten();
    let number = number.or_else(|| bare(digits)?.parse().ok());
    number
        .or_else(|| match digits.split_once('.') {
            Some((whole, zeros)) if zeros.bytes().all(|digit| digit == b'0') => {
                bare(whole)?.parse().ok()
            }
            _ => None,
        })
        .map(|number| sign * number)
}

/// Any number that has an end.
pub(crate) fn any(text: &str, is_plain: bool) -> Option<f64> {
    if let Some(number) = whole(text, is_plain) {
        // What an option counts is far below where this is inexact.
        return Some(number as f64);
    }
    let is_separated = text.starts_with(|first: char| first.is_ascii_digit());
    let number = match is_separated {
        true => text.replace('_', "").parse().ok(),
        false => text.parse().ok(),
    };
    number.filter(|number: &f64| number.is_finite())
}

/// Permissions of a file.
pub(crate) fn mode(text: &str, is_plain: bool) -> Option<u32> {
    let octal = text.strip_prefix('0').map(|digits| {
        let digits = digits.strip_prefix(['o', 'O']).unwrap_or(digits);
        let is_octal = digits.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        u32::from_str_radix(digits, 8).ok().filter(|_| is_octal)
    });
    if let Some(mode) = octal.flatten() {
        return (mode <= 0o7777).then_some(mode);
    }
    if text.len() > 1 && text.starts_with('0') && !text.starts_with("0x") {
        return None;
    }
    let decimal = u32::try_from(whole(text, is_plain)?).ok()?;
    (decimal <= MOST_DECIMAL_MODE).then_some(decimal)
}

fn signed(text: &str) -> (i64, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// The digits of a decimal number, which underscores may separate.
fn bare(text: &str) -> Option<String> {
    let first = text.bytes().next()?;
    let is_good = |byte: u8| byte.is_ascii_digit() || byte == b'_';
    (first.is_ascii_digit() && text.bytes().all(is_good)).then(|| text.replace('_', ""))
}

/// A number to the base of sixty, `1:30`.
fn of_sixties(text: &str) -> Option<String> {
    let (first, rest) = text.split_once(':')?;
    if first.starts_with('0') {
        return None;
    }
    let mut number: i64 = bare(first)?.parse().ok()?;
    for part in rest.split(':') {
        let part: i64 = bare(part).filter(|it| it.len() <= 2)?.parse().ok()?;
        number = number.checked_mul(60)?.checked_add(part)?;
        if part >= 60 {
            return None;
        }
    }
    Some(number.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::options::yaml;

    fn json(text: &str) -> String {
        let node = yaml::parse(text).ok().flatten();
        let node = node.unwrap_or_else(|| unreachable!("{text}"));
        value(&node)
    }

    #[test]
    fn what_has_no_quotes_is_read_as_the_python_worker_reads_it() {
        for (text, expected) in [
            ("yes", "true"),
            ("Off", "false"),
            ("oN", r#""oN""#),
            ("7", "7"),
            ("-7", "-7"),
            ("+7", "7"),
            ("1_000", "1000"),
            ("012", "10"),
            ("-012", "-10"),
            ("0", "0"),
            ("0x1F", "31"),
            ("0b101", "5"),
            ("0o17", r#""0o17""#),
            ("089", r#""089""#),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            ("0.5", "0.5"),
            ("-.5", "-0.5"),
            ("00.50", "0.50"),
            ("1.", "1.0"),
            ("1.5e+3", "1.5e+3"),
            ("1.5e3", r#""1.5e3""#),
            ("1e5", r#""1e5""#),
            (".inf", r#"".inf""#),
            (".", r#"".""#),
            ("12:30", r#""12:30""#),
            ("2024-01-01", r#""2024-01-01""#),
            ("gpt-4", r#""gpt-4""#),
            ("~", "null"),
        ] {
            assert_eq!(
                json(&format!("{{a: {text}}}")),
                format!(r#"{{"a":{expected}}}"#)
            );
        }
    }

    #[test]
    fn what_has_quotes_is_text_wherever_it_stands() {
        for (text, expected) in [
            ("a: '7'", r#"{"a":"7"}"#),
            ("a: \"yes\"", r#"{"a":"yes"}"#),
            ("a: ''", r#"{"a":""}"#),
            ("a: |\n  7\n", r#"{"a":"7\n"}"#),
            ("a: >-\n  yes\n", r#"{"a":"yes"}"#),
            ("a: |  # 7 >\n\n  7\n", r#"{"a":"\n7\n"}"#),
            ("a:\n  # see >\n\n  7", r#"{"a":7}"#),
            ("a: !!str 7", r#"{"a":"7"}"#),
            ("a: &x '7'\nb: *x", r#"{"a":"7","b":"7"}"#),
            ("a: &x 7\nb: *x", r#"{"a":7,"b":7}"#),
            ("a: &x yes\nb: [*x]", r#"{"a":true,"b":[true]}"#),
            ("a: ${PORT}", r#"{"a":"${PORT}"}"#),
            (
                "a: [1, {b: ~, 2: 'é\"'}]",
                r#"{"a":[1,{"b":null,"2":"é\""}]}"#,
            ),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_is_it_becomes_json(text in "[-+0-9xbeE_.:aé\"\\\\ ]{0,12}") {
            let plain = Node { line: 1, kind: NodeKind::Scalar(text), plain: true };
            serde_json::from_str::<&serde_json::value::RawValue>(&value(&plain)).unwrap();
        }
    }
}

#[cfg(test)]
mod number_tests {
    use super::*;

    #[test]
    fn whole_numbers_are_those_of_the_existing_worker() {
        for (text, plain, quoted) in [
            ("0", Some(0), Some(0)),
            ("-7", Some(-7), Some(-7)),
            ("+7", Some(7), Some(7)),
            ("010", Some(8), Some(10)),
            ("0080", Some(80), Some(80)),
            ("1_000", Some(1000), Some(1000)),
            ("0x10", Some(16), None),
            ("0b11", Some(3), None),
            ("1:30", Some(90), None),
            ("1:60", None, None),
            ("5432.0", Some(5432), Some(5432)),
            ("1.5", None, None),
            ("", None, None),
            ("_1", None, None),
            ("--1", None, None),
            ("99999999999999999999", None, None),
        ] {
            assert_eq!(whole(text, true), plain, "{text}");
            assert_eq!(whole(text, false), quoted, "'{text}'");
        }
    }

    #[test]
    fn any_number_has_an_end() {
        for (text, expected) in [
            ("12.5", Some(12.5)),
            ("1e3", Some(1000.0)),
            ("-.5", Some(-0.5)),
            ("1_000", Some(1000.0)),
            ("1_000.5", Some(1000.5)),
            ("nan", None),
            ("inf", None),
            ("1e999", None),
            ("x", None),
        ] {
            assert_eq!(any(text, true), expected, "{text}");
        }
    }

    #[test]
    fn permissions_are_octal_or_the_decimal_of_that() {
        for (text, plain, quoted) in [
            ("420", Some(0o644), Some(0o644)),
            ("493", Some(0o755), Some(0o755)),
            ("0o750", Some(0o750), Some(0o750)),
            ("0640", Some(0o640), Some(0o640)),
            ("0700", Some(0o700), Some(0o700)),
            ("0o7777", Some(0o7777), Some(0o7777)),
            ("0o10000", None, None),
            ("0x1a4", Some(0o644), None),
            ("0", Some(0), Some(0)),
            ("511", Some(0o777), Some(0o777)),
            ("512", None, None),
            ("644", None, None),
            ("755", None, None),
            ("0888", None, None),
            ("0+44", None, None),
            ("0o", None, None),
            ("-1", None, None),
            ("rw-r--r--", None, None),
        ] {
            assert_eq!(mode(text, true), plain, "{text}");
            assert_eq!(mode(text, false), quoted, "'{text}'");
        }
    }
}
