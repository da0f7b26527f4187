//! What the agent of a node may do: read what its pods need, write what it reports.
//!
//! Source: "Using Node Authorization". One agent here also serves the node's service
//! proxy, network and DNS, hence the reads of services, endpoints and nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_proto::object::Object;
use serde_json::Value;

use super::Attributes;
use crate::mirror::Mirror;

/// Where node leases live.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What a pod bound to a node lets the node's agent read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNeeds {
    pub node: String,
    pub service_account: String,
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
    pub claims: BTreeSet<String>,
    namespace: String,
}

/// The pods of the cluster under `namespace/name`, by what they need.
pub type NodeView = Mirror<PodNeeds>;

/// Reads what a pod refers to.
pub fn needs(object: &Arc<Object>) -> Option<PodNeeds> {
    let value = object.value();
    let spec = &value["spec"];
    let node = spec["nodeName"].as_str().filter(|node| !node.is_empty())?;
    let mut needs = PodNeeds {
        node: node.to_owned(),
        service_account: spec["serviceAccountName"].as_str().unwrap_or("").to_owned(),
        namespace: object.meta().namespace.clone(),
        ..PodNeeds::default()
    };
    let mut add = |set: fn(&mut PodNeeds) -> &mut BTreeSet<String>, name: &Value| {
        if let Some(name) = name.as_str() {
            set(&mut needs).insert(name.to_owned());
        }
    };
    let secrets: fn(&mut PodNeeds) -> &mut BTreeSet<String> = |needs| &mut needs.secrets;
    let config_maps: fn(&mut PodNeeds) -> &mut BTreeSet<String> = |needs| &mut needs.config_maps;
    for pull in items(&spec["imagePullSecrets"]) {
        add(secrets, &pull["name"]);
    }
    for volume in items(&spec["volumes"]) {
        add(config_maps, &volume["configMap"]["name"]);
        add(secrets, &volume["secret"]["secretName"]);
        add(|needs| &mut needs.claims, &volume["persistentVolumeClaim"]["claimName"]);
        if let (Some(ephemeral), Some(volume)) = (volume.get("ephemeral"), volume["name"].as_str())
            && ephemeral.is_object()
        {
            add(|needs| &mut needs.claims, &Value::String(format!("{}-{volume}", object.meta().name)));
        }
        for source in items(&volume["projected"]["sources"]) {
            add(config_maps, &source["configMap"]["name"]);
            add(secrets, &source["secret"]["name"]);
        }
    }
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(&spec[containers]) {
            for source in items(&container["envFrom"]) {
                add(config_maps, &source["configMapRef"]["name"]);
                add(secrets, &source["secretRef"]["name"]);
            }
            for variable in items(&container["env"]) {
                add(config_maps, &variable["valueFrom"]["configMapKeyRef"]["name"]);
                add(secrets, &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
    }
    Some(needs)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether the agent of `node` may do this.
pub fn allows(node: &str, attributes: &Attributes, pods: &NodeView) -> bool {
    if !attributes.is_resource_request {
        return false;
    }
    let Attributes { resource, subresource, namespace, name, .. } = attributes;
    let verb = attributes.verb.as_str();
    let reads = matches!(verb, "get" | "list" | "watch");
    let changes = matches!(verb, "update" | "patch");
    let needed = |wants: &dyn Fn(&PodNeeds) -> bool| {
        !name.is_empty() && pods.all().iter().any(|pod| pod.node == node && pod.namespace == *namespace && wants(pod))
    };
    match (attributes.api_group.as_str(), resource.as_str(), subresource.as_str()) {
        ("", "nodes", "") => reads || verb == "create" || ((changes || verb == "delete") && name == node),
        ("", "nodes", "status") => changes && name == node,
        ("", "pods", "") if matches!(verb, "list" | "watch") => {
            attributes.node_selector == node || is_own_pod(node, attributes, pods)
        }
        ("", "pods", "") => {
            verb == "create" || (matches!(verb, "get" | "delete") && is_own_pod(node, attributes, pods))
        }
        ("", "pods", "status") => (reads || changes) && is_own_pod(node, attributes, pods),
        ("", "pods", "eviction") => verb == "create" && is_own_pod(node, attributes, pods),
        ("", "secrets", "") => reads && needed(&|pod| pod.secrets.contains(name)),
        ("", "configmaps", "") => reads && needed(&|pod| pod.config_maps.contains(name)),
        ("", "persistentvolumeclaims", "") => verb == "get" && needed(&|pod| pod.claims.contains(name)),
        ("", "persistentvolumes", "") => verb == "get",
        ("", "serviceaccounts", "token") => verb == "create" && needed(&|pod| pod.service_account == *name),
        ("", "serviceaccounts", "") => verb == "get" && needed(&|pod| pod.service_account == *name),
        ("", "services" | "endpoints", "") => reads,
        ("discovery.k8s.io", "endpointslices", "") => reads,
        ("networking.k8s.io", "networkpolicies" | "servicecidrs", "") => reads,
        ("" | "events.k8s.io", "events", "") => verb == "create" || changes,
        ("coordination.k8s.io", "leases", "") => {
            namespace == LEASE_NAMESPACE
                && (verb == "create" || ((changes || matches!(verb, "get" | "delete")) && name == node))
        }
        ("storage.k8s.io", "csinodes", "") => {
            verb == "create" || ((changes || matches!(verb, "get" | "delete")) && name == node)
        }
        ("storage.k8s.io", "csidrivers", "") | ("node.k8s.io", "runtimeclasses", "") => reads,
        ("storage.k8s.io", "volumeattachments", "") => verb == "get",
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            matches!(verb, "create" | "get" | "list" | "watch")
        }
        ("authentication.k8s.io", "tokenreviews", "") => verb == "create",
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => verb == "create",
        _ => false,
    }
}

fn is_own_pod(node: &str, attributes: &Attributes, pods: &NodeView) -> bool {
    pods.get(&format!("{}/{}", attributes.namespace, attributes.name)).is_some_and(|pod| pod.node == node)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::attributes;
    use super::*;
    use crate::authn::User;

    fn pod() -> Arc<Object> {
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "a"},
            "spec": {
                "nodeName": "n1", "serviceAccountName": "default",
                "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "c", "configMap": {"name": "conf"}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "proj"}}]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "e", "ephemeral": {}},
                ],
                "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "from"}}]}],
            },
        });
        Arc::new(Object::from_value(&pod, 1).unwrap())
    }

    #[test]
    fn a_pods_needs_are_found() {
        let needs = needs(&pod()).unwrap();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(needs.secrets, set(&["pull", "proj", "env"]));
        assert_eq!(needs.config_maps, set(&["conf", "kube-root-ca.crt", "from"]));
        assert_eq!(needs.claims, set(&["data", "web-e"]));
    }

    #[test]
    fn a_node_reaches_its_own_things_only() {
        let view = NodeView::new();
        view.apply(&quorate_runtime::informer::Change::Added(pod()), &needs);
        let check = |node: &str, verb: &str, what: &str, namespace: &str, name: &str, expected: bool| {
            // The core group is empty: "/pods" would read as a path.
            let mut attributes = attributes(User::default(), verb, what, namespace, name);
            if attributes.api_group == "core" {
                attributes.api_group.clear();
            }
            assert_eq!(allows(node, &attributes, &view), expected, "{node} {verb} {what} {namespace}/{name}");
        };
        check("n1", "get", "core/pods", "a", "web", true);
        check("n2", "get", "core/pods", "a", "web", false);
        check("n1", "patch", "core/pods/status", "a", "web", true);
        check("n2", "patch", "core/pods/status", "a", "web", false);
        check("n1", "list", "core/pods", "", "", false);
        check("n1", "get", "core/secrets", "a", "env", true);
        check("n1", "get", "core/secrets", "b", "env", false);
        check("n1", "get", "core/secrets", "a", "other", false);
        check("n1", "list", "core/secrets", "a", "", false);
        check("n1", "get", "core/configmaps", "a", "conf", true);
        check("n2", "get", "core/configmaps", "a", "conf", false);
        check("n1", "create", "core/serviceaccounts/token", "a", "default", true);
        check("n1", "create", "core/serviceaccounts/token", "a", "admin", false);
        check("n1", "patch", "core/nodes/status", "", "n1", true);
        check("n1", "patch", "core/nodes/status", "", "n2", false);
        check("n1", "update", "coordination.k8s.io/leases", "kube-node-lease", "n1", true);
        check("n1", "update", "coordination.k8s.io/leases", "default", "n1", false);
        check("n1", "delete", "apps/deployments", "a", "web", false);
    }
}
