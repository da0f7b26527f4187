//! Everything that a Kubernetes API server is. It holds no state of its own: a
//! restart loses nothing, because all of it is behind the `Storage` trait.

pub mod admission;
pub mod authn;
pub mod discovery;
pub mod http;
pub mod openapi;
pub mod patch;
pub mod schema;
pub mod table;
