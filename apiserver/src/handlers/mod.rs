//! From a request to a verb of the registry, and from its result to bytes.
//!
//! Bodies are decoded once; answers are joined from the bytes that the watch cache holds.

mod body;
mod components;
mod create;
mod delete;
mod field_manager;
mod frames;
mod get;
mod list;
mod patch;
mod render;
#[cfg(test)]
mod tests;
mod update;
mod watch;

use http::{HeaderValue, StatusCode, header};
use quorate_proto::object::Object;
use quorate_proto::status::Status;

use crate::http::{Answer, ApiRequest, RequestInfo};
use crate::registry::context::RequestContext;
use crate::registry::{Registry, Target};
use crate::schema::{FieldValidation, ResourceDef, resource};

pub(crate) use patch::APPLY;

/// Does what `request` asks for.
///
/// # Errors
/// Every refusal and failure, as the client is to see it.
pub async fn handle(registry: &Registry, request: ApiRequest) -> Answer {
    let info = &request.info;
    let def = resource(&info.api_group, &info.api_version, &info.resource).ok_or_else(unknown_path)?;
    if !info.subresource.is_empty() && def.subresource(&info.subresource).is_none() {
        return Err(unknown_path());
    }
    let named = !info.name.is_empty() && !info.name_from_selector;
    if def.namespaced && info.namespace.is_empty() && (named || info.verb == "create") {
        return Err(unknown_path());
    }
    if !is_placed(def, info) {
        return Err(unknown_path());
    }
    if def.resource == "componentstatuses" {
        return components::handle(registry, &request).await;
    }
    let context = context(&request)?;
    let target = Target {
        def,
        // The path of a namespace names it twice.
        namespace: if def.namespaced { &info.namespace } else { "" },
        name: &info.name,
        subresource: &info.subresource,
    };
    let mut response = match info.verb.as_str() {
        "get" => get::get(registry, target, &request).await,
        "list" => list::list(registry, def, &request).await,
        "watch" => watch::watch(registry, def, &request).await,
        "create" => create::create(registry, &context, target, &request).await,
        "update" => update::update(registry, &context, target, &request).await,
        "patch" => patch::patch(registry, &context, target, &request).await,
        "delete" => delete::delete(registry, context.clone(), target, &request).await,
        "deletecollection" => delete::delete_collection(registry, context.clone(), def, &request).await,
        verb => Err(Status::failure(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on {}", def.group_resource()),
        )),
    }?;
    for warning in context.warnings.take() {
        if let Some(value) = warning_header(&warning) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

/// Whether the path has a namespace only where one belongs. The request was authorized in
/// that namespace, which must say nothing of objects outside of all namespaces.
fn is_placed(def: &ResourceDef, info: &RequestInfo) -> bool {
    let is_namespace = def.group.is_empty() && def.resource == "namespaces";
    def.namespaced || is_namespace || info.namespace.is_empty()
}

/// Upstream's answer to a path that names nothing.
fn unknown_path() -> Status {
    Status::failure(404, "NotFound", "the server could not find the requested resource")
}

/// Reads what the query says about how a write is treated.
fn context(request: &ApiRequest) -> Result<RequestContext, Status> {
    let query = &request.query;
    let dry_run = check_dry_run(query.all("dryRun"))?;
    let field_validation = match query.text("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            return Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            )));
        }
    };
    let field_manager = field_manager::field_manager(request)?;
    Ok(RequestContext {
        user: request.user.clone(),
        dry_run,
        field_manager,
        field_validation,
        ..RequestContext::default()
    })
}

/// Whether a write is a dry run; `All` is the only form there is.
fn check_dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry_run = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            return Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {value:?}: supported values: \"All\""
            )));
        }
        dry_run = true;
    }
    Ok(dry_run)
}

/// RFC 7234, 5.5: quoted, by an agent without a name.
fn warning_header(text: &str) -> Option<HeaderValue> {
    let escaped: String = text
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] })
        .collect();
    HeaderValue::from_bytes(format!("299 - \"{escaped}\"").as_bytes()).ok()
}

/// Answers with one object, in the form that the client wants.
fn answer(def: &ResourceDef, code: StatusCode, object: &std::sync::Arc<Object>, request: &ApiRequest) -> Answer {
    render::object(def, code, object, request)
}
