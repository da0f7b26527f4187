//! One node: its pods as containers, its state in the API.
//!
//! [`run`] starts an agent that ends when it is cancelled; [`Config`] is all it is told.

pub mod agent;
pub mod cgroup;
pub mod config;
pub mod containerd;
pub mod cri;
pub mod network;
pub mod node;
pub mod pod;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod server;
pub mod volume;

pub use agent::{AgentError, run, run_with_client};
pub use config::{Config, ConfigError, Runtime};
pub use preflight::{PreflightError, check as preflight};
