//! The service `Maintenance`.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::etcd::alarm_request::AlarmAction;
use quorate_proto::etcd::maintenance_server::Maintenance as Service;
use quorate_proto::etcd::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::{admit, answer, snapshot};
use crate::error::StoreError;
use crate::node::{SERVER_VERSION, Store};

pub(super) struct Maintenance(pub(super) Store);

impl Maintenance {
    /// Hashing reads everything: not on a thread that serves requests.
    async fn hash_at(&self, revision: i64) -> Result<HashKvResponse, Status> {
        self.0.hash_kv_apart(revision).await.map_err(Status::from)
    }
}

#[tonic::async_trait]
impl Service for Maintenance {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let store = admit(&self.0, &request)?;
        match request.get_ref().action() {
            AlarmAction::Get => store.authenticated().await?,
            AlarmAction::Activate | AlarmAction::Deactivate => store.admin().await?,
        }
        answer(store.alarm(request.into_inner()).await)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let status = self.0.status();
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors = match status.leader {
            0 => vec![Status::from(StoreError::NoLeader).message().to_owned()],
            _ => Vec::new(),
        };
        errors.extend(self.0.alarms().iter().map(alarm_text));
        let target = self.0.downgrade_target();
        let downgrade = DowngradeInfo { enabled: target.is_some(), target_version: target.unwrap_or_default() };
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
            db_size_quota: size(self.0.quota_bytes()),
            downgrade_info: Some(downgrade),
        }))
    }

    /// There is nothing to defragment: the files are rewritten as they age.
    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        // No header, as etcd's.
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let HashKvResponse { header, hash, .. } = self.hash_at(0).await?;
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        self.hash_at(request.into_inner().revision).await.map(Response::new)
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let stream = snapshot::stream(&self.0).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let moved = self.0.move_leader(request.into_inner().target_id).await;
        // No header, as etcd's.
        answer(moved.map(|()| MoveLeaderResponse::default()))
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        let store = admit(&self.0, &request)?;
        store.admin().await?;
        answer(store.downgrade(request.into_inner()).await)
    }
}

/// An alarm as etcd prints it among the errors of a member.
fn alarm_text(alarm: &AlarmMember) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::AlarmType;

    use super::*;

    #[test]
    fn alarms_are_printed_as_etcd_prints_them() {
        let alarm = AlarmMember { member_id: 13803658152347727308, alarm: AlarmType::Nospace.into() };
        assert_eq!(alarm_text(&alarm), "memberID:13803658152347727308 alarm:NOSPACE ");
    }
}
