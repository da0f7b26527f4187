//! What may change about a pod once it exists.

use serde_json::Value;

use super::super::strategy::{items, items_mut, remove, set};
use super::super::validation::Errors;

const FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks that `new` changes nothing of `old` but what may change.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let (new, old) = (&new["spec"], &old["spec"]);
    for (kind, field) in [("containers", "spec.containers"), ("initContainers", "spec.initContainers")] {
        if items(new, kind).count() != items(old, kind).count() {
            errors.forbidden(field, "pod updates may not add or remove containers");
            return;
        }
    }
    let before: Vec<&Value> = items(old, "tolerations").collect();
    let kept = before.iter().all(|toleration| items(new, "tolerations").any(|candidate| covers(candidate, toleration)));
    if !kept {
        errors.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    let (deadline, earlier) = (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64());
    match (deadline, earlier) {
        (Some(deadline), Some(earlier)) if deadline > earlier => {
            errors.invalid(
                "spec.activeDeadlineSeconds",
                &new["activeDeadlineSeconds"],
                format_args!("must be less than or equal to previous value"),
            );
            return;
        }
        (None, Some(_)) => {
            errors.invalid(
                "spec.activeDeadlineSeconds",
                &new["activeDeadlineSeconds"],
                "must not update from a positive integer to nil value",
            );
            return;
        }
        _ => {}
    }
    let mut compared = new.clone();
    for kind in ["containers", "initContainers"] {
        let images: Vec<Value> = items(old, kind).map(|container| container["image"].clone()).collect();
        for (container, image) in items_mut(&mut compared, kind).zip(images) {
            set(container, "image", image);
        }
    }
    copy(&mut compared, old, "activeDeadlineSeconds");
    copy(&mut compared, old, "tolerations");
    let one_second = new["terminationGracePeriodSeconds"] == 1;
    if one_second && old["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        copy(&mut compared, old, "terminationGracePeriodSeconds");
    }
    if items(old, "schedulingGates").next().is_some() {
        // A gated pod may lose gates, never gain one, and be steered meanwhile.
        let gained =
            items(new, "schedulingGates").any(|gate| !items(old, "schedulingGates").any(|before| before == gate));
        if gained {
            errors.forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate");
            return;
        }
        copy(&mut compared, old, "schedulingGates");
        copy(&mut compared, old, "nodeSelector");
        copy(&mut compared, old, "affinity");
    }
    if compared != *old {
        errors.forbidden("spec", FORBIDDEN);
    }
}

fn covers(new: &Value, old: &Value) -> bool {
    let without_seconds = |value: &Value| {
        let mut value = value.clone();
        remove(&mut value, "tolerationSeconds");
        value
    };
    without_seconds(new) == without_seconds(old)
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => set(to, field, value.clone()),
        None => drop(remove(to, field)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(new: Value, expected: &[&str]) {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}], "nodeName": "n",
            "tolerations": [{"key": "k", "operator": "Exists"}]}});
        let mut errors = Errors::default();
        validate(&json!({"spec": new}), &old, &mut errors);
        let texts = errors.texts();
        assert_eq!(texts.len(), expected.len(), "{texts:?}");
        for (text, start) in texts.iter().zip(expected) {
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn images_and_tolerations_may_change_and_little_else() {
        let tolerations = json!([{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]);
        let containers = json!([{"name": "a", "image": "i:2"}]);
        check(json!({"containers": containers, "nodeName": "n", "tolerations": tolerations}), &[]);
        check(
            json!({"containers": containers, "nodeName": "other", "tolerations": tolerations}),
            &["spec: Forbidden: pod updates may not change fields other than"],
        );
        check(
            json!({"containers": containers, "nodeName": "n"}),
            &["spec.tolerations: Forbidden: existing toleration"],
        );
        check(json!({"containers": []}), &["spec.containers: Forbidden: pod updates may not add or remove containers"]);
    }
}
