//! Kinds of the group `apps`.

pub(super) mod daemon_set;
pub(super) mod deployment;
pub(super) mod replica_set;
pub(super) mod stateful_set;

use quorate_proto::selector::LabelSelector;
use serde_json::Value;

use super::core::pod_spec;
use super::strategy::{default_to, set, text};
use super::validation::{Errors, check_labels};

/// Checks a workload's selector and the template of its pods. `restart` names the only
/// restart policies that its pods may have.
pub(super) fn check_workload(spec: &Value, restart: &[&str], errors: &mut Errors) {
    let selector = &spec["selector"];
    let template = &spec["template"];
    check_selector(selector, template, errors);
    check_labels(&template["metadata"]["labels"], "spec.template.metadata.labels", errors);
    pod_spec::validate(&template["spec"], "spec.template.spec", errors);
    let policy = &template["spec"]["restartPolicy"];
    if !policy.is_null() && policy.as_str().is_none_or(|policy| !restart.contains(&policy)) {
        errors.not_supported("spec.template.spec.restartPolicy", policy, restart);
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() && restart == ["Always"] {
        errors.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in pod template is not supported for this kind",
        );
    }
}

fn check_selector(selector: &Value, template: &Value, errors: &mut Errors) {
    if selector.is_null() {
        errors.required("spec.selector", "");
        return;
    }
    match LabelSelector::from_object(selector) {
        Err(error) => errors.invalid("spec.selector", selector, error),
        Ok(parsed) if parsed.is_empty() => {
            errors.invalid("spec.selector", selector, "empty selector is invalid for deployment")
        }
        Ok(parsed) => {
            let labels = &template["metadata"]["labels"];
            if !parsed.matches(&labels_of(labels)) {
                errors.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
            }
        }
    }
}

pub(super) fn labels_of(labels: &Value) -> std::collections::BTreeMap<String, String> {
    let pairs = labels.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Sets `maxUnavailable` and `maxSurge` of a rolling update.
pub(super) fn default_rolling(strategy: &mut Value, unavailable: Value, surge: Value) {
    if text(strategy, "type") != "RollingUpdate" {
        return;
    }
    default_to(strategy, "rollingUpdate", serde_json::json!({}));
    if let Some(rolling) = strategy.get_mut("rollingUpdate") {
        default_to(rolling, "maxUnavailable", unavailable);
        default_to(rolling, "maxSurge", surge);
    }
}

/// An amount or a percentage: not negative, and when it is text, `5%` or the like.
pub(super) fn check_amount(field: &str, value: &Value, errors: &mut Errors) {
    errors.non_negative(field, value);
    if let Some(text) = value.as_str() {
        let number = text
            .strip_suffix('%')
            .filter(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if number.is_none() {
            errors.invalid(field, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
        }
    }
}

/// Whether an amount or a percentage is nothing.
pub(super) fn is_zero(value: &Value) -> bool {
    value == 0 || value == "0%" || value.is_null()
}

/// Sets the defaults of a workload's pod template.
pub(super) fn default_template(spec: &mut Value) {
    if let Some(template) = spec.get_mut("template") {
        if let Some(pod) = template.get_mut("spec") {
            pod_spec::default(pod);
        }
        // Upstream writes an absent time of creation as null.
        if let Some(metadata) = template.get_mut("metadata").filter(|metadata| metadata["creationTimestamp"].is_null())
        {
            super::strategy::remove(metadata, "creationTimestamp");
        }
    }
}

/// Absent labels and, for old kinds, absent selectors come from the template.
pub(super) fn default_labels(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        let metadata = super::strategy::child(object, "metadata");
        if metadata["labels"].as_object().is_none_or(serde_json::Map::is_empty) {
            set(metadata, "labels", labels);
        }
    }
}
