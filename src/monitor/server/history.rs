//! The last hour, for the charts of the page: a sample of the scoreboard and of the queues every ten seconds.
//!
//! Kept in the monitor's memory, in at most half a megabyte, however many chains, lists and workers there are. It
//! survives loads of the page and not the monitor's end.

use std::collections::VecDeque;
use std::time::Duration;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::json;

use crate::scoreboard::{ChildState, Event, Histogram, Quantile, SeriesKind, Snapshot};
use crate::view::Queues;

/// The time between two samples.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// A sample this much earlier is in time, in milliseconds: threads wake when they can.
const SLACK: u64 = 500;

/// The most samples: an hour of them.
const KEPT: usize = 360;

/// The most lists whose lengths are kept, the first of the configuration.
const MOST_LISTS: usize = 20;

/// The samples, the oldest first.
#[derive(Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    /// The length of each list at the time of each sample.
    lists: IndexMap<String, VecDeque<Option<u64>>>,
    /// The times of all chains at the last sample.
    times: Histogram,
}

/// What the daemon had done at a time, and what it did then.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    /// The supervisor's uptime, in milliseconds.
    at: u64,
    /// vCons that chains have done, halted ones among them, since the start.
    done: u64,
    /// vCons that chains have failed, likewise.
    failed: u64,
    /// The median and the 99th percentile of how long chains took since the sample before, in seconds.
    times: [Option<f64>; 2],
    in_work: usize,
    workers_ready: usize,
    /// Entries of all ingress lists, if Redis tells.
    waiting: Option<u64>,
    /// Entries of all dead letter queues, likewise.
    dead_letters: Option<u64>,
    /// Of workers and monitor, as far as they have told.
    memory: u64,
}

impl History {
    /// Everything up to now, as JSON. Keeps what is now if the last sample is old enough.
    pub fn tell(&mut self, snapshot: &Snapshot, queues: &Queues) -> String {
        let times = times(snapshot);
        let sample = Sample::of(snapshot, queues, &times.since(&self.times));
        let last = self.samples.back().map(|last| last.at);
        let is_due = last.is_none_or(|last| {
            let step = STEP.as_millis() as u64 - SLACK;
            sample.at < last || sample.at - last >= step
        });
        self.push(sample, &lengths(queues));
        let json = self.json(snapshot.header.pid);
        if is_due {
            self.times = times;
            self.drop_oldest();
        } else {
            self.pop();
        }
        json
    }

    fn push(&mut self, sample: Sample, lengths: &IndexMap<String, Option<u64>>) {
        for (list, kept) in &mut self.lists {
            kept.push_back(lengths.get(list).copied().flatten());
        }
        for (list, length) in lengths {
            if self.lists.len() < MOST_LISTS && !self.lists.contains_key(list) {
                let unknown = std::iter::repeat_n(None, self.samples.len());
                let kept = unknown.chain([*length]).collect();
                self.lists.insert(list.clone(), kept);
            }
        }
        self.samples.push_back(sample);
    }

    fn pop(&mut self) {
        self.samples.pop_back();
        for kept in self.lists.values_mut() {
            kept.pop_back();
        }
        self.forget_former_lists();
    }

    fn drop_oldest(&mut self) {
        while self.samples.len() > KEPT {
            self.samples.pop_front();
            for kept in self.lists.values_mut() {
                kept.pop_front();
            }
        }
        self.forget_former_lists();
    }

    /// Makes room for others.
    fn forget_former_lists(&mut self) {
        self.lists
            .retain(|_, kept| kept.iter().any(Option::is_some));
    }

