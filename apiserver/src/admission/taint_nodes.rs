//! A new node takes no pods before it has said that it is ready.

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::{Admission, Attributes, Operation};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plugin `TaintNodesByCondition`.
pub(super) struct TaintNodes;

impl Admission for TaintNodes {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let is_node =
            attributes.group.is_empty() && attributes.resource == "nodes" && attributes.subresource.is_empty();
        if is_node && attributes.operation == Operation::Create {
            let mut taints = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
                taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
                object["spec"]["taints"] = Value::Array(taints);
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
