//! Questions about a pod's specification that several decisions ask.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;

use super::seen::{Seen, State};

/// The parts that a container can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// Starts with the init containers and stays.
    Sidecar,
    Regular,
}

const DEFAULT_GRACE_SECONDS: i64 = 30;

pub fn regular(pod: &core::Pod) -> impl Iterator<Item = &core::Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers)
}

pub fn init(pod: &core::Pod) -> impl Iterator<Item = (&core::Container, Kind)> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        (container, if sidecar { Kind::Sidecar } else { Kind::Init })
    })
}

pub fn all(pod: &core::Pod) -> impl Iterator<Item = (&core::Container, Kind)> {
    init(pod).chain(regular(pod).map(|container| (container, Kind::Regular)))
}

pub fn find<'a>(pod: &'a core::Pod, name: &str) -> Option<(&'a core::Container, Kind)> {
    all(pod).find(|(container, _)| container.name == name)
}

pub fn name(pod: &core::Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &core::Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `web-1_default(uid)`: how messages name a pod.
pub fn full_name(pod: &core::Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn restart_policy(pod: &core::Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

pub fn host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The grace of an orderly stop.
pub fn grace(pod: &core::Pod) -> Duration {
    seconds(pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS))
}

/// The grace of a deletion, when one was asked for.
pub fn deletion_grace(pod: &core::Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some(pod.metadata.deletion_grace_period_seconds.map_or_else(|| grace(pod), seconds))
}

fn phase(pod: &core::Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether the API says that the pod has ended; it never runs again.
pub fn is_terminal(pod: &core::Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The status of a container as the API has it.
pub fn recorded<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a core::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|container| container.name == name)
}

/// With which code a container ended, says the API.
pub fn recorded_exit(pod: &core::Pod, name: &str) -> Option<i32> {
    Some(recorded(pod, name)?.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// The number of the next attempt: how often the container was restarted then.
pub fn next_attempt(pod: &core::Pod, seen: &Seen, name: &str) -> u32 {
    let seen_next = seen.latest(name).map_or(0, |container| container.attempt + 1);
    let recorded_next = recorded(pod, name).map_or(0, |status| {
        let ran = status.container_id.as_ref().is_some_and(|id| !id.is_empty());
        u32::try_from(status.restart_count).unwrap_or(0) + u32::from(ran)
    });
    if seen.latest(name).is_some() { seen_next } else { recorded_next }
}

/// Whether a regular container was made in the current sandbox: init containers are over.
pub fn has_begun(pod: &core::Pod, seen: &Seen) -> bool {
    let Some(sandbox) = seen.current_sandbox() else { return false };
    regular(pod).any(|container| seen.attempts(&container.name).any(|attempt| attempt.sandbox_id == sandbox.id))
}

/// Whether regular containers may start.
pub fn is_initialized(pod: &core::Pod, seen: &Seen, starting: &BTreeSet<String>) -> bool {
    let Some(sandbox) = seen.current_sandbox() else { return false };
    has_begun(pod, seen)
        || init(pod).all(|(container, kind)| {
            seen.latest(&container.name).filter(|latest| latest.sandbox_id == sandbox.id).is_some_and(|latest| {
                match kind {
                    Kind::Sidecar => latest.is_alive() && !starting.contains(&latest.id),
                    _ => latest.state == State::Exited && latest.exit_code == 0,
                }
            })
        })
}

/// What the pod asks for that this agent cannot give: better refused than ignored.
pub fn unsupported(pod: &core::Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let asks_host_port = |container: &core::Container| {
        container.ports.iter().flatten().any(|port| port.host_port.is_some_and(|number| number > 0))
    };
    if spec.host_users == Some(false) {
        // containerd 1.6 ignores the wish, and would run the pod as the node's root.
        Some("hostUsers: false is not supported by the node agent yet")
    } else if spec.runtime_class_name.as_deref().is_some_and(|name| !name.is_empty()) {
        Some("runtimeClassName is not supported by the node agent yet")
    } else if spec.resource_claims.iter().flatten().next().is_some() {
        Some("resourceClaims are not supported by the node agent yet")
    } else if spec.host_network != Some(true) && all(pod).any(|(container, _)| asks_host_port(container)) {
        Some("hostPort is not supported by the node agent yet")
    } else if all(pod).any(|(container, _)| container.volume_devices.iter().flatten().next().is_some()) {
        Some("volumeDevices are not supported by the node agent yet")
    } else {
        None
    }
}

/// Changes when a running container must be replaced. Source: upstream hashes name and image.
pub fn hash(container: &core::Container) -> String {
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    // FNV-1a, because it must be the same after an upgrade of the agent.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:x}")
}

/// The class by which the pod is limited and evicted. Source: pods/quality-of-service.
pub fn qos_class(pod: &core::Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for (container, _) in all(pod) {
        let resources = container.resources.clone().unwrap_or_default();
        let (requests, limits) = (resources.requests.unwrap_or_default(), resources.limits.unwrap_or_default());
        let amount =
            |map: &std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
             key: &str| {
                map.get(key)
                    .and_then(|quantity| quantity.0.parse::<quorate_proto::quantity::Quantity>().ok())
                    .filter(|q| !q.is_zero())
            };
        for key in ["cpu", "memory"] {
            let (request, limit) = (amount(&requests, key), amount(&limits, key));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[track_caller]
    fn check_refused(spec: Value, word: Option<&str>) {
        let refused = unsupported(&pod(spec));
        assert_eq!(refused.and_then(|text| text.split([' ', ':']).next()), word, "{refused:?}");
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let ports = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
        check_refused(json!({"containers": [{"name": "c"}]}), None);
        check_refused(json!({"containers": [], "hostUsers": false}), Some("hostUsers"));
        check_refused(json!({"containers": [], "runtimeClassName": "kata"}), Some("runtimeClassName"));
        check_refused(json!({"containers": ports}), Some("hostPort"));
        check_refused(json!({"containers": ports, "hostNetwork": true}), None);
    }

    #[track_caller]
    fn check_class(resources: Value, expected: &str) {
        assert_eq!(qos_class(&pod(json!({"containers": [{"name": "c", "resources": resources}]}))), expected);
    }

    #[test]
    fn amounts_make_the_class() {
        check_class(json!({}), "BestEffort");
        check_class(json!({"requests": {"cpu": "0"}}), "BestEffort");
        check_class(json!({"requests": {"cpu": "1"}}), "Burstable");
        check_class(json!({"limits": {"cpu": "1"}}), "Burstable");
        check_class(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check_class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}), "Guaranteed");
        check_class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
    }
}
