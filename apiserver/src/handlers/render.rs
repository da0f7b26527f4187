//! Objects and lists in the forms that clients ask for: as they are, as a Table, or
//! their metadata alone; in JSON or in protobuf.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use quorate_proto::object::Object;
use quorate_proto::status::{ListMeta, Status};
use serde_json::{Value, json};

use crate::http::body::{self, json_bytes};
use crate::http::negotiate::not_acceptable;
use crate::http::{Answer, ApiRequest, Encoding, Form};
use crate::registry::Listed;
use crate::schema::{Message, ResourceDef, encode_list, message_of, partial_message};
use crate::table::{IncludeObject, RenderOptions, render};

/// Objects that are encoded in one go: some two milliseconds of a thread that serves others.
const AT_A_TIME: usize = 64;

/// Encodes what nobody has asked for in protobuf before, a little at a time: what is
/// rendered after that are copies.
pub(super) async fn encode_ahead(items: &[Arc<Object>], request: &ApiRequest) {
    if request.encoding == Encoding::Json {
        return;
    }
    for some in items.chunks(AT_A_TIME) {
        for item in some {
            message_of(item);
        }
        tokio::task::yield_now().await;
    }
}

/// One object, as the client wants it.
pub(super) fn object(def: &ResourceDef, code: StatusCode, object: &Arc<Object>, request: &ApiRequest) -> Answer {
    match &request.form {
        Form::Object => plain(code, object, request),
        Form::PartialObjectMetadata { version } => match request.encoding {
            Encoding::Json => Ok(body::json(code, &partial(object, version))),
            Encoding::Protobuf => {
                let message = Message::of(object).ok_or_else(no_protobuf)?;
                Ok(body::protobuf(code, message.partial(api_version(version)).body()))
            }
        },
        Form::Table { version } => {
            let mut table = render(def, std::slice::from_ref(object), &table_options(request, version, true)?);
            table["metadata"] = json!({"resourceVersion": object.revision().to_string()});
            Ok(body::json(code, &table))
        }
    }
}

/// One object as it is.
pub(super) fn plain(code: StatusCode, object: &Object, request: &ApiRequest) -> Answer {
    match request.encoding {
        Encoding::Json => Ok(json_bytes(code, object.json().clone())),
        Encoding::Protobuf => Ok(body::protobuf(code, Message::of(object).ok_or_else(no_protobuf)?.body())),
    }
}

/// What is no object of the store: a Status, a review, a token. It has no other form.
pub(super) fn value(code: StatusCode, value: &Value, request: &ApiRequest) -> Answer {
    match request.encoding {
        Encoding::Json => Ok(body::json(code, value)),
        Encoding::Protobuf => Ok(body::protobuf(code, Message::of_value(value).ok_or_else(no_protobuf)?.body())),
    }
}

/// A list, as the client wants it.
pub(super) fn list(def: &ResourceDef, listed: &Listed, request: &ApiRequest) -> Answer {
    let meta = list_meta(listed);
    match &request.form {
        _ if request.encoding == Encoding::Protobuf => {
            Ok(body::protobuf(StatusCode::OK, protobuf_list(def, &meta, &listed.items, &request.form)?))
        }
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

fn protobuf_list(def: &ResourceDef, meta: &ListMeta, items: &[Arc<Object>], form: &Form) -> Result<Vec<u8>, Status> {
    let messages = items.iter().map(|item| message_of(item).ok_or_else(no_protobuf));
    match form {
        Form::PartialObjectMetadata { version } => {
            let partial: Vec<Bytes> = messages.map(|message| message.map(partial_message)).collect::<Result<_, _>>()?;
            Ok(encode_list(api_version(version), "PartialObjectMetadataList", meta, &partial))
        }
        // Tables have no protobuf form: negotiation passes over them.
        Form::Object | Form::Table { .. } => {
            let whole: Vec<Bytes> = messages.map(|message| message.cloned()).collect::<Result<_, _>>()?;
            Ok(encode_list(&def.api_version(), def.list_kind, meta, &whole))
        }
    }
}

/// The answer to who asks for protobuf of a kind that has none.
fn no_protobuf() -> Status {
    not_acceptable(&[Encoding::Json.media_type()])
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
