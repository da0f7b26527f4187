//! One member, assembled: log, state machine, consensus, peers, leases, client port.

mod auth;
mod compactor;
pub(crate) mod compare;
mod export;
mod house;
pub(crate) mod identity;
mod join;
pub(crate) mod leadership;
pub(crate) mod leases;
mod measure;
mod membership;
mod propose;
mod read_index;
mod renewals;
mod requests;
mod start;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::etcd::{Member, ResponseHeader};
use quorate_proto::fence::Fence;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::auth::Credentials;
use self::house::House;
use self::leadership::Leaders;
use self::leases::{KeepAlive, Leases};
use self::propose::Proposer;
use self::read_index::ReadIndex;
use self::renewals::Renewals;
use crate::config::Config;
use crate::error::{StartError, StoreError};
use crate::fs::{self, Disk};
use crate::mvcc::Engine;
use crate::peer::{Identity, Known, Peers};
use crate::raft::snapshot::Area;
use crate::raft::{Applied, Raft, Role};
use crate::wal::Wal;
use crate::watch::Hub;

/// What `Status` and `/version` say: clients derive features from it, so it is the
/// plain number of the etcd release whose contract is kept.
pub const SERVER_VERSION: &str = "3.7.0";

/// How long a hand-over of leadership may take before the store closes without it.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// How many snapshots for clients are written at a time.
const MAX_EXPORTS: usize = 2;

/// How long tasks may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A member of a cluster, in this process. Clones are handles on the same member; it
/// ends with [`Store::shutdown`], or abruptly when its runtime ends.
#[derive(Clone)]
#[must_use = "a handle does nothing by itself"]
pub struct Store {
    inner: Arc<Inner>,
    /// On whose behalf this handle acts.
    caller: auth::Caller,
}

struct Inner {
    config: Config,
    name: String,
    identity: Identity,
    peer_address: SocketAddr,
    client_address: Option<SocketAddr>,
    /// Where clients are told to connect.
    client_urls: Vec<String>,
    raft: Raft,
    wal: Wal,
    house: House,
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    peers: Arc<Peers>,
    area: Arc<Area>,
    applied: watch::Receiver<Applied>,
    /// One change of the members at a time.
    changing: tokio::sync::Mutex<()>,
    /// Where peers are told to come.
    advertised: String,
    /// Why this member takes no part any more.
    ended: watch::Sender<Option<&'static str>>,
    proposer: Proposer,
    read_index: ReadIndex,
    leases: Arc<Leases>,
    gate: auth::Gate,
    keep_alive: KeepAlive,
    renewals: Renewals,
    leaders: Leaders,
    leadership: watch::Receiver<Option<Fence>>,
    /// Snapshots for clients being written; each takes disk space.
    exports: Arc<Semaphore>,
    /// Closes the client port, which ends before everything it needs.
    port: CancellationToken,
    port_tasks: TaskTracker,
    cancel: CancellationToken,
    tasks: TaskTracker,
    _lock: identity::Lock,
}

/// What a member knows of itself and its cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemberStatus {
    pub cluster_id: u64,
    pub member_id: u64,
    pub name: String,
    /// Counts recoveries from lost quorum.
    pub generation: u64,
    pub term: u64,
    /// 0 while none is known.
    pub leader: u64,
    pub is_leader: bool,
    pub is_learner: bool,
    /// The last entry that a quorum holds, as far as this member knows.
    pub committed_index: u64,
    pub applied_index: u64,
    pub last_index: u64,
    /// Entries up to here are gone from the log.
    pub purged_index: u64,
    pub revision: i64,
    pub compact_revision: i64,
    pub size_bytes: u64,
    pub size_in_use_bytes: u64,
    /// The hash of the state at `hash_index`: equal on all members at the same index.
    pub hash: u64,
    pub hash_index: u64,
    /// On the leader: how many entries each peer lacks.
    pub lag: Vec<(u64, u64)>,
}

