//! Protobuf into JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Malformed, Raw, Reader};
use super::zero;
use crate::schema::types::{Field, Kind, Type, type_named};

/// Deeper than any kind nests, shallow enough for any stack.
const MAX_DEPTH: usize = 64;

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Reads a message of type `own`.
pub(super) fn message(own: &'static Type, bytes: &[u8]) -> Result<Map<String, Value>, Malformed> {
    let mut object = Map::new();
    fields(own, bytes, &mut Vec::new(), &mut object, 0)?;
    Ok(object)
}

/// Reads the fields below `prefix`: not empty inside a message that JSON inlines.
fn fields(
    own: &'static Type,
    bytes: &[u8],
    prefix: &mut Vec<u32>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed::Depth);
    }
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        prefix.push(tag);
        if let Some(field) = own.fields.iter().find(|field| field.tags == prefix.as_slice()) {
            read_field(field, raw, object, depth + 1)?;
        } else if own.fields.iter().any(|field| field.tags.starts_with(prefix)) {
            fields(own, raw.bytes()?, prefix, object, depth + 1)?;
        }
        prefix.pop();
    }
    Ok(())
}

fn read_field(
    field: &'static Field,
    raw: Raw<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Malformed> {
    match field.kind {
        Kind::List(inner) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = list else { return Err(Malformed::WireType) };
            match (*inner, raw) {
                (Kind::Int32 | Kind::Int64, Raw::Bytes(packed)) => {
                    let mut reader = Reader::new(packed);
                    while let Some(number) = reader.packed()? {
                        items.push(number.into());
                    }
                }
                (inner, raw) => items.extend(value(inner, raw, depth)?),
            }
        }
        Kind::Map(inner) => {
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(entries) = map else { return Err(Malformed::WireType) };
            let (name, entry) = map_entry(*inner, raw.bytes()?, depth)?;
            entries.insert(name, entry);
        }
        kind => {
            if let Some(value) = value(kind, raw, depth)?.filter(|value| zero::keeps(field, value)) {
                // An empty message is followed by a fuller one only in odd encoders; the last counts.
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn map_entry(inner: Kind, bytes: &[u8], depth: usize) -> Result<(String, Value), Malformed> {
    let mut name = String::new();
    let mut entry = None;
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        match (tag, inner) {
            (1, _) => name = raw.text()?.to_owned(),
            // A list inside a map travels in a message of its own.
            (2, Kind::List(item)) => {
                let mut items = Vec::new();
                let mut list = Reader::new(raw.bytes()?);
                while let Some((tag, raw)) = list.field()? {
                    if tag == 1 {
                        items.extend(value(*item, raw, depth)?);
                    }
                }
                entry = Some(Value::Array(items));
            }
            (2, inner) => entry = value(inner, raw, depth)?,
            _ => {}
        }
    }
    Ok((name, entry.unwrap_or_else(|| Value::String(String::new()))))
}

/// One value; `None` for the zero time, which JSON writes as null.
fn value(kind: Kind, raw: Raw<'_>, depth: usize) -> Result<Option<Value>, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed::Depth);
    }
    Ok(Some(match kind {
        Kind::String => Value::String(raw.text()?.to_owned()),
        Kind::Bytes => Value::String(STANDARD.encode(raw.bytes()?)),
        Kind::Bool => Value::Bool(raw.integer()? != 0),
        Kind::Int32 | Kind::Int64 => raw.integer()?.into(),
        Kind::Double => raw.double()?.into(),
        Kind::Quantity => Value::String(first(raw.bytes()?)?.map_or(Ok(""), Raw::text)?.to_owned()),
        Kind::Time => return time(raw.bytes()?, "%Y-%m-%dT%H:%M:%SZ"),
        Kind::MicroTime => return time(raw.bytes()?, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        Kind::IntOrString => int_or_string(raw.bytes()?)?,
        Kind::RawObject | Kind::Json => match first(raw.bytes()?)? {
            None => return Ok(None),
            Some(json) => serde_json::from_slice(json.bytes()?).map_err(|_| Malformed::Json)?,
        },
        Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => schema_or(kind, raw.bytes()?, depth)?,
        Kind::Object(id) => {
            let mut object = Map::new();
            fields(id.get(), raw.bytes()?, &mut Vec::new(), &mut object, depth + 1)?;
            Value::Object(object)
        }
        Kind::List(_) | Kind::Map(_) => return Err(Malformed::WireType),
    }))
}

/// Field 1 of a message that wraps a single value.
fn first(bytes: &[u8]) -> Result<Option<Raw<'_>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((tag, raw)) = reader.field()? {
        if tag == 1 {
            found = Some(raw);
        }
    }
    Ok(found)
}

fn time(bytes: &[u8], format: &str) -> Result<Option<Value>, Malformed> {
    let (mut seconds, mut nanos, mut given) = (0, 0, false);
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        match tag {
            1 => (seconds, given) = (raw.integer()?, true),
            2 => nanos = raw.integer()?,
            _ => {}
        }
    }
    if !given {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).map_err(|_| Malformed::Time)?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| Malformed::Time)?;
    Ok(Some(Value::String(time.strftime(format).to_string())))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        match tag {
            1 => is_text = raw.integer()? == 1,
            2 => number = raw.integer()?,
            3 => text = raw.text()?,
            _ => {}
        }
    }
    Ok(if is_text { Value::String(text.to_owned()) } else { number.into() })
}

/// The three types of a CustomResourceDefinition that are a schema or something else.
fn schema_or(kind: Kind, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let own = type_named(SCHEMA).ok_or(Malformed::WireType)?;
    let schema = |raw: Raw<'_>| -> Result<Value, Malformed> {
        let mut object = Map::new();
        fields(own, raw.bytes()?, &mut Vec::new(), &mut object, depth + 1)?;
        Ok(Value::Object(object))
    };
    let (mut one, mut list, mut truth) = (None, Vec::new(), false);
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        match (kind, tag) {
            (Kind::SchemaOrBool, 1) => truth = raw.integer()? != 0,
            (Kind::SchemaOrBool, 2) | (_, 1) => one = Some(schema(raw)?),
            (Kind::SchemaOrArray, 2) => list.push(schema(raw)?),
            (Kind::SchemaOrStrings, 2) => list.push(Value::String(raw.text()?.to_owned())),
            _ => {}
        }
    }
    Ok(match (one, kind) {
        (Some(schema), _) => schema,
        (None, Kind::SchemaOrBool) => Value::Bool(truth),
        (None, _) => Value::Array(list),
    })
}
