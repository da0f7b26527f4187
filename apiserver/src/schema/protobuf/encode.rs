//! JSON into protobuf. The objects come from this server: what does not fit the table
//! is left out. Fields are in the order of their numbers, as upstream writes them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::Writer;
use super::zero;
use crate::schema::types::{Field, Kind, Type, type_named};

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Stands for a field that JSON lacks and protobuf has.
static ABSENT: Value = Value::Null;

/// What goes into a message: a field, or the head of a message that JSON inlines.
#[derive(Clone, Copy)]
struct Entry<'a> {
    tags: &'static [u32],
    field: Option<(&'static Field, &'a Value)>,
}

/// Writes an object of type `own`.
pub(super) fn message(own: &'static Type, object: &Map<String, Value>) -> Writer {
    let mut entries: Vec<Entry<'_>> = Vec::with_capacity(object.len() + 4);
    for field in own.fields.iter().filter(|field| !field.tags.is_empty()) {
        // Go embeds these by value, so that they are written even when they hold nothing.
        for length in 1..field.tags.len() {
            let tags = &field.tags[..length];
            if !entries.iter().any(|entry| entry.tags == tags) {
                entries.push(Entry { tags, field: None });
            }
        }
        match object.get(field.name).filter(|value| !value.is_null()) {
            Some(value) => entries.push(Entry { tags: field.tags, field: Some((field, value)) }),
            None if zero::is_held(own, field) => {
                entries.push(Entry { tags: field.tags, field: Some((field, &ABSENT)) });
            }
            None => {}
        }
    }
    entries.sort_by_key(|entry| entry.tags);
    level(&entries, 0)
}

/// Writes entries, which are in the order of their tags and agree in the first `depth`
/// of them.
fn level(entries: &[Entry<'_>], depth: usize) -> Writer {
    let mut writer = Writer::default();
    for group in entries.chunk_by(|a, b| a.tags[depth] == b.tags[depth]) {
        let tag = group[0].tags[depth];
        match group[0].field {
            Some((field, value)) if group[0].tags.len() == depth + 1 => write_field(&mut writer, tag, field, value),
            _ => {
                let heads = group.partition_point(|entry| entry.tags.len() == depth + 1);
                writer.message(tag, level(&group[heads..], depth + 1));
            }
        }
    }
    writer
}

fn write_field(writer: &mut Writer, tag: u32, field: &Field, value: &Value) {
    match (field.kind, value) {
        (Kind::List(inner), Value::Array(items)) => {
            items.iter().for_each(|item| write_value(writer, tag, *inner, item))
        }
        (Kind::Map(inner), Value::Object(entries)) => {
            let sorted: BTreeMap<&String, &Value> = entries.iter().collect();
            for (name, entry) in sorted {
                let mut pair = Writer::default();
                pair.bytes(1, name.as_bytes());
                match (*inner, entry) {
                    (Kind::List(item), Value::Array(items)) => {
                        let mut list = Writer::default();
                        items.iter().for_each(|value| write_value(&mut list, 1, *item, value));
                        pair.message(2, list);
                    }
                    (inner, entry) => write_value(&mut pair, 2, inner, entry),
                }
                writer.message(tag, pair);
            }
        }
        (kind, value) => write_value(writer, tag, kind, value),
    }
}

fn write_value(writer: &mut Writer, tag: u32, kind: Kind, value: &Value) {
    match (kind, value) {
        (Kind::Object(id), Value::Null) => writer.message(tag, message(id.get(), &Map::new())),
        (Kind::Time | Kind::MicroTime | Kind::RawObject, Value::Null) => writer.message(tag, Writer::default()),
        (Kind::String, Value::String(text)) => writer.bytes(tag, text.as_bytes()),
        (Kind::Bytes, Value::String(text)) => writer.bytes(tag, &STANDARD.decode(text).unwrap_or_default()),
        (Kind::Bool, Value::Bool(truth)) => writer.integer(tag, i64::from(*truth)),
        (Kind::Int32 | Kind::Int64, Value::Number(number)) => writer.integer(tag, number.as_i64().unwrap_or_default()),
        (Kind::Double, Value::Number(number)) => writer.double(tag, number.as_f64().unwrap_or_default()),
        (Kind::Quantity, Value::String(text)) => wrapped(writer, tag, text.as_bytes()),
        (Kind::Time | Kind::MicroTime, Value::String(text)) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                let mut inner = Writer::default();
                inner.integer(1, time.as_second());
                inner.integer(2, i64::from(time.subsec_nanosecond()));
                writer.message(tag, inner);
            }
        }
        (Kind::IntOrString, value) => {
            let mut inner = Writer::default();
            inner.integer(1, i64::from(value.is_string()));
            inner.integer(2, value.as_i64().unwrap_or_default());
            inner.bytes(3, value.as_str().unwrap_or_default().as_bytes());
            writer.message(tag, inner);
        }
        (Kind::RawObject | Kind::Json, value) => wrapped(writer, tag, value.to_string().as_bytes()),
        (Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings, value) => {
            writer.message(tag, schema_or(kind, value));
        }
        (Kind::Object(id), Value::Object(object)) => writer.message(tag, message(id.get(), object)),
        _ => {}
    }
}

fn wrapped(writer: &mut Writer, tag: u32, bytes: &[u8]) {
    let mut inner = Writer::default();
    inner.bytes(1, bytes);
    writer.message(tag, inner);
}

fn schema_or(kind: Kind, value: &Value) -> Writer {
    let mut writer = Writer::default();
    let schema = type_named(SCHEMA).map_or(Kind::RawObject, |own| Kind::Object(own.id()));
    let is_bool = matches!(kind, Kind::SchemaOrBool);
    match value {
        Value::Bool(truth) => writer.integer(1, i64::from(*truth)),
        Value::Array(items) => {
            for item in items {
                write_value(&mut writer, 2, if item.is_string() { Kind::String } else { schema }, item);
            }
        }
        value => {
            if is_bool {
                writer.integer(1, 1);
            }
            write_value(&mut writer, if is_bool { 2 } else { 1 }, schema, value);
        }
    }
    writer
}
