//! History that is forgotten by itself, as etcd's `--auto-compaction-mode` asks.
//!
//! Every member keeps the schedule, so that a new leader goes on where the last one was.

use std::collections::VecDeque;
use std::time::Duration;

use metrics::counter;
use quorate_proto::etcd::CompactionRequest;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Inner;
use crate::command::Operation;
use crate::config::AutoCompaction;
use crate::error::StoreError;

/// How often history beyond a number of revisions is forgotten: as in etcd.
const REVISION_PERIOD: Duration = Duration::from_secs(300);

/// Time is remembered in this many steps per retention period, or per hour of a longer one.
const STEPS: u32 = 10;
const LONGEST_PERIOD: Duration = Duration::from_secs(3600);

/// The shortest step, however short the retention.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// Decides up to which revision history goes.
struct Schedule {
    kept: AutoCompaction,
    /// When which revision was the current one, oldest first; nothing older than what is kept.
    seen: VecDeque<(Instant, i64)>,
}

impl Schedule {
    fn new(kept: AutoCompaction) -> Self {
        Self { kept, seen: VecDeque::new() }
    }

    /// The time between two ticks.
    fn step(&self) -> Duration {
        match self.kept {
            AutoCompaction::Revisions(_) => REVISION_PERIOD,
            AutoCompaction::Periodic(retention) => (retention.min(LONGEST_PERIOD) / STEPS).max(SHORTEST_STEP),
        }
    }

    /// The revision up to which history may go, now that `revision` is the current one.
    fn tick(&mut self, now: Instant, revision: i64) -> Option<i64> {
        match self.kept {
            AutoCompaction::Revisions(count) => Some(revision.saturating_sub(count)).filter(|target| *target > 0),
            AutoCompaction::Periodic(retention) => {
                self.seen.push_back((now, revision));
                let mut target = None;
                while let Some((then, revision)) = self.seen.front()
                    && now.duration_since(*then) >= retention
                {
                    target = Some(*revision);
                    self.seen.pop_front();
                }
                target
            }
        }
    }
}

/// Forgets history on schedule until cancelled, on whichever member leads.
pub(super) async fn run(inner: &Inner, kept: AutoCompaction) {
    let mut schedule = Schedule::new(kept);
    let mut tick = interval(schedule.step());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(target) = schedule.tick(Instant::now(), inner.engine.revision()) else { continue };
        let Some(fence) = *inner.leadership.borrow() else { continue };
        if target <= inner.engine.compact_revision() {
            continue;
        }
        let operation = Operation::Compact(CompactionRequest { revision: target, physical: false });
        match inner.proposer.propose(operation, Some(fence)).await {
            Ok(_) => {
                counter!("quorate_store_auto_compactions_total").increment(1);
                tracing::info!(revision = target, "forgot history on schedule");
            }
            // A client was faster.
            Err(StoreError::Refused(_)) => {}
            Err(error) => tracing::warn!(%error, revision = target, "history was not forgotten; the next try follows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut schedule = Schedule::new(AutoCompaction::Revisions(100));
        let now = Instant::now();
        assert_eq!(schedule.tick(now, 50), None);
        assert_eq!(schedule.tick(now, 100), None);
        assert_eq!(schedule.tick(now, 250), Some(150));
    }

    #[test]
    fn what_is_younger_than_the_retention_is_kept() {
        let retention = Duration::from_secs(3600);
        let mut schedule = Schedule::new(AutoCompaction::Periodic(retention));
        assert_eq!(schedule.step(), Duration::from_secs(360));
        let start = Instant::now();
        for step in 0..10 {
            assert_eq!(schedule.tick(start + schedule.step() * step, 10 + i64::from(step)), None, "step {step}");
        }
        assert_eq!(schedule.tick(start + retention, 20), Some(10), "what was current an hour ago stays readable");
        assert_eq!(schedule.tick(start + retention * 2, 30), Some(20), "after a pause");
        assert!(schedule.seen.len() <= 2);
    }

    #[test]
    fn a_long_retention_is_remembered_in_bounded_steps() {
        let retention = Duration::from_secs(24 * 3600);
        let schedule = Schedule::new(AutoCompaction::Periodic(retention));
        assert_eq!(schedule.step(), Duration::from_secs(360));
        assert_eq!(Schedule::new(AutoCompaction::Periodic(Duration::from_nanos(1))).step(), SHORTEST_STEP);
    }
}
