//! Kinds of small groups whose rules fit on a few lines each.

use serde_json::Value;

use super::core::pod_spec::check_port;
use super::strategy::{Strategy, child, default_to, items, items_mut, set, text};
use super::validation::{Errors, NameRule};

pub(super) struct LeaseStrategy;
pub(super) struct RoleStrategy;
pub(super) struct RoleBindingStrategy;
pub(super) struct PriorityClassStrategy;
pub(super) struct StorageClassStrategy;
pub(super) struct IngressStrategy;
pub(super) struct NetworkPolicyStrategy;
pub(super) struct DisruptionBudgetStrategy;
pub(super) struct CustomResourceDefinitionStrategy;
pub(super) struct AutoscalerStrategy;

/// What an autoscaler aims at when it is told nothing. Source: autoscaling/v2 defaults.
const CPU_UTILIZATION: i64 = 80;

/// Priorities above this are the system's own. Source: scheduling/v1.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

impl Strategy for LeaseStrategy {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
            errors.invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], "must be greater than 0");
        }
        errors.non_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for RoleStrategy {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let in_namespace = text(object, "kind") == "Role";
        for (index, rule) in items(object, "rules").enumerate() {
            let field = format!("rules[{index}]");
            let has = |name: &str| items(rule, name).next().is_some();
            if !has("verbs") {
                errors.required(&format!("{field}.verbs"), "verbs must contain at least one value");
            }
            if has("nonResourceURLs") {
                if in_namespace {
                    errors.invalid(
                        &format!("{field}.nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "namespaced rules cannot apply to non-resource URLs",
                    );
                }
                if has("resources") || has("apiGroups") || has("resourceNames") {
                    errors.invalid(
                        &format!("{field}.nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "rules cannot apply to both regular resources and non-resource URLs",
                    );
                }
                continue;
            }
            if !has("apiGroups") {
                errors.required(&format!("{field}.apiGroups"), "resource rules must supply at least one api group");
            }
            if !has("resources") {
                errors.required(&format!("{field}.resources"), "resource rules must supply at least one resource");
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}

impl Strategy for RoleBindingStrategy {
    fn default(&self, object: &mut Value) {
        default_to(child(object, "roleRef"), "apiGroup", "rbac.authorization.k8s.io");
        for subject in items_mut(object, "subjects") {
            let group = if text(subject, "kind") == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
            if !group.is_empty() {
                default_to(subject, "apiGroup", group);
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let role = &object["roleRef"];
        let kinds: &[&str] =
            if text(object, "kind") == "ClusterRoleBinding" { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if text(role, "kind").is_empty() || !kinds.contains(&text(role, "kind")) {
            errors.not_supported("roleRef.kind", &Value::from(text(role, "kind")), kinds);
        }
        if text(role, "name").is_empty() {
            errors.required("roleRef.name", "");
        }
        for (index, subject) in items(object, "subjects").enumerate() {
            let field = format!("subjects[{index}]");
            if text(subject, "name").is_empty() {
                errors.required(&format!("{field}.name"), "");
            }
            let kind = &subject["kind"];
            if !matches!(kind.as_str(), Some("ServiceAccount" | "User" | "Group")) {
                errors.not_supported(&format!("{field}.kind"), kind, &["Group", "ServiceAccount", "User"]);
            }
            if kind == "ServiceAccount"
                && text(subject, "namespace").is_empty()
                && text(object, "kind") == "ClusterRoleBinding"
            {
                errors.required(&format!("{field}.namespace"), "");
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["roleRef"] != old["roleRef"] {
            errors.invalid("roleRef", &object["roleRef"], "cannot change roleRef");
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}

impl Strategy for PriorityClassStrategy {
    fn default(&self, object: &mut Value) {
        default_to(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let name = text(&object["metadata"], "name");
        let value = object["value"].as_i64().unwrap_or(0);
        let is_known = matches!(name, "system-node-critical" | "system-cluster-critical");
        if name.starts_with("system-") && !is_known {
            errors.forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only. error: the priority class name is not known",
            );
        } else if !is_known && value > HIGHEST_USER_PRIORITY {
            errors.forbidden(
                "value",
                format_args!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
            );
        }
        errors.one_of("preemptionPolicy", &object["preemptionPolicy"], &["Never", "PreemptLowerPriority"]);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["value"] != old["value"] {
            errors.forbidden("value", "may not be changed in an update.");
        }
        errors.immutable("preemptionPolicy", &object["preemptionPolicy"], &old["preemptionPolicy"]);
    }
}

impl Strategy for StorageClassStrategy {
    fn default(&self, object: &mut Value) {
        default_to(object, "reclaimPolicy", "Delete");
        default_to(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        if text(object, "provisioner").is_empty() {
            errors.required("provisioner", "");
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if object[field] != old[field] {
                errors.forbidden(field, format_args!("updates to {field} are forbidden."));
            }
        }
    }
}

impl Strategy for IngressStrategy {
    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", serde_json::json!({"loadBalancer": {}}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if items(spec, "rules").next().is_none() && !spec["defaultBackend"].is_object() {
            errors.invalid("spec", spec, "either `defaultBackend` or `rules` must be specified");
        }
        for (index, rule) in items(spec, "rules").enumerate() {
            for (place, path) in items(&rule["http"], "paths").enumerate() {
                let field = format!("spec.rules[{index}].http.paths[{place}]");
                if path["pathType"].is_null() {
                    errors.required(&format!("{field}.pathType"), "pathType must be specified");
                } else {
                    errors.one_of(
                        &format!("{field}.pathType"),
                        &path["pathType"],
                        &["Exact", "ImplementationSpecific", "Prefix"],
                    );
                }
                let number = &path["backend"]["service"]["port"]["number"];
                if !number.is_null() {
                    check_port(&format!("{field}.backend.service.port.number"), number, errors);
                }
            }
        }
    }
}

impl Strategy for NetworkPolicyStrategy {
    /// Absent types follow from what the policy says. Source: networking/v1 defaults.
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        if items(spec, "policyTypes").next().is_none() {
            let has_egress = items(spec, "egress").next().is_some();
            let types =
                if has_egress { serde_json::json!(["Ingress", "Egress"]) } else { serde_json::json!(["Ingress"]) };
            set(spec, "policyTypes", types);
        }
        for list in ["ingress", "egress"] {
            for rule in items_mut(spec, list) {
                for port in items_mut(rule, "ports") {
                    default_to(port, "protocol", "TCP");
                }
            }
        }
    }
}

impl Strategy for DisruptionBudgetStrategy {
    fn prepare_for_create(&self, object: &mut Value) {
        let status =
            serde_json::json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
        set(object, "status", status);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            errors.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
        }
        super::apps::check_amount("spec.minAvailable", &spec["minAvailable"], errors);
        super::apps::check_amount("spec.maxUnavailable", &spec["maxUnavailable"], errors);
    }
}

impl Strategy for CustomResourceDefinitionStrategy {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let expected = format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group"));
        if text(&object["metadata"], "name") != expected {
            errors.invalid("metadata.name", &object["metadata"]["name"], "must be spec.names.plural+\".\"+spec.group");
        }
    }

    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec!["quorate stores CustomResourceDefinitions but does not serve custom resources yet".to_owned()]
    }
}

impl Strategy for AutoscalerStrategy {
    fn default(&self, object: &mut Value) {
        let in_v2 = text(object, "apiVersion") == "autoscaling/v2";
        let spec = child(object, "spec");
        default_to(spec, "minReplicas", 1);
        if in_v2 && items(spec, "metrics").next().is_none() {
            let metric = serde_json::json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": CPU_UTILIZATION}}});
            set(spec, "metrics", serde_json::json!([metric]));
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let (least, most) = (spec["minReplicas"].as_i64().unwrap_or(1), spec["maxReplicas"].as_i64().unwrap_or(0));
        if least < 1 {
            errors.invalid("spec.minReplicas", &spec["minReplicas"], "must be greater than or equal to 1");
        }
        if most < 1 {
            errors.invalid("spec.maxReplicas", &Value::from(most), "must be greater than 0");
        }
        if most < least {
            errors.invalid("spec.maxReplicas", &Value::from(most), "must be greater than or equal to `minReplicas`");
        }
        for field in ["kind", "name"] {
            if text(&spec["scaleTargetRef"], field).is_empty() {
                errors.required(&format!("spec.scaleTargetRef.{field}"), "");
            }
        }
    }
}
