//! Which zeros are worth a word in JSON.
//!
//! Upstream distinguishes "zero" from "not set" by Go pointers, which neither of the
//! crates behind the table records. These are the pointers whose zero differs from
//! their absence.

use serde_json::Value;

use crate::schema::{Field, Kind};

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
    }
}
