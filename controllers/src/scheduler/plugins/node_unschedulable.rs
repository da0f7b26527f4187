//! Cordoned nodes take no new pods, unless a pod tolerates just that.

use crate::scheduler::framework::{Context, Reason, Rejection};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::terms::{Effect, Taint, tolerates};

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    if !node.facts.unschedulable {
        return None;
    }
    let taint =
        Taint { key: "node.kubernetes.io/unschedulable".to_owned(), value: String::new(), effect: Effect::NoSchedule };
    if tolerates(&context.pod.tolerations, &taint) { None } else { Rejection::unresolvable(Reason::Unschedulable) }
}
