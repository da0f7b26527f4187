//! PATCH of an object or a subresource.

use http::{StatusCode, header};
use quorate_proto::status::Status;
use serde_json::Value;

use super::{body, render};
use crate::http::negotiate::{MediaType, unsupported_media_type};
use crate::http::{Answer, ApiRequest};
use crate::registry::context::RequestContext;
use crate::registry::{Apply, PatchBody, Registry, Target};
use crate::schema::{FieldValidation, Parsed, parse_json, parse_yaml};

/// The media type of server-side apply. JSON is YAML, too.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

const ACCEPTED: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", APPLY];

pub(super) async fn patch(
    registry: &Registry,
    context: &RequestContext,
    target: Target<'_>,
    request: &ApiRequest,
) -> Answer {
    let patch = read(context, target, request)?;
    let written = registry.patch(context, target, &patch).await?;
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    if target.subresource == "scale" {
        return render::plain(code, &written.object, request);
    }
    super::answer(target.def, code, &written.object, request)
}

fn read(context: &RequestContext, target: Target<'_>, request: &ApiRequest) -> Result<PatchBody, Status> {
    let content_type =
        request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let make = match MediaType::parse(content_type).essence.as_str() {
        "application/json-patch+json" => PatchBody::Json,
        "application/merge-patch+json" => PatchBody::Merge,
        "application/strategic-merge-patch+json" => PatchBody::Strategic,
        APPLY => return read_apply(context, target, request).map(PatchBody::Apply),
        _ => return Err(unsupported_media_type(&ACCEPTED)),
    };
    Ok(make(parse_json(&request.body)?.value))
}

fn read_apply(context: &RequestContext, target: Target<'_>, request: &ApiRequest) -> Result<Apply, Status> {
    let Parsed { value: config, duplicates } = parse_yaml(&request.body)
        .map_err(|status| Status::bad_request(format!("error decoding YAML: {}", status.message)))?;
    check(&config, body::expected(target.def, target.subresource))?;
    for path in duplicates {
        let text = format!("key {path:?} already set in map");
        match context.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => context.warnings.add(text),
            FieldValidation::Strict => {
                return Err(Status::bad_request(format!("error strict decoding YAML: {text}")));
            }
        }
    }
    let force = request.query.flag("force");
    Ok(Apply { config, force, create_refusal: request.create_refusal.clone() })
}

/// The configuration says what it is a part of, and leaves managedFields to the server.
fn check(config: &Value, expected: body::Expected) -> Result<(), Status> {
    let text = |name: &str| config[name].as_str().unwrap_or_default();
    let version = if expected.group.is_empty() {
        expected.version.to_owned()
    } else {
        format!("{}/{}", expected.group, expected.version)
    };
    if text("apiVersion") != version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {version}",
            text("apiVersion")
        )));
    }
    if text("kind") != expected.kind {
        return Err(Status::bad_request(format!(
            "Incorrect kind specified in apply patch. Specified kind: {}, expected: {}",
            text("kind"),
            expected.kind
        )));
    }
    if !config["metadata"]["managedFields"].is_null() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}
