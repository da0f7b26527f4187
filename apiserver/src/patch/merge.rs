//! JSON merge patch, RFC 7386.

use quorate_proto::status::Status;
use serde_json::{Map, Value};

/// `original` with `patch` merged in: objects are merged, null removes, anything else replaces.
///
/// # Errors
/// 400 when the patch is not an object: the result could not be an API object.
pub fn merge(original: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: json: cannot unmarshal a patch that is not an object"));
    }
    let mut merged = original.clone();
    merge_into(&mut merged, patch);
    Ok(merged)
}

// RFC 7386, section 2. Depth is bounded by the parser that made the patch.
fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let fields = target.as_object_mut().expect("made an object above");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge_into(fields.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(original: Value, patch: Value, expected: Value) {
        assert_eq!(merge(&original, &patch).unwrap(), expected);
    }

    // RFC 7386, appendix A, where the patch is an object.
    #[test]
    fn the_examples_of_the_rfc() {
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"}));
        check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
        check(json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]}));
        check(json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1}));
        check(json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    }

    #[test]
    fn a_patch_that_is_no_object_is_refused() {
        assert_eq!(merge(&json!({}), &json!([1])).unwrap_err().code, 400);
    }
}
