//! Everything that a Kubernetes API server is. It holds no state of its own: a
//! restart loses nothing, because all of it is behind the `Storage` trait.

pub mod admission;
mod apply;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod client;
pub mod discovery;
pub mod handlers;
pub mod http;
pub mod mirror;
pub mod openapi;
pub mod patch;
pub mod proxy;
pub mod registry;
pub mod schema;
pub mod server;
pub mod storage;
pub mod table;
pub mod watch_cache;

pub use server::{Config, Server, StartError};
