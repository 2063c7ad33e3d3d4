//! Dead letters as people and programs see them.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::cli::shown::{moment, shortened};
use crate::queue::{DeadLetter, StoredReason};
use crate::visible::printable;

/// Entries that are no UUIDs are shortened to this in the table, and where one is told of.
pub(super) const LONGEST_ENTRY: usize = 60;

/// Errors are shortened to this there, in a terminal to what the other columns leave. JSON and `dlq show` have all of it.
pub(super) const LONGEST_ERROR: usize = 1000;

/// The error has at least this much of the line.
const NARROWEST_ERROR: usize = 24;

const NO_REASON: &str = "(no reason was kept)";

const BACKLOG: &str = "(backlog: waits until the storage is available)";

const HEADER: [&str; 7] = [
    "UUID", "List", "Stage", "Error", "When", "Attempts", "Worker",
];

/// A dead letter in words and numbers.
#[derive(Debug, Serialize)]
pub(super) struct View {
    /// The entry; what is no UUID is escaped as the commands take it.
    pub uuid: String,
    /// The ingress list, escaped in the same way.
    pub list: String,
    pub stage: Option<String>,
    /// What went wrong, or the whole reason where somebody else wrote it.
    pub error: Option<String>,
    pub attempts: Option<u64>,
    pub worker: Option<String>,
    /// Seconds since 1970.
    pub at: Option<f64>,
    /// Not dead: it waits until its storage is available again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backlog: bool,
}

impl View {
    /// That of a letter in a queue which may also hold a backlog, if the storage defers.
    pub fn new(letter: DeadLetter, defers: bool) -> Self {
        let mut view = Self {
            uuid: letter.entry.to_string(),
            list: letter.list.to_string(),
            stage: None,
            error: None,
            attempts: None,
            worker: None,
            at: None,
            backlog: defers && letter.reason.is_none(),
        };
        match letter.reason {
            None => {}
            Some(StoredReason::Other(text)) => view.error = Some(text),
            Some(StoredReason::Known {
                stage,
                error,
                attempts,
                worker,
                at,
            }) => {
                view.stage = Some(stage);
                view.error = Some(error);
                view.attempts = Some(attempts);
                view.worker = Some(worker);
                view.at = Some(at);
            }
        }
        view
    }

    /// The same without what a row of a table does not show.
    pub fn of_row(mut self) -> Self {
        self.error = self.error.map(|error| shortened(&error, LONGEST_ERROR));
        self
    }

    /// What went wrong, for the eye.
    pub fn error(&self) -> &str {
        let none = if self.backlog { BACKLOG } else { NO_REASON };
        self.error.as_deref().unwrap_or(none)
    }

    fn row(&self, now: f64) -> [String; 7] {
        let text =
            |text: &Option<String>| printable(text.as_deref().unwrap_or_default()).into_owned();
        [
            shortened(&self.uuid, LONGEST_ENTRY),
            shortened(&self.list, LONGEST_ENTRY),
            shortened(&text(&self.stage), LONGEST_ENTRY),
            shortened(
                &printable(&shortened(self.error(), LONGEST_ERROR)),
                LONGEST_ERROR,
            ),
            self.at.map(|at| moment(at, now)).unwrap_or_default(),
            self.attempts.map(|n| n.to_string()).unwrap_or_default(),
            shortened(&text(&self.worker), LONGEST_ENTRY),
        ]
    }
}

/// The dead letters for people: as a table, in which an error has what the other columns leave it,
/// or, where the terminal is too narrow for that, two lines for each.
pub(super) fn listing(views: &[View], now: f64) -> String {
    let rows: Vec<[String; 7]> = views.iter().map(|view| view.row(now)).collect();
    match Table::new().width().map(usize::from) {
        None => table(rows),
        Some(width) => fitted(rows, width),
    }
}

fn fitted(mut rows: Vec<[String; 7]>, width: usize) -> String {
    let room = room_for_errors(&rows, width);
    if room < NARROWEST_ERROR {
        let pairs = rows.iter().map(|row| pair(row, width));
        return pairs.collect::<Vec<_>>().join("\n");
    }
    for row in &mut rows {
        row[3] = shortened(&row[3], room);
    }
    table(rows)
}

