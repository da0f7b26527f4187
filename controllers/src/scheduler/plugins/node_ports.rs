//! Two pods cannot take the same port of one node.

use crate::scheduler::framework::{Context, Reason, Rejection};
use crate::scheduler::node::NodeInfo;

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    let wanted = &context.pod.host_ports;
    let taken = wanted.iter().any(|port| node.host_ports.iter().any(|other| port.conflicts_with(other)));
    if taken { Rejection::resolvable(Reason::HostPorts) } else { None }
}
