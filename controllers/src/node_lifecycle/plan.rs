//! What a node's conditions and taints should be.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that keep new pods away while they are true.
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// Conditions that only the node itself can know.
const OF_THE_NODE: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(super) fn condition<'a>(node: &'a Node, condition_type: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == condition_type)
}

/// `True`, `False`, `Unknown`, or empty before the node has said anything.
pub(super) fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("", |condition| condition.status.as_str())
}

/// The conditions to write because the node is silent; empty when they say so already.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let unknown = |condition_type: &&str| match condition(node, condition_type) {
        Some(condition) if condition.status == "Unknown" => None,
        Some(condition) => Some(NodeCondition {
            status: "Unknown".to_owned(),
            reason: Some("NodeStatusUnknown".to_owned()),
            message: Some("Kubelet stopped posting node status.".to_owned()),
            last_transition_time: Some(Time(now)),
            ..condition.clone()
        }),
        None => Some(NodeCondition {
            type_: (*condition_type).to_owned(),
            status: "Unknown".to_owned(),
            reason: Some("NodeStatusNeverUpdated".to_owned()),
            message: Some("Kubelet never posted node status.".to_owned()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }),
    };
    OF_THE_NODE.iter().filter_map(unknown).collect()
}

/// The taints that the node should have: its users' own, and what its state demands.
/// `None` when it has them. `brake` adds no taint that evicts, and takes none away.
pub(super) fn taints(node: &Node, brake: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let present: &[Taint] = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if spec.and_then(|spec| spec.unschedulable).unwrap_or_default() {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let state = match ready(node) {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    if let Some(key) = state {
        wanted.push((key, "NoSchedule"));
        let has_evicting = present.iter().any(|taint| taint.key == key && taint.effect == "NoExecute");
        // A node that never said anything has no pods worth moving.
        if has_evicting || (!brake && !ready(node).is_empty()) {
            wanted.push((key, "NoExecute"));
        }
    }
    let is_true =
        |condition_type: &str| condition(node, condition_type).is_some_and(|condition| condition.status == "True");
    wanted.extend(PRESSURES.iter().filter(|(condition, _)| is_true(condition)).map(|(_, key)| (*key, "NoSchedule")));

    let is_ours = |taint: &Taint| {
        let is_pressure = PRESSURES.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        let is_state = taint.key == NOT_READY || taint.key == UNREACHABLE;
        (is_pressure && taint.effect == "NoSchedule")
            || (is_state && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = present.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in &wanted {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            taints.push(Taint {
                key: (*key).to_owned(),
                effect: (*effect).to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != present).then_some(taints)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value, conditions: &[(&str, &str)]) -> Node {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(condition_type, status)| json!({"type": condition_type, "status": status, "reason": "R"}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[track_caller]
    fn check(spec: Value, conditions: &[(&str, &str)], brake: bool, expected: Option<&[&str]>) {
        let taints = taints(&node(spec.clone(), conditions), brake, Timestamp::UNIX_EPOCH);
        let taints: Option<Vec<String>> = taints.map(|taints| {
            let mut texts: Vec<String> = taints
                .iter()
                .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
                .collect();
            texts.sort();
            texts
        });
        let expected = expected.map(|texts| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(taints, expected, "{spec} {conditions:?} brake {brake}");
    }

    fn taint(key: &str, effect: &str) -> Value {
        json!({"key": key, "effect": effect})
    }

    #[test]
    fn taints_follow_the_state() {
        check(json!({}), &[("Ready", "True")], false, None);
        check(json!({}), &[], false, Some(&["not-ready:NoSchedule"]));
        check(json!({}), &[("Ready", "False")], false, Some(&["not-ready:NoExecute", "not-ready:NoSchedule"]));
        check(json!({}), &[("Ready", "Unknown")], false, Some(&["unreachable:NoExecute", "unreachable:NoSchedule"]));
        check(json!({}), &[("Ready", "Unknown")], true, Some(&["unreachable:NoSchedule"]));
        check(json!({"unschedulable": true}), &[("Ready", "True")], false, Some(&["unschedulable:NoSchedule"]));
        check(
            json!({}),
            &[("Ready", "True"), ("DiskPressure", "True"), ("MemoryPressure", "False")],
            false,
            Some(&["disk-pressure:NoSchedule"]),
        );
    }

    #[test]
    fn recovery_takes_only_our_taints_away() {
        let all = json!({"taints": [taint(NOT_READY, "NoSchedule"), taint(UNREACHABLE, "NoExecute"), taint(UNSCHEDULABLE, "NoSchedule"), taint("mine", "NoExecute")]});
        check(all.clone(), &[("Ready", "True")], false, Some(&["mine:NoExecute"]));
        check(all, &[("Ready", "True")], true, Some(&["mine:NoExecute"]));
        let evicting = json!({"taints": [taint(UNREACHABLE, "NoExecute"), taint(UNREACHABLE, "NoSchedule")]});
        check(evicting.clone(), &[("Ready", "Unknown")], false, None);
        check(evicting, &[("Ready", "Unknown")], true, None);
    }

    #[test]
    fn a_silent_node_is_unknown_in_kubernetes_words() {
        let conditions = silent_conditions(
            &node(json!({}), &[("Ready", "True"), ("DiskPressure", "Unknown")]),
            Timestamp::UNIX_EPOCH,
        );
        let texts: Vec<String> = conditions
            .iter()
            .map(|one| format!("{} {} {}", one.type_, one.status, one.message.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            texts,
            [
                "Ready Unknown Kubelet stopped posting node status.",
                "MemoryPressure Unknown Kubelet never posted node status.",
                "PIDPressure Unknown Kubelet never posted node status."
            ]
        );
    }
}
