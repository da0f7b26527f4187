//! What clients do meanwhile.

pub mod objects;
pub mod store;
