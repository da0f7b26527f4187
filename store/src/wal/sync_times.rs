//! How long syncs took of late: every one counts.

use std::collections::VecDeque;
use std::time::Duration;

/// Each power of two is split so often: a quantile is at most an eighth above the truth.
const PARTS: usize = 8;

/// Times up to 2^27 µs, two minutes, are told apart.
const POWERS: usize = 28;

/// The window is the last minute, in slots that are forgotten one by one.
const SLOT: Duration = Duration::from_secs(10);
const SLOTS: u64 = 6;

/// Counts of a window that moves on. Times since a start are handed in.
#[derive(Debug, Default)]
pub(super) struct SyncTimes {
    /// The number of each slot in which there was a sync, and its counts; ascending.
    slots: VecDeque<(u64, Vec<u32>)>,
}

impl SyncTimes {
    pub(super) fn record(&mut self, now: Duration, took: Duration) {
        let slot = slot(now);
        self.forget(slot);
        if self.slots.back().is_none_or(|(last, _)| *last < slot) {
            self.slots.push_back((slot, vec![0; PARTS * POWERS]));
        }
        if let Some((_, counts)) = self.slots.back_mut() {
            let bucket = bucket(took);
            counts[bucket] = counts[bucket].saturating_add(1);
        }
    }

    /// What `share` of the syncs did not exceed; `None` when there were none.
    pub(super) fn quantile(&mut self, now: Duration, share: f64) -> Option<Duration> {
        self.forget(slot(now));
        let count = |bucket: usize| self.slots.iter().map(|(_, counts)| u64::from(counts[bucket])).sum::<u64>();
        let total: u64 = (0..PARTS * POWERS).map(count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a share of a minute's syncs")]
        let wanted = total as f64 * share;
        let mut below = 0;
        (0..PARTS * POWERS).find_map(|bucket| {
            below += count(bucket);
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            (below > 0 && below as f64 >= wanted).then(|| bound(bucket))
        })
    }

    fn forget(&mut self, slot: u64) {
        while self.slots.front().is_some_and(|(first, _)| first + SLOTS <= slot) {
            self.slots.pop_front();
        }
    }
}

fn slot(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs()
}

/// Which of the counts: the power of two, and the part of it.
fn bucket(took: Duration) -> usize {
    let micros = took.as_micros().clamp(1, (1 << POWERS) - 1);
    let power = micros.ilog2() as usize;
    let part = ((micros - (1 << power)) as usize * PARTS) >> power;
    power * PARTS + part
}

/// The time that all of a bucket stay below.
fn bound(bucket: usize) -> Duration {
    let (power, part) = (bucket / PARTS, bucket % PARTS);
    Duration::from_micros(((PARTS + part + 1) as u64 * (1 << power)).div_ceil(PARTS as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn every_time_lies_in_its_bucket() {
        for power in 0..27 {
            for micros in [1 << power, (1 << power) + (1 << power) / 3, (2 << power) - 1_u64] {
                let took = Duration::from_micros(micros);
                let bound = bound(bucket(took));
                assert!(took <= bound && bound <= took + took / 8 + MICRO, "{took:?} {bound:?}");
            }
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_secs(1 << 40)), PARTS * POWERS - 1);
    }

    #[test]
    fn a_quantile_counts_every_sync() {
        let mut times = SyncTimes::default();
        let now = Duration::from_secs(3);
        assert_eq!(times.quantile(now, 0.99), None);
        for _ in 0..989 {
            times.record(now, Duration::from_micros(100));
        }
        for _ in 0..11 {
            times.record(now, Duration::from_millis(8));
        }
        let near = |found: Option<Duration>, wanted: Duration| {
            found.is_some_and(|found| wanted <= found && found <= wanted + wanted / 8 + MICRO)
        };
        assert!(near(times.quantile(now, 0.5), Duration::from_micros(100)));
        assert!(near(times.quantile(now, 0.98), Duration::from_micros(100)));
        assert!(near(times.quantile(now, 0.99), Duration::from_millis(8)));
        assert!(near(times.quantile(now, 1.0), Duration::from_millis(8)));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut times = SyncTimes::default();
        times.record(Duration::from_secs(5), Duration::from_secs(2));
        times.record(Duration::from_secs(55), MICRO);
        assert!(times.quantile(Duration::from_secs(59), 1.0) > Some(Duration::from_secs(1)));
        assert!(times.quantile(Duration::from_secs(60), 1.0) < Some(Duration::from_secs(1)));
        assert_eq!(times.quantile(Duration::from_secs(500), 1.0), None);
        assert!(times.slots.is_empty());
    }
}
