//! What controllers ask about pods.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The condition of that type, if the pod has it.
pub(crate) fn condition<'a>(pod: &'a Pod, condition_type: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == condition_type)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts towards a controller's replicas.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// How long until the pod has been ready for `min_ready`: zero when it has, `None` when
/// it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(min_ready.saturating_sub(ready_for))
}

pub(crate) fn is_available(pod: &Pod, min_ready: Duration, now: Timestamp) -> bool {
    available_in(pod, min_ready, now).is_some_and(|wait| wait.is_zero())
}

/// A pod that could be deleted, and how many of its kind share its node.
#[derive(Clone)]
pub(crate) struct Ranked {
    pub(crate) pod: Arc<Pod>,
    pub(crate) related_on_node: usize,
}

/// Puts those first whose loss matters least, in upstream's order: unassigned, pending,
/// unready, cheap, crowded, recently ready, restarting, young.
pub(crate) fn sort_for_deletion(pods: &mut [Ranked], now: Timestamp) {
    pods.sort_by_cached_key(|ranked| {
        let pod = &ranked.pod;
        let is_assigned =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        let phase = match phase(pod) {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        };
        let ready_since = condition(pod, "Ready")
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.last_transition_time.as_ref());
        let created = pod.metadata.creation_timestamp.as_ref();
        // Ages are compared by their order of magnitude, so that scaling down does not
        // always hit the pods of the same rollout.
        (
            is_assigned,
            phase,
            is_ready(pod),
            deletion_cost(pod),
            Reverse(ranked.related_on_node),
            ready_since.map_or(0, |time| magnitude(time.0, now)),
            Reverse(max_restarts(pod)),
            created.map_or(0, |time| magnitude(time.0, now)),
            pod.metadata.uid.clone(),
        )
    });
}

/// Of the age in seconds, the logarithm to the base 2.
fn magnitude(time: Timestamp, now: Timestamp) -> u32 {
    let age = now.duration_since(time).as_secs();
    u64::try_from(age).unwrap_or(0).checked_ilog2().map_or(0, |log| log + 1)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn max_restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn running(name: &str, ready_at: Option<&str>, created: &str) -> Value {
        let ready = if ready_at.is_some() { "True" } else { "False" };
        json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created},
               "spec": {"containers": [], "nodeName": "n1"},
               "status": {"phase": "Running",
                          "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": ready_at}]}})
    }

    #[test]
    fn those_whose_loss_matters_least_go_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let day_old = "2026-01-01T00:00:00Z";
        let minute_old = "2026-01-01T23:59:00Z";
        let mut cheap = running("cheap", Some(day_old), day_old);
        cheap["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
        let mut restarting = running("restarting", Some(day_old), day_old);
        restarting["status"]["containerStatuses"] =
            json!([{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 4}]);
        let in_order = [
            (json!({"metadata": {"name": "unassigned"}, "spec": {"containers": []}}), 1),
            (
                json!({"metadata": {"name": "pending"}, "spec": {"containers": [], "nodeName": "n1"}, "status": {"phase": "Pending"}}),
                1,
            ),
            (running("unready", None, day_old), 1),
            (cheap, 1),
            (running("crowded", Some(day_old), day_old), 3),
            (running("recent", Some(minute_old), day_old), 1),
            (restarting, 1),
            (running("young", Some(day_old), minute_old), 1),
            (running("old", Some(day_old), day_old), 1),
        ];
        let mut ranked: Vec<Ranked> = in_order
            .iter()
            .rev()
            .map(|(value, related)| Ranked { pod: pod(value.clone()), related_on_node: *related })
            .collect();
        sort_for_deletion(&mut ranked, now);
        let names: Vec<&str> = ranked.iter().filter_map(|ranked| ranked.pod.metadata.name.as_deref()).collect();
        assert_eq!(
            names,
            ["unassigned", "pending", "unready", "cheap", "crowded", "recent", "restarting", "young", "old"]
        );
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let ready = pod(running("a", Some("2026-01-01T23:59:50Z"), "2026-01-01T00:00:00Z"));
        assert_eq!(available_in(&ready, Duration::from_secs(30), now), Some(Duration::from_secs(20)));
        assert!(is_available(&ready, Duration::from_secs(10), now));
        assert!(is_available(&ready, Duration::ZERO, now));
        assert_eq!(available_in(&pod(running("b", None, "2026-01-01T00:00:00Z")), Duration::ZERO, now), None);
    }
}
