//! A step of a chain that may be away: a link or a storage.

use std::fmt;
use std::sync::Arc;

use crate::config::{Chain, Config};

/// A link or a storage, by its name in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// A link.
    Link(String),
    /// A storage.
    Storage(String),
}

impl Stage {
    /// Whether the chain needs it.
    pub fn is_in(&self, chain: &Chain) -> bool {
        match self {
            Self::Link(name) => chain.links.contains(name),
            Self::Storage(name) => chain.storages.contains(name),
        }
    }

    /// The names of the chains in service that need it.
    pub fn chains(&self, config: &Arc<Config>) -> Vec<String> {
        let chains = config.chains.iter();
        chains
            .filter(|chain| chain.enabled && self.is_in(chain))
            .map(|chain| chain.name.clone())
            .collect()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Storage(name) => write!(f, "storage {name}"),
        }
    }
}
