//! What is away, so that chains are on hold.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::Plan;
use crate::scoreboard::Snapshot;

/// A link or storage that is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// `link <name>` or `storage <name>`.
    pub stage: String,
    /// The chains that wait for it.
    pub chains: Vec<String>,
    /// The workers that have found it away.
    pub workers: Vec<usize>,
    /// Since when one of them has had a chain on hold, in seconds.
    pub seconds: u64,
}

/// One link or storage, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Link(usize),
    Storage(usize),
}

/// Reads the scoreboard; names are those of the configuration in force, where that is known.
pub fn of(snapshot: &Snapshot, plan: Option<&Plan>) -> Vec<Hold> {
    let mut found: BTreeMap<Place, (Vec<usize>, u64)> = BTreeMap::new();
    let last = snapshot.header.shape.last_held();
    for (number, slot) in snapshot.slots.iter().enumerate() {
        let Some(held) = slot.worker.as_ref().and_then(|worker| worker.held.as_ref()) else {
            continue;
        };
        let links = held.links.iter().copied().map(Place::Link);
        let storages = held.storages.iter().copied().map(Place::Storage);
        for place in links.chain(storages) {
            let (workers, since) = found.entry(place).or_insert((Vec::new(), held.since));
            workers.push(number);
            *since = held.since.min(*since);
        }
    }
    let named = |(place, (workers, since)): (Place, (Vec<usize>, u64))| Hold {
        stage: stage(place, last, plan),
        chains: chains(place, last, plan),
        workers,
        seconds: snapshot.taken.saturating_sub(since) / 1000,
    };
    found.into_iter().map(named).collect()
}

/// The last place is that of all from there on.
fn name(place: Place, last: usize, plan: Option<&Plan>) -> Option<&str> {
    let plan = plan?;
    let (names, index) = match place {
        Place::Link(index) => (&plan.links, index),
        Place::Storage(index) => (&plan.storages, index),
    };
    Some(names.get(index).filter(|_| index < last)?)
}

fn stage(place: Place, last: usize, plan: Option<&Plan>) -> String {
    let (kind, index) = match place {
        Place::Link(index) => ("link", index),
        Place::Storage(index) => ("storage", index),
    };
    match name(place, last, plan) {
        Some(name) => format!("{kind} {name}"),
        None => format!("{kind} number {}", index + 1),
    }
}

fn chains(place: Place, last: usize, plan: Option<&Plan>) -> Vec<String> {
    let (Some(plan), Some(name)) = (plan, name(place, last, plan)) else {
        return Vec::new();
    };
    let needs = |names: &[String]| names.iter().any(|needed| needed == name);
    let chains = plan.chains.iter().filter(|chain| {
        chain.enabled
            && match place {
                Place::Link(_) => needs(&chain.links),
                Place::Storage(_) => needs(&chain.storages),
            }
    });
    chains.map(|chain| chain.name.clone()).collect()
}
