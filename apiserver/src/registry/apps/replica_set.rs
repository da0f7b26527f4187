//! ReplicaSets, and the ReplicationControllers that they grew out of.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, set};
use super::super::validation::Errors;

pub(in crate::registry) struct ReplicaSetStrategy;

impl Strategy for ReplicaSetStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        super::default_template(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        errors.non_negative("spec.replicas", &spec["replicas"]);
        errors.non_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        super::check_workload(spec, &["Always"], errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("spec.selector", &object["spec"]["selector"], &old["spec"]["selector"]);
    }
}

pub(in crate::registry) struct ReplicationControllerStrategy;

impl Strategy for ReplicationControllerStrategy {
    fn default(&self, object: &mut Value) {
        super::default_labels(object);
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        let labels = spec["template"]["metadata"]["labels"].clone();
        if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) && labels.is_object() {
            set(spec, "selector", labels);
        }
        super::default_template(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut spec = object["spec"].clone();
        errors.non_negative("spec.replicas", &spec["replicas"]);
        errors.non_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        if !spec["selector"].is_null() {
            let labels = spec["selector"].take();
            set(&mut spec, "selector", json!({"matchLabels": labels}));
        }
        super::check_workload(&spec, &["Always"], errors);
    }
}
