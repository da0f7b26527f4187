//! DELETE of an object or a collection.

use http::StatusCode;
use quorate_proto::status::Status;
use serde_json::Value;

use super::{body, check_dry_run, list, render};
use crate::http::{Answer, ApiRequest};
use crate::registry::context::RequestContext;
use crate::registry::delete::success;
use crate::registry::{DeleteRequest, Registry, Target};
use crate::schema::ResourceDef;

pub(super) async fn delete(
    registry: &Registry,
    mut context: RequestContext,
    target: Target<'_>,
    request: &ApiRequest,
) -> Answer {
    let options = options(request, &mut context)?;
    if !target.subresource.is_empty() {
        return Err(crate::registry::status::not_supported(target.def, "delete"));
    }
    let deleted = registry.delete(&context, target, &options).await?;
    if deleted.gone && !deleted.answers_with_object {
        let status = serde_json::to_value(success(target.def, &deleted.object)).map_err(Status::internal)?;
        return render::value(StatusCode::OK, &status, request);
    }
    let waits_for_dependents = !deleted.gone && options.orphan_dependents == Some(false);
    let code = if waits_for_dependents { StatusCode::ACCEPTED } else { StatusCode::OK };
    super::answer(target.def, code, &deleted.object, request)
}

pub(super) async fn delete_collection(
    registry: &Registry,
    mut context: RequestContext,
    def: &'static ResourceDef,
    request: &ApiRequest,
) -> Answer {
    let options = options(request, &mut context)?;
    let query = list::list_query(&request.query)?;
    let listed = registry.delete_collection(&context, def, &request.info.namespace, &query, &options).await?;
    render::encode_ahead(&listed.items, request).await;
    render::list(def, &listed, request)
}

/// Reads DeleteOptions from the body; the query says what the body leaves out.
fn options(request: &ApiRequest, context: &mut RequestContext) -> Result<DeleteRequest, Status> {
    let value = if request.body.is_empty() { Value::Null } else { body::parse(request)?.value };
    if !value.is_null() && !value.is_object() {
        return Err(Status::bad_request("the body is not a DeleteOptions"));
    }
    let kind = value["kind"].as_str().unwrap_or("DeleteOptions");
    if kind != "DeleteOptions" {
        return Err(Status::bad_request(format!("{kind} cannot be handled as a DeleteOptions")));
    }
    let query = &request.query;
    let grace_period_seconds = match (&value["gracePeriodSeconds"], query.text("gracePeriodSeconds")) {
        (Value::Null, "") => None,
        (Value::Null, text) => Some(
            text.parse().map_err(|_| Status::bad_request(format!("gracePeriodSeconds: Invalid value: {text:?}")))?,
        ),
        (value, _) => Some(
            value.as_i64().ok_or_else(|| Status::bad_request(format!("gracePeriodSeconds: Invalid value: {value}")))?,
        ),
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let orphan = match query.text("orphanDependents") {
        "" => None,
        text => Some(text == "true" || text == "1"),
    };
    let in_body = value["dryRun"].as_array().into_iter().flatten().map(|value| value.as_str().unwrap_or("?"));
    context.dry_run |= check_dry_run(in_body)?;
    Ok(DeleteRequest {
        grace_period_seconds,
        propagation_policy: text(&value["propagationPolicy"])
            .or_else(|| query.get("propagationPolicy").map(str::to_owned)),
        orphan_dependents: value["orphanDependents"].as_bool().or(orphan),
        uid: text(&value["preconditions"]["uid"]),
        resource_version: text(&value["preconditions"]["resourceVersion"]),
    })
}
