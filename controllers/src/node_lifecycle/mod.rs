//! Nodes that fall silent, and what that means for their pods.
//!
//! Always: no node is called silent before this reign has watched it for its whole grace
//! period; nothing is evicted while more than a third of the nodes are missing.

mod eviction;
mod plan;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Patch, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::{Change, Lister};
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;
use tokio::time::Instant;

use crate::objects::typed;
use crate::time::now;
use crate::{Config, pods};
use watch::{Brake, Watch};

const WORKERS: usize = 4;
/// Where kubelets keep their Leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A silent node is looked at again: the brake may have come off.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often this master began to hold evictions back. A gauge would stay up on a master
/// that has lost its office.
const BRAKES: &str = "node_lifecycle_eviction_brakes_total";

/// The signs of life, shared between the two controllers.
#[derive(Clone)]
struct Shared(Arc<Mutex<Watch>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn register(manager: &mut Manager, config: &Config) {
    metrics::counter!(BRAKES).increment(0);
    let nodes = manager.informers().informer(&resources::nodes());
    let leases = manager.informers().informer(&resources::leases());
    let pods = manager.informers().informer(&resources::pods());
    let watch = Shared(Arc::new(Mutex::new(Watch::new(Instant::now()))));
    let queue = WorkQueue::new("node_lifecycle_controller");

    let (adds, signs) = (queue.clone(), watch.clone());
    nodes.on_change(move |change| {
        let name = &change.object().meta().name;
        if change.is_deletion() {
            signs.lock().forget(name);
        } else {
            signs.lock().status_seen(name, &heartbeat(change.object()), Instant::now());
        }
        adds.add(name.clone());
    });
    let (adds, signs) = (queue.clone(), watch.clone());
    leases.on_change(move |change| {
        if let Some(name) = lease_seen(&signs, change) {
            adds.add(name);
        }
    });
    let reconciler = NodeLifecycle { nodes: nodes.lister(), pods: pods.lister(), watch: watch.clone() };
    let informers = vec![nodes, leases, pods];
    manager.add(Controller::new("node-controller", queue, WORKERS, Arc::new(reconciler), informers));
    eviction::register(manager, config, watch);
}

/// When the node last wrote its status, in its own words.
fn heartbeat(node: &Object) -> String {
    let Ok(node) = node.typed::<Node>() else { return String::new() };
    // What a controller wrote is no sign of life: it leaves this time alone.
    let time = plan::condition(&node, "Ready").and_then(|condition| condition.last_heartbeat_time.as_ref());
    time.map(|time| time.0.to_string()).unwrap_or_default()
}

/// Takes note of a Lease; names the node if it is to be looked at.
fn lease_seen(watch: &Shared, change: &Change) -> Option<String> {
    let object = change.object();
    if object.meta().namespace != LEASE_NAMESPACE || change.is_deletion() {
        return None;
    }
    let lease = object.typed::<Lease>().ok()?;
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let name = object.meta().name.clone();
    watch.lock().lease_seen(&name, &renewed, seconds, Instant::now()).then_some(name)
}

struct NodeLifecycle {
    nodes: Lister,
    pods: Lister,
    watch: Shared,
}

impl Reconciler for NodeLifecycle {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            let Some(object) = self.nodes.get(key) else {
                // Its Lease may have been seen before or after it.
                self.watch.lock().forget(key);
                return Ok(Requeue::Never);
            };
            let (silent_in, brake) = {
                let (mut watch, now) = (self.watch.lock(), Instant::now());
                watch.status_seen(key, &heartbeat(&object), now);
                (watch.silent_in(key, now), watch.brake(now))
            };
            self.report_brake(reign, &object, brake);
            let object = match silent_in {
                Some(_) => object,
                None => mark_silent(reign, object).await?,
            };
            let node = typed::<Node>(&object)?;
            if let Some(taints) = plan::taints(&node, brake.is_on, now()) {
                write_taints(reign, &object, &taints).await?;
            }
            if plan::ready(&node) != "True" {
                self.mark_pods_unready(reign, key).await?;
            }
            // A moment later than computed, so that it is over then.
            Ok(Requeue::After(silent_in.map_or(LOOK_AGAIN, |left| left + Duration::from_millis(10))))
        })
    }

    fn keys(&self) -> Vec<String> {
        self.nodes.keys()
    }

    fn begin(&self) {
        self.watch.lock().begin(Instant::now());
    }
}

impl NodeLifecycle {
    fn report_brake(&self, reign: &Reign, node: &Object, brake: Brake) {
        if !brake.changed {
            return;
        }
        let Brake { silent, nodes, .. } = brake;
        // What else is told of the node must not use up what may be told of this.
        let events = reign.events.component("eviction-brake");
        if brake.is_on {
            metrics::counter!(BRAKES).increment(1);
            tracing::error!(
                silent,
                nodes,
                "too many nodes fell silent at once: nothing is evicted until they are back"
            );
            let message =
                format!("{silent} of {nodes} nodes fell silent at once: no pod is evicted until fewer are missing");
            events.warning(node, "EvictionBrake", message);
        } else {
            tracing::info!(silent, nodes, "enough nodes are back: pods may be evicted again");
            events.normal(
                node,
                "EvictionBrakeReleased",
                format!("{silent} of {nodes} nodes are silent: pods may be evicted again"),
            );
        }
    }

    /// Services must stop sending to pods of which nobody knows whether they live.
    async fn mark_pods_unready(&self, reign: &Reign, node: &str) -> Result<()> {
        for object in self.pods.on_node(node) {
            let pod = typed::<Pod>(&object)?;
            if !pods::is_ready(&pod) {
                continue;
            }
            let meta = object.meta();
            let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": object.revision().to_string()},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now().to_string()}]}});
            let patched = reign
                .client
                .patch(
                    &resources::pods(),
                    Some(&meta.namespace),
                    &meta.name,
                    Some("status"),
                    Patch::Strategic(patch),
                    options(),
                )
                .await;
            match patched {
                Ok(_) => reign.events.warning(&object, "NodeNotReady", "Node is not ready"),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: "kube-controller-manager".to_owned(), fence: None }
}

/// Writes that nobody knows of the node any more; the node as it is then.
async fn mark_silent(reign: &Reign, object: Arc<Object>) -> Result<Arc<Object>> {
    let node = typed::<Node>(&object)?;
    let conditions = plan::silent_conditions(&node, now());
    if conditions.is_empty() {
        return Ok(object);
    }
    let name = &object.meta().name;
    // On top of what was judged: a status that the node writes meanwhile is a conflict.
    let patch =
        json!({"metadata": {"resourceVersion": object.revision().to_string()}, "status": {"conditions": conditions}});
    let marked =
        reign.client.patch(&resources::nodes(), None, name, Some("status"), Patch::Strategic(patch), options()).await?;
    if plan::ready(&node) == "True" {
        tracing::warn!(node = name, "a node fell silent");
        reign.events.normal(&object, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
    }
    Ok(marked)
}

async fn write_taints(reign: &Reign, object: &Object, taints: &[k8s_openapi::api::core::v1::Taint]) -> Result<()> {
    let patch = json!({"metadata": {"resourceVersion": object.revision().to_string()}, "spec": {"taints": taints}});
    reign.client.patch(&resources::nodes(), None, &object.meta().name, None, Patch::Merge(patch), options()).await?;
    Ok(())
}
