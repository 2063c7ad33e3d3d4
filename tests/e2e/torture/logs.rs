//! What the daemons' logs tell of a run, and the journal of Redis.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::INSTANCES;
use super::run::Run;
use crate::harness::Redis;

/// The length of a UUID as text.
const UUID: usize = 36;

/// What happened that can be seen in the logs alone.
#[derive(Default)]
pub struct Logs {
    /// How often the claim of a vCon of a list was returned after its worker's end, or after its
    /// daemon's lease ran out: its links are run again then.
    recovered: HashMap<(String, String), usize>,
    /// How often a death or a lapse was counted for a vCon. There is no line in a log if whoever
    /// returned the claim was killed before it could tell, or did not get the answer of Redis.
    counted: HashMap<String, usize>,
    /// Finishes that found another document.
    pub merged: usize,
    /// vCons that a storage with `on_outage: defer` got from its queue.
    pub saved_later: usize,
    /// Claims that were gone when they were to be let go.
    pub not_ours: usize,
}

impl Logs {
    pub fn of(run: &Run, redis: &Redis) -> Self {
        let mut logs = Self::default();
        let folder = redis.folder().join("appendonlydir");
        for file in folder.read_dir().expect("the journal").flatten() {
            logs.read_journal(&file.path());
        }
        for name in INSTANCES {
            let text = run.kept(&format!("{name}.log"));
            text.lines().for_each(|line| logs.read(line));
        }
        logs
    }

    fn read(&mut self, line: &str) {
        let counts = |text: &str| usize::from(line.contains(text));
        self.merged += counts("was changed while it was in work");
        self.saved_later += counts("left the backlog of");
        self.not_ours += counts("the claim was released already");
        let ends = [", left behind by a worker", ", claimed by a daemon whose"];
        let Some(end) = ends.iter().find_map(|text| line.find(text)) else {
            return;
        };
        let id = end.checked_sub(UUID).and_then(|start| line.get(start..end));
        let list = line.split_once("(list ").map(|(_, rest)| rest);
        let list = list.and_then(|rest| rest.split(',').next());
        if let (Some(id), Some(list)) = (id, list) {
            let key = (list.to_owned(), id.to_owned());
            *self.recovered.entry(key).or_default() += 1;
        }
    }

    /// Counts what `HINCRBY conserver:deaths <UUID> 1` and its like have done.
    fn read_journal(&mut self, path: &Path) {
        let file = BufReader::new(File::open(path).expect("the journal"));
        let mut lines = file.split(b'\n').map(|line| line.expect("the journal"));
        let mut is_increase = false;
        while let Some(line) = lines.next() {
            match line.trim_ascii_end() {
                b"HINCRBY" => is_increase = true,
                b"conserver:deaths" | b"conserver:lapses" if is_increase => {
                    // Behind its length.
                    let id = lines.nth(1).unwrap_or_default();
                    let id = String::from_utf8_lossy(id.trim_ascii_end()).into_owned();
                    *self.counted.entry(id).or_default() += 1;
                }
                text if text.starts_with(b"$") => {}
                _ => is_increase = false,
            }
        }
    }

    /// How many claims were returned.
    pub fn recoveries(&self) -> usize {
        self.recovered.values().sum()
    }

    /// How often a claim of this vCon may have been returned to this list.
    pub fn recoveries_of(&self, list: &str, id: &str) -> usize {
        let key = (list.to_owned(), id.to_owned());
        let told = self.recovered.get(&key).copied().unwrap_or(0);
        told.max(self.counted.get(id).copied().unwrap_or(0))
    }
}
