//! The service `Lease`.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use quorate_proto::etcd::lease_server::Lease as Service;
use quorate_proto::etcd::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::{admit, answer};
use crate::node::Store;

pub(super) struct Lease(pub(super) Store);

#[tonic::async_trait]
impl Service for Lease {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.lease_grant(request.into_inner()).await)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.lease_revoke(request.into_inner()).await)
    }

    /// Answers in the order of the requests. An error ends the stream, and the client
    /// opens another; an unknown lease is not one.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let store = admit(&self.0, &request)?;
        let closing = store.closing().cancelled_owned();
        let answers = request.into_inner().take_until(closing).then(move |request| {
            let store = store.clone();
            async move { store.lease_keep_alive(request?.id).await.map_err(Status::from) }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.lease_time_to_live(request.into_inner()).await)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.leases().await)
    }
}
