//! What the scheduler writes: bindings, and why a pod has no node.

use jiff::Timestamp;
use quorate_proto::status::Status;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Patch, WriteOptions};
use quorate_runtime::events::{EventType, Reference};
use quorate_runtime::resources;
use serde_json::json;

use super::cycle::Outcome;
use super::pod::{PodInfo, SCHEDULER_NAME};

fn options() -> WriteOptions {
    WriteOptions { field_manager: "kube-scheduler".to_owned(), fence: None }
}

fn reference(pod: &PodInfo) -> Reference {
    Reference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        resource_version: pod.revision.to_string(),
        field_path: String::new(),
    }
}

/// Binds the pod to the node. A dropped future may still have bound it.
pub(super) async fn bind(reign: &Reign, pod: &PodInfo, node: &str) -> Outcome {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let subresource = Some((pod.name.as_str(), "binding"));
    let bound = reign.client.create(&resources::pods(), Some(&pod.namespace), subresource, binding, options()).await;
    match bound {
        Ok(_) => {
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            reign.events.record(reference(pod), EventType::Normal, "Scheduled", message);
            Outcome::Bound
        }
        Err(error) if error.is_not_found() => Outcome::Gone,
        Err(error) => {
            report_refusal(reign, pod, node, &error);
            Outcome::Failed
        }
    }
}

fn report_refusal(reign: &Reign, pod: &PodInfo, node: &str, error: &Status) {
    tracing::warn!(pod = %pod.key, node, %error, "a binding failed; trying again");
    // A conflict means that the pod has changed: the next attempt sees how.
    if !error.is_conflict() {
        let message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {}", error.message);
        reign.events.record(reference(pod), EventType::Warning, "FailedScheduling", message);
    }
}

/// Tells the pod's owner why it has no node: an event, and a condition unless it says so already.
pub(super) async fn explain(reign: &Reign, pod: &PodInfo, message: &str) {
    reign.events.record(reference(pod), EventType::Warning, "FailedScheduling", message);
    if pod.reported.as_deref() == Some(message) {
        return;
    }
    let mut condition =
        json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    if pod.reported.is_none() {
        condition["lastTransitionTime"] = json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
    let patched = reign
        .client
        .patch(&resources::pods(), Some(&pod.namespace), &pod.name, Some("status"), Patch::Strategic(patch), options())
        .await;
    if let Err(error) = patched
        && !error.is_not_found()
        && !error.is_conflict()
    {
        tracing::warn!(pod = %pod.key, %error, scheduler = SCHEDULER_NAME, "the condition of a pod without a node was not written");
    }
}
