//! What locks and elections have in common: callers queue below a name, each by a key
//! that bears its lease; the oldest key is the owner's.
//!
//! The keys are those of etcd's client library (`name/lease in hexadecimal`), so that its
//! locks and elections and the server's are the same ones.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, request_op, response_op,
};
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::Notify;
use tonic::{Code, Status};

use crate::error::StoreError;
use crate::node::Store;

/// Seconds of the lease that a caller without one gets (etcd's number).
const SESSION_TTL: i64 = 60;

/// An error as etcd's services of this kind give it: the text is what clients know it by,
/// the code says no more than that it failed. What may be tried again keeps its code.
pub(super) fn failure(error: StoreError) -> Status {
    let status = Status::from(error);
    match status.code() {
        Code::Unavailable | Code::Unimplemented | Code::Internal => status,
        _ => Status::unknown(status.message()),
    }
}

/// The keys of one name.
#[derive(Clone)]
pub(super) struct Queue {
    prefix: Bytes,
}

impl Queue {
    pub(super) fn of(name: &[u8]) -> Self {
        Self { prefix: [name, b"/"].concat().into() }
    }

    pub(super) fn key(&self, lease: i64) -> Bytes {
        [&self.prefix, format!("{lease:x}").as_bytes()].concat().into()
    }

    /// All keys of the queue.
    pub(super) fn all(&self) -> RangeRequest {
        let mut end = self.prefix.to_vec();
        // The byte after the slash that ends the prefix.
        if let Some(last) = end.last_mut() {
            *last = b'/' + 1;
        }
        RangeRequest { key: self.prefix.clone(), range_end: end.into(), ..Default::default() }
    }

    /// The owner's key.
    pub(super) fn oldest(&self) -> RangeRequest {
        sorted(self.all(), SortOrder::Ascend)
    }

    /// The key just before the one that `revision` created.
    fn before(&self, revision: i64) -> RangeRequest {
        RangeRequest { max_create_revision: revision - 1, ..sorted(self.all(), SortOrder::Descend) }
    }
}

fn sorted(request: RangeRequest, order: SortOrder) -> RangeRequest {
    RangeRequest { limit: 1, sort_order: order.into(), sort_target: SortTarget::Create.into(), ..request }
}

pub(super) fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..Default::default() }
}

/// Holds while `key` is the one that `revision` created; 0: while there is none.
pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

pub(super) fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub(super) fn put(key: &Bytes, value: &Bytes, lease: i64) -> RequestOp {
    let request = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
    op(request_op::Request::RequestPut(request))
}

pub(super) fn delete(key: &Bytes) -> RequestOp {
    let request = DeleteRangeRequest { key: key.clone(), ..Default::default() };
    op(request_op::Request::RequestDeleteRange(request))
}

pub(super) fn range(request: RangeRequest) -> RequestOp {
    op(request_op::Request::RequestRange(request))
}

