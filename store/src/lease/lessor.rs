//! The table of lease ends.
//!
//! `now` is always the time since one fixed moment of the process; it never goes back.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::mvcc::LeaseRecord;

/// So many expired leases are given out per tick (etcd revokes at most 1000 a second).
const MAX_EXPIRED_PER_TICK: usize = 1000;
/// An expired lease that is still there after this is given out again: the revocation
/// was lost on the way.
const OFFER_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// Leases shorter than this are not worth a checkpoint: they end before it helps.
const MIN_CHECKPOINTED: Duration = Duration::from_secs(5 * 60);
/// A lease's remaining time is replicated this often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    /// When it ends.
    end: Duration,
    /// Its key in `queue`: when to look at it next.
    due: Duration,
    /// Was given out as expired: it must not be renewed, as its revocation may be under way.
    expired: bool,
    checkpoint_due: Duration,
}

/// Knows when leases end. Inactive on members that do not lead.
#[derive(Debug, Default)]
pub struct Lessor {
    leads: bool,
    leases: HashMap<i64, Lease>,
    queue: BTreeSet<(Duration, i64)>,
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn from_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Lessor {
    /// A lessor that does not lead.
    pub fn new() -> Lessor {
        Lessor::default()
    }

    /// This member leads from `now` on. Every lease gets what was left at its last
    /// checkpoint, or all of its time, and `extend` more: its owner may not have found the
    /// new leader yet.
    pub fn promote(&mut self, now: Duration, extend: Duration, leases: impl IntoIterator<Item = LeaseRecord>) {
        self.demote();
        self.leads = true;
        for LeaseRecord { id, ttl, remaining } in leases {
            let left = if remaining > 0 { remaining.min(ttl) } else { ttl };
            self.insert(now, id, from_seconds(ttl), now + from_seconds(left) + extend);
        }
    }

    /// This member leads no more.
    pub fn demote(&mut self) {
        self.leads = false;
        self.leases.clear();
        self.queue.clear();
    }

    fn insert(&mut self, now: Duration, id: i64, ttl: Duration, end: Duration) {
        self.revoked(id);
        let checkpoint_due = now + CHECKPOINT_EVERY;
        self.leases.insert(id, Lease { ttl, end, due: end, expired: false, checkpoint_due });
        self.queue.insert((end, id));
    }

    /// A grant was applied.
    pub fn granted(&mut self, now: Duration, id: i64, ttl_seconds: i64) {
        if self.leads {
            let ttl = from_seconds(ttl_seconds);
            self.insert(now, id, ttl, now + ttl);
        }
    }

    /// A revocation was applied.
    pub fn revoked(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.queue.remove(&(lease.due, id));
        }
    }

    /// Gives a lease its whole time again; returns that in seconds. `None` when there is no
    /// such lease here or it has expired: its revocation may be under way.
    pub fn renew(&mut self, now: Duration, id: i64) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        if lease.expired || lease.end <= now {
            return None;
        }
        self.queue.remove(&(lease.due, id));
        lease.end = now + lease.ttl;
        lease.due = lease.end;
        lease.checkpoint_due = now + CHECKPOINT_EVERY;
        self.queue.insert((lease.due, id));
        Some(seconds(lease.ttl))
    }

    /// How long a lease has; zero when it is about to be revoked.
    pub fn remaining(&self, now: Duration, id: i64) -> Option<Duration> {
        self.leases.get(&id).map(|lease| lease.end.saturating_sub(now))
    }

    /// The leases to revoke now, those that ended first first. One that is not revoked is
    /// given out again after a pause.
    pub fn tick(&mut self, now: Duration) -> Vec<i64> {
        let mut expired = Vec::new();
        while let Some((due, id)) = self.queue.first().copied() {
            if due > now || expired.len() == MAX_EXPIRED_PER_TICK {
                break;
            }
            self.queue.pop_first();
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.expired = true;
                lease.due = now + OFFER_AGAIN_AFTER;
                self.queue.insert((lease.due, id));
                expired.push(id);
            }
        }
        expired
    }

    /// The leases whose remaining seconds should be replicated, with them, so that a new
    /// leader does not begin their time anew.
    pub fn checkpoints(&mut self, now: Duration) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        for (id, lease) in &mut self.leases {
            if lease.ttl >= MIN_CHECKPOINTED && !lease.expired && lease.checkpoint_due <= now {
                lease.checkpoint_due = now + CHECKPOINT_EVERY;
                let remaining = seconds(lease.end.saturating_sub(now)).max(1);
                due.push((*id, remaining));
            }
        }
        due.sort_unstable();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn leading() -> Lessor {
        let mut lessor = Lessor::new();
        lessor.promote(at(0), at(0), []);
        lessor
    }

    #[test]
    fn a_lease_ends_after_its_time_and_not_before() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 10);
        assert!(lessor.tick(at(9)).is_empty());
        assert_eq!(lessor.renew(at(9), 1), Some(10));
        assert!(lessor.tick(at(18)).is_empty());
        assert_eq!(lessor.remaining(at(18), 1), Some(at(1)));
        assert_eq!(lessor.tick(at(19)), [1]);
        assert_eq!(lessor.renew(at(19), 1), None, "its revocation may be under way");
    }

    #[test]
    fn an_ended_lease_is_not_renewed_even_before_the_tick() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 10);
        assert_eq!(lessor.renew(at(10), 1), None);
    }

    #[test]
    fn an_expired_lease_is_offered_until_it_is_revoked() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 2);
        assert_eq!(lessor.tick(at(2)), [1]);
        assert!(lessor.tick(at(3)).is_empty());
        assert_eq!(lessor.tick(at(5)), [1]);
        lessor.revoked(1);
        assert!(lessor.tick(at(100)).is_empty());
        assert_eq!(lessor.remaining(at(100), 1), None);
    }

    #[test]
    fn a_new_leader_gives_what_was_left_and_the_extension() {
        let mut lessor = Lessor::new();
        let lease = |id, remaining| LeaseRecord { id, ttl: 600, remaining };
        lessor.promote(at(100), at(1), [lease(1, 0), lease(2, 30)]);
        assert_eq!(lessor.remaining(at(100), 1), Some(at(601)));
        assert_eq!(lessor.remaining(at(100), 2), Some(at(31)));
        lessor.demote();
        assert!(lessor.tick(at(10_000)).is_empty());
        lessor.granted(at(1), 3, 2);
        assert_eq!(lessor.renew(at(1), 3), None, "only the leader counts time");
    }

    #[test]
    fn a_tick_is_bounded_and_goes_on_where_it_stopped() {
        let mut lessor = leading();
        for id in 1..=2500 {
            lessor.granted(at(0), id, 2);
        }
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            seen.extend(lessor.tick(at(2)));
        }
        assert_eq!(seen.len(), 2500);
    }

    #[test]
    fn long_leases_are_checkpointed() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 3600);
        lessor.granted(at(0), 2, 10);
        assert!(lessor.checkpoints(at(299)).is_empty());
        assert_eq!(lessor.checkpoints(at(300)), [(1, 3300)]);
        assert!(lessor.checkpoints(at(301)).is_empty());
    }
}
