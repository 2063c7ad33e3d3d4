//! The storages of all chains, asked one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::Config;
use crate::failure::Failure;
use crate::storage::Storage;
use crate::vcon::VconId;

/// The storages in which a vCon may be.
pub(super) struct Shelves(Vec<Shelf>);

struct Shelf {
    name: String,
    storage: Box<dyn Storage>,
    found: u64,
}

impl Shelves {
    /// Those that a chain writes to, in the order of the configuration. Which chain a vCon went
    /// through is not known, so any of them counts.
    pub fn open(config: &Config) -> Self {
        let is_used = |name: &String| {
            let mut chains = config.chains.iter();
            chains.any(|chain| chain.storages.contains(name))
        };
        let used = config.storages.iter().filter(|(name, _)| is_used(name));
        Self(
            used.map(|(name, storage)| Shelf {
                name: name.clone(),
                storage: storage.open_storage(),
                found: 0,
            })
            .filter(|shelf| shelf.storage.keeps_documents())
            .collect(),
        )
    }

    /// Makes sure that each of them answers.
    pub fn answer(&mut self) -> Result<(), (String, Failure)> {
        let nobody = VconId::random();
        self.0
            .iter_mut()
            .try_for_each(|shelf| shelf.has(&nobody).map(|_| ()))
    }

    /// Whether one of them has the vCon.
    pub fn have(&mut self, id: &VconId) -> Result<bool, (String, Failure)> {
        for shelf in &mut self.0 {
            if shelf.has(id)? {
                shelf.found += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many vCons were found in each.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.0.iter();
        counts
            .map(|shelf| (shelf.name.clone(), shelf.found))
            .collect()
    }
}

impl Shelf {
    fn has(&mut self, id: &VconId) -> Result<bool, (String, Failure)> {
        let mut answer = self.ask(id);
        if answer.as_ref().is_err_and(Failure::is_transient) {
            // A connection may have been closed for being idle: the next one is a new one.
            answer = self.ask(id);
        }
        answer.map_err(|failure| (self.name.clone(), failure))
    }

    fn ask(&mut self, id: &VconId) -> Result<bool, Failure> {
        let asked = catch_unwind(AssertUnwindSafe(|| self.storage.get(id)));
        let answer = asked.unwrap_or_else(|_| Err(Failure::permanent("it panicked")));
        answer.map(|document| document.is_some())
    }
}
