//! When each operation begins, and when the load ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

/// The runtime wakes tasks at whole milliseconds and may be one late: so much is the
/// timer's doing. What comes later than that waited for something else, and it counts.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// How much load there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// So many operations.
    pub(crate) total: Option<u64>,
    /// Or for so long, whichever ends first.
    pub(crate) duration: Option<Duration>,
    /// An operation is due so often in a second, whether or not the servers keep up (an
    /// open loop); none: each client goes on as soon as it has its answer (a closed loop).
    pub(crate) rate: Option<f64>,
}

/// Hands out the operations of a load to its clients, which share it.
#[derive(Debug)]
pub(crate) struct Pace {
    next: AtomicU64,
    total: u64,
    interval: Option<Duration>,
    begin: Instant,
    end: Option<Instant>,
    stop: CancellationToken,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) number: u64,
    /// What its latency is measured from.
    pub(crate) began: Instant,
}

impl Pace {
    pub(crate) fn new(plan: Plan, begin: Instant, stop: CancellationToken) -> Self {
        Self {
            next: AtomicU64::new(0),
            total: plan.total.unwrap_or(u64::MAX),
            interval: plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            begin,
            end: plan.duration.map(|duration| begin + duration),
            stop,
        }
    }

    /// The next operation, once it is due; nothing after the last.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let due = self.interval.map_or(asked, |interval| self.begin + interval.mul_f64(number_as_float(number)));
        if number >= self.total || self.end.is_some_and(|end| due >= end) || self.stop.is_cancelled() {
            return None;
        }
        if self.interval.is_none() {
            return Some(Turn { number, began: asked });
        }
        if due > asked {
            tokio::select! {
                () = time::sleep_until(due) => {}
                () = self.stop.cancelled() => return None,
            }
        }
        Some(Turn { number, began: began(due, asked, Instant::now()) })
    }
}

#[expect(clippy::cast_precision_loss, reason = "fewer operations than 2^52")]
fn number_as_float(number: u64) -> f64 {
    number as f64
}

/// From when an operation is measured that was `due`, asked for by a client that was free at
/// `asked`, and is sent `now`. Time that it waited for a client is the servers' doing, so
/// that a slow answer also counts for those who would have come meanwhile.
fn began(due: Instant, asked: Instant, now: Instant) -> Instant {
    let in_time = asked <= due && now.saturating_duration_since(due) <= TIMER_SLACK;
    if in_time { now } else { due }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waited_for_a_client_is_measured_from_when_it_was_due() {
        let base = Instant::now();
        let at = |millis: u64| base + Duration::from_millis(millis);
        let check = |due: u64, asked: u64, now: u64, expected: u64| {
            assert_eq!(began(at(due), at(asked), at(now)), at(expected), "{due} {asked} {now}");
        };
        // The timer's own lateness is not the servers'.
        check(10, 5, 11, 11);
        check(10, 10, 10, 10);
        // More than that is: the machine was busy.
        check(10, 5, 20, 10);
        // No client was free.
        check(10, 11, 11, 10);
        check(10, 500, 500, 10);
    }

    /// One client, an operation due every 10 ms, and a server that answers at once, except
    /// for a stall of 1 s: a closed loop would see one slow answer, and 100 were late.
    #[tokio::test(start_paused = true)]
    async fn a_stall_counts_for_all_who_would_have_come() {
        let plan = Plan { total: Some(300), duration: None, rate: Some(100.0) };
        let pace = Pace::new(plan, Instant::now(), CancellationToken::new());
        let mut late = 0;
        while let Some(turn) = pace.turn().await {
            if turn.number == 100 {
                time::sleep(Duration::from_secs(1)).await;
            }
            late += usize::from(turn.began.elapsed() > Duration::from_millis(100));
        }
        assert!((88..=92).contains(&late), "{late} were late by more than 100 ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_ends_with_its_number_its_time_or_when_it_is_stopped() {
        let count = async |plan: Plan, stop: CancellationToken| {
            let pace = Pace::new(plan, Instant::now(), stop);
            let mut count = 0;
            while pace.turn().await.is_some() {
                count += 1;
                time::sleep(Duration::from_millis(10)).await;
            }
            count
        };
        let plan = |total, seconds, rate| Plan { total, duration: seconds, rate };
        let never = CancellationToken::new;
        assert_eq!(count(plan(Some(7), None, None), never()).await, 7);
        assert_eq!(count(plan(None, Some(Duration::from_secs(1)), None), never()).await, 100);
        assert_eq!(count(plan(None, Some(Duration::from_secs(1)), Some(20.0)), never()).await, 20);
        assert_eq!(count(plan(Some(7), Some(Duration::from_secs(1)), Some(20.0)), never()).await, 7);
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(count(plan(Some(7), None, None), stop).await, 0);
    }
}
