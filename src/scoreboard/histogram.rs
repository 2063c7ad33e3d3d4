//! How long things took: times, counted in buckets.
//!
//! The buckets are those of Prometheus' native histograms with schema 4: every power of two of a second is a bound, with
//! 15 more up to the next, so each bound is 4.4 % above the one below it. The middle of a bucket is at most 2.2 % from
//! any time in it, and what Prometheus computes from the same buckets is at most 4.4 % from the truth. Times of up to a
//! microsecond share the first bucket, times of more than a day and a half the last.

use std::time::Duration;

/// The schema in Prometheus' terms: 2^SCHEMA buckets from one power of two to the next.
pub const SCHEMA: i32 = 4;

const PER_DOUBLING: usize = 1 << SCHEMA;

/// The lowest bound is 2 to the power of this, in seconds,
const LOWEST: i32 = -20;

/// and this is the highest.
const HIGHEST: i32 = 17;

const BOUNDS: usize = (HIGHEST - LOWEST) as usize * PER_DOUBLING + 1;

/// How many buckets there are: up to and with each bound, and beyond the last.
pub const BUCKETS: usize = BOUNDS + 1;

/// Powers of 2^(1/16), from 1 to below 2.
const STEPS: [f64; PER_DOUBLING] = [
    1.0,
    1.044_273_782_427_413_8,
    1.090_507_732_665_257_7,
    1.138_788_634_756_691_6,
    1.189_207_115_002_721,
    1.241_857_812_073_484,
    1.296_839_554_651_009_6,
    1.354_255_546_936_892_7,
    std::f64::consts::SQRT_2,
    1.476_826_145_939_499_3,
    1.542_210_825_407_940_7,
    1.610_490_331_949_254_3,
    1.681_792_830_507_429,
    1.756_252_160_373_299_5,
    1.834_008_086_409_342_4,
    1.915_206_561_397_147_4,
];

/// The bounds in seconds. A time counts in the first bucket whose bound is not below it.
static SECONDS: [f64; BOUNDS] = {
    let mut bounds = [0.0; BOUNDS];
    let mut power = 1.0 / (1_u64 << -LOWEST) as f64;
    let mut next = 0;
    while next < BOUNDS {
        bounds[next] = power * STEPS[next % PER_DOUBLING];
        next += 1;
        if next % PER_DOUBLING == 0 {
            power *= 2.0;
        }
    }
    bounds
};

/// The bounds in whole nanoseconds, rounded down: no whole number of them lies in between.
static NANOSECONDS: [u64; BOUNDS] = {
    let mut bounds = [0; BOUNDS];
    let mut next = 0;
    while next < BOUNDS {
        bounds[next] = (SECONDS[next] * 1e9) as u64;
        next += 1;
    }
    bounds
};

/// The bucket in which this time counts.
pub(super) fn bucket_of(time: Duration) -> usize {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    NANOSECONDS.partition_point(|bound| *bound < time)
}

/// Times, counted in buckets. Buckets that are empty take no memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// All times together, in microseconds.
    sum_us: u64,
    /// How many times each bucket has that is not empty, in their order.
    buckets: Vec<(usize, u64)>,
}

/// A quantile, as exact as buckets allow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantile {
    /// At most the lowest bound, which this is, in seconds.
    Below(f64),
    /// The middle of a bucket, in seconds.
    About(f64),
    /// More than the highest bound, which this is, in seconds.
    Above(f64),
}

impl Quantile {
    /// Its number, in seconds; of what lies beyond the bounds, the bound.
    pub fn seconds(self) -> f64 {
        match self {
            Self::Below(seconds) | Self::About(seconds) | Self::Above(seconds) => seconds,
        }
    }
}

impl Histogram {
    /// The lowest bound, in seconds. Shorter times are not told apart.
    pub fn lowest() -> f64 {
        SECONDS[0]
    }

    /// From the sum of all times in microseconds, and the count of each bucket.
    pub(super) fn of(sum_us: u64, counts: impl IntoIterator<Item = u64>) -> Self {
        let counts = counts.into_iter().take(BUCKETS).enumerate();
        Self {
            sum_us,
            buckets: counts.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.up_to_bucket(BUCKETS)
    }

    /// All times together, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// The mean in seconds, which is exact; `None` if there are no times.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum() / count as f64)
    }

