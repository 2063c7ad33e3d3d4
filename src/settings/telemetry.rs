//! What the environment says of OpenTelemetry, in the standard's own variables.
//!
//! Without an endpoint, telemetry is off, and whatever else is set does not matter.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::reader::{Reader, accepted};
use crate::secret::Secret;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const COMPRESSION: &str = "OTEL_EXPORTER_OTLP_COMPRESSION";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The port on which collectors take gRPC, which is not built in.
const GRPC_PORT: u16 = 4317;

/// An hour, in milliseconds.
const LONGEST: u64 = 3_600_000;

/// All vCons, in millionths.
const ALL: u32 = 1_000_000;

/// What the environment says of OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Where spans go; `None` if nowhere. A URL may hold a password.
    pub traces: Option<Secret>,
    /// Where metrics go; `None` if nowhere.
    pub metrics: Option<Secret>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: sent with each request.
    pub headers: Vec<(HeaderName, Secret)>,
    /// `OTEL_EXPORTER_OTLP_COMPRESSION`: whether what is sent is compressed.
    pub is_compressed: bool,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`: the time limit of a request.
    pub timeout: Duration,
    /// `OTEL_METRIC_EXPORT_INTERVAL`
    pub interval: Duration,
    /// `OTEL_SERVICE_NAME`
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`
    pub attributes: Vec<(String, String)>,
    /// `OTEL_TRACES_SAMPLER`: of how many in a million vCons there are spans.
    pub sampled: u32,
}

impl TelemetrySettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let faults = reader.faults.len();
        let is_disabled = reader.boolean("OTEL_SDK_DISABLED", false);
        let base = endpoint(reader, ENDPOINT);
        let below = |path: &str| {
            let base = base.as_ref()?.reveal().trim_end_matches('/');
            Some(Secret::new(format!("{base}{path}")))
        };
        let settings = Self {
            traces: endpoint(reader, TRACES).or_else(|| below("/v1/traces")),
            metrics: endpoint(reader, METRICS).or_else(|| below("/v1/metrics")),
            headers: headers(reader),
            is_compressed: reader.parsed(COMPRESSION, false, |text| match text {
                "gzip" => Some(true),
                "none" => Some(false),
                _ => None,
            }),
            timeout: milliseconds(reader, "OTEL_EXPORTER_OTLP_TIMEOUT", 10_000),
            interval: milliseconds(reader, "OTEL_METRIC_EXPORT_INTERVAL", 5000),
            service_name: reader.text("OTEL_SERVICE_NAME"),
            attributes: attributes(reader),
            sampled: sampled(reader),
        };
        check_protocol(reader);
        let is_named = [ENDPOINT, TRACES, METRICS]
            .into_iter()
            .any(|name| reader.raw(name).is_some());
        if is_disabled || !is_named {
            // Whatever is wrong with variables of which nothing is used must not keep the daemon from starting.
            reader.faults.truncate(faults);
            return Self {
                traces: None,
                metrics: None,
                ..settings
            };
        }
        settings
    }

    /// Whether anything is sent.
    pub fn is_on(&self) -> bool {
        self.traces.is_some() || self.metrics.is_some()
    }

    /// What is probably wrong although it can be used, as a sentence.
    pub fn warning(&self) -> Option<String> {
        let is_grpc = |url: &&Secret| port(url.reveal()) == Some(GRPC_PORT);
        let mut urls = [&self.traces, &self.metrics].into_iter().flatten();
        urls.find(is_grpc)?;
        Some(format!(
            "{ENDPOINT}: port {GRPC_PORT} is the one on which collectors take gRPC; what is sent is HTTP, which they \
             take on port 4318"
        ))
    }
}

fn port(url: &str) -> Option<u16> {
    url.parse::<Uri>().ok()?.port_u16()
}

/// A URL, which is not shown if it is none: it may hold a password.
fn endpoint(reader: &mut Reader<'_>, name: &str) -> Option<Secret> {
    let text = reader.text(name)?;
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        is_web && uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none()
    });
    if uri.is_none() {
        reader.fault(name, &format!("the value is not {}", accepted(name)));
    }
    uri.map(|_| Secret::new(text))
}

