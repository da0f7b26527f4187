//! GET of a collection.

use quorate_proto::status::Status;

use super::render;
use crate::http::{Answer, ApiRequest, Query};
use crate::registry::status::{invalid_list_options, not_supported};
use crate::registry::{ListQuery, Registry};
use crate::schema::{ResourceDef, Verb};

pub(super) async fn list(registry: &Registry, def: &'static ResourceDef, request: &ApiRequest) -> Answer {
    if !def.has_verb(Verb::List) {
        return Err(not_supported(def, "list"));
    }
    if request.query.get("sendInitialEvents").is_some() {
        let message = "Forbidden: sendInitialEvents is forbidden for list".to_owned();
        return Err(invalid_list_options("sendInitialEvents", "FieldValueForbidden", message));
    }
    let listed = registry.list(def, namespace(def, request), &list_query(&request.query)?).await?;
    render::encode_ahead(&listed.items, request).await;
    render::list(def, &listed, request)
}

/// The namespace that a collection is limited to; cluster-scoped ones never are.
pub(super) fn namespace<'a>(def: &ResourceDef, request: &'a ApiRequest) -> &'a str {
    if def.namespaced { &request.info.namespace } else { "" }
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
