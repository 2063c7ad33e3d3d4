//! The lengths of a daemon's lists, and their dead letters in groups.

use std::time::{Duration, Instant};

use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

use crate::config::{ListName, Plan};
use crate::queue::{
    DeadLetterGroup, DeadLetterGroups, GroupLimits, GroupedQueue, Lengths, QueueError, Raw,
    dead_letter_list, storage_letters_list, storage_letters_reasons, storage_queue,
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
    /// Dead letters that failed alike, the largest groups first; none if nobody asked for them.
    pub dead_letter_groups: Vec<DeadLetterGroupView>,
    /// Whether every dead letter was looked at for these groups.
    pub dead_letter_groups_complete: bool,
    /// Why no length is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Dead letters that failed alike, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterGroupView {
    /// The list whose dead letters they are, or `storage:<name>`; as commands take it.
    pub queue: String,
    /// The step that failed; `None` if the reason does not tell.
    pub stage: Option<String>,
    /// The error, without what differs from one vCon to the next.
    pub error: String,
    /// How many they are.
    pub count: u64,
    /// Up to three of them, the newest first; as commands take them.
    pub examples: Vec<String>,
    /// How long ago the first of them failed.
    pub oldest_seconds: Option<u64>,
    /// How long ago the last of them failed.
    pub newest_seconds: Option<u64>,
}

/// The error of dead letters that others have put into a queue.
pub const NO_REASON: &str = "no reason was kept";

impl DeadLetterGroupView {
    /// The group as it is at this time by Redis' clock.
    pub fn new(group: &DeadLetterGroup, now: f64) -> Self {
        // The cast of a time in the future is 0.
        let age = |at: f64| (now - at) as u64;
        Self {
            queue: group.queue.to_string(),
            stage: group.stage.clone(),
            error: group.error.clone().unwrap_or_else(|| NO_REASON.to_owned()),
            count: group.count,
            examples: group.examples.iter().map(Raw::to_string).collect(),
            oldest_seconds: group.oldest.map(age),
            newest_seconds: group.newest.map(age),
        }
    }

    /// Step and error on one line.
    pub fn summary(&self) -> String {
        match &self.stage {
            Some(stage) => format!("{stage}: {}", self.error),
            None => self.error.clone(),
        }
    }
}

/// How much one look at the reasons of dead letters reads: it takes Redis some milliseconds, in steps.
const LOOK: GroupLimits = GroupLimits {
    reasons: 10_000,
    bytes: 4 << 20,
    time: Duration::from_millis(400),
};

/// How long groups stay as they are, even if there are more or fewer dead letters.
const SHORTEST: Duration = Duration::from_secs(10);

/// How long they stay if the number of dead letters is the same. A retry that fails again changes reasons alone.
const LONGEST: Duration = Duration::from_secs(60);

/// The groups of dead letters as they were at the last look.
#[derive(Debug, Default)]
pub struct GroupCache {
    last: Option<LastLook>,
}

#[derive(Debug)]
struct LastLook {
    at: Instant,
    of: Vec<GroupedQueue>,
    /// What was found; `None` if Redis refused the look.
    found: Option<DeadLetterGroups>,
}

impl GroupCache {
    /// Whether these queues are to be looked at now.
    fn is_due(&self, queues: &[GroupedQueue], now: Instant) -> bool {
        let Some(last) = &self.last else { return true };
        let age = now.saturating_duration_since(last.at);
        age >= LONGEST || age >= SHORTEST && last.of != queues
    }

    /// The groups as they are now: the same as at the last look, and older.
    fn views(&self) -> (Vec<DeadLetterGroupView>, bool) {
        let last = self.last.as_ref();
        let Some((at, found)) = last.and_then(|last| Some((last.at, last.found.as_ref()?))) else {
            return (Vec::new(), false);
        };
        let now = found.now + at.elapsed().as_secs_f64();
        let views = found.groups.iter();
        let views = views.map(|group| DeadLetterGroupView::new(group, now));
        (views.collect(), found.is_complete)
    }
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
            dead_letter_groups: Vec::new(),
            dead_letter_groups_complete: false,
            error: None,
        })
    }

    /// Adds the dead letters in groups to the lengths, which Redis has just told. Looks at them only now and then,
    /// and only if there are any.
    pub fn add_groups(&self, queues: &mut Queues, lengths: &mut Lengths, cache: &mut GroupCache) {
        if queues.error.is_some() {
            return;
        }
        let asked = self.with_dead_letters(queues);
        if asked.is_empty() {
            cache.last = None;
            queues.dead_letter_groups_complete = true;
            return;
        }
        if cache.is_due(&asked, Instant::now()) {
            let found = lengths.groups(&asked, &LOOK);
            cache.last = Some(LastLook {
                at: Instant::now(),
                of: asked,
                found: found.ok(),
            });
        }
        (
            queues.dead_letter_groups,
            queues.dead_letter_groups_complete,
        ) = cache.views();
    }

    /// The queues that have dead letters.
    fn with_dead_letters(&self, queues: &Queues) -> Vec<GroupedQueue> {
        let of_lists = self.ingress.iter().zip(queues.dead_letters.values());
        let of_lists = of_lists.map(|(list, length)| GroupedQueue {
            list: Raw::new(list.as_str()),
            entries: length.unwrap_or(0),
            defers: false,
        });
        let of_storages = self.storages.iter().zip(queues.storages.values());
        let of_storages = of_storages.map(|(keys, queue)| GroupedQueue {
            list: storage_queue(&keys.name),
            entries: queue.map_or(0, |queue| queue.dead_letters),
            defers: keys.defers,
        });
        let all = of_lists.chain(of_storages);
        all.filter(|queue| queue.entries > 0).collect()
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
    fn groups_are_looked_at_only_now_and_then() {
        let queue = |entries| GroupedQueue {
            list: Raw::new("default"),
            entries,
            defers: false,
        };
        let start = Instant::now();
        let mut cache = GroupCache::default();
        assert!(cache.is_due(&[queue(1)], start));
        cache.last = Some(LastLook {
            at: start,
            of: vec![queue(1)],
            found: None,
        });
        for (entries, seconds, is_due) in [
            (1, 0, false),
            (2, 0, false),
            (2, 9, false),
            (2, 10, true),
            (1, 10, false),
            (1, 59, false),
            (1, 60, true),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(
                cache.is_due(&[queue(entries)], now),
                is_due,
                "{entries} {seconds}"
            );
        }
        assert_eq!(cache.views(), (vec![], false));
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
