//! Dead letters as people and programs see them.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table};
use serde::Serialize;

use crate::cli::shown::{moment, printable, shortened};
use crate::queue::{KeptReason, Letter};

/// Entries that are no UUIDs are shortened to this in the table.
const LONGEST_ENTRY: usize = 60;

/// The error has at least this much of the line.
const NARROWEST_ERROR: usize = 24;

const NO_REASON: &str = "(no reason was kept)";

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
}

impl View {
    pub fn new(letter: Letter) -> Self {
        let mut view = Self {
            uuid: letter.entry.to_string(),
            list: letter.list.to_string(),
            stage: None,
            error: None,
            attempts: None,
            worker: None,
            at: None,
        };
        match letter.reason {
            None => {}
            Some(KeptReason::Other(text)) => view.error = Some(text),
            Some(KeptReason::Known {
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

    /// What went wrong, for the eye.
    pub fn error(&self) -> &str {
        self.error.as_deref().unwrap_or(NO_REASON)
    }

    fn row(&self, now: f64) -> [String; 7] {
        let text = |text: &Option<String>| text.as_deref().map(printable).unwrap_or_default();
        [
            shortened(&self.uuid, LONGEST_ENTRY),
            shortened(&self.list, LONGEST_ENTRY),
            shortened(&text(&self.stage), LONGEST_ENTRY),
            printable(self.error()),
            self.at.map(|at| moment(at, now)).unwrap_or_default(),
            self.attempts.map(|n| n.to_string()).unwrap_or_default(),
            shortened(&text(&self.worker), LONGEST_ENTRY),
        ]
    }
}

/// The dead letters as a table; on a terminal, an error has what the other columns leave it.
pub(super) fn table(views: &[View], now: f64) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(HEADER);
    let mut rows: Vec<[String; 7]> = views.iter().map(|view| view.row(now)).collect();
    if let Some(width) = table.width() {
        let room = room_for_errors(&rows, usize::from(width));
        for row in &mut rows {
            row[3] = shortened(&row[3], room);
        }
    }
    table.add_rows(rows);
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    if let Some(column) = table.column_mut(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn room_for_errors(rows: &[[String; 7]], width: usize) -> usize {
    let width_of = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(HEADER[column].len())
    };
    let others: usize = [0, 1, 2, 4, 5, 6].into_iter().map(width_of).sum();
    let frame = 3 * HEADER.len() + 1;
    width.saturating_sub(others + frame).max(NARROWEST_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Raw;

    fn known(error: &str) -> Letter {
        Letter {
            list: Raw::new("default"),
            entry: Raw::new("05cec3d4-0561-4010-9fb8-23cc7edef146"),
            reason: Some(KeptReason::Known {
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
        let rows = [View::new(known("e")).row(1060.0)];
        let when = rows[0][4].chars().count();
        // UUID, list, stage, when, attempts, worker, and the frame.
        let others = 36 + 7 + 10 + when + 8 + 8 + 22;
        assert_eq!(room_for_errors(&rows, others + 50), 50);
        assert_eq!(room_for_errors(&rows, 80), NARROWEST_ERROR);
        assert_eq!(room_for_errors(&rows, 0), NARROWEST_ERROR);
        assert_eq!(
            room_for_errors(&[], 1000),
            1000 - (4 + 4 + 5 + 4 + 8 + 6) - 22
        );
    }

    #[test]
    fn hostile_letters_stay_on_their_line() {
        let hostile = "\x1b[2J\n".repeat(1000);
        for reason in [
            None,
            Some(KeptReason::Other(hostile.clone())),
            known(&hostile).reason,
        ] {
            let view = View::new(Letter {
                list: Raw::new(hostile.as_str()),
                entry: Raw::new(hostile.as_str()),
                reason,
            });
            let text = table(&[view], 0.0).to_string();
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
            assert_eq!(text.lines().count(), 5, "{text}");
        }
    }

    #[test]
    fn a_letter_without_a_reason_says_so() {
        let letter = Letter {
            reason: None,
            ..known("")
        };
        assert_eq!(View::new(letter).row(0.0)[3], NO_REASON);
    }
}
