//! Faults, workloads and verdicts: the running system seen from outside.
//!
//! Nothing here calls into another room; clusters are processes, and what is known
//! of them came over a socket.

pub mod check;
pub mod cluster;
pub mod drill;
pub mod fault;
pub mod history;
pub mod members;
pub mod nemesis;
pub mod report;
pub mod run;
pub mod workload;
