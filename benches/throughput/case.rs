//! What is measured: a chain with its links and storages.

use serde_json::{Value, json};

use super::servers::Servers;

/// A storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    File,
    Postgres,
    S3,
}

/// A chain.
#[derive(Clone, Copy)]
pub struct Case {
    /// What tables call it.
    pub name: &'static str,
    /// Whether a link tags every vCon.
    pub tag: bool,
    /// Where vCons are stored, the slowest last: in the floor at once, that one needs no waking.
    pub stores: &'static [Store],
    /// Whether at the same time.
    pub parallel: bool,
}

const fn case(name: &'static str, tag: bool, stores: &'static [Store], parallel: bool) -> Case {
    Case {
        name,
        tag,
        stores,
        parallel,
    }
}

pub const BARE: Case = case("none, no link", false, &[], false);
pub const NONE: Case = case("none", true, &[], false);
pub const FILE: Case = case("file", true, &[Store::File], false);
pub const POSTGRES: Case = case("postgres", true, &[Store::Postgres], false);
pub const S3: Case = case("s3", true, &[Store::S3], false);
pub const BOTH: Case = case(
    "postgres + file, parallel",
    true,
    &[Store::File, Store::Postgres],
    true,
);
pub const PARALLEL: Case = case("all three, parallel", true, ALL_STORES, true);
pub const INLINE: Case = case("all three, inline", true, ALL_STORES, false);

const ALL_STORES: &[Store] = &[Store::File, Store::Postgres, Store::S3];

impl Case {
    /// The same with one storage alone.
    pub fn alone(self, store: Store) -> Self {
        match store {
            Store::File => FILE,
            Store::Postgres => POSTGRES,
            Store::S3 => S3,
        }
    }

    /// `config.yml`.
    pub fn config(&self, servers: &Servers) -> Value {
        let mut storages = serde_json::Map::new();
        for store in self.stores {
            storages.insert(format!("{store:?}"), servers.storage(*store));
        }
        let names: Vec<&String> = storages.keys().collect();
        let links: &[&str] = if self.tag { &["tagger"] } else { &[] };
        let chain = json!({"links": links, "storages": names, "ingress_lists": ["default"], "egress_lists": ["done"]});
        json!({
            "links": {"tagger": {"module": "links.tag", "options": {"tags": ["checked"]}}},
            "storages": storages,
            "chains": {"main": chain},
        })
    }
}
