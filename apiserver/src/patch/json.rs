//! JSON patch, RFC 6902.

use json_patch::PatchOperation;
use quorate_proto::status::{Status, StatusCause, StatusDetails};
use serde_json::Value;

/// Most operations one patch may have; upstream's limit.
const MAX_OPERATIONS: usize = 10_000;

/// Most bytes that the operations of one patch may copy; upstream's limit. Without it
/// a few copies of a document into itself fill memory.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// How deeply operations may nest a document, as parsers bound what they read: whatever
/// walks a value by recursion would run out of stack.
const MAX_DEPTH: usize = 128;

/// `original` with the operations of `patch` applied in order, or none of them.
///
/// # Errors
/// 400 when the patch is malformed, 413 when it has too many operations or copies
/// too much, 422 when an operation does not apply.
pub fn json(original: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Array(operations) = patch else {
        return Err(Status::bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch"));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| Status::bad_request(error.to_string()))?;
    let mut patched = original.clone();
    let mut copied = 0;
    for (index, operation) in operations.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            let size = patched.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            copied += size;
            if copied > MAX_COPIED_BYTES {
                return Err(too_large(format!("the copies of a JSON patch are limited to {MAX_COPIED_BYTES} bytes")));
            }
        }
        if deepest(operation, &patched) > MAX_DEPTH {
            return Err(too_large(format!("patch[{index}] would nest deeper than {MAX_DEPTH} levels")));
        }
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| rejected(index, &format!("{}: {}", error.path, error.kind)))?;
    }
    Ok(patched)
}

/// How deep the value lies that `operation` puts into `document`.
fn deepest(operation: &PatchOperation, document: &Value) -> usize {
    let put = match operation {
        PatchOperation::Add(add) => Some((&add.path, Some(&add.value))),
        PatchOperation::Replace(replace) => Some((&replace.path, Some(&replace.value))),
        PatchOperation::Copy(copy) => Some((&copy.path, document.pointer(copy.from.as_str()))),
        PatchOperation::Move(moved) => Some((&moved.path, document.pointer(moved.from.as_str()))),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    put.map_or(0, |(path, value)| path.count() + value.map_or(0, depth))
}

/// The levels of a value, which are few: what is read and what is patched is bounded.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn too_large(message: String) -> Status {
    Status::failure(413, "RequestEntityTooLarge", message)
}

fn rejected(index: usize, why: &str) -> Status {
    let cause = StatusCause {
        reason: "UnexpectedServerResponse".to_owned(),
        message: why.to_owned(),
        field: format!("patch[{index}]"),
    };
    Status::failure(422, "Invalid", "the server rejected our request due to an error in our request")
        .with_details(StatusDetails { causes: vec![cause], ..StatusDetails::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::json as apply;
    use super::*;

    #[test]
    fn operations_apply_in_order() {
        let patched = apply(
            &json!({"a": {"b": [1, 2]}}),
            &json!([
                {"op": "test", "path": "/a/b/0", "value": 1},
                {"op": "add", "path": "/a/b/-", "value": 3},
                {"op": "remove", "path": "/a/b/0"},
                {"op": "copy", "from": "/a/b", "path": "/c"},
                {"op": "replace", "path": "/a", "value": "x~y"},
            ]),
        );
        assert_eq!(patched.unwrap(), json!({"a": "x~y", "c": [2, 3]}));
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        let original = json!({"a": 1});
        for (patch, code) in [
            (json!({}), 400),
            (json!([{"op": "fly", "path": "/a"}]), 400),
            (json!([{"op": "remove", "path": "/b"}]), 422),
            (json!([{"op": "test", "path": "/a", "value": 2}]), 422),
            (Value::Array(vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1]), 413),
        ] {
            assert_eq!(apply(&original, &patch).unwrap_err().code, code, "{patch:.80}");
        }
    }

    #[test]
    fn the_operation_that_failed_is_named() {
        let patch = json!([{"op": "add", "path": "/b", "value": 1}, {"op": "remove", "path": "/c"}]);
        let status = apply(&json!({}), &patch).unwrap_err();
        assert_eq!(status.message, "the server rejected our request due to an error in our request");
        let cause = &status.details.unwrap().causes[0];
        assert_eq!(cause.field, "patch[1]");
        assert!(cause.message.starts_with("/c: "), "{}", cause.message);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({"a": inner}));
        let add = |at: usize| json!({"op": "add", "path": "/a".repeat(at), "value": nested(60)});
        assert!(apply(&nested(1), &json!([add(1), add(61)])).is_ok());
        let status = apply(&nested(1), &json!([add(1), add(61), add(121)])).unwrap_err();
        assert_eq!((status.code, status.message.contains("patch[2]")), (413, true), "{}", status.message);
        let moved = json!({"op": "move", "from": "/a", "path": "/b"});
        assert!(apply(&json!({"a": nested(127)}), &json!([moved])).is_ok());
    }

    #[test]
    fn copies_are_bounded() {
        let original = json!({"a": "x".repeat(1024)});
        let double = json!({"op": "copy", "from": "", "path": "/b"});
        let result = apply(&original, &Value::Array(vec![double; 100]));
        assert_eq!(result.map(|_| ()).unwrap_err().code, 413);
    }
}
