//! Sets of fields, as a tree whose edges are path elements.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::Element;
use super::shape::Shape;

/// How FieldsV1 says that a node with children is itself in the set.
const SELF: &str = ".";

/// A set of fields. Always: a node is a member or has members below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    nodes: BTreeMap<Element, Node>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    is_member: bool,
    below: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

impl Set {
    /// The set of these paths of field names.
    pub(super) fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|name| Element::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    /// Reads FieldsV1.
    ///
    /// # Errors
    /// When a key is no path element, or something else than an object stands below it.
    pub(super) fn from_fields(fields: &Value) -> Result<Self, String> {
        let Value::Object(entries) = fields else { return Err(format!("{fields} is no set of fields")) };
        let mut set = Self::default();
        for (text, value) in entries.iter().filter(|(text, _)| *text != SELF) {
            let Some(element) = Element::parse(text)? else { continue };
            let below = Self::from_fields(value)?;
            let node = set.nodes.entry(element).or_default();
            node.is_member |= below.is_empty() || value.get(SELF).is_some();
            node.below.add(&below);
        }
        Ok(set)
    }

    /// Writes FieldsV1.
    pub(super) fn to_fields(&self) -> Value {
        let entry = |(element, node): (&Element, &Node)| {
            let mut below = node.below.to_fields();
            if let Value::Object(entries) = &mut below
                && node.is_member
                && !entries.is_empty()
            {
                entries.insert(SELF.to_owned(), Value::Object(Map::new()));
            }
            (element.as_str().to_owned(), below)
        };
        Value::Object(self.nodes.iter().map(entry).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds the field at `path`, and none of those above it. Nobody owns the whole
    /// object: an empty path adds nothing.
    pub(super) fn insert(&mut self, path: &[Element]) {
        let Some((last, above)) = path.split_last() else { return };
        let mut set = self;
        for element in above {
            set = &mut set.nodes.entry(element.clone()).or_default().below;
        }
        set.nodes.entry(last.clone()).or_default().is_member = true;
    }

    /// Whether the field one step away is in the set.
    pub(super) fn has(&self, element: &Element) -> bool {
        self.nodes.get(element).is_some_and(|node| node.is_member)
    }

    /// The members below the field one step away, if there are any.
    pub(super) fn below(&self, element: &Element) -> Option<&Self> {
        self.nodes.get(element).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (element, theirs) in &other.nodes {
            let own = self.nodes.entry(element.clone()).or_default();
            own.is_member |= theirs.is_member;
            own.below.add(&theirs.below);
        }
    }

    /// Takes out the members of `other`; what lies below them stays.
    pub(super) fn remove(&mut self, other: &Self) {
        for (element, theirs) in &other.nodes {
            let Some(own) = self.nodes.get_mut(element) else { continue };
            own.is_member &= !theirs.is_member;
            own.below.remove(&theirs.below);
            if own.is_empty() {
                self.nodes.remove(element);
            }
        }
    }

    /// Takes out the members of `other` and everything below them.
    pub(super) fn remove_trees(&mut self, other: &Self) {
        for (element, theirs) in &other.nodes {
            if theirs.is_member {
                self.nodes.remove(element);
                continue;
            }
            let Some(own) = self.nodes.get_mut(element) else { continue };
            own.below.remove_trees(&theirs.below);
            if own.is_empty() {
                self.nodes.remove(element);
            }
        }
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let common = |(element, own): (&Element, &Node)| {
            let theirs = other.nodes.get(element)?;
            let both =
                Node { is_member: own.is_member && theirs.is_member, below: own.below.intersection(&theirs.below) };
            (!both.is_empty()).then(|| (element.clone(), both))
        };
        Self { nodes: self.nodes.iter().filter_map(common).collect() }
    }

    /// The set with those fields of objects that have members below them: they are named
    /// by the schema, so they are there because of what is in them.
    pub(super) fn with_parents(&self, shape: Shape) -> Self {
        let widen = |(element, node): (&Element, &Node)| {
            let (is_named, inner) = match element.as_field() {
                Some(name) => (shape.names(name), shape.child(name)),
                None => (false, shape.item()),
            };
            let widened = Node { is_member: node.is_member || is_named, below: node.below.with_parents(inner) };
            (element.clone(), widened)
        };
        Self { nodes: self.nodes.iter().map(widen).collect() }
    }

    /// All members: those at one level before what lies below them.
    pub(super) fn paths(&self) -> Vec<Vec<Element>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, above: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        for (element, _) in self.nodes.iter().filter(|(_, node)| node.is_member) {
            let mut path = above.clone();
            path.push(element.clone());
            paths.push(path);
        }
        for (element, node) in &self.nodes {
            above.push(element.clone());
            node.below.collect(above, paths);
            above.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::element::print;
    use super::*;

    fn set(fields: Value) -> Set {
        Set::from_fields(&fields).unwrap()
    }

    /// From the documentation of server-side apply, and from an object of a real cluster.
    #[test]
    fn fields_of_real_objects_come_back_as_they_were() {
        for fields in [
            json!({"f:metadata": {"f:labels": {"f:test-label": {}}}, "f:data": {"f:key": {}}}),
            json!({"f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}},
                       "f:labels": {".": {}, "f:app": {}}, "f:finalizers": {".": {}, "v:\"example.com/x\"": {}},
                       "f:ownerReferences": {".": {}, "k:{\"uid\":\"4b0e\"}": {}}},
                   "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec": {"f:containers": {
                       "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {".": {},
                           "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}}),
            json!({}),
        ] {
            assert_eq!(set(fields.clone()).to_fields(), fields);
        }
    }

    #[test]
    fn fields_are_made_canonical() {
        assert_eq!(
            set(json!({"k:{\"b\":1, \"a\":2}": {}, "z:later": {}, ".": {}})).to_fields(),
            json!({"k:{\"a\":2,\"b\":1}": {}})
        );
        for fields in [json!([]), json!({"f:a": 1}), json!({"a": {}})] {
            assert!(Set::from_fields(&fields).is_err(), "{fields}");
        }
    }

    #[test]
    fn sets_are_combined() {
        let a = json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}});
        let b = json!({"f:a": {"f:c": {}}, "f:e": {}});
        let mut sum = set(a.clone());
        sum.add(&set(b.clone()));
        assert_eq!(sum.to_fields(), json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}, "f:e": {}}));
        let mut rest = set(a.clone());
        rest.remove(&set(b.clone()));
        assert_eq!(rest.to_fields(), json!({"f:a": {".": {}, "f:b": {}}, "f:d": {}}));
        assert_eq!(set(a.clone()).intersection(&set(b)).to_fields(), json!({"f:a": {"f:c": {}}}));

        let parent = set(json!({"f:a": {}}));
        let mut rest = set(a.clone());
        rest.remove(&parent);
        assert_eq!(rest.to_fields(), json!({"f:a": {"f:b": {}, "f:c": {}}, "f:d": {}}), "what is below stays");
        let mut rest = set(a);
        rest.remove_trees(&parent);
        assert_eq!(rest.to_fields(), json!({"f:d": {}}), "what is below goes");
    }

    #[test]
    fn members_come_before_what_is_below_them() {
        let paths = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {"v:1": {}}, "f:d": {}})).paths();
        let printed: Vec<String> = paths.iter().map(|path| print(path)).collect();
        assert_eq!(printed, [".a", ".d", ".a.b", ".c[=1]"]);
    }
}
