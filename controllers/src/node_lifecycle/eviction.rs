//! Pods on nodes with a NoExecute taint, which they tolerate for a while or not at all.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint as WireTaint};
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{DeleteOptions, Patch, Result};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;
use tokio::time::Instant;

use super::plan::{self, NOT_READY, UNREACHABLE};
use super::{LOOK_AGAIN, Shared, options};
use crate::objects::{typed, unless_gone};
use crate::scheduler::terms::{Effect, Taint, Toleration};
use crate::time::now;
use crate::{Config, pods};

const WORKERS: usize = 4;
/// Later than computed, so that the time is over then.
const A_MOMENT: Duration = Duration::from_millis(10);

pub(super) fn register(manager: &mut Manager, _config: &Config, watch: Shared) {
    let nodes = manager.informers().informer(&resources::nodes());
    let pods = manager.informers().informer(&resources::pods());
    let queue = WorkQueue::new("taint_eviction_controller");
    let (adds, on_node) = (queue.clone(), pods.lister());
    nodes.on_change(move |change| {
        if change.is_deletion() || evicting(change.object()).is_empty() {
            return;
        }
        // Heartbeats change nothing: a pod's time is counted from the taint's.
        if change.old().is_some_and(|old| evicting(old) == evicting(change.object())) {
            return;
        }
        for pod in on_node.on_node(&change.object().meta().name) {
            adds.add(pod.meta().key());
        }
    });
    let (adds, by_name) = (queue.clone(), nodes.lister());
    pods.on_change(move |change| {
        let node = change.object().typed::<Pod>().ok().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let is_tainted = || node.and_then(|node| by_name.get(&node)).is_some_and(|node| !evicting(&node).is_empty());
        if !change.is_deletion() && is_tainted() {
            adds.add(change.key());
        }
    });
    let reconciler = Eviction { nodes: nodes.lister(), pods: pods.lister(), watch };
    manager.add(Controller::new("taint-eviction-controller", queue, WORKERS, Arc::new(reconciler), vec![nodes, pods]));
}

fn evicting(node: &Object) -> Vec<WireTaint> {
    let Ok(node) = node.typed::<Node>() else { return Vec::new() };
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// What is to become of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    /// Until then, if nothing changes.
    Until(Timestamp),
    Evict,
}

/// A taint that says not when it was added counts from the pod's last chance to be seen
/// under it: from `seen`.
fn judge(taints: &[WireTaint], tolerations: &[Toleration], seen: Timestamp, now: Timestamp) -> Verdict {
    let mut first: Option<Timestamp> = None;
    for wire in taints {
        let Some(taint) = Taint::from_api(wire).filter(|taint| taint.effect == Effect::NoExecute) else { continue };
        let mut tolerated = tolerations.iter().filter(|toleration| toleration.tolerates(&taint)).peekable();
        if tolerated.peek().is_none() {
            return Verdict::Evict;
        }
        if let Some(seconds) = tolerated.filter_map(|toleration| toleration.seconds).min() {
            let added = wire.time_added.as_ref().map_or(seen, |time| time.0);
            let end = added.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
            first = Some(first.map_or(end, |first| first.min(end)));
        }
    }
    match first {
        None => Verdict::Stay,
        Some(end) if end <= now => Verdict::Evict,
        Some(end) => Verdict::Until(end),
    }
}

struct Eviction {
    nodes: Lister,
    pods: Lister,
    watch: Shared,
}

impl Reconciler for Eviction {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            let Some(object) = self.pods.get(key) else { return Ok(Requeue::Never) };
            let pod = typed::<Pod>(&object)?;
            if !pods::is_active(&pod) {
                return Ok(Requeue::Never);
            }
            let Some(node) =
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).and_then(|name| self.nodes.get(name))
            else {
                return Ok(Requeue::Never);
            };
            let taints = evicting(&node);
            let wire = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
            let tolerations: Vec<Toleration> = wire.into_iter().flatten().filter_map(Toleration::from_api).collect();
            let seen = pods::condition(&pod, "PodScheduled")
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map_or_else(now, |time| time.0);
            // The precise time: by one that is cut, everybody would wait a second longer.
            let present = Timestamp::now();
            match judge(&taints, &tolerations, seen, present) {
                Verdict::Stay => Ok(Requeue::Never),
                Verdict::Until(end) => {
                    Ok(Requeue::After(Duration::try_from(end.duration_since(present)).unwrap_or_default() + A_MOMENT))
                }
                Verdict::Evict if self.must_wait(&node, &taints)? => Ok(Requeue::After(LOOK_AGAIN)),
                Verdict::Evict => {
                    evict(reign, &object).await?;
                    Ok(Requeue::Never)
                }
            }
        })
    }

    fn keys(&self) -> Vec<String> {
        let nodes = self.nodes.list();
        let tainted = nodes.iter().filter(|node| !evicting(node).is_empty());
        tainted.flat_map(|node| self.pods.on_node(&node.meta().name)).map(|pod| pod.meta().key()).collect()
    }
}

