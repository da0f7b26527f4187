//! Which zeros are worth a word in JSON, and which absent fields protobuf has all the same.
//!
//! Upstream distinguishes "zero" from "not set" by Go pointers, which neither of the
//! crates behind the table records. These are the pointers whose zero differs from
//! their absence, and the structs and times that are no pointers.

use serde_json::Value;

use crate::schema::{Field, Kind, Type};

/// In the order of their names; a name means the same in every type that has it.
const MEANINGFUL: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "attachRequired",
    "automountServiceAccountToken",
    "backoffLimit",
    "backoffLimitPerIndex",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "maxSurge",
    "maxUnavailable",
    "maximum",
    "minAvailable",
    "minItems",
    "minLength",
    "minProperties",
    "minReplicas",
    "minimum",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "podInfoOnMount",
    "preemptionPolicy",
    "priority",
    "privileged",
    "readOnlyRootFilesystem",
    "replicas",
    "requiresRepublish",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxMount",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stabilizationWindowSeconds",
    "startingDeadlineSeconds",
    "storageCapacity",
    "storageClassName",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

/// Optional structs and times that Go holds by value, in the order of the types' last
/// names. Those named metadata, spec or status are in no need of a row.
const HELD: &[(&str, &[&str])] = &[
    ("APIServiceCondition", &["lastTransitionTime"]),
    ("AllocationResult", &["devices"]),
    ("CertificateSigningRequestCondition", &["lastTransitionTime", "lastUpdateTime"]),
    ("Container", &["resources"]),
    ("ContainerStateRunning", &["startedAt"]),
    ("ContainerStateTerminated", &["finishedAt", "startedAt"]),
    ("ContainerStatus", &["lastState", "state"]),
    ("ControllerRevision", &["data"]),
    ("CustomResourceDefinitionCondition", &["lastTransitionTime"]),
    ("CustomResourceDefinitionStatus", &["acceptedNames"]),
    ("DaemonSetCondition", &["lastTransitionTime"]),
    ("DaemonSetSpec", &["updateStrategy"]),
    ("DeploymentCondition", &["lastTransitionTime", "lastUpdateTime"]),
    ("DeploymentSpec", &["strategy"]),
    ("Endpoint", &["conditions"]),
    ("EphemeralContainer", &["resources"]),
    // Of both groups that have events.
    (
        "Event",
        &[
            "deprecatedFirstTimestamp",
            "deprecatedLastTimestamp",
            "deprecatedSource",
            "eventTime",
            "firstTimestamp",
            "lastTimestamp",
            "regarding",
            "source",
        ],
    ),
    ("EventSeries", &["lastObservedTime"]),
    ("FlowSchemaCondition", &["lastTransitionTime"]),
    ("HorizontalPodAutoscalerCondition", &["lastTransitionTime"]),
    ("IngressServiceBackend", &["port"]),
    ("IngressStatus", &["loadBalancer"]),
    ("JobCondition", &["lastProbeTime", "lastTransitionTime"]),
    ("LimitedPriorityLevelConfiguration", &["limitResponse"]),
    ("NamespaceCondition", &["lastTransitionTime"]),
    ("NetworkPolicySpec", &["podSelector"]),
    ("NodeCondition", &["lastHeartbeatTime", "lastTransitionTime"]),
    ("NodeDaemonEndpoints", &["kubeletEndpoint"]),
    ("NodeStatus", &["daemonEndpoints", "nodeInfo"]),
    ("ObjectMeta", &["creationTimestamp"]),
    ("PersistentVolumeClaimCondition", &["lastProbeTime", "lastTransitionTime"]),
    ("PersistentVolumeClaimSpec", &["resources"]),
    ("PodCondition", &["lastProbeTime", "lastTransitionTime"]),
    ("PodTemplate", &["template"]),
    ("PriorityLevelConfigurationCondition", &["lastTransitionTime"]),
    ("ReplicaSetCondition", &["lastTransitionTime"]),
    ("ReplicaSetSpec", &["template"]),
    ("ReplicationControllerCondition", &["lastTransitionTime"]),
    ("ResourceClaimSpec", &["devices"]),
    ("SelfSubjectReviewStatus", &["userInfo"]),
    ("ServiceStatus", &["loadBalancer"]),
    ("StatefulSetCondition", &["lastTransitionTime"]),
    ("StatefulSetSpec", &["updateStrategy"]),
    ("TokenReviewStatus", &["user"]),
    ("VolumeError", &["time"]),
];

/// The one status that is a pointer.
const POINTER: (&str, &str) = ("CustomResourceSubresources", "status");

/// Whether protobuf has `field` of an object of type `own` when JSON does not. Absent
/// scalars stay absent: a decoder makes zero of them, and a pointer must not become zero.
pub(super) fn is_held(own: &Type, field: &Field) -> bool {
    if !matches!(field.kind, Kind::Object(_) | Kind::Time | Kind::MicroTime | Kind::RawObject) {
        return false;
    }
    let own = own.name.rsplit('.').next().unwrap_or_default();
    match field.name {
        "metadata" | "spec" | "status" => (own, field.name) != POINTER,
        name => HELD.binary_search_by(|(held, _)| held.cmp(&own)).is_ok_and(|row| HELD[row].1.contains(&name)),
    }
}

/// Whether a decoded value stays in JSON.
pub(super) fn keeps(field: &Field, value: &Value) -> bool {
    let zero = match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(truth) => !truth,
        // A quantity, an amount or a port: all of them are written as numbers.
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    !zero
        || field.required
        || matches!(field.kind, Kind::Quantity | Kind::SchemaOrBool)
        || MEANINGFUL.binary_search(&field.name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        assert!(MEANINGFUL.is_sorted());
        assert!(HELD.is_sorted());
    }

    #[test]
    fn what_is_held_is_in_the_table() {
        let mut held: Vec<(&str, &str)> =
            HELD.iter().flat_map(|(own, fields)| fields.iter().map(|field| (*own, *field))).collect();
        for own in crate::schema::types() {
            let name = own.name.rsplit('.').next().unwrap();
            held.retain(|(held, field)| *held != name || own.field(field).is_none_or(|field| !is_held(own, field)));
        }
        assert!(held.is_empty(), "{held:?}");
    }
}
