//! What followers have done since the monitor started, for those who ask it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What one follower has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// vCons handed in.
    pub pulled: u64,
    /// UUIDs that went to the dead letter queue.
    pub dead_lettered: u64,
    /// How often something did not work.
    pub failures: u64,
    /// UUIDs whose documents were still to be fetched at the last look.
    pub waiting: u64,
    /// What does not work at present.
    pub error: Option<String>,
}

/// The tallies of all followers by name; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<BTreeMap<String, Tally>>>);

impl Tallies {
    /// Changes the tally of one follower.
    pub(super) fn note(&self, name: &str, change: impl FnOnce(&mut Tally)) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(tallies.entry(name.to_owned()).or_default());
    }

    /// Forgets all but these, and shows each of them from now on.
    pub(super) fn keep_only(&self, names: &[&str]) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.retain(|name, _| names.contains(&name.as_str()));
        for name in names {
            tallies.entry((*name).to_owned()).or_default();
        }
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<String, Tally> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
