//! Which fields an object sets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::element::Element;
use super::set::Set;
use super::shape::Shape;

/// The fields that `value` sets: everything owned as a whole, the items of lists, the
/// entries of maps, and objects in which nothing is set.
pub(super) fn field_set(value: &Value, shape: Shape) -> Set {
    let mut set = Set::default();
    visit(value, shape, &mut Vec::new(), &mut set);
    set
}

fn visit(value: &Value, shape: Shape, path: &mut Vec<Element>, set: &mut Set) {
    match (shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(fields)) => {
            for (name, value) in fields {
                path.push(Element::field(name));
                visit(value, shape.child(name), path, set);
                let is_void = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
                if is_void || !shape.names(name) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            // What cannot be told apart is refused elsewhere, or was there before.
            let items: Vec<(Element, &Value)> =
                items.iter().filter_map(|item| Some((shape.element(item).ok()?, item))).collect();
            let mut counts = BTreeMap::new();
            for (element, _) in &items {
                *counts.entry(element).or_insert(0) += 1;
            }
            for (element, item) in &items {
                path.push(element.clone());
                // Items of one key that is given more than once are owned together.
                if counts[element] == 1 {
                    visit(item, shape.item(), path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        (Shape::Object(_) | Shape::Map(_) | Shape::Set | Shape::Keyed(..), Value::Null) => {}
        _ => set.insert(path),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    #[track_caller]
    fn check(kind: &str, value: Value, expected: Value) {
        let own = type_named(&format!("io.k8s.api.{kind}")).unwrap();
        assert_eq!(field_set(&value, Shape::Object(own)).to_fields(), expected);
    }

    #[test]
    fn fields_are_owned_as_the_schema_says() {
        check(
            "apps.v1.Deployment",
            json!({"metadata": {"name": "web", "labels": {"app": "web"}, "annotations": {}},
                   "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "strategy": {}, "paused": null,
                       "template": {"spec": {"containers": [{"name": "web", "args": ["a"],
                           "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]}]}}}}),
            json!({"f:metadata": {"f:name": {}, "f:labels": {"f:app": {}}, "f:annotations": {}},
                   "f:spec": {"f:replicas": {}, "f:selector": {}, "f:strategy": {}, "f:paused": {},
                       "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:name": {}, "f:args": {},
                           "f:ports": {
                               "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
                               "k:{\"containerPort\":80,\"protocol\":\"UDP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}}),
        );
        check(
            "core.v1.ConfigMap",
            json!({"metadata": {"finalizers": ["x/y"], "ownerReferences": [{"uid": "u", "name": "n"}]}, "data": {"a": "b"}}),
            json!({"f:metadata": {"f:finalizers": {"v:\"x/y\"": {}}, "f:ownerReferences": {"k:{\"uid\":\"u\"}": {}}},
                   "f:data": {"f:a": {}}}),
        );
    }

    #[test]
    fn items_that_share_a_key_are_owned_together() {
        check(
            "core.v1.Pod",
            json!({"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}}),
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:env": {"k:{\"name\":\"A\"}": {}}}}}}),
        );
    }
}