impl Store {
    /// Starts a member from its data directory, or founds its cluster if that is new.
    /// Returns once it listens; a leader may not be known yet.
    ///
    /// # Errors
    /// Names the file, the address or the setting that stands in the way.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        start::start(config, fs::real()).await
    }

    /// As [`Store::start`], with the log on `disk`.
    ///
    /// # Errors
    /// As [`Store::start`].
    pub async fn start_on(config: Config, disk: Arc<dyn Disk>) -> Result<Self, StartError> {
        start::start(config, disk).await
    }

    /// Where peers connect.
    pub fn peer_address(&self) -> SocketAddr {
        self.inner.peer_address
    }

    /// Where clients connect, if they can.
    pub fn client_address(&self) -> Option<SocketAddr> {
        self.inner.client_address
    }

    /// The last revision applied on this member.
    pub fn revision(&self) -> i64 {
        self.inner.engine.revision()
    }

    /// `Some` while this member leads: from the moment an entry of its term is applied
    /// here to the moment its leadership ends.
    pub fn leadership(&self) -> watch::Receiver<Option<Fence>> {
        self.inner.leadership.clone()
    }

    /// Whether this member knows who leads.
    pub fn has_leader(&self) -> bool {
        self.inner.leaders.borrow().member.is_some()
    }

    /// How long the disk has been at the write or sync of the log in progress; zero when there
    /// is none.
    pub fn stalled_for(&self) -> Duration {
        self.inner.wal.stalled_for()
    }

    pub fn status(&self) -> MemberStatus {
        let inner = &self.inner;
        let view = inner.raft.view();
        let (hash_index, hash) = inner.engine.applied_hash();
        let lag = view.matched.iter().filter(|(id, _)| **id != inner.identity.member_id);
        let leader = view.reign.known_leader(view.quorum_age, inner.config.quorum_patience());
        MemberStatus {
            cluster_id: inner.identity.cluster_id,
            member_id: inner.identity.member_id,
            name: inner.name.clone(),
            generation: inner.identity.generation,
            term: view.reign.term,
            leader: leader.unwrap_or(0),
            is_leader: view.reign.leads() && leader.is_some(),
            is_learner: view.reign.role == Role::Learner,
            committed_index: view.committed,
            applied_index: inner.engine.applied_index(),
            last_index: view.last_index,
            purged_index: view.purged,
            revision: inner.engine.revision(),
            compact_revision: inner.engine.compact_revision(),
            size_bytes: inner.engine.size_bytes() + inner.area.received_bytes(),
            size_in_use_bytes: inner.engine.size_in_use_bytes(),
            hash,
            hash_index,
            lag: lag.map(|(id, matched)| (*id, view.last_index.saturating_sub(*matched))).collect(),
        }
    }

    /// The members of the cluster as this member knows them.
    pub fn members(&self) -> Vec<Member> {
        let peer_scheme = if self.inner.config.peer_tls.is_some() { "https" } else { "http" };
        let peers = &self.inner.peers;
        membership::list(&self.inner.raft.view(), &peers.members(), peer_scheme, |id, known| peers.address(id, known))
    }

    /// Says why, once this member takes no part in its cluster any more: it was removed, or
    /// another data directory holds its place. It has stopped by then, and will not start again.
    pub fn ended(&self) -> watch::Receiver<Option<&'static str>> {
        self.inner.ended.subscribe()
    }

    /// Whether clients see this member as a learner, which serves them little.
    pub(crate) fn serves_as_learner(&self) -> bool {
        let members = self.inner.peers.members();
        members.known.get(&self.inner.identity.member_id).is_some_and(Known::is_learner)
    }

    /// Hands leadership to the peer that holds the most of the log; returns once another
    /// member leads. Does nothing on a member that does not lead.
    ///
    /// # Errors
    /// `Timeout` when no peer took it.
    pub async fn transfer_leadership(&self) -> Result<(), StoreError> {
        let own = self.inner.identity.member_id;
        let view = self.inner.raft.view();
        if !view.reign.leads() {
            return Ok(());
        }
        let Some(heir) = leadership::heir(&view, own) else { return Err(StoreError::BadTransferee) };
        self.inner.hand_over(heir).await
    }

    /// Hands leadership to `target`, a voter.
    ///
    /// # Errors
    /// `NotLeader` on a member that does not lead, `BadTransferee` when `target` does not vote.
    pub async fn move_leader(&self, target: u64) -> Result<(), StoreError> {
        let view = self.inner.raft.view();
        if !view.reign.leads() {
            return Err(StoreError::NotLeader);
        }
        if target == self.inner.identity.member_id {
            return Ok(());
        }
        if !view.members.get(&target).is_some_and(|(_, votes)| *votes) {
            return Err(StoreError::BadTransferee);
        }
        self.inner.hand_over(target).await
    }

    /// Hands leadership over, lets requests finish, and closes the files. The process
    /// may end afterwards; other handles answer `Stopped`.
    pub async fn shutdown(&self) {
        match self.transfer_leadership().await {
            // Alone, it has nobody to hand leadership to.
            Ok(()) | Err(StoreError::BadTransferee) => {}
            Err(error) => tracing::info!(%error, "closing without handing leadership over"),
        }
        self.inner.port.cancel();
        self.inner.port_tasks.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.inner.port_tasks.wait()).await.is_err() {
            tracing::warn!("closing although some clients have not ended");
        }
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("closing although some tasks have not ended");
        }
        self.inner.raft.shutdown().await;
        let (engine, wal) = (Arc::clone(&self.inner.engine), self.inner.wal.clone());
        let closing = tokio::task::spawn_blocking(move || {
            // Only spares the next start some replay.
            if let Err(error) = engine.flush() {
                tracing::warn!(%error, "the state machine was not flushed at the end");
            }
            wal.close();
        });
        if let Err(error) = closing.await {
            tracing::warn!(%error, "closing the log failed");
        }
    }

    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        self.inner.header(revision)
    }

    /// Cancelled when clients have to go.
    pub(crate) fn closing(&self) -> CancellationToken {
        self.inner.port.clone()
    }

    pub(crate) fn leaders(&self) -> Leaders {
        self.inner.leaders.clone()
    }

    pub(crate) fn max_request_bytes(&self) -> usize {
        self.inner.config.max_request_bytes
    }

    pub(crate) fn election_timeout(&self) -> Duration {
        self.inner.config.election_timeout_max
    }
}

impl Inner {
    /// Returns once somebody else leads.
    async fn hand_over(&self, target: u64) -> Result<(), StoreError> {
        let own = self.identity.member_id;
        let mut leaders = self.leaders.clone();
        self.raft.transfer_leader(target).await;
        let taken = leaders.wait_for(|leader| leader.member.as_ref().is_some_and(|(id, _)| *id != own));
        match tokio::time::timeout(HANDOVER_TIMEOUT, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout),
        }
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.identity.cluster_id,
            member_id: self.identity.member_id,
            revision,
            raft_term: self.leaders.borrow().term,
        }
    }
}
