//! A node whose CPU and memory fill up together is the better one.

use crate::scheduler::framework::{Context, MAX_SCORE, Normalize, Score};
use crate::scheduler::node::NodeInfo;

pub const SCORE: Score = Score {
    weight: 1,
    // A pod that asks for nothing moves no balance.
    applies: |context| context.pod.requests.milli_cpu > 0 || context.pod.requests.memory > 0,
    score,
    normalize: Normalize::Ready,
};

/// 100 less the standard deviation of the two used shares.
fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let total = &node.facts.allocatable;
    let wanted = &context.pod.requests;
    let cpu = used_share(total.milli_cpu, node.requested.milli_cpu.saturating_add(wanted.milli_cpu));
    let memory = used_share(total.memory, node.requested.memory.saturating_add(wanted.memory));
    let (Some(cpu), Some(memory)) = (cpu, memory) else { return MAX_SCORE };
    // Of two values it is half their distance.
    let deviation = (cpu - memory).abs() / 2.0;
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

fn used_share(total: i64, used: i64) -> Option<f64> {
    (total > 0).then(|| (used as f64 / total as f64).clamp(0.0, 1.0))
}
