//! What `/metrics` serves: every metric in one table (the manual repeats it), and its samples.
//!
//! The samples come from one snapshot of the scoreboard, the lengths of the queues and the statistics of the
//! followers. Nothing here reads the scoreboard or asks Redis, or knows how samples are written.

use std::collections::{BTreeMap, HashSet};

use crate::child::MONITOR_SLOT;
use crate::monitor::followers::FollowerStats;
use crate::procfs;
use crate::scoreboard::{
    ChildState, ChildView, Event, Histogram, LaneState, LaneView, RestartCause, Series, SeriesKind,
    SlotView, Snapshot,
};
use crate::settings::StartMethod;
use crate::view::{Hold, Pause, Queues, StageWait, StorageQueue};
use crate::visible::printable;

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name as it is served; those of a histogram have `_bucket`, `_sum` and `_count` besides.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What its value means.
    pub help: &'static str,
    pub(super) source: MetricSource,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows while the daemon lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts durations by buckets.
    Histogram,
    /// Is always 1; its labels are the information.
    Info,
}

/// Where the samples of a metric come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricSource {
    Build,
    Start,
    Wanted,
    Ready,
    BackingOff,
    Memory,
    Cpu,
    Restarts,
    InFlight,
    Waiting,
    Counts(SeriesKind, Event),
    Times(SeriesKind),
    Queues,
    StorageDeadLetters,
    StorageBacklog,
    Redis,
    Followers(FollowerFigure),
    Holds,
    Waits,
    Paused,
    Telemetry(TelemetryFigure),
}

impl MetricKind {
    /// Its name in the text formats of Prometheus, and in the manual.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// What has become of spans and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TelemetryFigure {
    Sent,
    Dropped,
}

/// One of the statistics of a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowerFigure {
    Pulled,
    DeadLettered,
    Failures,
    Waiting,
    Up,
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    source: MetricSource,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: MetricKind::Gauge,
        labels,
        help,
        source,
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    source: MetricSource,
    help: &'static str,
) -> Metric {
    Metric {
        kind: MetricKind::Counter,
        ..gauge(name, labels, source, help)
    }
}

const fn counts(name: &'static str, kind: SeriesKind, event: Event, help: &'static str) -> Metric {
    counter(
        name,
        label_of(kind),
        MetricSource::Counts(kind, event),
        help,
    )
}

const fn times(name: &'static str, kind: SeriesKind, help: &'static str) -> Metric {
    Metric {
        kind: MetricKind::Histogram,
        ..gauge(name, label_of(kind), MetricSource::Times(kind), help)
    }
}

const fn label_of(kind: SeriesKind) -> &'static [&'static str] {
    match kind {
        SeriesKind::Chain => &["chain"],
        SeriesKind::Link => &["link"],
        SeriesKind::Storage => &["storage"],
        // These are not served here.
        SeriesKind::List | SeriesKind::ChainLink | SeriesKind::StorageFailure => &[],
    }
}

const CHAIN: SeriesKind = SeriesKind::Chain;
const LINK: SeriesKind = SeriesKind::Link;
const STORAGE: SeriesKind = SeriesKind::Storage;
const FOLLOWER: &[&str] = &["follower"];

