//! The garbage collector: what is owned goes with its owners, as the deletion asked.

mod graph;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use quorate_proto::gvk::split_api_version;
use quorate_proto::meta::OwnerReference;
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Client, DeleteOptions, Patch, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Change;
use quorate_runtime::manager::Manager;
use quorate_runtime::owner::namespace;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;

use crate::objects::unless_gone;
use crate::{ApiResource, Config, unique_resources};
use graph::{Action, FOREGROUND, Graph, Node, ORPHAN, OwnerState};

/// Upstream's `--concurrent-gc-syncs`.
const WORKERS: usize = 20;

pub(crate) fn register(manager: &mut Manager, config: &Config) {
    // Events have no dependents and are owned by nobody; there are many of them.
    let is_collected = |one: &&ApiResource| one.resource.resource != "events";
    let collected: Vec<ApiResource> = unique_resources(config).filter(is_collected).cloned().collect();
    let queue = WorkQueue::new("garbage_collector_attempt_to_delete");
    let collector = Arc::new(Collector { resources: collected, graph: Mutex::default(), queue: queue.clone() });
    let mut informers = Vec::new();
    for (index, one) in collector.resources.iter().enumerate() {
        let informer = manager.informers().informer(&one.resource);
        let handler = Arc::clone(&collector);
        informer.on_change(move |change| handler.observe(index, change));
        informers.push(informer);
    }
    manager.add(Controller::new("garbage-collector-controller", queue, WORKERS, collector, informers));
}

struct Collector {
    resources: Vec<ApiResource>,
    graph: Mutex<Graph>,
    /// Keys are uids.
    queue: WorkQueue<String>,
}

