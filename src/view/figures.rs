//! What chains, links and storages have done since the daemon started, all its workers together, and how long
//! it took.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::config::Plan;
use crate::scoreboard::{Event, Histogram, Quantile, Series, SeriesKind, Snapshot, shown_name};

/// The figures of one chain, link or storage. A chain counts vCons; a link or storage counts attempts.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Its name in the configuration.
    pub name: String,
    /// Whether it is in the configuration in force, a chain also enabled; true for all if that configuration is
    /// not known.
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
    /// How long each took.
    pub seconds: Histogram,
}

/// The figures of all of one kind: first those in force, in the order of the file, then those of former
/// configurations.
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
        // For the collector of OpenTelemetry alone.
        SeriesKind::List | SeriesKind::ChainLink | SeriesKind::StorageFailure => Vec::new(),
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
            seconds: series.times.clone(),
        }
    }

    /// How many vCons finished here, halted or not.
    pub fn through(&self) -> u64 {
        self.done.saturating_add(self.halted.unwrap_or(0))
    }
}

/// The upper bound of a bucket in JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Bound {
    Seconds(f64),
    None(&'static str),
}

impl Serialize for Histogram {
    /// Buckets are pairs of an upper bound and how many times are below or at it. A bound that has no times between it
    /// and the bound below it is left out.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bounded =
            (self.cumulative()).filter_map(|(bound, up_to)| Some((Bound::Seconds(bound?), up_to)));
        let mut buckets: Vec<(Bound, u64)> = bounded.collect();
        buckets.push((Bound::None("+Inf"), self.count()));
        let mut fields = serializer.serialize_struct("Histogram", 7)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("sum", &self.sum())?;
        fields.serialize_field("mean", &self.mean())?;
        for (name, q) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            fields.serialize_field(name, &self.quantile(q).map(Quantile::seconds))?;
        }
        fields.serialize_field("buckets", &buckets)?;
        fields.end()
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Below(seconds) => format!("< {}", short_time(*seconds)),
            Self::About(seconds) => short_time(*seconds),
            Self::Above(seconds) => format!("> {}", short_time(*seconds)),
        };
        f.pad(&text)
    }
}

/// Two digits or more: `25 µs`, `0.25 ms`, `2.5 ms`, `250 ms`, `2.5 s`, `25 s`.
pub fn short_time(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 0.000_099_5 => (s * 1e6, "µs"),
        s if s < 0.9995 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match number {
        n if n < 0.995 => 2,
        n if n < 9.95 => 1,
        _ => 0,
    };
    format!("{} {unit}", fixed(number, digits))
}

/// A number with this many digits behind the point. Rounds half up, like the `toFixed` of the monitor's page;
/// `format!` rounds half to even.
pub fn fixed(number: f64, digits: i32) -> String {
    // No more than three bits behind the point can be half of the first or second digit there.
    let is_half = (number * 8.0).fract() == 0.0 && (number * 10_f64.powi(digits)).fract() == 0.5;
    let number = if is_half { number.next_up() } else { number };
    let digits = digits.unsigned_abs() as usize;
    format!("{number:.digits$}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::scoreboard::histogram;

    #[test]
    fn half_of_the_last_digit_goes_up() {
        for (number, digits, expected) in [
            (0.625, 2, "0.63"),
            (0.375, 2, "0.38"),
            // A little less than it seems.
            (0.615, 2, "0.61"),
            (0.63, 2, "0.63"),
            (2.25, 1, "2.3"),
            (2.75, 1, "2.8"),
            (12.5, 0, "13"),
            (0.0, 2, "0.00"),
        ] {
            assert_eq!(fixed(number, digits), expected);
        }
        assert_eq!(short_time(0.000_625), "0.63 ms");
    }

    #[test]
    fn programs_are_shown_buckets_as_prometheus_has_them() {
        let shown = serde_json::to_value(histogram(&[0.5, 0.5, 1.0, 1e6])).unwrap();
        assert_eq!(shown["count"], 4);
        assert_eq!(shown["sum"], 1_000_002.0);
        assert_eq!(shown["mean"], 250_000.5);
        assert_eq!(shown["p99"], 131_072.0);
        let expected = serde_json::json!([[0.5, 2], [1.0, 3], ["+Inf", 4]]);
        assert_eq!(shown["buckets"], expected);
        let p50 = shown["p50"].as_f64().unwrap();
        assert!((p50 / 0.5 - 1.0).abs() < 0.022, "{p50}");
        let none = serde_json::to_value(Histogram::default()).unwrap();
        assert_eq!((&none["mean"], &none["p50"]), (&Value::Null, &Value::Null));
        assert_eq!(none["buckets"], serde_json::json!([["+Inf", 0]]));
    }

    #[test]
    fn times_are_shown_with_two_digits() {
        for (seconds, expected) in [
            (0.000_000_5, "0.50 µs"),
            (0.000_003, "3.0 µs"),
            (0.000_099, "99 µs"),
            (0.000_1, "0.10 ms"),
            (0.002_5, "2.5 ms"),
            (0.25, "250 ms"),
            (0.9999, "1.0 s"),
            (2.5, "2.5 s"),
            (25.0, "25 s"),
        ] {
            assert_eq!(Quantile::About(seconds).to_string(), expected);
        }
        assert_eq!(Quantile::Below(0.000_001).to_string(), "< 1.0 µs");
        assert_eq!(Quantile::Above(60.0).to_string(), "> 60 s");
    }
}