/// Every metric, in the order in which they are served.
#[rustfmt::skip]
pub const TABLE: &[Metric] = &[
    Metric {
        name: "conserver_build_info",
        kind: MetricKind::Info,
        labels: &["version", "start_method"],
        help: "This program",
        source: MetricSource::Build,
    },
    gauge("conserver_start_time_seconds", &[], MetricSource::Start,
        "When the supervisor was started, in seconds since 1970"),
    gauge("conserver_workers_wanted", &[], MetricSource::Wanted,
        "Workers that there are to be"),
    gauge("conserver_workers_ready", &[], MetricSource::Ready,
        "Workers that are ready to take work"),
    gauge("conserver_workers_backing_off", &[], MetricSource::BackingOff,
        "Workers that keep dying and wait for their next start"),
    counter("conserver_worker_restarts_total", &["cause"], MetricSource::Restarts,
        "Processes, the monitor among them, that took the place of another"),
    gauge("conserver_worker_memory_bytes", &["worker"], MetricSource::Memory,
        "Memory of each process, its share of what it has in common with others included"),
    counter("conserver_worker_cpu_seconds_total", &["worker"], MetricSource::Cpu,
        "Processor time of each worker and its predecessors"),
    gauge("conserver_vcons_in_flight", &[], MetricSource::InFlight,
        "vCons that workers hold"),
    gauge("conserver_vcons_waiting", &[], MetricSource::Waiting,
        "vCons that workers hold and that wait for a server"),
    counts("conserver_chain_received_total", CHAIN, Event::Received,
        "vCons taken from a list of the chain"),
    counts("conserver_chain_done_total", CHAIN, Event::Done,
        "vCons stored and announced"),
    counts("conserver_chain_halted_total", CHAIN, Event::Halted,
        "vCons whose chain a link ended early"),
    counts("conserver_chain_failed_total", CHAIN, Event::Failed,
        "vCons that failed in all attempts, or for good"),
    counts("conserver_chain_dead_lettered_total", CHAIN, Event::DeadLettered,
        "vCons that went to the dead letter queue"),
    counts("conserver_chain_retried_total", CHAIN, Event::Retried,
        "Further attempts at links and storages of the chain"),
    counts("conserver_chain_returned_total", CHAIN, Event::Returned,
        "vCons that went back to their list"),
    times("conserver_chain_duration_seconds", CHAIN,
        "The whole work on a vCon that was finished or halted"),
    counts("conserver_link_received_total", LINK, Event::Received,
        "vCons handed to the link"),
    counts("conserver_link_done_total", LINK, Event::Done,
        "vCons that the link has done its work on"),
    counts("conserver_link_halted_total", LINK, Event::Halted,
        "vCons whose chain the link ended"),
    counts("conserver_link_failed_total", LINK, Event::Failed,
        "Failed attempts of the link"),
    counts("conserver_link_dead_lettered_total", LINK, Event::DeadLettered,
        "vCons that went to the dead letter queue because of the link"),
    counts("conserver_link_retried_total", LINK, Event::Retried,
        "Further attempts of the link"),
    counts("conserver_link_permitted_total", LINK, Event::Permitted,
        "Requests that the `limit` of the link allowed"),
    counts("conserver_link_waited_total", LINK, Event::Waited,
        "vCons that went back to their list as the link waits for its budget, for its server, or to be mended"),
    times("conserver_link_duration_seconds", LINK,
        "Each attempt of the link at a vCon"),
    counts("conserver_storage_received_total", STORAGE, Event::Received,
        "vCons handed to the storage"),
    counts("conserver_storage_done_total", STORAGE, Event::Done,
        "vCons that the storage has"),
    counts("conserver_storage_failed_total", STORAGE, Event::Failed,
        "Failed attempts at the storage"),
    counts("conserver_storage_dead_lettered_total", STORAGE, Event::DeadLettered,
        "vCons that went to the dead letter queue because of the storage"),
    counts("conserver_storage_retried_total", STORAGE, Event::Retried,
        "Further attempts at the storage"),
    counts("conserver_storage_permitted_total", STORAGE, Event::Permitted,
        "Saves that the `limit` of the storage allowed"),
    counts("conserver_storage_waited_total", STORAGE, Event::Waited,
        "vCons that the storage did not get as it waits for its budget, for its server, or to be mended"),
    times("conserver_storage_duration_seconds", STORAGE,
        "Each attempt to save a vCon in the storage"),
    gauge("conserver_queue_length", &["list", "kind"], MetricSource::Queues,
        "Entries of each list (kind: ingress, egress, dead_letter); none while Redis is away"),
    gauge("conserver_storage_dead_letters", &["storage"], MetricSource::StorageDeadLetters,
        "vCons that the storage refused for good and that wait for an operator; none while Redis is away"),
    gauge("conserver_storage_backlog", &["storage"], MetricSource::StorageBacklog,
        "vCons that are saved as soon as the storage is available again; none while Redis is away"),
    gauge("conserver_redis_up", &[], MetricSource::Redis,
        "Whether Redis answers the monitor"),
    gauge("conserver_hold_seconds", &["kind", "name"], MetricSource::Holds,
        "For how long chains have been on hold for this (kind: link, storage, list, tracer, hook)"),
    gauge("conserver_wait_seconds", &["kind", "name", "for"], MetricSource::Waits,
        "For how long a link or storage has waited for its budget, or as its server asks (for: budget, server)"),
    gauge("conserver_paused", &["kind", "name"], MetricSource::Paused,
        "1 for each list and chain that operators have paused (kind: list, chain)"),
    counter("conserver_follower_pulled_total", FOLLOWER, MetricSource::Followers(FollowerFigure::Pulled),
        "vCons that the follower has pulled since the monitor started"),
    counter("conserver_follower_dead_lettered_total", FOLLOWER, MetricSource::Followers(FollowerFigure::DeadLettered),
        "UUIDs that the follower has moved to the dead letter queue since the monitor started"),
    counter("conserver_follower_failures_total", FOLLOWER, MetricSource::Followers(FollowerFigure::Failures),
        "How often the follower could not go on since the monitor started"),
    gauge("conserver_follower_waiting", FOLLOWER, MetricSource::Followers(FollowerFigure::Waiting),
        "UUIDs that the follower has taken and whose documents are still to be fetched"),
    gauge("conserver_follower_up", FOLLOWER, MetricSource::Followers(FollowerFigure::Up),
        "Whether the follower could go on at its last try"),
    counter("conserver_telemetry_sent_total", &["signal"], MetricSource::Telemetry(TelemetryFigure::Sent),
        "Spans (signal: traces) and exports of metrics (signal: metrics) that the collector of OpenTelemetry has taken"),
    counter("conserver_telemetry_dropped_total", &["signal"], MetricSource::Telemetry(TelemetryFigure::Dropped),
        "Those that it has not taken, or that were too many"),
];

