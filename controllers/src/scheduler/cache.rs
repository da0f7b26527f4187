//! What the scheduler knows of the cluster: nodes, the pods on them, and the pods that it
//! has just sent to one and not seen there yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::framework::{Cluster, Wake};
use super::node::{NodeFacts, NodeInfo};
use super::pod::{PodInfo, PodKey};
use super::terms::Labels;

/// Always: every pod stands on exactly the node that `pods` names, or waits for it in `strays`.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    image_nodes: HashMap<String, usize>,
    pods: HashMap<PodKey, Placed>,
    /// Pods whose node is not known, by its name: it may appear after them.
    strays: HashMap<String, Vec<Arc<PodInfo>>>,
    namespaces: BTreeMap<String, Labels>,
}

#[derive(Debug)]
struct Placed {
    node: String,
    uid: String,
    revision: u64,
    /// Decided here, not yet seen in the API.
    assumed: bool,
}

impl Cache {
    pub fn cluster(&self) -> Cluster<'_> {
        Cluster { nodes: &self.nodes, image_nodes: &self.image_nodes, namespaces: &self.namespaces }
    }

    /// Adds a node, or replaces what the API says of it. Returns what that may mean for waiting pods.
    pub fn put_node(&mut self, facts: NodeFacts) -> Wake {
        let name = facts.name.clone();
        match self.by_name.get(&name).copied() {
            Some(index) => {
                let wake = self.nodes[index].facts.changes(&facts);
                if self.nodes[index].facts.images != facts.images {
                    let old = std::mem::take(&mut self.nodes[index].facts.images);
                    self.count_images(&old, false);
                    self.count_images(&facts.images, true);
                }
                self.nodes[index].facts = facts;
                wake
            }
            None => {
                self.count_images(&facts.images, true);
                let mut node = NodeInfo::new(facts);
                for pod in self.strays.remove(&name).into_iter().flatten() {
                    node.add_pod(pod);
                }
                self.by_name.insert(name, self.nodes.len());
                self.nodes.push(node);
                Wake::NODE_ADDED
            }
        }
    }

    /// Forgets a node; its pods wait for its return or their own end.
    pub fn remove_node(&mut self, name: &str) -> Wake {
        let Some(index) = self.by_name.remove(name) else { return Wake::NOTHING };
        let mut node = self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get(index) {
            self.by_name.insert(moved.name().to_owned(), index);
        }
        self.count_images(&node.facts.images, false);
        let pods = node.take_pods();
        if !pods.is_empty() {
            self.strays.insert(name.to_owned(), pods);
        }
        Wake::NODE_GONE
    }

    fn count_images(&mut self, images: &BTreeMap<String, i64>, came: bool) {
        for image in images.keys() {
            if came {
                *self.image_nodes.entry(image.clone()).or_default() += 1;
            } else if let Some(count) = self.image_nodes.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
    }

    /// Takes in a bound pod that the API shows.
    pub fn put_pod(&mut self, pod: Arc<PodInfo>) -> Wake {
        let mut wake = Wake::NOTHING;
        if let Some(placed) = self.pods.get(&pod.key) {
            if placed.revision == pod.revision && placed.uid == pod.uid && !placed.assumed {
                return Wake::NOTHING;
            }
            // Another place or other amounts than before may leave room.
            let same_place = placed.node == pod.node_name && placed.uid == pod.uid;
            let before = self.take(&pod.key);
            if !same_place || before.is_some_and(|before| before.requests != pod.requests) {
                wake |= Wake::POD_GONE;
            }
            if !same_place {
                wake |= Wake::POD_BOUND;
            }
        } else {
            wake |= Wake::POD_BOUND;
        }
        let node = pod.node_name.clone();
        self.place(pod, node, false);
        wake
    }

    /// Counts a pod on a node before the API shows it there.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.take(&pod.key);
        self.place(pod, node.to_owned(), true);
    }

    /// Takes back an assumption that did not come true. What the API has shown stays.
    pub fn forget(&mut self, key: &str) -> Wake {
        if self.pods.get(key).is_some_and(|placed| placed.assumed) { self.remove_pod(key) } else { Wake::NOTHING }
    }

    /// Whether exactly this pod, not another of its name, is assumed somewhere.
    pub fn is_assumed(&self, key: &str, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|placed| placed.assumed && placed.uid == uid)
    }

    /// Takes back every assumption: what is true by now, the API shows.
    pub fn forget_all(&mut self) {
        let assumed: Vec<PodKey> =
            self.pods.iter().filter(|(_, placed)| placed.assumed).map(|(key, _)| Arc::clone(key)).collect();
        for key in assumed {
            self.remove_pod(&key);
        }
    }

    /// The pod is gone, finished, or not bound after all.
    pub fn remove_pod(&mut self, key: &str) -> Wake {
        if self.take(key).is_some() { Wake::POD_GONE } else { Wake::NOTHING }
    }

    pub fn put_namespace(&mut self, name: &str, labels: Labels) -> Wake {
        match self.namespaces.insert(name.to_owned(), labels.clone()) {
            Some(old) if old == labels => Wake::NOTHING,
            _ => Wake::NAMESPACE_LABELS,
        }
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: String, assumed: bool) {
        let placed = Placed { node: node.clone(), uid: pod.uid.clone(), revision: pod.revision, assumed };
        self.pods.insert(Arc::clone(&pod.key), placed);
        match self.by_name.get(&node) {
            Some(index) => self.nodes[*index].add_pod(pod),
            None => self.strays.entry(node).or_default().push(pod),
        }
    }

    fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(key)?;
        if let Some(index) = self.by_name.get(&placed.node) {
            return self.nodes[*index].remove_pod(key);
        }
        let strays = self.strays.get_mut(&placed.node)?;
        let position = strays.iter().position(|pod| &*pod.key == key)?;
        let pod = strays.swap_remove(position);
        if strays.is_empty() {
            self.strays.remove(&placed.node);
        }
        Some(pod)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::node::node;
    use crate::scheduler::pod::pod_named;

    fn placed(name: &str, node: &str, cpu: &str) -> Arc<PodInfo> {
        let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
        Arc::new(pod_named("default", name, json!({"nodeName": node, "containers": containers})))
    }

    fn used(cache: &Cache) -> Vec<(String, i64)> {
        let mut used: Vec<_> =
            cache.nodes.iter().map(|node| (node.name().to_owned(), node.requested.milli_cpu)).collect();
        used.sort();
        used
    }

    #[test]
    fn an_assumed_pod_counts_once() {
        let mut cache = Cache::default();
        cache.put_node(node("a", json!({})).facts);
        cache.assume(placed("p", "", "1"), "a");
        assert!(cache.is_assumed("default/p", "uid-default-p"));
        assert_eq!(used(&cache), [("a".to_owned(), 1000)]);
        cache.put_pod(placed("p", "a", "1"));
        assert!(!cache.is_assumed("default/p", "uid-default-p"));
        assert_eq!(used(&cache), [("a".to_owned(), 1000)]);
        assert_eq!(cache.forget("default/p"), Wake::NOTHING, "what the API shows stays");
        assert_eq!(cache.remove_pod("default/p"), Wake::POD_GONE);
        assert_eq!(used(&cache), [("a".to_owned(), 0)]);
    }

    #[test]
    fn a_wrong_assumption_is_taken_back() {
        let mut cache = Cache::default();
        cache.put_node(node("a", json!({})).facts);
        cache.put_node(node("b", json!({})).facts);
        cache.assume(placed("p", "", "1"), "a");
        cache.put_pod(placed("p", "b", "1"));
        assert_eq!(used(&cache), [("a".to_owned(), 0), ("b".to_owned(), 1000)]);
        cache.assume(placed("q", "", "2"), "a");
        assert_eq!(cache.forget("default/q"), Wake::POD_GONE);
        assert_eq!(used(&cache), [("a".to_owned(), 0), ("b".to_owned(), 1000)]);
    }

    #[test]
    fn pods_wait_for_their_node() {
        let mut cache = Cache::default();
        cache.put_pod(placed("p", "a", "1"));
        cache.put_node(node("b", json!({"images": [{"names": ["x"], "sizeBytes": 1}]})).facts);
        cache.put_node(node("a", json!({})).facts);
        assert_eq!(used(&cache), [("a".to_owned(), 1000), ("b".to_owned(), 0)]);
        cache.remove_node("b");
        cache.remove_node("a");
        assert!(cache.image_nodes.is_empty() && cache.nodes.is_empty());
        cache.put_node(node("a", json!({})).facts);
        assert_eq!(used(&cache), [("a".to_owned(), 1000)]);
        cache.remove_pod("default/p");
        cache.remove_node("a");
        assert!(cache.strays.is_empty());
    }
}
