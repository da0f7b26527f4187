//! What happens to an object between "allowed" and "stored".

pub mod chain;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod role_escalation;
mod service_account;
mod taint_nodes;
mod tolerations;

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::Value;

use crate::authn::User;

/// What is being done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write, as plugins see it beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub operation: Operation,
    pub group: &'a str,
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub kind: &'a str,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// Empty when a create leaves the name to the server.
    pub name: &'a str,
    pub dry_run: bool,
}

/// One plugin, or a chain of them. The default implementations let everything pass.
///
/// The registry calls `mutate` after defaulting and before validation, and
/// `validate` last, under the optimistic lock: both may run more than once for a write.
pub trait Admission: Send + Sync + 'static {
    /// May change the new object; not called for deletions. `old` is what is stored now.
    ///
    /// # Errors
    /// The refusal, as the client sees it.
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let _ = (attributes, object, old);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Judges the final object; `object` is `None` for deletions.
    ///
    /// # Errors
    /// The refusal, as the client sees it.
    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let _ = (attributes, object, old);
        Box::pin(std::future::ready(Ok(())))
    }
}
