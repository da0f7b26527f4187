//! The table of lease ends.
//!
//! `now` is always the time since one fixed moment of the process; it never goes back.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::mvcc::LeaseRecord;

/// So many expired leases are given out per tick: at two ticks a second, etcd's 1000.
const MAX_EXPIRED_PER_TICK: usize = 500;
/// After a change of leader no more leases than this end within a second: fewer than are
/// revoked, so that those granted since do not wait behind them.
const MAX_ENDS_PER_SECOND: usize = 750;
/// An expired lease that is still there after this is given out again: the revocation
/// was lost on the way.
const OFFER_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// Leases shorter than this are not worth a checkpoint: they end before it helps.
const MIN_CHECKPOINTED: Duration = Duration::from_secs(10);
/// A tenth of a lease's time passes between checkpoints, within these bounds: so much
/// may a change of leader add to it.
const CHECKPOINT_EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// So many checkpoints are replicated at once (etcd's number); the others wait a tick.
const MAX_CHECKPOINTS_PER_TICK: usize = 1000;

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    /// When it ends.
    end: Duration,
    /// Its key in `queue`: when to look at it next.
    due: Duration,
    /// Was given out as expired: it must not be renewed, as its revocation may be under way.
    expired: bool,
    /// Its replicated record may say that less than all of its time is left.
    checkpointed: bool,
    /// Its key in `checkpoints`, if it is there.
    checkpoint_due: Option<Duration>,
}

/// What became of a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has so many seconds again.
    Renewed(i64),
    /// A checkpoint is replicated, by which a new leader would end the lease too early. It
    /// has to be cleared first; see [`Lessor::uncheckpointed`].
    Checkpointed,
    /// Its time is over: its revocation may be under way.
    Ended,
    /// There is no such lease.
    Unknown,
}

/// Knows when leases end. Inactive on members that do not lead.
#[derive(Debug, Default)]
pub struct Lessor {
    leads: bool,
    leases: HashMap<i64, Lease>,
    queue: BTreeSet<(Duration, i64)>,
    checkpoints: BTreeSet<(Duration, i64)>,
}

/// Whole seconds, a begun one counted: a lease never ends early by rounding.
fn seconds(duration: Duration) -> i64 {
    let begun = i64::from(duration.subsec_nanos() > 0);
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX).saturating_add(begun)
}

fn from_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn checkpoint_interval(ttl: Duration) -> Duration {
    (ttl / 10).clamp(CHECKPOINT_EVERY.0, CHECKPOINT_EVERY.1)
}

