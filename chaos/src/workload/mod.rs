//! What clients do meanwhile.

pub mod objects;
