//! The service `Auth`: users, roles and tokens.

use quorate_proto::etcd::auth_server::Auth as Service;
use quorate_proto::etcd::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse,
    AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
    AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};
use tonic::{Request, Response, Status};

use super::admit;
use crate::auth::AuthChange;
use crate::node::Store;

pub(super) struct Auth(pub(super) Store);

impl Auth {
    /// Makes a change on behalf of who sent `request`.
    async fn change<T>(
        &self,
        request: Request<T>,
        change: impl FnOnce(T) -> AuthChange,
    ) -> Result<Option<ResponseHeader>, Status> {
        let store = admit(&self.0, &request)?;
        let revision = store.change_auth(change(request.into_inner())).await?;
        Ok(Some(store.header(revision)))
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(self.0.header(self.0.revision()))
    }
}

#[tonic::async_trait]
impl Service for Auth {
    async fn auth_enable(&self, request: Request<AuthEnableRequest>) -> Result<Response<AuthEnableResponse>, Status> {
        let revision = admit(&self.0, &request)?.auth_enable().await?;
        Ok(Response::new(AuthEnableResponse { header: Some(self.0.header(revision)) }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.change(request, |_| AuthChange::Disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let (enabled, auth_revision) = admit(&self.0, &request)?.auth_status().await?;
        Ok(Response::new(AuthStatusResponse { header: self.header(), enabled, auth_revision }))
    }

    /// What a caller has shown before does not count here: a token may have ended.
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let store = admit(&self.0, &request)?;
        let AuthenticateRequest { name, password } = request.into_inner();
        let token = store.authenticate(&name, &password).await?;
        Ok(Response::new(AuthenticateResponse { header: self.header(), token }))
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Result<Response<AuthUserAddResponse>, Status> {
        let store = admit(&self.0, &request)?;
        let AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        let without = options.is_some_and(|options| options.no_password);
        let revision = store.user_add(name, (!without).then_some(password)).await?;
        Ok(Response::new(AuthUserAddResponse { header: Some(self.0.header(revision)) }))
    }

    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<Response<AuthUserGetResponse>, Status> {
        let roles = admit(&self.0, &request)?.user_get(&request.get_ref().name).await?;
        Ok(Response::new(AuthUserGetResponse { header: self.header(), roles }))
    }

    async fn user_list(&self, request: Request<AuthUserListRequest>) -> Result<Response<AuthUserListResponse>, Status> {
        let users = admit(&self.0, &request)?.user_list().await?;
        Ok(Response::new(AuthUserListResponse { header: self.header(), users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let header = self.change(request, |request| AuthChange::UserDelete { name: request.name }).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let store = admit(&self.0, &request)?;
        let AuthUserChangePasswordRequest { name, password, .. } = request.into_inner();
        let revision = store.user_change_password(name, password).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header: Some(self.0.header(revision)) }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let change = |AuthUserGrantRoleRequest { user, role }| AuthChange::UserGrantRole { user, role };
        Ok(Response::new(AuthUserGrantRoleResponse { header: self.change(request, change).await? }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let change = |AuthUserRevokeRoleRequest { name, role }| AuthChange::UserRevokeRole { user: name, role };
        Ok(Response::new(AuthUserRevokeRoleResponse { header: self.change(request, change).await? }))
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Result<Response<AuthRoleAddResponse>, Status> {
        let header = self.change(request, |request| AuthChange::RoleAdd { name: request.name }).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<Response<AuthRoleGetResponse>, Status> {
        let perm = admit(&self.0, &request)?.role_get(&request.get_ref().role).await?;
        Ok(Response::new(AuthRoleGetResponse { header: self.header(), perm }))
    }

    async fn role_list(&self, request: Request<AuthRoleListRequest>) -> Result<Response<AuthRoleListResponse>, Status> {
        let roles = admit(&self.0, &request)?.role_list().await?;
        Ok(Response::new(AuthRoleListResponse { header: self.header(), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let header = self.change(request, |request| AuthChange::RoleDelete { name: request.role }).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let change = |AuthRoleGrantPermissionRequest { name, perm }| AuthChange::RoleGrantPermission {
            role: name,
            permission: perm,
        };
        Ok(Response::new(AuthRoleGrantPermissionResponse { header: self.change(request, change).await? }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let change = |AuthRoleRevokePermissionRequest { role, key, range_end }| AuthChange::RoleRevokePermission {
            role,
            key,
            range_end,
        };
        Ok(Response::new(AuthRoleRevokePermissionResponse { header: self.change(request, change).await? }))
    }
}
