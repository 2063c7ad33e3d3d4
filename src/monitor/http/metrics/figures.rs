//! The figures of each metric, from what has been read.

use std::collections::BTreeMap;

use super::table::{Metric, Source, Tallied};
use crate::child::MONITOR_SLOT;
use crate::monitor::followers::Tally;
use crate::procfs;
use crate::scoreboard::{
    BOUNDS_US, Event, LaneState, LaneView, PlaceState, PlaceView, RestartCause, Series, SeriesKind,
    SlotView, Snapshot,
};
use crate::settings::StartMethod;
use crate::view::{Hold, Queues, StorageQueue};
use crate::visible::printable;

/// What has been read.
#[derive(Debug)]
pub(in crate::monitor::http) struct Figures {
    pub snapshot: Snapshot,
    pub queues: Queues,
    pub holds: Vec<Hold>,
    /// What each follower has done.
    pub followers: BTreeMap<String, Tally>,
    /// When the supervisor was started, in seconds since 1970.
    pub started: f64,
    /// The memory of each process, by the label it has.
    pub memory: Vec<(String, u64)>,
}

/// One figure of a metric: the values of its labels, and the figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub labels: Vec<String>,
    pub value: Value,
}

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
    /// The sum of all times in seconds, and how many there were up to each bound, each for itself.
    Times {
        sum: f64,
        buckets: Vec<(f64, u64)>,
    },
}

/// Reads the memory of each process.
pub(in crate::monitor::http) fn memory(snapshot: &Snapshot) -> Vec<(String, u64)> {
    let header = &snapshot.header;
    let supervisor = procfs::proportional_set_size(header.pid).or(header.memory);
    let slots = snapshot.slots.iter().enumerate();
    let children = slots.filter_map(|(number, slot)| Some((label(number), slot.memory()?)));
    let supervisor = supervisor.map(|bytes| ("supervisor".to_owned(), bytes));
    children.chain(supervisor).collect()
}

/// The label of a slot.
fn label(number: usize) -> String {
    match number {
        MONITOR_SLOT => "monitor".to_owned(),
        number => number.to_string(),
    }
}

impl Figures {
    /// The figures of one metric.
    pub(super) fn of(&self, metric: &Metric) -> Vec<Sample> {
        let header = &self.snapshot.header;
        match metric.source {
            Source::Build => vec![Sample {
                labels: vec![
                    env!("CARGO_PKG_VERSION").to_owned(),
                    StartMethod::from_number(header.method)
                        .map_or("unknown", StartMethod::as_str)
                        .to_owned(),
                ],
                value: Value::Whole(1),
            }],
            Source::Start => vec![alone(Value::Real(self.started))],
            Source::Wanted => vec![alone(Value::Whole(header.wanted))],
            Source::Ready => self.workers(|place| place.state == PlaceState::Ready),
            Source::BackingOff => {
                self.workers(|place| place.state == PlaceState::Vacant && place.retry.is_some())
            }
            Source::Restarts => {
                let counted = RestartCause::ALL.iter().zip(header.restarts);
                let sample = |(cause, count): (&RestartCause, u64)| {
                    labelled([cause.as_str()], Value::Whole(count))
                };
                counted.map(sample).collect()
            }
            Source::Memory => {
                let processes = self.memory.iter();
                let sample = |(label, bytes): &(String, u64)| {
                    labelled([label.as_str()], Value::Whole(*bytes))
                };
                processes.map(sample).collect()
            }
            Source::Cpu => self.processor_time(),
            Source::InFlight => self.lanes(|_| true),
            Source::Waiting => self.lanes(|lane| lane.state == LaneState::Waiting),
            Source::Counts(kind, event) => self.series(kind, |series| count(series, event)),
            Source::Times(kind) => self.series(kind, times),
            Source::Queues => self.lengths(),
            Source::StorageDeadLetters => self.storages(|queue| queue.dead_letters),
            Source::StorageBacklog => self.storages(|queue| queue.backlog),
            Source::Redis => vec![alone(Value::Whole(self.queues.error.is_none().into()))],
            Source::Followers(tallied) => self.followers(tallied),
            Source::Holds => self.holds.iter().map(hold).collect(),
        }
    }