fn check_protocol(reader: &mut Reader<'_>) {
    match reader.text(PROTOCOL).as_deref() {
        None | Some("http/protobuf") => {}
        Some("grpc") => reader.fault(
            PROTOCOL,
            &format!(
                "grpc is not built in: set http/protobuf, and in {ENDPOINT} the port on which the collector takes \
                 HTTP, by default 4318"
            ),
        ),
        Some("http/json") => reader.fault(
            PROTOCOL,
            "http/json is not built in: set http/protobuf, which every collector takes at the same address",
        ),
        Some(other) => {
            let shown: String = other.chars().take(80).collect();
            reader.fault(
                PROTOCOL,
                &format!("{shown:?} is not {}", accepted(PROTOCOL)),
            );
        }
    }
}

fn milliseconds(reader: &mut Reader<'_>, name: &str, default: u64) -> Duration {
    Duration::from_millis(reader.number(name, default, 1, LONGEST))
}

/// `name=value,name=value` with what is special in a value percent-encoded; the number of the first that is not so.
fn pairs(text: &str) -> Result<Vec<(String, String)>, usize> {
    let parts = text.split(',').enumerate();
    let parts = parts.filter(|(_, part)| !part.trim().is_empty());
    parts
        .map(|(number, part)| {
            let (name, value) = part.split_once('=').ok_or(number + 1)?;
            let decoded = |text: &str| {
                let text = percent_decode_str(text.trim()).decode_utf8();
                text.map(|text| text.into_owned()).map_err(|_| number + 1)
            };
            let name = decoded(name)?;
            if name.is_empty() {
                return Err(number + 1);
            }
            Ok((name, decoded(value)?))
        })
        .collect()
}

/// No part of the value is shown: keys of collectors are in it.
fn headers(reader: &mut Reader<'_>) -> Vec<(HeaderName, Secret)> {
    let Some(text) = reader.text(HEADERS) else {
        return Vec::new();
    };
    let read = pairs(&text).and_then(|pairs| {
        let pairs = pairs.into_iter().zip(1_usize..);
        pairs
            .map(|((name, value), number)| {
                let name = name.parse().map_err(|_| number)?;
                HeaderValue::from_str(&value).map_err(|_| number)?;
                Ok((name, Secret::new(value)))
            })
            .collect()
    });
    read.unwrap_or_else(|number: usize| {
        let message = format!("header {number} is not like those in {}", accepted(HEADERS));
        reader.fault(HEADERS, &message);
        Vec::new()
    })
}

fn attributes(reader: &mut Reader<'_>) -> Vec<(String, String)> {
    let Some(text) = reader.text(ATTRIBUTES) else {
        return Vec::new();
    };
    pairs(&text).unwrap_or_else(|number| {
        let message = format!(
            "attribute {number} is not like those in {}",
            accepted(ATTRIBUTES)
        );
        reader.fault(ATTRIBUTES, &message);
        Vec::new()
    })
}

