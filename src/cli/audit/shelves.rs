//! The storages of all chains, asked one after the other.

use chrono::NaiveDate;

use crate::cli::shelf::Shelf;
use crate::config::Config;
use crate::failure::Failure;
use crate::vcon::VconId;

/// The storages in which a vCon may be.
pub(super) struct Shelves(Vec<Counted>);

struct Counted {
    shelf: Shelf,
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
            used.map(|(_, storage)| Shelf::open(storage))
                .filter(Shelf::keeps_documents)
                .map(|shelf| Counted { shelf, found: 0 })
                .collect(),
        )
    }

    /// Makes sure that each of them answers.
    pub fn answer(&mut self) -> Result<(), (String, Failure)> {
        let nobody = VconId::random();
        self.0
            .iter_mut()
            .try_for_each(|shelf| shelf.has(&nobody, None).map(|_| ()))
    }

    /// Whether one of them finds a vCon sooner if it knows the day.
    pub fn want_days(&self) -> bool {
        self.0.iter().any(|counted| counted.shelf.is_kept_by_day())
    }

    /// Whether one of them has the vCon, which is probably of this day.
    pub fn have(&mut self, id: &VconId, day: Option<NaiveDate>) -> Result<bool, (String, Failure)> {
        for shelf in &mut self.0 {
            if shelf.has(id, day)? {
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
            .map(|counted| (counted.shelf.name.clone(), counted.found))
            .collect()
    }
}

impl Counted {
    fn has(&mut self, id: &VconId, day: Option<NaiveDate>) -> Result<bool, (String, Failure)> {
        let has = self.shelf.has(id, day);
        has.map_err(|failure| (self.shelf.name.clone(), failure))
    }
}
