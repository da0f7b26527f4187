//! The service `Lock`: locks that the server waits for on behalf of its clients.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcd::DeleteRangeRequest;
use quorate_proto::etcd::v3lockpb::lock_server::Lock as Service;
use quorate_proto::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::admit;
use super::queue::{Clerk, Place, Queue, failure};
use crate::node::Store;

const EXPIRED: &str = "mutex: session is expired";

pub(super) struct Lock {
    store: Store,
    clerk: Arc<Clerk>,
}

impl Lock {
    pub(super) fn new(store: &Store) -> Self {
        Self { store: store.clone(), clerk: Clerk::new(store) }
    }
}

#[tonic::async_trait]
impl Service for Lock {
    /// Answers once the lock is held, or once its lease has ended. A caller that goes away
    /// leaves no key behind.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let LockRequest { name, lease } = request.into_inner();
        let queue = Queue::of(&name);
        let clerk = Arc::clone(&self.clerk);
        let mut place = Place::take(store, clerk, queue.clone(), lease, Bytes::new()).await?;
        place.wait(&queue, EXPIRED).await?;
        place.keep();
        Ok(Response::new(LockResponse { header: place.header, key: place.key.clone() }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let store = admit(&self.store, &request)?;
        let UnlockRequest { key } = request.into_inner();
        let request = DeleteRangeRequest { key, ..Default::default() };
        let response = store.delete_range(request).await.map_err(failure)?;
        Ok(Response::new(UnlockResponse { header: response.header }))
    }
}
