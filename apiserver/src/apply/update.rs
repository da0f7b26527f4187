//! What creations, updates and patches make of managedFields.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::compare::Comparison;
use super::managers::{Managers, Operation};
use super::scope::Scope;

/// The managedFields of a new object: who creates it owns all of it.
pub(crate) fn created(scope: &Scope<'_>, object: &Value) -> Option<Value> {
    let fields = scope.compare(&json!({}), object).written();
    let mut managers = Managers::default();
    managers.give(scope.manager(Operation::Update), fields, &scope.now);
    managers.encode()
}

/// The managedFields of an object that is changed from `old` to `new`, whoever else owned
/// what it changes. `sent` is what the client put there itself: an empty list, or a list
/// of one empty entry, ends the bookkeeping until somebody applies.
pub(crate) fn updated(scope: &Scope<'_>, old: &Value, new: &Value, sent: Option<&Value>) -> Option<Value> {
    let kept = old["metadata"].get("managedFields");
    // Through a subresource nobody rewrites history.
    let sent = sent.filter(|sent| scope.subresource.is_empty() && Some(*sent) != kept);
    if sent.is_some_and(is_reset) {
        return None;
    }
    // Clients that know nothing of managedFields must not lose them.
    let sent = sent.and_then(|sent| Managers::decode(sent).ok()).filter(|sent| !sent.is_empty());
    if sent.is_none() && kept.is_none() {
        return None;
    }
    let changes = scope.compare(old, new);
    if sent.is_none() && changes.is_empty() {
        return kept.cloned();
    }
    let mut managers = match sent {
        Some(sent) => sent,
        None => Managers::decode(kept?).ok()?,
    };
    release(&mut managers, scope, old, new, &changes);
    managers.give(scope.manager(Operation::Update), changes.written(), &scope.now);
    managers.cap();
    managers.encode()
}

/// Takes from everybody what has changed.
pub(super) fn release(managers: &mut Managers, scope: &Scope<'_>, old: &Value, new: &Value, changes: &Comparison) {
    let here = scope.def.api_version();
    managers.entries.retain_mut(|entry| {
        let elsewhere;
        let changes = if entry.manager.api_version == here {
            changes
        } else {
            let Some(seen) = scope.compare_at(&entry.manager.api_version, old, new) else { return false };
            elsewhere = seen;
            &elsewhere
        };
        entry.fields.remove(&changes.written());
        entry.fields.remove(&changes.removed);
        !entry.fields.is_empty()
    });
}

/// Whether two managedFields say the same of everything but times.
pub(crate) fn same_owners(a: &Value, b: &Value) -> bool {
    let owners = |value: &Value| -> Option<BTreeMap<_, _>> {
        let managers = Managers::decode(value).ok()?;
        Some(managers.entries.into_iter().map(|entry| (entry.manager, entry.fields)).collect())
    };
    a == b || owners(a).is_some_and(|a| owners(b).is_some_and(|b| a == b))
}

