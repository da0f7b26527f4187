//! Pods.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, items, set, text};
use super::super::validation::Errors;
use super::{pod_spec, pod_update};

/// The grace period of a pod that names none. Source: core/v1 defaults.
const GRACE_SECONDS: i64 = 30;

pub(in crate::registry) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "enableServiceLinks", true);
        pod_spec::default(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let qos = pod_spec::qos_class(&object["spec"]);
        let mut status = json!({"phase": "Pending", "qosClass": qos});
        if items(&object["spec"], "schedulingGates").next().is_some() {
            let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null,
                "lastTransitionTime": object["metadata"]["creationTimestamp"]});
            set(&mut status, "conditions", json!([condition]));
        }
        set(object, "status", status);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        pod_spec::validate(spec, "spec", errors);
        if items(spec, "ephemeralContainers").next().is_some() && object["metadata"]["generation"] == 1 {
            errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        pod_update::validate(object, old, errors);
    }

    fn status_writes_metadata(&self) -> bool {
        true
    }

    /// What nobody runs needs no time to end.
    fn grace_period_seconds(&self, object: &Value, requested: Option<i64>) -> i64 {
        let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(GRACE_SECONDS);
        // Source: pod strategy: a negative period means one second.
        let period = match requested.unwrap_or(own) {
            negative if negative < 0 => 1,
            period => period,
        };
        let unscheduled = text(&object["spec"], "nodeName").is_empty();
        let ended = matches!(text(&object["status"], "phase"), "Failed" | "Succeeded");
        if unscheduled || ended { 0 } else { period }
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}
