//! A storage as commands ask it: one question after the other, from one thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::NaiveDate;

use crate::config::StorageConfig;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::storage::{self, Storage};
use crate::vcon::{Leaving, VconId};

/// A storage of the configuration.
pub(super) struct Shelf {
    /// Its name in `config.yml`.
    pub name: String,
    config: Box<StorageConfig>,
    storage: Box<dyn Storage>,
}

impl Shelf {
    /// One that connects when first asked.
    pub fn open(config: &StorageConfig) -> Self {
        Self {
            name: config.name.clone(),
            config: Box::new(config.clone()),
            storage: config.open_storage(),
        }
    }

    /// Whether it can be asked for a document.
    pub fn keeps_documents(&self) -> bool {
        self.storage.keeps_documents()
    }

    /// Whether what it was given can be removed again.
    pub fn can_delete(&self) -> bool {
        self.storage.can_delete()
    }

    /// The document, where it has one.
    pub fn get(&mut self, id: &VconId) -> Result<Option<String>, Failure> {
        self.ask(|storage| storage::get(storage, id, Deadline::NONE))
    }

    /// Whether it has one; the day of its `created_at` tells where to look first.
    pub fn has(&mut self, id: &VconId, day: Option<NaiveDate>) -> Result<bool, Failure> {
        self.ask(|storage| storage.has(id, day, Deadline::NONE))
    }

    /// Whether it finds a vCon sooner if it knows the day.
    pub fn is_kept_by_day(&self) -> bool {
        self.storage.is_kept_by_day()
    }

    /// Removes what it has of the vCon.
    pub fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.ask(|storage| storage.delete(id))
    }

    /// Whether it could be used now.
    pub fn probe(&mut self) -> Result<(), Failure> {
        self.ask(|storage| storage.probe())
    }

    /// Saves a vCon; tries once.
    pub fn save(&mut self, vcon: &Leaving) -> Result<(), Failure> {
        let vcon = vcon.of(self.config.is_downgraded());
        self.once(&mut |storage| storage.save(vcon, Deadline::NONE))
    }

    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut dyn Storage) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self.once(&mut question) {
            // A connection may have been closed for being idle: the next one is a new one.
            Err(failure) if failure.is_transient() => self.once(&mut question),
            answer => answer,
        }
    }

    fn once<T>(
        &mut self,
        question: &mut dyn FnMut(&mut dyn Storage) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let asked = catch_unwind(AssertUnwindSafe(|| question(self.storage.as_mut())));
        asked.unwrap_or_else(|_| {
            // What a panic leaves behind is not used again.
            self.storage = self.config.open_storage();
            Err(Failure::permanent("it panicked"))
        })
    }
}
