//! Objects that every cluster has: namespaces, roles, priority classes, the Service
//! `kubernetes`.
//!
//! Every master makes sure of them at its start; whoever comes first creates them.
//! What somebody has changed since stays as it is, but for rules that went missing.

mod kubernetes_service;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, TryStreamExt};
use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::client::{Client, Patch, Result, WriteOptions};
use quorate_runtime::resources;
use quorate_transport::backoff::Backoff;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use kubernetes_service::KubernetesService;

/// Retries while there is no quorum yet.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LIMIT: Duration = Duration::from_secs(1);

/// Writes under way together: the store commits them in one batch.
const AT_ONCE: usize = 16;

/// In managedFields, next to what clients write.
const FIELD_MANAGER: &str = "quorate-apiserver";

const NAMESPACES: [&str; 4] = ["kube-system", "default", "kube-public", "kube-node-lease"];

/// Which parts are done; the health checks of upstream's names read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub namespaces: bool,
    pub roles: bool,
    pub priority_classes: bool,
}

impl Progress {
    pub fn is_complete(self) -> bool {
        self.namespaces && self.roles && self.priority_classes
    }
}

/// Creates what is missing, however long it takes; ends when all is there or `cancel`.
pub async fn run(client: Arc<dyn Client>, progress: watch::Sender<Progress>, cancel: CancellationToken) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LIMIT);
    loop {
        let attempt = tokio::select! {
            attempt = ensure_all(&*client, &progress) => attempt,
            () = cancel.cancelled() => return,
        };
        match attempt {
            Ok(()) => return,
            Err(status) => tracing::info!(reason = %status, "the objects of every cluster cannot be made sure of yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn ensure_all(client: &dyn Client, progress: &watch::Sender<Progress>) -> Result<()> {
    for name in NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(client, &resources::namespaces(), None, namespace).await?;
    }
    progress.send_modify(|progress| progress.namespaces = true);
    for class in priority_classes() {
        ensure(client, &resources::priority_classes(), None, class).await?;
    }
    progress.send_modify(|progress| progress.priority_classes = true);
    let table = roles::Table::standard();
    let (roles, bindings) = (rbac("clusterroles"), rbac("clusterrolebindings"));
    stream::iter(table.roles().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |role| ensure_role(client, &roles, None, role))
        .await?;
    stream::iter(table.bindings().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |binding| ensure(client, &bindings, None, binding))
        .await?;
    progress.send_modify(|progress| progress.roles = true);
    Ok(())
}

fn rbac(resource: &str) -> GroupVersionResource {
    GroupVersionResource::new("rbac.authorization.k8s.io", "v1", resource)
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: FIELD_MANAGER.to_owned(), fence: None }
}

async fn ensure(
    client: &dyn Client,
    resource: &GroupVersionResource,
    namespace: Option<&str>,
    object: Value,
) -> Result<()> {
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    match client.get(resource, namespace, &name).await {
        Ok(_) => return Ok(()),
        Err(status) if status.is_not_found() => {}
        Err(status) => return Err(status),
    }
    match client.create(resource, namespace, None, object, options()).await {
        Ok(_) => Ok(()),
        Err(status) if status.is_already_exists() => Ok(()),
        Err(status) => Err(status),
    }
}

/// As [`ensure`], and adds the rules that a newer release brings.
async fn ensure_role(
    client: &dyn Client,
    resource: &GroupVersionResource,
    namespace: Option<&str>,
    role: Value,
) -> Result<()> {
    let name = role["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let found = match client.get(resource, namespace, &name).await {
        Ok(found) => found,
        Err(status) if status.is_not_found() => return ensure(client, resource, namespace, role).await,
        Err(status) => return Err(status),
    };
    let declined = found
        .meta()
        .annotations
        .get("rbac.authorization.kubernetes.io/autoupdate")
        .is_some_and(|value| value == "false");
    let held = found.value()["rules"].as_array().cloned().unwrap_or_default();
    let missing: Vec<&Value> =
        role["rules"].as_array().into_iter().flatten().filter(|rule| !held.contains(rule)).collect();
    if declined || missing.is_empty() {
        return Ok(());
    }
    let rules: Vec<&Value> = held.iter().chain(missing).collect();
    client.patch(resource, namespace, &name, None, Patch::Merge(json!({"rules": rules})), options()).await.map(drop)
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, what: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": what,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    // Upstream's values: above every class that users may make.
    [
        class("system-cluster-critical", 2_000_000_000, "For what the cluster needs, on whichever node it runs."),
        class("system-node-critical", 2_000_001_000, "For what its node needs; nothing is more important."),
    ]
}
