//! Tables for people, and the same figures for programs.

use std::fs;
use std::path::PathBuf;

use comfy_table::Table;
use serde_json::{Map, Value, json};

/// What has been measured.
pub struct Report {
    sections: Map<String, Value>,
}

impl Report {
    /// Nothing yet; sections that are not measured this time stay as they were.
    pub fn new() -> Self {
        let sections = fs::read_to_string(file())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        Self {
            sections: sections.unwrap_or_default(),
        }
    }

    /// Begins a section again.
    pub fn begin(&mut self, section: &str) {
        self.sections.insert(section.to_owned(), json!([]));
    }

    /// Adds the figures of one row.
    pub fn add(&mut self, section: &str, row: Value) {
        if let Some(Value::Array(rows)) = self.sections.get_mut(section) {
            rows.push(row);
        }
    }

    /// Writes everything to a file.
    pub fn save(&self) {
        let file = file();
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        let text = serde_json::to_string_pretty(&self.sections).expect("JSON");
        fs::write(&file, text).expect("a file");
    }
}

/// The figures of the last run.
pub fn last() -> Map<String, Value> {
    let file = file();
    let text = fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}; measure first", file.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn file() -> PathBuf {
    // The program that is measured lies in target/release.
    let program = PathBuf::from(env!("CARGO_BIN_EXE_conserver"));
    let target = program.ancestors().nth(2).expect("a target folder");
    target.join("bench/throughput.json")
}

/// An empty table, in Markdown.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}

/// Prints a table under its title, with what there is to know of it.
pub fn print(title: &str, table: &Table, remark: &str) {
    println!("\n{title}\n{table}\n{remark}");
}

/// Says what is being measured.
pub fn progress(text: &str) {
    eprintln!("{text}");
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The one below which this part of them lies; nothing of nothing.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
