//! Objects and lists in the forms that clients ask for: as they are, as a Table, or
//! their metadata alone.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use quorate_proto::object::Object;
use quorate_proto::status::{ListMeta, Status};
use serde_json::{Value, json};

use crate::http::body::{self, json_bytes};
use crate::http::{Answer, ApiRequest, Form};
use crate::registry::Listed;
use crate::schema::ResourceDef;
use crate::table::{IncludeObject, RenderOptions, render};

/// One object, as the client wants it.
pub(super) fn object(def: &ResourceDef, code: StatusCode, object: &Arc<Object>, request: &ApiRequest) -> Answer {
    match &request.form {
        Form::Object => plain(code, object),
        Form::PartialObjectMetadata { version } => Ok(body::json(code, &partial(object, version))),
        Form::Table { version } => {
            let mut table = render(def, std::slice::from_ref(object), &table_options(request, version, true)?);
            table["metadata"] = json!({"resourceVersion": object.revision().to_string()});
            Ok(body::json(code, &table))
        }
    }
}

/// One object as it is.
pub(super) fn plain(code: StatusCode, object: &Object) -> Answer {
    Ok(json_bytes(code, object.json().clone()))
}

/// A list, as the client wants it.
pub(super) fn list(def: &ResourceDef, listed: &Listed, request: &ApiRequest) -> Answer {
    let meta = list_meta(listed);
    match &request.form {
        Form::Object => Ok(json_bytes(StatusCode::OK, join(def, &meta, &listed.items))),
        Form::PartialObjectMetadata { version } => {
            let items: Vec<Value> = listed.items.iter().map(|object| partial(object, version)).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": api_version(version), "metadata": meta, "items": items});
            Ok(body::json(StatusCode::OK, &list))
        }
        Form::Table { version } => {
            let mut table = render(def, &listed.items, &table_options(request, version, true)?);
            table["metadata"] = serde_json::to_value(&meta).map_err(Status::internal)?;
            Ok(body::json(StatusCode::OK, &table))
        }
    }
}

/// How a table is rendered for this request.
pub(super) fn table_options(request: &ApiRequest, version: &str, headers: bool) -> Result<RenderOptions, Status> {
    let include = match request.query.text("includeObject") {
        "" | "Metadata" => IncludeObject::Metadata,
        "None" => IncludeObject::None,
        "Object" => IncludeObject::Object,
        other => return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    };
    Ok(RenderOptions { include, headers, now: Timestamp::now(), api_version: api_version(version) })
}

pub(super) fn api_version(version: &str) -> &'static str {
    if version == "v1beta1" { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// An object's metadata alone.
pub(super) fn partial(object: &Object, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": api_version(version), "metadata": object.value()["metadata"]})
}

fn list_meta(listed: &Listed) -> ListMeta {
    ListMeta {
        resource_version: listed.revision.to_string(),
        continue_token: listed.continue_token.clone(),
        remaining_item_count: listed.remaining.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
    }
}

/// A list of a built-in kind: its items stand without kind and apiVersion, as upstream's do.
fn join(def: &ResourceDef, meta: &ListMeta, items: &[Arc<Object>]) -> Vec<u8> {
    let size: usize = items.iter().map(|item| item.json().len() + 2).sum();
    let mut out = Vec::with_capacity(size + 256);
    out.extend_from_slice(
        format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":", def.list_kind, def.api_version()).as_bytes(),
    );
    serde_json::to_writer(&mut out, meta).expect("writing to memory does not fail");
    out.extend_from_slice(b",\"items\":[");
    for (index, item) in items.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        out.extend_from_slice(&item.json_without_kind());
    }
    out.extend_from_slice(b"]}");
    out
}
