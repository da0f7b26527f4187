//! The gRPC health check, of the whole server and of every service: a member serves while
//! it knows a leader.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use quorate_proto::health::health_check_response::ServingStatus;
use quorate_proto::health::health_server::Health as Service;
use quorate_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::gateway::descriptors;
use crate::node::Store;

pub(super) struct Health(pub(super) Store);

fn known(service: &str) -> bool {
    service.is_empty() || descriptors().get_service_by_name(service).is_some()
}

fn health(has_leader: bool) -> HealthCheckResponse {
    let status = if has_leader { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !known(&request.into_inner().service) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(health(self.0.has_leader())))
    }

    /// The health now and after every change. A service that is not known stays so, and
    /// the protocol says not to end the stream for it.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = known(&request.into_inner().service);
        let mut last = None;
        let changes = WatchStream::new(self.0.leaders()).filter_map(move |leader| {
            let now = match known {
                true => health(leader.member.is_some()),
                false => HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() },
            };
            let changed = last.replace(now.status) != Some(now.status);
            std::future::ready(changed.then_some(Ok(now)))
        });
        Ok(Response::new(Box::pin(changes.take_until(self.0.closing().cancelled_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_a_health() {
        for service in ["", "etcdserverpb.KV", "etcdserverpb.Auth", "v3lockpb.Lock", "v3electionpb.Election"] {
            assert!(known(service), "{service}");
        }
        assert!(!known("etcdserverpb.Nothing"));
        assert!(!known("etcdserverpb.RangeRequest"));
    }
}
