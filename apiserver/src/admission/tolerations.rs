//! Pods tolerate a lost node for a while, unless they say how long themselves.

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::{Admission, Attributes, Operation};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The plugin `DefaultTolerationSeconds`.
pub(super) struct DefaultTolerationSeconds {
    pub(super) seconds: u32,
}

impl Admission for DefaultTolerationSeconds {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let is_pod = attributes.group.is_empty() && attributes.resource == "pods" && attributes.subresource.is_empty();
        if is_pod && attributes.operation == Operation::Create {
            add(&mut object["spec"], self.seconds);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

fn add(spec: &mut Value, seconds: u32) {
    let tolerations: Vec<Value> = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let missing = TAINTS.iter().filter(|taint| !tolerations.iter().any(|toleration| covers(toleration, taint)));
    let added: Vec<Value> = missing
        .map(|taint| json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}))
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
        add(&mut spec, 2);
        add(&mut spec, 300);
        let mut given = spec["tolerations"].as_array().into_iter().flatten();
        assert!(given.all(|toleration| toleration["tolerationSeconds"] != 300), "what is there stands: {spec}");
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
