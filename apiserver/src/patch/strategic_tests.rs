use serde_json::json;

use super::*;
use crate::schema::resource;

#[track_caller]
fn check(original: Value, patch: Value, expected: Value) {
    let def = resource("", "v1", "pods").unwrap();
    assert_eq!(strategic(&original, &patch, def).unwrap(), expected);
}

#[track_caller]
fn check_refused(original: Value, patch: Value, code: u16, text: &str) {
    let def = resource("", "v1", "pods").unwrap();
    let status = strategic(&original, &patch, def).unwrap_err();
    assert_eq!(status.code, code);
    assert!(status.message.contains(text), "{status}");
}

fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn lists_of_objects_merge_by_their_key() {
    check(
        pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
        pod(json!([{"name": "b", "image": "2"}])),
        pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}])),
    );
    check(
        pod(json!([{"name": "a", "env": [{"name": "x", "value": "1"}]}])),
        pod(json!([{"name": "a", "env": [{"name": "y", "value": "2"}], "image": null}])),
        pod(json!([{"name": "a", "env": [{"name": "y", "value": "2"}, {"name": "x", "value": "1"}]}])),
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    check(
        pod(json!([{"name": "a", "args": ["1", "2"]}])),
        pod(json!([{"name": "a", "args": ["3"]}])),
        pod(json!([{"name": "a", "args": ["3"]}])),
    );
    check(
        json!({"spec": {"tolerations": [{"key": "a"}]}}),
        json!({"spec": {"tolerations": [{"key": "b"}]}}),
        json!({"spec": {"tolerations": [{"key": "b"}]}}),
    );
}

#[test]
fn items_are_deleted_and_lists_replaced_by_directive() {
    check(
        pod(json!([{"name": "a"}, {"name": "b"}])),
        pod(json!([{"name": "a", "$patch": "delete"}])),
        pod(json!([{"name": "b"}])),
    );
    check(
        pod(json!([{"name": "a"}, {"name": "b"}])),
        pod(json!([{"name": "c"}, {"$patch": "replace"}])),
        pod(json!([{"name": "c"}])),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}),
        json!({"metadata": {"labels": {"b": "2"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "delete"}}}),
        json!({"metadata": {"labels": {}}}),
    );
}

#[test]
fn the_order_directive_orders_what_the_patch_names() {
    let four = || pod(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}, {"name": "c"}]));
    check(
        four(),
        json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
        pod(json!([{"name": "server"}, {"name": "c"}, {"name": "a"}, {"name": "b"}])),
    );
    check(
        four(),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "d"}, {"name": "c"}],
                        "containers": [{"name": "d", "image": "new"}, {"name": "b", "$patch": "delete"}]}}),
        pod(json!([{"name": "a"}, {"name": "d", "image": "new"}, {"name": "server"}, {"name": "c"}])),
    );
    check_refused(
        four(),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "d"}]}}),
        400,
        "doesn't match $setElementOrder list",
    );
}

#[test]
fn lists_of_strings_merge_as_sets() {
    check(
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"finalizers": ["c", "b"]}}),
        json!({"metadata": {"finalizers": ["c", "a", "b"]}}),
    );
    check(
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b"]}}),
        json!({"metadata": {"finalizers": ["b"]}}),
    );
}

#[test]
fn retained_keys_drop_the_others() {
    let volume = |source: Value| json!({"spec": {"volumes": [source]}});
    check(
        volume(json!({"name": "v", "emptyDir": {}})),
        volume(json!({"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]})),
        volume(json!({"name": "v", "hostPath": {"path": "/x"}})),
    );
    check_refused(
        volume(json!({"name": "v"})),
        volume(json!({"name": "v", "hostPath": {}, "$retainKeys": ["name"]})),
        400,
        "$retainKeys",
    );
}

#[test]
fn nothing_of_a_directive_is_left_in_new_parts() {
    check(
        json!({}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "image": null}, {"name": "b", "$patch": "delete"}],
               "volumes": [{"name": "v", "$retainKeys": ["name"]}]}, "metadata": {"labels": null}}),
        json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v"}]}, "metadata": {}}),
    );
}

#[test]
fn malformed_patches_are_refused() {
    check_refused(
        pod(json!([{"name": "a"}])),
        pod(json!([{"image": "x"}])),
        400,
        "does not contain declared merge key: name",
    );
    check_refused(json!({}), json!([]), 400, "invalid JSON document");
    check_refused(json!({}), json!({"$patch": "explode"}), 400, "unknown patch type found: explode");
    check_refused(pod(json!([{"name": "a"}])), pod(json!([3])), 400, "not an object");
    let status = strategic_kind(&json!({}), &json!({}), "example.com", "v1", "Widget").unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (415, "UnsupportedMediaType"));
}
