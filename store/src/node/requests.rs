//! The requests of clients, in this process or through the port.

use std::sync::Arc;

use metrics::{counter, gauge};
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, HashKvResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_proto::fence::Fence;
use tokio::time::{Duration, Instant};

use super::Store;
use super::leadership::{Seat, ask_leader};
use crate::command::{CommandResult, Operation};
use crate::error::StoreError;
use crate::mvcc::{Engine, Listing, Page, ReadError};
use crate::peer::Lane;
use crate::raft;
use crate::watch::{Hub, Mailbox, Watcher};

/// The shortest lease, in seconds. etcd's rule is one and a half election timeouts, which
/// with its default timing is 2; programs count on no less.
const MIN_LEASE_TTL: i64 = 2;

/// Entries that are committed and not applied here; past that etcd, too, takes no more.
const MAX_APPLY_GAP: u64 = 5000;

/// A write's outcome of another kind than its operation: the state machine is broken.
pub(super) fn wrong_kind(result: &CommandResult) -> ! {
    panic!("a command was answered as another one: {result:?}")
}

impl Store {
    /// Reads keys. Unless the request says `serializable`, sees every write acknowledged
    /// before the call.
    ///
    /// # Errors
    /// `Refused` as etcd refuses; `NoLeader` or `Timeout` when no quorum answers.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.check_serving()?;
        // Before anybody is asked who it is, as etcd.
        Engine::check_range(&request)?;
        if !request.serializable {
            self.inner.read_index.wait().await?;
        }
        counter!("etcd_mvcc_range_total").increment(1);
        let mut response = self.guarded(
            |permit| Ok(permit.read(&request.key, &request.range_end)?),
            || self.inner.engine.range(&request),
        )?;
        self.fill(&mut response.header);
        Ok(response)
    }

    /// As [`Store::range`], as bytes; for a request that is [`mvcc::is_plain`].
    ///
    /// # Errors
    /// As [`Store::range`].
    pub(crate) async fn list(&self, request: &RangeRequest) -> Result<Listing, StoreError> {
        self.check_serving()?;
        Engine::check_range(request)?;
        if !request.serializable {
            self.inner.read_index.wait().await?;
        }
        counter!("etcd_mvcc_range_total").increment(1);
        self.guarded(|permit| Ok(permit.read(&request.key, &request.range_end)?), || self.inner.engine.list(request))
    }

    /// The first keys of a range, in their order; see [`Engine::page`]. As fresh as
    /// [`Store::range`].
    ///
    /// # Errors
    /// As [`Store::range`].
    pub(crate) async fn range_page(
        &self,
        request: &RangeRequest,
        max_keys: usize,
        max_bytes: usize,
    ) -> Result<Page, StoreError> {
        self.check_serving()?;
        if !request.serializable {
            self.inner.read_index.wait().await?;
        }
        counter!("etcd_mvcc_range_total").increment(1);
        self.guarded(
            |permit| Ok(permit.read(&request.key, &request.range_end)?),
            || self.inner.engine.page(request, max_keys, max_bytes),
        )
    }

    /// # Errors
    /// `Refused` as etcd refuses; `Timeout` or `LeaderFailed` when the outcome is unknown.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, StoreError> {
        match self.write(Operation::Put(request), None).await? {
            CommandResult::Put(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => wrong_kind(&other),
        }
    }

    /// # Errors
    /// As [`Store::put`].
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, StoreError> {
        match self.write(Operation::DeleteRange(request), None).await? {
            CommandResult::DeleteRange(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => wrong_kind(&other),
        }
    }

    /// Compares and writes. With a fence, takes effect only while that reign lasts. A
    /// transaction that cannot write is a read.
    ///
    /// # Errors
    /// As [`Store::put`]; `Refused(FenceNotCurrent)` when the reign is over.
    pub async fn txn(&self, request: TxnRequest, fence: Option<Fence>) -> Result<TxnResponse, StoreError> {
        if fence.is_none() && Engine::is_read_only(&request) {
            self.check_serving()?;
            // Checked as a write would be, so that both refuse alike.
            let operation = Operation::Txn(request);
            Engine::check(&operation, self.inner.config.max_txn_ops)?;
            let Operation::Txn(request) = operation else { return Err(StoreError::Unsupported("this transaction")) };
            if !is_serializable(&request) {
                self.inner.read_index.wait().await?;
            }
            let engine: &Engine = &self.inner.engine;
            let mut response = self.guarded(|permit| permit.txn(&request, engine), || engine.read_txn(&request))?;
            self.fill(&mut response.header);
            return Ok(response);
        }
        match self.write(Operation::Txn(request), fence).await? {
            CommandResult::Txn(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => wrong_kind(&other),
        }
    }

    /// Forgets history before a revision. It is removed in the background, which a
    /// `physical` request waits for on this member.
    ///
    /// # Errors
    /// As [`Store::put`]; `Stopped` when the store closes while it waits.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, StoreError> {
        let CompactionRequest { revision: wanted, physical } = request;
        match self.write(Operation::Compact(request), None).await? {
            CommandResult::Compact { revision } => {
                if physical {
                    let mut collected = self.inner.engine.collected();
                    tokio::select! {
                        done = collected.wait_for(|upto| *upto >= wanted) => {
                            done.map_err(|_| StoreError::Stopped)?;
                        }
                        () = self.inner.cancel.cancelled() => return Err(StoreError::Stopped),
                    }
                }
                Ok(CompactionResponse { header: Some(self.header(revision)) })
            }
            other => wrong_kind(&other),
        }
    }

    /// # Errors
    /// As [`Store::put`].
    pub async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, StoreError> {
        // Picked here, so that the command means the same on every member.
        let id = match request.id {
            0 => i64::try_from((rand::random::<u64>() >> 1).max(1)).unwrap_or(i64::MAX),
            id => id,
        };
        let timeout = (self.inner.config.election_timeout_max * 3 / 2).as_secs_f64().ceil();
        #[expect(clippy::cast_possible_truncation, reason = "a few seconds")]
        let ttl = request.ttl.max(MIN_LEASE_TTL).max(timeout as i64);
        match self.write(Operation::LeaseGrant { id, ttl }, None).await? {
            CommandResult::LeaseGrant { id, ttl, revision } => {
                Ok(LeaseGrantResponse { header: Some(self.header(revision)), id, ttl, error: String::new() })
            }
            other => wrong_kind(&other),
        }
    }

    /// # Errors
    /// As [`Store::put`].
    pub async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, StoreError> {
        match self.write(Operation::LeaseRevoke { id: request.id }, None).await? {
            CommandResult::LeaseRevoke { revision } => Ok(LeaseRevokeResponse { header: Some(self.header(revision)) }),
            other => wrong_kind(&other),
        }
    }

    /// Renews a lease on the leader. The answer for an unknown lease has `ttl` 0.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout` when no leader answers.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, StoreError> {
        self.may_keep_lease(id).await?;
        self.check_serving()?;
        // Taken before: the lease may end at a later revision, but not at or before this.
        let header = Some(self.header(self.revision()));
        let ttl = self.inner.renewals.renew(id).await?;
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }

    /// What is left of a lease. The answer for an unknown lease has `ttl` -1.
    ///
    /// # Errors
    /// As [`Store::lease_keep_alive`].
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, StoreError> {
        let LeaseTimeToLiveRequest { id, keys } = request;
        self.authenticated().await?;
        self.check_serving()?;
        let deadline = Instant::now() + self.inner.config.request_timeout;
        let ask = |seat: Seat| async move {
            let Some((member, address)) = seat else { return Ok(self.inner.keep_alive.time_left(id).await?.0) };
            let line = self.inner.peers.line(member, &address, Lane::Forward);
            let (left, index) = line.time_left(id).await.map_err(|_| StoreError::Timeout)?;
            raft::applied_at_least(&mut self.inner.applied.clone(), index).await.map_err(|_| StoreError::Stopped)?;
            Ok(left)
        };
        let left = ask_leader(&self.inner.leaders, deadline, ask).await?;
        let found = left.zip(self.inner.engine.lease(id));
        let (ttl, granted_ttl) = found.map_or((-1, 0), |(left, lease)| (left, lease.ttl));
        let keys = match keys && found.is_some() {
            true => self.inner.engine.lease_keys(id)?,
            false => Vec::new(),
        };
        self.permitted(|permit| Ok(permit.read_all(&keys)?)).await?;
        let header = Some(self.header(self.revision()));
        Ok(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys })
    }

    /// All leases.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub async fn leases(&self) -> Result<LeaseLeasesResponse, StoreError> {
        self.check_serving()?;
        self.inner.read_index.wait().await?;
        let leases = self.guarded(|permit| self.may_list_leases(permit), || Ok(self.inner.engine.leases()))?;
        let leases = leases.into_iter().map(|lease| LeaseStatus { id: lease.id }).collect();
        Ok(LeaseLeasesResponse { header: Some(self.header(self.revision())), leases })
    }

    /// Watches keys on this member, from any revision that is not compacted.
    ///
    /// # Errors
    /// `Stopped` when the store is closing; `Refused(Corrupt)` on a member put aside, `Refused` too
    /// when the caller may not read the keys.
    pub fn watch(&self, request: WatchCreateRequest) -> Result<Watcher, StoreError> {
        if self.inner.cancel.is_cancelled() {
            return Err(StoreError::Stopped);
        }
        self.check_serving()?;
        self.may_watch(&request.key, &request.range_end)?;
        Ok(self.inner.hub.watch(request))
    }

    /// As [`Store::watch`], announced in its owner's mailbox.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub(crate) fn watch_for(&self, request: WatchCreateRequest, mailbox: Arc<Mailbox>) -> Result<Watcher, StoreError> {
        self.check_serving()?;
        self.may_watch(&request.key, &request.range_end)?;
        Ok(self.inner.hub.watch_for(request, mailbox))
    }

    /// How often watches that asked for it hear how far they are.
    pub(crate) fn watch_progress_interval(&self) -> Duration {
        self.inner.config.watch_progress_interval
    }

    /// Fans events out.
    pub(crate) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// A revision that this member has applied, no older than any write acknowledged
    /// before the call.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout` when no quorum answers.
    pub async fn read_index(&self) -> Result<i64, StoreError> {
        self.inner.read_index.wait().await?;
        Ok(self.revision())
    }

    /// The hash of the keys at a revision, as this member has them.
    ///
    /// # Errors
    /// `Refused` when the revision is compacted or in the future.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, StoreError> {
        let hash = self.inner.engine.hash_kv(revision).map_err(read_error)?;
        Ok(HashKvResponse {
            header: Some(self.header(self.revision())),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        })
    }

    pub(super) async fn write(&self, operation: Operation, fence: Option<Fence>) -> Result<CommandResult, StoreError> {
        self.admit_write(&operation)?;
        // In etcd's order: what is wrong in itself is said first.
        Engine::check(&operation, self.inner.config.max_txn_ops)?;
        if self.inner.raft.committed() > self.inner.applied.borrow().index + MAX_APPLY_GAP {
            return Err(StoreError::TooManyRequests);
        }
        if size(&operation) > self.inner.config.max_request_bytes {
            return Err(StoreError::TooLarge);
        }
        gauge!("etcd_server_proposals_pending").increment(1.0);
        let result = self.propose(operation, fence).await;
        gauge!("etcd_server_proposals_pending").decrement(1.0);
        if let Err(error) = &result
            && !error.is_refusal()
        {
            counter!("etcd_server_proposals_failed_total").increment(1);
        }
        result
    }

    /// Says who answers.
    pub(super) fn fill(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or_else(|| self.revision(), |header| header.revision);
        *header = Some(self.header(revision));
    }
}

/// Whether a transaction that only reads is content with what this member has.
fn is_serializable(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| matches!(&operation.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// The bytes of the request as its client sent it.
fn size(operation: &Operation) -> usize {
    use prost::Message;
    match operation {
        Operation::Put(request) => request.encoded_len(),
        Operation::DeleteRange(request) => request.encoded_len(),
        Operation::Txn(request) => request.encoded_len(),
        Operation::Auth(change) => {
            let mut bytes = bytes::BytesMut::new();
            change.encode(&mut bytes);
            bytes.len()
        }
        _ => 0,
    }
}

fn read_error(error: ReadError) -> StoreError {
    match error {
        ReadError::Apply(error) => StoreError::Refused(error),
        ReadError::Engine(error) => StoreError::Engine(error),
    }
}
