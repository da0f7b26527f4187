//! POST to a collection or a subresource.

use http::StatusCode;

use super::{body, render};
use crate::http::{Answer, ApiRequest};
use crate::registry::context::RequestContext;
use crate::registry::{Registry, Target};

pub(super) async fn create(
    registry: &Registry,
    context: &RequestContext,
    target: Target<'_>,
    request: &ApiRequest,
) -> Answer {
    let def = target.def;
    let value = body::object(context, body::expected(def, target.subresource), request)?;
    if !target.subresource.is_empty() {
        let answer = registry.create_subresource(context, target, value).await?;
        return render::value(StatusCode::CREATED, &answer, request);
    }
    if def.storage_prefix.is_empty() {
        let answer = registry.create_virtual(context, target, value).await?;
        return render::value(StatusCode::CREATED, &answer, request);
    }
    let object = registry.create(context, target, value).await?;
    super::answer(def, StatusCode::CREATED, &object, request)
}
