//! Jobs.

use serde_json::{Value, json};

use super::super::apps::{default_labels, default_template};
use super::super::core::pod_spec;
use super::super::strategy::{Strategy, child, default_to, set, text};
use super::super::validation::Errors;

/// The labels by which a Job knows its pods: the prefixed form, and the one of before 1.27.
const LABELS: [(&str, &str); 4] = [
    ("batch.kubernetes.io/controller-uid", "uid"),
    ("batch.kubernetes.io/job-name", "name"),
    ("controller-uid", "uid"),
    ("job-name", "name"),
];

pub(in crate::registry) struct JobStrategy;

/// Sets the defaults of a Job's spec, which CronJobs also carry.
pub(super) fn default_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default_to(spec, "completions", 1);
    }
    default_to(spec, "parallelism", 1);
    default_to(spec, "completionMode", "NonIndexed");
    default_to(spec, "suspend", false);
    default_to(spec, "manualSelector", false);
    let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i64::from(i32::MAX) };
    default_to(spec, "backoffLimit", limit);
    let policy = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    default_to(spec, "podReplacementPolicy", policy);
    default_template(spec);
}

/// Checks a Job's spec without its selector.
pub(super) fn check_spec(spec: &Value, field: &str, errors: &mut Errors) {
    for name in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        errors.non_negative(&format!("{field}.{name}"), &spec[name]);
    }
    errors.one_of(&format!("{field}.completionMode"), &spec["completionMode"], &["NonIndexed", "Indexed"]);
    if text(spec, "completionMode") == "Indexed" && spec["completions"].is_null() {
        errors.required(&format!("{field}.completions"), "when completion mode is Indexed");
    }
    pod_spec::validate(&spec["template"]["spec"], &format!("{field}.template.spec"), errors);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        errors.required(&format!("{field}.template.spec.restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
}

impl Strategy for JobStrategy {
    fn default(&self, object: &mut Value) {
        default_labels(object);
        default_spec(child(object, "spec"));
    }

    /// The server makes the selector up, so that two Jobs never share pods.
    fn prepare_for_create(&self, object: &mut Value) {
        let uid = object["metadata"]["uid"].clone();
        let name = object["metadata"]["name"].clone();
        let spec = child(object, "spec");
        if spec["manualSelector"] != true {
            let labels = child(child(child(spec, "template"), "metadata"), "labels");
            for (label, source) in LABELS {
                set(labels, label, if source == "uid" { uid.clone() } else { name.clone() });
            }
            set(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
        }
        set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if spec["selector"].is_null() {
            errors.required("spec.selector", "");
        }
        check_spec(spec, "spec", errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (new, old) = (&object["spec"], &old["spec"]);
        errors.immutable("spec.selector", &new["selector"], &old["selector"]);
        errors.immutable("spec.completionMode", &new["completionMode"], &old["completionMode"]);
        if text(new, "completionMode") != "Indexed" {
            errors.immutable("spec.completions", &new["completions"], &old["completions"]);
        }
        // A suspended Job that never ran may still choose where its pods go.
        let movable = old["suspend"] == true;
        if !movable {
            errors.immutable("spec.template", &new["template"], &old["template"]);
        }
    }
}
