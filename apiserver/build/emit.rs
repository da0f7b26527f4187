//! Writes the joined table as Rust statics, and the schemas with their descriptions
//! as one compressed text.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Map, Value};

use crate::join::{Field, Kind, Type};

/// Types as static data: no heap, loaded from the binary page by page when looked at.
pub(crate) fn types(types: &[Type], messages: usize, extensions: usize) -> String {
    let index = |name: &str| {
        types.binary_search_by(|own| own.name.as_str().cmp(name)).unwrap_or_else(|_| panic!("no type {name}"))
    };
    let mut out = String::new();
    writeln!(out, "#[cfg(test)]\npub(super) const MESSAGES: usize = {messages};").expect("a string");
    writeln!(out, "#[cfg(test)]\npub(super) const EXTENSIONS: usize = {extensions};").expect("a string");
    writeln!(out, "static TYPES: [Type; {}] = [", types.len()).expect("a string");
    for own in types {
        writeln!(out, "Type {{ name: {:?}, atomic: {}, fields: &[", own.name, own.atomic).expect("a string");
        for field in &own.fields {
            write_field(&mut out, field, &index);
        }
        out.push_str("] },\n");
    }
    out.push_str("];\n");
    out
}

fn write_field(out: &mut String, field: &Field, index: &dyn Fn(&str) -> usize) {
    let list_type = match field.list_type.as_str() {
        "map" => "Map",
        "set" => "Set",
        "" | "atomic" => "Atomic",
        other => panic!("unknown list type {other} of {}", field.name),
    };
    let (mut merge, mut retain_keys, mut replace) = (false, false, false);
    for strategy in field.patch_strategy.split(',').filter(|strategy| !strategy.is_empty()) {
        match strategy {
            "merge" => merge = true,
            "retainKeys" => retain_keys = true,
            "replace" => replace = true,
            other => panic!("unknown patch strategy {other} of {}", field.name),
        }
    }
    writeln!(
        out,
        "Field {{ name: {:?}, kind: {}, required: {}, list_type: ListType::{list_type}, list_keys: &{:?}, atomic: {}, \
         patch: Patch {{ merge: {merge}, retain_keys: {retain_keys}, replace: {replace}, merge_key: {:?} }}, \
         default: {:?}, tags: &{:?} }},",
        field.name,
        kind(&field.kind, index),
        field.required,
        field.list_keys,
        field.map_type == "atomic",
        field.merge_key,
        field.default,
        field.tags,
    )
    .expect("a string");
}

fn kind(own: &Kind, index: &dyn Fn(&str) -> usize) -> String {
    match own {
        Kind::Simple(name) => format!("Kind::{name}"),
        Kind::Object(name) => format!("Kind::Object(TypeId({}))", index(name)),
        Kind::Map(inner) => format!("Kind::Map(&{})", kind(inner, index)),
        Kind::List(inner) => format!("Kind::List(&{})", kind(inner, index)),
    }
}

/// One line for each definition: name, a tab, its schema as JSON; compressed.
pub(crate) fn definitions(definitions: &Map<String, Value>) -> Vec<u8> {
    let mut lines: Vec<String> = definitions.iter().map(|(name, schema)| format!("{name}\t{schema}\n")).collect();
    lines.sort_unstable();
    let mut encoder = zstd::Encoder::new(Vec::new(), 12).expect("zstd starts");
    for line in lines {
        encoder.write_all(line.as_bytes()).expect("writing to memory does not fail");
    }
    encoder.finish().expect("writing to memory does not fail")
}
