//! What a learner serves: its state and reads that say they may be old. Everything else
//! is refused as etcd refuses it, so that clients go to a member that votes.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use http::Request;
use tonic::Status;
use tower::{Layer, Service};

use crate::error::{MembersError, StoreError};
use crate::node::Store;

/// `Range` decides by its request.
const SERVED: [&str; 4] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/Status",
    "/grpc.health.v1.Health/",
];

/// Refuses in front of the services.
#[derive(Clone)]
pub(super) struct Guard<S = ()> {
    store: Store,
    inner: S,
}

impl Guard {
    pub(super) fn new(store: &Store) -> Self {
        Self { store: store.clone(), inner: () }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { store: self.store.clone(), inner }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_served(request.uri().path()) && self.store.serves_as_learner() {
            return Either::Right(ready(Ok(refusal().into_http())));
        }
        Either::Left(self.inner.call(request))
    }
}

pub(super) fn refusal() -> Status {
    StoreError::from(MembersError::Learner).into()
}

fn is_served(path: &str) -> bool {
    SERVED.iter().any(|served| path.starts_with(served))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_serves_little() {
        let check = |path, expected| assert_eq!(is_served(path), expected, "{path}");
        check("/etcdserverpb.KV/Range", true);
        check("/etcdserverpb.Maintenance/Status", true);
        check("/grpc.health.v1.Health/Check", true);
        check("/etcdserverpb.KV/Put", false);
        check("/etcdserverpb.Cluster/MemberList", false);
        check("/etcdserverpb.Watch/Watch", false);
    }
}
