//! How metrics are written: the formats that Prometheus reads, and which of them a client wants.
//!
//! Classic buckets end at powers of two of a second, which are bounds of the histograms too, so their counts are exact.
//! The protobuf format has native histograms besides, with every bound there is. Its messages stand here as structs,
//! with the numbers of the fields in Prometheus' `metrics.proto`; fields that the daemon never fills are left out.

use std::fmt;
use std::ops::RangeInclusive;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use prost::Message;

use super::metrics::{Metric, MetricInputs, MetricKind, Sample, SampleValue, TABLE};
use crate::scoreboard::{Histogram, SCHEMA};

/// Classic buckets end at these powers of two, in seconds: from 0.24 ms to 17 minutes. Each costs Prometheus a time
/// series for each chain, link and storage.
const CLASSIC_BOUNDS: RangeInclusive<i32> = -12..=10;

/// The formats of Prometheus; those that say more stand last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ExpositionFormat {
    /// The classic text, which every reader knows.
    Classic,
    /// OpenMetrics 1.0, for readers that ask for it.
    OpenMetrics,
    /// Protocol buffers, which alone have native histograms, for readers that ask for them.
    Protobuf,
}

impl ExpositionFormat {
    /// The format that this `Accept` header prefers; of several that it likes equally, the one that says most.
    pub fn for_accept(header: &str) -> Self {
        let ranges = header.split(',').filter_map(Self::of_range);
        let acceptable = ranges.filter(|(quality, _)| *quality > 0);
        acceptable.max().map_or(Self::Classic, |(_, format)| format)
    }

    /// The format that belongs to one part of the header, if any, and its quality in thousandths.
    fn of_range(range: &str) -> Option<(u16, Self)> {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next()?.to_ascii_lowercase();
        let parameters: Vec<(String, &str)> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
            .collect();
        let parameter = |name: &str| {
            let found = parameters.iter().find(|(it, _)| it == name);
            found.map(|(_, value)| value.trim_matches('"'))
        };
        let format = match &kind[..] {
            "application/vnd.google.protobuf" => {
                let is_ours = parameter("proto") == Some("io.prometheus.client.MetricFamily")
                    && parameter("encoding") == Some("delimited");
                is_ours.then_some(Self::Protobuf)?
            }
            "application/openmetrics-text" => Self::OpenMetrics,
            "text/plain" | "text/*" | "*/*" => Self::Classic,
            _ => return None,
        };
        let quality = parameter("q").and_then(|q| q.parse::<f64>().ok());
        let quality = quality.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(1.0);
        Some(((quality * 1e3) as u16, format))
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; \
                 proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// Writes all metrics in this format.
    pub fn write(self, inputs: MetricInputs) -> Result<Vec<u8>, fmt::Error> {
        if self == Self::Protobuf {
            return Ok(protobuf(&inputs));
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(inputs));
        let mut written = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut written, &registry)?,
            Self::Classic | Self::Protobuf => prometheus_text::encode(&mut written, &registry)?,
        }
        Ok(written.into_bytes())
    }
}

