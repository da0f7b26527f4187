//! What is done to a cluster.

pub mod process;
