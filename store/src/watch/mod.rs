//! Watches: what changes, in order, to everybody who asked.
//!
//! Events live once and are encoded once, in a ring bounded in bytes; a watcher is a
//! cursor, woken when an event of its keys is published. One that falls out of the ring
//! reads from the change log until it is back: it delays nobody, and no queue grows for
//! it. Always, for each watcher: all matching events of a revision come together,
//! revisions ascend, none is missing and none comes twice.

mod event;
mod hub;
mod index;
mod mailbox;
#[cfg(test)]
mod tests;
mod watcher;

pub use hub::Hub;
pub use watcher::Watcher;

pub(crate) use event::EncodedEvent;
pub(crate) use mailbox::{Mailbox, News};
pub(crate) use watcher::{ReadResult, Response, Selection, Selections, Step};
