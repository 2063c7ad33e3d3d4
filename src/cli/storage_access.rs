//! How commands reach documents: in the Redis of the queues, and in each storage of the configuration.
//!
//! [`StorageHandle`] asks one storage from one thread; [`DocumentStore`] is a storage or Redis, as
//! `get` and `delete` name them with `--from`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::NaiveDate;

use crate::config::{Config, StorageConfig};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::queue::{Document, Documents, QueueError, Removed, Server};
use crate::settings::Settings;
use crate::storage::{self, Storage};
use crate::vcon::{Leaving, VconId};

/// A storage of the configuration.
pub(super) struct StorageHandle {
    /// Its name in `config.yml`.
    pub name: String,
    config: Box<StorageConfig>,
    storage: Box<dyn Storage>,
}

impl StorageHandle {
    /// A handle that connects when it is first used.
    pub fn open(config: &StorageConfig) -> Self {
        Self {
            name: config.name.clone(),
            config: Box::new(config.clone()),
            storage: config.open_storage(),
        }
    }

    /// Whether documents can be read from it.
    pub fn keeps_documents(&self) -> bool {
        self.storage.keeps_documents()
    }

    /// Whether documents can be deleted from it.
    pub fn can_delete(&self) -> bool {
        self.storage.can_delete()
    }

    /// The document, if it has one.
    pub fn get(&mut self, id: &VconId) -> Result<Option<String>, Failure> {
        self.call_twice(|storage| storage::get(storage, id, Deadline::NONE))
    }

    /// Whether it has one; the day of its `created_at` tells where to look first.
    pub fn has(&mut self, id: &VconId, day: Option<NaiveDate>) -> Result<bool, Failure> {
        self.call_twice(|storage| storage.has(id, day, Deadline::NONE))
    }

    /// Whether it finds a vCon sooner if it knows the day.
    pub fn is_kept_by_day(&self) -> bool {
        self.storage.is_kept_by_day()
    }

    /// Deletes the vCon.
    pub fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.call_twice(|storage| storage.delete(id))
    }

    /// Whether it could be used now.
    pub fn probe(&mut self) -> Result<(), Failure> {
        self.call_twice(|storage| storage.probe())
    }

    /// Saves a vCon, in one attempt.
    pub fn save(&mut self, vcon: &Leaving) -> Result<(), Failure> {
        let vcon = vcon.of(self.config.is_downgraded());
        self.call(&mut |storage| storage.save(vcon, Deadline::NONE))
    }

    /// Tries a second time after a transient failure: the server may have closed an idle connection.
    fn call_twice<T>(
        &mut self,
        mut operation: impl FnMut(&mut dyn Storage) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self.call(&mut operation) {
            Err(failure) if failure.is_transient() => self.call(&mut operation),
            result => result,
        }
    }

    fn call<T>(
        &mut self,
        operation: &mut dyn FnMut(&mut dyn Storage) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let result = catch_unwind(AssertUnwindSafe(|| operation(self.storage.as_mut())));
        result.unwrap_or_else(|_| {
            // The panic may have left it broken.
            self.storage = self.config.open_storage();
            Err(Failure::permanent("it panicked"))
        })
    }
}

/// The name of Redis on the command line.
const REDIS: &str = "redis";

/// A place that may have the document of a vCon.
pub(super) enum DocumentStore<'a> {
    /// The Redis of the queues.
    Redis(&'a Settings),
    /// A storage.
    Storage(StorageHandle),
}

/// A document that was found.
pub(super) struct FoundDocument {
    pub document: Vec<u8>,
    /// Seconds until it expires, if it does.
    pub ttl: Option<u64>,
}

/// The result of deleting a vCon in one store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// The storage had it, and has it no longer.
    Storage,
    /// Redis has neither document nor entry any longer.
    Redis(Removed),
    /// It was not there.
    NotThere,
    /// The storage has it no longer, and cannot tell whether it had it.
    Unknown,
    /// The storage hands documents on, and cannot delete them.
    HandedOn,
}

/// Why a store could not be read or deleted from.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] QueueError),
    /// A storage failed.
    #[error(transparent)]
    Storage(#[from] Failure),
    /// Redis has something other than a document under the key.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    /// Whether the store is out of reach, for any vCon.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Storage(failure) => failure.is_transient(),
            Self::Unusable(_) => false,
        }
    }
}

/// All stores: Redis first, then the storages in the order of the file. With `names`, only those.
///
/// # Errors
/// A message for a name that is none of them.
pub(super) fn select_stores<'a>(
    settings: &'a Settings,
    config: &Config,
    names: &[String],
) -> Result<Vec<DocumentStore<'a>>, String> {
    let storages: Vec<&str> = config.storages.keys().map(String::as_str).collect();
    let chosen = choose(&storages, names)?;
    let redis = chosen.redis.then_some(DocumentStore::Redis(settings));
    let meant = |name: &str| chosen.storages.contains(&name);
    let storages = config.storages.values().filter(|it| meant(&it.name));
    let storages = storages.map(|it| DocumentStore::Storage(StorageHandle::open(it)));
    Ok(redis.into_iter().chain(storages).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct StoreChoice<'a> {
    redis: bool,
    storages: Vec<&'a str>,
}

