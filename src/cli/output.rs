//! What commands print and ask: lines fit for a terminal whatever text from elsewhere is in them,
//! times, sizes and JSON for people, tables, progress bars, and the question before something is deleted.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write as _};

use chrono::{DateTime, Local};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use log::Level;
use ratatui::crossterm::terminal;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::exit::Exit;
use crate::logging::{self, no_color};
pub(super) use crate::spelling::counted;
pub(super) use crate::view::duration;
use crate::view::fixed;
use crate::visible::{Printable, printable, printable_lines};

/// A progress bar is shown from this many steps on.
const STEPS_WORTH_A_BAR: usize = 20;

/// Tables and messages truncate the error of a dead letter to this; in a terminal, a table does to what the other
/// columns leave. JSON and `dlq show` have all of it.
pub(super) const LONGEST_ERROR: usize = 1000;

/// Prints a line on standard output. If nobody reads it, the command goes on: what it reports is done.
pub(super) fn print_line(line: impl Display) {
    print(Printable(line));
}

/// The same for a text of several lines, as a table is.
pub(super) fn print_lines(lines: impl Display) {
    print(printable_lines(&lines.to_string()));
}

fn print(text: impl Display) {
    if let Err(error) = writeln!(io::stdout().lock(), "{text}") {
        output_failed(&error);
    }
}

/// Names what kept the result from being written, and returns the exit code. A reader that has seen
/// enough and closes the pipe is no error.
pub(super) fn output_failed(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Exit::Ok;
    }
    eprint_line(format_args!("could not write the result: {error}"));
    Exit::Internal
}

/// Writes a line to standard error: an error, or a warning that begins with `warning: `. Nothing is left to do if
/// that fails.
pub(super) fn eprint_line(line: impl Display) {
    let text = Printable(line).to_string();
    let level = if text.starts_with("warning: ") {
        Level::Warn
    } else {
        Level::Error
    };
    let line = format!("{}{text}\n", logging::line_start(level));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Writes each line of the text to standard error.
pub(super) fn eprint_lines(lines: impl Display) {
    lines.to_string().lines().for_each(eprint_line);
}

/// Whether somebody at a terminal can be asked.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal()
}

/// Asks, and returns whether the reply was a yes.
pub(super) fn is_confirmed(question: &str) -> io::Result<bool> {
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut reply = String::new();
    io::stdin().read_line(&mut reply)?;
    Ok(matches!(reply.trim(), "y" | "Y" | "yes"))
}

/// A progress bar, hidden without a terminal or for a few steps.
pub(super) fn progress_bar(steps: usize) -> ProgressBar {
    if steps < STEPS_WORTH_A_BAR {
        return ProgressBar::hidden();
    }
    progress_bar_of(steps as u64, "{wide_bar} {pos}/{len} {per_sec} {eta}")
}

