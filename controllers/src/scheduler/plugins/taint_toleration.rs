//! Taints keep pods away that do not tolerate them, or make them prefer other nodes.

use crate::scheduler::framework::{Context, Normalize, Reason, Rejection, Score};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::terms::{Effect, tolerates};

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    let repels = node
        .facts
        .taints
        .iter()
        .any(|taint| taint.effect != Effect::PreferNoSchedule && !tolerates(&context.pod.tolerations, taint));
    if repels { Rejection::unresolvable(Reason::Taint) } else { None }
}

/// Counts the taints that a pod would rather avoid: fewer is better.
pub const SCORE: Score = Score { weight: 3, applies: |_| true, score, normalize: Normalize::Reversed };

fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let avoided = node
        .facts
        .taints
        .iter()
        .filter(|taint| taint.effect == Effect::PreferNoSchedule && !tolerates(&context.pod.tolerations, taint));
    i64::try_from(avoided.count()).unwrap_or(i64::MAX)
}
