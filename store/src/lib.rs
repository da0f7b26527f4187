//! Under construction: see the README for what works.

pub mod fs;
pub mod wal;
