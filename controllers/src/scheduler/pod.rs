//! A pod as the scheduler sees it: what it asks for, parsed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as WireSelector;
use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use serde_json::json;

use super::resources::{ResourceList, Resources, bounded};
use super::terms::{Labels, NodeSelectorTerm, Toleration};

/// What scores count for a container that does not say: 0.1 CPU and 200 MiB, as
/// upstream, so that pods without requests spread as well.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// The name under which pods ask for this scheduler.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// `namespace/name`: the key of cache and queue.
pub type PodKey = Arc<str>;

/// One pod. Immutable, shared between the queue, the cache and its node.
#[derive(Debug)]
pub struct PodInfo {
    pub key: PodKey,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub revision: u64,
    pub labels: Labels,
    /// Empty while it is not bound.
    pub node_name: String,
    pub priority: i32,
    pub may_preempt: bool,
    pub requests: Resources,
    /// CPU and memory as scores count them.
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    pub node_selector: Labels,
    /// Alternatives, one of which must match; `None` demands nothing.
    pub required_nodes: Option<Vec<NodeSelectorTerm>>,
    pub preferred_nodes: Vec<(i64, NodeSelectorTerm)>,
    pub tolerations: Vec<Toleration>,
    /// Normalised: with a tag.
    pub images: Vec<String>,
    /// The uid of the controller that made it.
    pub owner: Option<String>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    /// Positive weights attract, negative ones repel.
    pub preferred_pods: Vec<(i64, PodTerm)>,
    pub spread: Vec<SpreadConstraint>,
    pub is_gated: bool,
    pub is_terminating: bool,
    /// Succeeded or failed: it holds nothing of its node any more.
    pub is_finished: bool,
    pub is_ours: bool,
    /// What it needs and this scheduler cannot give, in words for its user.
    pub unsupported: Option<&'static str>,
    /// The `PodScheduled` condition's message while it is false, so that the same is not written twice.
    pub reported: Option<String>,
    pub nominated_node: String,
}

/// A port of the node that a container takes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    const ANY: &'static str = "0.0.0.0";

    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == Self::ANY || other.ip == Self::ANY)
    }
}

/// Other pods, seen through the labels of the nodes they run on.
#[derive(Debug)]
pub struct PodTerm {
    pub topology_key: String,
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
}

impl PodTerm {
    /// `namespaces` holds the labels of every namespace.
    pub fn matches(&self, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
        let in_namespace = || {
            self.namespaces.contains(&pod.namespace)
                || self.namespace_selector.as_ref().is_some_and(|selector| {
                    selector.is_empty() || namespaces.get(&pod.namespace).is_some_and(|labels| selector.matches(labels))
                })
        };
        self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels)) && in_namespace()
    }

    fn from_api(term: &api::PodAffinityTerm, namespace: &str, labels: &Labels) -> Result<Self, String> {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        let selector = selector_with_keys(
            term.label_selector.as_ref(),
            term.match_label_keys.as_deref(),
            term.mismatch_label_keys.as_deref(),
            labels,
        )?;
        let namespace_selector = selector_with_keys(term.namespace_selector.as_ref(), None, None, labels)?;
        Ok(Self { topology_key: term.topology_key.clone(), selector, namespaces, namespace_selector })
    }
}

/// How evenly pods are to lie over the values of a node label.
#[derive(Debug)]
pub struct SpreadConstraint {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: usize,
    pub is_hard: bool,
    pub selector: Option<LabelSelector>,
    pub honors_affinity: bool,
    pub honors_taints: bool,
}

impl SpreadConstraint {
    fn from_api(constraint: &api::TopologySpreadConstraint, labels: &Labels) -> Result<Self, String> {
        Ok(Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
            is_hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            selector: selector_with_keys(
                constraint.label_selector.as_ref(),
                constraint.match_label_keys.as_deref(),
                None,
                labels,
            )?,
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        })
    }

    pub fn counts(&self, pod: &PodInfo) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }
}

