//! Which rate to try next when the highest is sought that keeps a promise.

/// The answer is known to 5 %.
const PRECISION: f64 = 1.05;

/// More steps than it takes from one operation a second to millions.
const MOST_STEPS: usize = 40;

/// A rate that was asked for and not nearly reached is not kept, whatever the latency.
pub(super) const REACHED: f64 = 0.95;

const LOWEST_RATE: f64 = 1.0;

/// Doubles until a rate is not kept, and then halves the gap.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    rate: f64,
    kept: Option<f64>,
    failed: Option<f64>,
    steps: usize,
}

impl Search {
    pub(crate) fn from(rate: f64) -> Self {
        Self { rate, kept: None, failed: None, steps: 0 }
    }

    /// What is to be tried; nothing once the answer is known.
    pub(crate) fn rate(&self) -> Option<f64> {
        let known = match (self.kept, self.failed) {
            (Some(kept), Some(failed)) => failed / kept <= PRECISION,
            (None, Some(failed)) => failed <= LOWEST_RATE,
            _ => false,
        };
        (!known && self.steps < MOST_STEPS).then_some(self.rate)
    }

    /// Whether the rate that was tried kept the promise.
    pub(crate) fn tried(&mut self, kept: bool) {
        self.steps += 1;
        *(if kept { &mut self.kept } else { &mut self.failed }) = Some(self.rate);
        self.rate = match (self.kept, self.failed) {
            // Rates are compared by their ratio.
            (Some(kept), Some(failed)) => (kept * failed).sqrt(),
            (Some(kept), None) => kept * 2.0,
            (None, Some(failed)) => (failed / 2.0).max(LOWEST_RATE),
            (None, None) => self.rate,
        };
    }

    /// The highest rate that kept it, if there was one.
    pub(crate) fn found(&self) -> Option<f64> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found on a server that keeps the promise up to `limit`.
    fn found(from: f64, limit: f64) -> (Option<f64>, usize) {
        let mut search = Search::from(from);
        while let Some(rate) = search.rate() {
            search.tried(rate <= limit);
        }
        (search.found(), search.steps)
    }

    #[test]
    fn the_highest_rate_is_found_to_five_percent() {
        for limit in [1.0, 7.0, 900.0, 1_000.0, 12_345.0, 5_000_000.0] {
            let (rate, steps) = found(1_000.0, limit);
            let rate = rate.unwrap();
            assert!(rate <= limit && rate * PRECISION >= limit, "{rate} instead of {limit}");
            assert!(steps < 20, "{steps} steps for {limit}");
        }
    }

    #[test]
    fn a_search_ends_where_there_is_nothing_to_find() {
        assert_eq!(found(1_000.0, 0.0).0, None);
        let (rate, steps) = found(1_000.0, f64::INFINITY);
        assert!(rate.is_some() && steps == MOST_STEPS);
    }
}
