//! Pods: from what the API wants to what the runtime does, and back.

pub mod backoff;
pub mod config;
pub mod data;
pub mod env;
pub mod manager;
pub mod plan;
pub mod seen;
pub mod spec;
pub mod start;
pub mod status;
pub mod worker;
