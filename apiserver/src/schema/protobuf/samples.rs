//! Objects of every kind, made of the table.

use serde_json::{Map, Value, json};

use super::zero;
use crate::schema::resources;
use crate::schema::types::{Kind, Type, type_for_kind};

/// How much a sample says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Only what no object lacks.
    Minimal,
    /// Every field.
    Maximal,
}

/// The kinds that bodies and answers may have: group, version and name.
pub(super) fn kinds() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut kinds = vec![("", "v1", "Status"), ("", "v1", "DeleteOptions")];
    for def in resources() {
        kinds.push((def.group, def.version, def.kind));
        kinds.extend(def.subresources.iter().map(|sub| (sub.group, sub.version, sub.kind)));
    }
    kinds.retain(|(group, version, kind)| type_for_kind(group, version, kind).is_some());
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// An object of that kind.
pub(super) fn sample(group: &str, version: &str, kind: &str, extent: Extent) -> Value {
    let own = type_for_kind(group, version, kind).expect("the kind is known");
    let mut object = fields(own, extent, &mut Vec::new());
    object.insert("kind".to_owned(), json!(kind));
    object.insert(
        "apiVersion".to_owned(),
        json!(quorate_proto::gvk::GroupVersionKind::new(group, version, kind).api_version()),
    );
    Value::Object(object)
}

/// `path` are the types that the object is in: none is in itself.
fn fields(own: &'static Type, extent: Extent, path: &mut Vec<&'static str>) -> Map<String, Value> {
    path.push(own.name);
    let mut object = Map::new();
    for field in own.fields.iter().filter(|field| !field.tags.is_empty()) {
        let always = field.required || (zero::is_held(own, field) && matches!(field.kind, Kind::Object(_)));
        if (extent == Extent::Maximal || always)
            && let Some(value) = value(field.kind, extent, path)
        {
            object.insert(field.name.to_owned(), value);
        }
    }
    path.pop();
    object
}

fn value(kind: Kind, extent: Extent, path: &mut Vec<&'static str>) -> Option<Value> {
    Some(match kind {
        Kind::String => json!("text"),
        Kind::Bytes => json!("aGVsbG8="),
        Kind::Bool => json!(true),
        Kind::Int32 => json!(-7),
        Kind::Int64 => json!(1_i64 << 40),
        Kind::Double => json!(1.5),
        Kind::Quantity => json!("500m"),
        Kind::IntOrString if extent == Extent::Maximal => json!("web"),
        Kind::IntOrString => json!(8080),
        Kind::Time => json!("2024-01-02T03:04:05Z"),
        Kind::MicroTime => json!("2024-01-02T03:04:05.123456Z"),
        Kind::RawObject => json!({"f:metadata": {"f:labels": {}}}),
        Kind::Json => json!({"x": [1, null, "y"]}),
        Kind::SchemaOrArray => json!([{"type": "string"}]),
        Kind::SchemaOrBool => json!({"type": "string"}),
        Kind::SchemaOrStrings => json!(["a", "b"]),
        Kind::Object(id) if path.contains(&id.get().name) => return None,
        Kind::Object(id) => Value::Object(fields(id.get(), extent, path)),
        Kind::Map(inner) => json!({"key": value(*inner, extent, path)?}),
        Kind::List(inner) => json!([value(*inner, extent, path)?, value(*inner, extent, path)?]),
    })
}
