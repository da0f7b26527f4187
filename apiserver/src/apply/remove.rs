//! A value without some of its fields.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::Set;
use super::shape::Shape;

/// `value` without the fields in `gone`; null when nothing is left of it.
pub(super) fn remove(value: &Value, gone: &Set, shape: Shape) -> Value {
    match (shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(fields)) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                if let Some(value) = rest(value, gone, &Element::field(name), shape.child(name)) {
                    kept.insert(name.clone(), value);
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            let kept: Vec<Value> = items
                .iter()
                .filter_map(|item| match shape.element(item) {
                    // A list has no place for what nothing is left of.
                    Ok(element) => rest(item, gone, &element, shape.item()).filter(|left| !left.is_null()),
                    Err(_) => Some(item.clone()),
                })
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        _ => value.clone(),
    }
}

/// What is left of the value one step away; `None` when it is itself gone.
fn rest(value: &Value, gone: &Set, element: &Element, shape: Shape) -> Option<Value> {
    if gone.has(element) {
        return None;
    }
    Some(match gone.below(element) {
        Some(below) => remove(value, below, shape),
        None => value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    #[track_caller]
    fn check(value: Value, gone: Value, expected: Value) {
        let shape = Shape::Object(type_named("io.k8s.api.core.v1.Pod").unwrap());
        assert_eq!(remove(&value, &Set::from_fields(&gone).unwrap(), shape), expected);
    }

    #[test]
    fn fields_and_items_go() {
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
                   "spec": {"containers": [{"name": "c", "image": "1"}, {"name": "d"}]}}),
            json!({"f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
                   "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:image": {}}, "k:{\"name\":\"d\"}": {}}}}),
            json!({"metadata": {"labels": {"b": "2"}, "finalizers": ["y"]}, "spec": {"containers": [{"name": "c"}]}}),
        );
        check(
            json!({"metadata": {"labels": {"a": "1"}}}),
            json!({"f:metadata": {"f:labels": {"f:a": {}}}}),
            json!({"metadata": {"labels": null}}),
        );
    }
}
