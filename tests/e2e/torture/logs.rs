//! What the daemons' logs tell of a run.

use std::collections::HashMap;

use super::INSTANCES;
use super::run::Run;

/// The length of a UUID as text.
const UUID: usize = 36;

/// What happened that can be seen in the logs alone.
#[derive(Default)]
pub struct Logs {
    /// How often the claim of a vCon of a list was returned after its worker's end, or after its
    /// daemon's lease ran out: its links are run again then.
    recovered: HashMap<(String, String), usize>,
    /// Finishes that found another document.
    pub merged: usize,
    /// vCons that a storage with `on_outage: defer` got from its queue.
    pub saved_later: usize,
    /// Claims that were gone when they were to be let go.
    pub not_ours: usize,
}

impl Logs {
    pub fn of(run: &Run) -> Self {
        let mut logs = Self::default();
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
        self.not_ours += counts("the claim was settled already");
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

    /// How many claims were returned.
    pub fn recoveries(&self) -> usize {
        self.recovered.values().sum()
    }

    /// How often a claim of this vCon was returned to this list.
    pub fn recoveries_of(&self, list: &str, id: &str) -> usize {
        let key = (list.to_owned(), id.to_owned());
        self.recovered.get(&key).copied().unwrap_or(0)
    }
}
