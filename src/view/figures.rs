//! What chains, links and storages have done since the daemon started, all its workers together.

use serde::Serialize;

use super::Seconds;
use crate::config::Plan;
use crate::scoreboard::{Event, Series, SeriesKind, Snapshot, shown_name};

/// The figures of one chain, link or storage. A chain counts vCons; a link or storage counts what
/// it is asked to do.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Its name in the configuration.
    pub name: String,
    /// Whether it is in the configuration in force, a chain also in service; so are all where that
    /// configuration is not known.
    pub in_force: bool,
    /// Taken from a list; handed to a link or storage.
    pub received: u64,
    /// Stored and announced; done.
    pub done: u64,
    /// Ended early by a link; the link ended a chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halted: Option<u64>,
    /// A chain: failed in all attempts, or for good. A link or storage: failed attempts.
    pub failed: u64,
    /// Went to the dead letter queue; because of this link or storage.
    pub dead_lettered: u64,
    /// More attempts at a link or storage.
    pub retried: u64,
    /// Went back to its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned: Option<u64>,
    /// How long it took.
    pub seconds: Seconds,
}

/// Those of everything of one kind: first what is in force, in the order of the file, then what
/// former configurations had.
pub(super) fn of(kind: SeriesKind, snapshot: &Snapshot, plan: Option<&Plan>) -> Vec<Figures> {
    let names = plan.map(|plan| names(kind, plan));
    let place = |series: &Series| match &names {
        None => Some(0),
        Some(names) => names.iter().position(|name| *name == series.name),
    };
    let series = snapshot.series.iter().filter(|series| series.kind == kind);
    let mut placed: Vec<(Option<usize>, &Series)> = series.map(|s| (place(s), s)).collect();
    placed.sort_by_key(|(place, _)| place.unwrap_or(usize::MAX));
    let placed = placed.into_iter();
    placed
        .map(|(place, series)| Figures::new(series, place.is_some()))
        .collect()
}

/// The names in force, as the scoreboard shows them.
fn names(kind: SeriesKind, plan: &Plan) -> Vec<String> {
    let chains = plan.chains.iter().filter(|chain| chain.enabled);
    match kind {
        SeriesKind::Chain => chains.map(|chain| shown_name(&chain.name)).collect(),
        SeriesKind::Link => plan.links.iter().map(|name| shown_name(name)).collect(),
        SeriesKind::Storage => plan.storages.iter().map(|name| shown_name(name)).collect(),
    }
}

impl Figures {
    fn new(series: &Series, in_force: bool) -> Self {
        let count = |event| series.count(event);
        Self {
            name: series.name.clone(),
            in_force,
            received: count(Event::Received),
            done: count(Event::Done),
            halted: (series.kind != SeriesKind::Storage).then(|| count(Event::Halted)),
            failed: count(Event::Failed),
            dead_lettered: count(Event::DeadLettered),
            retried: count(Event::Retried),
            returned: (series.kind == SeriesKind::Chain).then(|| count(Event::Returned)),
            seconds: Seconds::of(series),
        }
    }

    /// How much came to its end here, halted or not.
    pub fn through(&self) -> u64 {
        self.done.saturating_add(self.halted.unwrap_or(0))
    }
}
