//! Namespaces.

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, items, set};
use super::super::validation::NameRule;

/// Keeps a namespace until everything in it is gone.
const FINALIZER: &str = "kubernetes";

pub(in crate::registry) struct NamespaceStrategy;

impl Strategy for NamespaceStrategy {
    /// Policies select namespaces by this label.
    fn default(&self, object: &mut Value) {
        let name = object["metadata"]["name"].clone();
        if name.is_string() {
            set(child(child(object, "metadata"), "labels"), "kubernetes.io/metadata.name", name);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"phase": "Active"}));
        let spec = child(object, "spec");
        let mut finalizers = spec["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            finalizers.push(json!(FINALIZER));
        }
        set(spec, "finalizers", finalizers);
    }

    /// Only the subresource `finalize` changes these.
    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        let finalizers = old["spec"]["finalizers"].clone();
        set(child(object, "spec"), "finalizers", finalizers);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn status_writes_metadata(&self) -> bool {
        true
    }

    fn is_held(&self, object: &Value) -> bool {
        items(&object["spec"], "finalizers").next().is_some()
    }

    fn prepare_for_delete(&self, object: &mut Value) {
        set(child(object, "status"), "phase", "Terminating");
    }
}
