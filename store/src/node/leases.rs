//! Leases on the leader: what [`crate::lease`] decides, with a clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use quorate_proto::raft as wire;
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio::time::Instant;

use crate::command::{Command, Operation};
use crate::error::StoreError;
use crate::lease::{Lessor, Renewal};
use crate::mvcc::{Engine, EngineError};
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

    fn try_renew(&self, id: i64) -> Result<Renewal, StoreError> {
        let mut state = self.lock();
        let now = self.now();
        if state.leading { Ok(state.lessor.renew(now, id)) } else { Err(StoreError::NotLeader) }
    }

    /// What is left of a lease; none if this member does not lead.
    pub(crate) fn time_to_live(&self, id: i64, keys: bool) -> Option<Result<wire::LeaseResponse, EngineError>> {
        let remaining = {
            let state = self.lock();
            if !state.leading {
                return None;
            }
            state.lessor.remaining(self.now(), id)
        };
        let Some((remaining, record)) = remaining.zip(self.engine.lease(id)) else {
            return Some(Ok(wire::LeaseResponse { ttl: -1, ..Default::default() }));
        };
        let keys = match keys.then(|| self.engine.lease_keys(id)).transpose() {
            Ok(keys) => keys.unwrap_or_default(),
            Err(error) => return Some(Err(error)),
        };
        let ttl = i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX);
        Some(Ok(wire::LeaseResponse { ttl, granted_ttl: record.ttl, keys }))
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
    /// Seconds the renewed lease now has, 0 for an unknown one. A lease whose time is over
    /// is waited for until its revocation is done.
    ///
    /// # Errors
    /// `NotLeader` or `Timeout` when this member cannot say: ask the leader.
    pub(crate) async fn renew(&self, id: i64) -> Result<i64, StoreError> {
        self.confirm().await?;
        let mut changed = self.leases.changed.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            changed.borrow_and_update();
            match self.leases.try_renew(id)? {
                // Held up since a quorum confirmed it, this member may have been replaced, and
                // the lease revoked by its successor.
                Renewal::Renewed(_) | Renewal::Unknown if !self.reigns() => {
                    let confirmed = tokio::time::timeout_at(deadline, self.confirm()).await;
                    confirmed.map_err(|_| StoreError::Timeout)??;
                }
                Renewal::Renewed(ttl) => {
                    counter!("etcd_debugging_lease_renewed_total").increment(1);
                    return Ok(ttl);
                }
                Renewal::Unknown => return Ok(0),
                Renewal::Checkpointed => self.clear(id).await?,
                Renewal::Ended => match tokio::time::timeout_at(deadline, changed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(StoreError::Stopped),
                    Err(_) => return Err(StoreError::Timeout),
                },
            }
        }
    }

    /// What is left of a lease.
    ///
    /// # Errors
    /// As [`KeepAlive::renew`].
    pub(crate) async fn time_to_live(&self, id: i64, keys: bool) -> Result<wire::LeaseResponse, StoreError> {
        self.confirm().await?;
        Ok(self.leases.time_to_live(id, keys).ok_or(StoreError::NotLeader)??)
    }

    /// Whether nobody else can have been elected yet.
    fn reigns(&self) -> bool {
        self.raft.may_act(self.reign)
    }

    /// Returns once a quorum has confirmed that this member leads, and it has applied all
    /// that was acknowledged before: grants and revocations that somebody has seen count.
    async fn confirm(&self) -> Result<(), StoreError> {
        let index = self.raft.read_index().await?;
        let mut applied = self.applied.clone();
        match tokio::time::timeout(PATIENCE, raft::applied_at_least(&mut applied, index)).await {
            Ok(Ok(())) => Ok(()),
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
        assert!(leases.try_renew(5).is_err(), "only the leader counts time");
        leases.promote(1, Duration::ZERO);
        assert_eq!(leases.try_renew(5).unwrap(), Renewal::Renewed(60));

        // The result of a revocation that came twice; somebody has granted the id anew.
        leases.applied(&[LeaseChange::Revoked { id: 5 }]);
        assert_eq!(leases.try_renew(5).unwrap(), Renewal::Renewed(60));

        // A revocation that found no lease: it must not be offered for ever.
        apply(&mut machine, Operation::LeaseRevoke { id: 5 });
        assert_eq!(leases.try_renew(5).unwrap(), Renewal::Renewed(60), "nobody has told yet");
        leases.applied(&[LeaseChange::Refused { id: 5 }]);
        assert_eq!(leases.try_renew(5).unwrap(), Renewal::Unknown);
        assert_eq!(leases.time_to_live(5, true).unwrap().unwrap().ttl, -1);
    }
}
