//! JSON patch, RFC 6902.

use quorate_proto::status::Status;
use serde_json::Value;

/// Most operations one patch may have; upstream's limit.
const MAX_OPERATIONS: usize = 10_000;

/// `original` with the operations of `patch` applied in order, or none of them.
///
/// # Errors
/// 400 when the patch is malformed, 413 when it has too many operations,
/// 422 when an operation does not apply.
pub fn json(original: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Array(operations) = patch else {
        return Err(Status::bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch",
        ));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::failure(
            413,
            "RequestEntityTooLarge",
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len()),
        ));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &operations)
        .map_err(|error| Status::failure(422, "Invalid", format!("the server rejected our request due to an error in our request: {error}")))?;
    Ok(patched)
}
