//! `conserver dlq ls`: each dead letter, as a table or as JSON.

use std::io::{self, Write};

use clap::Args;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::groups;
use super::{DlqError, all_lists, connect, known_lists, load_plan, queue_named};
use crate::cli::output::{LONGEST_ERROR, align_right, eprint_line, time_and_age, truncated};
use crate::exit::Exit;
use crate::queue::{DeadLetter, StoredReason, may_hold_backlog};
use crate::settings::Settings;
use crate::visible::{printable, visible_json};

/// Rows of the table without `--count`.
const ROWS: u64 = 1000;

/// Dead letters read at once.
const PAGE: u64 = 100;

/// Which dead letters to list, and how.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only those of this ingress list, named as in config.yml or by its key, DLQ:<LIST>; or of a
    /// storage: storage:<NAME>
    list: Option<String>,

    /// List each dead letter instead of groups of those that failed alike
    ///
    /// Without a list, this also looks through all keys for dead letter queues of other lists. Otherwise: the lists
    /// and storages of config.yml, and all others that a daemon has had dead letters of. What others have put into
    /// queues of their own is only found by this, or by its name.
    #[arg(long)]
    all: bool,

    /// Each dead letter, but at most this many [default: 1000 in the table, all as JSON]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print one JSON object on each line: for each dead letter, or with --groups for each group
    #[arg(long)]
    json: bool,

    /// The groups, as without any other option
    #[arg(long, conflicts_with_all = ["all", "count"])]
    groups: bool,
}

impl LsArgs {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, DlqError> {
        let plan = load_plan(settings);
        let mut letters = connect(settings)?;
        let now = letters.now()?;
        let known = match self.all && self.list.is_none() {
            true => all_lists(&mut letters, plan.as_ref())?,
            false => known_lists(&mut letters, plan.as_ref())?,
        };
        let lists: Vec<_> = match &self.list {
            None => known.into_iter().collect(),
            Some(text) => vec![queue_named(&mut letters, text, &known)?],
        };
        let is_each = self.all || self.count.is_some() || self.json;
        if self.groups || !is_each {
            groups::list(&mut letters, plan.as_ref(), lists, self.json)?;
            return Ok(Exit::Ok);
        }
        let most = self
            .count
            .unwrap_or(if self.json { u64::MAX } else { ROWS });
        let (mut views, mut listed, mut all) = (Vec::new(), 0u64, 0u64);
        let mut out = io::stdout().lock();
        for list in lists {
            let Some(length) = letters.length(&list)? else {
                eprint_line(format_args!(
                    "DLQ:{list} is not a list: something else has the key"
                ));
                continue;
            };
            all = all.saturating_add(length);
            let defers = may_hold_backlog(&list, plan.as_ref());
            let mut offset = 0;
            while offset < length && listed < most {
                let page = PAGE.min(most - listed).min(length - offset);
                let some = letters.page(&list, offset, page)?;
                if some.is_empty() {
                    break;
                }
                offset += page;
                listed += some.len() as u64;
                let some = some
                    .into_iter()
                    .map(|letter| DeadLetterView::new(letter, defers));
                if self.json {
                    for view in some {
                        let json = serde_json::to_string(&view).map_err(io::Error::from)?;
                        writeln!(out, "{}", visible_json(&json))?;
                    }
                } else {
                    views.extend(some.map(DeadLetterView::of_row));
                }
            }
        }
        if !self.json && views.is_empty() {
            writeln!(out, "There are no dead letters")?;
        } else if !self.json {
            writeln!(out, "{}", table_or_pairs(&views, now))?;
        }
        out.flush()?;
        if listed < all && !self.json {
            let more = all - listed;
            eprint_line(format_args!(
                "{more} more are not shown (--count N, or --json for all of them)"
            ));
        }
        Ok(Exit::Ok)
    }
}

/// Tables and messages truncate entries that are no UUIDs to this.
pub(super) const LONGEST_ENTRY: usize = 60;

/// The narrowest column for errors in a table.
const NARROWEST_ERROR: usize = 24;

const NO_REASON: &str = "(no reason was kept)";