/// A progress bar with this template of `indicatif`, hidden without a terminal.
pub(super) fn progress_bar_of(steps: u64, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    // Without the style the bar has its usual look.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The columns of a line without a terminal.
const USUAL_WIDTH: usize = 100;

/// The columns of a line on standard output: those that `COLUMNS` says, else those of the terminal.
pub(super) fn line_width() -> usize {
    let said = std::env::var("COLUMNS").ok();
    let said = said.and_then(|columns| columns.parse().ok());
    let is_terminal = io::stdout().is_terminal();
    let of_terminal = || {
        let size = terminal::size().ok().filter(|_| is_terminal);
        size.map(|(columns, _)| usize::from(columns))
    };
    let width = said.or_else(of_terminal).filter(|columns| *columns > 0);
    width.unwrap_or(USUAL_WIDTH)
}

/// Whether standard output shows colours.
pub(super) fn has_colours() -> bool {
    io::stdout().is_terminal() && !no_color()
}

/// The text in lines of at most `width` columns. A word is broken only if it is longer than a line.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let (mut lines, mut line, mut used) = (Vec::new(), String::new(), 0);
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let columns = word.width();
        if used > 0 && used + 1 + columns > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            let columns = c.width().unwrap_or_default();
            if used > 0 && used + columns > width {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += columns;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Prints text whose parts from elsewhere have been made printable, and which has colours.
pub(super) fn print_coloured(text: impl Display) {
    print(text);
}

/// An empty table that fits the width of the terminal.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Aligns columns of numbers to the right.
pub(super) fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// At most `most` characters of the text; an ellipsis stands for the rest.
pub(super) fn truncated(text: &str, most: usize) -> String {
    if text.chars().nth(most).is_none() {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Why a command goes no further.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The exit code.
    pub exit: Exit,
    /// A sentence on why, and what to do.
    pub why: String,
}

impl Refusal {
    pub fn new(exit: Exit, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { exit, why }
    }

    /// Prints why, and returns the exit code.
    pub fn report(self) -> Exit {
        eprint_lines(self.why);
        self.exit
    }
}

/// The text as one word for a shell.
pub(super) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The layout of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonLayout {
    /// A line for each member and element.
    Indented,
    /// All on one line.
    Compact,
}

/// Formats valid JSON. Numbers, strings and the order of keys stay as they were written.
pub(super) fn format_json(json: &str, layout: JsonLayout) -> String {
    let mut shown = String::with_capacity(json.len());
    let (mut depth, mut is_string, mut is_escaped) = (0usize, false, false);
    let mut significant = json.chars().peekable();
    let new_line = |shown: &mut String, depth: usize| {
        if layout == JsonLayout::Indented {
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
            ':' if layout == JsonLayout::Indented => shown.push_str(": "),
            c => {
                is_string = c == '"';
                shown.push(c);
            }
        }
    }
    shown
}

/// The local time of a time in seconds since 1970, and how long before `now` that was.
pub(super) fn time_and_age(at: f64, now: f64) -> String {
    // The cast saturates, and its ends are out of range of dates.
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
pub(super) fn byte_size(bytes: usize) -> String {
    indicatif::DecimalBytes(bytes as u64).to_string()
}

/// The time until something expires; `None` is for ever.
pub(super) fn remaining_ttl(ttl: Option<u64>) -> String {
    ttl.map_or("for ever".to_owned(), |seconds| duration(seconds as f64))
}

/// `24.1 MB`, of 2^20 bytes.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / f64::from(1 << 20))
}

/// A rate, with two digits if it is small: `0`, `0.02`, `2.5`, `25`.
pub(super) fn rate(per_second: f64) -> String {
    let digits = match per_second {
        n if n == 0.0 || n >= 9.95 => 0,
        n if n >= 0.995 => 1,
        _ => 2,
    };
    fixed(per_second, digits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::visible::{is_visible, visible_json};

    #[test]
    fn long_texts_are_truncated_to_the_character() {
        for (text, most, short) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("ääää", 3, "ää…"),
            ("", 0, ""),
            ("a", 0, "…"),
        ] {
            assert_eq!(truncated(text, most), short);
        }
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (text, word) in [
            ("storage:pg", "storage:pg"),
            ("DLQ:storage:pg", "DLQ:storage:pg"),
            ("/data/vcons", "/data/vcons"),
            ("of another", "'of another'"),
            ("a b", "'a b'"),
            ("it's $x", r"'it'\''s $x'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn words_are_broken_only_if_they_are_longer_than_a_line() {
        for (text, width, lines) in [
            ("", 5, &[""][..]),
            ("a b c", 3, &["a b", "c"]),
            ("ab  cd", 9, &["ab cd"]),
            ("a abcdefg b", 5, &["a", "abcde", "fg b"]),
            ("世界 世界", 4, &["世界", "世界"]),
            ("ab", 0, &["a", "b"]),
        ] {
            assert_eq!(wrapped(text, width), lines, "{text} {width}");
        }
    }

    #[test]
    fn json_keeps_its_numbers_and_keys_when_it_is_laid_out() {
        let json =
            "{\"b\" :1.0e5, \"a\":[ ],\n\"c\":{ } , \"d\":[1,{\"x\":\"[,:\\\"\\\\\"}],\"b\":2}";
        let lines = "{\n  \"b\": 1.0e5,\n  \"a\": [],\n  \"c\": {},\n  \"d\": [\n    1,\n    {\n      \
            \"x\": \"[,:\\\"\\\\\"\n    }\n  ],\n  \"b\": 2\n}";
        assert_eq!(format_json(json, JsonLayout::Indented), lines);
        let line = "{\"b\":1.0e5,\"a\":[],\"c\":{},\"d\":[1,{\"x\":\"[,:\\\"\\\\\"}],\"b\":2}";
        assert_eq!(format_json(lines, JsonLayout::Compact), line);
    }

    #[test]
    fn moments_have_an_age_unless_they_are_to_come() {
        assert!(time_and_age(1000.0, 1065.0).ends_with(" (1 min 5 s ago)"));
        assert!(!time_and_age(1065.0, 1000.0).contains('('));
        for odd in [1e300, -1e300, f64::NAN, f64::INFINITY] {
            assert!(!time_and_age(odd, 0.0).is_empty());
        }
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        let shown = [5.9, 65.0, 3661.0, 90_061.0].map(duration);
        assert_eq!(shown, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn rates_have_two_digits_if_they_are_small() {
        let shown = [0.0, 0.02, 0.999, 2.54, 9.96, 1234.5].map(rate);
        assert_eq!(shown, ["0", "0.02", "1.0", "2.5", "10", "1235"]);
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
            for layout in [JsonLayout::Compact, JsonLayout::Indented] {
                let shown = visible_json(&format_json(&value.to_string(), layout));
                prop_assert!(shown.chars().all(|c| c == '\n' || is_visible(c)), "{shown:?}");
                prop_assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value.clone());
            }
        }
    }
}