/// Moves ends, given in order, so that none is earlier than it was and no more than
/// `most` are within any second.
fn spread(ends: &mut [(Duration, LeaseRecord)], most: usize) {
    for index in most..ends.len() {
        let earliest = ends[index - most].0 + Duration::from_secs(1);
        ends[index].0 = ends[index].0.max(earliest);
    }
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
        let end = |lease: &LeaseRecord| {
            let left = if lease.remaining > 0 { lease.remaining.min(lease.ttl) } else { lease.ttl };
            now + from_seconds(left) + extend
        };
        let mut ends: Vec<(Duration, LeaseRecord)> = leases.into_iter().map(|lease| (end(&lease), lease)).collect();
        ends.sort_by_key(|(end, lease)| (*end, lease.id));
        spread(&mut ends, MAX_ENDS_PER_SECOND);
        for (end, LeaseRecord { id, ttl, remaining }) in ends {
            self.insert(now, id, from_seconds(ttl), end, remaining > 0);
        }
    }

    /// This member goes on leading after a time in which it may have been cut off. Nobody
    /// else has led meanwhile; each lease has `extend` at least for its owner to come back.
    pub fn resume(&mut self, now: Duration, extend: Duration) {
        let ended: Vec<i64> =
            self.leases.iter().filter(|(_, lease)| lease.end < now + extend).map(|(id, _)| *id).collect();
        for id in ended {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            self.queue.remove(&(lease.due, id));
            lease.end = now + extend;
            lease.due = lease.end;
            lease.expired = false;
            self.queue.insert((lease.due, id));
        }
    }

    /// This member leads no more.
    pub fn demote(&mut self) {
        *self = Lessor::default();
    }

    fn insert(&mut self, now: Duration, id: i64, ttl: Duration, end: Duration, checkpointed: bool) {
        self.revoked(id);
        self.leases.insert(id, Lease { ttl, end, due: end, expired: false, checkpointed, checkpoint_due: None });
        self.queue.insert((end, id));
        self.checkpoint_at(id, now + checkpoint_interval(ttl));
    }

    /// Has the lease's remaining time replicated at `due`, if it is worth that.
    fn checkpoint_at(&mut self, id: i64, due: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if let Some(before) = lease.checkpoint_due.take() {
            self.checkpoints.remove(&(before, id));
        }
        if lease.ttl >= MIN_CHECKPOINTED && due < lease.end {
            lease.checkpoint_due = Some(due);
            self.checkpoints.insert((due, id));
        }
    }

    /// A grant was applied.
    pub fn granted(&mut self, now: Duration, id: i64, ttl_seconds: i64) {
        if self.leads {
            let ttl = from_seconds(ttl_seconds);
            self.insert(now, id, ttl, now + ttl, false);
        }
    }

    /// A revocation was applied.
    pub fn revoked(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.queue.remove(&(lease.due, id));
            if let Some(due) = lease.checkpoint_due {
                self.checkpoints.remove(&(due, id));
            }
        }
    }

    /// Whether it counts time.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Whether the lease is known here.
    pub fn knows(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Gives a lease its whole time again.
    pub fn renew(&mut self, now: Duration, id: i64) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if lease.expired || lease.end <= now {
            return Renewal::Ended;
        }
        if lease.checkpointed {
            return Renewal::Checkpointed;
        }
        self.queue.remove(&(lease.due, id));
        lease.end = now + lease.ttl;
        lease.due = lease.end;
        self.queue.insert((lease.due, id));
        let ttl = lease.ttl;
        // Clients renew after a third of the time. As long as they do, there is never a
        // checkpoint, and a keep-alive costs no write.
        self.checkpoint_at(id, now + (ttl / 2).max(checkpoint_interval(ttl)));
        Renewal::Renewed(seconds(ttl))
    }

    /// The replicated record says again that all of the lease's time is left. The caller
    /// sees to it that no checkpoint is under way.
    pub fn uncheckpointed(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.checkpointed = false;
        }
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
    /// leader does not begin their time anew. Those that have waited longest come first.
    pub fn checkpoints(&mut self, now: Duration) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.checkpoints.first().copied() {
            if at > now || due.len() == MAX_CHECKPOINTS_PER_TICK {
                break;
            }
            self.checkpoints.pop_first();
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.checkpoint_due = None;
            let remaining = lease.end.saturating_sub(now);
            if lease.expired || remaining.is_zero() {
                continue;
            }
            lease.checkpointed = true;
            let ttl = lease.ttl;
            due.push((id, seconds(remaining)));
            self.checkpoint_at(id, now + checkpoint_interval(ttl));
        }
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
        assert_eq!(lessor.renew(at(9), 1), Renewal::Renewed(10));
        assert!(lessor.tick(at(18)).is_empty());
        assert_eq!(lessor.remaining(at(18), 1), Some(at(1)));
        assert_eq!(lessor.tick(at(19)), [1]);
        assert_eq!(lessor.renew(at(19), 1), Renewal::Ended, "its revocation may be under way");
    }

    #[test]
    fn an_ended_lease_is_not_renewed_even_before_the_tick() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 10);
        assert_eq!(lessor.renew(at(10), 1), Renewal::Ended);
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
        assert_eq!(lessor.renew(at(1), 3), Renewal::Unknown, "only the leader counts time");
    }

    #[test]
    fn a_leader_that_was_cut_off_goes_on_where_it_was() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 10);
        lessor.granted(at(0), 2, 100);
        assert_eq!(lessor.tick(at(10)), [1]);
        lessor.resume(at(20), at(1));
        assert_eq!(lessor.remaining(at(20), 1), Some(at(1)));
        assert_eq!(lessor.remaining(at(20), 2), Some(at(80)), "not a second more");
        assert_eq!(lessor.renew(at(20), 1), Renewal::Renewed(10));
        assert!(lessor.tick(at(29)).is_empty());
    }

    #[test]
    fn a_tick_is_bounded_and_goes_on_where_it_stopped() {
        let mut lessor = leading();
        for id in 1..=1250 {
            lessor.granted(at(0), id, 2);
        }
        let mut seen = BTreeSet::new();
        for expected in [500, 500, 250, 0] {
            let expired = lessor.tick(at(2));
            assert_eq!(expired.len(), expected);
            seen.extend(expired);
        }
        assert_eq!(seen.len(), 1250);
    }

    #[test]
    fn a_new_leader_spreads_what_would_end_together() {
        let mut lessor = Lessor::new();
        let lease = |id| LeaseRecord { id, ttl: 10, remaining: 0 };
        lessor.promote(at(0), at(1), (1..=2000).map(lease));
        let ends: Vec<Duration> = (1..=2000).filter_map(|id| lessor.remaining(at(0), id)).collect();
        let within = |from: Duration| ends.iter().filter(|end| **end >= from && **end < from + at(1)).count();
        assert_eq!((within(at(11)), within(at(12)), within(at(13))), (750, 750, 500));
        assert!(ends.iter().all(|end| *end >= at(11)), "none ends early");
    }

    #[test]
    fn what_is_left_is_checkpointed_until_somebody_renews() {
        let mut lessor = leading();
        lessor.granted(at(0), 1, 3600);
        lessor.granted(at(0), 2, 9);
        lessor.granted(at(0), 3, 100);
        assert!(lessor.checkpoints(at(9)).is_empty());
        assert_eq!(lessor.checkpoints(at(10)), [(3, 90)], "a tenth of its time has passed");
        assert!(lessor.checkpoints(at(11)).is_empty());
        let almost = at(60) - Duration::from_millis(1);
        assert_eq!(lessor.checkpoints(almost), [(3, 41)], "a begun second counts");
        assert_eq!(lessor.checkpoints(at(60)), [(1, 3540)]);
        assert_eq!(lessor.renew(at(61), 3), Renewal::Checkpointed, "the next leader would end it at 100");
        lessor.uncheckpointed(3);
        assert_eq!(lessor.renew(at(61), 3), Renewal::Renewed(100));
        for renewal in 1..10 {
            let now = at(61 + 33 * renewal);
            assert!(lessor.checkpoints(now).iter().all(|(id, _)| *id != 3), "who renews in time costs nothing");
            assert_eq!(lessor.renew(now, 3), Renewal::Renewed(100));
        }
        lessor.revoked(1);
        lessor.revoked(3);
        assert!(lessor.checkpoints(at(10_000)).is_empty());
    }

    #[test]
    fn checkpoints_come_in_bounded_pieces() {
        let mut lessor = leading();
        for id in 1..=2500 {
            lessor.granted(at(0), id, 1000);
        }
        let mut seen = BTreeSet::new();
        for expected in [1000, 1000, 500, 0] {
            let due = lessor.checkpoints(at(60));
            assert_eq!(due.len(), expected);
            seen.extend(due);
        }
        assert_eq!(seen.len(), 2500);
    }
}
