//! The service `Election`: leaders elected by the order in which they asked.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use quorate_proto::etcd::v3electionpb::election_server::Election as Service;
use quorate_proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::{ResponseHeader, TxnRequest, WatchCreateRequest};
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use tonic::{Request, Response, Status};

use super::admit;
use super::queue::{Clerk, Place, Queue, Session, created_at, delete, failure, put, revision_of};
use crate::error::StoreError;
use crate::node::Store;
use crate::watch::Watcher;

const EXPIRED: &str = "election: session is expired";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";

pub(super) struct Election {
    store: Store,
    clerk: Arc<Clerk>,
}

impl Election {
    pub(super) fn new(store: &Store) -> Self {
        Self { store: store.clone(), clerk: Clerk::new(store) }
    }
}

#[tonic::async_trait]
impl Service for Election {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    /// Answers once the caller leads, or once its lease has ended. A caller that goes away
    /// leaves no key behind.
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let queue = Queue::of(&name);
        let clerk = Arc::clone(&self.clerk);
        let mut place = Place::take(store.clone(), clerk, queue.clone(), lease, value.clone()).await?;
        if place.known.as_ref().is_some_and(|known| *known != value) {
            proclaim(&store, &place.key, place.revision, place.lease, &value).await?;
        }
        // As etcd, which answers with the revision of the candidacy.
        let header = place.header;
        place.wait(&queue, EXPIRED).await?;
        place.keep();
        let leader = LeaderKey { name, key: place.key.clone(), rev: place.revision, lease: place.lease };
        Ok(Response::new(CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let mut session = Session::open(&store, &self.clerk, leader.lease).await.map_err(failure)?;
        let header = proclaim(&store, &leader.key, leader.rev, session.lease, &value).await?;
        session.keep();
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let queue = Queue::of(&request.into_inner().name);
        let mut response = store.range(queue.oldest()).await.map_err(failure)?;
        let kv = response.kvs.pop().ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse { header: response.header, kv: Some(kv) }))
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let store = admit(&self.store, &request)?;
        let closing = store.closing().cancelled_owned();
        let queue = Queue::of(&request.into_inner().name);
        let observer = Observer { store, queue, watcher: None, next: VecDeque::new() };
        let leaders = stream::try_unfold(observer, |mut observer| async move {
            let next = observer.next().await.map_err(failure)?;
            Ok(Some((next, observer)))
        });
        let stopped = stream::once(async { Err(failure(StoreError::Stopped)) });
        Ok(Response::new(Box::pin(leaders.take_until(closing).chain(stopped))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let request = TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![delete(&leader.key)],
            failure: Vec::new(),
        };
        let response = store.txn(request, None).await.map_err(failure)?;
        Ok(Response::new(ResignResponse { header: response.header }))
    }
}

/// Changes the value of a key that is still the one that `revision` created.
async fn proclaim(
    store: &Store,
    key: &Bytes,
    revision: i64,
    lease: i64,
    value: &Bytes,
) -> Result<Option<ResponseHeader>, Status> {
    let request = TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![put(key, value, lease)],
        failure: Vec::new(),
    };
    let response = store.txn(request, None).await.map_err(failure)?;
    if response.succeeded { Ok(response.header) } else { Err(Status::unknown(NOT_LEADER)) }
}

/// Follows who leads, and what the leader proclaims.
struct Observer {
    store: Store,
    queue: Queue,
    /// Of the leader's key.
    watcher: Option<Watcher>,
    /// Seen and not handed out.
    next: VecDeque<LeaderResponse>,
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, StoreError> {
        loop {
            if let Some(next) = self.next.pop_front() {
                return Ok(next);
            }
            let Some(watcher) = &mut self.watcher else {
                self.find().await?;
                continue;
            };
            let response = watcher.next().await.ok_or(StoreError::Stopped)?;
            let mut gone = response.canceled;
            for event in response.events {
                match put_event(event) {
                    Some(kv) => self.next.push_back(self.answer(kv.mod_revision, kv)),
                    None => {
                        gone = true;
                        break;
                    }
                }
            }
            if gone {
                self.watcher = None;
            }
        }
    }

    /// The leader there is, or the first one there will be.
    async fn find(&mut self) -> Result<(), StoreError> {
        let mut response = self.store.range(self.queue.oldest()).await?;
        let now = revision_of(response.header.as_ref());
        let (revision, kv) = match response.kvs.pop() {
            Some(kv) => (now, kv),
            None => {
                let all = self.queue.all();
                let mut watcher = self.store.watch(WatchCreateRequest {
                    key: all.key,
                    range_end: all.range_end,
                    start_revision: now + 1,
                    filters: vec![FilterType::Nodelete.into()],
                    ..Default::default()
                })?;
                let response = watcher.next().await.ok_or(StoreError::Stopped)?;
                // Compacted in between: looked for again.
                let Some(kv) = response.events.into_iter().find_map(put_event) else { return Ok(()) };
                (kv.mod_revision, kv)
            }
        };
        let request = WatchCreateRequest { key: kv.key.clone(), start_revision: revision + 1, ..Default::default() };
        self.watcher = Some(self.store.watch(request)?);
        self.next.push_back(self.answer(revision, kv));
        Ok(())
    }

    fn answer(&self, revision: i64, kv: KeyValue) -> LeaderResponse {
        LeaderResponse { header: Some(self.store.header(revision)), kv: Some(kv) }
    }
}

fn put_event(event: Event) -> Option<KeyValue> {
    if event.r#type() == EventType::Put { event.kv } else { None }
}
