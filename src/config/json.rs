//! Values of `config.yml` as JSON, for programs that get options of their own.
//!
//! What stands there without quotes means what it means to the Python worker, which reads YAML
//! 1.1: `yes` is true, `012` is ten. Two of its readings are left out, dates and numbers to the
//! base of sixty (`12:30`): they stay text, as do infinities, which JSON does not have.

use super::yaml::{Kind, Mapping, Node};

/// A value as JSON.
pub(super) fn value(node: &Node) -> String {
    match &node.kind {
        Kind::Null => "null".to_owned(),
        Kind::Scalar(text) if node.plain => plain(text).unwrap_or_else(|| string(text)),
        Kind::Scalar(text) => string(text),
        Kind::Sequence(items) => {
            let items: Vec<String> = items.iter().map(value).collect();
            format!("[{}]", items.join(","))
        }
        Kind::Mapping(entries) => object(entries),
    }
}

/// A mapping as a JSON object.
pub(super) fn object(entries: &Mapping) -> String {
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
pub(super) fn integer(text: &str) -> Option<String> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::yaml;

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
            let plain = Node { line: 1, kind: Kind::Scalar(text), plain: true };
            serde_json::from_str::<&serde_json::value::RawValue>(&value(&plain)).unwrap();
        }
    }
}
