//! The events of a watch, in the form and the encoding that the client wants.
//!
//! JSON stands in lines, protobuf in frames that begin with their length. Objects are
//! copied as all watchers share them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::render;
use crate::http::{ApiRequest, Encoding, Form};
use crate::registry::convert;
use crate::schema::{Message, ResourceDef};
use crate::table::render as render_table;
use crate::watch_cache::Seen;

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

    pub(super) fn content_type(&self) -> &'static str {
        match self.request.encoding {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// The last event of a watch that cannot go on.
    pub(super) fn error(&self, status: &Status) -> Bytes {
        let mut out = Vec::new();
        match self.request.encoding {
            Encoding::Json => {
                write(&mut out, &json!({"type": "ERROR", "object": status}));
                out.push(b'\n');
            }
            Encoding::Protobuf => write_message(&mut out, "ERROR", Message::of_value(&json!(status))),
        }
        Bytes::from(out)
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
        if self.request.encoding == Encoding::Protobuf {
            return write_message(out, kind, Message::of(object).map(|message| self.shorten(message)));
        }
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
        let whole = json!({"kind": self.def.kind, "apiVersion": self.def.api_version(), "metadata": metadata});
        if self.request.encoding == Encoding::Protobuf {
            return write_message(out, "BOOKMARK", Message::of_value(&whole).map(|message| self.shorten(message)));
        }
        let object = match &self.request.form {
            Form::Object => whole,
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

    /// What the client wants of an object: all, or the metadata. Tables are never protobuf.
    fn shorten(&self, message: Message) -> Message {
        match &self.request.form {
            Form::PartialObjectMetadata { version } => message.partial(render::api_version(version)),
            Form::Object | Form::Table { .. } => message,
        }
    }
}

fn write_message(out: &mut Vec<u8>, kind: &str, message: Option<Message>) {
    match message {
        Some(message) => message.write_event(out, kind),
        // Every kind that is served has one.
        None => tracing::error!(kind, "An event has no protobuf form and was left out"),
    }
}

fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("writing to memory does not fail");
}
