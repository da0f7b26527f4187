//! What objects look like: the built-in resources, and the types of their fields.

mod parse;
mod protobuf;
mod resources;
mod types;
mod walk;

pub use parse::{Parsed, parse_json, parse_yaml};
pub(crate) use protobuf::Writer as ProtobufWriter;
pub use protobuf::{Message, PROTOBUF, decode_protobuf, encode_list, message_of, partial_message};
pub use resources::{ResourceDef, SubresourceDef, Verb, resource, resource_for_kind, resources};
#[cfg(test)]
pub(crate) use types::types;
pub use types::{Field, Kind, ListType, Patch, Type, TypeId, definition_name, type_for_kind, type_named};
pub use walk::{apply_defaults, decode, decode_kind};

/// What happens to fields that the schema does not know, and to fields given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and the answer carries a warning for each.
    #[default]
    Warn,
    /// The request fails.
    Strict,
}

/// Texts for the answer's `Warning` headers.
pub type Warnings = Vec<String>;