    /// Counts these times too.
    pub fn add(&mut self, others: &Self) {
        self.sum_us = self.sum_us.saturating_add(others.sum_us);
        for (bucket, count) in &others.buckets {
            match self.buckets.binary_search_by_key(bucket, |(it, _)| *it) {
                Ok(place) => {
                    let sum = &mut self.buckets[place].1;
                    *sum = sum.saturating_add(*count);
                }
                Err(place) => self.buckets.insert(place, (*bucket, *count)),
            }
        }
    }

    /// The times that were added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bucket: usize| {
            let found = earlier.buckets.binary_search_by_key(&bucket, |(it, _)| *it);
            found.map_or(0, |place| earlier.buckets[place].1)
        };
        let new = self.buckets.iter().map(|(bucket, count)| {
            let new = count.saturating_sub(before(*bucket));
            (*bucket, new)
        });
        Self {
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            buckets: new.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The time that the share `q` of all do not exceed, 0.5 for the median; `None` if there are none.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let rank = q * self.count() as f64;
        let mut up_to = 0_u64;
        for (bucket, count) in &self.buckets {
            up_to = up_to.saturating_add(*count);
            if up_to as f64 >= rank {
                let lower = bucket.checked_sub(1).and_then(|below| SECONDS.get(below));
                return Some(match (lower, SECONDS.get(*bucket)) {
                    // As errors are relative, so is the middle.
                    (Some(lower), Some(upper)) => Quantile::About((lower * upper).sqrt()),
                    (None, _) => Quantile::Below(SECONDS[0]),
                    (_, None) => Quantile::Above(SECONDS[BOUNDS - 1]),
                });
            }
        }
        None
    }

    /// The bound in seconds of each bucket that is not empty, `None` if it has none, and the count of all times up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let mut up_to = 0_u64;
        self.buckets.iter().map(move |(bucket, count)| {
            up_to = up_to.saturating_add(*count);
            (SECONDS.get(*bucket).copied(), up_to)
        })
    }

    /// How many times are at most 2 to the power of `power`, in seconds.
    pub fn up_to(&self, power: i32) -> u64 {
        let above_lowest = usize::try_from(power.saturating_sub(LOWEST)).unwrap_or(0);
        self.up_to_bucket(above_lowest.saturating_mul(PER_DOUBLING))
    }

    fn up_to_bucket(&self, last: usize) -> u64 {
        let buckets = self
            .buckets
            .iter()
            .take_while(|(bucket, _)| *bucket <= last);
        buckets.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// How many times are at most [`Histogram::lowest`].
    pub fn lowest_count(&self) -> u64 {
        self.up_to_bucket(0)
    }

    /// The longer times as Prometheus numbers their buckets: the upper bound of bucket `n` is 2^(n/16) seconds. Times
    /// beyond the highest bound count as just above it.
    pub fn native_buckets(&self) -> impl Iterator<Item = (i32, u64)> {
        let longer = self.buckets.iter().filter(|(bucket, _)| *bucket > 0);
        longer.filter_map(|(bucket, count)| {
            let number = LOWEST * PER_DOUBLING as i32 + i32::try_from(*bucket).ok()?;
            Some((number, *count))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A histogram of these times in seconds.
    pub(crate) fn histogram(times: &[f64]) -> Histogram {
        let mut counts = [0; BUCKETS];
        let mut sum = 0.0;
        for time in times {
            counts[bucket_of(Duration::from_secs_f64(*time))] += 1;
            sum += time * 1e6;
        }
        Histogram::of(sum as u64, counts)
    }

    /// `count` numbers between 0 and 1, spread evenly.
    fn even(count: usize) -> impl Iterator<Item = f64> {
        (0..count).map(move |n| (n as f64 + 0.5) / count as f64)
    }

    #[test]
    fn quantiles_are_within_five_percent_of_exact_ones() {
        let constant = vec![0.3; 1_000];
        let uniform: Vec<f64> = even(10_000).map(|share| 0.02 + 0.5 * share).collect();
        // Few are very long: the mean is 40 ms, one in a thousand takes 0.28 s.
        let exponential: Vec<f64> = even(10_000).map(|share| -0.04 * (-share).ln_1p()).collect();
        // Nine of ten hit a cache; the others have a tail without end.
        let cached = even(9_000).map(|share| 0.000_2 + 0.000_1 * share);
        let missed = even(1_000).map(|share| 0.8 / (1.0 - share).powf(0.8));
        let bimodal: Vec<f64> = cached.chain(missed).collect();
        for (name, mut times) in [
            ("constant", constant),
            ("uniform", uniform),
            ("exponential", exponential),
            ("bimodal", bimodal),
        ] {
            let histogram = histogram(&times);
            times.sort_by(f64::total_cmp);
            for q in [0.5, 0.9, 0.99, 0.999] {
                let exact = times[(q * times.len() as f64).ceil() as usize - 1];
                let found = histogram.quantile(q).unwrap().seconds();
                let error = (found / exact - 1.0).abs();
                assert!(error < 0.05, "{name}, {q}: {found} is not {exact}");
                // Better than promised, as the middle of a bucket is.
                assert!(error < 0.022, "{name}, {q}: {found} is not {exact}");
            }
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            assert!((histogram.mean().unwrap() / mean - 1.0).abs() < 1e-4);
            assert_eq!(histogram.count(), times.len() as u64);
        }
    }

    #[test]
    fn bounds_are_the_powers_of_two_and_the_steps_between_them() {
        for (bound, next) in SECONDS.iter().zip(&SECONDS[1..]) {
            assert!((next / bound - 2_f64.powf(1.0 / 16.0)).abs() < 1e-12);
        }
        for power in LOWEST..=HIGHEST {
            let bucket = (power - LOWEST) as usize * PER_DOUBLING;
            assert_eq!(SECONDS[bucket], 2_f64.powi(power), "2^{power}");
        }
    }

    #[test]
    fn a_time_counts_in_the_first_bucket_that_takes_it() {
        let second = -LOWEST as usize * PER_DOUBLING;
        for (time, bucket) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(953), 0),
            (Duration::from_nanos(954), 1),
            (Duration::from_nanos(999_999_999), second),
            (Duration::from_secs(1), second),
            (Duration::from_nanos(1_000_000_001), second + 1),
            (Duration::from_secs(1 << 17), BUCKETS - 2),
            (Duration::from_secs((1 << 17) + 1), BUCKETS - 1),
            (Duration::MAX, BUCKETS - 1),
        ] {
            assert_eq!(bucket_of(time), bucket, "{time:?}");
        }
    }

    #[test]
    fn beyond_the_bounds_and_of_nothing_there_is_no_quantile() {
        let times = histogram(&[1e-7, 0.3, 1e6]);
        assert_eq!(times.quantile(0.0), Some(Quantile::Below(2_f64.powi(-20))));
        assert_eq!(times.quantile(1.0), Some(Quantile::Above(131_072.0)));
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().mean(), None);
    }

    #[test]
    fn a_difference_has_what_came_in_between() {
        let (earlier, later) = (histogram(&[0.1; 5]), histogram(&[0.1, 0.1, 3.0]));
        let both = Histogram {
            sum_us: 3_700_000,
            buckets: vec![(later.buckets[0].0, 7), later.buckets[1]],
        };
        assert_eq!(both.since(&earlier), later);
        // Another daemon has taken the place of the one that was looked at.
        assert_eq!(earlier.since(&both), Histogram::default());
    }

    #[test]
    fn times_are_counted_up_to_any_power_of_two() {
        let times = histogram(&[1e-7, 0.25, 0.250_1, 0.5, 4.0, 1e6]);
        let counts = [-30, -20, -3, -2, -1, 1, 2, 17, 30].map(|power| times.up_to(power));
        assert_eq!(counts, [1, 1, 1, 2, 4, 4, 5, 5, 6]);
    }

    #[test]
    fn prometheus_knows_the_buckets_by_their_numbers() {
        let times = histogram(&[1e-7, 0.5, 1.0, 1.01, 1e6]);
        assert_eq!(times.lowest_count(), 1);
        let buckets: Vec<_> = times.native_buckets().collect();
        assert_eq!(buckets, [(-16, 1), (0, 1), (1, 1), (17 * 16 + 1, 1)]);
    }
}
