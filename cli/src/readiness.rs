//! What a node of `quorate up` says of itself once it has started.

use jiff::Timestamp;
use quorate_proto::object::Object;
use serde_json::Value;

/// How a node stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Takes pods.
    Ready,
    /// Runs, and its taints keep pods away; says why.
    Tainted(String),
    /// Does not run pods yet; says why, if it does.
    NotReady(String),
}

/// Decides how a node stands from its object. What it said before `since` (whole seconds)
/// was said by the agent of an earlier run.
pub(crate) fn readiness(node: &Object, since: Timestamp) -> Readiness {
    let value = node.value();
    let conditions = list(value, "/status/conditions");
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    let is_of_now = |condition: &Value| {
        text(condition, "lastHeartbeatTime")
            .parse::<Timestamp>()
            .is_ok_and(|said| said.as_second() >= since.as_second())
    };
    match ready {
        Some(condition) if !is_of_now(condition) => {
            return Readiness::NotReady("it has not reported its status since the start".to_owned());
        }
        Some(condition) if condition["status"] == "True" => {}
        Some(condition) => return Readiness::NotReady(text(condition, "message")),
        None => return Readiness::NotReady("it has not reported its status".to_owned()),
    }
    // A condition that is True although it is not Ready tells of trouble.
    let trouble = conditions
        .iter()
        .filter(|condition| condition["type"] != "Ready" && condition["status"] == "True")
        .map(|condition| text(condition, "message"));
    let taints: Vec<String> = list(value, "/spec/taints")
        .iter()
        .filter(|taint| taint["effect"] != "PreferNoSchedule")
        .map(|taint| format!("{}:{}", text(taint, "key"), text(taint, "effect")))
        .collect();
    if taints.is_empty() {
        return Readiness::Ready;
    }
    let why: Vec<String> = std::iter::once(format!("taint {}", taints.join(", "))).chain(trouble).collect();
    Readiness::Tainted(why.join("; "))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_tainted_or_neither() {
        let check = |taints: Value, conditions: Value, expected: Readiness| {
            let node = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                "spec": {"taints": taints}, "status": {"conditions": conditions},
            });
            let since = "2026-01-01T00:00:00.9Z".parse().unwrap();
            assert_eq!(readiness(&Object::from_value(&node, 1).unwrap(), since), expected);
        };
        let now = "2026-01-01T00:00:00Z";
        let ready =
            json!({"type": "Ready", "status": "True", "message": "posts ready status", "lastHeartbeatTime": now});
        let full = json!({"type": "DiskPressure", "status": "True", "message": "the disk is full"});
        let calm = json!({"type": "DiskPressure", "status": "False", "message": "there is room"});
        let taint = json!([{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]);
        check(json!(null), json!([]), Readiness::NotReady("it has not reported its status".into()));
        check(
            json!(null),
            json!([{"type": "Ready", "status": "False", "message": "no network", "lastHeartbeatTime": now}]),
            Readiness::NotReady("no network".into()),
        );
        let mut before = ready.clone();
        before["lastHeartbeatTime"] = json!("2025-12-31T23:59:59Z");
        let silent = Readiness::NotReady("it has not reported its status since the start".into());
        check(json!(null), json!([before, calm]), silent);
        check(json!(null), json!([ready, calm]), Readiness::Ready);
        check(json!([{"key": "a", "effect": "PreferNoSchedule"}]), json!([ready]), Readiness::Ready);
        check(
            taint,
            json!([ready, full]),
            Readiness::Tainted("taint node.kubernetes.io/disk-pressure:NoSchedule; the disk is full".into()),
        );
    }
}