/// `None`, which matches nothing, when there is no selector.
fn selector_with_keys(
    selector: Option<&WireSelector>,
    match_keys: Option<&[String]>,
    mismatch_keys: Option<&[String]>,
    labels: &Labels,
) -> Result<Option<LabelSelector>, String> {
    let Some(selector) = selector else { return Ok(None) };
    let mut expressions: Vec<_> = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|one| json!({"key": one.key, "operator": one.operator, "values": one.values.clone().unwrap_or_default()}))
        .collect();
    for (keys, operator) in [(match_keys, "In"), (mismatch_keys, "NotIn")] {
        for key in keys.unwrap_or_default() {
            if let Some(value) = labels.get(key) {
                expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    let object =
        json!({"matchLabels": selector.match_labels.clone().unwrap_or_default(), "matchExpressions": expressions});
    LabelSelector::from_object(&object).map(Some).map_err(|error| error.to_string())
}

/// Why an object cannot be scheduled at all.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("the pod does not parse")]
    Parse(#[from] serde_json::Error),
    #[error("a selector of the pod does not parse: {0}")]
    Selector(String),
}

impl PodInfo {
    /// Reads what the scheduler needs to know.
    ///
    /// # Errors
    /// When the object is no pod, or holds a selector that the API server would refuse.
    pub fn from_object(object: &Object) -> Result<Self, PodError> {
        let pod = object.typed::<api::Pod>()?;
        let meta = object.meta();
        let empty_spec = api::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty_spec);
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let affinity = spec.affinity.as_ref();
        let node_affinity = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
        let pod_affinity = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let pod_anti_affinity = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let term = |term: &api::PodAffinityTerm| {
            PodTerm::from_api(term, &meta.namespace, &meta.labels).map_err(PodError::Selector)
        };
        let weighted = |sign: i64, terms: Option<&Vec<api::WeightedPodAffinityTerm>>| {
            let terms = terms.into_iter().flatten();
            terms
                .map(|one| Ok((sign * i64::from(one.weight), term(&one.pod_affinity_term)?)))
                .collect::<Result<Vec<_>, PodError>>()
        };
        let required = |terms: Option<&Vec<api::PodAffinityTerm>>| {
            terms.into_iter().flatten().map(term).collect::<Result<Vec<_>, PodError>>()
        };
        let mut preferred_pods = weighted(
            1,
            pod_affinity.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref()),
        )?;
        preferred_pods.extend(weighted(
            -1,
            pod_anti_affinity.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref()),
        )?);
        let (scored_milli_cpu, scored_memory) = scored_requests(spec);
        Ok(Self {
            key: meta.key().into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            revision: object.revision(),
            labels: meta.labels.clone(),
            node_name: spec.node_name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or_default(),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            requests: pod_requests(spec).bounded(),
            scored_milli_cpu,
            scored_memory,
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_nodes: node_affinity
                .and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|selector| selector.node_selector_terms.iter().map(NodeSelectorTerm::from_api).collect()),
            preferred_nodes: node_affinity
                .and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref())
                .into_iter()
                .flatten()
                .map(|one| (i64::from(one.weight), NodeSelectorTerm::from_api(&one.preference)))
                .collect(),
            tolerations: spec.tolerations.iter().flatten().filter_map(Toleration::from_api).collect(),
            images: spec.containers.iter().filter_map(|one| one.image.as_deref()).map(normalized_image).collect(),
            owner: meta.controller().map(|owner| owner.uid.clone()),
            affinity: required(
                pod_affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()),
            )?,
            anti_affinity: required(
                pod_anti_affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()),
            )?,
            preferred_pods,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|one| SpreadConstraint::from_api(one, &meta.labels).map_err(PodError::Selector))
                .collect::<Result<_, _>>()?,
            is_gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            is_terminating: meta.is_terminating(),
            is_finished: matches!(phase, "Succeeded" | "Failed"),
            is_ours: spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == SCHEDULER_NAME),
            unsupported: unsupported(spec),
            reported: status
                .and_then(|status| status.conditions.as_ref())
                .and_then(|conditions| {
                    conditions.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")
                })
                .map(|condition| condition.message.clone().unwrap_or_default()),
            nominated_node: status.and_then(|status| status.nominated_node_name.clone()).unwrap_or_default(),
        })
    }

    pub fn is_bound(&self) -> bool {
        !self.node_name.is_empty()
    }
}

fn unsupported(spec: &api::PodSpec) -> Option<&'static str> {
    let volumes = || spec.volumes.iter().flatten();
    if volumes().any(|volume| volume.persistent_volume_claim.is_some()) {
        return Some("persistent volume claims");
    }
    if volumes().any(|volume| volume.ephemeral.is_some()) {
        return Some("generic ephemeral volumes");
    }
    spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()).then_some("dynamic resource claims")
}

fn host_ports(spec: &api::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|one| is_sidecar(one));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| HostPort::ANY.to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}

fn is_sidecar(container: &api::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn container_requests(container: &api::Container) -> Option<&ResourceList> {
    container.resources.as_ref()?.requests.as_ref()
}

/// What a node must have free: all containers together, or the hungriest moment of the
/// initialisation if that is more, with sidecars counted from their start.
fn pod_requests(spec: &api::PodSpec) -> Resources {
    let of = |container: &api::Container| container_requests(container).map(Resources::from_list).unwrap_or_default();
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut moment = of(container);
        if is_sidecar(container) {
            total.add(&moment);
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        peak.raise_to(&moment);
    }
    total.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        total.override_with(list);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(overhead));
    }
    total
}

