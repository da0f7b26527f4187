//! Under construction: see the README for what works.

pub mod apply;
pub mod command;
pub mod fs;
pub mod lease;
pub mod mvcc;
pub mod wal;
pub mod watch;