/// Each vCon begins a trace, so those samplers that follow a parent do what they do without one.
fn sampled(reader: &mut Reader<'_>) -> u32 {
    let share = reader.parsed(SAMPLER_ARGUMENT, 1.0, |text| {
        text.parse::<f64>()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
    });
    reader.parsed(SAMPLER, ALL, |text| {
        match text.strip_prefix("parentbased_").unwrap_or(text) {
            "always_on" => Some(ALL),
            "always_off" => Some(0),
            "traceidratio" => Some((share * f64::from(ALL)).round() as u32),
            _ => None,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> (TelemetrySettings, Vec<String>) {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let mut reader = Reader::new(&lookup);
        let settings = TelemetrySettings::read(&mut reader);
        (settings, reader.faults)
    }

    fn shown(url: &Option<Secret>) -> Option<&str> {
        url.as_ref().map(Secret::reveal)
    }

    const ON: (&str, &str) = (ENDPOINT, "http://collector:4318");

    #[test]
    fn signals_go_below_the_endpoint_or_to_their_own() {
        let (settings, faults) = read(&[]);
        assert!(!settings.is_on() && faults.is_empty());
        for base in ["http://collector:4318", "http://collector:4318/"] {
            let (settings, faults) = read(&[(ENDPOINT, base)]);
            assert_eq!(faults, [""; 0]);
            assert_eq!(
                shown(&settings.traces),
                Some("http://collector:4318/v1/traces")
            );
            assert_eq!(
                shown(&settings.metrics),
                Some("http://collector:4318/v1/metrics")
            );
        }
        let (settings, _) = read(&[(TRACES, "https://t.example/in")]);
        assert_eq!(shown(&settings.traces), Some("https://t.example/in"));
        assert!(settings.metrics.is_none() && settings.is_on());
        let (settings, _) = read(&[ON, ("OTEL_SDK_DISABLED", "true")]);
        assert!(!settings.is_on());
    }

    #[test]
    fn what_is_not_built_in_is_told_with_what_is() {
        for (protocol, expected) in [
            ("grpc", "grpc is not built in: set http/protobuf, and in"),
            ("http/json", "http/json is not built in: set http/protobuf"),
            ("udp", "\"udp\" is not http/protobuf"),
        ] {
            let (_, faults) = read(&[ON, (PROTOCOL, protocol)]);
            assert_eq!(faults.len(), 1);
            assert!(faults[0].contains(expected), "{faults:?}");
            // Without an endpoint it does not matter.
            assert_eq!(read(&[(PROTOCOL, protocol)]).1, [""; 0]);
        }
        assert_eq!(read(&[ON, (PROTOCOL, "http/protobuf")]).1, [""; 0]);
    }

    #[test]
    fn the_port_of_grpc_is_warned_of() {
        let warning = |url: &str| read(&[(ENDPOINT, url)]).0.warning();
        assert!(warning("http://collector:4317").unwrap().contains("4318"));
        assert_eq!(warning("http://collector:4318"), None);
        assert_eq!(warning("https://collector.example"), None);
    }

    #[test]
    fn headers_and_attributes_are_decoded_and_headers_never_shown() {
        let variables = [
            ON,
            (HEADERS, "Authorization=Bearer%20hunter2, x-tenant = a%2Cb,"),
            (ATTRIBUTES, "deployment.environment=pr%C3%B6d,team = a=b"),
            ("OTEL_SERVICE_NAME", "calls"),
        ];
        let (settings, faults) = read(&variables);
        assert_eq!(faults, [""; 0]);
        let headers: Vec<(&str, &str)> = settings
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.reveal()))
            .collect();
        assert_eq!(
            headers,
            [("authorization", "Bearer hunter2"), ("x-tenant", "a,b")]
        );
        assert_eq!(
            settings.attributes,
            [("deployment.environment", "pröd"), ("team", "a=b")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(settings.service_name.as_deref(), Some("calls"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        for wrong in ["hunter2", "a=b,hunter2", "a b=hunter2", "a=hunter2%0A"] {
            let (_, faults) = read(&[ON, (HEADERS, wrong)]);
            assert_eq!(faults.len(), 1, "{wrong}");
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
        assert_eq!(read(&[ON, (ATTRIBUTES, "a")]).1.len(), 1);
    }

    #[test]
    fn a_url_that_is_none_is_not_shown() {
        for wrong in ["collector:4318", "ftp://a:hunter2@b", "http://", "x"] {
            let (_, faults) = read(&[(ENDPOINT, wrong)]);
            assert_eq!(faults.len(), 1, "{wrong}");
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
    }

    #[test]
    fn samplers_are_those_of_the_standard() {
        for (sampler, share, expected) in [
            ("always_on", "", 1_000_000),
            ("parentbased_always_on", "0.5", 1_000_000),
            ("always_off", "", 0),
            ("traceidratio", "0.25", 250_000),
            ("parentbased_traceidratio", "", 1_000_000),
        ] {
            let variables = [ON, (SAMPLER, sampler), (SAMPLER_ARGUMENT, share)];
            assert_eq!(read(&variables).0.sampled, expected, "{sampler}");
        }
        assert_eq!(read(&[ON, (SAMPLER, "xray")]).1.len(), 1);
        assert_eq!(read(&[ON, (SAMPLER_ARGUMENT, "2")]).1.len(), 1);
    }
}
