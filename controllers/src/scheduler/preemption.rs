//! What evicting pods of lower priority could do for a pod that fits nowhere.
//!
//! This scheduler does not evict yet: it says where it would help, so that nobody waits
//! for what will not come.

use std::collections::BTreeMap;

use super::framework::{Context, Diagnosis, Reason, join_histogram};
use super::node::NodeInfo;

/// The part of the message after `preemption:`.
pub(super) fn outlook(context: &Context<'_>, diagnosis: &Diagnosis) -> String {
    if !context.pod.may_preempt {
        return "not eligible due to preemptionPolicy=Never.".to_owned();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (index, rejection) in &diagnosis.rejections {
        let text = if !rejection.resolvable {
            "Preemption is not helpful for scheduling"
        } else if could_make_room(context, &context.cluster.nodes[*index], rejection.reason) {
            "node(s) could make room by preemption, which is not supported yet"
        } else {
            "No preemption victims found for incoming pod"
        };
        *counts.entry(text.to_owned()).or_default() += 1;
    }
    format!("0/{} nodes are available: {}.", diagnosis.nodes, join_histogram(counts))
}

/// Whether the pod would fit if every pod of lower priority left the node.
fn could_make_room(context: &Context<'_>, node: &NodeInfo, reason: Reason) -> bool {
    let is_victim = |priority: i32| priority < context.pod.priority;
    if !node.pods().iter().any(|pod| is_victim(pod.priority)) {
        return false;
    }
    match reason {
        Reason::Insufficient(_) | Reason::HostPorts => {
            let mut rest = NodeInfo::new(node.facts.clone());
            for pod in node.pods().iter().filter(|pod| !is_victim(pod.priority)) {
                rest.add_pod(std::sync::Arc::clone(pod));
            }
            context.check(&rest).is_none()
        }
        // Rules between pods look beyond the node; evicting those of this one may help.
        _ => true,
    }
}
