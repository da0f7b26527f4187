//! A node that already holds a pod's images is the better one.

use crate::scheduler::framework::{Context, MAX_SCORE, Normalize, Score};
use crate::scheduler::node::NodeInfo;

/// Images smaller than that in total make no difference.
const MIN_BYTES: i64 = 23 << 20;
/// More than that per container makes none either.
const MAX_BYTES: i64 = 1000 << 20;

pub const SCORE: Score =
    Score { weight: 1, applies: |context| !context.pod.images.is_empty(), score, normalize: Normalize::Ready };

/// The bytes that need no pulling, each image weighed by how common it is: a single
/// node that holds one must not draw all its pods.
fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let nodes = context.cluster.nodes.len().max(1) as f64;
    let mut bytes: i64 = 0;
    for image in &context.pod.images {
        if let Some(size) = node.facts.images.get(image) {
            let spread = context.cluster.image_nodes.get(image).copied().unwrap_or_default() as f64 / nodes;
            bytes = bytes.saturating_add((*size as f64 * spread) as i64);
        }
    }
    let containers = i64::try_from(context.pod.images.len()).unwrap_or(i64::MAX);
    let most = MAX_BYTES.saturating_mul(containers);
    MAX_SCORE * (bytes.clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES)
}
