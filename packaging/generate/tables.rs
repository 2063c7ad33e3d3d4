//! The tables of the manual that come from the code, between marks such as `<!-- settings -->`.

use std::error::Error;
use std::fs;

use clap::{Arg, Command};
use conserver::cli::migrate;
use conserver::monitor::server::metrics;
use conserver::settings;
use serde_json::Value;

use super::manual;

/// What stands between a pair of marks, the page that has it, and what it should be.
pub struct Generated {
    /// The name in the marks.
    pub mark: &'static str,
    /// The file in packaging/manual.
    pub page: &'static str,
    /// The table as Markdown.
    pub table: String,
}

/// Every table that comes from the code.
pub fn generated() -> Vec<Generated> {
    let table = |mark, page, table| Generated { mark, page, table };
    vec![
        table(
            "settings",
            "conserver-settings.7.md",
            settings::markdown_table(),
        ),
        table(
            "ignored-variables",
            "conserver-settings.7.md",
            settings::ignored_markdown_table(),
        ),
        table(
            "metrics",
            "conserver-operations.7.md",
            metrics::markdown_table(),
        ),
        table(
            "differences",
            "conserver-migration.7.md",
            migrate::markdown_table(),
        ),
        table("dashboard", "conserver-operations.7.md", dashboard()),
        table("commands", "conserver.1.md", commands()),
    ]
}

/// What stands between two marks, each on a line of its own.
pub fn between<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<!-- {mark} -->\n"))?;
    let (inner, _) = rest.split_once(&format!("<!-- /{mark} -->\n"))?;
    Some(inner)
}

/// Writes the tables into their pages.
///
/// # Errors
/// Names the page and the marks that it lacks.
pub fn update() -> Result<(), Box<dyn Error>> {
    for Generated { mark, page, table } in generated() {
        let path = manual::folder().join(page);
        let text = fs::read_to_string(&path)?;
        let old = between(&text, mark)
            .ok_or_else(|| format!("{page} has no lines <!-- {mark} --> and <!-- /{mark} -->"))?;
        let marked = |inner: &str| format!("<!-- {mark} -->\n{inner}<!-- /{mark} -->\n");
        fs::write(&path, text.replace(&marked(old), &marked(&table)))?;
    }
    Ok(())
}

/// Each panel of the dashboard, in its row, and what it shows.
fn dashboard() -> String {
    let text = include_str!("../prometheus/dashboard.json");
    // If it is no JSON, the table is empty, and a test tells.
    let dashboard: Value = serde_json::from_str(text).unwrap_or_default();
    let panels = dashboard["panels"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut table = "| row | panel | shows |\n|---|---|---|\n".to_owned();
    let mut row = "";
    for panel in panels {
        let title = panel["title"].as_str().unwrap_or_default();
        if panel["type"] == "row" {
            row = title;
            continue;
        }
        let shows = panel["description"].as_str().unwrap_or_default();
        table += &format!("| {row} | {title} | {shows} |\n");
        // Each row is named once.
        row = "";
    }
    table
}

/// Each command with its options, and what it does.
fn commands() -> String {
    let mut program = conserver::cli::command().disable_help_subcommand(true);
    program.build();
    let mut text = String::new();
    add(&program, &mut text);
    text
}

fn add(parent: &Command, text: &mut String) {
    for command in manual::shown(parent) {
        if command.has_subcommands() {
            add(command, text);
            continue;
        }
        let mut usage = command.get_bin_name().unwrap_or_default().to_owned();
        for argument in command.get_arguments().filter(|it| is_own(it)) {
            usage += &format!(" {}", spelt(argument));
        }
        let about = command.get_about().map(ToString::to_string);
        *text += &format!("- `{usage}`\\\n  {}\n", about.unwrap_or_default());
    }
}

/// Whether it is an argument of this command alone.
fn is_own(argument: &Arg) -> bool {
    !argument.is_hide_set()
        && !argument.is_global_set()
        && !["help", "version"].contains(&argument.get_id().as_str())
}

/// An argument as in a synopsis.
fn spelt(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    let range = argument.get_num_args().unwrap_or_default();
    let mut value = names.join(" ");
    if range.max_values() > names.len() {
        value += "…";
    }
    let text = match argument.get_long() {
        Some(long) if !range.takes_values() => format!("--{long}"),
        Some(long) if range.min_values() == 0 => format!("--{long} [{value}]"),
        Some(long) => format!("--{long} {value}"),
        None => value,
    };
    if argument.is_required_set() {
        text
    } else {
        format!("[{text}]")
    }
}
