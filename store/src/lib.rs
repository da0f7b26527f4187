//! A replicated store of keys and values with history: Raft beneath, etcd v3 above.
//!
//! Values are bytes. [`Store`] is one member; it speaks to its peers on one port and,
//! if wanted, to clients of etcd on another.

pub mod apply;
pub mod auth;
mod authority;
pub mod command;
mod config;
mod error;
pub mod fs;
#[cfg(test)]
mod fuzz;
pub mod lease;
mod memory;
pub mod mvcc;
mod node;
mod peer;
mod quota;
mod raft;
mod rpc;
mod serve;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod telemetry;
mod thread;
pub mod wal;
pub mod watch;

pub use auth::AuthToken;
pub use config::{AutoCompaction, ClusterState, Config, Listener, MetricsText, PeerTrust, Serves};
pub use error::{MembersError, StartError, StoreError};
pub use node::{MemberStatus, SERVER_VERSION, Store};
pub use watch::Watcher;
