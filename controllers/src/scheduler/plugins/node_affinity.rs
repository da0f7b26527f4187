//! `nodeSelector` and node affinity: which nodes a pod demands, and which it prefers.

use crate::scheduler::framework::{Context, Normalize, Reason, Rejection, Score};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::pod::PodInfo;

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    if matches(context.pod, node) { None } else { Rejection::unresolvable(Reason::NodeAffinity) }
}

/// Whether a node is one of those that the pod demands.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let labels = &node.facts.labels;
    pod.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && pod.required_nodes.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node.name(), labels)))
}

/// The sum of the weights of the preferences that a node meets.
pub const SCORE: Score = Score {
    weight: 2,
    applies: |context| !context.pod.preferred_nodes.is_empty(),
    score,
    normalize: Normalize::Highest,
};

fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let met = context.pod.preferred_nodes.iter().filter(|(_, term)| term.matches(node.name(), &node.facts.labels));
    met.map(|(weight, _)| weight).sum()
}
