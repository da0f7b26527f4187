//! Pods tolerate a lost node for a while, unless they say how long themselves.

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::{Admission, Attributes, Operation};

/// Upstream's default for both taints.
const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The plugin `DefaultTolerationSeconds`.
pub(super) struct DefaultTolerationSeconds;

impl Admission for DefaultTolerationSeconds {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let is_pod = attributes.group.is_empty() && attributes.resource == "pods" && attributes.subresource.is_empty();
        if is_pod && attributes.operation == Operation::Create {
            add(&mut object["spec"]);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

fn add(spec: &mut Value) {
    let tolerations: Vec<Value> = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let missing = TAINTS.iter().filter(|taint| !tolerations.iter().any(|toleration| covers(toleration, taint)));
    let added: Vec<Value> = missing
        .map(|taint| json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}))
        .collect();
    if !added.is_empty() {
        spec["tolerations"] = Value::Array(tolerations.into_iter().chain(added).collect());
    }
}

/// Whether the pod has an opinion on the taint already.
fn covers(toleration: &Value, taint: &str) -> bool {
    let text = |name: &str| toleration[name].as_str().unwrap_or("");
    (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tolerations: Value, expected: usize) {
        let mut spec = json!({"tolerations": tolerations});
        add(&mut spec);
        assert_eq!(spec["tolerations"].as_array().map_or(0, Vec::len), expected, "{spec}");
    }

    #[test]
    fn only_what_is_missing_is_added() {
        check(Value::Null, 2);
        check(json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]), 2);
        check(json!([{"operator": "Exists"}]), 1);
        check(json!([{"key": "gpu", "operator": "Exists"}]), 3);
    }
}