    fn workers(&self, counts: impl Fn(&PlaceView) -> bool) -> Vec<Sample> {
        let workers = self.snapshot.slots.iter().skip(MONITOR_SLOT + 1);
        let places = workers.filter_map(|slot| slot.place.as_ref());
        let count = places.filter(|place| counts(place)).count();
        vec![alone(Value::Whole(count as u64))]
    }

    fn lanes(&self, counts: impl Fn(&LaneView) -> bool) -> Vec<Sample> {
        let workers = self.snapshot.slots.iter();
        let lanes = workers.filter_map(|slot| Some(&slot.worker.as_ref()?.lanes));
        let count = lanes.flatten().filter(|lane| counts(lane)).count();
        vec![alone(Value::Whole(count as u64))]
    }

    /// Also of slots that nobody is in any more: what grows does not vanish.
    fn processor_time(&self) -> Vec<Sample> {
        let slots = self.snapshot.slots.iter().enumerate();
        let was_used = |slot: &SlotView| slot.place.is_some() || slot.cpu_us > 0;
        let used = slots.filter(|(_, slot)| was_used(slot));
        used.map(|(number, slot)| {
            labelled(
                [label(number).as_str()],
                Value::Real(slot.cpu_us as f64 / 1e6),
            )
        })
        .collect()
    }

    fn series(&self, kind: SeriesKind, read: impl Fn(&Series) -> Value) -> Vec<Sample> {
        let series = self.snapshot.series.iter();
        let of_kind = series.filter(|series| series.kind == kind);
        of_kind
            .map(|series| labelled([series.name.as_str()], read(series)))
            .collect()
    }

    fn lengths(&self) -> Vec<Sample> {
        let kinds = [
            ("ingress", &self.queues.ingress),
            ("egress", &self.queues.egress),
            ("dead_letter", &self.queues.dead_letters),
        ];
        let mut samples = Vec::new();
        for (kind, lists) in kinds {
            for (list, length) in lists {
                // What is not a list has none.
                samples.extend(
                    length.map(|length| labelled([list.as_str(), kind], Value::Whole(length))),
                );
            }
        }
        samples
    }

    fn followers(&self, tallied: Tallied) -> Vec<Sample> {
        let read = |tally: &Tally| match tallied {
            Tallied::Pulled => tally.pulled,
            Tallied::DeadLettered => tally.dead_lettered,
            Tallied::Failures => tally.failures,
            Tallied::Waiting => tally.waiting,
            Tallied::Up => tally.error.is_none().into(),
        };
        let followers = self.followers.iter();
        followers
            .map(|(name, tally)| labelled([name.as_str()], Value::Whole(read(tally))))
            .collect()
    }

    fn storages(&self, read: fn(&StorageQueue) -> u64) -> Vec<Sample> {
        let known = self.queues.storages.iter();
        let known = known.filter_map(|(name, queue)| Some((name, queue.as_ref()?)));
        known
            .map(|(name, queue)| labelled([name.as_str()], Value::Whole(read(queue))))
            .collect()
    }
}

fn count(series: &Series, event: Event) -> Value {
    Value::Whole(series.count(event))
}

fn times(series: &Series) -> Value {
    let bounds = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6);
    let bounds = bounds.chain([f64::INFINITY]);
    Value::Times {
        sum: series.sum_us as f64 / 1e6,
        buckets: bounds.zip(series.buckets).collect(),
    }
}

fn hold(hold: &Hold) -> Sample {
    let (kind, name) = hold.stage.split_once(' ').unwrap_or((&hold.stage, ""));
    labelled([kind, name], Value::Whole(hold.seconds))
}

fn alone(value: Value) -> Sample {
    Sample {
        labels: Vec::new(),
        value,
    }
}

/// Names are escaped as on the page: who scrapes may look at them in a terminal.
fn labelled<const N: usize>(labels: [&str; N], value: Value) -> Sample {
    Sample {
        labels: labels.map(|it| printable(it).into_owned()).to_vec(),
        value,
    }
}
