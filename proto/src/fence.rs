//! The token that keeps a deposed leader from acting.

use serde::{Deserialize, Serialize};

/// Names one reign of one leader: the cluster's generation and the Raft term.
///
/// A write that carries a fence takes effect only if, at apply, the entry was
/// proposed in this very generation and term. Ordered by generation, then term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// Counts recoveries from lost quorum; starts at 1.
    pub generation: u64,
    /// The Raft term in which the writer leads.
    pub term: u64,
}

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.generation, self.term)
    }
}
