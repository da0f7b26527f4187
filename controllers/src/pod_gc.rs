//! Pods that nobody else will remove: on nodes that are gone, never scheduled and
//! deleted, or finished long ago.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Client, DeleteOptions, Patch, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;
use tokio::time::Instant;

use crate::objects::{typed, unless_gone};
use crate::{Config, pods};

/// As upstream's.
const SWEEP_INTERVAL: Duration = Duration::from_secs(20);
/// A node that comes back within that time keeps its pods. As upstream's.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Upstream's `--terminated-pod-gc-threshold`.
const MAX_FINISHED: usize = 12_500;
/// There is one key: the sweep looks at all pods.
const SWEEP: &str = "sweep";

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let pods = manager.informers().informer(&resources::pods());
    let nodes = manager.informers().informer(&resources::nodes());
    let queue = WorkQueue::new("orphaned_pods_nodes");
    let reconciler = PodGc { pods: pods.lister(), nodes: nodes.lister(), missing: Mutex::default() };
    manager.add(Controller::new("pod-garbage-collector", queue, 1, Arc::new(reconciler), vec![pods, nodes]));
}

struct PodGc {
    pods: Lister,
    nodes: Lister,
    missing: Mutex<Quarantine>,
}

impl Reconciler for PodGc {
    fn reconcile<'a>(&'a self, reign: &'a Reign, _key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            self.sweep(reign.client.as_ref()).await?;
            Ok(Requeue::After(SWEEP_INTERVAL))
        })
    }

    fn keys(&self) -> Vec<String> {
        vec![SWEEP.to_owned()]
    }

    fn begin(&self) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).since.clear();
    }
}

impl PodGc {
    async fn sweep(&self, client: &dyn Client) -> Result<()> {
        let mut sorted = Sorted::default();
        for object in self.pods.list() {
            let pod = typed::<Pod>(&object)?;
            sorted.add(object, &pod, |node| self.nodes.get(node).is_some());
        }
        for pod in &sorted.unscheduled {
            delete(client, pod).await?;
        }
        let lost = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.observe(sorted.on_missing_node.keys().cloned().collect(), Instant::now())
        };
        for node in lost {
            // The cache may have missed the node; the server has not.
            match client.get(&resources::nodes(), None, &node).await {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
                Ok(_) => continue,
            }
            for pod in sorted.on_missing_node.get(&node).into_iter().flatten() {
                mark_lost(client, pod).await?;
                delete(client, pod).await?;
            }
        }
        sorted.finished.sort_by(|a, b| a.meta().creation_timestamp.cmp(&b.meta().creation_timestamp));
        let too_many = sorted.finished.len().saturating_sub(MAX_FINISHED);
        for pod in &sorted.finished[..too_many] {
            delete(client, pod).await?;
        }
        Ok(())
    }
}

/// Nodes that pods name and that are not there, and since when.
#[derive(Default)]
struct Quarantine {
    since: HashMap<String, Instant>,
}

impl Quarantine {
    /// Notes which nodes are missing now; those that have been for long enough.
    fn observe(&mut self, missing: HashSet<String>, now: Instant) -> Vec<String> {
        self.since.retain(|node, _| missing.contains(node));
        let is_over = |node: &String| {
            let since = *self.since.entry(node.clone()).or_insert(now);
            now.duration_since(since) >= QUARANTINE
        };
        missing.into_iter().filter(is_over).collect()
    }
}

/// The pods that a sweep may remove, by the reason.
#[derive(Default)]
struct Sorted {
    unscheduled: Vec<Arc<Object>>,
    on_missing_node: HashMap<String, Vec<Arc<Object>>>,
    finished: Vec<Arc<Object>>,
}

impl Sorted {
    fn add(&mut self, object: Arc<Object>, pod: &Pod, exists: impl Fn(&str) -> bool) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if !node.is_empty() && !exists(node) {
            self.on_missing_node.entry(node.to_owned()).or_default().push(object);
        } else if node.is_empty() && pods::is_terminating(pod) {
            self.unscheduled.push(object);
        } else if pods::is_finished(pod) && !pods::is_terminating(pod) {
            self.finished.push(object);
        }
    }
}

/// Nobody will report how the pod ended, so we do.
async fn mark_lost(client: &dyn Client, pod: &Object) -> Result<()> {
    if pods::is_finished(typed::<Pod>(pod)?.as_ref()) {
        return Ok(());
    }
    let meta = pod.meta();
    let at = crate::time::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({
        "metadata": {"uid": meta.uid},
        "status": {
            "phase": "Failed",
            "conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": at,
            }],
        },
    });
    let options = WriteOptions::default();
    let patched = client
        .patch(&resources::pods(), Some(&meta.namespace), &meta.name, Some("status"), Patch::Strategic(patch), options)
        .await;
    unless_gone(patched.map(drop))
}

/// At once: there is no agent that would end the containers.
async fn delete(client: &dyn Client, pod: &Object) -> Result<()> {
    let meta = pod.meta();
    let options =
        DeleteOptions { grace_period_seconds: Some(0), uid: Some(meta.uid.clone()), ..DeleteOptions::default() };
    unless_gone(client.delete(&resources::pods(), Some(&meta.namespace), &meta.name, options).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_sorted_by_why_they_may_go() {
        let mut sorted = Sorted::default();
        let mut add = |name: &str, node: Option<&str>, phase: &str, deleted: bool| {
            let value = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z")},
                "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
            let object = Arc::new(Object::from_value(&value, 1).unwrap());
            let pod = typed::<Pod>(&object).unwrap();
            sorted.add(object, &pod, |node| node == "here");
        };
        add("kept", Some("here"), "Running", false);
        add("leaving", Some("here"), "Running", true);
        add("pending", None, "Pending", false);
        add("never-ran", None, "Pending", true);
        add("lost", Some("gone"), "Running", false);
        add("done", Some("here"), "Succeeded", false);
        let names = |pods: &[Arc<Object>]| pods.iter().map(|pod| pod.meta().name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&sorted.unscheduled), ["never-ran"]);
        assert_eq!(names(&sorted.on_missing_node["gone"]), ["lost"]);
        assert_eq!(names(&sorted.finished), ["done"]);
    }

    #[test]
    fn a_node_that_comes_back_in_time_keeps_its_pods() {
        let start = Instant::now();
        let mut quarantine = Quarantine::default();
        let mut observe = |missing: &[&str], seconds: u64| {
            let missing = missing.iter().map(|node| (*node).to_owned()).collect();
            quarantine.observe(missing, start + Duration::from_secs(seconds))
        };
        assert!(observe(&["gone"], 0).is_empty());
        assert!(observe(&[], 30).is_empty());
        assert!(observe(&["gone"], 60).is_empty(), "it was there in between");
        assert_eq!(observe(&["gone"], 100), ["gone"]);
    }
}