impl Reconciler for Collector {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            self.collect(reign.client.as_ref(), key).await?;
            Ok(Requeue::Never)
        })
    }

    fn keys(&self) -> Vec<String> {
        self.graph().suspects()
    }
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, resource: usize, change: &Change) {
        let meta = change.object().meta();
        let look = {
            let mut graph = self.graph();
            match change {
                Change::Deleted(_) => graph.forget(&meta.uid),
                _ => graph.observe(&meta.uid, Node::of(resource, meta)),
            }
        };
        for uid in look {
            self.queue.add(uid);
        }
    }

    async fn collect(&self, client: &dyn Client, uid: &str) -> Result<()> {
        let Some(node) = self.graph().node(uid).cloned() else { return Ok(()) };
        let absent = self.look_up_owners(client, &node).await?;
        let action = self.graph().decide(uid, |owner| absent.get(&owner.uid).copied().unwrap_or(OwnerState::Present));
        match action {
            Action::Nothing => Ok(()),
            Action::OrphanDependents(dependents) => self.orphan(client, uid, &node, dependents).await,
            Action::FinishForeground => self.remove_finalizer(client, uid, &node, FOREGROUND).await,
            Action::Await(blocking) => {
                for dependent in blocking {
                    self.queue.add(dependent);
                }
                Ok(())
            }
            Action::DropOwners(owners) => self.drop_owners(client, uid, &node, &owners).await,
            Action::Delete { policy } => self.delete(client, uid, &node, policy).await,
        }
    }

    /// Asks the server about the owners that the graph cannot tell of.
    async fn look_up_owners(&self, client: &dyn Client, node: &Node) -> Result<HashMap<String, OwnerState>> {
        let unknown: Vec<OwnerReference> = {
            let graph = self.graph();
            let is_unknown = |owner: &&OwnerReference| graph.owner_state(node, &owner.uid).is_none();
            node.owners.iter().filter(is_unknown).cloned().collect()
        };
        let mut states = HashMap::new();
        for owner in unknown {
            // An owner of a kind that is not served may be served again one day.
            let Some(one) = self.resource_of(&owner) else { continue };
            let namespace = one.is_namespaced.then_some(node.namespace.as_str());
            if namespace == Some("") {
                // A cluster-scoped object cannot be owned from within a namespace.
                continue;
            }
            let state = match client.get(&one.resource, namespace, &owner.name).await {
                Ok(live) if live.meta().uid == owner.uid => OwnerState::Present,
                Ok(_) => OwnerState::Absent,
                Err(error) if error.is_not_found() => OwnerState::Absent,
                Err(error) => return Err(error),
            };
            states.insert(owner.uid, state);
        }
        Ok(states)
    }

    fn resource_of(&self, owner: &OwnerReference) -> Option<&ApiResource> {
        let (group, _) = split_api_version(&owner.api_version);
        self.resources.iter().find(|one| one.resource.group == group && one.kind == owner.kind)
    }

    /// The object as the server has it now, or `None` when it is gone or another's name.
    async fn live(&self, client: &dyn Client, uid: &str, node: &Node) -> Result<Option<Arc<Object>>> {
        let namespace = (!node.namespace.is_empty()).then_some(node.namespace.as_str());
        match client.get(&self.resources[node.resource].resource, namespace, &node.name).await {
            Ok(live) if live.meta().uid == uid => Ok(Some(live)),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes exactly the version that was decided about: one whose owners changed
    /// meanwhile comes back with the change.
    async fn delete(&self, client: &dyn Client, uid: &str, node: &Node, policy: &str) -> Result<()> {
        let Some(live) = self.live(client, uid, node).await? else { return Ok(()) };
        if live.meta().owner_references != node.owners || live.meta().is_terminating() {
            return Ok(());
        }
        tracing::debug!(object = ?live, policy, "no owner is left; deleting");
        let options = DeleteOptions {
            propagation_policy: Some(policy.to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(live.revision().to_string()),
            ..DeleteOptions::default()
        };
        let resource = &self.resources[node.resource].resource;
        unless_gone(client.delete(resource, namespace(live.meta()), &live.meta().name, options).await)
    }

    async fn orphan(&self, client: &dyn Client, uid: &str, node: &Node, dependents: Vec<String>) -> Result<()> {
        for dependent in dependents {
            let Some(other) = self.graph().node(&dependent).cloned() else { continue };
            self.drop_owners(client, &dependent, &other, &[uid.to_owned()]).await?;
        }
        self.remove_finalizer(client, uid, node, ORPHAN).await
    }

    async fn drop_owners(&self, client: &dyn Client, uid: &str, node: &Node, owners: &[String]) -> Result<()> {
        let Some(live) = self.live(client, uid, node).await? else { return Ok(()) };
        let owned = &live.meta().owner_references;
        let kept: Vec<&OwnerReference> = owned.iter().filter(|owner| !owners.contains(&owner.uid)).collect();
        if kept.len() == owned.len() {
            return Ok(());
        }
        self.patch_metadata(client, node, &live, "ownerReferences", json!(kept)).await
    }

    async fn remove_finalizer(&self, client: &dyn Client, uid: &str, node: &Node, finalizer: &str) -> Result<()> {
        let Some(live) = self.live(client, uid, node).await? else { return Ok(()) };
        let finalizers = &live.meta().finalizers;
        let kept: Vec<&String> = finalizers.iter().filter(|one| *one != finalizer).collect();
        if kept.len() == finalizers.len() {
            return Ok(());
        }
        self.patch_metadata(client, node, &live, "finalizers", json!(kept)).await
    }

    /// Replaces one list of the version that was read: a merge patch works for every kind.
    async fn patch_metadata(
        &self,
        client: &dyn Client,
        node: &Node,
        live: &Object,
        field: &str,
        list: serde_json::Value,
    ) -> Result<()> {
        let meta = live.meta();
        let version = live.revision().to_string();
        let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": version, field: list}});
        let resource = &self.resources[node.resource].resource;
        let options = WriteOptions::default();
        let patched = client.patch(resource, namespace(meta), &meta.name, None, Patch::Merge(patch), options).await;
        unless_gone(patched.map(drop))
    }
}
