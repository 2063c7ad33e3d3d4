//! `/metrics`: what has been read, in the formats of Prometheus.

mod figures;
mod table;

use std::collections::HashSet;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub(super) use figures::{Figures, memory};
use figures::{Sample, Value};
pub use table::{Kind, Metric, TABLE, markdown_table};

/// The formats there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The text format that every reader knows.
    Classic,
    /// OpenMetrics 1.0, for who asks for it.
    OpenMetrics,
}

impl Format {
    /// The one that is best for this `Accept` header.
    pub fn for_accept(header: &str) -> Self {
        let mut ranges = header.split(',');
        let is_open = |range: &str| {
            let kind = range.split(';').next().unwrap_or_default();
            kind.trim()
                .eq_ignore_ascii_case("application/openmetrics-text")
        };
        if ranges.any(is_open) {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// All metrics.
    pub fn write(self, figures: Figures) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(figures));
        let mut written = String::new();
        match self {
            Self::Classic => prometheus_text::encode(&mut written, &registry)?,
            Self::OpenMetrics => text::encode(&mut written, &registry)?,
        }
        Ok(written)
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in TABLE {
            let samples = self.of(metric);
            let name = metric.name;
            // The library adds these itself.
            let name = name.strip_suffix("_total").unwrap_or(name);
            let name = name.strip_suffix("_info").unwrap_or(name);
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
                Kind::Info => MetricType::Info,
            };
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            let mut seen = HashSet::new();
            for sample in &samples {
                // Readers refuse everything where something is said twice. Two names that differ
                // in what cannot be shown are one here.
                if seen.insert(&sample.labels) {
                    encode(&mut encoder, metric, sample)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, metric: &Metric, sample: &Sample) -> fmt::Result {
    let names = metric.labels.iter().copied();
    let labels: Vec<(&str, &str)> = names
        .zip(sample.labels.iter().map(String::as_str))
        .collect();
    if metric.kind == Kind::Info {
        return encoder.encode_info(&labels);
    }
    let mut encoder = encoder.encode_family(&labels)?;
    match (&sample.value, metric.kind) {
        (Value::Whole(number), Kind::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (Value::Real(number), Kind::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (Value::Whole(number), _) => encoder.encode_gauge(number),
        (Value::Real(number), _) => encoder.encode_gauge(number),
        (Value::Times { sum, buckets }, _) => {
            let count = buckets.iter().map(|(_, count)| *count);
            let count = count.fold(0, u64::wrapping_add);
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_are_for_who_asks_for_them() {
        for (accept, format) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain;version=0.0.4", Format::Classic),
            ("application/openmetrics-textual", Format::Classic),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "text/plain, Application/OpenMetrics-Text",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::for_accept(accept), format, "{accept}");
        }
    }
}
