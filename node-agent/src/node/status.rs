//! The Node object, from what was seen of the machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::machine::Machine;

/// The Kubernetes version whose kubelet the agent stands for.
pub const KUBELET_VERSION: &str = "v1.35.0+quorate";
/// Memory that is kept for the node. Source: upstream's eviction threshold.
const RESERVED_MEMORY_BYTES: i64 = 100 << 20;
/// The share of its disk that pods may fill, in percent. Source: as above.
const USABLE_STORAGE_PERCENT: i64 = 90;
/// How many images a status lists. Upstream's default.
const MAX_IMAGES: usize = 50;

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeState {
    /// `containerd://1.6.20`.
    pub version: String,
    /// Why it cannot run pods; upstream's words. Empty when it can.
    pub problems: Vec<String>,
    pub images: Vec<Image>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub names: Vec<String>,
    pub size_bytes: u64,
}

/// The settings that show in the object.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: String,
    pub address: String,
    pub port: u16,
    pub labels: BTreeMap<String, String>,
    pub max_pods: u32,
    pub pod_cidr: Option<String>,
}

/// The labels that the agent answers for.
pub fn labels(identity: &Identity, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = identity.labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
        labels.insert(format!("{prefix}/arch"), machine.architecture.clone());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), identity.name.clone());
    labels
}

/// A Node to be created.
pub fn node(identity: &Identity, machine: &Machine) -> Value {
    let mut spec = json!({});
    if let Some(cidr) = &identity.pod_cidr {
        spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.name, "labels": labels(identity, machine)},
        "spec": spec,
    })
}

/// What pods may use.
pub fn allocatable(machine: &Machine) -> (i64, i64, i64) {
    (
        i64::from(machine.cpus) * 1000,
        (machine.memory_bytes - RESERVED_MEMORY_BYTES).max(0),
        machine.storage_bytes / 100 * USABLE_STORAGE_PERCENT,
    )
}

/// The status to report; `old` is the one that the API has.
pub fn status(
    identity: &Identity,
    machine: &Machine,
    runtime: &RuntimeState,
    old: Option<&core::NodeStatus>,
    now: Timestamp,
) -> Value {
    let (cpu_millis, memory, storage) = allocatable(machine);
    let images = runtime
        .images
        .iter()
        .take(MAX_IMAGES)
        .map(|image| json!({"names": image.names, "sizeBytes": image.size_bytes}));
    json!({
        "capacity": {
            "cpu": machine.cpus.to_string(),
            "memory": format!("{}Ki", machine.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", machine.storage_bytes / 1024),
            "pods": identity.max_pods.to_string(),
        },
        "allocatable": {
            "cpu": (cpu_millis / 1000).to_string(),
            "memory": format!("{}Ki", memory / 1024),
            "ephemeral-storage": storage.to_string(),
            "pods": identity.max_pods.to_string(),
        },
        "addresses": [
            {"type": "InternalIP", "address": identity.address},
            {"type": "Hostname", "address": identity.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": identity.port}},
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.system_uuid,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel_version,
            "osImage": machine.os_image,
            "containerRuntimeVersion": runtime.version,
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": machine.architecture,
        },
        "images": images.collect::<Vec<_>>(),
        "conditions": conditions(machine, runtime, old, now),
    })
}

struct Condition {
    kind: &'static str,
    met: bool,
    reason: &'static str,
    message: String,
}

fn pressure(kind: &'static str, met: bool, words: [&'static str; 2], messages: [&str; 2]) -> Condition {
    let index = usize::from(!met);
    Condition { kind, met, reason: words[index], message: messages[index].to_owned() }
}

fn conditions(machine: &Machine, runtime: &RuntimeState, old: Option<&core::NodeStatus>, now: Timestamp) -> Vec<Value> {
    let ready = runtime.problems.is_empty();
    let own = [
        pressure(
            "MemoryPressure",
            machine.memory_pressure,
            ["KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"],
            ["kubelet has insufficient memory available", "kubelet has sufficient memory available"],
        ),
        pressure(
            "DiskPressure",
            machine.disk_pressure,
            ["KubeletHasDiskPressure", "KubeletHasNoDiskPressure"],
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            machine.pid_pressure,
            ["KubeletHasInsufficientPID", "KubeletHasSufficientPID"],
            ["kubelet has insufficient PID available", "kubelet has sufficient PID available"],
        ),
        Condition {
            kind: "Ready",
            met: ready,
            reason: if ready { "KubeletReady" } else { "KubeletNotReady" },
            message: if ready { "kubelet is posting ready status".to_owned() } else { runtime.problems.join(", ") },
        },
    ];
    let before = |kind: &str| old.into_iter().flat_map(|old| old.conditions.iter().flatten()).find(|c| c.type_ == kind);
    let now = second(now);
    let mut all: Vec<Value> = own
        .iter()
        .map(|condition| {
            let status = if condition.met { "True" } else { "False" };
            let unchanged = before(condition.kind)
                .filter(|old| old.status == status)
                .and_then(|old| old.last_transition_time.clone());
            json!({
                "type": condition.kind,
                "status": status,
                "reason": condition.reason,
                "message": condition.message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": unchanged.map_or_else(|| now.clone(), |time| second(time.0)),
            })
        })
        .collect();
    // Conditions of others stay as they are.
    let others = old
        .into_iter()
        .flat_map(|old| old.conditions.iter().flatten())
        .filter(|c| own.iter().all(|own| own.kind != c.type_));
    all.extend(others.filter_map(|condition| serde_json::to_value(condition).ok()));
    all
}

fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// The part of a status that is worth a report when it changes: all but the time of the report.
pub fn without_heartbeat(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = condition.as_object_mut() {
            fields.remove("lastHeartbeatTime");
            fields.remove("lastTransitionTime");
        }
    }
    status
}