/// The table as Markdown, for the manual.
pub fn markdown_table() -> String {
    let mut text = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in TABLE {
        let labels: Vec<String> = metric.labels.iter().map(|it| format!("`{it}`")).collect();
        text += &format!(
            "| `{}` | {} | {} | {} |\n",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            metric.help
        );
    }
    text
}

/// Everything that the samples are computed from.
#[derive(Debug)]
pub(in crate::monitor::server) struct MetricInputs {
    pub snapshot: Snapshot,
    pub queues: Queues,
    pub holds: Vec<Hold>,
    pub waits: Vec<StageWait>,
    pub paused: Vec<Pause>,
    /// The statistics of each follower.
    pub followers: BTreeMap<String, FollowerStats>,
    /// When the supervisor was started, in seconds since 1970.
    pub started: f64,
    /// The memory of each process, by the label it has.
    pub memory: Vec<(String, u64)>,
}

/// One sample of a metric: the values of its labels, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub labels: Vec<String>,
    pub value: SampleValue,
}

/// The value of a sample.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SampleValue {
    Whole(u64),
    Real(f64),
    Times(Histogram),
}

/// Reads the memory of each process; the label of the process comes first.
pub(in crate::monitor::server) fn memory(snapshot: &Snapshot) -> Vec<(String, u64)> {
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

impl MetricInputs {
    /// The samples of one metric. No two have the same labels: readers refuse a whole scrape with a duplicate, and two
    /// names that differ only in characters that are not shown become duplicates.
    pub(super) fn samples(&self, metric: &Metric) -> Vec<Sample> {
        let mut samples = self.all_samples(metric);
        let mut seen = HashSet::new();
        samples.retain(|sample| seen.insert(sample.labels.clone()));
        samples
    }

    fn all_samples(&self, metric: &Metric) -> Vec<Sample> {
        let header = &self.snapshot.header;
        match metric.source {
            MetricSource::Build => vec![Sample {
                labels: vec![
                    env!("CARGO_PKG_VERSION").to_owned(),
                    StartMethod::from_number(header.method)
                        .map_or("unknown", StartMethod::as_str)
                        .to_owned(),
                ],
                value: SampleValue::Whole(1),
            }],
            MetricSource::Start => vec![alone(SampleValue::Real(self.started))],
            MetricSource::Wanted => vec![alone(SampleValue::Whole(header.wanted))],
            MetricSource::Ready => self.workers(|place| place.state == ChildState::Ready),
            MetricSource::BackingOff => {
                self.workers(|place| place.state == ChildState::Vacant && place.retry.is_some())
            }
            MetricSource::Restarts => {
                let counted = RestartCause::ALL.iter().zip(header.restarts);
                let sample = |(cause, count): (&RestartCause, u64)| {
                    labelled([cause.as_str()], SampleValue::Whole(count))
                };
                counted.map(sample).collect()
            }
            MetricSource::Memory => {
                let processes = self.memory.iter();
                let sample = |(label, bytes): &(String, u64)| {
                    labelled([label.as_str()], SampleValue::Whole(*bytes))
                };
                processes.map(sample).collect()
            }
            MetricSource::Cpu => self.processor_time(),
            MetricSource::InFlight => self.lanes(|_| true),
            MetricSource::Waiting => self.lanes(|lane| lane.state == LaneState::Waiting),
            MetricSource::Counts(kind, event) => self.series(kind, |series| count(series, event)),
            MetricSource::Times(kind) => {
                self.series(kind, |series| SampleValue::Times(series.times.clone()))
            }
            MetricSource::Queues => self.lengths(),
            MetricSource::StorageDeadLetters => self.storages(|queue| queue.dead_letters),
            MetricSource::StorageBacklog => self.storages(|queue| queue.backlog),
            MetricSource::Redis => vec![alone(SampleValue::Whole(
                self.queues.error.is_none().into(),
            ))],
            MetricSource::Followers(figure) => self.followers(figure),
            MetricSource::Telemetry(figure) => self.telemetry(figure),
            MetricSource::Holds => self.holds.iter().map(hold).collect(),
            MetricSource::Waits => self.waits.iter().map(wait).collect(),
            MetricSource::Paused => {
                let paused = self.paused.iter();
                paused
                    .map(|it| labelled([it.kind, &*it.name], SampleValue::Whole(1)))
                    .collect()
            }
        }
    }

    /// The monitor sends metrics, the workers send spans.
    fn telemetry(&self, figure: TelemetryFigure) -> Vec<Sample> {
        let count = |slot: &SlotView| match figure {
            TelemetryFigure::Sent => slot.telemetry_sent,
            TelemetryFigure::Dropped => slot.telemetry_dropped,
        };
        let of = |slots: &[SlotView]| {
            let counts = slots.iter().map(count);
            SampleValue::Whole(counts.fold(0, u64::saturating_add))
        };
        let slots = &self.snapshot.slots;
        let (monitor, workers) = slots.split_at(slots.len().min(MONITOR_SLOT + 1));
        vec![
            labelled(["traces"], of(workers)),
            labelled(["metrics"], of(monitor)),
        ]
    }

    fn workers(&self, counts: impl Fn(&ChildView) -> bool) -> Vec<Sample> {
        let workers = self.snapshot.slots.iter().skip(MONITOR_SLOT + 1);
        let places = workers.filter_map(|slot| slot.place.as_ref());
        let count = places.filter(|place| counts(place)).count();
        vec![alone(SampleValue::Whole(count as u64))]
    }

    fn lanes(&self, counts: impl Fn(&LaneView) -> bool) -> Vec<Sample> {
        let workers = self.snapshot.slots.iter();
        let lanes = workers.filter_map(|slot| Some(&slot.worker.as_ref()?.lanes));
        let count = lanes.flatten().filter(|lane| counts(lane)).count();
        vec![alone(SampleValue::Whole(count as u64))]
    }

    /// Also of slots without a process: a counter must not vanish.
    fn processor_time(&self) -> Vec<Sample> {
        let slots = self.snapshot.slots.iter().enumerate();
        let was_used = |slot: &SlotView| slot.place.is_some() || slot.cpu_us > 0;
        let used = slots.filter(|(_, slot)| was_used(slot));
        used.map(|(number, slot)| {
            labelled(
                [label(number).as_str()],
                SampleValue::Real(slot.cpu_us as f64 / 1e6),
            )
        })
        .collect()
    }

    fn series(&self, kind: SeriesKind, read: impl Fn(&Series) -> SampleValue) -> Vec<Sample> {
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
                // A key that is not a list has no length.
                samples.extend(
                    length
                        .map(|length| labelled([list.as_str(), kind], SampleValue::Whole(length))),
                );
            }
        }
        samples
    }

    fn followers(&self, figure: FollowerFigure) -> Vec<Sample> {
        let read = |stats: &FollowerStats| match figure {
            FollowerFigure::Pulled => stats.pulled,
            FollowerFigure::DeadLettered => stats.dead_lettered,
            FollowerFigure::Failures => stats.failures,
            FollowerFigure::Waiting => stats.waiting,
            FollowerFigure::Up => stats.error.is_none().into(),
        };
        let followers = self.followers.iter();
        followers
            .map(|(name, stats)| labelled([name.as_str()], SampleValue::Whole(read(stats))))
            .collect()
    }

    fn storages(&self, read: fn(&StorageQueue) -> u64) -> Vec<Sample> {
        let known = self.queues.storages.iter();
        let known = known.filter_map(|(name, queue)| Some((name, queue.as_ref()?)));
        known
            .map(|(name, queue)| labelled([name.as_str()], SampleValue::Whole(read(queue))))
            .collect()
    }
}