fn choose<'a>(storages: &[&'a str], names: &[String]) -> Result<StoreChoice<'a>, String> {
    if names.is_empty() {
        return Ok(StoreChoice {
            redis: true,
            storages: storages.to_vec(),
        });
    }
    let mut chosen = StoreChoice {
        redis: false,
        storages: Vec::new(),
    };
    for name in names {
        let is_meant = |storage: &&&str| {
            // A storage may be called like Redis; its path in the file tells them apart.
            name == **storage || name.strip_prefix("storages.") == Some(**storage)
        };
        if name == REDIS {
            chosen.redis = true;
        } else if let Some(storage) = storages.iter().find(is_meant) {
            chosen.storages.push(storage);
        } else {
            return Err(unknown(name, storages));
        }
    }
    Ok(chosen)
}

fn unknown(name: &str, storages: &[&str]) -> String {
    let named = storages.iter().map(|storage| match *storage {
        REDIS => format!("storages.{REDIS}"),
        storage => storage.to_owned(),
    });
    let known: Vec<String> = std::iter::once(REDIS.to_owned()).chain(named).collect();
    let known = known.join(", ");
    format!("--from {name}: there is no such storage in the configuration; there is {known}")
}

impl DocumentStore<'_> {
    /// Whether documents can be read from it.
    pub fn keeps_documents(&self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Storage(handle) => handle.keeps_documents(),
        }
    }

    /// The vCon's document, if it is there.
    pub fn get(&mut self, id: &VconId) -> Result<Option<FoundDocument>, StoreError> {
        let handle = match self {
            Self::Redis(settings) => return get_from_redis(settings, id),
            Self::Storage(handle) => handle,
        };
        let document = handle.get(id)?;
        Ok(document.map(|document| FoundDocument {
            document: document.into_bytes(),
            ttl: None,
        }))
    }

    /// Deletes the vCon.
    pub fn delete(&mut self, id: &VconId) -> Result<Deletion, StoreError> {
        let handle = match self {
            Self::Redis(settings) => {
                let removed = documents(settings)?.delete(id, &settings.sorted_set)?;
                return Ok(Deletion::Redis(removed));
            }
            Self::Storage(handle) => handle,
        };
        if !handle.can_delete() {
            return Ok(Deletion::HandedOn);
        }
        if !handle.keeps_documents() {
            handle.delete(id)?;
            return Ok(Deletion::Unknown);
        }
        let was_there = match handle.get(id) {
            Err(failure) if failure.is_transient() => return Err(failure.into()),
            // A document that cannot be read can be deleted.
            Err(_) => true,
            Ok(document) => document.is_some(),
        };
        handle.delete(id)?;
        Ok(if was_there {
            Deletion::Storage
        } else {
            Deletion::NotThere
        })
    }
}

fn get_from_redis(settings: &Settings, id: &VconId) -> Result<Option<FoundDocument>, StoreError> {
    let kept = documents(settings)?.get(id)?;
    match kept.document {
        Document::Found(_, document) => Ok(Some(FoundDocument {
            document,
            ttl: kept.ttl,
        })),
        Document::Missing | Document::NotAnId => Ok(None),
        Document::Unusable(why) => Err(StoreError::Unusable(why)),
    }
}

fn documents(settings: &Settings) -> Result<Documents, QueueError> {
    let connection = Server::new(&settings.redis_url)?.connect("conserver:documents")?;
    Ok(Documents::new(connection))
}

impl fmt::Display for DocumentStore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(_) => f.write_str("Redis"),
            Self::Storage(handle) => write!(f, "storage {}", handle.name),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_chosen_by_their_names() {
        let storages = ["pg", "redis", "storages.pg"];
        for (names, redis, chosen) in [
            (&[][..], true, &storages[..]),
            (&["redis"], true, &[]),
            (&["storages.redis"], false, &["redis"]),
            (&["pg", "redis"], true, &["pg"]),
            (&["storages.storages.pg"], false, &["storages.pg"]),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let storages = chosen.to_vec();
            let expected = StoreChoice { redis, storages };
            assert_eq!(
                choose(&["pg", "redis", "storages.pg"], &names),
                Ok(expected)
            );
        }
        for name in ["s3", "Redis", "", "storages.", "storages.s3"] {
            let said = choose(&["pg", "redis"], &[name.to_owned()]).unwrap_err();
            assert!(
                said.contains("there is redis, pg, storages.redis"),
                "{said}"
            );
        }
    }
}
