//! What a change added, changed and took away.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::Element;
use super::set::Set;
use super::shape::Shape;

/// What stands for a field that is there without being written.
static NULL: Value = Value::Null;

/// The difference between two versions of an object. No field is in more than one set.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

impl Comparison {
    pub(super) fn of(old: &Value, new: &Value, shape: Shape) -> Self {
        let mut walk = Walk { path: Vec::new(), found: Self::default() };
        if old != new {
            walk.visit(shape, Some(old), Some(new));
        }
        walk.found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// What has a new value.
    pub(super) fn written(&self) -> Set {
        let mut written = self.added.clone();
        written.add(&self.modified);
        written
    }

    /// The three sets.
    pub(super) fn sets_mut(&mut self) -> [&mut Set; 3] {
        [&mut self.added, &mut self.modified, &mut self.removed]
    }
}

struct Walk {
    path: Vec<Element>,
    found: Comparison,
}

impl Walk {
    /// Looks at a place in which the two differ.
    fn visit(&mut self, shape: Shape, old: Option<&Value>, new: Option<&Value>) {
        let has_parts = match shape {
            Shape::Whole => false,
            Shape::Object(_) | Shape::Map(_) => self.fields(shape, old, new),
            Shape::Set | Shape::Keyed(..) => self.items(shape, old, new),
        };
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            _ if has_parts || (is_void(old) && is_void(new)) => {}
            _ => self.found.modified.insert(&self.path),
        }
    }

    /// Looks at the fields of two objects; tells whether there are any.
    fn fields(&mut self, shape: Shape, old: Option<&Value>, new: Option<&Value>) -> bool {
        let none = Map::new();
        let before = old.and_then(Value::as_object).unwrap_or(&none);
        let after = new.and_then(Value::as_object).unwrap_or(&none);
        let both = old.is_some() && new.is_some();
        for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
            let implied = (both && shape.is_implied(name)).then_some(&NULL);
            let (old, new) = (before.get(name).or(implied), after.get(name).or(implied));
            if old != new {
                self.path.push(Element::field(name));
                self.visit(shape.child(name), old, new);
                self.path.pop();
            }
        }
        !before.is_empty() || !after.is_empty()
    }

    /// Looks at the items of two lists; tells whether there are any.
    fn items(&mut self, shape: Shape, old: Option<&Value>, new: Option<&Value>) -> bool {
        let (before, after) = (by_element(shape, old), by_element(shape, new));
        for element in before.keys().chain(after.keys().filter(|element| !before.contains_key(*element))) {
            let old = before.get(element).map(Vec::as_slice).unwrap_or_default();
            let new = after.get(element).map(Vec::as_slice).unwrap_or_default();
            if old == new {
                continue;
            }
            self.path.push(element.clone());
            match (old, new) {
                ([] | [_], [] | [_]) => self.visit(shape.item(), old.first().copied(), new.first().copied()),
                // Items of one key that is given more than once are owned together.
                ([_, _, ..], [_, _, ..]) => self.found.modified.insert(&self.path),
                ([_, _, ..], _) => {
                    if let Some(new) = new.first() {
                        self.visit(shape.item(), None, Some(new));
                    }
                    self.found.removed.insert(&self.path);
                }
                (_, [_, _, ..]) => {
                    if let Some(old) = old.first() {
                        self.visit(shape.item(), Some(old), None);
                    }
                    self.found.added.insert(&self.path);
                }
            }
            self.path.pop();
        }
        !before.is_empty() || !after.is_empty()
    }
}

fn by_element(shape: Shape, list: Option<&Value>) -> BTreeMap<Element, Vec<&Value>> {
    let mut items: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        if let Ok(element) = shape.element(item) {
            items.entry(element).or_default().push(item);
        }
    }
    items
}

fn is_void(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Null) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    #[track_caller]
    fn check(old: Value, new: Value, added: Value, modified: Value, removed: Value) {
        let own = type_named("io.k8s.api.apps.v1.Deployment").unwrap();
        let found = Comparison::of(&old, &new, Shape::Object(own));
        assert_eq!(found.added.to_fields(), added, "added");
        assert_eq!(found.modified.to_fields(), modified, "modified");
        assert_eq!(found.removed.to_fields(), removed, "removed");
    }

    fn containers(list: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": list}}}})
    }

    fn in_containers(fields: Value) -> Value {
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": fields}}}})
    }

    /// As upstream shows what `kubectl create deployment` made: a dot for what was added
    /// as such, none for what a Go struct always has.
    #[test]
    fn everything_in_a_new_object_is_added() {
        check(
            json!({}),
            json!({"metadata": {"labels": {"app": "web"}},
                   "spec": {"replicas": 1, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
                       "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                           {"name": "web", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}}),
            json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                   "f:spec": {"f:replicas": {}, "f:strategy": {"f:type": {}, "f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
                       "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {
                           "k:{\"name\":\"web\"}": {".": {}, "f:name": {}, "f:resources": {}, "f:ports": {".": {},
                               "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}}),
            json!({}),
            json!({}),
        );
    }

    #[test]
    fn items_are_compared_by_key_and_not_by_place() {
        check(
            containers(json!([{"name": "a", "image": "1"}, {"name": "b"}])),
            containers(json!([{"name": "c"}, {"name": "a", "image": "2"}])),
            in_containers(json!({"k:{\"name\":\"c\"}": {".": {}, "f:name": {}}})),
            in_containers(json!({"k:{\"name\":\"a\"}": {"f:image": {}}})),
            in_containers(json!({"k:{\"name\":\"b\"}": {".": {}, "f:name": {}}})),
        );
        let (one, two) = (json!([{"name": "a"}, {"name": "b"}]), json!([{"name": "b"}, {"name": "a"}]));
        check(containers(one), containers(two), json!({}), json!({}), json!({}));
    }

    #[test]
    fn what_is_atomic_changes_as_a_whole() {
        check(
            json!({"spec": {"selector": {"matchLabels": {"a": "1"}}}}),
            json!({"spec": {"selector": {"matchLabels": {"a": "1", "b": "2"}}}}),
            json!({}),
            json!({"f:spec": {"f:selector": {}}}),
            json!({}),
        );
    }

    #[test]
    fn a_map_goes_with_its_entries() {
        check(
            json!({"metadata": {"labels": {"a": "1"}}}),
            json!({"metadata": {}}),
            json!({}),
            json!({}),
            json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}),
        );
    }

    #[test]
    fn items_that_share_a_key_are_compared_together() {
        let env = |list: Value| containers(json!([{"name": "c", "env": list}]));
        let fields =
            |below: Value| in_containers(json!({"k:{\"name\":\"c\"}": {"f:env": {"k:{\"name\":\"A\"}": below}}}));
        let (one, two) = (json!({"name": "A", "value": "1"}), json!({"name": "A", "value": "2"}));
        check(env(json!([one, two])), env(json!([one, one])), json!({}), fields(json!({})), json!({}));
        check(
            env(json!([one, two])),
            env(json!([one])),
            fields(json!({".": {}, "f:name": {}, "f:value": {}})),
            json!({}),
            fields(json!({})),
        );
    }
}
