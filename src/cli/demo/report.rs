//! What happened in the demonstration, read from the daemon's log and printed as a table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use comfy_table::Table;
use serde::Deserialize;

use super::super::shown::say_lines;

/// The fields of a log line that count here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    levelname: String,
    message: String,
    vcon_processing_time: Option<f64>,
    storage_name: Option<String>,
    storage_processing_time: Option<f64>,
}

/// The demonstration so far.
pub(super) struct Report {
    start: Instant,
    took: Duration,
    finished: usize,
    failed: usize,
    storages: BTreeMap<String, Vec<f64>>,
    last_words: String,
}

impl Report {
    /// Nothing has happened since `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            took: Duration::ZERO,
            finished: 0,
            failed: 0,
            storages: BTreeMap::new(),
            last_words: String::new(),
        }
    }

    /// Takes a line of the log into account.
    pub fn note(&mut self, text: &str) {
        let Ok(line) = serde_json::from_str::<Line>(text) else {
            text.clone_into(&mut self.last_words);
            return;
        };
        if line.vcon_processing_time.is_some() {
            if line.levelname == "ERROR" {
                self.failed += 1;
            } else {
                self.finished += 1;
            }
        }
        if let (Some(name), Some(seconds)) = (line.storage_name, line.storage_processing_time) {
            self.storages.entry(name).or_default().push(seconds);
        }
        self.last_words = line.message;
    }

    /// The vCons that have come to their end, good or bad.
    pub fn ended(&self) -> usize {
        self.finished + self.failed
    }

    /// The latest message of the log.
    pub fn last_words(&self) -> &str {
        &self.last_words
    }

    /// All is done.
    pub fn stop_clock(&mut self) {
        self.took = self.start.elapsed();
    }

    /// Whether each of `vcons` was finished.
    pub fn complete(&self, vcons: usize) -> Result<(), String> {
        if self.finished == vcons {
            return Ok(());
        }
        Err(format!("{} of {vcons} vCons were finished", self.finished))
    }

    /// Prints the table.
    pub fn print(&self, memory: &[u64], files: usize) {
        let seconds = self.took.as_secs_f64();
        let mut rows = vec![
            ("vCons finished".to_owned(), self.finished.to_string()),
            (
                "vCons in the dead letter queue".to_owned(),
                self.failed.to_string(),
            ),
            ("files stored".to_owned(), files.to_string()),
            (
                "seconds, start of the workers included".to_owned(),
                format!("{seconds:.2}"),
            ),
            (
                "vCons/s".to_owned(),
                format!("{:.0}", self.finished as f64 / seconds),
            ),
        ];
        for (name, times) in &self.storages {
            let (p50, p99) = (percentile(times, 0.50) * 1e3, percentile(times, 0.99) * 1e3);
            let text = format!("p50 {p50:.2} ms, p99 {p99:.2} ms");
            rows.push((format!("latency of storage {name}"), text));
        }
        if let Some(most) = memory.iter().max() {
            let average = memory.iter().sum::<u64>() / memory.len() as u64;
            let text = format!(
                "{:.1} MB, most {:.1} MB",
                megabytes(average),
                megabytes(*most)
            );
            rows.push((
                format!("memory per worker (PSS, {} workers)", memory.len()),
                text,
            ));
        }
        let mut table = Table::new();
        for (name, value) in rows {
            table.add_row([name, value]);
        }
        say_lines(table);
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The value below which the given share of `times` lies (nearest rank).
fn percentile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (percentile(&times, 0.50), percentile(&times, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!(
            (percentile(&[7.0], 0.50), percentile(&[], 0.99)),
            (7.0, 0.0)
        );
    }
}
