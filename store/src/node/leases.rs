//! Leases on the leader: what [`crate::lease`] decides, with a clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio::time::Instant;

use crate::command::{Command, Operation};
use crate::error::StoreError;
use crate::lease::{Lessor, Renewal};
use crate::mvcc::Engine;
use crate::raft::{self, Applied, Proposal, Raft};

/// Longer than the leader waits for its own state machine, or for a revocation that is
/// under way: then somebody has to ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A command about a lease that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    Granted {
        id: i64,
        ttl: i64,
    },
    Revoked {
        id: i64,
    },
    /// The command was refused: the lease exists already, or does not exist.
    Refused {
        id: i64,
    },
}

impl LeaseChange {
    fn id(self) -> i64 {
        match self {
            Self::Granted { id, .. } | Self::Revoked { id } | Self::Refused { id } => id,
        }
    }
}

/// The leader's timers of leases. On other members it knows nothing and says so.
pub(crate) struct Leases {
    engine: Arc<Engine>,
    started: Instant,
    state: Mutex<State>,
    /// Leases ended, or this member leads no more: "look again".
    changed: watch::Sender<()>,
    /// Held to write while checkpoints are replicated, to read while one is cleared: a
    /// checkpoint that comes after a renewal would end the lease too early.
    checkpointing: RwLock<()>,
}

struct State {
    /// Follows what is applied from the first term that this member led in on.
    lessor: Lessor,
    /// The term in which it led last.
    term: u64,
    leading: bool,
}

impl Leases {
    pub(crate) fn new(engine: Arc<Engine>) -> Arc<Self> {
        let state = State { lessor: Lessor::new(), term: 0, leading: false };
        let (changed, checkpointing) = (watch::Sender::new(()), RwLock::new(()));
        Arc::new(Self { engine, started: Instant::now(), state: Mutex::new(state), changed, checkpointing })
    }

    /// This member leads in `term`. Every lease goes on with what was left at its last
    /// checkpoint, or starts anew, `extend` longer: nobody could renew it while nobody led.
    /// If this member led in this term before, they go on where they were.
    pub(super) fn promote(&self, term: u64, extend: Duration) {
        let mut state = self.lock();
        let now = self.now();
        if state.term == term {
            state.lessor.resume(now, extend);
        } else {
            // Read under the lock: a grant applied before is in the engine, a later one
            // comes through `applied`.
            state.lessor.promote(now, extend, self.engine.leases());
            state.term = term;
        }
        state.leading = true;
    }

    /// This member does not act as leader, for now or for good.
    pub(super) fn demote(&self) {
        self.lock().leading = false;
        self.changed.send_replace(());
    }

