//! The service `Maintenance`.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::etcd::alarm_request::AlarmAction;
use quorate_proto::etcd::maintenance_server::Maintenance as Service;
use quorate_proto::etcd::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest, DowngradeResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest,
    SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::{answer, unsupported};
use crate::error::StoreError;
use crate::node::{SERVER_VERSION, Store};

pub(super) struct Maintenance(pub(super) Store);

impl Maintenance {
    /// Hashing reads everything: not on a thread that serves requests.
    async fn hash_at(&self, revision: i64) -> Result<HashKvResponse, Status> {
        let store = self.0.clone();
        let hash = tokio::task::spawn_blocking(move || store.hash_kv(revision));
        let hash = hash.await.map_err(|error| Status::internal(format!("quorate: {error}")))?;
        hash.map_err(Status::from)
    }
}

#[tonic::async_trait]
impl Service for Maintenance {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    /// Alarms clear themselves here: there is none to list and none to disarm.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        match request.into_inner().action() {
            AlarmAction::Get | AlarmAction::Deactivate => {
                let header = self.0.header(self.0.revision());
                Ok(Response::new(AlarmResponse { header: Some(header), alarms: Vec::new() }))
            }
            AlarmAction::Activate => Err(unsupported("raising an alarm")),
        }
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.status();
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let errors = match status.leader {
            0 => vec![Status::from(StoreError::NoLeader).message().to_owned()],
            _ => Vec::new(),
        };
        Ok(Response::new(StatusResponse {
            header: Some(self.0.header(status.revision)),
            version: SERVER_VERSION.to_owned(),
            db_size: size(status.size_bytes),
            db_size_in_use: size(status.size_in_use_bytes),
            leader: status.leader,
            raft_index: status.committed_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            is_learner: status.is_learner,
            storage_version: SERVER_VERSION.to_owned(),
            db_size_quota: 0,
            downgrade_info: None,
        }))
    }

    /// There is nothing to defragment: the files are rewritten as they age.
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse { header: Some(self.0.header(self.0.revision())) }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let HashKvResponse { header, hash, .. } = self.hash_at(0).await?;
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.hash_at(request.into_inner().revision).await.map(Response::new)
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unsupported("saving a snapshot"))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let moved = self.0.move_leader(request.into_inner().target_id).await;
        answer(moved.map(|()| MoveLeaderResponse { header: Some(self.0.header(self.0.revision())) }))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(unsupported("downgrading"))
    }
}
