//! Reading objects as typed views, and writing them back without losing a field.

use std::sync::Arc;

use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{Client, Result, WriteOptions};
use quorate_runtime::owner::namespace;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The object as `K`.
///
/// # Errors
/// When it does not fit: then the server's schema and ours disagree.
pub(crate) fn typed<K: DeserializeOwned + Send + Sync + 'static>(object: &Object) -> Result<Arc<K>> {
    object.typed().map_err(|error| Status::internal(format!("{object:?} does not fit its type: {error}")))
}

/// Replaces the status subresource, unless it says that already. A status is written on
/// top of the version that it was computed from: another's change in between is a conflict.
pub(crate) async fn update_status(
    client: &dyn Client,
    resource: &GroupVersionResource,
    object: &Object,
    status: &impl Serialize,
) -> Result<()> {
    let status = serde_json::to_value(status).map_err(Status::internal)?;
    if object.value().get("status").unwrap_or(&Value::Null) == &status {
        return Ok(());
    }
    let mut value = Value::clone(object.value());
    value["status"] = status;
    let meta = object.meta();
    client.update(resource, namespace(meta), &meta.name, Some("status"), value, WriteOptions::default()).await?;
    Ok(())
}

/// A deletion, a creation or an update that is already so is no trouble.
pub(crate) fn unless_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Whether the server refused because the namespace is being deleted.
pub(crate) fn is_namespace_terminating(error: &Status) -> bool {
    error.code == 403
        && error
            .details
            .as_ref()
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// What every namespace gets is made already, or its namespace is going: both are fine.
pub(crate) fn unless_refused_by_namespace(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_already_exists() || error.is_not_found() || is_namespace_terminating(&error) => Ok(()),
        other => other,
    }
}
