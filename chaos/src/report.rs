//! What happened, in figures.

use std::time::Duration;

/// The durations of one kind of event, over a run.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    samples: Vec<Duration>,
}

impl Distribution {
    pub fn add(&mut self, sample: Duration) {
        let position = self.samples.partition_point(|earlier| *earlier <= sample);
        self.samples.insert(position, sample);
    }

    /// The smallest sample that at least `fraction` of all samples do not exceed; nearest rank.
    pub fn quantile(&self, fraction: f64) -> Option<Duration> {
        nearest_rank(self.samples.len(), fraction).map(|position| self.samples[position])
    }

    pub fn max(&self) -> Option<Duration> {
        self.samples.last().copied()
    }
}

/// Where, among so many sorted values, the smallest stands that at least `fraction` of them
/// do not exceed.
pub fn nearest_rank(number: usize, fraction: f64) -> Option<usize> {
    let last = number.checked_sub(1)?;
    let rank = (fraction * number as f64).ceil() as usize;
    Some(rank.saturating_sub(1).min(last))
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some(min), Some(median), Some(p90), Some(max)) =
            (self.samples.first(), self.quantile(0.5), self.quantile(0.9), self.max())
        else {
            return f.write_str("no samples");
        };
        write!(
            f,
            "n {}  min {:.3} s  p50 {:.3} s  p90 {:.3} s  max {:.3} s",
            self.samples.len(),
            min.as_secs_f64(),
            median.as_secs_f64(),
            p90.as_secs_f64(),
            max.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_nearest_rank() {
        let mut distribution = Distribution::default();
        assert_eq!(distribution.quantile(0.5), None);
        for millis in [30, 10, 20, 40] {
            distribution.add(Duration::from_millis(millis));
        }
        for (fraction, expected) in [(0.0, 10), (0.5, 20), (0.75, 30), (0.9, 40), (1.0, 40)] {
            assert_eq!(distribution.quantile(fraction), Some(Duration::from_millis(expected)), "{fraction}");
        }
        assert_eq!(distribution.to_string(), "n 4  min 0.010 s  p50 0.020 s  p90 0.040 s  max 0.040 s");
    }
}
