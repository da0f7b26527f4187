//! Strategic merge patch: a merge patch that knows the keys of lists.

use quorate_proto::status::Status;
use serde_json::Value;

use crate::schema::ResourceDef;

/// `original` with `patch` merged in by the strategies and keys of `def`'s kind.
///
/// # Errors
/// 400 when the patch is malformed, 415 for kinds without a built-in schema.
pub fn strategic(original: &Value, patch: &Value, def: &ResourceDef) -> Result<Value, Status> {
    strategic_kind(original, patch, def.group, def.version, def.kind)
}

/// As [`strategic`], for a kind that is not a resource of its own, such as `Scale`.
///
/// # Errors
/// As [`strategic`].
pub fn strategic_kind(_original: &Value, _patch: &Value, _group: &str, _version: &str, _kind: &str) -> Result<Value, Status> {
    Err(Status::failure(415, "UnsupportedMediaType", "strategic merge patch is not supported for this kind"))
}
