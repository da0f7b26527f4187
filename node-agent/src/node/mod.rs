//! This node in the API: registration, heartbeats, status.

pub mod machine;
pub mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{Client, Patch, WriteOptions};
use quorate_runtime::resources;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cri::{Cri, describe};
use status::{Identity, Image, RuntimeState};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_millis(500);
/// Between looks at the machine and the runtime: while the node is not ready, and after.
const LOOK_UNREADY: Duration = Duration::from_millis(250);
const LOOK_READY: Duration = Duration::from_secs(5);
/// After a renewal that failed: the next connection may lead to another master.
const RENEW_AGAIN: Duration = Duration::from_millis(100);

/// The agent's side of one Node object.
pub struct Node {
    pub client: Arc<dyn Client>,
    pub cri: Cri,
    pub identity: Identity,
    pub data_dir: PathBuf,
    pub lease_interval: Duration,
    pub lease_duration: Duration,
    pub status_interval: Duration,
    /// The lease had run out and is renewed again: controllers may have called the node silent.
    pub lapsed: Notify,
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: "kubelet".to_owned(), fence: None }
}

fn stored_status(node: &Object) -> Option<core::NodeStatus> {
    node.typed::<core::Node>().ok()?.status.clone()
}

impl Node {
    /// Creates the Node, or brings an existing one up to date; tries until the API agrees.
    pub async fn register(&self) -> Arc<Object> {
        let mut said = false;
        loop {
            match self.try_register().await {
                Ok(node) => return node,
                Err(status) => {
                    if !said {
                        tracing::warn!(node = self.identity.name, error = %status, "the node is not registered yet; trying on");
                        said = true;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_register(&self) -> Result<Arc<Object>, Status> {
        let nodes = resources::nodes();
        let machine = machine::look(&self.data_dir);
        match self.client.get(&nodes, None, &self.identity.name).await {
            Ok(existing) => {
                let mut change = json!({"metadata": {"labels": status::labels(&self.identity, &machine)}});
                let has_range = existing.value()["spec"]["podCIDR"].as_str().is_some_and(|range| !range.is_empty());
                if let (false, Some(range)) = (has_range, &self.identity.pod_cidr) {
                    change["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
                }
                self.client.patch(&nodes, None, &self.identity.name, None, Patch::Merge(change), options()).await
            }
            Err(status) if status.is_not_found() => {
                let node = status::node(&self.identity, &machine);
                self.client.create(&nodes, None, None, node, options()).await
            }
            Err(status) => Err(status),
        }
    }

    /// The range of this node's pods, once the API has assigned it.
    pub async fn pod_cidr(&self, mut node: Arc<Object>) -> IpNet {
        let mut said = false;
        loop {
            if let Some(range) = node.value()["spec"]["podCIDR"].as_str().and_then(|range| range.parse().ok()) {
                return range;
            }
            if !said {
                tracing::info!(node = self.identity.name, "waiting for a range of pod addresses");
                said = true;
            }
            tokio::time::sleep(RETRY).await;
            if let Ok(newer) = self.client.get(&resources::nodes(), None, &self.identity.name).await {
                node = newer;
            }
        }
    }

    /// Renews the node's lease until cancelled. An attempt that takes longer than the interval
    /// is given up, and its connection with it: where it leads, nobody may be left to answer.
    pub async fn beat(&self, node_uid: String, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(self.lease_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        let mut renewed_at = Instant::now();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let renewed = tokio::select! {
                () = cancel.cancelled() => return,
                renewed = tokio::time::timeout(self.lease_interval, self.renew_lease(&node_uid)) => {
                    renewed.unwrap_or_else(|_| Err(Status::failure(504, "Timeout", "no answer in time")))
                }
            };
            match renewed {
                Ok(()) => {
                    if failing {
                        tracing::info!(node = self.identity.name, "the node's lease is renewed again");
                        failing = false;
                    }
                    if renewed_at.elapsed() >= self.lease_duration {
                        self.lapsed.notify_one();
                    }
                    renewed_at = Instant::now();
                }
                Err(status) => {
                    if !failing {
                        tracing::warn!(node = self.identity.name, error = %status, "the node's lease is not renewed");
                        failing = true;
                    }
                    ticks.reset_after(RENEW_AGAIN);
                }
            }
        }
    }

    async fn renew_lease(&self, node_uid: &str) -> Result<(), Status> {
        let leases = resources::leases();
        let name = self.identity.name.as_str();
        // MicroTime: exactly six digits.
        let spec = json!({
            "holderIdentity": name,
            "leaseDurationSeconds": self.lease_duration.as_secs(),
            "renewTime": format!("{:.6}", Timestamp::now()),
        });
        let change = Patch::Merge(json!({"spec": spec}));
        match self.client.patch(&leases, Some(LEASE_NAMESPACE), name, None, change, options()).await {
            Ok(_) => Ok(()),
            Err(status) if status.is_not_found() => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {
                        "name": name,
                        "namespace": LEASE_NAMESPACE,
                        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}],
                    },
                    "spec": spec,
                });
                self.client.create(&leases, Some(LEASE_NAMESPACE), None, lease, options()).await.map(drop)
            }
            Err(status) => Err(status),
        }
    }

    /// Reports the node's status when it changes, when the API says otherwise, and now and
    /// then, until cancelled.
    pub async fn report(&self, cancel: CancellationToken) {
        let work = async {
            let mut reported: Option<(Value, Instant)> = None;
            let mut old: Option<core::NodeStatus> = None;
            loop {
                let machine = machine::look(&self.data_dir);
                let runtime = self.runtime().await;
                if reported.is_some() {
                    match self.client.get(&resources::nodes(), None, &self.identity.name).await {
                        Ok(node) => old = stored_status(&node),
                        Err(status) if status.is_not_found() => reported = None,
                        // The next look asks again.
                        Err(_) => {}
                    }
                }
                let status = status::status(&self.identity, &machine, &runtime, old.as_ref(), Timestamp::now());
                let essence = status::without_heartbeat(&status);
                let is_contradicted = old.as_ref().is_some_and(|old| status::contradicts(old, &status));
                let due = is_contradicted
                    || reported
                        .as_ref()
                        .is_none_or(|(last, at)| *last != essence || at.elapsed() >= self.status_interval);
                if due {
                    match self.write(status).await {
                        Ok(node) => {
                            old = stored_status(&node);
                            reported = Some((essence, Instant::now()));
                        }
                        Err(status) if status.is_not_found() => {
                            tracing::warn!(node = self.identity.name, "the Node object is gone; registering again");
                            self.register().await;
                            continue;
                        }
                        Err(status) => {
                            tracing::warn!(node = self.identity.name, error = %status, "the node's status was not written")
                        }
                    }
                }
                let settled = runtime.problems.is_empty() && reported.is_some();
                let pause = if settled { LOOK_READY } else { LOOK_UNREADY };
                let _ = tokio::time::timeout(pause, self.lapsed.notified()).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = work => {}
        }
    }

    async fn write(&self, status: Value) -> Result<Arc<Object>, Status> {
        let change = Patch::Merge(json!({"status": status}));
        self.client.patch(&resources::nodes(), None, &self.identity.name, Some("status"), change, options()).await
    }

    async fn runtime(&self) -> RuntimeState {
        let answers = tokio::try_join!(self.cri.version(), self.cri.status(false), self.cri.images());
        let (version, status, images) = match answers {
            Ok(answers) => answers,
            Err(status) => {
                tracing::debug!(error = describe(&status), "the runtime does not answer");
                return RuntimeState {
                    problems: vec!["container runtime is down".to_owned()],
                    ..RuntimeState::default()
                };
            }
        };
        let conditions = status.status.unwrap_or_default().conditions;
        let problem = |kind: &str| {
            let condition = conditions.iter().find(|condition| condition.r#type == kind)?;
            (!condition.status)
                .then(|| format!("{kind}=false reason:{} message:{}", condition.reason, condition.message))
        };
        let mut problems = Vec::new();
        problems.extend(problem("RuntimeReady").map(|text| format!("container runtime not ready: {text}")));
        problems.extend(problem("NetworkReady").map(|text| format!("container runtime network not ready: {text}")));
        let mut images: Vec<Image> = images
            .into_iter()
            .map(|image| Image {
                names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
                size_bytes: image.size,
            })
            .collect();
        // The largest first, as upstream: the scheduler cares for those.
        images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
        RuntimeState { version: format!("{}://{}", version.runtime_name, version.runtime_version), problems, images }
    }
}
