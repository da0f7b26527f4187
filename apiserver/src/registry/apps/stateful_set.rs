//! StatefulSets.

use serde_json::{Value, json};

use super::super::core::volume;
use super::super::strategy::{Strategy, child, default_to, items_mut, set, text};
use super::super::validation::Errors;

/// What of a StatefulSet's spec may change. Source: apps validation.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(in crate::registry) struct StatefulSetStrategy;

impl Strategy for StatefulSetStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "podManagementPolicy", "OrderedReady");
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        let strategy = child(spec, "updateStrategy");
        default_to(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            default_to(child(strategy, "rollingUpdate"), "partition", 0);
        }
        let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
        default_to(retention, "whenDeleted", "Retain");
        default_to(retention, "whenScaled", "Retain");
        for claim in items_mut(spec, "volumeClaimTemplates") {
            set(claim, "kind", "PersistentVolumeClaim");
            set(claim, "apiVersion", "v1");
            volume::default_claim(claim);
            set(child(claim, "status"), "phase", "Pending");
        }
        super::default_template(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            errors.non_negative(&format!("spec.{field}"), &spec[field]);
        }
        errors.one_of("spec.podManagementPolicy", &spec["podManagementPolicy"], &["OrderedReady", "Parallel"]);
        errors.one_of("spec.updateStrategy.type", &spec["updateStrategy"]["type"], &["RollingUpdate", "OnDelete"]);
        errors.non_negative(
            "spec.updateStrategy.rollingUpdate.partition",
            &spec["updateStrategy"]["rollingUpdate"]["partition"],
        );
        super::check_workload(spec, &["Always"], errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let rest = |object: &Value| -> Vec<(String, Value)> {
            let fields = object["spec"].as_object().into_iter().flatten();
            fields
                .filter(|(name, _)| !MUTABLE.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        if rest(object) != rest(old) {
            errors.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
    }
}