    /// Follows what was applied.
    pub(crate) fn applied(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.lock();
        if !state.lessor.leads() {
            return;
        }
        let now = self.now();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => state.lessor.granted(now, id, ttl),
                LeaseChange::Revoked { id } => state.lessor.revoked(id),
                LeaseChange::Refused { .. } => {}
            }
        }
        // What is replicated decides. The result of a command that came twice is that of
        // the first time, which says nothing of the lease that has the id now.
        for id in changes.iter().map(|change| change.id()) {
            match self.engine.lease(id) {
                Some(lease) if !state.lessor.knows(id) => state.lessor.granted(now, id, lease.ttl),
                None => state.lessor.revoked(id),
                Some(_) => {}
            }
        }
        drop(state);
        self.changed.send_replace(());
    }

    fn try_renew(&self, ids: &[i64]) -> Result<Vec<Renewal>, StoreError> {
        let mut state = self.lock();
        let now = self.now();
        if !state.leading {
            return Err(StoreError::NotLeader);
        }
        Ok(ids.iter().map(|id| state.lessor.renew(now, *id)).collect())
    }

    /// Seconds that are left of a lease; none for an unknown one.
    fn time_left(&self, id: i64) -> Result<Option<i64>, StoreError> {
        let state = self.lock();
        if !state.leading {
            return Err(StoreError::NotLeader);
        }
        let left = state.lessor.remaining(self.now(), id);
        Ok(left.map(|left| i64::try_from(left.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Leases that have run out, to be revoked.
    pub(super) fn expired(&self) -> Vec<i64> {
        let mut state = self.lock();
        let now = self.now();
        if state.leading { state.lessor.tick(now) } else { Vec::new() }
    }

    /// Nobody renews a lease by clearing its checkpoint while this is held.
    pub(super) async fn checkpointing(&self) -> RwLockWriteGuard<'_, ()> {
        self.checkpointing.write().await
    }

    /// Remaining times worth keeping over a change of leader.
    pub(super) fn checkpoints(&self) -> Vec<(i64, i64)> {
        let mut state = self.lock();
        let now = self.now();
        if state.leading { state.lessor.checkpoints(now) } else { Vec::new() }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leader as keep-alives need it, from clients of this member and from its peers.
#[derive(Clone)]
pub(crate) struct KeepAlive {
    pub(crate) raft: Raft,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) leases: Arc<Leases>,
    /// Nobody else is elected within this time of an answer of a quorum.
    pub(crate) reign: Duration,
}

impl KeepAlive {
    /// Seconds that each renewed lease now has, 0 for an unknown one; none for one whose answer
    /// takes longer: [`KeepAlive::renew`] waits for it.
    ///
    /// # Errors
    /// `NotLeader` or `Timeout` when this member cannot say: ask the leader.
    pub(crate) async fn renew_all(&self, ids: &[i64]) -> Result<Vec<Option<i64>>, StoreError> {
        self.confirm().await?;
        let renewed = self.renewed(ids, Instant::now() + PATIENCE).await?;
        let ttl = |renewal| match renewal {
            Renewal::Renewed(ttl) => Some(ttl),
            Renewal::Unknown => Some(0),
            Renewal::Checkpointed | Renewal::Ended => None,
        };
        Ok(renewed.into_iter().map(ttl).collect())
    }

    /// Seconds the renewed lease now has, 0 for an unknown one. A lease whose time is over
    /// is waited for until its revocation is done.
    ///
    /// # Errors
    /// As [`KeepAlive::renew_all`].
    pub(crate) async fn renew(&self, id: i64) -> Result<i64, StoreError> {
        self.confirm().await?;
        let mut changed = self.leases.changed.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            changed.borrow_and_update();
            match self.renewed(&[id], deadline).await?[..] {
                [Renewal::Renewed(ttl)] => return Ok(ttl),
                [Renewal::Checkpointed] => self.clear(id).await?,
                [Renewal::Ended] => match tokio::time::timeout_at(deadline, changed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(StoreError::Stopped),
                    Err(_) => return Err(StoreError::Timeout),
                },
                _ => return Ok(0),
            }
        }
    }

    /// Whether this member leads, as far as a quorum has said not long ago.
    pub(super) fn may_act(&self) -> bool {
        self.raft.may_act(self.reign)
    }

    /// Renews what can be renewed at once, on a member that a quorum has confirmed.
    async fn renewed(&self, ids: &[i64], deadline: Instant) -> Result<Vec<Renewal>, StoreError> {
        loop {
            let renewed = self.leases.try_renew(ids)?;
            if self.may_act() {
                let count = renewed.iter().filter(|renewal| matches!(renewal, Renewal::Renewed(_))).count();
                counter!("etcd_debugging_lease_renewed_total").increment(count as u64);
                return Ok(renewed);
            }
            // Held up since then, this member may have been replaced, and the leases revoked
            // by its successor.
            let confirmed = tokio::time::timeout_at(deadline, self.confirm()).await;
            confirmed.map_err(|_| StoreError::Timeout)??;
        }
    }

    /// Seconds that are left of a lease, none for an unknown one; and an entry: whoever has
    /// applied it has seen every grant and revocation that counts here.
    ///
    /// # Errors
    /// As [`KeepAlive::renew_all`].
    pub(crate) async fn time_left(&self, id: i64) -> Result<(Option<i64>, u64), StoreError> {
        let index = self.confirm().await?;
        Ok((self.leases.time_left(id)?, index))
    }

    /// Returns once a quorum has confirmed that this member leads, and it has applied all
    /// that was acknowledged before (up to the entry that it returns): grants and revocations
    /// that somebody has seen count.
    async fn confirm(&self) -> Result<u64, StoreError> {
        let index = self.raft.read_index().await?;
        let mut applied = self.applied.clone();
        match tokio::time::timeout(PATIENCE, raft::applied_at_least(&mut applied, index)).await {
            Ok(Ok(())) => Ok(index),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout),
        }
    }

    /// Has all of the lease's time stand in its replicated record again.
    async fn clear(&self, id: i64) -> Result<(), StoreError> {
        let _clearing = self.leases.checkpointing.read().await;
        let clear = Proposal::new(&Command::new(Operation::LeaseCheckpoint(vec![(id, 0)])));
        let room = self.raft.room(clear.len()).await.ok_or(StoreError::Stopped)?;
        tokio::time::timeout(PATIENCE, self.raft.propose(clear, room)).await.map_err(|_| StoreError::Timeout)??;
        self.leases.lock().lessor.uncheckpointed(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{Entry, Payload, StateMachine};
    use crate::mvcc::Config;
    use crate::wal::EntryId;

    fn apply(machine: &mut StateMachine, operation: Operation) {
        let index = machine.applied().map_or(1, |id| id.index + 1);
        let payload = Payload::Command(Command::new(operation));
        machine.apply(vec![Entry { id: EntryId { term: 1, node: 1, index }, payload }]).unwrap();
    }

    #[test]
    fn what_is_replicated_decides_which_leases_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = StateMachine::open(Config::new(directory.path().join("state"))).unwrap();
        let leases = Leases::new(machine.engine());
        apply(&mut machine, Operation::LeaseGrant { id: 5, ttl: 60 });
        assert!(leases.try_renew(&[5]).is_err(), "only the leader counts time");
        leases.promote(1, Duration::ZERO);
        assert_eq!(leases.try_renew(&[5]).unwrap(), [Renewal::Renewed(60)]);

        // The result of a revocation that came twice; somebody has granted the id anew.
        leases.applied(&[LeaseChange::Revoked { id: 5 }]);
        assert_eq!(leases.try_renew(&[5]).unwrap(), [Renewal::Renewed(60)]);

        // A revocation that found no lease: it must not be offered for ever.
        apply(&mut machine, Operation::LeaseRevoke { id: 5 });
        assert_eq!(leases.try_renew(&[5]).unwrap(), [Renewal::Renewed(60)], "nobody has told yet");
        leases.applied(&[LeaseChange::Refused { id: 5 }]);
        assert_eq!(leases.try_renew(&[5]).unwrap(), [Renewal::Unknown]);
        assert_eq!(leases.time_left(5).unwrap(), None);
    }
}
