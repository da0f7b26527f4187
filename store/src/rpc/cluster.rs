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
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        Err(unsupported("adding a member"))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        Err(unsupported("removing a member"))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        Err(unsupported("changing a member's addresses"))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let store = admit(&self.0, &request)?;
        store.authenticated().await?;
        let revision = match request.into_inner().linearizable {
            true => store.read_index().await?,
            false => store.revision(),
        };
        Ok(Response::new(MemberListResponse { header: Some(self.0.header(revision)), members: self.0.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        Err(unsupported("promoting a learner"))
    }
}
