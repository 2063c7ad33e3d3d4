//! The metrics of the daemon as messages of OpenTelemetry, under the names that the existing server gives them.
//!
//! They are what all workers have counted on the scoreboard since the supervisor was started: cumulative, whatever
//! processes come and go. Nothing here reads anything, or sends it.

use std::ops::RangeInclusive;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use crate::config::Plan;
use crate::queue::{dead_letter_list, storage_letters_list};
use crate::scoreboard::{Event, Histogram as Times, Series, SeriesKind, Snapshot, shown_name};
use crate::view::Queues;

/// Buckets end at these powers of two, in seconds: from 0.24 ms to 17 minutes, as in `/metrics`.
const BOUNDS: RangeInclusive<i32> = -12..=10;

/// Everything that the metrics are computed from.
pub(super) struct MetricInputs<'a> {
    pub snapshot: &'a Snapshot,
    /// The configuration in force.
    pub plan: Option<&'a Plan>,
    /// The lengths of the lists, if Redis has told them.
    pub queues: Option<&'a Queues>,
    /// The memory of Redis in bytes, likewise.
    pub memory: Option<u64>,
    /// When the counters began, in nanoseconds since 1970.
    pub started: u64,
    /// The time of these values, likewise.
    pub now: u64,
}

/// The message with all metrics.
pub(super) fn request(
    resource: &ResourceAttributesWithSchema,
    inputs: &MetricInputs<'_>,
) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: "conserver".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let resource = Resource {
        attributes: resource.attributes.0.clone(),
        ..Resource::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics: inputs.metrics(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

impl MetricInputs<'_> {
    /// Those that have any value.
    fn metrics(&self) -> Vec<Metric> {
        let all = [
            self.counter(
                "conserver.main_loop.count_vcons_received",
                "vCons taken from the list",
                self.of(SeriesKind::List).map(|list| {
                    (
                        vec![text("ingress_list", &list.name)],
                        list.count(Event::Received),
                    )
                }),
            ),
            self.counter(
                "conserver.main_loop.count_vcons_processed",
                "vCons whose chain has ended well",
                self.of(SeriesKind::Chain).map(|chain| {
                    let done = chain.count(Event::Done) + chain.count(Event::Halted);
                    (vec![text("chain.name", &chain.name)], done)
                }),
            ),
            self.histogram(
                "conserver.main_loop.vcon_processing_time",
                "s",
                "The whole work on a vCon whose chain has ended well",
                self.of(SeriesKind::Chain)
                    .map(|chain| (vec![text("chain.name", &chain.name)], chain.times.clone())),
            ),
            self.in_flight(),
            self.counter(
                "conserver.link.count",
                "Attempts of the link",
                self.of(SeriesKind::Link).flat_map(|link| {
                    let outcomes = [
                        ("success", Event::Done),
                        ("halt", Event::Halted),
                        ("error", Event::Failed),
                    ];
                    outcomes.map(|(outcome, event)| {
                        let attributes =
                            vec![text("link_name", &link.name), text("outcome", outcome)];
                        (attributes, link.count(event))
                    })
                }),
            ),
            self.histogram(
                "conserver.link.execution_time",
                "s",
                "Each attempt of the link at a vCon",
                self.of(SeriesKind::ChainLink).filter_map(|pair| {
                    let (chain, link) = pair.chain_and_link()?;
                    let attributes = vec![text("link.name", &link), text("chain.name", &chain)];
                    Some((attributes, pair.times.clone()))
                }),
            ),
            self.counter(
                "conserver.storage.count",
                "Attempts to save a vCon in the storage",
                self.of(SeriesKind::Storage).flat_map(|storage| {
                    [("success", Event::Done), ("error", Event::Failed)].map(|(outcome, event)| {
                        let attributes =
                            vec![text("backend", &storage.name), text("outcome", outcome)];
                        (attributes, storage.count(event))
                    })
                }),
            ),
            self.histogram(
                "conserver.storage.duration_ms",
                "ms",
                "Each attempt to save a vCon in the storage",
                self.storage_times(),
            ),
            self.histogram(
                "conserver.webhook.duration",
                "s",
                "Each post to the URL of a webhook that was answered",
                self.snapshot.answers.iter().map(|(status, times)| {
                    (vec![number("status_code", (*status).into())], times.clone())
                }),
            ),
            self.counter(
                "conserver.dlq.count",
                "vCons that went to the dead letter queue",
                self.dead_letters(),
            ),
            self.lengths(),
            self.gauge(
                "conserver.redis.memory_used_bytes",
                "By",
                "Memory that Redis uses",
                self.memory.into_iter().map(|bytes| (Vec::new(), bytes)),
            ),
        ];
        all.into_iter().flatten().collect()
    }

    /// The series of this kind.
    fn of(&self, kind: SeriesKind) -> impl Iterator<Item = &Series> {
        let series = self.snapshot.series.iter();
        series.filter(move |series| series.kind == kind)
    }

    /// The vCons that lanes hold, by the chains of the configuration in force.
    fn in_flight(&self) -> Option<Metric> {
        let chains = self.plan.map_or(&[][..], |plan| &plan.chains);
        let slots = self.snapshot.slots.iter();
        let lanes = slots.filter_map(|slot| Some(&slot.worker.as_ref()?.lanes));
        let mut counts = vec![0; chains.len()];
        for chain in lanes.flatten().filter_map(|lane| lane.chain) {
            if let Some(count) = counts.get_mut(chain) {
                *count += 1;
            }
        }
        let points = chains.iter().zip(counts).map(|(chain, count)| {
            let attributes = vec![text("chain.name", &shown_name(&chain.name))];
            self.point((attributes, count))
        });
        sum(
            "conserver.vcons.inflight",
            "vCons that workers hold",
            points.collect(),
            false,
        )
    }

    /// The times of each storage, apart for attempts that succeeded and those that failed.
    fn storage_times(&self) -> impl Iterator<Item = (Vec<KeyValue>, Times)> {
        self.of(SeriesKind::Storage).flat_map(|storage| {
            let mut failures = self.of(SeriesKind::StorageFailure);
            let failed = failures.find(|series| series.name == storage.name);
            let failed = failed
                .map(|series| series.times.clone())
                .unwrap_or_default();
            let succeeded = storage.times.since(&failed);
            [("success", succeeded), ("error", failed)].map(|(outcome, times)| {
                let attributes = vec![text("backend", &storage.name), text("outcome", outcome)];
                (attributes, times)
            })
        })
    }

    /// Dead letters by the key of their queue.
    fn dead_letters(&self) -> impl Iterator<Item = (Vec<KeyValue>, u64)> {
        let lists = self.of(SeriesKind::List).map(|list| {
            let queue = list
                .name
                .parse()
                .map_or_else(|_| String::new(), |name| dead_letter_list(&name));
            (queue, list)
        });
        let storages = self
            .of(SeriesKind::StorageFailure)
            .map(|storage| (storage_letters_list(&storage.name), storage));
        let all = lists.chain(storages).filter(|(queue, _)| !queue.is_empty());
        all.map(|(queue, series)| {
            (
                vec![text("queue_name", &queue)],
                series.count(Event::DeadLettered),
            )
        })
    }

    fn lengths(&self) -> Option<Metric> {
        let queues = self.queues?;
        let ingress = queues.ingress.iter().map(|lists| (lists, "ingress"));
        let dead = queues.dead_letters.iter().map(|lists| (lists, "dlq"));
        // A key that is not a list has no length.
        let points = ingress.chain(dead).filter_map(|((list, length), kind)| {
            let attributes = vec![text("ingress_list", &shown_name(list)), text("kind", kind)];
            Some((attributes, (*length)?))
        });
        self.gauge(
            "conserver.ingress_list.length",
            "",
            "Entries of the list",
            points,
        )
    }

    fn counter(
        &self,
        name: &str,
        description: &str,
        values: impl Iterator<Item = (Vec<KeyValue>, u64)>,
    ) -> Option<Metric> {
        let points = values.map(|value| self.point(value)).collect();
        sum(name, description, points, true)
    }

    fn gauge(
        &self,
        name: &str,
        unit: &str,
        description: &str,
        values: impl Iterator<Item = (Vec<KeyValue>, u64)>,
    ) -> Option<Metric> {
        let point = |value| NumberDataPoint {
            start_time_unix_nano: 0,
            ..self.point(value)
        };
        let data_points: Vec<_> = values.map(point).collect();
        (!data_points.is_empty()).then(|| Metric {
            unit: unit.to_owned(),
            ..metric(name, description, Data::Gauge(Gauge { data_points }))
        })
    }

    fn point(&self, (attributes, value): (Vec<KeyValue>, u64)) -> NumberDataPoint {
        NumberDataPoint {
            attributes,
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            value: Some(Number::AsInt(i64::try_from(value).unwrap_or(i64::MAX))),
            ..NumberDataPoint::default()
        }
    }

    /// A histogram of those that have any times. Its unit is that of the bounds: seconds or milliseconds.
    fn histogram(
        &self,
        name: &str,
        unit: &str,
        description: &str,
        values: impl Iterator<Item = (Vec<KeyValue>, Times)>,
    ) -> Option<Metric> {
        let scale = if unit == "ms" { 1e3 } else { 1.0 };
        let values = values.filter(|(_, times)| times.count() > 0);
        let data_points: Vec<_> = values
            .map(|(attributes, times)| HistogramDataPoint {
                attributes,
                start_time_unix_nano: self.started,
                time_unix_nano: self.now,
                count: times.count(),
                sum: Some(times.sum() * scale),
                bucket_counts: buckets(&times),
                explicit_bounds: BOUNDS.map(|power| 2_f64.powi(power) * scale).collect(),
                ..HistogramDataPoint::default()
            })
            .collect();
        let data = Histogram {
            data_points,
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
        };
        (!data.data_points.is_empty()).then(|| Metric {
            unit: unit.to_owned(),
            ..metric(name, description, Data::Histogram(data))
        })
    }
}

fn sum(
    name: &str,
    description: &str,
    data_points: Vec<NumberDataPoint>,
    is_monotonic: bool,
) -> Option<Metric> {
    let data = Sum {
        data_points,
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
        is_monotonic,
    };
    (!data.data_points.is_empty()).then(|| metric(name, description, Data::Sum(data)))
}

fn metric(name: &str, description: &str, data: Data) -> Metric {
    Metric {
        name: name.to_owned(),
        description: description.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Value::StringValue(value.to_owned()))
}

fn number(name: &str, value: i64) -> KeyValue {
    attribute(name, Value::IntValue(value))
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// How many times each bucket has, the last one being beyond all bounds.
fn buckets(times: &Times) -> Vec<u64> {
    let mut below = 0;
    let up_to = BOUNDS.map(|power| times.up_to(power));
    up_to
        .chain([times.count()])
        .map(|up_to| up_to - std::mem::replace(&mut below, up_to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::histogram;

    #[test]
    fn each_time_is_in_the_bucket_whose_bound_is_the_first_that_is_not_below_it() {
        let seconds = [0.0, 0.001, 0.001, 0.5, 0.501, 2_000.0];
        let times = histogram(&seconds);
        let counts = buckets(&times);
        let bounds: Vec<f64> = BOUNDS.map(|power| 2_f64.powi(power)).collect();
        assert_eq!(counts.len(), bounds.len() + 1);
        let of = |bound: f64| {
            let place = bounds
                .iter()
                .position(|it| (it - bound).abs() < f64::EPSILON);
            place.map(|place| counts[place])
        };
        assert_eq!(counts[0], 1);
        // A millisecond is between 2^-10 and 2^-9 seconds.
        assert_eq!(of(2_f64.powi(-9)), Some(2));
        assert_eq!(of(0.5), Some(1));
        assert_eq!(of(1.0), Some(1));
        assert_eq!(counts.last(), Some(&1));
        assert_eq!(counts.iter().sum::<u64>(), 6);
    }
}
