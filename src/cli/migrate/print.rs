//! The plan for people: tables, and steps with their commands.

use std::fmt::Write as _;

use comfy_table::Table;

use super::deployment::Generation;
use super::environment::{Meaning, quoted};
use super::plan::{Plan, Runs};
use super::steps::Step;
use crate::cli::output::{align_right, counted, table};
use crate::queue::QueueKind;
use crate::visible::printable;

/// The width of tables that no terminal shows.
const WIDTH: u16 = 140;

/// The whole text.
pub(super) fn text(plan: &Plan) -> String {
    let mut text = format!(
        "Plan for the switch of {} with the variables of {}\n",
        plan.config_file,
        plan.env_file.as_deref().unwrap_or("this environment")
    );
    section(&mut text, "What runs where", modules(plan));
    if !plan.warnings.is_empty() {
        lines(
            &mut text,
            "What has no effect in config.yml, or hardly the one that is meant",
            &plan.warnings,
        );
    }
    section(
        &mut text,
        "What differs for this deployment",
        differences(plan),
    );
    if !plan.variables.is_empty() {
        section(&mut text, "What the variables mean", variables(plan));
    }
    waiting(&mut text, plan);
    heading(&mut text, "/etc/conserver/conserver.env");
    for line in &plan.environment {
        if !line.why.is_empty() {
            let _ = writeln!(text, "  # {}", line.why);
        }
        let value = line.value.as_deref().map(quoted);
        let _ = writeln!(
            text,
            "  {}={}",
            line.name,
            value.as_deref().unwrap_or("***")
        );
    }
    let wrong = plan.variables.iter();
    for note in wrong.filter(|note| note.means == Meaning::Wrong) {
        let why = printable(&note.note);
        let _ = writeln!(
            text,
            "  # {} is left out, its value is refused: {why}",
            note.name
        );
    }
    steps(&mut text, "The switch", &plan.switch);
    steps(&mut text, "The way back", &plan.way_back);
    match plan.works {
        true => text.push_str("\nNothing keeps conserver from working here.\n"),
        false => lines(&mut text, "What would not work", &plan.problems),
    }
    text.truncate(text.trim_end().len());
    text
}

fn heading(text: &mut String, title: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "\n{title}:");
}

fn section(text: &mut String, title: &str, mut table: Table) {
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    heading(text, title);
    let _ = writeln!(text, "{table}");
}

fn lines(text: &mut String, title: &str, lines: &[String]) {
    heading(text, title);
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

fn modules(plan: &Plan) -> Table {
    let mut table = table(&["entry", "module", "runs", "chains", ""]);
    for row in &plan.modules {
        let runs = match row.runs {
            Runs::BuiltIn => "built in",
            Runs::Python => "in Python",
            Runs::Missing => "MISSING",
            Runs::Refused => "REFUSED",
        };
        let chains = match (row.section, &row.chains[..]) {
            ("links" | "storages", []) => "none".to_owned(),
            ("links" | "storages", chains) => chains.join(", "),
            _ => String::new(),
        };
        let entry = format!("{}.{}", row.section, row.name);
        table.add_row(
            [
                entry,
                row.module.clone(),
                runs.to_owned(),
                chains,
                row.note.clone(),
            ]
            .map(fit),
        );
    }
    table
}

fn differences(plan: &Plan) -> Table {
    let mut table = table(&["what", "existing worker", "conserver", "concerns"]);
    for row in &plan.differences {
        let concerns = match &row.concerns[..] {
            [] => "all".to_owned(),
            concerns => concerns.join(", "),
        };
        let cells = [row.what, row.existing, row.conserver].map(str::to_owned);
        let [what, existing, conserver] = cells;
        table.add_row([what, existing, conserver, concerns].map(fit));
    }
    table
}

fn variables(plan: &Plan) -> Table {
    let mut table = table(&["variable", "is", ""]);
    for note in &plan.variables {
        let means = match note.means {
            Meaning::Setting => "a setting",
            Meaning::Wrong => "WRONG",
            Meaning::Configuration => "for config.yml",
            Meaning::Modules => "for modules",
            Meaning::NoEffect => "without effect",
            Meaning::Misspelt => "MISSPELT?",
            Meaning::Unknown => "unknown",
        };
        table.add_row([note.name.clone(), means.to_owned(), note.note.clone()].map(fit));
    }
    table
}

fn waiting(text: &mut String, plan: &Plan) {
    let waiting = &plan.waiting;
    let title = format!("What waits in {}", waiting.redis);
    if let Some(why) = &waiting.error {
        heading(text, &title);
        let _ = writeln!(text, "  unknown: {why}");
    } else {
        let mut table = table(&["key", "is", "entries", ""]);
        align_right(&mut table, [2]);
        for row in &waiting.lists {
            let kind = match row.kind {
                QueueKind::Ingress => "ingress list",
                QueueKind::Egress => "egress list",
                QueueKind::DeadLetters => "dead letters",
                QueueKind::StorageDeadLetters => "dead letters of a storage",
                QueueKind::Follower => "taken by a follower",
            };
            let entries = row
                .entries
                .map_or("?".to_owned(), |entries| entries.to_string());
            table.add_row([row.key.clone(), kind.to_owned(), entries, row.note.clone()].map(fit));
        }
        section(text, &title, table);
    }
    if let Some(documents) = &waiting.documents {
        let _ = writeln!(
            text,
            "  documents looked at: {} RedisJSON, {} plain strings, {} unusable; JSON bodies in them: {} as text, \
             {} as values",
            documents.redis_json,
            documents.plain,
            documents.other,
            documents.bodies_as_text,
            documents.bodies_as_values,
        );
        if !waiting.complete {
            text.push_str(
                "  Not every key was looked at: there may be further dead letter queues.\n",
            );
        }
    }
    for storage in &waiting.replay_locks {
        let _ = writeln!(
            text,
            "  dead letters of storage {storage} are being replayed: DLQ:storage:{storage}:replay-lock is there"
        );
    }
    for row in &waiting.claims {
        let _ = writeln!(
            text,
            "  conserver {} has {}: it works here, or was killed",
            row.instance,
            counted(row.entries, "claim")
        );
    }
    let is = match plan.generation.is {
        Generation::Older => "the older one (RedisJSON documents)",
        Generation::Newer => "the newer one (plain documents)",
        Generation::Mixed => "not clear: say which it is with --generation",
        Generation::Unknown => "unknown: say which it is with --generation",
    };
    let _ = writeln!(
        text,
        "  generation of vCon Server: {is}; {}",
        plan.generation.because
    );
}

fn steps(text: &mut String, title: &str, steps: &[Step]) {
    heading(text, title);
    for (index, step) in steps.iter().enumerate() {
        let _ = writeln!(text, "{:>2}. {}", index + 1, step.title);
        for note in &step.notes {
            for line in wrapped(note, 100) {
                let _ = writeln!(text, "    {line}");
            }
        }
        for command in &step.commands {
            let _ = writeln!(text, "      {command}");
        }
    }
}

/// The text in lines of at most `width` characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A cell of one line.
fn fit(cell: String) -> String {
    printable(&cell).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_broken_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible", 4), ["incomprehensible"]);
    }
}
