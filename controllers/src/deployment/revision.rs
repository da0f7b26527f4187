//! Which ReplicaSet is of which revision: template hashes and annotations.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The label that keeps the pods of two revisions apart.
pub(super) const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// A Deployment's annotations that say nothing about its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// Digits that cannot spell a word.
const SAFE_DIGITS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The name of a template: the same template and collision count have the same on every
/// master. Revisions are told apart by their templates; this only has to differ.
pub(super) fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let template = serde_json::to_vec(template).expect("a template serializes");
    let mut bytes = template;
    if let Some(count) = collision_count {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    // FNV-1a, 32 bits.
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(SAFE_DIGITS[usize::from(digit) % SAFE_DIGITS.len()])).collect()
}

/// Whether two templates are of one revision: the hash label does not count.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    plain(a) == plain(b)
}

fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut metadata.labels {
        labels.remove(TEMPLATE_HASH_LABEL);
    }
    // Empty and absent are the same.
    metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
    metadata.annotations = metadata.annotations.take().filter(|annotations| !annotations.is_empty());
    template
}

pub(super) fn revision_of(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The annotations of the ReplicaSet that is the Deployment's newest revision.
pub(super) fn new_set_annotations(
    deployment: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = set.clone();
    for (key, value) in deployment {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    // A rollback makes an old revision the newest; its old numbers become history.
    if revision_of(set) < revision
        && let Some(old) = annotations.insert(REVISION.to_owned(), revision.to_string())
    {
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old);
    }
    annotations
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(image: &str, labels: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
        .unwrap()
    }

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_hash_names_a_template_and_nothing_else() {
        let one = template("a:1", json!({"app": "web"}));
        assert_eq!(template_hash(&one, None), template_hash(&one.clone(), None));
        assert_ne!(template_hash(&one, None), template_hash(&one, Some(1)));
        assert_ne!(template_hash(&one, None), template_hash(&template("a:2", json!({"app": "web"})), None));
        let hash = template_hash(&one, None);
        assert!(hash.bytes().all(|byte| SAFE_DIGITS.contains(&byte)), "{hash}");
        assert!((1..=10).contains(&hash.len()), "{hash}");

        assert!(same_template(&one, &template("a:1", json!({"app": "web", TEMPLATE_HASH_LABEL: hash}))));
        assert!(same_template(&template("a:1", json!({TEMPLATE_HASH_LABEL: "x"})), &template("a:1", json!(null))));
        assert!(!same_template(&one, &template("a:2", json!({"app": "web"}))));
    }

    #[test]
    fn a_rollback_turns_the_old_number_into_history() {
        let deployment = annotations(&[("kubernetes.io/change-cause", "undo"), (REVISION, "3")]);
        let set = annotations(&[(REVISION, "1"), (REVISION_HISTORY, "0"), ("kubernetes.io/change-cause", "first")]);
        let after = new_set_annotations(&deployment, &set, 4);
        let expected =
            annotations(&[(REVISION, "4"), (REVISION_HISTORY, "0,1"), ("kubernetes.io/change-cause", "undo")]);
        assert_eq!(after, expected);
        assert_eq!(new_set_annotations(&deployment, &after, 4), after);
    }
}
