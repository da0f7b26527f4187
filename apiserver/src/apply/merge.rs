//! An applied configuration laid over what is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use super::element::Element;
use super::shape::Shape;

/// `live` with the fields of `config`: objects, maps and lists with keys are merged,
/// everything else is taken from `config`. Nothing is taken away.
pub(super) fn merge(live: &Value, config: &Value, shape: Shape) -> Value {
    match shape {
        Shape::Whole => config.clone(),
        Shape::Object(_) | Shape::Map(_) => match (live, config) {
            (Value::Object(old), _) if !old.is_empty() && is_void(config) => live.clone(),
            (Value::Object(old), Value::Object(new)) => {
                let mut merged = old.clone();
                for (name, value) in new {
                    let value = match old.get(name) {
                        Some(old) => merge(old, value, shape.child(name)),
                        None => value.clone(),
                    };
                    merged.insert(name.clone(), value);
                }
                Value::Object(merged)
            }
            _ => config.clone(),
        },
        Shape::Set | Shape::Keyed(..) => match (live, config) {
            (Value::Array(old), _) if !old.is_empty() && is_void(config) => live.clone(),
            (Value::Array(old), Value::Array(new)) => Value::Array(merge_items(old, new, shape)),
            _ => config.clone(),
        },
    }
}

fn is_void(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// What both have comes in the order of `config`; what only `live` has stays before
/// those that it stood before, as far as the two orders allow.
fn merge_items(live: &[Value], config: &[Value], shape: Shape) -> Vec<Value> {
    let element = |item: &Value| shape.element(item).ok();
    let old: Vec<(Option<Element>, &Value)> = live.iter().map(|item| (element(item), item)).collect();
    let new: Vec<(Option<Element>, &Value)> = config.iter().map(|item| (element(item), item)).collect();
    // An item whose key is there twice has nothing to merge with.
    let mut known: BTreeMap<&Element, Option<&Value>> = BTreeMap::new();
    for (element, item) in &old {
        if let Some(element) = element {
            known.entry(element).and_modify(|found| *found = None).or_insert(Some(*item));
        }
    }
    let wanted: BTreeSet<&Element> = new.iter().filter_map(|(element, _)| element.as_ref()).collect();
    let mut shared: VecDeque<&Element> =
        new.iter().filter_map(|(element, _)| element.as_ref()).filter(|element| known.contains_key(element)).collect();

    let mut merged = Vec::with_capacity(old.len().max(new.len()));
    let mut old = old.iter().peekable();
    let mut new = new.iter();
    loop {
        if let Some((element, item)) = old.peek() {
            match element {
                Some(element) if wanted.contains(element) => {
                    // Only the shared item that comes next is waited for.
                    if shared.front() != Some(&element) {
                        old.next();
                        continue;
                    }
                }
                _ => {
                    merged.push((*item).clone());
                    old.next();
                    continue;
                }
            }
        }
        let Some((element, item)) = new.next() else { return merged };
        let found = element.as_ref().and_then(|element| known.get(element).copied().flatten());
        merged.push(found.map_or_else(|| (*item).clone(), |live| merge(live, item, shape.item())));
        if element.is_some() && shared.front().copied() == element.as_ref() {
            shared.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    fn root() -> Shape {
        Shape::Object(type_named("io.k8s.api.core.v1.Pod").unwrap())
    }

    #[track_caller]
    fn check(live: Value, config: Value, expected: Value) {
        assert_eq!(merge(&live, &config, root()), expected);
    }

    /// Names of finalizers, which are a set.
    #[track_caller]
    fn check_order(live: &str, config: &str, expected: &str) {
        let items = |names: &str| Value::from(names.chars().map(String::from).collect::<Vec<_>>());
        let merged = merge_items(
            items(live).as_array().unwrap(),
            items(config).as_array().unwrap(),
            root().child("metadata").child("finalizers"),
        );
        let names: String = merged.iter().filter_map(Value::as_str).collect();
        assert_eq!(names, expected, "{live} and {config}");
    }

    #[test]
    fn fields_are_merged_by_their_shapes() {
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}},
                   "spec": {"nodeSelector": {"x": "1"}, "containers": [{"name": "c", "image": "1", "args": ["x"]}]}}),
            json!({"metadata": {"labels": {"b": "3"}},
                   "spec": {"nodeSelector": {"y": "1"}, "containers": [{"name": "c", "args": ["y"]}, {"name": "d"}]}}),
            json!({"metadata": {"labels": {"a": "1", "b": "3"}},
                   "spec": {"nodeSelector": {"y": "1"}, "containers": [{"name": "c", "image": "1", "args": ["y"]}, {"name": "d"}]}}),
        );
    }

    #[test]
    fn what_is_empty_takes_nothing_away() {
        let live = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x"]}});
        check(live.clone(), json!({"metadata": {"labels": {}, "finalizers": null}}), live);
    }

    #[test]
    fn lists_keep_both_orders() {
        check_order("abc", "", "abc");
        check_order("", "abc", "abc");
        check_order("abc", "abc", "abc");
        check_order("abc", "cba", "cba");
        check_order("ab", "cd", "abcd");
        check_order("axb", "ab", "axb");
        check_order("axb", "ba", "xba");
        check_order("abxc", "acd", "abxcd");
        check_order("abc", "dabc", "dabc");
        check_order("abc", "adbc", "adbc");
    }

    #[test]
    fn an_item_that_is_there_twice_is_replaced() {
        let env = |list: Value| json!({"spec": {"containers": [{"name": "c", "env": list}]}});
        let twice = json!([{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}]);
        check(
            env(twice.clone()),
            env(json!([{"name": "A", "value": "3"}])),
            env(json!([{"name": "A", "value": "3"}, {"name": "B"}])),
        );
        check(
            env(twice.clone()),
            env(json!([{"name": "C"}])),
            env(json!([
            {"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}, {"name": "C"}])),
        );
    }
}
