//! What a program says on its standard error: every line for the debug log, the last ones as the
//! reason of a failure.

use std::sync::Arc;

use crate::secret::Secret;
use crate::visible::printable;

/// So many bytes are kept.
const KEPT: usize = 64 * 1024;

/// So many lines make the reason, of so many characters together.
const REASON_LINES: usize = 5;
const REASON_CHARACTERS: usize = 1000;

/// So many characters of a line are logged.
const LOGGED_CHARACTERS: usize = 2000;

/// The end of what a program has said.
pub(super) struct Tail {
    program: String,
    secrets: Arc<[Secret]>,
    kept: Vec<u8>,
    /// Where the line begins that has not ended yet.
    line: usize,
}

impl Tail {
    /// Nothing yet. What the program was given in secret is not repeated.
    pub fn new(program: &str, secrets: &Arc<[Secret]>) -> Self {
        Self {
            program: program.to_owned(),
            secrets: Arc::clone(secrets),
            kept: Vec::new(),
            line: 0,
        }
    }

    /// More of it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if log::log_enabled!(log::Level::Debug) {
            while let Some(length) = self.kept[self.line..].iter().position(|b| *b == b'\n') {
                let line = &self.kept[self.line..self.line + length];
                let text = self.clean(line, LOGGED_CHARACTERS);
                log::debug!("{}: {text}", self.program);
                self.line += length + 1;
            }
        }
        if self.kept.len() > 2 * KEPT {
            let over = self.kept.len() - KEPT;
            self.kept.drain(..over);
            self.line = self.line.saturating_sub(over);
        }
    }

    /// Forgets what belongs to work that is done.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.line = 0;
    }

    /// The last lines, as the end of a sentence; empty where nothing was said.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines: Vec<&str> = lines.collect();
        let last = &lines[lines.len().saturating_sub(REASON_LINES)..];
        let last: Vec<&str> = last.iter().map(|line| line.trim()).collect();
        let reason = self.clean(last.join(" | ").as_bytes(), usize::MAX);
        let excess = reason.chars().count().saturating_sub(REASON_CHARACTERS);
        match (reason.is_empty(), excess) {
            (true, _) => String::new(),
            (false, 0) => format!(": {reason}"),
            (false, _) => format!(": …{}", reason.chars().skip(excess).collect::<String>()),
        }
    }

    /// Any text of the program's, so that it can be shown.
    pub fn clean(&self, text: &[u8], most: usize) -> String {
        let text = String::from_utf8_lossy(text).into_owned();
        let secrets = self.secrets.iter();
        let text = secrets.fold(text, |text, secret| secret.hide_in(text));
        // What a program indents with tells nobody anything.
        let text = text.replace('\t', " ");
        printable(&text).chars().take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(secrets: &[&str]) -> Tail {
        Tail::new(
            "x",
            &secrets.iter().map(|text| Secret::new(*text)).collect(),
        )
    }

    #[test]
    fn the_reason_is_the_last_lines_in_one() {
        let mut tail = tail(&[]);
        assert_eq!(tail.reason(), "");
        tail.push(b"1\n2\n\n 3\t\n4\r\n5\n");
        tail.push(b"6 \x1b[1mno");
        assert_eq!(tail.reason(), r": 2 | 3 | 4 | 5 | 6 \u{1b}[1mno");
        tail.clear();
        assert_eq!(tail.reason(), "");
    }

    #[test]
    fn the_lines_of_a_secret_are_not_repeated_one_by_one() {
        let mut tail = tail(&["first line\n  second line\n}"]);
        tail.push(b"it is second line }\nfirst line\n");
        assert_eq!(tail.reason(), ": it is *** } | ***");
    }

    #[test]
    fn secrets_are_not_repeated() {
        let mut tail = tail(&["hunter2", "", "a"]);
        tail.push(b"at hunter2 and xhunter2x");
        assert_eq!(tail.reason(), ": at *** and x***x");
    }

    #[test]
    fn of_much_only_the_end_is_kept() {
        let mut tail = tail(&[]);
        for _ in 0..100 {
            tail.push(&[b'x'; 10_000]);
            tail.push(b"\n");
        }
        assert!(tail.kept.len() <= 2 * KEPT + 1);
        tail.push("\u{e9}".repeat(2000).as_bytes());
        assert_eq!(tail.reason().chars().count(), 3 + REASON_CHARACTERS);
        tail.push(b"\n\xff\xfe\n");
        assert!(tail.reason().ends_with("\u{fffd}\u{fffd}"));
    }
}
