//! What is done to a cluster.

pub mod disk;
pub mod network;
pub mod process;
