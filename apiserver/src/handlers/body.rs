//! Bodies of writes: bytes in, a checked value out.

use http::header;
use quorate_proto::status::Status;
use serde_json::Value;

use crate::http::ApiRequest;
use crate::http::negotiate::{BodyFormat, body_format};
use crate::registry::context::RequestContext;
use crate::schema::{Parsed, ResourceDef, decode_kind, decode_protobuf, parse_json, parse_yaml};

/// Which kind a body is to have.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
}

/// The kind of the bodies of a resource or of one of its subresources.
pub(super) fn expected(def: &'static ResourceDef, subresource: &str) -> Expected {
    match def.subresource(subresource) {
        Some(sub) => Expected { group: sub.group, version: sub.version, kind: sub.kind },
        None => Expected { group: def.group, version: def.version, kind: def.kind },
    }
}

/// Reads the body in the encoding that its Content-Type names.
pub(super) fn parse(request: &ApiRequest) -> Result<Parsed, Status> {
    let content_type = request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match body_format(content_type)? {
        BodyFormat::Json => parse_json(&request.body),
        BodyFormat::Yaml => parse_yaml(&request.body),
        BodyFormat::Protobuf => Ok(Parsed { value: decode_protobuf(&request.body)?, duplicates: Vec::new() }),
    }
}

/// Reads an object of the expected kind, checked against its schema.
pub(super) fn object(context: &RequestContext, expected: Expected, request: &ApiRequest) -> Result<Value, Status> {
    let Parsed { mut value, duplicates } = parse(request)?;
    check_kind(&mut value, expected)?;
    let warnings = decode_kind(
        expected.group,
        expected.version,
        expected.kind,
        &mut value,
        &duplicates,
        context.field_validation,
    )?;
    for warning in warnings {
        context.warnings.add(warning);
    }
    Ok(value)
}

/// An absent kind or version is the one of the path; another one is refused.
fn check_kind(value: &mut Value, expected: Expected) -> Result<(), Status> {
    let Some(fields) = value.as_object_mut() else {
        return Err(Status::bad_request(
            "couldn't get version/kind; json parse error: json: cannot unmarshal a value that is not an object",
        ));
    };
    let api_version = if expected.group.is_empty() {
        expected.version.to_owned()
    } else {
        format!("{}/{}", expected.group, expected.version)
    };
    let given = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (given("kind"), given("apiVersion"));
    if !kind.is_empty() && kind != expected.kind {
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: no kind {kind:?} is registered for version {api_version:?}",
            if version.is_empty() { &api_version } else { &version },
            expected.kind
        )));
    }
    if !version.is_empty() && version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({api_version})"
        )));
    }
    fields.insert("kind".to_owned(), expected.kind.into());
    fields.insert("apiVersion".to_owned(), api_version.into());
    Ok(())
}
