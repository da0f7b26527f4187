//! Objects as rows of a table, for `kubectl get`.

use std::sync::Arc;

use jiff::Timestamp;
use quorate_proto::object::Object;
use serde_json::{Value, json};

use crate::schema::ResourceDef;

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

/// A `Table` of `objects`. Its `metadata` is empty: a list's caller fills in
/// resourceVersion, continue and remainingItemCount.
pub fn render(_def: &ResourceDef, objects: &[Arc<Object>], options: &RenderOptions) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| json!({"cells": [object.meta().name, object.meta().creation_timestamp], "object": null}))
        .collect();
    json!({"kind": "Table", "apiVersion": options.api_version, "metadata": {}, "columnDefinitions": [], "rows": rows})
}
