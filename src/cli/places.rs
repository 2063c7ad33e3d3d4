//! Where the document of a vCon may be: Redis, and every storage of the configuration.

use std::fmt;

use super::shelf::Shelf;
use crate::config::Config;
use crate::failure::Failure;
use crate::queue::{Document, Documents, QueueError, Removed, Server};
use crate::settings::Settings;
use crate::vcon::VconId;

/// What Redis is called on the command line.
const REDIS: &str = "redis";

/// One place.
pub(super) enum Place<'a> {
    /// The Redis of the queues.
    Redis(&'a Settings),
    /// A storage.
    Storage(Shelf),
}

/// A document that was found.
pub(super) struct Found {
    pub document: Vec<u8>,
    /// Seconds until it expires, where it does.
    pub ttl: Option<u64>,
}

/// What became of a vCon at one place that was told to delete it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    /// It was there, and is not any more.
    Storage,
    /// As far as it was in Redis, it is not any more.
    Redis(Removed),
    /// It was not there.
    Nothing,
    /// It is not there any more. Whether it was, cannot be told.
    Unseen,
    /// It was handed on.
    HandedOn,
}

/// Why a place did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] QueueError),
    /// A storage failed.
    #[error(transparent)]
    Storage(#[from] Failure),
    /// What is there is no document.
    #[error("{0}")]
    Unusable(String),
}

impl Fault {
    /// Whether the place cannot say anything of any vCon at present.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Storage(failure) => failure.is_transient(),
            Self::Unusable(_) => false,
        }
    }
}

/// All places: Redis first, then the storages in the order of the file. With `names`, those only.
///
/// # Errors
/// A sentence on a name that is none of them.
pub(super) fn chosen<'a>(
    settings: &'a Settings,
    config: &Config,
    names: &[String],
) -> Result<Vec<Place<'a>>, String> {
    let storages: Vec<&str> = config.storages.keys().map(String::as_str).collect();
    let chosen = choose(&storages, names)?;
    let redis = chosen.redis.then_some(Place::Redis(settings));
    let meant = |name: &str| chosen.storages.contains(&name);
    let shelves = config.storages.values().filter(|it| meant(&it.name));
    let shelves = shelves.map(|it| Place::Storage(Shelf::open(it)));
    Ok(redis.into_iter().chain(shelves).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Chosen<'a> {
    redis: bool,
    storages: Vec<&'a str>,
}

fn choose<'a>(storages: &[&'a str], names: &[String]) -> Result<Chosen<'a>, String> {
    if names.is_empty() {
        return Ok(Chosen {
            redis: true,
            storages: storages.to_vec(),
        });
    }
    let mut chosen = Chosen {
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

impl Place<'_> {
    /// Whether documents can be got back from here.
    pub fn keeps_documents(&self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Storage(shelf) => shelf.keeps_documents(),
        }
    }

    /// The vCon's document, where it is here.
    pub fn get(&mut self, id: &VconId) -> Result<Option<Found>, Fault> {
        let shelf = match self {
            Self::Redis(settings) => return get_from_redis(settings, id),
            Self::Storage(shelf) => shelf,
        };
        let document = shelf.get(id)?;
        Ok(document.map(|document| Found {
            document: document.into_bytes(),
            ttl: None,
        }))
    }

    /// Removes the vCon from here.
    pub fn delete(&mut self, id: &VconId) -> Result<Deleted, Fault> {
        let shelf = match self {
            Self::Redis(settings) => {
                let removed = documents(settings)?.delete(id, &settings.sorted_set)?;
                return Ok(Deleted::Redis(removed));
            }
            Self::Storage(shelf) => shelf,
        };
        if !shelf.can_delete() {
            return Ok(Deleted::HandedOn);
        }
        if !shelf.keeps_documents() {
            shelf.delete(id)?;
            return Ok(Deleted::Unseen);
        }
        let was_there = match shelf.get(id) {
            Err(failure) if failure.is_transient() => return Err(failure.into()),
            // What cannot be read may well be deleted.
            Err(_) => true,
            Ok(document) => document.is_some(),
        };
        shelf.delete(id)?;
        Ok(if was_there {
            Deleted::Storage
        } else {
            Deleted::Nothing
        })
    }
}

fn get_from_redis(settings: &Settings, id: &VconId) -> Result<Option<Found>, Fault> {
    let kept = documents(settings)?.get(id)?;
    match kept.document {
        Document::Found(_, document) => Ok(Some(Found {
            document,
            ttl: kept.ttl,
        })),
        Document::Missing | Document::NotAnId => Ok(None),
        Document::Unusable(why) => Err(Fault::Unusable(why)),
    }
}

fn documents(settings: &Settings) -> Result<Documents, QueueError> {
    let lease = Server::new(&settings.redis_url)?.connect("conserver:documents")?;
    Ok(Documents::new(lease))
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(_) => f.write_str("Redis"),
            Self::Storage(shelf) => write!(f, "storage {}", shelf.name),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_are_chosen_by_their_names() {
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
            let expected = Chosen { redis, storages };
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
