//! What commands print: each line fit for a terminal, whatever is in it.

use std::fmt::Display;
use std::io::{self, Write as _};

use chrono::{DateTime, Local};

use crate::visible::{Printable, printable, printable_lines};

use super::status::duration;

/// Prints a line of what has been done. That nobody reads it does not undo it.
pub(super) fn say(line: impl Display) {
    print(Printable(line));
}

/// The same for a table, whose lines are its own.
pub(super) fn say_lines(table: impl Display) {
    print(printable_lines(&table.to_string()));
}

fn print(text: impl Display) {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format_args!("could not write the result: {error}"));
        }
        _ => {}
    }
}

/// Writes a line to standard error, whatever is in it.
#[allow(clippy::print_stderr)]
pub(super) fn complain(line: impl Display) {
    eprintln!("{}", Printable(line));
}

/// Writes each line of something whose lines are its own to standard error.
pub(super) fn complain_lines(lines: impl Display) {
    lines.to_string().lines().for_each(complain);
}

/// At most `most` characters of the text, the last of them a sign that there were more.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().nth(most).is_none() {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// How JSON is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// A line for each member and element.
    Lines,
    /// All on one line.
    Line,
}

/// Valid JSON, laid out anew. Numbers, strings and the order of keys stay as they were written.
pub(super) fn laid_out(json: &str, layout: Layout) -> String {
    let mut shown = String::with_capacity(json.len());
    let (mut depth, mut is_string, mut is_escaped) = (0usize, false, false);
    let mut significant = json.chars().peekable();
    let new_line = |shown: &mut String, depth: usize| {
        if layout == Layout::Lines {
            shown.push('\n');
            shown.extend(std::iter::repeat_n("  ", depth));
        }
    };
    while let Some(c) = significant.next() {
        if is_string {
            shown.push(c);
            is_string = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '{' | '[' => {
                shown.push(c);
                while significant.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = significant.next_if(|next| matches!(next, '}' | ']')) {
                    shown.push(end);
                } else {
                    depth += 1;
                    new_line(&mut shown, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut shown, depth);
                shown.push(c);
            }
            ',' => {
                shown.push(c);
                new_line(&mut shown, depth);
            }
            ':' if layout == Layout::Lines => shown.push_str(": "),
            c => {
                is_string = c == '"';
                shown.push(c);
            }
        }
    }
    shown
}

/// A time in seconds since 1970 on the local clock, and how long ago that was at `now`.
pub(super) fn moment(at: f64, now: f64) -> String {
    // What is out of range of the target becomes its end, which is out of range of dates.
    let Some(time) = DateTime::from_timestamp(at as i64, 0) else {
        return printable(&at.to_string()).into_owned();
    };
    let time = time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S");
    if at > now {
        return time.to_string();
    }
    format!("{time} ({} ago)", duration(now - at))
}

/// A size, as in `24.1 kB`.
pub(super) fn size(bytes: usize) -> String {
    indicatif::DecimalBytes(bytes as u64).to_string()
}

/// How long something still lives; `None` is for ever.
pub(super) fn life(ttl: Option<u64>) -> String {
    ttl.map_or("for ever".to_owned(), |seconds| duration(seconds as f64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::visible::{is_visible, visible_json};

    #[test]
    fn long_texts_are_shortened_to_the_character() {
        for (text, most, short) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("ääää", 3, "ää…"),
            ("", 0, ""),
            ("a", 0, "…"),
        ] {
            assert_eq!(shortened(text, most), short);
        }
    }

    #[test]
    fn json_keeps_its_numbers_and_keys_when_it_is_laid_out() {
        let json =
            "{\"b\" :1.0e5, \"a\":[ ],\n\"c\":{ } , \"d\":[1,{\"x\":\"[,:\\\"\\\\\"}],\"b\":2}";
        let lines = "{\n  \"b\": 1.0e5,\n  \"a\": [],\n  \"c\": {},\n  \"d\": [\n    1,\n    {\n      \
            \"x\": \"[,:\\\"\\\\\"\n    }\n  ],\n  \"b\": 2\n}";
        assert_eq!(laid_out(json, Layout::Lines), lines);
        let line = "{\"b\":1.0e5,\"a\":[],\"c\":{},\"d\":[1,{\"x\":\"[,:\\\"\\\\\"}],\"b\":2}";
        assert_eq!(laid_out(lines, Layout::Line), line);
    }

    #[test]
    fn moments_have_an_age_unless_they_are_to_come() {
        assert!(moment(1000.0, 1065.0).ends_with(" (1 min 5 s ago)"));
        assert!(!moment(1065.0, 1000.0).contains('('));
        for odd in [1e300, -1e300, f64::NAN, f64::INFINITY] {
            assert!(!moment(odd, 0.0).is_empty());
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_the_same_json_however_it_is_shown(value in json()) {
            for layout in [Layout::Line, Layout::Lines] {
                let shown = visible_json(&laid_out(&value.to_string(), layout));
                prop_assert!(shown.chars().all(|c| c == '\n' || is_visible(c)), "{shown:?}");
                prop_assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value.clone());
            }
        }
    }
}
