//! Everything that a Kubernetes API server is. It holds no state of its own: a
//! restart loses nothing, because all of it is behind the `Storage` trait.

pub mod admission;
pub mod authn;
pub mod http;
