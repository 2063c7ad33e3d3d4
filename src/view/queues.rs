//! The lengths of a daemon's lists.

use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

use crate::config::{ListName, Plan};
use crate::queue::{
    Lengths, QueueError, dead_letter_list, storage_letters_list, storage_letters_reasons,
};
use crate::scoreboard::shown_name;

/// The names of all lists of a configuration, also of disabled chains, where entries may wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListNames {
    ingress: Vec<String>,
    egress: Vec<String>,
    dead_letters: Vec<String>,
    storages: Vec<StorageKeys>,
}

/// The keys of the dead letters and the backlog of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StorageKeys {
    name: String,
    list: String,
    reasons: String,
    defers: bool,
}

/// The lengths of all lists, or why they are not known.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Queues {
    /// Ingress lists; a key that is not a list has no length.
    pub ingress: IndexMap<String, Option<u64>>,
    /// Egress lists, and those that links may announce vCons on.
    pub egress: IndexMap<String, Option<u64>>,
    /// Dead letter queues of ingress lists.
    pub dead_letters: IndexMap<String, Option<u64>>,
    /// What storages do not have, by the name of the storage as all figures show it; `None` if the key of its list
    /// is not a list.
    pub storages: IndexMap<String, Option<StorageQueue>>,
    /// Why no length is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a storage does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StorageQueue {
    /// vCons that it refused permanently.
    pub dead_letters: u64,
    /// vCons that wait until it is available again.
    pub backlog: u64,
}

impl StorageQueue {
    /// Splits the entries of the list, some of which have a reason. Only a storage that defers has a backlog.
    pub fn of(entries: u64, reasons: u64, defers: bool) -> Self {
        // A reason may outlast its entry: the API server does not know the reasons.
        let dead_letters = if defers {
            reasons.min(entries)
        } else {
            entries
        };
        Self {
            dead_letters,
            backlog: entries - dead_letters,
        }
    }

    /// Whether the storage has everything.
    pub fn is_empty(&self) -> bool {
        self.dead_letters == 0 && self.backlog == 0
    }
}

impl ListNames {
    /// Those of this configuration. Ingress lists are in the order of the file, those of enabled chains first.
    pub fn of(plan: &Plan) -> Self {
        let all = plan.chains.iter().flat_map(|chain| &chain.ingress_lists);
        let ingress = plan.ingress_lists().into_iter().chain(all.cloned());
        let ingress: IndexSet<ListName> = ingress.collect();
        let announced = plan.chains.iter().flat_map(|chain| &chain.egress_lists);
        let announced = announced.chain(&plan.routes).map(ListName::to_string);
        let mut egress: Vec<String> = announced.collect();
        egress.sort();
        egress.dedup();
        let storages = plan.storages.iter().map(|name| StorageKeys {
            name: name.clone(),
            list: storage_letters_list(name),
            reasons: storage_letters_reasons(name),
            defers: plan.deferring.contains(name),
        });
        Self {
            dead_letters: ingress.iter().map(dead_letter_list).collect(),
            storages: storages.collect(),
            ingress: ingress.iter().map(ListName::to_string).collect(),
            egress,
        }
    }

    /// Asks Redis for their lengths.
    pub fn ask(&self, lengths: &mut Lengths) -> Result<Queues, QueueError> {
        let letters: Vec<String> = self.storages.iter().map(|it| it.list.clone()).collect();
        let all = [
            &self.ingress[..],
            &self.egress,
            &self.dead_letters,
            &letters,
        ];
        let reasons = self.storages.iter().map(|it| it.reasons.clone());
        let (known, reasons) = lengths.ask(&all.concat(), &reasons.collect::<Vec<_>>())?;
        let mut known = known.into_iter();
        let mut take = |names: &[String]| -> IndexMap<String, Option<u64>> {
            let names = names.iter().cloned();
            names.map(|name| (name, known.next().flatten())).collect()
        };
        Ok(Queues {
            ingress: take(&self.ingress),
            egress: take(&self.egress),
            dead_letters: take(&self.dead_letters),
            storages: (self.storages.iter().zip(known).zip(reasons))
                .map(|((keys, entries), reasons)| {
                    let reasons = reasons.unwrap_or(0);
                    let queue = |entries| StorageQueue::of(entries, reasons, keys.defers);
                    (shown_name(&keys.name), entries.map(queue))
                })
                .collect(),
            error: None,
        })
    }
}

impl Queues {
    /// No lengths, and why.
    pub fn unknown(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_chains_out_of_service_and_routes_are_among_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let text = "\
links: {router: {module: links.tag_router, options: {tag_routes: {x: routed}}}}
chains:
  old: {ingress_lists: [a, b], egress_lists: [gone], enabled: 0}
  main: {links: [router], ingress_lists: [b, c], egress_lists: [done]}
";
        std::fs::write(&path, text).unwrap();
        let lists = ListNames::of(&Plan::load(&path).unwrap());
        assert_eq!(lists.ingress, ["b", "c", "a"]);
        assert_eq!(lists.egress, ["done", "gone", "routed"]);
        assert_eq!(lists.dead_letters, ["DLQ:b", "DLQ:c", "DLQ:a"]);
    }

    #[test]
    fn only_a_storage_that_defers_has_a_backlog() {
        for (entries, reasons, defers, expected) in [
            (0, 0, true, (0, 0)),
            (5, 2, true, (2, 3)),
            (5, 2, false, (5, 0)),
            // Reasons whose entries have gone.
            (1, 4, true, (1, 0)),
            (0, 4, false, (0, 0)),
        ] {
            let queue = StorageQueue::of(entries, reasons, defers);
            assert_eq!((queue.dead_letters, queue.backlog), expected);
            assert_eq!(queue.is_empty(), entries == 0);
        }
    }

    #[test]
    fn every_storage_has_a_queue() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let text = "\
storages: {pg: {module: storage.postgres, on_outage: defer}, s3: {module: storage.s3}}
chains: {main: {storages: [pg], ingress_lists: [a]}}
";
        std::fs::write(&path, text).unwrap();
        let lists = ListNames::of(&Plan::load(&path).unwrap());
        let keys = |it: &StorageKeys| (it.list.clone(), it.reasons.clone(), it.defers);
        let keys: Vec<_> = lists.storages.iter().map(keys).collect();
        let key = |text: &str| text.to_owned();
        assert_eq!(
            keys,
            [
                (key("DLQ:storage:pg"), key("conserver:dlq:storage:pg"), true),
                (
                    key("DLQ:storage:s3"),
                    key("conserver:dlq:storage:s3"),
                    false
                ),
            ]
        );
    }
}
