//! Numbers of options, as the existing worker reads them: what stands without quotes is YAML 1.1
//! (`0644` is octal, `1_000` a thousand, `1:30` ninety), what stands in quotes decimal.

use super::json;

/// The highest permissions that a decimal number can mean: `644` is octal without its mark.
const MOST_DECIMAL_MODE: u32 = 0o777;

/// A whole number; one with a point must have nothing but zeros after it.
pub(super) fn whole(text: &str, is_plain: bool) -> Option<i64> {
    let (sign, digits) = signed(text);
    let plain = || {
        let number = json::integer(digits).or_else(|| of_sixties(digits));
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
pub(super) fn any(text: &str, is_plain: bool) -> Option<f64> {
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
pub(super) fn mode(text: &str, is_plain: bool) -> Option<u32> {
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
mod tests {
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
