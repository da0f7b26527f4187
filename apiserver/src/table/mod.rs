//! Objects as rows of a table, for `kubectl get`.

mod apps;
mod core;
mod duration;
mod look;
mod other;
mod pod;
mod storage;

use std::sync::Arc;

use jiff::Timestamp;
use quorate_proto::object::Object;
use serde_json::{Value, json};

use crate::schema::ResourceDef;
use look::{Look, text};

pub use duration::human_duration;

/// How much of each object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    /// A `PartialObjectMetadata`.
    #[default]
    Metadata,
    Object,
}

/// What a client asks of a table.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    pub include: IncludeObject,
    /// Later events of a watch carry no column definitions.
    pub headers: bool,
    /// Ages are counted up to here.
    pub now: Timestamp,
    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`.
    pub api_version: &'static str,
}

/// One column: `Wide` ones are shown by `-o wide` only.
#[derive(Clone, Copy)]
struct Column {
    name: &'static str,
    kind: ColumnKind,
    wide: bool,
    description: &'static str,
}

#[derive(Clone, Copy)]
enum ColumnKind {
    Text,
    Integer,
    /// What identifies the row.
    Name,
    Date,
}

/// How the objects of a kind are shown.
struct Printer {
    columns: &'static [Column],
    /// As many cells as there are columns.
    cells: fn(&Look<'_>) -> Vec<Value>,
}

const NAME: Column = Column {
    name: "Name",
    kind: ColumnKind::Name,
    wide: false,
    description: "Name of the object, unique for its kind within its namespace.",
};
const AGE: Column = column("Age", "How long ago the object was created.");

const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: ColumnKind::Text, wide: false, description }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: ColumnKind::Integer, wide: false, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: ColumnKind::Text, wide: true, description }
}

/// What kinds without columns of their own show.
const PLAIN: Printer = Printer {
    columns: &[
        NAME,
        Column { name: "Created At", kind: ColumnKind::Date, wide: false, description: "When the object was created." },
    ],
    cells: |look| vec![look.name(), json!(text(look.object, "metadata.creationTimestamp"))],
};

fn printer(group: &str, resource: &str) -> &'static Printer {
    core::printer(group, resource)
        .or_else(|| apps::printer(group, resource))
        .or_else(|| storage::printer(group, resource))
        .or_else(|| other::printer(group, resource))
        .unwrap_or(&PLAIN)
}

/// A `Table` of `objects`. Its `metadata` is empty: a list's caller fills in
/// resourceVersion, continue and remainingItemCount.
pub fn render(def: &ResourceDef, objects: &[Arc<Object>], options: &RenderOptions) -> Value {
    let printer = printer(def.group, def.resource);
    let rows: Vec<Value> = objects.iter().map(|object| row(printer, object, options)).collect();
    let columns: Vec<Value> =
        if options.headers { printer.columns.iter().map(column_value).collect() } else { Vec::new() };
    json!({
        "kind": "Table",
        "apiVersion": options.api_version,
        "metadata": {},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn row(printer: &Printer, object: &Object, options: &RenderOptions) -> Value {
    let value = object.value();
    let cells = (printer.cells)(&Look { object: value, now: options.now });
    assert_eq!(cells.len(), printer.columns.len(), "a row has as many cells as columns");
    let carried = match options.include {
        IncludeObject::None => Value::Null,
        IncludeObject::Object => Value::clone(value),
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": options.api_version,
            "metadata": value["metadata"],
        }),
    };
    let mut row = json!({ "cells": cells, "object": carried });
    if let Some(conditions) = pod::row_conditions(object.gvk(), value) {
        row["conditions"] = conditions;
    }
    row
}

fn column_value(column: &Column) -> Value {
    let (kind, format) = match column.kind {
        ColumnKind::Text => ("string", ""),
        ColumnKind::Integer => ("integer", ""),
        ColumnKind::Name => ("string", "name"),
        ColumnKind::Date => ("date", ""),
    };
    json!({
        "name": column.name,
        "type": kind,
        "format": format,
        "description": column.description,
        "priority": i32::from(column.wide),
    })
}

#[cfg(test)]
mod tests;
