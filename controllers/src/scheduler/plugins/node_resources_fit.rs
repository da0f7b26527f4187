//! A node must have free what a pod asks for.

use crate::scheduler::framework::{Context, Insufficient, Reason, Rejection};
use crate::scheduler::node::NodeInfo;

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    let wanted = &context.pod.requests;
    let total = &node.facts.allocatable;
    let taken = &node.requested;
    let mut lacks = Insufficient::default();
    let mut resolvable = true;
    // What is not asked for is not looked at: an overcommitted node still takes such pods.
    let mut short = |wanted: i64, total: i64, taken: i64| {
        let is_short = wanted > 0 && wanted > total.saturating_sub(taken);
        // No eviction helps a pod that is larger than the node.
        resolvable &= !is_short || wanted <= total;
        is_short
    };
    lacks.cpu = short(wanted.milli_cpu, total.milli_cpu, taken.milli_cpu);
    lacks.memory = short(wanted.memory, total.memory, taken.memory);
    lacks.ephemeral_storage = short(wanted.ephemeral_storage, total.ephemeral_storage, taken.ephemeral_storage);
    for (index, (name, wanted)) in wanted.extended.iter().enumerate() {
        let of = |resources: &std::collections::BTreeMap<String, i64>| resources.get(name).copied().unwrap_or_default();
        if short(*wanted, of(&total.extended), of(&taken.extended)) {
            lacks.extended |= 1 << index.min(63);
        }
    }
    let pods = i64::try_from(node.pods().len()).unwrap_or(i64::MAX);
    lacks.pods = pods >= total.pods;
    if lacks == Insufficient::default() {
        return None;
    }
    Some(Rejection { reason: Reason::Insufficient(lacks), resolvable })
}
