//! What a caller is permitted: the same questions at the port and at apply.

use bytes::Bytes;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

use super::{Actor, ROOT, State};
use crate::command::{ApplyError, Operation};
use crate::mvcc::{EngineError, ReadError};

/// One caller before one state of users and roles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit<'a> {
    state: &'a State,
    actor: &'a Actor,
}

/// Looks up the keys of a lease.
pub(crate) trait LeaseKeys {
    fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, EngineError>;
}

/// The end of a range of one key.
static ONE: Bytes = Bytes::new();

impl<'a> Permit<'a> {
    pub(crate) fn new(state: &'a State, actor: &'a Actor) -> Permit<'a> {
        Permit { state, actor }
    }

    /// Anybody who has said who it is, by users and roles that have not changed since.
    pub(crate) fn authenticated(&self) -> Result<(), ApplyError> {
        if !self.state.enabled() {
            return Ok(());
        }
        if self.actor.user.is_empty() || self.actor.revision == 0 {
            return Err(ApplyError::UserEmpty);
        }
        if self.actor.revision < self.state.revision() {
            return Err(ApplyError::AuthOldRevision);
        }
        match self.state.user(&self.actor.user) {
            Some(_) => Ok(()),
            None => Err(ApplyError::PermissionDenied),
        }
    }

    /// A user with the root role. As in etcd, the revision does not count here.
    pub(crate) fn admin(&self) -> Result<(), ApplyError> {
        if !self.state.enabled() {
            return Ok(());
        }
        if self.actor.user.is_empty() {
            return Err(ApplyError::UserEmpty);
        }
        match self.is_root() {
            true => Ok(()),
            false => Err(ApplyError::PermissionDenied),
        }
    }

    fn is_root(&self) -> bool {
        self.state.has_role(&self.actor.user, ROOT)
    }

    /// Reads a user: itself, or as an admin.
    pub(crate) fn read_user(&self, name: &str) -> Result<(), ApplyError> {
        self.admin().or_else(|error| if self.actor.user == name { self.authenticated() } else { Err(error) })
    }

    /// Reads a role: one that it has, or as an admin.
    pub(crate) fn read_role(&self, role: &str) -> Result<(), ApplyError> {
        let held = self.state.has_role(&self.actor.user, role);
        self.admin().or_else(|error| if held { self.authenticated() } else { Err(error) })
    }

    pub(crate) fn read(&self, key: &Bytes, range_end: &Bytes) -> Result<(), ApplyError> {
        self.decide(|| self.state.may_read(&self.actor.user, key, range_end))
    }

    pub(crate) fn write(&self, key: &Bytes, range_end: &Bytes) -> Result<(), ApplyError> {
        self.decide(|| self.state.may_write(&self.actor.user, key, range_end))
    }

    fn decide(&self, permitted: impl FnOnce() -> bool) -> Result<(), ApplyError> {
        self.authenticated()?;
        if !self.state.enabled() || self.is_root() || permitted() {
            return Ok(());
        }
        Err(ApplyError::PermissionDenied)
    }

    /// Reads every one of `keys`.
    pub(crate) fn read_all(&self, keys: &[Bytes]) -> Result<(), ApplyError> {
        self.authenticated()?;
        keys.iter().try_for_each(|key| self.read(key, &ONE))
    }

    /// Ends or prolongs a lease: with it go, or stay, all of its keys.
    pub(crate) fn lease(&self, lease: i64, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        self.authenticated()?;
        if !self.state.enabled() || self.is_root() {
            return Ok(());
        }
        for key in leases.lease_keys(lease)? {
            self.write(&key, &ONE)?;
        }
        Ok(())
    }

    /// Everything that an operation would read and write, whatever its compares say.
    pub(crate) fn operation(&self, operation: &Operation, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        if !self.state.enabled() {
            return Ok(());
        }
        match operation {
            Operation::Put(request) => self.put(request, leases)?,
            Operation::DeleteRange(request) => self.delete(request)?,
            Operation::Txn(request) => self.txn(request, leases)?,
            // kube-apiserver compacts, and need not be root.
            Operation::Compact(_) | Operation::LeaseGrant { .. } => self.authenticated()?,
            Operation::LeaseRevoke { id } => self.lease(*id, leases)?,
            // Users and roles, members, alarms, and whatever will come: for admins.
            _ => self.admin()?,
        }
        Ok(())
    }

    fn put(&self, request: &PutRequest, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        self.write(&request.key, &ONE)?;
        if request.prev_kv {
            self.read(&request.key, &ONE)?;
        }
        if request.lease != 0 {
            // Who could not end the lease must not add to it.
            self.lease(request.lease, leases)?;
        }
        Ok(())
    }

    fn delete(&self, request: &DeleteRangeRequest) -> Result<(), ApplyError> {
        self.write(&request.key, &request.range_end)?;
        if request.prev_kv {
            self.read(&request.key, &request.range_end)?;
        }
        Ok(())
    }

    /// Both branches, however deep: which one runs tells about keys too.
    pub(crate) fn txn(&self, request: &TxnRequest, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        self.authenticated()?;
        for compare in &request.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        request.success.iter().chain(&request.failure).try_for_each(|operation| self.branch(operation, leases))
    }

    fn branch(&self, operation: &RequestOp, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        match &operation.request {
            Some(Request::RequestRange(request)) => Ok(self.read(&request.key, &request.range_end)?),
            Some(Request::RequestPut(request)) => self.put(request, leases),
            Some(Request::RequestDeleteRange(request)) => Ok(self.delete(request)?),
            Some(Request::RequestTxn(nested)) => self.txn(nested, leases),
            None => Ok(()),
        }
    }
}
