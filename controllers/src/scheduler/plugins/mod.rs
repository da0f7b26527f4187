//! One file per filter or score.

pub mod balanced_allocation;
pub mod image_locality;
pub mod least_allocated;
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod owner_spread;
pub mod pod_affinity;
pub mod taint_toleration;
pub mod topology_spread;

use super::framework::{Filter, Score};

/// In upstream's order, because a node tells only its first reason.
pub const FILTERS: &[Filter] = &[
    node_unschedulable::filter,
    node_name::filter,
    taint_toleration::filter,
    node_affinity::filter,
    node_ports::filter,
    node_resources_fit::filter,
    topology_spread::filter,
    pod_affinity::filter,
];

/// With upstream's weights; `owner_spread` stands for its default spread constraints.
pub const SCORES: &[Score] = &[
    taint_toleration::SCORE,
    node_affinity::SCORE,
    least_allocated::SCORE,
    balanced_allocation::SCORE,
    image_locality::SCORE,
    topology_spread::SCORE,
    owner_spread::SCORE,
    pod_affinity::SCORE,
];
