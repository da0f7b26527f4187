//! The service `Cluster`.

use quorate_proto::etcd::cluster_server::Cluster as Service;
use quorate_proto::etcd::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    ResponseHeader,
};
use tonic::{Request, Response, Status};

use super::admit;
use crate::node::Store;

pub(super) struct Cluster(pub(super) Store);

impl Cluster {
    /// Of no revision, as etcd's: members are no part of the keys.
    fn header(&self) -> ResponseHeader {
        self.0.header(0)
    }
}

#[tonic::async_trait]
impl Service for Cluster {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let request = request.into_inner();
        let (member, members) = self.0.member_add(&request.peer_ur_ls, request.is_learner).await?;
        Ok(Response::new(MemberAddResponse { header: Some(self.header()), member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let members = self.0.member_remove(request.into_inner().id).await?;
        Ok(Response::new(MemberRemoveResponse { header: Some(self.header()), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let request = request.into_inner();
        let members = self.0.member_update(request.id, &request.peer_ur_ls).await?;
        Ok(Response::new(MemberUpdateResponse { header: Some(self.header()), members }))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let store = admit(&self.0, &request)?;
        store.authenticated().await?;
        if request.into_inner().linearizable {
            store.read_index().await?;
        }
        Ok(Response::new(MemberListResponse { header: Some(self.header()), members: self.0.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        admit(&self.0, &request)?.admin().await?;
        let members = self.0.member_promote(request.into_inner().id).await?;
        Ok(Response::new(MemberPromoteResponse { header: Some(self.header()), members }))
    }
}
