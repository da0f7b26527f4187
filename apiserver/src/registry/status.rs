//! Answers of the registry in upstream's words.

use quorate_proto::status::{Status, StatusCause};

use crate::schema::ResourceDef;
use crate::storage::StorageError;

/// What a client is told about a storage failure that has no meaning of its own.
pub(crate) fn of_storage(error: &StorageError) -> Status {
    match error {
        StorageError::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        StorageError::FutureRevision => Status::failure(504, "Timeout", "Too large resource version"),
        StorageError::Fenced => Status::failure(403, "Forbidden", "quorate: fence is no longer current"),
        StorageError::NotSupported(_) => Status::failure(501, "NotImplemented", error.to_string()),
        StorageError::TooLarge => Status::failure(413, "RequestEntityTooLarge", "etcdserver: request is too large"),
        StorageError::Unavailable(_) => Status::service_unavailable(error.to_string(), 1),
        StorageError::Conflict { .. } | StorageError::Failed(_) => Status::internal(error),
    }
}

pub(crate) fn not_found(def: &ResourceDef, name: &str) -> Status {
    Status::not_found(def.group, def.resource, name)
}

pub(crate) fn not_supported(def: &ResourceDef, what: &str) -> Status {
    Status::failure(
        405,
        "MethodNotAllowed",
        format!("{what} is not supported on resources of kind {:?}", def.group_resource()),
    )
}

/// Upstream's 422 for options of a list or watch.
pub(crate) fn invalid_list_options(field: &str, reason: &str, message: String) -> Status {
    let cause = StatusCause { reason: reason.to_owned(), message, field: field.to_owned() };
    Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause])
}