/// Whether `stored` says otherwise of a condition than `own` does. Controllers write
/// `Unknown` when they have lost sight of the node.
pub fn contradicts(stored: &core::NodeStatus, own: &Value) -> bool {
    let mut conditions = own["conditions"].as_array().into_iter().flatten();
    conditions.any(|own| {
        let said = stored.conditions.iter().flatten().find(|said| own["type"] == said.type_.as_str());
        said.is_none_or(|said| own["status"] != said.status.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "node-1".to_owned(),
            address: "127.0.10.101".to_owned(),
            port: 10250,
            labels: BTreeMap::new(),
            max_pods: 110,
            pod_cidr: None,
        }
    }

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            storage_bytes: 1000 << 20,
            architecture: "amd64".to_owned(),
            ..Machine::default()
        }
    }

    fn ready(status: &Value) -> &Value {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()
    }

    #[test]
    fn a_problem_of_the_runtime_makes_the_node_not_ready() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let good = status(&identity(), &machine(), &RuntimeState::default(), None, at(10));
        assert_eq!(ready(&good)["status"], "True");
        let old: core::NodeStatus = serde_json::from_value(good.clone()).unwrap();
        let same = status(&identity(), &machine(), &RuntimeState::default(), Some(&old), at(20));
        assert_eq!(ready(&same)["lastTransitionTime"], ready(&good)["lastTransitionTime"]);
        assert_eq!(without_heartbeat(&same), without_heartbeat(&good));
        let broken = RuntimeState { problems: vec!["container runtime is down".to_owned()], ..RuntimeState::default() };
        let bad = status(&identity(), &machine(), &broken, Some(&old), at(30));
        assert_eq!(
            (&ready(&bad)["status"], &ready(&bad)["message"]),
            (&json!("False"), &json!("container runtime is down"))
        );
        assert_ne!(ready(&bad)["lastTransitionTime"], ready(&good)["lastTransitionTime"]);
    }

    #[test]
    fn what_a_controller_wrote_of_a_silent_node_is_contradicted() {
        let own = status(&identity(), &machine(), &RuntimeState::default(), None, Timestamp::UNIX_EPOCH);
        let check = |change: &dyn Fn(&mut core::NodeCondition), expected: bool| {
            let mut stored: core::NodeStatus = serde_json::from_value(own.clone()).unwrap();
            stored.conditions.iter_mut().flatten().for_each(change);
            assert_eq!(contradicts(&stored, &own), expected, "{stored:?}");
        };
        check(&|_| {}, false);
        check(&|condition| condition.last_heartbeat_time = None, false);
        check(&|condition| condition.status = "Unknown".to_owned(), true);
        check(&|condition| condition.type_ = "Other".to_owned(), true);
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let old: core::NodeStatus =
            serde_json::from_value(json!({"conditions": [{"type": "NetworkUnavailable", "status": "False"}]})).unwrap();
        let new = status(&identity(), &machine(), &RuntimeState::default(), Some(&old), Timestamp::UNIX_EPOCH);
        assert!(new["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "NetworkUnavailable"));
    }

    #[test]
    fn something_is_kept_for_the_node() {
        assert_eq!(allocatable(&machine()), (2000, (1 << 30) - (100 << 20), (1000 << 20) / 100 * 90));
    }
}