/// What and where on one line; why and when on the next.
fn pair([uuid, list, stage, error, when, attempts, worker]: &[String; 7], width: usize) -> String {
    let line = |words: [&str; 4]| {
        let words = words.iter().filter(|word| !word.is_empty());
        words.copied().collect::<Vec<_>>().join("  ")
    };
    let tries = match attempts.as_str() {
        "" => String::new(),
        "1" => "1 attempt".to_owned(),
        more => format!("{more} attempts"),
    };
    let first = line([uuid, list, stage, worker]);
    let second = line(["", when, &tries, error]);
    let room = width.saturating_sub(4).max(NARROWEST_ERROR);
    format!("{first}\n    {}", shortened(&second, room))
}

fn table(rows: Vec<[String; 7]>) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER)
        .add_rows(rows);
    if let Some(column) = table.column_mut(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What the other columns leave of a line.
fn room_for_errors(rows: &[[String; 7]], width: usize) -> usize {
    let width_of = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(HEADER[column].len())
    };
    let others: usize = [0, 1, 2, 4, 5, 6].into_iter().map(width_of).sum();
    let frame = 3 * HEADER.len() + 1;
    width.saturating_sub(others + frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Raw;

    fn known(error: &str) -> DeadLetter {
        DeadLetter {
            list: Raw::new("default"),
            entry: Raw::new("05cec3d4-0561-4010-9fb8-23cc7edef146"),
            reason: Some(StoredReason::Known {
                stage: "storage pg".to_owned(),
                error: error.to_owned(),
                attempts: 2,
                worker: "Worker-1".to_owned(),
                at: 1000.0,
            }),
        }
    }

    #[test]
    fn an_error_has_the_rest_of_the_line() {
        let rows = [View::new(known("e"), true).row(1060.0)];
        let when = rows[0][4].chars().count();
        // UUID, list, stage, when, attempts, worker, and the frame.
        let others = 36 + 7 + 10 + when + 8 + 8 + 22;
        assert_eq!(room_for_errors(&rows, others + 50), 50);
        assert_eq!(room_for_errors(&rows, 80), 0);
        assert_eq!(
            room_for_errors(&[], 1000),
            1000 - (4 + 4 + 5 + 4 + 8 + 6) - 22
        );
    }

    #[test]
    fn a_narrow_terminal_has_two_lines_for_each() {
        let rows = vec![View::new(known(&"error ".repeat(50)), true).row(1060.0)];
        let text = fitted(rows.clone(), 80);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "05cec3d4-0561-4010-9fb8-23cc7edef146  default  storage pg  Worker-1"
        );
        assert!(lines[1].contains(" (1 min 0 s ago)  2 attempts  error error"));
        assert_eq!((lines.len(), lines[1].chars().count()), (2, 80));
        let wide = fitted(rows, 200);
        assert!(
            wide.lines().all(|line| line.chars().count() == 200),
            "{wide}"
        );
    }

    #[test]
    fn hostile_letters_stay_on_their_line() {
        let hostile = "\x1b[2J\n".repeat(1000);
        for reason in [
            None,
            Some(StoredReason::Other(hostile.clone())),
            known(&hostile).reason,
        ] {
            let view = View::new(
                DeadLetter {
                    list: Raw::new(hostile.as_str()),
                    entry: Raw::new(hostile.as_str()),
                    reason,
                },
                false,
            );
            let row = view.row(0.0);
            for (text, lines) in [
                (table(vec![row.clone()]), 5),
                (fitted(vec![row.clone()], 300), 5),
                (fitted(vec![row.clone()], 80), 2),
                (fitted(vec![row], 0), 2),
            ] {
                let is_fit = |c: char| c == '\n' || !c.is_control();
                assert!(text.chars().all(is_fit), "{text}");
                assert_eq!(text.lines().count(), lines, "{text}");
            }
        }
    }

    #[test]
    fn a_letter_without_a_reason_says_so() {
        let letter = DeadLetter {
            reason: None,
            ..known("")
        };
        assert_eq!(View::new(letter.clone(), false).row(0.0)[3], NO_REASON);
        assert_eq!(View::new(letter, true).row(0.0)[3], BACKLOG);
    }
}