pub(super) const BACKLOG: &str = "(backlog: waits until the storage is available)";

const HEADER: [&str; 7] = [
    "UUID", "List", "Stage", "Error", "When", "Attempts", "Worker",
];

/// Why something is a dead letter, for people and programs.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct ReasonView {
    pub stage: Option<String>,
    /// The error, or the whole reason if another program wrote it.
    pub error: Option<String>,
    pub attempts: Option<u64>,
    pub worker: Option<String>,
    /// Seconds since 1970.
    pub at: Option<f64>,
}

impl ReasonView {
    /// Nothing is known without a reason.
    pub fn new(reason: Option<StoredReason>) -> Self {
        match reason {
            None => Self::default(),
            Some(StoredReason::Other(text)) => Self {
                error: Some(text),
                ..Self::default()
            },
            Some(StoredReason::Known {
                stage,
                error,
                attempts,
                worker,
                at,
            }) => Self {
                stage: Some(stage),
                error: Some(error),
                attempts: Some(attempts),
                worker: Some(worker),
                at: Some(at),
            },
        }
    }
}

/// A dead letter for people and programs.
#[derive(Debug, Serialize)]
pub(super) struct DeadLetterView {
    /// The entry; one that is no UUID is escaped, and commands take it in that form.
    pub uuid: String,
    /// The list, escaped in the same way.
    pub list: String,
    #[serde(flatten)]
    pub reason: ReasonView,
    /// No dead letter, but one of the backlog that waits for its storage.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backlog: bool,
}

impl DeadLetterView {
    /// `defers` says whether the queue may also hold a backlog.
    pub fn new(letter: DeadLetter, defers: bool) -> Self {
        Self {
            uuid: letter.entry.to_string(),
            list: letter.list.to_string(),
            backlog: defers && letter.reason.is_none(),
            reason: ReasonView::new(letter.reason),
        }
    }

    /// The same without what a row of a table does not show.
    fn of_row(mut self) -> Self {
        let error = self.reason.error.take();
        self.reason.error = error.map(|error| truncated(&error, LONGEST_ERROR));
        self
    }

    /// The error for people.
    pub fn error(&self) -> &str {
        let none = if self.backlog { BACKLOG } else { NO_REASON };
        self.reason.error.as_deref().unwrap_or(none)
    }

    fn row(&self, now: f64) -> [String; 7] {
        let text =
            |text: &Option<String>| printable(text.as_deref().unwrap_or_default()).into_owned();
        let when = self.reason.at.map(|at| time_and_age(at, now));
        [
            truncated(&self.uuid, LONGEST_ENTRY),
            truncated(&self.list, LONGEST_ENTRY),
            truncated(&text(&self.reason.stage), LONGEST_ENTRY),
            truncated(
                &printable(&truncated(self.error(), LONGEST_ERROR)),
                LONGEST_ERROR,
            ),
            when.unwrap_or_default(),
            self.reason
                .attempts
                .map(|n| n.to_string())
                .unwrap_or_default(),
            truncated(&text(&self.reason.worker), LONGEST_ENTRY),
        ]
    }
}

/// A table, in which errors get the width that the other columns leave; or two lines for each dead
/// letter if the terminal is too narrow for that.
fn table_or_pairs(views: &[DeadLetterView], now: f64) -> String {
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
        row[3] = truncated(&row[3], room);
    }
    table(rows)
}

/// Two lines: what and where; when and why.
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
    format!("{first}\n    {}", truncated(&second, room))
}

fn table(rows: Vec<[String; 7]>) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER)
        .add_rows(rows);
    align_right(&mut table, [5]);
    table.to_string()
}

/// The width that the other columns leave.
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
        let rows = [DeadLetterView::new(known("e"), true).row(1060.0)];
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
        let rows = vec![DeadLetterView::new(known(&"error ".repeat(50)), true).row(1060.0)];
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
            let view = DeadLetterView::new(
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
        assert_eq!(
            DeadLetterView::new(letter.clone(), false).row(0.0)[3],
            NO_REASON
        );
        assert_eq!(DeadLetterView::new(letter, true).row(0.0)[3], BACKLOG);
    }
}
