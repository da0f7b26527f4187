//! Pacing of retries.

use std::time::Duration;

/// Waits that double from `first` to `limit`, each shortened at random by up to a
/// half, so that many clients of one lost server do not return together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.limit);
        wait
    }

    /// Call after a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        let bounds = [(5, 10), (10, 20), (17, 35), (17, 35)];
        for (low, high) in bounds {
            let wait = backoff.next_wait().as_millis();
            assert!((low..=high).contains(&wait), "{wait} lies in {low}..={high}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(10));
    }
}
