//! The emptier node is the better one.

use crate::scheduler::framework::{Context, MAX_SCORE, Normalize, Score};
use crate::scheduler::node::NodeInfo;

pub const SCORE: Score = Score { weight: 1, applies: |_| true, score, normalize: Normalize::Ready };

/// The mean of the free shares of CPU and memory, with the pod on the node.
fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let total = &node.facts.allocatable;
    let cpu = free_share(total.milli_cpu, node.scored_milli_cpu.saturating_add(context.pod.scored_milli_cpu));
    let memory = free_share(total.memory, node.scored_memory.saturating_add(context.pod.scored_memory));
    match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu + memory) / 2,
        (one, other) => one.or(other).unwrap_or_default(),
    }
}

/// `None` when the node has none of the resource, which then does not count.
fn free_share(total: i64, taken: i64) -> Option<i64> {
    if total <= 0 {
        return None;
    }
    let free = i128::from((total - taken).max(0));
    let share = free * i128::from(MAX_SCORE) / i128::from(total);
    Some(i64::try_from(share).unwrap_or(MAX_SCORE).clamp(0, MAX_SCORE))
}
