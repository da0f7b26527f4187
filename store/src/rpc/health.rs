//! The gRPC health check: a member serves while it knows a leader.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use quorate_proto::health::health_check_response::ServingStatus;
use quorate_proto::health::health_server::Health as Service;
use quorate_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::node::Store;

pub(super) struct Health(pub(super) Store);

fn known(service: &str) -> Result<(), Status> {
    match service {
        "" | "etcdserverpb.KV" | "etcdserverpb.Watch" | "etcdserverpb.Lease" => Ok(()),
        _ => Err(Status::not_found("unknown service")),
    }
}

fn health(has_leader: bool) -> HealthCheckResponse {
    let status = if has_leader { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        known(&request.into_inner().service)?;
        Ok(Response::new(health(self.0.has_leader())))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        known(&request.into_inner().service)?;
        let mut last = None;
        let changes = WatchStream::new(self.0.leaders()).filter_map(move |leader| {
            let now = leader.member.is_some();
            let changed = last.replace(now) != Some(now);
            std::future::ready(changed.then(|| Ok(health(now))))
        });
        Ok(Response::new(Box::pin(changes.take_until(self.0.closing().cancelled_owned()))))
    }
}