/// CPU and memory for scores: containers that do not say count as the default.
fn scored_requests(spec: &api::PodSpec) -> (i64, i64) {
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()).map(Resources::from_list);
    let mut cpu: i64 = 0;
    let mut memory: i64 = 0;
    let sidecars = spec.init_containers.iter().flatten().filter(|one| is_sidecar(one));
    for container in spec.containers.iter().chain(sidecars) {
        let list = container_requests(container);
        let has = |name| list.is_some_and(|list| list.contains_key(name));
        let amounts = list.map(Resources::from_list).unwrap_or_default();
        cpu = cpu.saturating_add(if has("cpu") { amounts.milli_cpu } else { DEFAULT_MILLI_CPU });
        memory = memory.saturating_add(if has("memory") { amounts.memory } else { DEFAULT_MEMORY });
    }
    if let Some(pod_level) = pod_level {
        if pod_level.milli_cpu > 0 {
            cpu = pod_level.milli_cpu;
        }
        if pod_level.memory > 0 {
            memory = pod_level.memory;
        }
    }
    if let Some(overhead) = spec.overhead.as_ref().map(Resources::from_list) {
        cpu = cpu.saturating_add(overhead.milli_cpu);
        memory = memory.saturating_add(overhead.memory);
    }
    (bounded(cpu), bounded(memory))
}

/// Nodes report images with a tag; a reference without one means `latest`.
pub fn normalized_image(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
pub(crate) fn pod(spec: serde_json::Value) -> PodInfo {
    pod_named("default", "p", spec)
}

#[cfg(test)]
pub(crate) fn pod_named(namespace: &str, name: &str, mut spec: serde_json::Value) -> PodInfo {
    let mut metadata = json!({"name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}")});
    for field in ["labels", "ownerReferences"] {
        if let Some(value) = spec.as_object_mut().and_then(|spec| spec.remove(field)) {
            metadata[field] = value;
        }
    }
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "web"}]);
    }
    let object = Object::from_value(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}), 1);
    PodInfo::from_object(&object.expect("an object")).expect("a pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn requests(spec: serde_json::Value, milli_cpu: i64, memory: i64) {
        let pod = pod(spec);
        assert_eq!((pod.requests.milli_cpu, pod.requests.memory), (milli_cpu, memory));
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn requests_cover_the_hungriest_moment() {
        let sidecar = || {
            let mut sidecar = container("100m", "10");
            sidecar["restartPolicy"] = json!("Always");
            sidecar
        };
        requests(json!({"containers": [container("1", "5"), container("500m", "7")]}), 1500, 12);
        requests(json!({"containers": [container("1", "5")], "initContainers": [container("2", "1")]}), 2000, 5);
        requests(
            json!({"containers": [container("1", "5")], "initContainers": [sidecar(), container("2", "1")]}),
            2100,
            15,
        );
        requests(
            json!({"containers": [container("1", "5")], "initContainers": [container("2", "1"), sidecar()]}),
            2000,
            15,
        );
        requests(json!({"containers": [container("1", "5")], "overhead": {"cpu": "10m"}}), 1010, 5);
        requests(json!({"containers": [container("1", "5")], "resources": {"requests": {"cpu": "3"}}}), 3000, 5);
    }

    #[test]
    fn containers_that_do_not_say_count_in_scores() {
        let pod = pod(json!({"containers": [{"name": "a"}, container("1", "5")]}));
        assert_eq!((pod.scored_milli_cpu, pod.scored_memory), (1100, (200 << 20) + 5));
        assert_eq!(pod.requests.milli_cpu, 1000);
    }

    #[test]
    fn images_have_a_tag() {
        assert_eq!(normalized_image("web"), "web:latest");
        assert_eq!(normalized_image("example.com:5000/web"), "example.com:5000/web:latest");
        assert_eq!(normalized_image("a/web:1"), "a/web:1");
        assert_eq!(normalized_image("a/web@sha256:00"), "a/web@sha256:00");
    }

    #[test]
    fn what_cannot_be_given_is_named() {
        let claim = pod(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
        assert_eq!(claim.unsupported, Some("persistent volume claims"));
        assert_eq!(pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]})).unsupported, None);
        assert!(pod(json!({"schedulingGates": [{"name": "g"}]})).is_gated);
        assert!(!pod(json!({"schedulerName": "mine"})).is_ours);
    }
}
