//! Pods of one controller lie apart: a node with fewer of them is the better one.
//!
//! It stands for upstream's default spread constraints, without their look at Services
//! and zones, and like them only for pods that bring no constraint of their own.

use crate::scheduler::framework::{Context, Normalize, Score};
use crate::scheduler::node::NodeInfo;

pub const SCORE: Score = Score {
    weight: 2,
    applies: |context| context.pod.owner.is_some() && context.pod.spread.is_empty(),
    score,
    normalize: Normalize::Reversed,
};

fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    context.pod.owner.as_deref().map_or(0, |owner| i64::from(node.pods_of(owner)))
}