impl Collector for MetricInputs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in TABLE {
            let name = metric.name;
            // The library adds these suffixes itself.
            let name = name.strip_suffix("_total").unwrap_or(name);
            let name = name.strip_suffix("_info").unwrap_or(name);
            let kind = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
                MetricKind::Info => MetricType::Info,
            };
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for sample in self.samples(metric) {
                encode(&mut encoder, metric, &sample)?;
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
    if metric.kind == MetricKind::Info {
        return encoder.encode_info(&labels);
    }
    let mut encoder = encoder.encode_family(&labels)?;
    match (&sample.value, metric.kind) {
        (SampleValue::Whole(number), MetricKind::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (SampleValue::Real(number), MetricKind::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (SampleValue::Whole(number), _) => encoder.encode_gauge(number),
        (SampleValue::Real(number), _) => encoder.encode_gauge(number),
        (SampleValue::Times(times), _) => {
            // The library adds them up itself.
            let mut below = 0;
            let alone: Vec<(f64, u64)> = cumulative_buckets(times)
                .chain([(f64::INFINITY, times.count())])
                .map(|(bound, up_to)| (bound, up_to - std::mem::replace(&mut below, up_to)))
                .collect();
            encoder.encode_histogram::<NoLabelSet>(times.sum(), times.count(), &alone, None)
        }
    }
}

/// The bounds of the classic buckets in seconds, except +Inf, and how many times are at most that long.
fn cumulative_buckets(times: &Histogram) -> impl Iterator<Item = (f64, u64)> {
    CLASSIC_BOUNDS.map(|power| (2_f64.powi(power), times.up_to(power)))
}

/// All metrics as messages, each behind its length.
fn protobuf(inputs: &MetricInputs) -> Vec<u8> {
    let mut written = Vec::new();
    for metric in TABLE {
        let samples = inputs.samples(metric);
        // A family without samples is not allowed.
        if !samples.is_empty() {
            let family = proto::MetricFamily::of(metric, samples);
            written.extend(family.encode_length_delimited_to_vec());
        }
    }
    written
}

/// Messages of the package `io.prometheus.client`.
mod proto {
    use super::{
        Histogram as Times, Metric as TableRow, MetricKind, SCHEMA, Sample, SampleValue,
        cumulative_buckets,
    };

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MetricFamily {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub help: String,
        #[prost(enumeration = "MetricType", tag = "3")]
        pub r#type: i32,
        #[prost(message, repeated, tag = "4")]
        pub metric: Vec<Metric>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
    #[repr(i32)]
    pub enum MetricType {
        Counter = 0,
        Gauge = 1,
        Histogram = 4,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub counter: Option<Number>,
        #[prost(message, optional, tag = "7")]
        pub histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LabelPair {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }

    /// `Gauge` and `Counter`, which are alike.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Number {
        #[prost(double, tag = "1")]
        pub value: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Histogram {
        #[prost(uint64, tag = "1")]
        pub sample_count: u64,
        #[prost(double, tag = "2")]
        pub sample_sum: f64,
        #[prost(message, repeated, tag = "3")]
        pub bucket: Vec<Bucket>,
        #[prost(sint32, tag = "5")]
        pub schema: i32,
        #[prost(double, tag = "6")]
        pub zero_threshold: f64,
        #[prost(uint64, tag = "7")]
        pub zero_count: u64,
        #[prost(message, repeated, tag = "12")]
        pub positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, tag = "13")]
        pub positive_delta: Vec<i64>,
    }

    /// A classic bucket.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Bucket {
        #[prost(uint64, tag = "1")]
        pub cumulative_count: u64,
        #[prost(double, tag = "2")]
        pub upper_bound: f64,
    }

    /// Native buckets that follow one another.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BucketSpan {
        /// How many empty buckets lie between the span before and this one; of the first, the number of its first bucket.
        #[prost(sint32, tag = "1")]
        pub offset: i32,
        #[prost(uint32, tag = "2")]
        pub length: u32,
    }

    impl MetricFamily {
        pub fn of(row: &TableRow, samples: Vec<Sample>) -> Self {
            let kind = match row.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge | MetricKind::Info => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
            };
            let metric = samples.into_iter().map(|sample| Metric::of(row, sample));
            Self {
                name: row.name.to_owned(),
                help: row.help.to_owned(),
                r#type: kind.into(),
                metric: metric.collect(),
            }
        }
    }

    impl Metric {
        fn of(row: &TableRow, sample: Sample) -> Self {
            let labels = row.labels.iter().zip(sample.labels);
            let label = labels.map(|(name, value)| LabelPair {
                name: (*name).to_owned(),
                value,
            });
            let mut metric = Self {
                label: label.collect(),
                ..Self::default()
            };
            let value = match sample.value {
                SampleValue::Times(times) => {
                    metric.histogram = Some(Histogram::of(&times));
                    return metric;
                }
                SampleValue::Whole(number) => number as f64,
                SampleValue::Real(number) => number,
            };
            match row.kind {
                MetricKind::Counter => metric.counter = Some(Number { value }),
                _ => metric.gauge = Some(Number { value }),
            }
            metric
        }
    }

    impl Histogram {
        /// With classic buckets and native ones: a Prometheus that does not take in native histograms needs the classic.
        fn of(times: &Times) -> Self {
            let mut spans: Vec<BucketSpan> = Vec::new();
            let mut deltas = Vec::new();
            let (mut next, mut last) = (0, 0_i64);
            for (number, count) in times.native_buckets() {
                match spans.last_mut() {
                    Some(span) if number == next => span.length += 1,
                    _ => spans.push(BucketSpan {
                        offset: number - next,
                        length: 1,
                    }),
                }
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                deltas.push(count - last);
                (next, last) = (number + 1, count);
            }
            let bucket = cumulative_buckets(times).map(|(upper_bound, cumulative_count)| Bucket {
                cumulative_count,
                upper_bound,
            });
            Self {
                sample_count: times.count(),
                sample_sum: times.sum(),
                bucket: bucket.collect(),
                schema: SCHEMA,
                zero_threshold: Times::lowest(),
                zero_count: times.lowest_count(),
                positive_span: spans,
                positive_delta: deltas,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::scoreboard::histogram;

        #[test]
        fn neighbouring_buckets_share_a_span_and_counts_are_told_by_their_differences() {
            let times = histogram(&[1e-7, 0.5, 0.51, 0.51, 4.0]);
            let written = Histogram::of(&times);
            let spans = (written.positive_span.iter()).map(|span| (span.offset, span.length));
            // Buckets -16, -15 and 32.
            assert_eq!(spans.collect::<Vec<_>>(), [(-16, 2), (46, 1)]);
            assert_eq!(written.positive_delta, [1, 1, -1]);
            assert_eq!((written.zero_count, written.sample_count), (1, 5));
            assert_eq!(written.zero_threshold, 2_f64.powi(-20));
            let bucket = |bound| {
                let buckets = written.bucket.iter();
                let found = buckets.clone().find(|it| it.upper_bound == bound);
                found.map(|it| it.cumulative_count)
            };
            let counts = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0].map(bucket);
            assert_eq!(counts, [1, 2, 4, 4, 5, 5].map(Some));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_format_that_it_prefers() {
        const PROTOBUF: &str = "application/vnd.google.protobuf;\
            proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let prefers_protobuf =
            format!("{PROTOBUF};q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.2");
        let prefers_text = format!("{PROTOBUF};q=0.2, text/plain ; Q=\"0.4\"");
        for (accept, format) in [
            ("", ExpositionFormat::Classic),
            ("*/*", ExpositionFormat::Classic),
            ("text/plain;version=0.0.4", ExpositionFormat::Classic),
            ("application/openmetrics-textual", ExpositionFormat::Classic),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ExpositionFormat::OpenMetrics,
            ),
            (
                "text/plain, Application/OpenMetrics-Text",
                ExpositionFormat::OpenMetrics,
            ),
            (
                "application/openmetrics-text;q=0,text/plain;q=0.1",
                ExpositionFormat::Classic,
            ),
            (PROTOBUF, ExpositionFormat::Protobuf),
            (&prefers_protobuf, ExpositionFormat::Protobuf),
            (&prefers_text, ExpositionFormat::Classic),
            // Another message, and another way to write them.
            ("application/vnd.google.protobuf", ExpositionFormat::Classic),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                ExpositionFormat::Classic,
            ),
        ] {
            assert_eq!(ExpositionFormat::for_accept(accept), format, "{accept}");
        }
    }
}