/// The first key that the range at `index` of a transaction found.
fn found(response: &TxnResponse, index: usize) -> Option<&KeyValue> {
    match response.responses.get(index)?.response.as_ref()? {
        response_op::Response::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

pub(super) fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The lease that a caller brought, or one of a minute that ends early if the request
/// fails.
pub(super) struct Session {
    pub(super) lease: i64,
    /// Ends the lease early, if it was granted here.
    clerk: Option<Arc<Clerk>>,
}

impl Session {
    pub(super) async fn open(store: &Store, clerk: &Arc<Clerk>, lease: i64) -> Result<Self, StoreError> {
        if lease != 0 {
            return Ok(Self { lease, clerk: None });
        }
        let granted = store.lease_grant(LeaseGrantRequest { ttl: SESSION_TTL, id: 0 }).await?;
        Ok(Self { lease: granted.id, clerk: Some(Arc::clone(clerk)) })
    }

    /// The caller has what it came for: its lease stays.
    pub(super) fn keep(&mut self) {
        self.clerk = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(clerk) = self.clerk.take() else { return };
        let id = self.lease;
        in_background(async move {
            if let Err(error) = clerk.store.lease_revoke(LeaseRevokeRequest { id }).await {
                tracing::debug!(%error, "the lease of a request that failed ends by itself");
            }
        });
    }
}

/// Where nobody waits any more. Nothing is left to do when the runtime is gone too.
fn in_background(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(work);
    }
}

/// Takes back what callers who went away have left. Their token may have ended with them:
/// the store does it for itself.
pub(super) struct Clerk {
    store: Store,
    /// Keys that are being taken back. Who takes the same place again waits for that:
    /// otherwise the late deletion would take the new key.
    keys: Mutex<HashSet<Bytes>>,
    done: Notify,
}

impl Clerk {
    pub(super) fn new(store: &Store) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), keys: Mutex::default(), done: Notify::new() })
    }

    async fn settled(&self, key: &Bytes) {
        loop {
            let done = self.done.notified();
            if !self.lock().contains(key) {
                return;
            }
            done.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Bytes>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue. Dropping it leaves the queue, unless it is kept.
pub(super) struct Place {
    pub(super) key: Bytes,
    /// The revision that created the key.
    pub(super) revision: i64,
    /// Of the transaction that took the place, or saw that it is the first.
    pub(super) header: Option<ResponseHeader>,
    pub(super) lease: i64,
    /// The value that the key already had.
    pub(super) known: Option<Bytes>,
    /// Whether the place is the first one already.
    first: bool,
    session: Session,
    store: Store,
    clerk: Arc<Clerk>,
    /// Whether this request made the key.
    made: bool,
}

impl Place {
    /// Takes the last place of `queue`, or the one that the lease already has. Runs to its
    /// end even if the caller goes away meanwhile, so that no key is left behind.
    pub(super) async fn take(
        store: Store,
        clerk: Arc<Clerk>,
        queue: Queue,
        lease: i64,
        value: Bytes,
    ) -> Result<Self, Status> {
        let taking = tokio::spawn(async move { Self::take_now(store, clerk, queue, lease, value).await });
        match taking.await {
            Ok(taken) => taken.map_err(failure),
            Err(_) => Err(failure(StoreError::Stopped)),
        }
    }

    async fn take_now(
        store: Store,
        clerk: Arc<Clerk>,
        queue: Queue,
        lease: i64,
        value: Bytes,
    ) -> Result<Self, StoreError> {
        let session = Session::open(&store, &clerk, lease).await?;
        let lease = session.lease;
        let key = queue.key(lease);
        clerk.settled(&key).await;
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, &value, lease), range(queue.oldest())],
            failure: vec![range(get(&key)), range(queue.oldest())],
        };
        let response = store.txn(request, None).await?;
        let known = if response.succeeded { None } else { found(&response, 0) };
        let revision = known.map_or_else(|| revision_of(response.header.as_ref()), |kv| kv.create_revision);
        Ok(Self {
            revision,
            first: found(&response, 1).is_none_or(|oldest| oldest.create_revision >= revision),
            known: known.map(|kv| kv.value.clone()),
            made: response.succeeded,
            header: response.header,
            key,
            lease,
            session,
            store,
            clerk,
        })
    }

    /// Returns once every older key of the queue is gone.
    ///
    /// # Errors
    /// `expired` once the caller's own key is gone, which ends with its lease.
    pub(super) async fn wait(&mut self, queue: &Queue, expired: &str) -> Result<(), Status> {
        if self.first {
            return Ok(());
        }
        loop {
            // One reading of both, so that nothing between them is overlooked.
            let request = TxnRequest {
                success: vec![range(get(&self.key)), range(queue.before(self.revision))],
                ..TxnRequest::default()
            };
            let response = self.store.txn(request, None).await.map_err(failure)?;
            if found(&response, 0).is_none_or(|own| own.create_revision != self.revision) {
                return Err(Status::unknown(expired));
            }
            let Some(before) = found(&response, 1) else {
                self.header = response.header;
                break;
            };
            let from = revision_of(response.header.as_ref()) + 1;
            let closing = self.store.closing();
            tokio::select! {
                gone = deleted(&self.store, &before.key, from) => gone.map_err(failure)?,
                gone = deleted(&self.store, &self.key, from) => gone.map_err(failure)?,
                () = closing.cancelled() => return Err(failure(StoreError::Stopped)),
            }
        }
        self.first = true;
        Ok(())
    }

    /// The place is the caller's: it ends with its lease.
    pub(super) fn keep(&mut self) {
        self.made = false;
        self.session.keep();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        let (clerk, key) = (Arc::clone(&self.clerk), self.key.clone());
        // Only the key of this request: another one may have been made since.
        let request = TxnRequest {
            compare: vec![created_at(&key, self.revision)],
            success: vec![delete(&key)],
            failure: Vec::new(),
        };
        clerk.lock().insert(key.clone());
        in_background(async move {
            if let Err(error) = clerk.store.txn(request, None).await {
                tracing::debug!(%error, "a place in a queue ends with its lease");
            }
            clerk.lock().remove(&key);
            clerk.done.notify_waiters();
        });
    }
}

/// Returns once `key` was deleted at `from` or later, or when that has to be looked up
/// because the history is gone.
async fn deleted(store: &Store, key: &Bytes, from: i64) -> Result<(), StoreError> {
    let request = WatchCreateRequest {
        key: key.clone(),
        start_revision: from,
        filters: vec![FilterType::Noput.into()],
        ..Default::default()
    };
    let mut watcher = store.watch(request)?;
    match watcher.next().await {
        Some(_) => Ok(()),
        None => Err(StoreError::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcds_client() {
        let queue = Queue::of(b"name");
        assert_eq!(queue.key(0x1234_abcd), Bytes::from_static(b"name/1234abcd"));
        let all = queue.all();
        assert_eq!((all.key, all.range_end), (Bytes::from_static(b"name/"), Bytes::from_static(b"name0")));
        assert_eq!(Queue::of(b"").key(77), Bytes::from_static(b"/4d"));
        assert_eq!(queue.before(7).max_create_revision, 6);
    }

    #[test]
    fn refusals_have_no_code_and_failures_keep_theirs() {
        let refused = failure(crate::command::ApplyError::LeaseNotFound.into());
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, "etcdserver: requested lease not found"));
        assert_eq!(failure(StoreError::NoLeader).code(), Code::Unavailable);
    }
}
