//! The agent of a node changes its own node and its own pods only, and cannot make
//! itself more attractive than its administrator did.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use quorate_runtime::client::Client;
use quorate_runtime::resources;
use serde_json::Value;

use super::{Admission, Attributes, Operation};

/// Labels under this are the administrator's.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io/";

/// The plugin `NodeRestriction`.
pub(super) struct NodeRestriction {
    client: Arc<dyn Client>,
}

impl NodeRestriction {
    pub(super) fn new(client: &Arc<dyn Client>) -> Self {
        Self { client: Arc::clone(client) }
    }

    async fn is_bound(&self, attributes: Attributes<'_>, node: &str) -> Result<bool, Status> {
        let pod = self.client.get(&resources::pods(), Some(attributes.namespace), attributes.name).await?;
        Ok(pod.value()["spec"]["nodeName"] == node)
    }
}

impl Admission for NodeRestriction {
    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let Some(node) = attributes.user.node() else { return Ok(()) };
            let Attributes { group, resource, subresource, operation, .. } = attributes;
            let refusal = match (group, resource, subresource) {
                ("", "nodes", _) => check_node(attributes, node, object, old),
                ("", "pods", "") if operation == Operation::Create => Err(check_new_pod(node, object)),
                ("", "pods", "") if operation == Operation::Delete => Err(check_bound(old, node)),
                ("", "pods", "status") => Err(check_bound(old, node)),
                ("", "pods", "eviction") if !self.is_bound(attributes, node).await? => {
                    Err(Some(format!("node {node:?} can only evict pods with spec.nodeName set to itself")))
                }
                ("coordination.k8s.io", "leases", "") => Err(check_name(attributes, node, "lease")),
                _ => Ok(()),
            };
            match refusal {
                Ok(()) | Err(None) => Ok(()),
                Err(Some(why)) => Err(Status::forbidden(group, resource, attributes.name, &why)),
            }
        })
    }
}

fn check_node(
    attributes: Attributes<'_>,
    node: &str,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Option<String>> {
    let name = object.and_then(|object| object["metadata"]["name"].as_str()).unwrap_or(attributes.name);
    if name != node {
        return Err(Some(format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let (Some(object), Operation::Create | Operation::Update) = (object, attributes.operation) else { return Ok(()) };
    let null = Value::Null;
    let old = old.unwrap_or(&null);
    if attributes.operation == Operation::Update && object["spec"]["taints"] != old["spec"]["taints"] {
        return Err(Some(format!("node {node:?} is not allowed to modify taints")));
    }
    let (labels, before) = (&object["metadata"]["labels"], &old["metadata"]["labels"]);
    let names = [labels, before].into_iter().filter_map(Value::as_object).flatten().map(|(name, _)| name);
    let mut changed: Vec<&String> =
        names.filter(|name| name.starts_with(RESTRICTED_PREFIX) && labels.get(name) != before.get(name)).collect();
    changed.sort_unstable();
    changed.dedup();
    match changed.first() {
        Some(name) => Err(Some(format!("is not allowed to modify labels: {name}"))),
        None => Ok(()),
    }
}

fn check_new_pod(node: &str, pod: Option<&Value>) -> Option<String> {
    let pod = pod?;
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_none() {
        return Some(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    (pod["spec"]["nodeName"] != node)
        .then(|| format!("node {node:?} can only create pods with spec.nodeName set to itself"))
}

fn check_bound(pod: Option<&Value>, node: &str) -> Option<String> {
    (pod?["spec"]["nodeName"] != node)
        .then(|| format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
}

fn check_name(attributes: Attributes<'_>, node: &str, what: &str) -> Option<String> {
    (!attributes.name.is_empty() && attributes.name != node)
        .then(|| format!("can only access node {what} with the same name as the requesting node"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authn::User;

    fn update(user: &User) -> Attributes<'_> {
        Attributes {
            user,
            operation: Operation::Update,
            group: "",
            version: "v1",
            resource: "nodes",
            subresource: "",
            kind: "Node",
            namespace: "",
            name: "n1",
            dry_run: false,
        }
    }

    #[test]
    fn a_node_keeps_to_itself() {
        let user = User::default();
        let node = json!({"metadata": {"name": "n1", "labels": {"a": "b"}}});
        assert!(check_node(update(&user), "n1", Some(&node), Some(&node)).is_ok());
        assert!(check_node(update(&user), "n2", Some(&node), Some(&node)).is_err());
        let mut tainted = node.clone();
        tainted["spec"]["taints"] = json!([{"key": "x"}]);
        assert!(check_node(update(&user), "n1", Some(&node), Some(&tainted)).is_err());
        let mut labelled = node.clone();
        labelled["metadata"]["labels"]["node-restriction.kubernetes.io/zone"] = json!("z");
        assert!(check_node(update(&user), "n1", Some(&labelled), Some(&node)).is_err());
        assert!(check_node(update(&user), "n1", Some(&node), Some(&labelled)).is_err(), "nor remove one");
    }

    #[test]
    fn a_node_creates_mirror_pods_only() {
        let mirror =
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "h"}}, "spec": {"nodeName": "n1"}});
        assert_eq!(check_new_pod("n1", Some(&mirror)), None);
        assert!(check_new_pod("n2", Some(&mirror)).is_some());
        assert!(check_new_pod("n1", Some(&json!({"spec": {"nodeName": "n1"}}))).is_some());
    }
}