impl Eviction {
    /// Whether a taint of the node's failure stands there without this reign having seen
    /// the failure, or while too many nodes fail at once. A user's own taint waits for nothing.
    fn must_wait(&self, node: &Object, taints: &[WireTaint]) -> Result<bool> {
        let is_failure = |taint: &WireTaint| taint.key == NOT_READY || taint.key == UNREACHABLE;
        if !taints.iter().all(is_failure) {
            return Ok(false);
        }
        let view = typed::<Node>(node)?;
        let (watch, now) = (self.watch.lock(), Instant::now());
        let is_seen = plan::ready(&view) == "False" || watch.is_silent(&node.meta().name, now);
        Ok(!is_seen || watch.brake_is_on(now))
    }
}

async fn evict(reign: &Reign, pod: &Object) -> Result<()> {
    let meta = pod.meta();
    tracing::info!(pod = meta.key(), "a pod is evicted: its node's taint is not tolerated, or no longer");
    reign.events.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {}", meta.key()));
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now().to_string(),
    });
    let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}});
    let resource = resources::pods();
    let marked = reign
        .client
        .patch(&resource, Some(&meta.namespace), &meta.name, Some("status"), Patch::Strategic(patch), options())
        .await;
    unless_gone(marked.map(drop))?;
    let delete = DeleteOptions { write: options(), uid: Some(meta.uid.clone()), ..DeleteOptions::default() };
    unless_gone(reign.client.delete(&resource, Some(&meta.namespace), &meta.name, delete).await)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[track_caller]
    fn check(taints: Value, tolerations: Value, expected: Verdict) {
        let taints: Vec<WireTaint> = serde_json::from_value(taints).unwrap();
        let wire: Vec<k8s_openapi::api::core::v1::Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
        let parsed: Vec<Toleration> = wire.iter().filter_map(Toleration::from_api).collect();
        assert_eq!(judge(&taints, &parsed, at(50), at(100)), expected, "{taints:?} {tolerations}");
    }

    #[test]
    fn tolerated_for_a_while_forever_or_not_at_all() {
        let taint =
            |key: &str, added: i64| json!({"key": key, "effect": "NoExecute", "timeAdded": at(added).to_string()});
        let tolerates = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        check(json!([]), json!([]), Verdict::Stay);
        check(json!([taint("a", 90)]), json!([]), Verdict::Evict);
        check(json!([{"key": "a", "effect": "NoSchedule"}]), json!([]), Verdict::Stay);
        check(json!([taint("a", 90)]), json!([tolerates("a", Value::Null)]), Verdict::Stay);
        check(json!([taint("a", 90)]), json!([tolerates("a", json!(300))]), Verdict::Until(at(390)));
        check(json!([taint("a", 90)]), json!([tolerates("a", json!(10))]), Verdict::Evict);
        check(json!([taint("a", 90)]), json!([tolerates("a", json!(-5))]), Verdict::Evict);
        check(
            json!([taint("a", 90)]),
            json!([tolerates("a", json!(300)), tolerates("a", json!(20))]),
            Verdict::Until(at(110)),
        );
        check(json!([taint("a", 90), taint("b", 95)]), json!([tolerates("a", json!(300))]), Verdict::Evict);
        let both = json!([tolerates("a", json!(300)), tolerates("b", json!(60))]);
        check(json!([taint("a", 90), taint("b", 95)]), both, Verdict::Until(at(155)));
        check(
            json!([{"key": "a", "effect": "NoExecute"}]),
            json!([tolerates("a", json!(60))]),
            Verdict::Until(at(110)),
        );
    }
}
