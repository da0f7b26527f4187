//! The client port: etcd v3, the gRPC health check, and what monitoring asks over HTTP.
//!
//! What is not offered yet says so; nothing pretends.

mod auth;
mod caller;
mod cluster;
mod election;
mod gateway;
mod health;
mod http;
mod kv;
mod learner;
mod lease;
mod lock;
mod maintenance;
mod observe;
mod queue;
mod snapshot;
mod space;
mod status;
mod unary;
mod watch;
mod watch_codec;
mod watch_pieces;

use axum::Router;
use quorate_proto::etcd::auth_server::AuthServer;
use quorate_proto::etcd::cluster_server::ClusterServer;
use quorate_proto::etcd::kv_server::KvServer;
use quorate_proto::etcd::lease_server::LeaseServer;
use quorate_proto::etcd::maintenance_server::MaintenanceServer;
use quorate_proto::etcd::v3electionpb::election_server::ElectionServer;
use quorate_proto::etcd::v3lockpb::lock_server::LockServer;
use quorate_proto::health::health_server::HealthServer;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};

pub(crate) use self::caller::CommonName;
use self::caller::{admit, admit_http};
pub(crate) use self::observe::Observe;
pub(crate) use self::unary::Front;
use crate::error::StoreError;
use crate::node::Store;

/// What a message may have beside the request in it: etcd's.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// The client port.
pub(crate) fn front(store: &Store) -> Front {
    let observe = Observe::new();
    Front::new(kv::Kv(store.clone()), observe.clone(), max_receive_bytes(store), router(store, observe))
}

fn max_receive_bytes(store: &Store) -> usize {
    store.max_request_bytes() + MESSAGE_OVERHEAD_BYTES
}

/// Everything the client port answers, the long way.
pub(crate) fn router(store: &Store, observe: Observe) -> Router {
    let max_receive_bytes = max_receive_bytes(store);
    let mut routes = tonic::service::Routes::builder();
    routes
        .add_service(
            KvServer::new(kv::Kv(store.clone()))
                .max_decoding_message_size(max_receive_bytes)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(watch_codec::WatchService { store: store.clone(), max_receive_bytes })
        .add_service(
            LeaseServer::new(lease::Lease(store.clone()))
                .max_decoding_message_size(max_receive_bytes)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(ClusterServer::new(cluster::Cluster(store.clone())))
        .add_service(MaintenanceServer::new(maintenance::Maintenance(store.clone())))
        .add_service(AuthServer::new(auth::Auth(store.clone())).max_decoding_message_size(max_receive_bytes))
        .add_service(LockServer::new(lock::Lock::new(store)).max_decoding_message_size(max_receive_bytes))
        .add_service(ElectionServer::new(election::Election::new(store)).max_decoding_message_size(max_receive_bytes))
        .add_service(HealthServer::new(health::Health(store.clone())));
    let services = routes.routes().into_axum_router().layer(learner::Guard::new(store)).layer(observe);
    http::router(store)
        .merge(gateway::router(services.clone(), max_receive_bytes))
        .merge(services)
        .fallback(http::unknown)
}

/// What a port for monitoring answers.
pub(crate) fn monitoring(store: &Store) -> Router {
    http::router(store).fallback(http::unknown)
}

/// `hasleader: true` asks to be refused rather than served by a member that knows no leader.
fn wants_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value == "true")
}

/// Election timeouts without a leader after which a stream that wants one ends.
const LEADERLESS_TIMEOUTS: u32 = 3;

/// Returns once there has been no leader for too long; never if nobody minds.
async fn leaderless(store: Store, minded: bool) {
    if !minded {
        return std::future::pending().await;
    }
    let patience = store.election_timeout() * LEADERLESS_TIMEOUTS;
    let mut leaders = store.leaders();
    loop {
        if leaders.wait_for(|leader| leader.member.is_none()).await.is_err() {
            return;
        }
        let found = leaders.wait_for(|leader| leader.member.is_some());
        if !matches!(tokio::time::timeout(patience, found).await, Ok(Ok(_))) {
            return;
        }
    }
}

fn answer<T>(result: Result<T, StoreError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}

/// What a client hears of a request that is not offered.
fn unsupported(what: &'static str) -> Status {
    StoreError::Unsupported(what).into()
}
