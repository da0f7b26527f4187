//! GET of a collection.

use std::sync::Arc;

use http::StatusCode;
use quorate_proto::object::Object;
use quorate_proto::status::{ListMeta, Status};

use crate::http::body::json_bytes;
use crate::http::{Answer, ApiRequest, Form, Query};
use crate::registry::{ListQuery, Listed, Registry};
use crate::schema::ResourceDef;

pub(super) async fn list(registry: &Registry, def: &'static ResourceDef, request: &ApiRequest) -> Answer {
    let query = list_query(&request.query)?;
    let listed = registry.list(def, &request.info.namespace, &query).await?;
    match &request.form {
        Form::Object => Ok(json_bytes(StatusCode::OK, join(def, &listed))),
        form => Err(Status::failure(406, "NotAcceptable", format!("{form:?} is not supported yet"))),
    }
}

/// Reads the options of a list, or of a deletecollection.
pub(super) fn list_query(query: &Query) -> Result<ListQuery, Status> {
    let limit = match query.text("limit") {
        "" => 0,
        text => text.parse::<i64>().map_err(|_| Status::bad_request(format!("limit: Invalid value: {text:?}")))?,
    };
    Ok(ListQuery {
        labels: query.text("labelSelector").to_owned(),
        fields: query.text("fieldSelector").to_owned(),
        resource_version: query.text("resourceVersion").to_owned(),
        resource_version_match: query.text("resourceVersionMatch").to_owned(),
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.text("continue").to_owned(),
    })
}

/// The metadata of a list.
pub(super) fn list_meta(listed: &Listed) -> ListMeta {
    ListMeta {
        resource_version: listed.revision.to_string(),
        continue_token: listed.continue_token.clone(),
        remaining_item_count: listed.remaining.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
    }
}

fn join(def: &ResourceDef, listed: &Listed) -> Vec<u8> {
    join_items(def.list_kind, &def.api_version(), &list_meta(listed), &listed.items)
}

/// A list of a built-in kind: its items stand without kind and apiVersion, as upstream's do.
pub(super) fn join_items(kind: &str, api_version: &str, meta: &ListMeta, items: &[Arc<Object>]) -> Vec<u8> {
    let size: usize = items.iter().map(|item| item.json().len() + 2).sum();
    let mut out = Vec::with_capacity(size + 256);
    out.extend_from_slice(format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":").as_bytes());
    serde_json::to_writer(&mut out, meta).expect("writing to memory does not fail");
    out.extend_from_slice(b",\"items\":[");
    for (index, item) in items.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        out.extend_from_slice(&item.json_without_kind());
    }
    out.extend_from_slice(b"]}");
    out
}
