//! Every metric in one table: the contract that the manual repeats.

use crate::scoreboard::{Event, SeriesKind};

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name as it is served; those of a histogram have `_bucket`, `_sum` and `_count` besides.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
    pub(super) source: Source,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows as long as the daemon lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts times by their length.
    Histogram,
    /// Is 1, and says something by its labels.
    Info,
}

/// Where a metric's figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
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
    Followers(Tallied),
    Holds,
}

impl Kind {
    /// The word for it in both formats of Prometheus, and in the manual.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// What is told of a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tallied {
    Pulled,
    DeadLettered,
    Failures,
    Waiting,
    Up,
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    source: Source,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        labels,
        help,
        source,
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    source: Source,
    help: &'static str,
) -> Metric {
    Metric {
        kind: Kind::Counter,
        ..gauge(name, labels, source, help)
    }
}

const fn counts(name: &'static str, kind: SeriesKind, event: Event, help: &'static str) -> Metric {
    counter(name, label_of(kind), Source::Counts(kind, event), help)
}

const fn times(name: &'static str, kind: SeriesKind, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Histogram,
        ..gauge(name, label_of(kind), Source::Times(kind), help)
    }
}

const fn label_of(kind: SeriesKind) -> &'static [&'static str] {
    match kind {
        SeriesKind::Chain => &["chain"],
        SeriesKind::Link => &["link"],
        SeriesKind::Storage => &["storage"],
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
        kind: Kind::Info,
        labels: &["version", "start_method"],
        help: "This program",
        source: Source::Build,
    },
    gauge("conserver_start_time_seconds", &[], Source::Start,
        "When the supervisor was started, in seconds since 1970"),
    gauge("conserver_workers_wanted", &[], Source::Wanted,
        "Workers that there are to be"),
    gauge("conserver_workers_ready", &[], Source::Ready,
        "Workers that are ready to take work"),
    gauge("conserver_workers_backing_off", &[], Source::BackingOff,
        "Workers that keep dying and wait for their next start"),
    counter("conserver_worker_restarts_total", &["cause"], Source::Restarts,
        "Processes, the monitor among them, that took the place of another"),
    gauge("conserver_worker_memory_bytes", &["worker"], Source::Memory,
        "Memory of each process, its share of what it has in common with others included"),
    counter("conserver_worker_cpu_seconds_total", &["worker"], Source::Cpu,
        "Processor time of each worker and its predecessors"),
    gauge("conserver_vcons_in_flight", &[], Source::InFlight,
        "vCons that workers hold"),
    gauge("conserver_vcons_waiting", &[], Source::Waiting,
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
    times("conserver_storage_duration_seconds", STORAGE,
        "Each attempt to save a vCon in the storage"),
    gauge("conserver_queue_length", &["list", "kind"], Source::Queues,
        "Entries of each list (kind: ingress, egress, dead_letter); none while Redis is away"),
    gauge("conserver_storage_dead_letters", &["storage"], Source::StorageDeadLetters,
        "vCons that the storage refused for good and that wait for an operator; none while Redis is away"),
    gauge("conserver_storage_backlog", &["storage"], Source::StorageBacklog,
        "vCons that are saved as soon as the storage is available again; none while Redis is away"),
    gauge("conserver_redis_up", &[], Source::Redis,
        "Whether Redis answers the monitor"),
    gauge("conserver_hold_seconds", &["kind", "name"], Source::Holds,
        "For how long chains have been on hold for a link or storage (kind) that is away"),
    counter("conserver_follower_pulled_total", FOLLOWER, Source::Followers(Tallied::Pulled),
        "vCons that the follower has pulled since the monitor started"),
    counter("conserver_follower_dead_lettered_total", FOLLOWER, Source::Followers(Tallied::DeadLettered),
        "UUIDs that the follower has moved to the dead letter queue since the monitor started"),
    counter("conserver_follower_failures_total", FOLLOWER, Source::Followers(Tallied::Failures),
        "How often the follower could not go on since the monitor started"),
    gauge("conserver_follower_waiting", FOLLOWER, Source::Followers(Tallied::Waiting),
        "UUIDs that the follower has taken and whose documents are still to be fetched"),
    gauge("conserver_follower_up", FOLLOWER, Source::Followers(Tallied::Up),
        "Whether the follower could go on at its last try"),
];

/// The table as Markdown, for conserver-operations(7).
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_alert_rules_and_the_dashboard_know_no_other_metrics() {
        for text in [
            include_str!("../../../../packaging/prometheus/alerts.yml"),
            include_str!("../../../../packaging/prometheus/alerts.test.yml"),
            include_str!("../../../../packaging/prometheus/dashboard.json"),
        ] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let named: BTreeSet<&str> = words.filter(|it| it.starts_with("conserver_")).collect();
            assert!(!named.is_empty());
            for name in named {
                let is_it = |metric: &&Metric| {
                    let rest = name.strip_prefix(metric.name);
                    let part = ["", "_bucket", "_sum", "_count"];
                    match metric.kind {
                        Kind::Histogram => rest.is_some_and(|rest| part.contains(&rest)),
                        _ => rest == Some(""),
                    }
                };
                assert!(TABLE.iter().any(|metric| is_it(&metric)), "{name}");
            }
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for metric in TABLE {
            let name = metric.name;
            let is_good = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(
                name.starts_with("conserver_") && name.chars().all(is_good),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
            if metric.kind == Kind::Histogram {
                assert!(name.ends_with("_seconds"), "{name}");
            }
            assert!(!metric.help.ends_with('.'), "{name}");
        }
    }
}
