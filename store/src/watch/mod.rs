//! Watches: what changes, in order, to everybody who asked.
//!
//! Events live once, in a ring bounded in bytes; a watcher is a cursor. One that falls
//! out of the ring reads from the change log until it is back: it delays nobody, and no
//! queue grows for it. Always, for each watcher: all matching events of a revision come
//! together, revisions ascend, none is missing and none comes twice.

mod hub;
#[cfg(test)]
mod tests;
mod watcher;

pub use hub::Hub;
pub use watcher::Watcher;
