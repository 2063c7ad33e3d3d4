//! A storage as commands ask it: one question after the other, from one thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::ModuleConfig;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::storage::Storage;
use crate::vcon::VconId;

/// A storage of the configuration.
pub(super) struct Shelf {
    /// Its name in `config.yml`.
    pub name: String,
    storage: Box<dyn Storage>,
}

impl Shelf {
    /// One that connects when first asked.
    pub fn open(config: &ModuleConfig<dyn Storage>) -> Self {
        Self {
            name: config.name.clone(),
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
        self.ask(|storage| storage.get(id, Deadline::NONE))
    }

    /// Removes what it has of the vCon.
    pub fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.ask(|storage| storage.delete(id))
    }

    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut dyn Storage) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut once = || {
            let asked = catch_unwind(AssertUnwindSafe(|| question(self.storage.as_mut())));
            asked.unwrap_or_else(|_| Err(Failure::permanent("it panicked")))
        };
        match once() {
            // A connection may have been closed for being idle: the next one is a new one.
            Err(failure) if failure.is_transient() => once(),
            answer => answer,
        }
    }
}
