//! Leases as the leader sees them: when they end. Pure; the node drives it.
//!
//! The replicated part (which leases there are, which keys belong to them) is in the
//! state machine. Only the leader's lessor counts time; what it says expired takes
//! effect when a revocation was replicated.

mod lessor;

pub use lessor::{Lessor, Renewal};
