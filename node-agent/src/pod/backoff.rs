//! How long to wait before trying again what has failed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Upstream's bounds: 10 s, doubled by every failure, up to 5 min.
pub const INITIAL: Duration = Duration::from_secs(10);
pub const MAXIMUM: Duration = Duration::from_secs(300);

/// The state of one thing that keeps failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay: Duration,
    /// When the last try began.
    pub since: Timestamp,
}

impl Backoff {
    /// The state after another try at `now`. One that was quiet for twice the maximum starts afresh.
    #[must_use]
    pub fn next(previous: Option<Self>, now: Timestamp) -> Self {
        let delay = match previous {
            Some(previous) if !previous.is_over(now) => (previous.delay * 2).min(MAXIMUM),
            _ => INITIAL,
        };
        Self { delay, since: now }
    }

    /// Whether nothing has been tried for so long that the past does not count.
    pub fn is_over(self, now: Timestamp) -> bool {
        now.duration_since(self.since) > signed(MAXIMUM * 2)
    }

    /// When the next try may begin, after a failure at `failed_at`; `None` is at once.
    pub fn until(self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let until = failed_at.checked_add(self.delay).unwrap_or(Timestamp::MAX);
        (!self.is_over(now) && until > now).then_some(until)
    }
}

pub fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// `10s`, `2m40s`, `5m0s`: as Go prints durations, for texts that clients match.
pub fn text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut state = None;
        let mut delays = Vec::new();
        for second in 0..7 {
            state = Some(Backoff::next(state, at(second)));
            delays.push(state.unwrap().delay.as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_quiet_time_forgives() {
        let tried = Backoff { delay: MAXIMUM, since: at(0) };
        assert_eq!(Backoff::next(Some(tried), at(601)).delay, INITIAL);
        assert_eq!(Backoff::next(Some(tried), at(600)).delay, MAXIMUM);
        assert_eq!(tried.until(at(601), at(601)), None);
    }

    #[test]
    fn the_wait_counts_from_the_failure() {
        let tried = Backoff { delay: INITIAL, since: at(0) };
        assert_eq!(tried.until(at(5), at(6)), Some(at(15)));
        assert_eq!(tried.until(at(5), at(15)), None);
    }

    #[test]
    fn durations_read_as_in_go() {
        for (seconds, expected) in [(10, "10s"), (160, "2m40s"), (300, "5m0s"), (3601, "1h0m1s")] {
            assert_eq!(text(Duration::from_secs(seconds)), expected);
        }
    }
}
