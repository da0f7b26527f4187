//! Latencies as counts in buckets whose width grows with the value: any value is known to
//! less than 1 %, in 36 KiB, and clients record without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A power of two is divided into so many buckets: a value is known to one part in 128.
const STEPS_BITS: u32 = 7;
const STEPS: u64 = 1 << STEPS_BITS;

/// Values of more bits, 73 minutes in nanoseconds, count as the largest.
const MOST_BITS: u32 = 42;

#[expect(clippy::cast_possible_truncation, reason = "some thousands")]
const BUCKETS: usize = ((MOST_BITS - STEPS_BITS + 1) as u64 * STEPS) as usize;

/// Counts that many tasks add to at once.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    least: AtomicU64,
    most: AtomicU64,
}

/// What a [`Histogram`] held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    counts: Vec<u64>,
    sum: u64,
    least: u64,
    most: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            least: AtomicU64::new(u64::MAX),
            most: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, value: Duration) {
        let value = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX).min((1 << MOST_BITS) - 1);
        self.counts[bucket(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        // Nearly always only read.
        if value < self.least.load(Ordering::Relaxed) {
            self.least.fetch_min(value, Ordering::Relaxed);
        }
        if value > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
            least: self.least.load(Ordering::Relaxed),
            most: self.most.load(Ordering::Relaxed),
        }
    }
}

/// The bucket of a value, in the order of the values.
#[expect(clippy::cast_possible_truncation, reason = "below BUCKETS")]
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS_BITS + 1);
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    ((bucket - shift * STEPS + 1) << shift) - 1
}

#[expect(clippy::cast_precision_loss, reason = "durations and counts are far below 2^52")]
impl Counts {
    pub(crate) fn number(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value that so large a part of all values does not exceed, or nothing if there are
    /// no values.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let number = self.number();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a count")]
        let rank = ((part * number as f64).ceil() as u64).clamp(1, number.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos(upper_end(bucket).clamp(self.least, self.most)))
    }

    pub(crate) fn fastest(&self) -> Duration {
        Duration::from_nanos(if self.number() == 0 { 0 } else { self.least })
    }

    pub(crate) fn slowest(&self) -> Duration {
        Duration::from_nanos(self.most)
    }

    pub(crate) fn mean_seconds(&self) -> f64 {
        self.sum as f64 / 1e9 / self.number().max(1) as f64
    }

    pub(crate) fn deviation_seconds(&self) -> f64 {
        let mean = self.mean_seconds();
        let squares = self.filled().map(|(value, count)| (value.as_secs_f64() - mean).powi(2) * count as f64);
        (squares.sum::<f64>() / self.number().max(1) as f64).sqrt()
    }

    /// The buckets that hold something: the largest value of each, and how many.
    pub(crate) fn filled(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (Duration::from_nanos(upper_end(bucket).min(self.most)), *count))
    }

    /// What came since `earlier`. The extremes are those of all values.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now - then).collect();
        Self { counts, sum: self.sum - earlier.sum, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_is_less_than_one_percent_wide() {
        let mut last = 0;
        for value in (0..2_000).chain((11..MOST_BITS).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 7])) {
            let bucket = bucket(value);
            assert!(bucket >= last && bucket < BUCKETS, "{value} is in {bucket}");
            last = bucket;
            let end = upper_end(bucket);
            assert!(end >= value && end - value <= value / STEPS, "{value} counts as {end}");
        }
    }

    #[test]
    fn quantiles_of_known_values() {
        let histogram = Histogram::new();
        let empty = histogram.counts();
        assert_eq!((empty.quantile(0.5), empty.number(), empty.fastest()), (None, 0, Duration::ZERO));
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        let counts = histogram.counts();
        for (part, micros) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = counts.quantile(part).unwrap().as_secs_f64() * 1e6;
            assert!((found - micros).abs() <= micros / 100.0, "p{part} is {found}");
        }
        assert_eq!(counts.quantile(1.0), Some(Duration::from_millis(1)));
        assert_eq!((counts.fastest(), counts.slowest()), (Duration::from_micros(1), Duration::from_millis(1)));
        assert!((counts.mean_seconds() - 500.5e-6).abs() < 1e-9);
        assert!((counts.deviation_seconds() - 288.7e-6).abs() < 3e-6);
    }

    #[test]
    fn a_window_holds_what_came_in_it() {
        let histogram = Histogram::new();
        histogram.record(Duration::from_secs(1));
        let earlier = histogram.counts();
        histogram.record(Duration::from_millis(1));
        let window = histogram.counts().since(&earlier);
        assert_eq!(window.number(), 1);
        assert!(window.quantile(0.99).unwrap() < Duration::from_micros(1_010));
    }

    #[test]
    fn what_takes_too_long_counts_as_the_longest() {
        let histogram = Histogram::new();
        histogram.record(Duration::from_secs(1 << 40));
        assert_eq!(histogram.counts().number(), 1);
        assert!(histogram.counts().slowest() > Duration::from_secs(3_600));
    }
}
