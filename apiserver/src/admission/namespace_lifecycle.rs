//! The namespaces that every cluster needs are not deleted. That nothing is created in one
//! that is missing or ending is checked by the registry, before anything else.

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::Value;

use super::{Admission, Attributes, Operation};

/// These outlive everything in them.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin `NamespaceLifecycle`.
pub(super) struct NamespaceLifecycle;

impl Admission for NamespaceLifecycle {
    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        _object: Option<&'a Value>,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let is_namespace = attributes.group.is_empty() && attributes.resource == "namespaces";
        let is_kept = is_namespace && attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name);
        let refused = || Status::forbidden("", "namespaces", attributes.name, "this namespace may not be deleted");
        Box::pin(std::future::ready(if is_kept { Err(refused()) } else { Ok(()) }))
    }
}
