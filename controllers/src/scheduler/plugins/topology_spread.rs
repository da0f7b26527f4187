//! `topologySpreadConstraints`: how evenly a pod's kind lies over zones, hosts or other labels.

use std::collections::HashMap;

use super::node_affinity;
use crate::scheduler::framework::{Context, Normalize, Reason, Rejection, Score};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::pod::{PodInfo, SpreadConstraint};
use crate::scheduler::terms::{Effect, tolerates};

/// For each constraint of the pod, how many matching pods each value of its label has.
#[derive(Debug, Default)]
pub struct State {
    counts: Vec<HashMap<String, i64>>,
}

impl State {
    pub fn new(pod: &PodInfo, nodes: &[NodeInfo]) -> Self {
        let mut counts: Vec<HashMap<String, i64>> = pod.spread.iter().map(|_| HashMap::new()).collect();
        if counts.is_empty() {
            return Self { counts };
        }
        for node in nodes {
            let labels = &node.facts.labels;
            // A node counts only if it could be compared by every constraint of its kind.
            let has_all = |is_hard: bool| {
                pod.spread.iter().filter(|one| one.is_hard == is_hard).all(|one| labels.contains_key(&one.topology_key))
            };
            let (hard, soft) = (has_all(true), has_all(false));
            for (constraint, counts) in pod.spread.iter().zip(&mut counts) {
                let comparable = if constraint.is_hard { hard } else { soft };
                if !comparable || !is_included(constraint, pod, node) {
                    continue;
                }
                let Some(value) = labels.get(&constraint.topology_key) else { continue };
                let matching = node.pods().iter().filter(|other| {
                    other.namespace == pod.namespace && !other.is_terminating && constraint.counts(other)
                });
                *counts.entry(value.clone()).or_default() += i64::try_from(matching.count()).unwrap_or(i64::MAX);
            }
        }
        Self { counts }
    }
}

fn is_included(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let affinity = !constraint.honors_affinity || node_affinity::matches(pod, node);
    let taints = || {
        !constraint.honors_taints
            || node
                .facts
                .taints
                .iter()
                .all(|taint| taint.effect == Effect::PreferNoSchedule || tolerates(&pod.tolerations, taint))
    };
    affinity && taints()
}

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    for (constraint, counts) in context.pod.spread.iter().zip(&context.spread.counts) {
        if !constraint.is_hard {
            continue;
        }
        let Some(value) = node.facts.labels.get(&constraint.topology_key) else {
            return Rejection::unresolvable(Reason::SpreadLabel);
        };
        let fewest =
            if counts.len() < constraint.min_domains { 0 } else { counts.values().copied().min().unwrap_or(0) };
        let own = i64::from(constraint.counts(context.pod));
        let here = counts.get(value).copied().unwrap_or_default();
        if here + own - fewest > constraint.max_skew {
            return Rejection::resolvable(Reason::Spread);
        }
    }
    None
}

/// Over the constraints that are wishes only: fewer matching pods is better.
pub const SCORE: Score = Score {
    weight: 2,
    applies: |context| context.pod.spread.iter().any(|constraint| !constraint.is_hard),
    score,
    normalize: Normalize::Reversed,
};

fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let wishes = context.pod.spread.iter().zip(&context.spread.counts).filter(|(constraint, _)| !constraint.is_hard);
    wishes
        .map(|(constraint, counts)| match node.facts.labels.get(&constraint.topology_key) {
            Some(value) => counts.get(value).copied().unwrap_or_default(),
            // A node that cannot be compared is as bad as the fullest value.
            None => counts.values().copied().max().unwrap_or_default() + 1,
        })
        .sum()
}
