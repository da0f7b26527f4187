//! Changes described instead of whole objects. All functions are pure: the caller
//! decodes, validates and stores what comes out.

mod json;
mod merge;
mod order;
mod strategic;

pub use json::json;
pub use merge::merge;
pub use strategic::{strategic, strategic_kind};
