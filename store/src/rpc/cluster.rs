//! The service `Cluster`.

use quorate_proto::etcd::cluster_server::Cluster as Service;
use quorate_proto::etcd::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{admit, unsupported};
use crate::node::Store;

pub(super) struct Cluster(pub(super) Store);

#[tonic::async_trait]
impl Service for Cluster {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(unsupported("adding a member"))
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unsupported("removing a member"))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unsupported("changing a member's addresses"))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        admit(&self.0, request.metadata())?;
        let revision = match request.into_inner().linearizable {
            true => self.0.read_index().await?,
            false => self.0.revision(),
        };
        Ok(Response::new(MemberListResponse { header: Some(self.0.header(revision)), members: self.0.members() }))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unsupported("promoting a learner"))
    }
}