fn is_reset(sent: &Value) -> bool {
    match sent.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([entry]) => entry.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::scope::testing::scope;
    use super::*;

    fn map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n", "uid": "u"}, "data": data})
    }

    fn owned(object: &Value, managed: Option<Value>) -> Value {
        let mut object = object.clone();
        object["metadata"]["managedFields"] = managed.expect("somebody owns something");
        object
    }

    /// Manager, minute and fields of each entry.
    #[track_caller]
    fn check(managed: Option<Value>, expected: &[(&str, u8, Value)]) {
        let expected: Vec<Value> = expected
            .iter()
            .map(|(manager, minute, fields)| {
                json!({"manager": manager, "operation": "Update", "apiVersion": "v1",
                       "time": format!("2024-01-01T00:{minute:02}:00Z"), "fieldsType": "FieldsV1", "fieldsV1": fields})
            })
            .collect();
        assert_eq!(managed, (!expected.is_empty()).then_some(Value::Array(expected)));
    }

    fn update(manager: &str, minute: u8, old: &Value, new: &Value) -> Option<Value> {
        updated(&scope("", "configmaps", manager, minute), old, new, None)
    }

    #[test]
    fn a_new_object_belongs_to_its_creator() {
        let object = map(json!({"a": "1"}));
        check(
            created(&scope("", "configmaps", "kubectl-create", 1), &object),
            &[("kubectl-create", 1, json!({"f:data": {".": {}, "f:a": {}}}))],
        );
        check(
            created(&scope("", "configmaps", "", 1), &map(json!({"a": "1"}))),
            &[("unknown", 1, json!({"f:data": {".": {}, "f:a": {}}}))],
        );
        check(created(&scope("", "configmaps", "x", 1), &json!({"metadata": {"name": "m"}})), &[]);
    }

    #[test]
    fn changed_fields_change_hands() {
        let first = map(json!({"a": "1", "b": "1"}));
        let first = owned(&first, created(&scope("", "configmaps", "x", 1), &first));
        let second = map(json!({"a": "2", "b": "1", "c": "1"}));
        let managed = update("y", 2, &first, &second);
        check(
            managed.clone(),
            &[("x", 1, json!({"f:data": {".": {}, "f:b": {}}})), ("y", 2, json!({"f:data": {"f:a": {}, "f:c": {}}}))],
        );
        let second = owned(&second, managed);
        let third = map(json!({"a": "2"}));
        check(
            update("z", 3, &second, &third),
            &[("x", 1, json!({"f:data": {}})), ("y", 2, json!({"f:data": {"f:a": {}}}))],
        );
        let mut empty = map(Value::Null);
        empty.as_object_mut().unwrap().remove("data");
        check(update("z", 3, &second, &empty), &[]);
    }

    #[test]
    fn a_change_of_nothing_is_no_change() {
        let object = map(json!({"a": "1"}));
        let object = owned(&object, created(&scope("", "configmaps", "x", 1), &object));
        assert_eq!(update("y", 2, &object, &map(json!({"a": "1"}))).as_ref(), object["metadata"].get("managedFields"));
        assert_eq!(update("x", 2, &object, &map(json!({"a": "1"}))).as_ref(), object["metadata"].get("managedFields"));
    }

    #[test]
    fn clients_may_rewrite_or_reset_what_is_recorded() {
        let object = map(json!({"a": "1"}));
        let object = owned(&object, created(&scope("", "configmaps", "x", 1), &object));
        let new = map(json!({"a": "1", "b": "2"}));
        let send = |sent: Value| updated(&scope("", "configmaps", "y", 2), &object, &new, Some(&sent));
        for reset in [json!([]), json!([{}])] {
            assert_eq!(send(reset), None);
        }
        let entry = json!([{"manager": "w", "operation": "Update", "apiVersion": "v1", "time": "2024-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}}]);
        check(
            send(entry.clone()),
            &[("w", 0, json!({"f:data": {"f:a": {}}})), ("y", 2, json!({"f:data": {"f:b": {}}}))],
        );
        let malformed = json!([{"manager": "w", "operation": "Create"}]);
        check(
            send(malformed),
            &[("x", 1, json!({"f:data": {".": {}, "f:a": {}}})), ("y", 2, json!({"f:data": {"f:b": {}}}))],
        );
        let status = Scope { subresource: "status", ..scope("", "configmaps", "y", 2) };
        let managed = updated(&status, &object, &new, Some(&entry)).unwrap();
        assert_eq!((&managed[0]["manager"], &managed[1]["subresource"]), (&json!("x"), &json!("status")));
        assert_eq!(update("y", 2, &map(json!({})), &new), None, "nobody began to record");
    }

    #[test]
    fn a_status_has_owners_of_its_own() {
        let pod = |spec: Value, status: Value| json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        let created_pod = pod(json!({"nodeName": "n"}), json!({"phase": "Pending"}));
        let managed = created(&scope("", "pods", "x", 1), &created_pod).unwrap();
        assert_eq!(managed[0]["fieldsV1"], json!({"f:spec": {"f:nodeName": {}}}));
        let old = owned(&created_pod, Some(managed));
        let new = pod(json!({"nodeName": "n"}), json!({"phase": "Running"}));
        let kubelet = Scope { subresource: "status", unreached: &["spec"], ..scope("", "pods", "kubelet", 2) };
        let managed = updated(&kubelet, &old, &new, None).unwrap();
        assert_eq!(managed[1]["fieldsV1"], json!({"f:status": {"f:phase": {}}}));
        assert_eq!((&managed[1]["manager"], &managed[1]["subresource"]), (&json!("kubelet"), &json!("status")));
    }

    #[test]
    fn times_alone_are_no_difference() {
        let entries = |first: &str, second: &str, fields: Value| {
            json!([{"manager": first, "operation": "Update", "apiVersion": "v1", "time": "2024-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}},
                   {"manager": second, "operation": "Update", "apiVersion": "v1", "time": "2024-01-01T00:01:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields}])
        };
        assert!(same_owners(&entries("x", "y", json!({"f:a": {}})), &entries("y", "x", json!({"f:a": {}}))));
        assert!(!same_owners(&entries("x", "y", json!({"f:a": {}})), &entries("y", "x", json!({"f:b": {}}))));
    }
}
