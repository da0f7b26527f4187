//! Leases on the leader: what [`crate::lease`] decides, with a clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::raft as wire;
use tokio::time::Instant;

use crate::lease::Lessor;
use crate::mvcc::{Engine, EngineError};

/// What an applied command did to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    Granted { id: i64, ttl: i64 },
    Revoked { id: i64 },
}

/// The leader's timers of leases. On other members it knows nothing and says so.
pub(crate) struct Leases {
    engine: Arc<Engine>,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    lessor: Lessor,
    leading: bool,
}

impl Leases {
    pub(crate) fn new(engine: Arc<Engine>) -> Arc<Self> {
        let state = State { lessor: Lessor::new(), leading: false };
        Arc::new(Self { engine, started: Instant::now(), state: Mutex::new(state) })
    }

    /// Starts every lease anew, `extend` longer than its time: nobody could renew it
    /// while nobody led.
    pub(super) fn promote(&self, extend: Duration) {
        let mut state = self.lock();
        // Read under the lock: a grant applied before is in the engine, a later one
        // comes through `applied`.
        let leases = self.engine.leases();
        let now = self.now();
        state.lessor.promote(now, extend, leases);
        state.leading = true;
    }

    pub(super) fn demote(&self) {
        let mut state = self.lock();
        if state.leading {
            state.lessor.demote();
            state.leading = false;
        }
    }

    /// Follows what was applied.
    pub(crate) fn applied(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.lock();
        if !state.leading {
            return;
        }
        let now = self.now();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => state.lessor.granted(now, id, ttl),
                LeaseChange::Revoked { id } => state.lessor.revoked(id),
            }
        }
    }

    /// Seconds the renewed lease now has, 0 for an unknown one; none if this member does
    /// not lead. Only after a fresh round of a quorum: a deposed leader renews nothing.
    pub(crate) fn renew(&self, id: i64) -> Option<i64> {
        let mut state = self.lock();
        let now = self.now();
        state.leading.then(|| state.lessor.renew(now, id).unwrap_or(0))
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
