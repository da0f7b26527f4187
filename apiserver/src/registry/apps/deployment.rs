//! Deployments.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, text};
use super::super::validation::Errors;

pub(in crate::registry) struct DeploymentStrategy;

impl Strategy for DeploymentStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        let strategy = child(spec, "strategy");
        default_to(strategy, "type", "RollingUpdate");
        super::default_rolling(strategy, json!("25%"), json!("25%"));
        super::default_template(spec);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            errors.non_negative(&format!("spec.{field}"), &spec[field]);
        }
        super::check_workload(spec, &["Always"], errors);
        let strategy = &spec["strategy"];
        errors.one_of("spec.strategy.type", &strategy["type"], &["Recreate", "RollingUpdate"]);
        let rolling = &strategy["rollingUpdate"];
        if text(strategy, "type") == "Recreate" && !rolling.is_null() {
            errors.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'");
        }
        if text(strategy, "type") == "RollingUpdate" {
            super::check_amount("spec.strategy.rollingUpdate.maxUnavailable", &rolling["maxUnavailable"], errors);
            super::check_amount("spec.strategy.rollingUpdate.maxSurge", &rolling["maxSurge"], errors);
            if super::is_zero(&rolling["maxUnavailable"]) && super::is_zero(&rolling["maxSurge"]) {
                errors.invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
        }
        let (deadline, ready) =
            (spec["progressDeadlineSeconds"].as_i64(), spec["minReadySeconds"].as_i64().unwrap_or(0));
        if deadline.is_some_and(|deadline| deadline <= ready) {
            errors.invalid(
                "spec.progressDeadlineSeconds",
                &spec["progressDeadlineSeconds"],
                "must be greater than minReadySeconds",
            );
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
    }
}
