//! DaemonSets.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, set};
use super::super::validation::Errors;

pub(in crate::registry) struct DaemonSetStrategy;

impl Strategy for DaemonSetStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "revisionHistoryLimit", 10);
        let strategy = child(spec, "updateStrategy");
        default_to(strategy, "type", "RollingUpdate");
        super::default_rolling(strategy, json!(1), json!(0));
        super::default_template(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let status = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
        set(object, "status", status);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        errors.non_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        errors.non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
        super::check_workload(spec, &["Always"], errors);
        let strategy = &spec["updateStrategy"];
        errors.one_of("spec.updateStrategy.type", &strategy["type"], &["RollingUpdate", "OnDelete"]);
        let rolling = &strategy["rollingUpdate"];
        super::check_amount("spec.updateStrategy.rollingUpdate.maxUnavailable", &rolling["maxUnavailable"], errors);
        super::check_amount("spec.updateStrategy.rollingUpdate.maxSurge", &rolling["maxSurge"], errors);
        if rolling.is_object() && super::is_zero(&rolling["maxUnavailable"]) && super::is_zero(&rolling["maxSurge"]) {
            errors.required("spec.updateStrategy.rollingUpdate.maxUnavailable", "cannot be 0 when maxSurge is 0");
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
    }
}
