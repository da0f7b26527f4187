//! The events of a watch, in the form that the client wants.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::render;
use crate::http::{ApiRequest, Form};
use crate::registry::convert;
use crate::schema::ResourceDef;
use crate::table::render as render_table;
use crate::watch_cache::Seen;

pub(super) fn error_frame(status: &Status) -> Bytes {
    let mut line = json!({"type": "ERROR", "object": status}).to_string();
    line.push('\n');
    Bytes::from(line)
}

/// Writes events in the form that the client wants.
pub(super) struct Frames {
    def: &'static ResourceDef,
    request: ApiRequest,
    /// The next table says what its columns are.
    headers: bool,
}

impl Frames {
    pub(super) fn new(def: &'static ResourceDef, request: ApiRequest) -> Self {
        Self { def, request, headers: true }
    }

    pub(super) fn seen(&mut self, out: &mut Vec<u8>, seen: Seen) {
        let (kind, object) = match seen {
            Seen::Added(object) => ("ADDED", object),
            Seen::Modified(object) => ("MODIFIED", object),
            Seen::Deleted(object) => ("DELETED", object),
        };
        match convert::from_storage(self.def, object) {
            Ok(object) => self.event(out, kind, &object),
            Err(status) => tracing::error!(%status, "A watched object could not be converted and was left out"),
        }
    }

    pub(super) fn event(&mut self, out: &mut Vec<u8>, kind: &str, object: &Arc<Object>) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.request.form.clone() {
            Form::Object => out.extend_from_slice(object.json()),
            Form::PartialObjectMetadata { version } => write(out, &render::partial(object, &version)),
            Form::Table { version } => {
                let headers = std::mem::take(&mut self.headers);
                match render::table_options(&self.request, &version, headers) {
                    Ok(options) => {
                        let mut table = render_table(self.def, std::slice::from_ref(object), &options);
                        table["metadata"] = json!({"resourceVersion": object.revision().to_string()});
                        write(out, &table);
                    }
                    Err(status) => write(out, &status),
                }
            }
        }
        out.extend_from_slice(b"}\n");
    }

    /// Everything up to `revision` was sent; `initial_end` marks the end of what was there at first.
    pub(super) fn bookmark(&mut self, out: &mut Vec<u8>, revision: u64, initial_end: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match &self.request.form {
            Form::Object => json!({"kind": self.def.kind, "apiVersion": self.def.api_version(), "metadata": metadata}),
            Form::PartialObjectMetadata { version } => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": render::api_version(version), "metadata": metadata})
            }
            Form::Table { version } => {
                let partial =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                json!({"kind": "Table", "apiVersion": render::api_version(version),
                    "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": Value::Null, "rows": [{"cells": [], "object": partial}]})
            }
        };
        write(out, &json!({"type": "BOOKMARK", "object": object}));
        out.push(b'\n');
    }
}

fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("writing to memory does not fail");
}
