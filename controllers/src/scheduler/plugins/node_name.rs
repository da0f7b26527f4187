//! A pod that names its node goes there or nowhere.

use crate::scheduler::framework::{Context, Reason, Rejection};
use crate::scheduler::node::NodeInfo;

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    let wanted = &context.pod.node_name;
    if wanted.is_empty() || wanted == node.name() { None } else { Rejection::unresolvable(Reason::NodeName) }
}
