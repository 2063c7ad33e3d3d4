//! What chains, links and storages have done since the daemon started, all its workers together, and how long
//! it took: times are counted in buckets, and quantiles are read from those.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::config::Plan;
use crate::scoreboard::{BOUNDS_US, BUCKETS, Event, Series, SeriesKind, Snapshot, shown_name};

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
    pub seconds: Seconds,
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

    /// How many vCons finished here, halted or not.
    pub fn through(&self) -> u64 {
        self.done.saturating_add(self.halted.unwrap_or(0))
    }
}

/// Durations, counted in buckets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seconds {
    sum_us: u64,
    /// The count of each bucket alone.
    each: [u64; BUCKETS],
}

/// A quantile, as exact as buckets allow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantile {
    /// Between the bounds of a bucket, in seconds.
    About(f64),
    /// Beyond the last bound, which this is, in seconds.
    Above(f64),
}

impl Seconds {
    /// The durations of a series.
    pub fn of(series: &Series) -> Self {
        Self {
            sum_us: series.sum_us,
            each: series.buckets,
        }
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.each.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Counts these durations too.
    pub fn add(&mut self, others: &Self) {
        self.sum_us = self.sum_us.saturating_add(others.sum_us);
        for (all, more) in self.each.iter_mut().zip(&others.each) {
            *all = all.saturating_add(*more);
        }
    }

    /// The durations that were added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            each: std::array::from_fn(|i| self.each[i].saturating_sub(earlier.each[i])),
        }
    }

    /// The duration that the share `q` of all do not exceed, 0.5 for the median; `None` if there are none. Assumes
    /// that durations within a bucket are spread evenly.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let rank = q * self.count() as f64;
        let mut below = 0.0;
        for (bucket, n) in self.each.iter().enumerate().filter(|(_, n)| **n > 0) {
            let n = *n as f64;
            if below + n >= rank {
                let lower = if bucket == 0 { 0.0 } else { bound(bucket - 1)? };
                let Some(upper) = bound(bucket) else {
                    return Some(Quantile::Above(lower));
                };
                let share = ((rank - below) / n).max(0.0);
                return Some(Quantile::About(lower + (upper - lower) * share));
            }
            below += n;
        }
        None
    }
}

/// The upper bound of a bucket, in seconds; the last one has none.
fn bound(bucket: usize) -> Option<f64> {
    BOUNDS_US.get(bucket).map(|bound| *bound as f64 / 1e6)
}

/// The upper bound of a bucket in JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Bound {
    Seconds(f64),
    None(&'static str),
}

impl Serialize for Seconds {
    /// Buckets are pairs of an upper bound and how many times are below or at it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut up_to = 0_u64;
        let buckets: Vec<(Bound, u64)> = (self.each.iter().enumerate())
            .map(|(bucket, n)| {
                up_to = up_to.saturating_add(*n);
                let bound = bound(bucket).map_or(Bound::None("+Inf"), Bound::Seconds);
                (bound, up_to)
            })
            .collect();
        let mut fields = serializer.serialize_struct("Seconds", 3)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("sum", &(self.sum_us as f64 / 1e6))?;
        fields.serialize_field("buckets", &buckets)?;
        fields.end()
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::About(seconds) => short(*seconds),
            Self::Above(seconds) => format!("> {}", short(*seconds)),
        };
        f.pad(&text)
    }
}

/// Two digits or more: `0.25 ms`, `2.5 ms`, `250 ms`, `2.5 s`, `25 s`.
fn short(seconds: f64) -> String {
    let (number, unit) = if seconds < 0.9995 {
        (seconds * 1e3, "ms")
    } else {
        (seconds, "s")
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
    use super::*;

    fn seconds(each: &[(usize, u64)]) -> Seconds {
        let mut seconds = Seconds::default();
        for (bucket, n) in each {
            seconds.each[*bucket] = *n;
        }
        seconds
    }

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
        assert_eq!(short(0.000_625), "0.63 ms");
    }

    #[test]
    fn a_quantile_lies_within_its_bucket_as_far_as_its_share_of_it() {
        // Bounds: 250 µs, 500 µs, 1 ms, 2.5 ms, …
        let two = seconds(&[(0, 50), (3, 50)]);
        for (q, expected) in [
            (0.0, 0.0),
            (0.25, 0.000_125),
            (0.5, 0.000_25),
            (0.75, 0.001_75),
            (1.0, 0.002_5),
        ] {
            let found = two.quantile(q);
            let is_near =
                |found| matches!(found, Quantile::About(n) if (n - expected).abs() < 1e-9);
            assert!(found.is_some_and(is_near), "{q}: {found:?}");
        }
    }

    #[test]
    fn beyond_the_last_bound_and_of_nothing_there_is_no_quantile() {
        let long = seconds(&[(2, 1), (BUCKETS - 1, 9)]);
        assert_eq!(long.quantile(0.5), Some(Quantile::Above(60.0)));
        assert_eq!(Seconds::default().quantile(0.5), None);
    }

    #[test]
    fn a_difference_has_what_came_in_between() {
        let (earlier, later) = (seconds(&[(1, 5)]), seconds(&[(1, 7), (2, 1)]));
        assert_eq!(later.since(&earlier), seconds(&[(1, 2), (2, 1)]));
        // Another daemon has taken the place of the one that was looked at.
        assert_eq!(earlier.since(&later), Seconds::default());
    }

    #[test]
    fn programs_are_shown_buckets_as_prometheus_has_them() {
        let mut some = seconds(&[(0, 2), (16, 1), (17, 4)]);
        some.sum_us = 1_500_000;
        let shown = serde_json::to_value(&some).unwrap();
        assert_eq!(shown["count"], 7);
        assert_eq!(shown["sum"], 1.5);
        let buckets = shown["buckets"].as_array().unwrap();
        assert_eq!(buckets.len(), BUCKETS);
        assert_eq!(buckets[0], serde_json::json!([0.00025, 2]));
        assert_eq!(buckets[16], serde_json::json!([60.0, 3]));
        assert_eq!(buckets[17], serde_json::json!(["+Inf", 7]));
    }

    #[test]
    fn times_are_shown_with_two_digits() {
        let shown = [0.00025, 0.0025, 0.25, 0.9999, 2.5, 25.0]
            .map(|seconds| Quantile::About(seconds).to_string());
        let expected = ["0.25 ms", "2.5 ms", "250 ms", "1.0 s", "2.5 s", "25 s"];
        assert_eq!(shown, expected);
        assert_eq!(Quantile::Above(60.0).to_string(), "> 60 s");
    }
}