    /// One array for each figure: shorter than an object for each sample.
    fn json(&self, pid: i32) -> String {
        fn column<'a, T: Serialize + 'a>(
            samples: &'a VecDeque<Sample>,
            figure: impl Fn(&'a Sample) -> T,
        ) -> serde_json::Value {
            json!(samples.iter().map(figure).collect::<Vec<_>>())
        }
        let all = &self.samples;
        // Milliseconds are as fine as anybody sees.
        let short = |seconds: Option<f64>| seconds.map(|s| (s * 1e5).round() / 1e5);
        json!({
            "pid": pid,
            "step_seconds": STEP.as_secs(),
            "at": column(all, |it| it.at as f64 / 1e3),
            "done": column(all, |it| it.done),
            "failed": column(all, |it| it.failed),
            "p50": column(all, |it| short(it.times[0])),
            "p99": column(all, |it| short(it.times[1])),
            "in_work": column(all, |it| it.in_work),
            "workers_ready": column(all, |it| it.workers_ready),
            "waiting": column(all, |it| it.waiting),
            "dead_letters": column(all, |it| it.dead_letters),
            "memory_bytes": column(all, |it| it.memory),
            "lists": self.lists,
        })
        .to_string()
    }
}

impl Sample {
    fn of(snapshot: &Snapshot, queues: &Queues, times: &Histogram) -> Self {
        let chains = snapshot.series.iter();
        let chains = chains.filter(|series| series.kind == SeriesKind::Chain);
        let count = |event| -> u64 { chains.clone().map(|chain| chain.count(event)).sum() };
        let quantile = |q| times.quantile(q).map(Quantile::seconds);
        let is_ready = |state| state == Some(ChildState::Ready);
        let workers = snapshot.slots.iter().skip(1);
        let views = || {
            snapshot
                .slots
                .iter()
                .filter_map(|slot| slot.worker.as_ref())
        };
        let is_known = queues.error.is_none();
        let sum = |lengths: &IndexMap<String, Option<u64>>| lengths.values().flatten().sum::<u64>();
        let of_storages = queues.storages.values().flatten();
        let of_storages: u64 = of_storages.map(|queue| queue.dead_letters).sum();
        Self {
            at: snapshot.taken.saturating_sub(snapshot.header.started),
            done: count(Event::Done) + count(Event::Halted),
            failed: count(Event::Failed),
            times: [quantile(0.5), quantile(0.99)],
            in_work: views().map(|worker| worker.lanes.len()).sum(),
            workers_ready: workers
                .filter(|slot| is_ready(slot.place.as_ref().map(|place| place.state)))
                .count(),
            waiting: is_known.then(|| sum(&queues.ingress)),
            dead_letters: is_known.then(|| sum(&queues.dead_letters) + of_storages),
            memory: views().filter_map(|worker| worker.memory).sum(),
        }
    }
}

/// How long all chains together took.
fn times(snapshot: &Snapshot) -> Histogram {
    let chains = snapshot.series.iter();
    let chains = chains.filter(|series| series.kind == SeriesKind::Chain);
    let mut all = Histogram::default();
    for chain in chains {
        all.add(&chain.times);
    }
    all
}

/// The lengths of the lists, by their kinds and names as the page has them.
fn lengths(queues: &Queues) -> IndexMap<String, Option<u64>> {
    let of_kind = |kind: &str, lists: &IndexMap<String, Option<u64>>| {
        let named = |(name, length): (&String, &Option<u64>)| (format!("{kind} {name}"), *length);
        lists.iter().map(named).collect::<Vec<_>>()
    };
    let mut all: IndexMap<String, Option<u64>> = IndexMap::new();
    all.extend(of_kind("ingress", &queues.ingress));
    all.extend(of_kind("dead letters", &queues.dead_letters));
    for (storage, queue) in &queues.storages {
        // As the page shows them: a list without entries is not among them.
        let queue = queue.filter(|queue| !queue.is_empty());
        let letters = queue.map(|queue| queue.dead_letters);
        all.insert(format!("dead letters DLQ:storage:{storage}"), letters);
        let backlog = queue.map(|queue| queue.backlog);
        all.insert(format!("backlog DLQ:storage:{storage}"), backlog);
    }
    all.extend(of_kind("egress", &queues.egress));
    all.retain(|_, length| length.is_some());
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::scoreboard::{Board, Shape};

    fn queues(lists: impl IntoIterator<Item = (&'static str, Option<u64>)>) -> Queues {
        let named = |(name, length): (&str, Option<u64>)| (name.to_owned(), length);
        Queues {
            ingress: lists.into_iter().map(named).collect(),
            ..Queues::default()
        }
    }

    /// What is told at these seconds of the daemon's life.
    fn told(history: &mut History, snapshot: &mut Snapshot, at: u64, queues: &Queues) -> Value {
        snapshot.taken = snapshot.header.started + at * 1000;
        serde_json::from_str(&history.tell(snapshot, queues)).unwrap()
    }

    #[test]
    fn an_hour_is_kept_and_what_is_now_is_told_besides() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        let mut snapshot = Snapshot::take_own(&board.id().path).unwrap();
        let (mut history, lists) = (History::default(), queues([("a", Some(7))]));
        let first = told(&mut history, &mut snapshot, 3, &lists);
        assert_eq!(first["at"], json!([3.0]));
        // Somebody asks between two samples.
        for _ in 0..3 {
            let now = told(&mut history, &mut snapshot, 5, &lists);
            assert_eq!(now["at"], json!([3.0, 5.0]));
            assert_eq!(now["waiting"], json!([7, 7]));
            assert_eq!(now["lists"], json!({"ingress a": [7, 7]}));
        }
        for step in 1..=400 {
            told(&mut history, &mut snapshot, 3 + step * 10, &lists);
        }
        let last = told(&mut history, &mut snapshot, 4004, &lists);
        let at = last["at"].as_array().unwrap();
        assert_eq!(at.len(), KEPT + 1);
        assert_eq!((&at[0], &at[KEPT]), (&json!(413.0), &json!(4004.0)));
        assert_eq!(
            last["lists"]["ingress a"].as_array().unwrap().len(),
            KEPT + 1
        );
        assert_eq!(last["p50"][0], Value::Null);
    }

    #[test]
    fn lists_that_come_and_go_keep_their_places_in_time_and_their_number_is_limited() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        let mut snapshot = Snapshot::take_own(&board.id().path).unwrap();
        let mut history = History::default();
        told(&mut history, &mut snapshot, 0, &queues([("a", Some(1))]));
        let away = Queues::unknown("Redis is away".to_owned());
        let now = told(&mut history, &mut snapshot, 10, &away);
        assert_eq!(now["waiting"], json!([1, null]));
        let now = told(&mut history, &mut snapshot, 20, &queues([("b", Some(2))]));
        let expected = json!({"ingress a": [1, null, null], "ingress b": [null, null, 2]});
        assert_eq!(now["lists"], expected);
        let names: Vec<String> = (0..100).map(|n| format!("list {n}")).collect();
        let many = Queues {
            ingress: names.into_iter().map(|name| (name, Some(1))).collect(),
            ..Queues::default()
        };
        let now = told(&mut history, &mut snapshot, 30, &many);
        assert_eq!(now["lists"].as_object().unwrap().len(), MOST_LISTS);
        assert_eq!(now["waiting"][3], 100);
        // Others may take the places of those that have not been there for an hour.
        for step in 4..400 {
            told(
                &mut history,
                &mut snapshot,
                step * 10,
                &queues([("c", Some(3))]),
            );
        }
        assert_eq!(history.lists.keys().collect::<Vec<_>>(), ["ingress c"]);
    }
}