fn count(series: &Series, event: Event) -> SampleValue {
    SampleValue::Whole(series.count(event))
}

fn hold(hold: &Hold) -> Sample {
    let (kind, name) = hold.stage.split_once(' ').unwrap_or((&hold.stage, ""));
    labelled([kind, name], SampleValue::Whole(hold.seconds))
}

fn wait(wait: &StageWait) -> Sample {
    let (kind, name) = wait.stage.split_once(' ').unwrap_or((&wait.stage, ""));
    labelled(
        [kind, name, wait.waits_for],
        SampleValue::Whole(wait.seconds),
    )
}

fn alone(value: SampleValue) -> Sample {
    Sample {
        labels: Vec::new(),
        value,
    }
}

/// Names are escaped as on the page: who scrapes may look at them in a terminal.
fn labelled<const N: usize>(labels: [&str; N], value: SampleValue) -> Sample {
    Sample {
        labels: labels.map(|it| printable(it).into_owned()).to_vec(),
        value,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_alert_rules_and_the_dashboard_know_no_other_metrics() {
        for (file, text) in [
            (
                "alerts.yml",
                include_str!("../../../packaging/prometheus/alerts.yml"),
            ),
            (
                "alerts.test.yml",
                include_str!("../../../packaging/prometheus/alerts.test.yml"),
            ),
            (
                "dashboard.json",
                include_str!("../../../packaging/prometheus/dashboard.json"),
            ),
        ] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let named: BTreeSet<&str> = words.filter(|it| it.starts_with("conserver_")).collect();
            assert!(!named.is_empty());
            for name in named {
                let is_it = |metric: &&Metric| {
                    let rest = name.strip_prefix(metric.name);
                    let part = ["", "_bucket", "_sum", "_count"];
                    match metric.kind {
                        MetricKind::Histogram => rest.is_some_and(|rest| part.contains(&rest)),
                        _ => rest == Some(""),
                    }
                };
                assert!(
                    TABLE.iter().any(|metric| is_it(&metric)),
                    "packaging/prometheus/{file} names {name}, which is no metric: name one of TABLE in {}",
                    file!()
                );
            }
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(
            names.len(),
            TABLE.len(),
            "{}: a name stands in TABLE twice",
            file!()
        );
        for metric in TABLE {
            let name = metric.name;
            let is_good = |c: char| c.is_ascii_lowercase() || c == '_';
            let is = |kind| metric.kind == kind;
            let rules = [
                (
                    name.starts_with("conserver_") && name.chars().all(is_good),
                    "begin the name with conserver_, and use small letters and _",
                ),
                (
                    name.ends_with("_total") == is(MetricKind::Counter),
                    "end the names of counters, and no others, with _total",
                ),
                (
                    name.ends_with("_info") == is(MetricKind::Info),
                    "end the names of infos, and no others, with _info",
                ),
                (
                    name.ends_with("_seconds") || !is(MetricKind::Histogram),
                    "count in seconds, and end the name with _seconds",
                ),
                (
                    !metric.help.ends_with('.'),
                    "end the meaning without a full stop",
                ),
            ];
            for (holds, rule) in rules {
                assert!(holds, "{}: {name}: {rule}", file!());
            }
        }
    }
}
