//! PersistentVolumes and the claims on them.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, items, set, text};
use super::super::validation::Errors;

pub(in crate::registry) struct PersistentVolumeStrategy;
pub(in crate::registry) struct PersistentVolumeClaimStrategy;

/// Sets the defaults of a claim, also of one in a template.
pub(in crate::registry) fn default_claim(claim: &mut Value) {
    default_to(child(claim, "spec"), "volumeMode", "Filesystem");
}

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn check_access_modes(spec: &Value, errors: &mut Errors) {
    if items(spec, "accessModes").next().is_none() {
        errors.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in items(spec, "accessModes") {
        errors.one_of("spec.accessModes", mode, &ACCESS_MODES);
    }
}

impl Strategy for PersistentVolumeStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_to(spec, "volumeMode", "Filesystem");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        check_access_modes(spec, errors);
        if spec["capacity"]["storage"].is_null() {
            errors.required("spec.capacity", "");
        }
        errors.one_of(
            "spec.persistentVolumeReclaimPolicy",
            &spec["persistentVolumeReclaimPolicy"],
            &["Delete", "Recycle", "Retain"],
        );
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

impl Strategy for PersistentVolumeClaimStrategy {
    fn default(&self, object: &mut Value) {
        default_claim(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        check_access_modes(spec, errors);
        if spec["resources"]["requests"]["storage"].is_null() {
            errors.required("spec.resources[storage]", "");
        }
    }

    /// A claim's wishes are fixed; only its size may grow and its volume be named once.
    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let fixed = |object: &Value| {
            let mut spec = object["spec"].clone();
            for field in ["resources", "volumeAttributesClassName"] {
                super::super::strategy::remove(&mut spec, field);
            }
            if text(&old["spec"], "volumeName").is_empty() {
                super::super::strategy::remove(&mut spec, "volumeName");
            }
            spec
        };
        if fixed(object) != fixed(old) {
            errors.forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}
