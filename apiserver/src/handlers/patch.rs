//! PATCH of an object or a subresource.

use http::{StatusCode, header};
use quorate_proto::status::Status;

use super::render;
use crate::http::negotiate::{MediaType, unsupported_media_type};
use crate::http::{Answer, ApiRequest};
use crate::registry::context::RequestContext;
use crate::registry::{PatchBody, Registry, Target};
use crate::schema::parse_json;

const ACCEPTED: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

pub(super) async fn patch(
    registry: &Registry,
    context: &RequestContext,
    target: Target<'_>,
    request: &ApiRequest,
) -> Answer {
    let patch = read(request)?;
    let written = registry.patch(context, target, &patch).await?;
    if target.subresource == "scale" {
        return render::plain(StatusCode::OK, &written.object, request);
    }
    super::answer(target.def, StatusCode::OK, &written.object, request)
}

fn read(request: &ApiRequest) -> Result<PatchBody, Status> {
    let content_type =
        request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let make = match MediaType::parse(content_type).essence.as_str() {
        "application/json-patch+json" => PatchBody::Json,
        "application/merge-patch+json" => PatchBody::Merge,
        "application/strategic-merge-patch+json" => PatchBody::Strategic,
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            return Err(Status::failure(
                415,
                "UnsupportedMediaType",
                "server-side apply is not supported yet: use client-side apply (kubectl apply without --server-side)",
            ));
        }
        _ => return Err(unsupported_media_type(&ACCEPTED)),
    };
    Ok(make(parse_json(&request.body)?.value))
}
