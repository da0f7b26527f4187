//! Nodes.

use serde_json::Value;

use super::super::strategy::{Strategy, child, items, text};
use super::super::validation::Errors;

pub(in crate::registry) struct NodeStrategy;

impl Strategy for NodeStrategy {
    fn default(&self, object: &mut Value) {
        child(object, "spec");
        child(object, "status");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (index, taint) in items(&object["spec"], "taints").enumerate() {
            let field = format!("spec.taints[{index}]");
            if text(taint, "key").is_empty() {
                errors.required(&format!("{field}.key"), "");
            }
            if text(taint, "effect").is_empty() {
                errors.required(&format!("{field}.effect"), "");
            } else {
                errors.one_of(
                    &format!("{field}.effect"),
                    &taint["effect"],
                    &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                );
            }
            let same = |other: &&Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
            if items(&object["spec"], "taints").take(index).any(|other| same(&other)) {
                errors.duplicate(&field, taint);
            }
        }
    }

    /// Once set, these tell who the node is.
    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (new, old) = (&object["spec"], &old["spec"]);
        if !text(old, "providerID").is_empty() && new["providerID"] != old["providerID"] {
            errors.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
        }
        if items(old, "podCIDRs").next().is_some() && new["podCIDRs"] != old["podCIDRs"] {
            errors.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
        }
    }

    fn status_writes_metadata(&self) -> bool {
        true
    }
}
