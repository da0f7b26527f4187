//! The words on the wire: what the rooms say to each other and to clients.
//!
//! Nothing here does I/O, and nothing here knows another room.

pub mod codec;
pub mod fence;
pub mod gvk;
pub mod meta;
pub mod object;
pub mod quantity;
pub mod selector;
pub mod status;
