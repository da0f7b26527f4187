//! A node as the scheduler sees it: what it offers, and what its pods already take.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use quorate_proto::object::Object;

use super::framework::Wake;
use super::pod::{HostPort, PodInfo, normalized_image};
use super::resources::Resources;
use super::terms::{Labels, Taint};

/// What the API says of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// Bytes by normalised name.
    pub images: BTreeMap<String, i64>,
}

impl NodeFacts {
    /// Reads a node.
    ///
    /// # Errors
    /// When the object is no node.
    pub fn from_object(object: &Object) -> Result<Self, serde_json::Error> {
        let node = object.typed::<api::Node>()?;
        let meta = object.meta();
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let mut images = BTreeMap::new();
        for image in status.and_then(|status| status.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(normalized_image(name), image.size_bytes.unwrap_or_default());
            }
        }
        Ok(Self {
            name: meta.name.clone(),
            labels: meta.labels.clone(),
            taints: spec
                .and_then(|spec| spec.taints.as_ref())
                .into_iter()
                .flatten()
                .filter_map(Taint::from_api)
                .collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            allocatable: status
                .and_then(|status| status.allocatable.as_ref())
                .map(Resources::from_list)
                .unwrap_or_default(),
            images,
        })
    }

    /// What became different, as far as it could let a pod fit that did not.
    pub fn changes(&self, newer: &Self) -> Wake {
        let mut wake = Wake::NOTHING;
        if self.labels != newer.labels {
            wake |= Wake::NODE_LABELS;
        }
        if self.taints != newer.taints || self.unschedulable != newer.unschedulable {
            wake |= Wake::NODE_TAINTS;
        }
        if self.allocatable != newer.allocatable {
            wake |= Wake::NODE_ALLOCATABLE;
        }
        wake
    }
}

/// A node and the sums over its pods.
///
/// Always: the sums are those of `pods`.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub facts: NodeFacts,
    pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    /// How many of its pods refuse company by a required rule.
    pub anti_affine_pods: usize,
    owners: HashMap<String, u32>,
}

impl NodeInfo {
    pub fn new(facts: NodeFacts) -> Self {
        Self { facts, ..Self::default() }
    }

    pub fn name(&self) -> &str {
        &self.facts.name
    }

    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    /// How many of its pods have that controller.
    pub fn pods_of(&self, owner: &str) -> u32 {
        self.owners.get(owner).copied().unwrap_or_default()
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scored_milli_cpu = self.scored_milli_cpu.saturating_add(pod.scored_milli_cpu);
        self.scored_memory = self.scored_memory.saturating_add(pod.scored_memory);
        self.host_ports.extend_from_slice(&pod.host_ports);
        self.anti_affine_pods += usize::from(!pod.anti_affinity.is_empty());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.pods.push(pod);
    }

    /// Takes the pod of that key away, and returns it if it was there.
    pub fn remove_pod(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let position = self.pods.iter().position(|pod| &*pod.key == key)?;
        let pod = self.pods.swap_remove(position);
        self.requested.subtract(&pod.requests);
        self.scored_milli_cpu = self.scored_milli_cpu.saturating_sub(pod.scored_milli_cpu);
        self.scored_memory = self.scored_memory.saturating_sub(pod.scored_memory);
        for port in &pod.host_ports {
            if let Some(position) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(position);
            }
        }
        self.anti_affine_pods -= usize::from(!pod.anti_affinity.is_empty());
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        Some(pod)
    }

    /// Leaves the node empty and returns its pods.
    pub fn take_pods(&mut self) -> Vec<Arc<PodInfo>> {
        let facts = std::mem::take(&mut self.facts);
        std::mem::replace(self, Self::new(facts)).pods
    }
}

#[cfg(test)]
pub(crate) fn node(name: &str, mut more: serde_json::Value) -> NodeInfo {
    let labels = more.as_object_mut().and_then(|more| more.remove("labels")).unwrap_or(serde_json::json!({}));
    let allocatable = more.as_object_mut().and_then(|more| more.remove("allocatable"));
    let images = more.as_object_mut().and_then(|more| more.remove("images"));
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": more,
        "status": {
            "allocatable": allocatable.unwrap_or(serde_json::json!({"cpu": "4", "memory": "8Gi", "pods": "110"})),
            "images": images.unwrap_or(serde_json::json!([])),
        },
    });
    let object = Object::from_value(&value, 1).expect("an object");
    NodeInfo::new(NodeFacts::from_object(&object).expect("a node"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::pod::pod_named;

    #[test]
    fn a_pod_that_asks_for_everything_takes_away_what_it_brought() {
        let huge = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "9E", "memory": "9E"}}}]});
        let mut info = node("n", json!({}));
        info.add_pod(Arc::new(pod_named("default", "small", json!({}))));
        let before = info.clone();
        for name in ["a", "b"] {
            info.add_pod(Arc::new(pod_named("default", name, huge.clone())));
        }
        for name in ["a", "b"] {
            info.remove_pod(&format!("default/{name}"));
        }
        assert_eq!(info.requested, before.requested);
        assert_eq!((info.scored_milli_cpu, info.scored_memory), (before.scored_milli_cpu, before.scored_memory));
    }

    #[test]
    fn sums_follow_the_pods() {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 1, "hostPort": 80}]}]);
        let mut info = node("n", json!({}));
        let empty = info.clone();
        for name in ["a", "b"] {
            let spec = json!({"containers": containers, "ownerReferences": owner});
            info.add_pod(Arc::new(pod_named("default", name, spec)));
        }
        assert_eq!((info.requested.milli_cpu, info.pods_of("u"), info.host_ports.len()), (2000, 2, 2));
        assert!(info.remove_pod("default/a").is_some());
        assert!(info.remove_pod("default/a").is_none());
        assert_eq!((info.requested.milli_cpu, info.pods_of("u"), info.host_ports.len()), (1000, 1, 1));
        info.remove_pod("default/b");
        assert_eq!(format!("{:?}", info.requested), format!("{:?}", empty.requested));
        assert_eq!((info.pods_of("u"), info.scored_memory, info.pods().len()), (0, 0, 0));
    }

    #[test]
    fn only_what_matters_counts_as_a_change() {
        let before = node("n", json!({})).facts;
        assert_eq!(before.changes(&before), Wake::NOTHING);
        assert_eq!(before.changes(&node("n", json!({"unschedulable": true})).facts), Wake::NODE_TAINTS);
        assert_eq!(before.changes(&node("n", json!({"labels": {"a": "b"}})).facts), Wake::NODE_LABELS);
        assert_eq!(before.changes(&node("n", json!({"allocatable": {"cpu": "5"}})).facts), Wake::NODE_ALLOCATABLE);
        assert_eq!(
            before.changes(&node("n", json!({"images": [{"names": ["a"], "sizeBytes": 5}]})).facts),
            Wake::NOTHING
        );
    }
}
