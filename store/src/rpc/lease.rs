//! The service `Lease`.

use std::future::ready;
use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use quorate_proto::etcd::lease_server::Lease as Service;
use quorate_proto::etcd::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::{admit, answer, leaderless, wants_leader};
use crate::error::StoreError;
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
        let leaderless = Box::pin(leaderless(store.clone(), wants_leader(request.metadata())));
        // In place of the next request: the error that ends the stream.
        let no_leader = stream::once(leaderless).map(|()| Err(Status::from(StoreError::NoLeader)));
        let requests = request.into_inner().map(Some).chain(stream::once(ready(None)));
        let requests = stream::select(requests, no_leader.map(Some));
        // The client's end is the end, though a leader may be lost later.
        let requests = requests.take_while(|request| ready(request.is_some())).filter_map(ready);
        let answers = requests.take_until(closing).then(move |request| {
            let store = store.clone();
            async move { store.lease_keep_alive(request?.id).await.map_err(Status::from) }
        });
        // What does not decode would be an error again and again.
        let mut failed = false;
        let answers = answers.take_while(move |answer| {
            let goes_on = !failed;
            failed = answer.is_err();
            ready(goes_on)
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
