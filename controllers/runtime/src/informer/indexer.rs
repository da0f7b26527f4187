//! Objects by key, and the ways in which controllers look for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use quorate_proto::object::Object;

use super::Change;

/// Always: each index names exactly the objects that have the indexed value now.
pub(super) struct Indexer {
    objects: BTreeMap<String, Arc<Object>>,
    by_owner: HashMap<String, BTreeSet<String>>,
    /// What has no controller, by namespace.
    orphans: HashMap<String, BTreeSet<String>>,
    /// Only for pods.
    by_node: Option<HashMap<String, BTreeSet<String>>>,
}

impl Indexer {
    pub(super) fn new(by_node: bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            by_owner: HashMap::new(),
            orphans: HashMap::new(),
            by_node: by_node.then(HashMap::new),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    pub(super) fn list(&self) -> Vec<Arc<Object>> {
        self.objects.values().cloned().collect()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> Vec<Arc<Object>> {
        let prefix = format!("{namespace}/");
        self.objects
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    pub(super) fn owned_by(&self, uid: &str) -> Vec<Arc<Object>> {
        self.look_up(self.by_owner.get(uid))
    }

    pub(super) fn orphans_in(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.look_up(self.orphans.get(namespace))
    }

    pub(super) fn on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.look_up(self.by_node.as_ref().and_then(|by_node| by_node.get(node)))
    }

    fn look_up(&self, keys: Option<&BTreeSet<String>>) -> Vec<Arc<Object>> {
        keys.into_iter().flatten().filter_map(|key| self.get(key)).collect()
    }

    /// Puts an object in; the change it makes, or none when this version is known already.
    pub(super) fn put(&mut self, object: Arc<Object>) -> Option<Change> {
        let key = object.meta().key();
        let old = self.objects.insert(key.clone(), Arc::clone(&object));
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        self.index(&key, &object);
        match old {
            None => Some(Change::Added(object)),
            Some(old) if is_same_version(&old, &object) => None,
            Some(old) => Some(Change::Updated { old, new: object }),
        }
    }

    /// Takes an object out; `object` is its last state.
    pub(super) fn take(&mut self, object: Arc<Object>) -> Option<Change> {
        let key = object.meta().key();
        let old = self.objects.remove(&key)?;
        self.unindex(&key, &old);
        Some(Change::Deleted(object))
    }

    /// Makes the copy equal to a list. An object that was deleted and made anew in
    /// between is told as both.
    pub(super) fn replace(&mut self, items: Vec<Arc<Object>>) -> Vec<Change> {
        let listed: HashMap<String, &Arc<Object>> = items.iter().map(|item| (item.meta().key(), item)).collect();
        let gone: Vec<Arc<Object>> = self
            .objects
            .iter()
            .filter(|(key, old)| listed.get(*key).is_none_or(|new| new.meta().uid != old.meta().uid))
            .map(|(_, old)| Arc::clone(old))
            .collect();
        let mut changes: Vec<Change> = gone.into_iter().filter_map(|old| self.take(old)).collect();
        changes.extend(items.into_iter().filter_map(|item| self.put(item)));
        changes
    }

    fn index(&mut self, key: &str, object: &Object) {
        for owner in &object.meta().owner_references {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.to_owned());
        }
        if object.meta().controller().is_none() {
            self.orphans.entry(object.meta().namespace.clone()).or_default().insert(key.to_owned());
        }
        if let Some(by_node) = &mut self.by_node
            && let Some(node) = node_of(object)
        {
            by_node.entry(node).or_default().insert(key.to_owned());
        }
    }

    fn unindex(&mut self, key: &str, object: &Object) {
        for owner in &object.meta().owner_references {
            remove(&mut self.by_owner, &owner.uid, key);
        }
        remove(&mut self.orphans, &object.meta().namespace, key);
        if let Some(by_node) = &mut self.by_node
            && let Some(node) = node_of(object)
        {
            remove(by_node, &node, key);
        }
    }
}

fn is_same_version(old: &Arc<Object>, new: &Arc<Object>) -> bool {
    Arc::ptr_eq(old, new) || (old.revision() == new.revision() && old.meta().uid == new.meta().uid)
}

fn node_of(object: &Object) -> Option<String> {
    object.typed::<Pod>().ok()?.spec.as_ref()?.node_name.clone()
}

fn remove(index: &mut HashMap<String, BTreeSet<String>>, value: &str, key: &str) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, revision: u64, node: Option<&str>) -> Arc<Object> {
        let value = json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"namespace": "a", "name": name, "uid": uid,
                         "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "rs"}]},
            "spec": {"containers": [], "nodeName": node}});
        Arc::new(Object::from_value(&value, revision).unwrap())
    }

    fn names(objects: &[Arc<Object>]) -> Vec<&str> {
        objects.iter().map(|object| object.meta().name.as_str()).collect()
    }

    #[test]
    fn indexes_follow_the_objects() {
        let mut index = Indexer::new(true);
        assert!(matches!(index.put(pod("x", "1", 1, None)), Some(Change::Added(_))));
        assert!(index.on_node("n1").is_empty());
        assert!(matches!(index.put(pod("x", "1", 2, Some("n1"))), Some(Change::Updated { .. })));
        assert!(index.put(pod("x", "1", 2, Some("n1"))).is_none());
        index.put(pod("y", "2", 3, Some("n2")));
        assert_eq!(names(&index.on_node("n1")), ["x"]);
        assert_eq!(names(&index.owned_by("rs")), ["x", "y"]);
        assert_eq!(names(&index.in_namespace("a")), ["x", "y"]);
        assert!(index.in_namespace("").is_empty());
        index.take(pod("x", "1", 4, Some("n1")));
        assert!(index.on_node("n1").is_empty());
        assert_eq!(names(&index.owned_by("rs")), ["y"]);
    }

    #[test]
    fn a_list_is_told_as_the_changes_it_reveals() {
        let mut index = Indexer::new(true);
        for object in [
            pod("kept", "1", 1, None),
            pod("changed", "2", 2, None),
            pod("gone", "3", 3, None),
            pod("anew", "4", 4, None),
        ] {
            index.put(object);
        }
        let list = vec![
            pod("kept", "1", 1, None),
            pod("changed", "2", 9, None),
            pod("anew", "5", 8, None),
            pod("added", "6", 7, None),
        ];
        let mut told: Vec<String> = index
            .replace(list)
            .iter()
            .map(|change| {
                let verb = match change {
                    Change::Added(_) => "added",
                    Change::Updated { .. } => "updated",
                    Change::Deleted(_) => "deleted",
                };
                format!("{verb} {} {}", change.object().meta().name, change.object().meta().uid)
            })
            .collect();
        told.sort();
        assert_eq!(told, ["added added 6", "added anew 5", "deleted anew 4", "deleted gone 3", "updated changed 2"]);
        assert_eq!(index.len(), 4);
    }
}
